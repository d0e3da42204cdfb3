"""Which rows of a table layer a patch has, and for which of them a CQL2 filter holds.

Columns that a filter names are read some row groups at a time and not kept: a layer may have millions of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array
from reben_cloud.root.joined import JoinedLayer
from reben_cloud.root.rows import Ints, LayerRows
from reben_cloud.root.selection import Selection
from reben_cloud.root.table import PatchTable
from reben_cloud.schema import check_names
from reben_cloud.search import cql

_AT_ONCE_ROWS = 1 << 19
"""Rows of a layer that are read at a time, about."""


def find_layer_rows(
    selection: Selection, name: str, where: str | Mapping[str, Any] | None = None
) -> LayerRows:
    """The rows of a table layer that the patches of a selection have; see `Selection.layer_rows`."""
    joined = selection.table.joined
    tables = [layer for layer, one in joined.items() if one.layer.manifest.kind != "array"]
    check_names([name], tables, "table layer")
    found = joined[name].spans(selection.rows)
    if where is None:
        return found
    expression = _with_prefix(cql.parse(where), joined[name])
    if other := set(several_rows(expression, selection.table)) - {name}:
        raise ValueError(f"the filter is for rows of {name}, and names columns of {', '.join(sorted(other))}")
    return rows_that_fit(selection.table, selection.rows, expression, joined[name], found)


def several_rows(expression: cql.Expression, table: PatchTable) -> list[str]:
    """Names of the layers with several rows for each patch whose columns a filter names."""
    by_column = {field.name: name for name, one in table.joined.items() for field in one.row_fields}
    named = cql.columns(expression, [*table.names, *by_column])
    return sorted(
        {by_column[column] for column in named if column in by_column and column not in table.names}
    )


def fit_any(
    table: PatchTable, rows: Ints, expression: cql.Expression, joined: JoinedLayer
) -> NDArray[np.bool_]:
    """Whether a filter holds for at least one row of the layer that each patch has; bool (n,)."""
    return rows_that_fit(table, rows, expression, joined, joined.spans(rows)).counts > 0


def rows_that_fit(
    table: PatchTable, rows: Ints, expression: cql.Expression, joined: JoinedLayer, found: LayerRows
) -> LayerRows:
    """Those of some rows of a layer for which a filter holds.

    Args:
        table: The table of patches.
        rows: Rows of it, (n,).
        expression: A filter of columns of both.
        joined: The layer, beside that table.
        found: Its rows for these patches.
    """
    of_layer = [field.name for field in joined.row_fields]
    known = [*table.names, *(name for name in of_layer if name not in table.names)]
    columns = cql.columns(expression, known)
    # A filter without any column of the layer still needs its rows to be true or false for.
    inner = [name for name in columns if name in of_layer] or of_layer[:1]
    outer = [name for name in columns if name not in of_layer]
    # Patches in the order of their rows, so that both are gone through once.
    order = np.argsort(found.first, kind="stable")
    order = order[found.count[order] > 0]
    of_patches = table.take(rows[order], outer) if outer else None
    # What is found of rows that no filter has seen stays false.
    holds = np.zeros(joined.layer.manifest.num_rows, np.bool_)
    for part, (start, stop) in _parts(joined, inner, found.first[order]):
        low, high = np.searchsorted(found.first[order], [start, stop])
        mine = LayerRows.all_of(found.first[order[low:high]], found.count[order[low:high]])
        values = part if len(mine.rows) == part.num_rows else part.take(ints_array(mine.rows - start))
        table_of_both = {name: values.column(number) for number, name in enumerate(inner)}
        if of_patches is not None:
            of_row = ints_array(np.repeat(np.arange(high - low), mine.count))
            both = of_patches.slice(low, high - low).take(of_row)
            table_of_both |= {name: both.column(name) for name in outer}
        holds[mine.rows] = cql.evaluate(expression, pa.table(table_of_both))
    return found.where(holds[found.rows])


def _parts(
    joined: JoinedLayer, columns: Sequence[str], first: Ints
) -> Iterator[tuple[pa.Table, tuple[int, int]]]:
    """Columns of the row groups that hold these rows, some of them on end at a time; and the rows they are."""
    table = joined.layer.rows
    starts = table.group_starts
    groups = np.unique(np.searchsorted(starts, first, side="right") - 1)
    names = [name.removeprefix(layout.joined_column(joined.layer.name, "")) for name in columns]
    at_once = max(1, int(_AT_ONCE_ROWS / max(1, starts[-1] / max(1, len(starts) - 1))))
    for run in np.split(groups, np.flatnonzero(np.diff(groups) != 1) + 1):
        for begin in range(0, len(run), at_once):
            some = run[begin : begin + at_once]
            yield table.scan(some.tolist(), names), (int(starts[some[0]]), int(starts[some[-1] + 1]))


def _with_prefix(expression: cql.Expression, joined: JoinedLayer) -> cql.Expression:
    """A filter for rows of one layer, whose columns may be named without the layer's name."""
    name = joined.layer.name
    own = {field.name.removeprefix(layout.joined_column(name, "")): field.name for field in joined.row_fields}
    if isinstance(expression, list):
        return [_with_prefix(one, joined) for one in expression]
    if not isinstance(expression, Mapping):
        return expression
    if "property" in expression:
        return {**expression, "property": own.get(expression["property"], expression["property"])}
    return {key: _with_prefix(value, joined) for key, value in expression.items()}
