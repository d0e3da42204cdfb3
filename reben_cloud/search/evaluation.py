"""From conditions to row numbers: row groups are pruned, columns filtered, shapes tested exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud.bigearthnet.labels import CLASSES
from reben_cloud.errors import NotFoundError
from reben_cloud.root.placement import SPLITS
from reben_cloud.root.selection import Selection
from reben_cloud.root.table import PatchTable
from reben_cloud.schema import check_names
from reben_cloud.search import cql
from reben_cloud.search.arguments import (
    Box,
    Instant,
    Interval,
    parse_box,
    parse_flag,
    parse_geometry,
    parse_interval,
    parse_known,
    parse_limit,
    parse_names,
)

if TYPE_CHECKING:
    from reben_cloud.root.dataset import Dataset

SEASONS = {"spring": (3, 4, 5), "summer": (6, 7, 8), "fall": (9, 10, 11), "winter": (12, 1, 2)}
"""Season -> calendar months of the Sentinel-2 acquisition, UTC."""


def search(
    dataset: Dataset,
    *,
    bbox: str | Sequence[float] | None = None,
    intersects: Any = None,
    datetime: Instant | Sequence[Instant | None] | None = None,
    labels: str | Iterable[str] | None = None,
    labels_all: str | Iterable[str] | None = None,
    split: str | Iterable[str] | None = None,
    country: str | Iterable[str] | None = None,
    product: str | Iterable[str] | None = None,
    ids: str | Iterable[str] | None = None,
    missing_ok: bool = False,
    s1_datetime: Instant | Sequence[Instant | None] | None = None,
    season: str | Iterable[str] | None = None,
    snow: bool | None = None,
    cloud: bool | None = None,
    recommended: bool | None = None,
    cql2: str | Mapping[str, Any] | None = None,
    sortby: str | Iterable[str] | None = None,
    limit: int | None = None,
) -> Selection:
    """The patches that fit every condition given.

    Args:
        dataset: What to search.
        bbox: West, south, east, north in degrees; patches that touch it. West > east (over the
            antimeridian) is refused: the dataset lies between 9° W and 32° E.
        intersects: A GeoJSON geometry or Feature, shapely geometry or WKT, in degrees; exact.
        datetime: Sentinel-2 acquisition: an instant, or an interval ``A/B`` with ``..`` for an
            open end (RFC 3339; ``2017-06`` and ``2017-06-13`` mean all of it); or a date, datetime or
            pandas Timestamp, or two of them, None for an open end. Ends are included.
        labels: Patches with at least one of these of the 19 class names.
        labels_all: Patches with all of these.
        split: ``train``, ``validation``, ``test``; one or several.
        country: English names; one or several.
        product: Product names; one or several.
        ids: Patch ids; an empty list finds nothing.
        missing_ok: Leave ids that the dataset lacks out, instead of an error.
        s1_datetime: Sentinel-1 acquisition, written as `datetime`.
        season: ``spring``, ``summer``, ``fall``, ``winter`` of the Sentinel-2 acquisition.
        snow: With (True) or without (False) seasonal snow.
        cloud: With or without cloud or shadow.
        recommended: True leaves out snow, cloud and shadow, as training recipes do; False keeps only the
            patches with any of these; None has both.
        cql2: A CQL2 filter over the columns, text or JSON (needs the ``stac`` extra). A ``DATE`` is a
            day, in UTC; a value that an Item lacks is null, so a comparison with it finds nothing.
        sortby: Columns, a leading ``-`` for descending order.
        limit: At most so many, at least 1.

    Raises:
        NotFoundError: If the dataset lacks one of `ids`.
        TypeError: If an argument is of a type that it does not take.
        ValueError: If a condition cannot be understood; unknown names come with the nearest ones.
    """
    given = {name: value for name, value in locals().items() if name != "dataset" and value is not None}
    # What can be looked at once only is kept, for the selection to say what it was asked for.
    query = {name: list(v) if isinstance(v, Iterator) else v for name, v in given.items()}
    return Selection(dataset, dataset.patch_table, _rows(dataset, query), query=query)


def _rows(dataset: Dataset, query: Mapping[str, Any]) -> NDArray[np.int64]:
    """Row numbers of the patches that fit the arguments of `search`."""
    bbox, intersects, ids, cql2, sortby = map(query.get, ("bbox", "intersects", "ids", "cql2", "sortby"))
    boxes = [] if bbox is None else [parse_box(bbox)]
    shape = None if intersects is None else parse_geometry(intersects)
    if shape is not None:
        boxes.append(parse_box(shape.bounds))
    times = {
        column: None if query.get(name) is None else parse_interval(query[name], name)
        for name, column in (("datetime", "datetime"), ("s1_datetime", "reben:s1_datetime"))
    }
    conditions = [Condition(("bbox",), partial(_in_box, box=box)) for box in boxes]
    conditions += _in_times(times)
    for name, known in (("split", SPLITS), ("country", dataset.countries), ("product", dataset.products)):
        conditions += _one_of(name, query.get(name), known)
    conditions += _with_labels(query.get("labels"), np.logical_or, "labels")
    conditions += _with_labels(query.get("labels_all"), np.logical_and, "labels_all")
    conditions += _flagged(*(parse_flag(query.get(name), name) for name in ("snow", "cloud", "recommended")))
    if query.get("season") is not None:
        months = pa.array([m for s in parse_known(query["season"], "season", SEASONS) for m in SEASONS[s]])
        conditions.append(Condition(("datetime",), lambda column: pc.is_in(pc.month(column), months)))
    limit = parse_limit(query.get("limit"))

    table = dataset.patch_table
    if ids is not None:
        wanted = pa.array(parse_names(ids, "ids"), pa.string())
        if not parse_flag(query.get("missing_ok"), "missing_ok"):
            _check_ids(dataset, wanted)
        conditions.append(Condition(("id",), lambda column: pc.is_in(column, wanted)))
    keys = None if sortby is None else _sort_keys(table, parse_names(sortby, "sortby"))
    if cql2 is not None:
        conditions.append(_filtered(cql2, table.names))
    rows = _matching(table, _prune(table, boxes, times["datetime"]), conditions)
    if shape is not None and len(rows):
        shapely.prepare(shape)
        squares = shapely.from_wkb(table.take(rows, ["geometry"]).column("geometry").to_numpy())
        rows = rows[shapely.intersects(shape, squares)]
    if keys:
        rows = rows[_order(table, rows, keys)]
    return rows[:limit]


class Condition(NamedTuple):
    """One condition on columns of the table."""

    columns: tuple[str, ...]
    """The columns it looks at."""
    fits: Callable[..., Any]
    """Called with these columns; a boolean array, one value a row."""


def _in_times(intervals: Mapping[str, Interval | None]) -> list[Condition]:
    return [
        Condition((column,), partial(_in_interval, interval=interval))
        for column, interval in intervals.items()
        if interval is not None
    ]


def _one_of(name: str, value: str | Iterable[str] | None, known: Iterable[str]) -> list[Condition]:
    if value is None:
        return []
    names = pa.array(parse_known(value, name, known))
    return [Condition((f"reben:{name}",), lambda values: pc.is_in(pc.cast(values, pa.string()), names))]


def _check_ids(dataset: Dataset, wanted: pa.Array[Any]) -> None:
    table = dataset.patch_table
    there = table.read(range(len(table.group_starts) - 1), ["id"]).column("id")
    missing = wanted.filter(pc.invert(pc.is_in(wanted, there))).to_pylist()
    if missing:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise NotFoundError(
            f"{dataset.url} has no patch {', '.join(map(repr, missing[:3]))}{more}; "
            "search(ids=..., missing_ok=True) leaves such ids out"
        )


def _flagged(snow: bool | None, cloud: bool | None, recommended: bool | None) -> list[Condition]:
    columns = ("reben:contains_seasonal_snow", "reben:contains_cloud_or_shadow")
    found = [
        Condition((column,), partial(pc.equal, pa.scalar(flag)))
        for column, flag in zip(columns, (snow, cloud), strict=True)
        if flag is not None
    ]
    if recommended is not None:
        found.append(Condition(columns, lambda s, c: pc.equal(pc.or_(s, c), pa.scalar(not recommended))))
    return found


def _with_labels(names: str | Iterable[str] | None, combine: np.ufunc, argument: str) -> list[Condition]:
    if names is None:
        return []
    chosen = parse_known(names, argument, CLASSES)

    def fits(column: Any) -> NDArray[np.bool_]:
        lists = column.combine_chunks()
        parents, values = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
        masks = np.zeros((len(chosen), len(lists)), bool)
        for mask, name in zip(masks, chosen, strict=True):
            mask[parents[pc.equal(values, pa.scalar(name)).to_numpy(zero_copy_only=False)]] = True
        return np.asarray(combine.reduce(masks, axis=0), bool)

    return [Condition(("reben:labels",), fits)]


def _filtered(query: str | Mapping[str, Any], known: Sequence[str]) -> Condition:
    expression = cql.parse(query)
    # A filter without any property still needs rows to be true or false for.
    names = tuple(cql.columns(expression, known)) or ("id",)
    return Condition(
        names, lambda *values: cql.evaluate(expression, pa.table(list(values), names=list(names)))
    )


def _matching(table: PatchTable, groups: Sequence[int], conditions: Sequence[Condition]) -> NDArray[np.int64]:
    """Row numbers, in these row groups, that fit every condition."""
    starts = table.group_starts
    parts = [np.arange(starts[g], starts[g + 1]) for g in groups]
    rows = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if not conditions or not len(rows):
        return rows
    read = table.read(groups, sorted({column for c in conditions for column in c.columns}))
    mask = np.ones(len(rows), bool)
    for condition in conditions:
        mask &= np.asarray(condition.fits(*(read.column(name) for name in condition.columns)))
    return rows[mask]


def _prune(table: PatchTable, boxes: Sequence[Box], time: Interval | None) -> list[int]:
    """The row groups that can hold a patch that touches every box, in the interval."""
    return [
        group
        for group in range(len(table.group_starts) - 1)
        if _may_hold(partial(table.bounds, group), boxes, time)
    ]


def _may_hold(
    bounds: Callable[[str], tuple[Any, Any] | None], boxes: Sequence[Box], time: Interval | None
) -> bool:
    """Whether a row group with these smallest and largest values can hold a patch that fits."""
    anything = (-np.inf, np.inf)
    (west, _), (south, _) = bounds("bbox.xmin") or anything, bounds("bbox.ymin") or anything
    (_, east), (_, north) = bounds("bbox.xmax") or anything, bounds("bbox.ymax") or anything
    for box in boxes:
        if west > box[2] or south > box[3] or east < box[0] or north < box[1]:
            return False
    span = bounds("datetime")
    if time is None or span is None:
        return True
    start, end = time
    return not ((end is not None and span[0] > end) or (start is not None and span[1] < start))


def _in_box(bbox: Any, box: Box) -> NDArray[np.bool_]:
    west, south, east, north = (pc.struct_field(bbox, s).to_numpy() for s in ("xmin", "ymin", "xmax", "ymax"))
    return np.asarray((west <= box[2]) & (east >= box[0]) & (south <= box[3]) & (north >= box[1]))


def _in_interval(times: Any, interval: Interval) -> NDArray[np.bool_]:
    start, end = interval
    mask = np.ones(len(times), bool)
    micros = times.cast(pa.int64()).to_numpy()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    if start is not None:
        # Ceiling: stored times are whole microseconds, and the ends are included.
        mask &= micros >= -((epoch - start) // timedelta(microseconds=1))
    if end is not None:
        mask &= micros <= (end - epoch) // timedelta(microseconds=1)
    return mask


def _sort_keys(table: PatchTable, names: Sequence[str]) -> list[tuple[str, str]]:
    """Column and direction of each ``NAME`` or ``-NAME``, without or with ``reben:`` before it."""
    nested = {field.name for field in table.schema if pa.types.is_nested(field.type)}
    keys = []
    for name in names:
        plain = name.removeprefix("-") if name.startswith("-") else name.removeprefix("+")
        found = next((n for n in (plain, f"reben:{plain}") if n in table.names), plain)
        if found in nested:
            raise ValueError(f"cannot sort by {plain!r}: it holds several values")
        check_names([found], [n for n in table.names if n not in nested], "sortby column")
        keys.append((found, "descending" if name.startswith("-") else "ascending"))
    return keys


def _order(table: PatchTable, rows: NDArray[np.int64], keys: Sequence[tuple[str, str]]) -> NDArray[np.int64]:
    part = table.take(rows, list(dict(keys)))
    for number, field in enumerate(part.schema):
        if pa.types.is_dictionary(field.type):  # which Arrow does not sort
            part = part.set_column(number, field.name, pc.cast(part.column(number), field.type.value_type))
    # Arrow's sort is stable: equal keys keep the table's order.
    return np.asarray(pc.sort_indices(part, sort_keys=list(keys)).to_numpy())
