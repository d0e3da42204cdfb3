"""CQL2 on Arrow columns: conditions, values, times, shapes and lists, for some rows at a time."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from reben_cloud.root import layout
from reben_cloud.schema import did_you_mean
from reben_cloud.search.arguments import parse_box, parse_geometry
from reben_cloud.search.cql_times import COMPARE_TIMES, TEMPORAL, Instant, parse_time
from reben_cloud.search.shapes import SPATIAL, Between, relates, shape_of_box, squares_relate

Expression = Any
"""A CQL2 JSON expression: a literal, a property, or an operator with arguments."""

_MAX_CELLS = 1 << 24
"""Rows times different values of lists up to which a table of both is faster than sorting."""


def column_of(name: str, known: Sequence[str]) -> str:
    """The column that a property of a filter means.

    Raises:
        ValueError: If there is none; the message has the nearest names.
    """
    plain = str(name).removeprefix("properties.")
    for column in (plain, f"{layout.PREFIX}{plain}"):
        if column in known:
            return column
    short = [column.removeprefix(layout.PREFIX) for column in known]
    hint = did_you_mean(plain.removeprefix(layout.PREFIX), short) or f"known are {', '.join(short)}"
    raise ValueError(f"the filter names the property {name!r}, which no Item has; {hint}")


def shape_of(node: Expression) -> shapely.Geometry:
    """The shape that a filter spells out, as a box or in GeoJSON.

    Raises:
        ValueError: If it is neither, not valid, or beyond the globe.
    """
    if isinstance(node, Mapping) and "bbox" in node:
        return shape_of_box(parse_box(node["bbox"]))
    if not isinstance(node, Mapping) or ("coordinates" not in node and "geometries" not in node):
        raise ValueError("the filter has something else where a geometry must stand")
    return parse_geometry(node, "a geometry of the filter")


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


_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_TIME = pa.timestamp("us", "UTC")
_STROKES = str.maketrans("øØłŁđĐħĦŧŦıŀĿ", "oOlLdDhHtTilL")
"""Letters with diacritics that Unicode does not take apart."""


def _without_accents(text: str) -> str:
    if text.isascii():
        return text
    plain = unicodedata.normalize("NFKD", text.translate(_STROKES))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


def _without_case(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


_FOLD: Mapping[str, Callable[[str], str]] = {"casei": _without_case, "accenti": _without_accents}


class Shapes:
    """The shapes of a filter, each made and prepared once for all pieces of a table."""

    def __init__(self) -> None:
        self._known: dict[int, shapely.Geometry] = {}

    def of(self, node: Expression) -> shapely.Geometry:
        """The shape of a node of the filter, which outlives this."""
        if id(node) not in self._known:
            self._known[id(node)] = shape_of(node)
        return self._known[id(node)]


class Evaluation:
    """A filter on some rows.

    Args:
        table: Their columns.
        shapes: The shapes of the filter.
        between: Called before each operator and value; what it raises ends the work.
    """

    def __init__(self, table: pa.RecordBatch, shapes: Shapes, between: Between) -> None:
        self.table, self.shapes, self.between = table, shapes, between

    def boolean(self, node: Expression) -> Any:
        """A nullable boolean column."""
        self.between()
        if isinstance(node, bool):
            return pa.array(np.full(self.table.num_rows, node))
        if not isinstance(node, Mapping):
            raise ValueError(f"the filter has {node!r} where a condition must stand")
        if "property" in node:
            found = self._value(node)
            if not pa.types.is_boolean(found.type):
                raise ValueError(f"the filter has {node['property']!r} where a condition must stand")
            return found
        op, args = str(node.get("op")).lower(), list(node.get("args", ()))
        if op in ("and", "or"):
            combine = pc.and_kleene if op == "and" else pc.or_kleene
            return functools.reduce(combine, [self.boolean(arg) for arg in args])
        if op == "not":
            return pc.invert(self.boolean(args[0]))
        if op in SPATIAL:
            return self._spatial(op, *args)
        if op in TEMPORAL:
            return self._column(TEMPORAL[op](*self._interval(args[0]), *self._interval(args[1])))
        if op not in _CONDITIONS:
            raise ValueError(f"the filter has an operator that is not supported: {node.get('op')!r}")
        return self._column(self._condition(op, args))

    def _condition(self, op: str, args: list[Expression]) -> Any:
        if op in _COMPARE:
            return self._compare(op, *args)
        if op == "between":
            value, low, high = args
            return pc.and_kleene(self._compare(">=", value, low), self._compare("<=", value, high))
        if op == "in":
            if (known := self._among(*args)) is not None:
                return known
            found = pa.array(np.zeros(self.table.num_rows, bool))
            for option in args[1]:
                self.between()
                found = pc.or_kleene(found, self._column(self._compare("=", args[0], option)))
            return found
        if op == "isnull":
            return pc.is_null(self._column(self._value(args[0])))
        if op == "like":
            pattern = self._value(args[1])
            if not isinstance(pattern, pa.Scalar):
                raise ValueError("the filter has a LIKE whose pattern is not a string")
            text = self._value(args[0])
            if pattern.as_py() is None:
                return pa.nulls(self.table.num_rows, pa.bool_())
            return pc.match_like(text, pattern.as_py())
        return self._lists(op, *args)

    def _among(self, left: Expression, options: list[Expression]) -> Any | None:
        """IN for strings among strings, or numbers among numbers, at once; None for what is compared one by one."""
        value = self._value(left)
        if isinstance(value, pa.Scalar) or not options:
            return None
        if pa.types.is_string(value.type) and all(isinstance(option, str) for option in options):
            known = pa.array(options, pa.string())
        elif _is_number(value.type) and all(type(option) in (int, float) for option in options):
            value, known = pc.cast(value, pa.float64()), pa.array(map(float, options), pa.float64())
        else:
            return None
        return pc.if_else(pc.is_valid(value), pc.is_in(value, known), pa.scalar(None, pa.bool_()))

    def _value(self, node: Expression) -> Any:
        """A column, or a scalar."""
        self.between()
        if not isinstance(node, Mapping):
            return pa.scalar(node)
        if "property" in node:
            name = column_of(node["property"], self.table.schema.names)
            column = self.table.column(name)
            return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        if "timestamp" in node or "date" in node:
            return self._instant(node).first
        op, args = str(node.get("op")).lower(), node.get("args", ())
        if op in _ARITHMETIC:
            # As floats: integers would wrap, and divide without a remainder.
            return _ARITHMETIC[op](*(pc.cast(self._value(arg), pa.float64()) for arg in args))
        if op in _FOLD:
            return _map_texts(self._value(args[0]), _FOLD[op])
        if op in _CONDITIONS or op in SPATIAL or op in TEMPORAL or op in ("and", "or", "not"):
            return self.boolean(node)
        raise ValueError(f"the filter has a value that is not supported: {node!r}")

    def _compare(self, op: str, left: Expression, right: Expression) -> Any:
        """Two values; a string beside a time is a time."""
        if self._is_time(left) or self._is_time(right):
            return COMPARE_TIMES[op](self._instant(left), self._instant(right))
        return _COMPARE[op](self._value(left), self._value(right))

    def _is_time(self, node: Expression) -> bool:
        if not isinstance(node, Mapping):
            return False
        return "date" in node or (
            ("timestamp" in node or "property" in node) and pa.types.is_timestamp(self._value(node).type)
        )

    def _instant(self, node: Expression) -> Instant:
        """A date, a timestamp, either as text, or a time column."""
        if isinstance(node, Mapping) and "property" in node:
            column = self._value(node)
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

    def _interval(self, node: Expression) -> tuple[Instant, Instant]:
        """Start and end of an instant, an interval or a time column."""
        if not (isinstance(node, Mapping) and "interval" in node):
            found = self._instant(node)
            return found, found
        start, end = (
            Instant(pa.scalar(open_end, _TIME), pa.scalar(open_end, _TIME))
            if end in ("..", "")
            else self._instant(end)
            for end, open_end in zip(node["interval"], (_FIRST, _LAST), strict=True)
        )
        return start, end

    def _spatial(self, op: str, left: Expression, right: Expression) -> Any:
        is_column = [isinstance(node, Mapping) and "property" in node for node in (left, right)]
        for node, known in zip((left, right), is_column, strict=True):
            if known and node["property"] != layout.GEOMETRY:
                raise ValueError(f"the filter uses {node['property']!r} as a geometry; it is 'geometry'")
        if sum(is_column) != 1:
            sides = [
                self._squares() if known else self.shapes.of(node)
                for node, known in zip((left, right), is_column, strict=True)
            ]
            return pa.array(np.ascontiguousarray(np.broadcast_to(relates(op, *sides), self.table.num_rows)))
        boxes = self.table.column(layout.BBOX) if layout.BBOX in self.table.schema.names else None
        shape = self.shapes.of(right if is_column[0] else left)
        squares = self.table.column(layout.GEOMETRY)
        return pa.array(squares_relate(op, squares, boxes, shape, is_left=is_column[0], between=self.between))

    def _squares(self) -> Any:
        return shapely.from_wkb(self.table.column(layout.GEOMETRY).to_numpy(zero_copy_only=False))

    def _lists(self, op: str, left: Expression, right: Expression) -> Any:
        """Lists as sets: order and repetition do not matter."""
        if isinstance(left, list) and not isinstance(right, list):
            swapped = {"a_contains": "a_containedby", "a_containedby": "a_contains"}
            return self._lists(swapped.get(op, op), right, left)
        if not isinstance(right, list):
            raise ValueError(
                f"the filter compares lists of two properties with {op.upper()}: name the values"
            )
        wanted = set(right)
        if isinstance(left, list):
            return pa.scalar(_SETS[op](set(left), wanted))
        column = self._value(left)
        if not pa.types.is_list(column.type):
            raise ValueError(f"the filter has {left!r} where a list must stand")
        unique = pc.list_flatten(column).dictionary_encode()
        rows = pc.list_parent_indices(column).to_numpy()
        codes = unique.indices.to_numpy()
        names = unique.dictionary.to_pylist()
        width = max(1, len(names))
        known = np.array([name in wanted for name in names], bool)
        # Each value of a row once.
        if self.table.num_rows * width <= _MAX_CELLS:
            there = np.zeros((self.table.num_rows, width), bool)
            there[rows, codes] = True
            size, hits = there.sum(axis=1), there[:, np.flatnonzero(known)].sum(axis=1)
        else:
            rows, codes = np.divmod(np.unique(rows.astype(np.int64) * width + codes), width)
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


def _is_number(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))


def _map_texts(values: Any, change: Callable[[str], str]) -> Any:
    """Texts changed one by one, each different one once."""
    if isinstance(values, pa.Scalar):
        return pa.scalar(None if values.as_py() is None else change(values.as_py()), pa.string())
    if not pa.types.is_string(values.type):
        raise ValueError(f"the filter folds a value that is not text but {values.type}")
    if pc.all(pc.string_is_ascii(values), min_count=0).as_py():
        # There both are simple, and Arrow does not keep other threads waiting.
        return pc.ascii_lower(values) if change is _without_case else values
    coded = values.dictionary_encode()
    return pa.array([change(text) for text in coded.dictionary.to_pylist()], pa.string()).take(coded.indices)
