"""From conditions to row numbers: row groups are pruned, columns filtered, shapes tested exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud import cql
from reben_cloud.labels import check_labels
from reben_cloud.metadata import SPLITS, check_names
from reben_cloud.search.selection import Selection
from reben_cloud.search.table import PatchTable

if TYPE_CHECKING:
    from reben_cloud.dataset import Dataset

SEASONS = {"spring": (3, 4, 5), "summer": (6, 7, 8), "fall": (9, 10, 11), "winter": (12, 1, 2)}
"""Season -> calendar months of the Sentinel-2 acquisition, UTC."""

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees."""

Interval = tuple[datetime | None, datetime | None]
"""Both ends, included; None where it is open."""


def search(
    dataset: Dataset,
    *,
    bbox: Sequence[float] | None = None,
    intersects: Any = None,
    datetime: str | datetime | Sequence[str | datetime | None] | None = None,
    labels: str | Sequence[str] | None = None,
    labels_all: Sequence[str] | None = None,
    split: str | Sequence[str] | None = None,
    country: str | Sequence[str] | None = None,
    product: str | Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    s1_datetime: str | datetime | Sequence[str | datetime | None] | None = None,
    season: str | Sequence[str] | None = None,
    snow: bool | None = None,
    cloud: bool | None = None,
    recommended: bool | None = None,
    cql2: str | Mapping[str, Any] | None = None,
    sortby: str | Sequence[str] | None = None,
    limit: int | None = None,
) -> Selection:
    """The patches that fit every condition given.

    Args:
        dataset: What to search.
        bbox: West, south, east, north in degrees; patches that touch it. West > east (over the
            antimeridian) is refused: the dataset lies between 9° W and 32° E.
        intersects: A GeoJSON geometry or Feature, shapely geometry or WKT, in degrees; exact.
        datetime: Sentinel-2 acquisition: an instant, or an interval ``A/B`` with ``..`` for an
            open end (RFC 3339; ``2017-06`` and ``2017-06-13`` mean all of it). Ends are included.
        labels: Patches with at least one of these of the 19 class names.
        labels_all: Patches with all of these.
        split: ``train``, ``validation``, ``test``; one or several.
        country: English names; one or several.
        product: Product names; one or several.
        ids: Patch ids.
        s1_datetime: Sentinel-1 acquisition, written as `datetime`.
        season: ``spring``, ``summer``, ``fall``, ``winter`` of the Sentinel-2 acquisition.
        snow: With (True) or without (False) seasonal snow.
        cloud: With or without cloud or shadow.
        recommended: True leaves out snow, cloud and shadow, as training recipes do; False keeps
            only those.
        cql2: A CQL2 filter over the columns, text or JSON (needs the ``stac`` extra).
        sortby: Columns, a leading ``-`` for descending order.
        limit: At most so many, at least 1.

    Raises:
        ValueError: If a condition cannot be understood; unknown names come with the nearest ones.
    """
    boxes = [] if bbox is None else [_box(bbox)]
    shape = None if intersects is None else _geometry(intersects)
    if shape is not None:
        boxes.append(_box(shape.bounds))
    time = None if datetime is None else parse_interval(datetime)
    conditions = [Condition(("bbox",), partial(_in_box, box=box)) for box in boxes]
    s1_time = None if s1_datetime is None else parse_interval(s1_datetime)
    conditions += _in_times({"datetime": time, "reben:s1_datetime": s1_time})
    conditions += _one_of("reben:split", split, SPLITS, "split")
    conditions += _one_of("reben:country", country, dataset.countries, "country")
    conditions += _one_of("reben:product", product, dataset.products, "product")
    conditions += _with_labels(labels, np.logical_or) + _with_labels(labels_all, np.logical_and)
    conditions += _flagged(snow, cloud, recommended)
    if ids is not None:
        wanted = pa.array(list(ids), pa.string())
        conditions.append(Condition(("id",), lambda column: pc.is_in(column, wanted)))
    if season is not None:
        months = pa.array([m for s in _known(season, SEASONS, "season") for m in SEASONS[s]])
        conditions.append(Condition(("datetime",), lambda column: pc.is_in(pc.month(column), months)))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")

    table = dataset.patch_table
    if cql2 is not None:
        conditions.append(_filtered(cql2, table.names))
    rows = _matching(table, _prune(table, boxes, time), conditions)
    if shape is not None and len(rows):
        shapely.prepare(shape)
        squares = shapely.from_wkb(table.take(rows, ["geometry"]).column("geometry").to_numpy())
        rows = rows[shapely.intersects(shape, squares)]
    if cql2 is not None and len(rows):
        expression = cql.parse(cql2)
        needed = cql.columns(expression, table.names) or ["datetime"]
        rows = rows[cql.evaluate(expression, table.take(rows, needed))]
    if sortby is not None and len(rows):
        rows = rows[_order(table, rows, [sortby] if isinstance(sortby, str) else sortby)]
    return Selection(dataset, table, rows[:limit])


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


def _one_of(
    column: str, value: str | Sequence[str] | None, known: Iterable[str], what: str
) -> list[Condition]:
    if value is None:
        return []
    names = pa.array(_known(value, known, what))
    return [Condition((column,), lambda values: pc.is_in(pc.cast(values, pa.string()), names))]


def _flagged(snow: bool | None, cloud: bool | None, recommended: bool | None) -> list[Condition]:
    columns = ("reben:contains_seasonal_snow", "reben:contains_cloud_or_shadow")
    found = [
        Condition((column,), partial(pc.equal, pa.scalar(bool(flag))))
        for column, flag in zip(columns, (snow, cloud), strict=True)
        if flag is not None
    ]
    if recommended is not None:
        found.append(Condition(columns, lambda s, c: pc.equal(pc.or_(s, c), pa.scalar(not recommended))))
    return found


def _with_labels(names: str | Sequence[str] | None, combine: np.ufunc) -> list[Condition]:
    if names is None:
        return []
    chosen = [names] if isinstance(names, str) else list(names)
    check_labels(chosen)

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


def parse_interval(
    value: str | datetime | Sequence[str | datetime | None],
) -> Interval:
    """Both ends, included, of an instant or interval; None where it is open.

    A text is an instant, or two ends with ``/`` between, ``..`` or nothing for an open end (STAC
    API, RFC 3339 section 5.6). A date, month or year means all of it. No time zone means UTC.

    Raises:
        ValueError: If it is not one of these, or ends before it starts.
    """
    if isinstance(value, str):
        ends: list[Any] = value.split("/")
    elif isinstance(value, datetime):
        ends = [value]
    else:
        ends = list(value)
    if len(ends) not in (1, 2):
        raise ValueError(f"datetime must be an instant or A/B, got {value!r}")
    start, end = (_instant(e, last=last) for e, last in ((ends[0], False), (ends[-1], True)))
    if start is None and end is None:
        raise ValueError(f"datetime {value!r} is open at both ends; leave it out instead")
    if start is not None and end is not None and end < start:
        raise ValueError(f"datetime {value!r} ends before it starts")
    return start, end


def _instant(value: Any, *, last: bool) -> datetime | None:
    if value is None or value in ("", ".."):
        return None
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    text = str(value).strip()
    for form, step in (("%Y", "year"), ("%Y-%m", "month"), ("%Y-%m-%d", "day")):
        try:
            start = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        if not last:
            return start
        if step == "year":
            after = start.replace(year=start.year + 1)
        elif step == "month":
            after = (start.replace(day=28) + timedelta(days=4)).replace(day=1)
        else:
            after = start + timedelta(days=1)
        return after - timedelta(microseconds=1)
    try:
        found = datetime.fromisoformat(text.replace("z", "Z"))
    except ValueError as error:
        raise ValueError(f"datetime {text!r} is no RFC 3339 time, date, month or year") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _box(bbox: Sequence[float]) -> Box:
    if len(bbox) not in (4, 6):
        raise ValueError(f"bbox must be west,south,east,north, got {len(bbox)} numbers")
    values = [float(v) for v in bbox]
    west, south, east, north = values if len(values) == 4 else (*values[:2], *values[3:5])
    if not all(np.isfinite(values)) or not (-180 <= west <= 180 and -180 <= east <= 180):
        raise ValueError(f"bbox longitudes must be in [-180, 180], got {west} and {east}")
    if not -90 <= south <= north <= 90:
        raise ValueError(f"bbox latitudes must rise and be in [-90, 90], got {south} and {north}")
    if west > east:
        raise ValueError(
            f"bbox {west},{south},{east},{north} goes over the antimeridian; the dataset lies between 9° W and "
            "32° E, so no such box is needed (is it in another order than west,south,east,north?)"
        )
    return west, south, east, north


def _geometry(value: Any) -> Any:
    """A shapely geometry from shapely, GeoJSON (a geometry or Feature) or WKT."""
    if isinstance(value, shapely.Geometry):
        shape = value
    elif isinstance(value, str):
        try:
            shape = shapely.from_geojson(value) if value.lstrip().startswith("{") else shapely.from_wkt(value)
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"intersects is neither GeoJSON nor WKT: {error}") from error
    elif isinstance(value, Mapping):
        from shapely.geometry import shape as from_mapping

        try:
            shape = from_mapping(value.get("geometry", value))
        except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
            raise ValueError(f"intersects is no GeoJSON geometry: {error}") from error
    elif hasattr(value, "__geo_interface__"):
        return _geometry(value.__geo_interface__)
    else:
        raise ValueError(f"intersects must be GeoJSON, WKT or a shapely geometry, got {type(value).__name__}")
    if shape.is_empty:
        raise ValueError("intersects is an empty geometry")
    if not shape.is_valid:
        raise ValueError(f"intersects is not a valid geometry: {shapely.is_valid_reason(shape)}")
    _box(shape.bounds)
    return shape


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


def _known(value: str | Sequence[str], known: Iterable[str], what: str) -> list[str]:
    chosen = [value] if isinstance(value, str) else list(value)
    check_names(chosen, list(known), what)
    return chosen


def _order(table: PatchTable, rows: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.int64]:
    names = [k.lstrip("+-") for k in keys]
    columns = []
    for name in names:
        found = next((n for n in (name, f"reben:{name}") if n in table.names), None)
        if found is None:
            raise ValueError(f"cannot sort by {name!r}; columns are {', '.join(table.names)}")
        columns.append(found)
    part = table.take(rows, columns)
    for number, field in enumerate(part.schema):
        if pa.types.is_nested(field.type):
            raise ValueError(f"cannot sort by {keys[number]!r}: it holds several values")
        if pa.types.is_dictionary(field.type):  # which Arrow does not sort
            part = part.set_column(number, field.name, pc.cast(part.column(number), field.type.value_type))
    # The row number last: equal keys keep the table's order.
    part = part.append_column("__row", pa.array(np.arange(len(rows))))
    order: list[Any] = [
        (c, "descending" if k.startswith("-") else "ascending") for c, k in zip(columns, keys, strict=True)
    ]
    return np.asarray(pc.sort_indices(part, sort_keys=order).to_numpy())
