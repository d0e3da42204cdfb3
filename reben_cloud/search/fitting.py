"""For which rows of a table layer a CQL2 filter holds, beside what is said of their patches.

Columns that a filter names are read some row groups at a time and not kept: a layer may have millions of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array
from reben_cloud.root.drawn import ranges
from reben_cloud.root.joined import JoinedLayer
from reben_cloud.root.table import PatchTable
from reben_cloud.search import cql
from reben_cloud.search.cql_evaluation import Expression
from reben_cloud.search.shapes import Between, go_on

Ints = NDArray[np.int64]

_AT_ONCE_ROWS = 1 << 19
"""Rows of a layer that are read at a time, about."""


def layers_of_rows(expression: Expression, table: PatchTable) -> list[str]:
    """Names of the layers with several rows for each patch whose columns a filter names, sorted.

    Raises:
        ValueError: If it names a property that is none; the message has the nearest names.
    """
    by_column = {field.name: name for name, one in table.joined.items() for field in one.row_fields}
    named = cql.columns(expression, [*table.names, *by_column])
    return sorted({by_column[column] for column in named if column not in table.names})


def have_fitting(
    table: PatchTable, rows: Ints, expression: Expression, joined: JoinedLayer, between: Between
) -> NDArray[np.bool_]:
    """Whether a filter holds for at least one row of the layer that each patch has; bool (n,)."""
    first, count = joined.spans(rows)
    before = np.append(
        0, np.cumsum(fits(table, rows, expression, joined, first, count, between), dtype=np.int64)
    )
    ends = np.cumsum(count)
    return np.asarray(before[ends] > before[ends - count])


def fits(
    table: PatchTable,
    rows: Ints,
    expression: Expression,
    joined: JoinedLayer,
    first: Ints,
    count: Ints,
    between: Between = go_on,
) -> NDArray[np.bool_]:
    """Whether a filter holds for each row of a layer that some patches have; bool (sum of `count`,), patch by patch.

    Args:
        table: The table of patches.
        rows: Rows of it, (n,).
        expression: A filter of columns of both, in the names that `PatchTable` and `JoinedLayer.row_fields` have.
        joined: The layer, beside that table.
        first: First row of the layer for each patch, (n,).
        count: Number of its rows, (n,).
        between: Called between pieces of the work; what it raises ends it.
    """
    of_layer = [field.name for field in joined.row_fields]
    columns = cql.columns(expression, [*table.names, *of_layer])
    # A filter without any column of the layer still needs its rows to be true or false for.
    inner = [name for name in columns if name in of_layer] or of_layer[:1]
    outer = [name for name in columns if name not in of_layer]
    order = np.argsort(first, kind="stable")
    order = order[count[order] > 0]
    first_of, count_of = first[order], count[order]
    said = table.take(rows[order], outer) if outer else None
    holds = np.zeros(joined.layer.manifest.num_rows, np.bool_)
    for part, start, stop in _parts(joined, inner, first_of):
        low, high = np.searchsorted(first_of, [start, stop])
        mine = ranges(first_of[low:high], count_of[low:high])
        values = part if len(mine) == part.num_rows else part.take(ints_array(mine - start))
        both = {name: values.column(number) for number, name in enumerate(inner)}
        if said is not None:
            of_row = ints_array(np.repeat(np.arange(low, high), count_of[low:high]))
            repeated = said.take(of_row)
            both |= {name: repeated.column(name) for name in outer}
        holds[mine] = cql.evaluate(expression, pa.table(both), between)
    return holds[ranges(first, count)]


def for_rows_of(joined: JoinedLayer, expression: Expression) -> Expression:
    """A filter for rows of one layer, whose columns may be named without the layer's name, in full."""
    if isinstance(expression, list):
        return [for_rows_of(joined, one) for one in expression]
    if not isinstance(expression, Mapping):
        return expression
    if "property" in expression:
        full = layout.joined_column(joined.layer.name, str(expression["property"]))
        is_own = full in {field.name for field in joined.row_fields}
        return {**expression, "property": full if is_own else expression["property"]}
    return {key: for_rows_of(joined, value) for key, value in expression.items()}


def _parts(joined: JoinedLayer, columns: Sequence[str], first: Ints) -> Iterator[tuple[pa.Table, int, int]]:
    """Columns of the row groups that hold these rows, some of them on end at a time; and which rows they are."""
    table = joined.layer.rows
    starts = table.group_starts
    groups = np.unique(np.searchsorted(starts, first, side="right") - 1)
    names = [name.removeprefix(layout.joined_column(joined.layer.name, "")) for name in columns]
    at_once = max(1, _AT_ONCE_ROWS * (len(starts) - 1) // max(1, table.num_rows))
    for run in np.split(groups, np.flatnonzero(np.diff(groups) != 1) + 1):
        for begin in range(0, len(run), at_once):
            some = run[begin : begin + at_once]
            yield table.read_once(some.tolist(), names), int(starts[some[0]]), int(starts[some[-1] + 1])
