"""CQL2 filters: parsed by the ``cql2`` package, looked into, and evaluated on Arrow columns.

Three-valued logic throughout: a comparison with a value that an Item lacks is null, and a row is
found when the filter is true. A date is a day, in UTC: a time is in it, before it or after it.
Only the columns that a filter names are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra
from reben_cloud.root import layout
from reben_cloud.search.arguments import Box
from reben_cloud.search.cql_evaluation import Evaluation, Expression, Shapes, column_of, shape_of
from reben_cloud.search.shapes import SPATIAL, Between, box_of, go_on

MAX_OPERATORS = 250
"""Most operators and parentheses of a filter. The parser recurses: a text with some thousands overflows
the stack, which ends the process."""

MAX_GROUPS = 8
"""Most parentheses in each other in a text. Before it refuses what is in them, the parser tries each in two ways:
20 of them take minutes, in which nothing else in the process runs; CQL2 JSON nests without."""

MAX_DIGITS = 40
"""Most digits on end; of 100,000 the parser makes minutes too."""

_MAX_DEPTH = 120
"""Most objects and lists in each other: the parser takes 128."""

_AT_ONCE_ROWS = 1 << 16
"""Rows for which a filter is evaluated at a time: an operator takes a millisecond or two, one that folds case 50."""


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
        _check_text(query)
    else:
        _check_depth(query)
    try:
        parsed = cql2.parse_text(query) if isinstance(query, str) else cql2.parse_json(json.dumps(query))
        expression = parsed.to_json()
    except (cql2.ParseError, cql2.ValidationError, ValueError, TypeError) as error:
        # A parser's error is a drawing: where (line:column) stands first, what it expected last.
        lines = [line.strip(" -=>") for line in str(error).splitlines()]
        detail = ": ".join(dict.fromkeys((lines[0], lines[-1])))
        raise ValueError(f"the CQL2 filter cannot be understood: {detail}") from error
    _check_size(sum("op" in node for node in nodes(expression)))
    return expression


_LITERAL = re.compile(r"'[^']*'")
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS + 1}}}")
_COORDINATES = re.compile(r"-?\d+(?:\.\d+)? +-?\d+(?:\.\d+)? *(?=[,)])")
"""Pairs of them, whose signs are no operators."""

_NESTING = re.compile(r"[(+*/^=<>-]|\bnot\b", re.IGNORECASE)


_WORD = re.compile(r"""\d+|[()]|"[^"]*"|[^\W\d][\w:.]*|[^\s()]""")
_NO_FUNCTIONS = frozenset(("and", "or", "not", "in", "between", "like", "is"))
"""Words before a parenthesis that begins a group, not the arguments of a function."""


def _check_text(text: str) -> None:
    """Refuse what would take the parser minutes, or its process the stack."""
    bare = _LITERAL.sub("''", text)
    if _LONG_NUMBER.search(bare):  # before any pattern that looks for digits again and again
        raise ValueError(f"the CQL2 filter has a number of more than {MAX_DIGITS} digits")
    _check_size(len(_NESTING.findall(_COORDINATES.sub("", bare))))
    open_groups, before = list[bool](), "("
    for word in _WORD.findall(bare):
        if word == "(":
            open_groups.append(not before[0].isidentifier() or before.lower() in _NO_FUNCTIONS)
            if sum(open_groups) > MAX_GROUPS:
                raise ValueError(
                    f"the CQL2 filter has more than {MAX_GROUPS} parentheses in each other; CQL2 JSON may nest deeper"
                )
        elif word == ")" and open_groups:
            open_groups.pop()
        before = word


def _check_size(num_operators: int) -> None:
    if num_operators > MAX_OPERATORS:
        raise ValueError(
            f"the CQL2 filter has {num_operators:,} operators and parentheses, {MAX_OPERATORS} is the most; "
            "use IN (...) for many values, and a GeoJSON geometry for a large area"
        )


def _check_depth(query: object) -> None:
    level, depth = [query], 0
    while level:
        if depth > _MAX_DEPTH:
            raise ValueError(f"the CQL2 filter has more than {_MAX_DEPTH} objects and lists in each other")
        level, depth = [child for node in level for child in _children(node)], depth + 1


def _children(node: object) -> Iterable[object]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def nodes(expression: Expression) -> Iterator[Mapping[str, Any]]:
    """The objects of an expression, whatever they are."""
    left: list[object] = [expression]
    while left:
        node = left.pop()
        if isinstance(node, Mapping):
            yield node
        left += _children(node)


def columns(expression: Expression, known: Sequence[str]) -> list[str]:
    """The columns that an expression reads; beside the geometry also the boxes, which leave out most of it.

    Args:
        expression: A filter.
        known: The columns that there are.

    Raises:
        ValueError: If it names a property that does not exist; the message has the nearest names.
    """
    named = {column_of(node["property"], known) for node in nodes(expression) if "property" in node}
    return sorted(named | ({layout.BBOX} & set(known) if layout.GEOMETRY in named else set()))


def boxes(expression: Expression) -> list[Box]:
    """Boxes that a patch must touch for a filter to hold, as far as its outermost conditions tell.

    Raises:
        ValueError: If it has a shape that is not one.
    """
    if not isinstance(expression, Mapping):
        return []
    op, args = str(expression.get("op")).lower(), expression.get("args", ())
    if op == "and":
        return [box for arg in args for box in boxes(arg)]
    if op not in SPATIAL or op == "s_disjoint" or len(args) != 2:
        return []
    shapes = [arg for arg in args if not (isinstance(arg, Mapping) and "property" in arg)]
    return [box_of(shape_of(shapes[0]))] if len(shapes) == 1 else []


def evaluate(expression: Expression, table: pa.Table, between: Between = go_on) -> NDArray[np.bool_]:
    """The rows of `table` for which `expression` is true, bool (num_rows,).

    Args:
        expression: A filter.
        table: The columns that it reads (`columns`).
        between: Called between pieces of the work; what it raises ends it.

    Raises:
        ValueError: If an operator is unknown, or its arguments have types that it does not take.
    """
    shapes = Shapes()
    found = [np.empty(0, bool)]
    try:
        for batch in table.to_batches(_AT_ONCE_ROWS) or [pa.RecordBatch.from_pylist([], table.schema)]:
            fits = Evaluation(batch, shapes, between).boolean(expression)
            found.append(np.asarray(pc.fill_null(fits, False).to_numpy(zero_copy_only=False), bool))
    except (
        *(pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, shapely.errors.ShapelyError),
        *(TypeError, KeyError, IndexError, AttributeError, OverflowError),
    ) as error:
        raise ValueError(
            f"the CQL2 filter cannot be evaluated: {(str(error).splitlines() or ['?'])[0]}"
        ) from error
    return np.concatenate(found)
