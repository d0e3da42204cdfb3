"""From conditions to row numbers: row groups are pruned, columns filtered, shapes tested exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import mask_of, values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.query import Query
from reben_cloud.root.table import PatchTable
from reben_cloud.schema import check_names
from reben_cloud.search import cql
from reben_cloud.search.arguments import (
    Box,
    Interval,
    parse_box,
    parse_count,
    parse_flag,
    parse_geometry,
    parse_names,
)
from reben_cloud.search.conditions import Condition, conditions_of, micros_of, times_of
from reben_cloud.search.cql_evaluation import Expression
from reben_cloud.search.fitting import have_fitting, layers_of_rows
from reben_cloud.search.ids import rows_of_ids
from reben_cloud.search.sample import parse_sample
from reben_cloud.search.shapes import Between, box_of, go_on, group_meets, squares_relate


def find_rows(dataset: Dataset, query: Query, *, between: Between = go_on) -> NDArray[np.int64]:
    """Row numbers of the patches that fit every condition of a query, in the order that it asks for.

    Args:
        dataset: What to search.
        query: The conditions; `Dataset.search` tells what each may hold, and what is raised.
        between: Called between pieces of the work, of some 50 ms each but for a sort; what it raises ends the search.

    Returns:
        Row numbers in the dataset's table, int64 (n,).
    """
    boxes = [] if query.bbox is None else [parse_box(query.bbox)]
    shape = None if query.intersects is None else parse_geometry(query.intersects)
    if shape is not None:
        boxes.append(box_of(shape))
    times = times_of(query)
    expression = None if query.cql2 is None else cql.parse(query.cql2)
    if expression is not None:
        boxes += cql.boxes(expression)
    conditions = conditions_of(dataset, query, boxes, times)
    limit = parse_count(query.limit, "limit")
    sample = parse_sample(query)
    in_order_of_ids = _ids_order(query)

    table = dataset.patch_table
    asked = _rows_asked(dataset, query)
    groups = _prune(table, boxes, times[layout.DATETIME], asked)
    keys = None if query.sortby is None else _sort_keys(table, parse_names(query.sortby, "sortby"))
    layer = None if expression is None else _layer_of(expression, table)
    rows = _matching(table, groups, conditions, between)
    if layer is not None:
        rows = rows[have_fitting(table, rows, expression, table.joined[layer], between)]
    elif expression is not None:  # without rows too, so that a wrong filter is refused wherever it is asked
        # A filter without any property still needs rows to be true or false for.
        named = cql.columns(expression, table.names) or [layout.ID]
        rows = rows[cql.evaluate(expression, table.take(rows, named), between)]
    if asked is not None:
        rows = asked[np.isin(asked, rows)] if in_order_of_ids else np.intersect1d(asked, rows)
    if shape is not None and len(rows):
        squares = table.take(rows, [layout.GEOMETRY]).column(layout.GEOMETRY)
        rows = rows[squares_relate("s_intersects", squares, None, shape, is_left=False, between=between)]
    if sample is not None:
        rows = sample.draw(dataset, rows)
    if keys:
        rows = rows[_order(table, rows, keys)]
    return rows[:limit]


def _ids_order(query: Query) -> bool:
    """Whether patches are listed in the order of the ids."""
    if not parse_flag(query.ids_order, "ids_order"):
        return False
    if query.ids is None:
        raise ValueError("ids_order keeps the order of ids, which are not given: give ids, or sortby")
    if query.sortby is not None:
        raise ValueError("ids_order and sortby ask for two orders: give one of them")
    return True


def _rows_asked(dataset: Dataset, query: Query) -> NDArray[np.int64] | None:
    """Rows of the ids that are asked for; None where none are."""
    if query.ids is None:
        return None
    missing_ok = bool(parse_flag(query.missing_ok, "missing_ok"))
    return rows_of_ids(dataset, query.ids, missing_ok=missing_ok)


def _layer_of(expression: Expression, table: PatchTable) -> str | None:
    """The layer of several rows a patch that a filter is about; None if it is about none."""
    several = layers_of_rows(expression, table)
    if len(several) > 1:
        raise ValueError(
            f"the filter names columns of {' and '.join(several)}, which have several rows for each patch: name those "
            "of one, and search twice for both (ids=first.patch_ids)"
        )
    return several[0] if several else None


def _matching(
    table: PatchTable, groups: Sequence[int], conditions: Sequence[Condition], between: Between
) -> NDArray[np.int64]:
    """Row numbers, in these row groups, that fit every condition."""
    starts = table.group_starts
    parts = [np.arange(starts[g], starts[g + 1]) for g in groups]
    rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if not conditions or not len(rows):
        return rows
    read = table.read(groups, sorted({column for c in conditions for column in c.columns}))
    mask = np.ones(len(rows), bool)
    for condition in conditions:
        between()
        fits = condition.fits(*(read.column(name) for name in condition.columns))
        mask &= fits if isinstance(fits, np.ndarray) else mask_of(fits)
    return rows[mask]


def _prune(
    table: PatchTable, boxes: Sequence[Box], time: Interval | None, asked: NDArray[np.int64] | None
) -> list[int]:
    """The row groups that can hold a patch that touches every box, in the interval, of the rows asked for."""
    groups = range(len(table.group_starts) - 1)
    if asked is not None:
        groups = np.unique(np.searchsorted(table.group_starts, asked, side="right") - 1).tolist()
    return [
        group
        for group in groups
        if all(group_meets(table, group, box) for box in boxes)
        and _may_hold_time(table.bounds(group, layout.DATETIME), time)
    ]


def _may_hold_time(span: tuple[Any, Any] | None, time: Interval | None) -> bool:
    """Whether a row group with these smallest and largest times can hold a patch in the interval."""
    if time is None or span is None:
        return True
    start, end = micros_of(time)
    return not ((end is not None and span[0] > end) or (start is not None and span[1] < start))


def _sort_keys(table: PatchTable, names: Sequence[str]) -> list[tuple[str, str]]:
    """Column and direction of each ``NAME`` or ``-NAME``, without or with the prefix before it; a column once."""
    nested = {field.name for field in table.schema if pa.types.is_nested(field.type)}
    several = {field.name for one in table.joined.values() for field in one.row_fields}
    keys = dict[str, str]()
    for name in names:
        plain = name.removeprefix("-") if name.startswith("-") else name.removeprefix("+")
        found = next((n for n in (plain, f"{layout.PREFIX}{plain}") if n in table.names), plain)
        if found not in table.names and found in several:
            raise ValueError(f"cannot sort by {plain!r}: a patch has several rows in that layer")
        if found in nested:
            raise ValueError(f"cannot sort by {plain!r}: it holds several values")
        check_names([found], [n for n in table.names if n not in nested], "sortby column")
        # Rows that are equal in a column are equal in it the second time.
        keys.setdefault(found, "descending" if name.startswith("-") else "ascending")
    return list(keys.items())


def _order(table: PatchTable, rows: NDArray[np.int64], keys: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    part = table.take(rows, list(dict(keys)))
    for number, field in enumerate(part.schema):
        if pa.types.is_dictionary(field.type):  # which Arrow does not sort
            part = part.set_column(number, field.name, pc.cast(part.column(number), field.type.value_type))
    # Arrow's sort is stable: equal keys keep the table's order.
    return values_of(pc.sort_indices(part, sort_keys=list(keys)))
