"""Find patches by area, time, label and more in ``patches.parquet``: a `Selection`.

The table is read by row group and column: a search over S3 reads the file's footer, then one range
of each row group that the box and the interval leave, and columns beyond the filter's only when
they are asked for. This module does not know how patches are streamed or exported.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from reben_cloud.labels import check_labels
from reben_cloud.metadata import OFFICIAL_SCHEMA, SPLITS, check_names
from reben_cloud.store import Store

if TYPE_CHECKING:
    import geopandas
    import pandas as pd
    import pystac

    from reben_cloud.dataset import Dataset

PATCHES = "patches.parquet"
"""Path of the table below a root."""

SEASONS = {"spring": (3, 4, 5), "summer": (6, 7, 8), "fall": (9, 10, 11), "winter": (12, 1, 2)}
"""Season -> calendar months of the Sentinel-2 acquisition, UTC."""

_FOOTER_BYTES = 256 * 1024
"""Read at once from the end of the file: the footer of 34 row groups takes about 130 kB."""


class PatchTable:
    """``patches.parquet`` of a root, read by row group and column, no byte twice.

    Args:
        store: The root.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        """Where the file lies."""
        self._columns: dict[tuple[int, str], pa.ChunkedArray[Any]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"store": self.store, "_columns": {}}

    @cached_property
    def _source(self) -> _Ranges:
        return _Ranges(self.store, PATCHES)

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._source)  # type: ignore[arg-type]  # reads any file object

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First row of each row group, and the number of rows; int64 (num_row_groups + 1,)."""
        meta = self._parquet.metadata
        sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._parquet.schema_arrow.names)

    def bounds(self, group: int, leaf: str) -> tuple[Any, Any] | None:
        """Smallest and largest value of a leaf column in a row group; None when not recorded."""
        column = self._parquet.metadata.row_group(group).column(self._leaf(leaf))
        stats = column.statistics
        return (stats.min, stats.max) if stats is not None and stats.has_min_max else None

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some row groups, in order.

        Raises:
            KeyError: If there is no such column.
        """
        for name in columns:
            if name not in self.names:
                raise KeyError(f"{self.store.url}/{PATCHES} has no column {name!r}")
        wanted = [g for g in groups if any((g, c) not in self._columns for c in columns)]
        missing = [c for c in columns if any((g, c) not in self._columns for g in groups)]
        if wanted:
            self._source.fetch([self._extent(g, missing) for g in wanted])
            for group in wanted:
                found = self._parquet.read_row_group(group, columns=missing)
                for name in missing:
                    self._columns[group, name] = found.column(name)
            self._source.forget()
        chunks = {name: [c for g in groups for c in self._columns[g, name].chunks] for name in columns}
        schema = self._parquet.schema_arrow
        return pa.table({n: _chunked(c, schema.field(n).type) for n, c in chunks.items()})

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Columns of some rows, in the rows' order."""
        group_of = np.searchsorted(self.group_starts, rows, side="right") - 1
        groups = np.unique(group_of)
        table = self.read(groups.tolist(), columns)
        sizes = np.diff(self.group_starts)[groups]
        first = np.cumsum(sizes) - sizes
        where = np.searchsorted(groups, group_of)
        local = rows - self.group_starts[group_of] + first[where]
        if len(local) == table.num_rows and bool((np.diff(local) == 1).all()):
            return table
        return table.take(local)

    def _leaf(self, path: str) -> int:
        group = self._parquet.metadata.row_group(0)
        return next(i for i in range(group.num_columns) if group.column(i).path_in_schema == path)

    def _extent(self, group: int, columns: Sequence[str]) -> tuple[int, int]:
        """First byte and end of the part of a row group that holds `columns`."""
        meta = self._parquet.metadata.row_group(group)
        spans = []
        for number in range(meta.num_columns):
            column = meta.column(number)
            if column.path_in_schema.split(".")[0] in columns:
                start = column.dictionary_page_offset or column.data_page_offset
                spans.append((start, start + column.total_compressed_size))
        return min(s for s, _ in spans), max(e for _, e in spans)


def _chunked(chunks: Any, kind: Any) -> Any:
    return pa.chunked_array(chunks, kind)


class _Ranges(io.RawIOBase):
    """A remote file that answers reads from ranges fetched before; what is not there is fetched."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store, self._path, self._position = store, path, 0
        self._size = store.head(path)
        start = max(0, self._size - _FOOTER_BYTES)
        self._tail = (start, store.get_range(path, start, self._size - start))
        self._parts: list[tuple[int, memoryview]] = []

    def fetch(self, extents: Sequence[tuple[int, int]]) -> None:
        """Fetch the extents (start, end), neighbours in one request, all at once."""
        merged: list[list[int]] = []
        for start, end in sorted(extents):
            if merged and start - merged[-1][1] < 64 * 1024:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        starts, lengths = [s for s, _ in merged], [e - s for s, e in merged]
        self._parts = list(zip(starts, self._store.get_ranges(self._path, starts, lengths), strict=True))

    def forget(self) -> None:
        """Drop what was fetched."""
        self._parts = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._size if size is None or size < 0 else min(self._size, start + size)
        self._position = end
        for first, data in (*self._parts, self._tail):
            if first <= start and end <= first + data.nbytes:
                return bytes(data[start - first : end - first])
        return bytes(self._store.get_range(self._path, start, end - start)) if end > start else b""


class Selection:
    """Patches found by a search, in the order of the table (by place, then time) unless sorted.

    Nothing but row numbers is held at first; columns are read when they are asked for.
    """

    def __init__(self, dataset: Dataset, table: PatchTable, rows: NDArray[np.int64]) -> None:
        self.dataset = dataset
        """The dataset it was found in."""
        self.table = table
        """The table it was found in."""
        self.rows = rows
        """Row numbers in the table, int64 (len,)."""

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Selection({len(self):,} of {len(self.dataset):,} patches of {self.dataset.url!r})"

    @cached_property
    def patch_ids(self) -> list[str]:
        """Ids of the patches, in order; ``batch["index"]`` counts in this list."""
        return [str(i) for i in self.column("id").to_pylist()]

    def column(self, name: str) -> pa.ChunkedArray[Any]:
        """A column of ``patches.parquet`` for these patches, in order.

        Raises:
            KeyError: If there is no such column.
        """
        return self.table.take(self.rows, [name]).column(name)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Several columns at once, which reads less than one after the other."""
        return self.table.take(self.rows, names)

    def to_arrow(self) -> pa.Table:
        """All columns."""
        return self.columns(self.table.names)

    def official(self) -> pa.Table:
        """The official metadata of the patches, in the official schema and order."""
        names = ["id", *(f"reben:{name}" for name in OFFICIAL_SCHEMA.names[1:])]
        table = self.columns(names).rename_columns(OFFICIAL_SCHEMA.names)
        return table.cast(OFFICIAL_SCHEMA).sort_by("patch_id").combine_chunks()

    def to_pandas(self) -> pd.DataFrame:
        """A row a patch: the official columns, product, and both acquisition times (UTC)."""
        names = ["id", *(f"reben:{n}" for n in OFFICIAL_SCHEMA.names[1:]), "reben:product", "datetime"]
        frame: pd.DataFrame = self.columns([*names, "reben:s1_datetime"]).to_pandas()
        frame = frame.rename(columns=lambda name: name.removeprefix("reben:")).rename(
            columns={"id": "patch_id"}
        )
        frame["labels"] = [tuple(names) for names in frame["labels"]]
        return frame

    def to_geopandas(self) -> geopandas.GeoDataFrame:
        """`to_pandas` with the footprints as geometry, EPSG:4326."""
        import geopandas

        geometry = shapely.from_wkb(self.column("geometry").to_numpy())
        return geopandas.GeoDataFrame(self.to_pandas(), geometry=geometry, crs="EPSG:4326")

    def items(self) -> Iterable[pystac.Item]:
        """A pystac Item a patch, links and assets absolute."""
        import pystac

        from reben_cloud.catalog import patch_items

        for item in patch_items(self.to_arrow(), self.dataset.url):
            yield pystac.Item.from_dict(item)

    @cached_property
    def statistics(self) -> dict[str, dict[str, int]]:
        """How many patches each label, country, split and month has; largest first."""
        table = self.columns(["reben:labels", "reben:country", "reben:split", "datetime"])
        months = pc.strftime(table.column("datetime"), "%Y-%m")
        return {
            "labels": _counts(pc.list_flatten(table.column("reben:labels"))),
            "countries": _counts(table.column("reben:country")),
            "splits": _counts(table.column("reben:split")),
            "months": dict(sorted(_counts(months).items())),
        }

    def _repr_html_(self) -> str:
        parts = [f"<b>{len(self):,} patches</b> of {len(self.dataset):,} in {html.escape(self.dataset.url)}"]
        for title, counts in self.statistics.items():
            rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:,}</td></tr>" for k, v in counts.items())
            parts.append(f"<details><summary>{title}</summary><table>{rows}</table></details>")
        return "".join(parts)

    def plot(self, ax: Any = None) -> Any:
        """Draw the footprints on a map, coloured by split; returns the matplotlib axes."""
        import matplotlib.pyplot as plt
        from matplotlib.collections import PolyCollection

        if ax is None:
            ax = plt.subplots(figsize=(7, 7))[1]
        bbox: Any = self.column("bbox").combine_chunks()
        west, south, east, north = (bbox.field(s).to_numpy() for s in ("xmin", "ymin", "xmax", "ymax"))
        corners = np.stack([west, south, east, south, east, north, west, north], axis=1).reshape(-1, 4, 2)
        splits = self.column("reben:split").to_numpy()
        # A patch is 0.01 degrees wide: on a map of Europe only a thick edge keeps it visible.
        edge = 2.5 if len(self) < 100_000 and np.ptp(corners[..., 1]) > 5 else 0.5
        for split, color in zip(SPLITS, ("#4477aa", "#ccaa22", "#cc3355"), strict=True):
            mine = corners[splits == split]
            ax.add_collection(
                PolyCollection(
                    mine, facecolor=color, edgecolor=color, linewidth=edge, label=f"{split} ({len(mine):,})"
                )
            )
        ax.autoscale_view()
        ax.set_aspect(1 / np.cos(np.deg2rad(np.mean(ax.get_ylim()))))
        ax.set(xlabel="longitude (°)", ylabel="latitude (°)", title=f"{len(self):,} patches")
        ax.legend(loc="best")
        return ax

    def export_lmdb(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write the patches as an LMDB that rico-hdl's readers open; see `export.export_lmdb`."""
        from reben_cloud.export import export_lmdb

        return export_lmdb(self, path, **options)


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

    from reben_cloud.errors import missing_extra

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


def _counts(column: Any) -> dict[str, int]:
    pairs = pc.value_counts(column).to_pylist()
    return {p["values"]: p["counts"] for p in sorted(pairs, key=lambda p: (-p["counts"], p["values"]))}
