"""From conditions to row numbers: row groups are pruned, columns filtered, shapes tested exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra
from reben_cloud.labels import check_labels
from reben_cloud.metadata import SPLITS, check_names
from reben_cloud.search.selection import Selection
from reben_cloud.search.table import PatchTable

if TYPE_CHECKING:
    from reben_cloud.dataset import Dataset

SEASONS = {"spring": (3, 4, 5), "summer": (6, 7, 8), "fall": (9, 10, 11), "winter": (12, 1, 2)}
"""Season -> calendar months of the Sentinel-2 acquisition, UTC."""


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
    table = dataset.patch_table
    box: Any = None if bbox is None else _box(bbox)
    shape = None if intersects is None else _geometry(intersects)
    if shape is not None:
        bounds = tuple(float(v) for v in shape.bounds)
        box = bounds if box is None else (*np.maximum(box[:2], bounds[:2]), *np.minimum(box[2:], bounds[2:]))
    time = None if datetime is None else parse_interval(datetime)
    groups = _prune(table, box, time)
    conditions: list[tuple[list[str], Any]] = []

    def add(columns: str, mask: Any) -> None:
        conditions.append((columns.split(), mask))

    if box is not None:
        add("bbox", lambda t: _in_box(t.column("bbox"), box))
    if time is not None:
        add("datetime", lambda t: _in_interval(t.column("datetime"), time))
    if s1_datetime is not None:
        s1_time = parse_interval(s1_datetime)
        add("reben:s1_datetime", lambda t: _in_interval(t.column("reben:s1_datetime"), s1_time))
    if split is not None:
        splits = _known(split, SPLITS, "split")
        add("reben:split", lambda t: pc.is_in(t.column("reben:split"), pa.array(splits)))
    if country is not None:
        countries = _known(country, dataset.countries, "country")
        add("reben:country", lambda t: pc.is_in(t.column("reben:country"), pa.array(countries)))
    if product is not None:
        products = _known(product, dataset.products, "product")
        add(
            "reben:product",
            lambda t: pc.is_in(pc.cast(t.column("reben:product"), pa.string()), pa.array(products)),
        )
    if ids is not None:
        wanted = pa.array(list(ids), pa.string())
        add("id", lambda t: pc.is_in(t.column("id"), wanted))
    for names, combine in ((labels, np.logical_or), (labels_all, np.logical_and)):
        if names is not None:
            chosen = [names] if isinstance(names, str) else list(names)
            check_labels(chosen)
            add(
                "reben:labels",
                lambda t, chosen=chosen, combine=combine: _with_labels(
                    t.column("reben:labels"), chosen, combine
                ),
            )
    if season is not None:
        months = [m for s in _known(season, SEASONS, "season") for m in SEASONS[s]]
        add("datetime", lambda t: pc.is_in(pc.month(t.column("datetime")), pa.array(months)))
    flags: list[tuple[Any, str]] = [(snow, "contains_seasonal_snow"), (cloud, "contains_cloud_or_shadow")]
    for flag, column in flags:
        if flag is not None:
            add(
                f"reben:{column}",
                lambda t, c=column, f=flag: pc.equal(t.column(f"reben:{c}"), pa.scalar(bool(f))),
            )
    if recommended is not None:
        add(
            "reben:contains_seasonal_snow reben:contains_cloud_or_shadow",
            lambda t: pc.equal(
                pc.or_(t.column("reben:contains_seasonal_snow"), t.column("reben:contains_cloud_or_shadow")),
                pa.scalar(not recommended),
            ),
        )
    rows = _rows_of(table, groups)
    if conditions and len(groups):
        needed = sorted({column for columns, _ in conditions for column in columns})
        part = table.read(groups, needed)
        mask = np.ones(part.num_rows, bool)
        for _, condition in conditions:
            found = condition(part)
            mask &= (
                found
                if isinstance(found, np.ndarray)
                else np.asarray(
                    found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()
                )
            )
        rows = rows[mask]
    if shape is not None and len(rows):
        shapely.prepare(shape)
        squares = shapely.from_wkb(table.take(rows, ["geometry"]).column("geometry").to_numpy())
        rows = rows[shapely.intersects(shape, squares)]
    if cql2 is not None and len(rows):
        rows = rows[_cql2(table.take(rows, table.names), cql2)]
    if sortby is not None and len(rows):
        rows = rows[_order(table, rows, [sortby] if isinstance(sortby, str) else sortby)]
    if limit is not None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        rows = rows[:limit]
    return Selection(dataset, table, rows)


def parse_interval(
    value: str | datetime | Sequence[str | datetime | None],
) -> tuple[datetime | None, datetime | None]:
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


def _box(bbox: Sequence[float]) -> tuple[float, float, float, float]:
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


def _prune(table: PatchTable, box: Any, time: Any) -> list[int]:
    """The row groups that can hold a patch in the box and the interval."""
    found = []
    for group in range(len(table.group_starts) - 1):
        if box is not None:
            sides = [table.bounds(group, f"bbox.{s}") for s in ("xmin", "ymin", "xmax", "ymax")]
            if all(sides) and (
                sides[0][0] > box[2] or sides[1][0] > box[3] or sides[2][1] < box[0] or sides[3][1] < box[1]  # type: ignore[index]
            ):
                continue
        if time is not None and (span := table.bounds(group, "datetime")) is not None:
            start, end = time
            if (end is not None and span[0] > end) or (start is not None and span[1] < start):
                continue
        found.append(group)
    return found


def _rows_of(table: PatchTable, groups: Sequence[int]) -> NDArray[np.int64]:
    starts = table.group_starts
    parts = [np.arange(starts[g], starts[g + 1]) for g in groups]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _in_box(bbox: pa.ChunkedArray[Any], box: Sequence[float]) -> NDArray[np.bool_]:
    west, south, east, north = (pc.struct_field(bbox, s).to_numpy() for s in ("xmin", "ymin", "xmax", "ymax"))
    return np.asarray((west <= box[2]) & (east >= box[0]) & (south <= box[3]) & (north >= box[1]))


def _in_interval(
    times: pa.ChunkedArray[Any], interval: tuple[datetime | None, datetime | None]
) -> NDArray[np.bool_]:
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


def _with_labels(column: pa.ChunkedArray[Any], wanted: Sequence[str], combine: Any) -> NDArray[np.bool_]:
    flat: Any = column.combine_chunks()
    parents = pc.list_parent_indices(flat).to_numpy()
    values: Any = pc.list_flatten(flat)
    masks = []
    for name in wanted:
        mask = np.zeros(len(flat), bool)
        mask[parents[pc.equal(values, pa.scalar(name)).to_numpy(zero_copy_only=False)]] = True
        masks.append(mask)
    return np.asarray(combine.reduce(masks)) if masks else np.zeros(len(flat), bool)


def _known(value: str | Sequence[str], known: Iterable[str], what: str) -> list[str]:
    chosen = [value] if isinstance(value, str) else list(value)
    check_names(chosen, list(known), what)
    return chosen


def _cql2(table: pa.Table, query: str | Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which rows fit a CQL2 filter, evaluated by DuckDB on the columns."""
    import json

    import duckdb

    try:
        import cql2
    except ImportError as error:
        raise missing_extra("cql2", "stac") from error
    try:
        parsed = cql2.parse_text(query) if isinstance(query, str) else cql2.parse_json(json.dumps(query))
        sql = parsed.to_sql()
    except Exception as error:
        raise ValueError(f"cql2 filter cannot be understood: {error}") from error
    numbered = table.append_column("__row", pa.array(np.arange(table.num_rows)))
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    try:
        connection.register("patches", numbered)
        found = connection.execute(f"SELECT __row FROM patches WHERE {sql}").fetchnumpy()["__row"]  # noqa: S608
    except duckdb.Error as error:
        raise ValueError(f"cql2 filter cannot be evaluated: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()
    mask = np.zeros(table.num_rows, bool)
    mask[found] = True
    return mask


def _order(table: PatchTable, rows: NDArray[np.int64], keys: Sequence[str]) -> NDArray[np.int64]:
    names = [k.lstrip("+-") for k in keys]
    columns = []
    for name in names:
        found = next((n for n in (name, f"reben:{name}") if n in table.names), None)
        if found is None:
            raise ValueError(f"cannot sort by {name!r}; columns are {', '.join(table.names)}")
        columns.append(found)
    part = table.take(rows, columns)
    # The row number last: equal keys keep the table's order.
    part = part.append_column("__row", pa.array(np.arange(len(rows))))
    order: list[Any] = [
        (c, "descending" if k.startswith("-") else "ascending") for c, k in zip(columns, keys, strict=True)
    ]
    return np.asarray(pc.sort_indices(part, sort_keys=order).to_numpy())
