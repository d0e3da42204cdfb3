"""CQL2 filters: parsed by the ``cql2`` package, evaluated here on Arrow columns.

Three-valued logic throughout: a comparison with a value that an Item lacks is null, and a row is
found when the filter is true. A date is a day, in UTC: a time is in it, before it or after it.
Only the columns that a filter names are asked for.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra
from reben_cloud.root import layout
from reben_cloud.schema import did_you_mean
from reben_cloud.search.cql_times import COMPARE_TIMES, TEMPORAL, Instant, parse_time

Expression = Any
"""A CQL2 JSON expression: a literal, a property, or an operator with arguments."""

MAX_OPERATORS = 250
"""Most operators and parentheses of a filter. The parser recurses: a text with some thousands overflows
the stack, which ends the process."""


def parse(query: str | Mapping[str, Any]) -> Expression:
    """A CQL2 filter, text or JSON, as CQL2 JSON.

    Raises:
        ValueError: If it is not CQL2, or has more than `MAX_OPERATORS`.
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
    """The columns that an expression reads.

    Args:
        expression: A filter.
        known: The columns that there are.

    Raises:
        ValueError: If it names a property that does not exist; the message has the nearest names.
    """
    return sorted({_column(node["property"], known) for node in _nodes(expression) if "property" in node})


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


def _column(name: str, known: Sequence[str]) -> str:
    plain = str(name).removeprefix("properties.")
    for column in (plain, f"{layout.PREFIX}{plain}"):
        if column in known:
            return column
    short = [column.removeprefix(layout.PREFIX) for column in known]
    hint = did_you_mean(plain.removeprefix(layout.PREFIX), short) or f"known are {', '.join(short)}"
    raise ValueError(f"the filter names the property {name!r}, which no Item has; {hint}")


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
    "div": lambda a, b: pc.trunc(pc.divide(a, b)),
    "%": lambda a, b: pc.if_else(pc.is_inf(b), a, pc.subtract(a, pc.multiply(b, pc.trunc(pc.divide(a, b))))),
}
_SETS: Mapping[str, Callable[[set[Any], set[Any]], bool]] = {
    "a_contains": lambda a, b: a >= b,
    "a_containedby": lambda a, b: a <= b,
    "a_equals": lambda a, b: a == b,
    "a_overlaps": lambda a, b: bool(a & b),
}
_CONDITIONS = frozenset({*_COMPARE, *_SETS, "between", "in", "isnull", "like"})
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


_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_TIME = pa.timestamp("us", "UTC")
_STROKES = str.maketrans("øØłŁđĐħĦŧŦıŀĿ", "oOlLdDhHtTilL")
"""Letters with diacritics that Unicode does not take apart."""


def _without_accents(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.translate(_STROKES))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


def _without_case(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


_FOLD: Mapping[str, Callable[[str], str]] = {"casei": _without_case, "accenti": _without_accents}


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
            found = self.value(node)
            if not pa.types.is_boolean(found.type):
                raise ValueError(f"the filter has {node['property']!r} where a condition must stand")
            return found
        op, args = str(node.get("op")).lower(), list(node.get("args", ()))
        if op in ("and", "or"):
            combine = pc.and_kleene if op == "and" else pc.or_kleene
            return functools.reduce(combine, [self.boolean(arg) for arg in args])
        if op == "not":
            return pc.invert(self.boolean(args[0]))
        if op in _SPATIAL:
            return self.spatial(op, *args)
        if op in TEMPORAL:
            return self._column(TEMPORAL[op](*self.interval(args[0]), *self.interval(args[1])))
        if op not in _CONDITIONS:
            raise ValueError(f"the filter has an operator that is not supported: {node.get('op')!r}")
        return self._column(self.condition(op, args))

    def condition(self, op: str, args: list[Expression]) -> Any:
        if op in _COMPARE:
            return self.compare(op, *args)
        if op == "between":
            value, low, high = args
            return pc.and_kleene(self.compare(">=", value, low), self.compare("<=", value, high))
        if op == "in":
            found = pa.array(np.zeros(self.table.num_rows, bool))
            for option in args[1]:
                found = pc.or_kleene(found, self._column(self.compare("=", args[0], option)))
            return found
        if op == "isnull":
            return pc.is_null(self._column(self.value(args[0])))
        if op == "like":
            pattern = self.value(args[1])
            if not isinstance(pattern, pa.Scalar):
                raise ValueError("the filter has a LIKE whose pattern is not a string")
            text = self.value(args[0])
            if pattern.as_py() is None:
                return pa.nulls(self.table.num_rows, pa.bool_())
            return pc.match_like(text, pattern.as_py())
        return self.lists(op, *args)

    def value(self, node: Expression) -> Any:
        """A column, or a scalar."""
        if not isinstance(node, Mapping):
            return pa.scalar(node)
        if "property" in node:
            name = _column(node["property"], self.table.column_names)
            column = self.table.column(name).combine_chunks()
            return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if "timestamp" in node or "date" in node:
            return self.instant(node).first
        op, args = str(node.get("op")).lower(), node.get("args", ())
        if op in _ARITHMETIC:
            # As floats: integers would wrap, and divide without a remainder.
            return _ARITHMETIC[op](*(pc.cast(self.value(arg), pa.float64()) for arg in args))
        if op in _FOLD:
            return _map_texts(self.value(args[0]), _FOLD[op])
        if op in _CONDITIONS or op in _SPATIAL or op in TEMPORAL or op in ("and", "or", "not"):
            return self.boolean(node)
        raise ValueError(f"the filter has a value that is not supported: {node!r}")

    def compare(self, op: str, left: Expression, right: Expression) -> Any:
        """Two values; a string beside a time is a time."""
        if self.is_time(left) or self.is_time(right):
            return COMPARE_TIMES[op](self.instant(left), self.instant(right))
        return _COMPARE[op](self.value(left), self.value(right))

    def is_time(self, node: Expression) -> bool:
        if not isinstance(node, Mapping):
            return False
        return "date" in node or (
            ("timestamp" in node or "property" in node) and pa.types.is_timestamp(self.value(node).type)
        )

    def instant(self, node: Expression) -> Instant:
        """A date, a timestamp, either as text, or a time column."""
        if isinstance(node, Mapping) and "property" in node:
            column = self.value(node)
            if not pa.types.is_timestamp(column.type):
                raise ValueError(f"the filter has {node['property']!r} where a time must stand")
            return Instant(column, column)
        text = node.get("timestamp", node.get("date")) if isinstance(node, Mapping) else node
        if text is None:
            return Instant(pa.scalar(None, _TIME), pa.scalar(None, _TIME))
        first = parse_time(text)
        is_date = re.fullmatch(r"\d{4}-\d\d-\d\d", text) is not None
        last = first + timedelta(days=1, microseconds=-1) if is_date else first
        return Instant(pa.scalar(first, _TIME), pa.scalar(last, _TIME))

    def interval(self, node: Expression) -> tuple[Instant, Instant]:
        """Start and end of an instant, an interval or a time column."""
        if not (isinstance(node, Mapping) and "interval" in node):
            found = self.instant(node)
            return found, found
        start, end = (
            Instant(pa.scalar(open_end, _TIME), pa.scalar(open_end, _TIME))
            if end in ("..", "")
            else self.instant(end)
            for end, open_end in zip(node["interval"], (_FIRST, _LAST), strict=True)
        )
        return start, end

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
            if west > east:  # over the antimeridian
                return shapely.union(
                    shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)
                )
            return shapely.box(west, south, east, north)
        try:
            shape = shapely.from_geojson(json.dumps(node))
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"the filter has a geometry that is not GeoJSON: {error}") from error
        shapely.prepare(shape)
        return shape

    def lists(self, op: str, left: Expression, right: Expression) -> Any:
        """Lists as sets: order and repetition do not matter."""
        if isinstance(left, list) and not isinstance(right, list):
            swapped = {"a_contains": "a_containedby", "a_containedby": "a_contains"}
            return self.lists(swapped.get(op, op), right, left)
        if not isinstance(right, list):
            raise ValueError(
                f"the filter compares lists of two properties with {op.upper()}: name the values"
            )
        wanted = set(right)
        if isinstance(left, list):
            return pa.scalar(_SETS[op](set(left), wanted))
        column = self.value(left)
        if not pa.types.is_list(column.type):
            raise ValueError(f"the filter has {left!r} where a list must stand")
        unique = pc.list_flatten(column).dictionary_encode()
        rows = pc.list_parent_indices(column).to_numpy()
        codes = unique.indices.to_numpy()
        names = unique.dictionary.to_pylist()
        width = max(1, len(names))
        # Each value of a row once.
        rows, codes = np.divmod(np.unique(rows.astype(np.int64) * width + codes), width)
        known = np.array([name in wanted for name in names], bool)
        size = np.bincount(rows, minlength=self.table.num_rows)
        hits = np.bincount(rows[known[codes]], minlength=self.table.num_rows)
        found = {
            "a_contains": hits == len(wanted),
            "a_containedby": hits == size,
            "a_equals": (hits == size) & (hits == len(wanted)),
            "a_overlaps": hits > 0,
        }[op]
        return pa.array(found, mask=np.asarray(pc.is_null(column)))

    def _column(self, found: Any) -> Any:
        """A scalar answer (both sides literal) as a column."""
        return pa.repeat(found, self.table.num_rows) if isinstance(found, pa.Scalar) else found


def _map_texts(values: Any, change: Callable[[str], str]) -> Any:
    """Texts changed one by one, each different one once."""
    if isinstance(values, pa.Scalar):
        return pa.scalar(None if values.as_py() is None else change(values.as_py()), pa.string())
    if not pa.types.is_string(values.type):
        raise ValueError(f"the filter folds a value that is not text but {values.type}")
    coded = values.dictionary_encode()
    return pa.array([change(text) for text in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)
