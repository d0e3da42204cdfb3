"""From conditions to row numbers: row groups are pruned, columns filtered, shapes tested exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array, mask_of, names_array, valid_of, values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.placement import SPLITS
from reben_cloud.root.query import Query
from reben_cloud.root.table import PatchTable
from reben_cloud.schema import check_names
from reben_cloud.search import cql
from reben_cloud.search.arguments import (
    SEASONS,
    Box,
    Interval,
    parse_box,
    parse_count,
    parse_flag,
    parse_geometry,
    parse_interval,
    parse_known,
    parse_names,
    parse_share,
)
from reben_cloud.search.fitting import have_fitting, layers_of_rows
from reben_cloud.search.ids import rows_of_ids
from reben_cloud.search.sample import parse_sample
from reben_cloud.search.shapes import Between, box_of, go_on, group_meets, in_box, squares_relate
from reben_cloud.spread import seeded_keys


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
    times = {
        column: None if value is None else parse_interval(value, name)
        for name, column, value in (
            ("datetime", layout.DATETIME, query.datetime),
            ("s1_datetime", layout.S1_DATETIME, query.s1_datetime),
        )
    }
    expression = None if query.cql2 is None else cql.parse(query.cql2)
    if expression is not None:
        boxes += cql.boxes(expression)
    conditions = [Condition((layout.BBOX,), partial(in_box, box=box)) for box in boxes]
    conditions += _in_times(times)
    conditions += _one_of("split", query.split, SPLITS)
    if query.country is not None:
        _require(dataset, [layout.COUNTRY])
    conditions += _one_of("country", query.country, dataset.countries)
    conditions += _one_of("product", query.product, dataset.products)
    classes = dataset.schema.classes.names
    conditions += _with_labels(query.labels, np.logical_or, "labels", classes)
    conditions += _with_labels(query.labels_all, np.logical_and, "labels_all", classes)
    conditions += _flagged("contains_seasonal_snow", parse_flag(query.snow, "snow"))
    conditions += _flagged("contains_cloud_or_shadow", parse_flag(query.cloud, "cloud"))
    conditions += _with_layers(dataset, query.has)
    conditions += _in_share(query)
    without = dataset.schema.recommended_without
    conditions += _recommended(without, parse_flag(query.recommended, "recommended"))
    if query.season is not None:
        chosen = parse_known(query.season, "season", SEASONS)
        months = ints_array(np.array([m for season in chosen for m in SEASONS[season]]))
        conditions.append(Condition(("datetime",), lambda column: pc.is_in(pc.month(column), months)))
    limit = parse_count(query.limit, "limit")
    sample = parse_sample(query)
    ids_order = _ids_order(query)

    table = dataset.patch_table
    _require(dataset, [column for condition in conditions for column in condition.columns])
    groups = _prune(table, boxes, times["datetime"])
    asked = None
    if query.ids is not None:
        missing_ok = bool(parse_flag(query.missing_ok, "missing_ok"))
        asked = rows_of_ids(dataset, query.ids, missing_ok=missing_ok)
        holding = np.unique(np.searchsorted(table.group_starts, asked, side="right") - 1)
        groups = np.intersect1d(groups, holding).tolist()
    keys = None if query.sortby is None else _sort_keys(table, parse_names(query.sortby, "sortby"))
    several = [] if expression is None else layers_of_rows(expression, table)
    if len(several) > 1:
        raise ValueError(
            f"the filter names columns of {' and '.join(several)}, which have several rows for each patch: name those "
            "of one, and search twice for both (ids=first.patch_ids)"
        )
    rows = _matching(table, groups, conditions, between)
    if several:
        rows = rows[have_fitting(table, rows, expression, table.joined[several[0]], between)]
    elif expression is not None:  # without rows too, so that a wrong filter is refused wherever it is asked
        # A filter without any property still needs rows to be true or false for.
        named = cql.columns(expression, table.names) or [layout.ID]
        rows = rows[cql.evaluate(expression, table.take(rows, named), between)]
    if asked is not None:
        rows = asked[np.isin(asked, rows)] if ids_order else np.intersect1d(asked, rows)
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


class Condition(NamedTuple):
    """One condition on columns of the table."""

    columns: tuple[str, ...]
    """The columns it looks at."""
    fits: Callable[..., Any]
    """Called with these columns; a boolean Arrow or NumPy array, one value per row; null does not fit."""


def _in_times(intervals: Mapping[str, Interval | None]) -> list[Condition]:
    return [
        Condition((column,), partial(_in_interval, interval=interval))
        for column, interval in intervals.items()
        if interval is not None
    ]


def _one_of(name: str, value: str | Iterable[str] | None, known: Iterable[str]) -> list[Condition]:
    if value is None:
        return []
    names = names_array(parse_known(value, name, known))
    return [Condition((layout.column(name),), lambda values: pc.is_in(pc.cast(values, pa.string()), names))]


def _require(dataset: Dataset, columns: Sequence[str]) -> None:
    """Refuse a condition on what the metadata of this dataset do not have."""
    for column in columns:
        if column not in dataset.patch_table.names:
            raise ValueError(
                f"the metadata of {dataset.url} say nothing of {layout.field(column)}, so nothing is found by it"
            )


def _flagged(name: str, flag: bool | None) -> list[Condition]:
    return [] if flag is None else [Condition((layout.column(name),), partial(_is, flag))]


def _with_layers(dataset: Dataset, names: str | Iterable[str] | None) -> list[Condition]:
    """Patches for which layers have something."""
    if names is None:
        return []
    if not dataset.layers:
        raise ValueError(
            f"has={names!r} asks for layers, and {dataset.url} was opened without: give layers=[...]"
        )
    chosen = parse_known(names, "layer (has)", list(dataset.layers))
    return [Condition((layout.present_column(name),), mask_of) for name in chosen]


def _in_share(query: Query) -> list[Condition]:
    """Patches by the numbers that a sample is drawn by, so that a share and a sample of it are one choice."""
    part = parse_share(query.share)
    if part is None:
        return []
    first, end = (min(round(at * 2**64), 2**64) for at in part)
    seed = parse_count(query.sample_seed, "sample_seed", least=0, without="0") or 0

    def fits(ids: Any) -> NDArray[np.bool_]:
        keys = seeded_keys(ids.to_pylist(), seed)
        inside: NDArray[np.bool_] = keys >= np.uint64(first) if first < 2**64 else np.zeros(len(keys), bool)
        return inside & (keys < np.uint64(end)) if end < 2**64 else inside

    return [Condition((layout.ID,), fits)]


def _recommended(without: Sequence[str], flag: bool | None) -> list[Condition]:
    """Patches with none of the flags, or those with any."""
    if flag is None:
        return []
    if not without:  # then all patches are recommended
        return [] if flag else [Condition((layout.ID,), lambda ids: np.zeros(len(ids), bool))]
    return [
        Condition(tuple(map(layout.column, without)), lambda *flags: _is(not flag, reduce(pc.or_, flags)))
    ]


def _is(flag: bool, column: Any) -> NDArray[np.bool_]:
    return mask_of(column if flag else pc.invert(column))


def _with_labels(
    names: str | Iterable[str] | None, combine: np.ufunc, argument: str, classes: Sequence[str]
) -> list[Condition]:
    if names is None:
        return []
    chosen = parse_known(names, argument, classes)

    def fits(column: Any) -> NDArray[np.bool_]:
        masks = [combine.reduce([_holds(chunk, name) for name in chosen]) for chunk in column.chunks]
        return np.concatenate([np.empty(0, bool), *masks])

    return [Condition((layout.LABELS,), fits)]


def _holds(lists: pa.ListArray, name: str) -> NDArray[np.bool_]:
    """Which of some lists hold a name; a running count of it says so without a look at each list."""
    found = np.append(0, np.cumsum(mask_of(pc.equal(lists.values, names_array([name])[0])), dtype=np.int64))
    return np.asarray(np.diff(found[values_of(lists.offsets)]) > 0)


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


def _prune(table: PatchTable, boxes: Sequence[Box], time: Interval | None) -> list[int]:
    """The row groups that can hold a patch that touches every box, in the interval."""
    return [
        group
        for group in range(len(table.group_starts) - 1)
        if all(group_meets(table, group, box) for box in boxes)
        and _may_hold_time(table.bounds(group, layout.DATETIME), time)
    ]


def _may_hold_time(span: tuple[Any, Any] | None, time: Interval | None) -> bool:
    """Whether a row group with these smallest and largest times can hold a patch in the interval."""
    if time is None or span is None:
        return True
    start, end = _micros(time)
    return not ((end is not None and span[0] > end) or (start is not None and span[1] < start))


def _in_interval(times: Any, interval: Interval) -> NDArray[np.bool_]:
    start, end = _micros(interval)
    mask, micros = valid_of(times), values_of(times)
    if start is not None:
        mask &= micros >= start
    if end is not None:
        mask &= micros <= end
    return mask


def _micros(interval: Interval) -> tuple[int | None, int | None]:
    """Both ends as stored times are: whole microseconds since 1970, ends included."""
    (start, end), epoch = interval, datetime(1970, 1, 1, tzinfo=UTC)
    one = timedelta(microseconds=1)
    return (
        None if start is None else -((epoch - start) // one),  # the ceiling
        None if end is None else (end - epoch) // one,
    )


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
