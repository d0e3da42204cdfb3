"""CQL2 filters: parsed by the ``cql2`` package, evaluated here on Arrow columns.

Three-valued logic throughout: a comparison with a property that an Item lacks is null, and a row is
found when the filter is true. Only the columns that a filter names are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra

Expression = Any
"""A CQL2 JSON expression: a literal, a property, or an operator with arguments."""

MAX_OPERATORS = 250
"""Most operators and parentheses of a filter. The parser recurses: a text with some thousands overflows
the stack, which ends the process."""


def parse(query: str | Mapping[str, Any]) -> Expression:
    """A CQL2 filter, text or JSON, as CQL2 JSON.

    Raises:
        ValueError: If it is no CQL2, or has more than `MAX_OPERATORS`.
        MissingExtraError: If the ``cql2`` package is not installed.
    """
    try:
        import cql2
    except ImportError as error:
        raise missing_extra("cql2", "stac") from error
    if isinstance(query, str):
        _check_size(len(_NESTING.findall(_NO_NESTING.sub("", query))))
    try:
        parsed = cql2.parse_text(query) if isinstance(query, str) else cql2.parse_json(json.dumps(query))
        expression = parsed.to_json()
    except (cql2.ParseError, cql2.ValidationError, ValueError, TypeError) as error:
        # A parser's error is a drawing: where (line:column) stands first, what it expected last.
        lines = [line.strip(" -=>") for line in str(error).splitlines()]
        detail = ": ".join(dict.fromkeys((lines[0], lines[-1])))
        raise ValueError(f"the CQL2 filter cannot be understood: {detail}") from error
    _check_size(sum("op" in node for node in _nodes(expression)))
    return expression


_NO_NESTING = re.compile(r"'[^']*'|-?\d+(?:\.\d+)? +-?\d+(?:\.\d+)? *(?=[,)])")
"""Literals, and pairs of coordinates, whose signs are no operators."""

_NESTING = re.compile(r"[(+*/^=<>-]|\bnot\b", re.IGNORECASE)


def _check_size(num_operators: int) -> None:
    if num_operators > MAX_OPERATORS:
        raise ValueError(
            f"the CQL2 filter has {num_operators:,} operators and parentheses, {MAX_OPERATORS} is the most; "
            "use IN (...) for many values, and a GeoJSON geometry for a large area"
        )


def _nodes(expression: Expression) -> Iterator[Mapping[str, Any]]:
    """The objects of an expression, whatever they are."""
    if isinstance(expression, Mapping):
        yield expression
        expression = list(expression.values())
    if isinstance(expression, list):
        for child in expression:
            yield from _nodes(child)


def columns(expression: Expression, known: Sequence[str]) -> list[str]:
    """The known columns that an expression reads."""
    names = [node["property"] for node in _nodes(expression) if "property" in node]
    return sorted({column for name in names for column in _column(name, known)})


def evaluate(expression: Expression, table: pa.Table) -> NDArray[np.bool_]:
    """The rows of `table` for which `expression` is true, bool (num_rows,).

    Raises:
        ValueError: If an operator is unknown, or its arguments have types that it does not take.
    """
    try:
        found = _Evaluation(table).boolean(expression)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, TypeError, KeyError) as error:
        raise ValueError(f"the CQL2 filter cannot be evaluated: {str(error).splitlines()[0]}") from error
    return np.asarray(pc.fill_null(found, False).to_numpy(zero_copy_only=False), bool)


def _column(name: str, known: Sequence[str]) -> list[str]:
    plain = name.removeprefix("properties.")
    return [c for c in (plain, f"reben:{plain}") if c in known][:1]


_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "/": pc.divide,
    "^": pc.power,
}
_SPATIAL: Mapping[str, Callable[[Any, Any], Any]] = {
    "s_intersects": shapely.intersects,
    "s_disjoint": shapely.disjoint,
    "s_within": shapely.within,
    "s_contains": shapely.contains,
    "s_overlaps": shapely.overlaps,
    "s_touches": shapely.touches,
    "s_crosses": shapely.crosses,
    "s_equals": shapely.equals,
}
_TEMPORAL: Mapping[str, Callable[[Any, Any, Any, Any], Any]] = {
    # Start and end of the left, then of the right; an instant starts and ends at once.
    "t_before": lambda _a, b, c, _d: pc.less(b, c),
    "t_after": lambda a, _b, _c, d: pc.greater(a, d),
    "t_equals": lambda a, b, c, d: pc.and_(pc.equal(a, c), pc.equal(b, d)),
    "t_intersects": lambda a, b, c, d: pc.and_(pc.less_equal(a, d), pc.greater_equal(b, c)),
    "t_disjoint": lambda a, b, c, d: pc.or_(pc.less(b, c), pc.greater(a, d)),
    "t_during": lambda a, b, c, d: pc.and_(pc.greater(a, c), pc.less(b, d)),
    "t_contains": lambda a, b, c, d: pc.and_(pc.less(a, c), pc.greater(b, d)),
}
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


class _Evaluation:
    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def boolean(self, node: Expression) -> Any:
        """A nullable boolean column."""
        if isinstance(node, bool):
            return pa.array(np.full(self.table.num_rows, node))
        if not isinstance(node, Mapping):
            raise ValueError(f"the filter has {node!r} where a condition must stand")
        if "property" in node:
            return self.value(node)
        op, args = str(node.get("op")), list(node.get("args", ()))
        if op in ("and", "or"):
            combine = pc.and_kleene if op == "and" else pc.or_kleene
            found = self.boolean(args[0])
            for other in args[1:]:
                found = combine(found, self.boolean(other))
            return found
        if op == "not":
            return pc.invert(self.boolean(args[0]))
        if op in _SPATIAL:
            return self.spatial(op, *args)
        if op in _TEMPORAL:
            return self._column(_TEMPORAL[op](*self.interval(args[0]), *self.interval(args[1])))
        return self._column(self.condition(op, args))

    def condition(self, op: str, args: list[Expression]) -> Any:
        if op in _COMPARE:
            return _COMPARE[op](*self.pair(*args))
        if op == "between":
            value, low, high = args
            return pc.and_kleene(
                pc.greater_equal(*self.pair(value, low)), pc.less_equal(*self.pair(value, high))
            )
        if op == "in":
            found = pa.array(np.zeros(self.table.num_rows, bool))
            for option in args[1]:
                found = pc.or_kleene(found, self._column(pc.equal(*self.pair(args[0], option))))
            return found
        if op == "isNull":
            return pc.is_null(self._column(self.value(args[0])))
        if op == "like":
            ignore_case = isinstance(args[1], Mapping)
            pattern = args[1]["args"][0] if ignore_case else args[1]
            return pc.match_like(self.value(args[0]), pattern, ignore_case=ignore_case)
        if op.lower() in ("a_contains", "a_containedby", "a_equals", "a_overlaps"):
            return self.lists(op.lower(), *args)
        raise ValueError(f"the filter has an operator that is not supported: {op!r}")

    def value(self, node: Expression) -> Any:
        """A column, or a scalar."""
        if not isinstance(node, Mapping):
            return pa.scalar(node)
        if "property" in node:
            names = _column(node["property"], self.table.column_names)
            if not names:
                return pa.nulls(self.table.num_rows)
            column = self.table.column(names[0]).combine_chunks()
            return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        for kind in ("timestamp", "date"):
            if kind in node:
                return pa.scalar(_instant(node[kind]), pa.timestamp("us", "UTC"))
        op, args = str(node.get("op")), node.get("args", ())
        if op in _ARITHMETIC:
            return _ARITHMETIC[op](self.value(args[0]), self.value(args[1]))
        if op == "casei":
            return pc.utf8_lower(self.value(args[0]))
        if op == "accenti":
            return pc.utf8_normalize(self.value(args[0]), form="NFKD")
        raise ValueError(f"the filter has a value that is not supported: {node!r}")

    def pair(self, left: Expression, right: Expression) -> tuple[Any, Any]:
        """Two values of one type: a null column takes the other's, a text beside a time becomes one."""
        a, b = self.value(left), self.value(right)
        if pa.types.is_null(a.type):
            return pa.nulls(self.table.num_rows, b.type), b
        if pa.types.is_null(b.type):
            return a, pa.nulls(self.table.num_rows, a.type)
        if pa.types.is_timestamp(a.type) and pa.types.is_string(b.type) and isinstance(b, pa.Scalar):
            return a, pa.scalar(_instant(b.as_py()), pa.timestamp("us", "UTC"))
        if pa.types.is_timestamp(b.type) and pa.types.is_string(a.type) and isinstance(a, pa.Scalar):
            return pa.scalar(_instant(a.as_py()), pa.timestamp("us", "UTC")), b
        return a, b

    def interval(self, node: Expression) -> tuple[Any, Any]:
        """Start and end of an instant, an interval or a time column."""
        if isinstance(node, Mapping) and "interval" in node:
            start, end = (
                open_end if end in ("..", "") else _instant(end)
                for end, open_end in zip(node["interval"], (_FIRST, _LAST), strict=True)
            )
            kind = pa.timestamp("us", "UTC")
            return pa.scalar(start, kind), pa.scalar(end, kind)
        value = self.value(node)
        return value, value

    def spatial(self, op: str, left: Expression, right: Expression) -> Any:
        shapes = [self.geometry(node) for node in (left, right)]
        found = np.broadcast_to(_SPATIAL[op](*shapes), self.table.num_rows)
        return pa.array(np.ascontiguousarray(found))

    def geometry(self, node: Expression) -> Any:
        if isinstance(node, Mapping) and "property" in node:
            if node["property"] != "geometry":
                raise ValueError(f"the filter uses {node['property']!r} as a geometry; it is 'geometry'")
            return shapely.from_wkb(self.table.column("geometry").to_numpy())
        if isinstance(node, Mapping) and "bbox" in node:
            west, south, east, north = (
                node["bbox"] if len(node["bbox"]) == 4 else np.take(node["bbox"], [0, 1, 3, 4])
            )
            return shapely.box(west, south, east, north)
        try:
            shape = shapely.from_geojson(json.dumps(node))
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"the filter has a geometry that is no GeoJSON: {error}") from error
        shapely.prepare(shape)
        return shape

    def lists(self, op: str, left: Expression, right: Expression) -> Any:
        """A list column against a list of literals; order and repetition do not matter."""
        column = self.value(left)
        if pa.types.is_null(column.type):
            return pa.nulls(self.table.num_rows, pa.bool_())
        wanted = sorted(set(right))
        flat, rows = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
        matches = rows[pc.is_in(flat, pa.array(wanted)).to_numpy(zero_copy_only=False)]
        hits = np.bincount(matches, minlength=self.table.num_rows)
        size = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        return pa.array(
            {
                "a_contains": hits == len(wanted),
                "a_containedby": hits == size,
                "a_equals": (hits == size) & (hits == len(wanted)),
                "a_overlaps": hits > 0,
            }[op]
        )

    def _column(self, found: Any) -> Any:
        """A scalar answer (both sides literal) as a column."""
        return pa.repeat(found, self.table.num_rows) if isinstance(found, pa.Scalar) else found


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the filter has {text!r} where a time must stand") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
