"""The metadata tables: the official parquet files in, ``patches.parquet`` (stac-geoparquet) out.

Everything is made column by column; no row becomes a Python object. What a patch *is* comes from
its names (`grid`), where it *lies* in a root from the caller (`placement`).
"""

from __future__ import annotations

import difflib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid, labels
from reben_cloud.bigearthnet.about import DESCRIPTION, LICENSE
from reben_cloud.bigearthnet.about import REBEN_EXTENSION as REBEN_EXTENSION
from reben_cloud.errors import ChecksumError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.root import parquet
from reben_cloud.root.patch import PatchInfo

Column = Any
"""An Arrow array; the stubs' element types would say no more than the column's name does."""

OFFICIAL_SCHEMA = pa.schema(
    [
        ("patch_id", pa.string()),
        ("labels", pa.list_(pa.field("element", pa.string()))),
        ("split", pa.string()),
        ("country", pa.string()),
        ("s1_name", pa.string()),
        ("s2v1_name", pa.string()),
        ("contains_seasonal_snow", pa.bool_()),
        ("contains_cloud_or_shadow", pa.bool_()),
    ]
)
"""Columns of the official metadata files."""

SPLITS = ("train", "validation", "test")
"""The splits, as the metadata spells them."""

COUNTRIES = (
    "Austria",
    "Belgium",
    "Finland",
    "Ireland",
    "Kosovo",
    "Lithuania",
    "Luxembourg",
    "Portugal",
    "Serbia",
    "Switzerland",
)
"""The ten countries, as the metadata spells them."""

COLLECTION_ID = "bigearthnet-v2"
"""Id of the STAC Collection that every patch and product belongs to."""

ROW_GROUP_ROWS = 16_384
"""Rows of a row group of ``patches.parquet``: small enough to prune, large enough to scan."""

LAST_COLUMNS = ("links", "assets", "geometry", "reben:s2_xxh3", "reben:s1_xxh3", "reben:map_xxh3")
"""Bulky columns that a filter never needs, last in the file: what it needs is then one range."""


def check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Refuse names that are not among the known ones.

    Raises:
        ValueError: If one is unknown; the message has the nearest names.
    """
    for name in names:
        if name not in known:
            lower = {one.lower(): one for one in known}
            near = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(repr(lower[n]) for n in near)}?" if near else ""
            some = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise ValueError(f"unknown {what} {name!r}; {hint or 'known are ' + some}")


def read_official(paths: Sequence[str | os.PathLike[str]]) -> pa.Table:
    """The rows of official metadata files in one table sorted by ``patch_id``.

    Columns beyond the official eight (pandas adds ``__index_level_0__``) are dropped.

    Args:
        paths: One or both of the official files, or extracts of them.

    Raises:
        FileNotFoundError: If a file does not exist.
        SourceError: If a column is missing or of another type, a value is null, a name is none of
            reBEN's, or a patch or an S1 name comes twice.
    """
    tables = []
    for path in paths:
        name = os.fspath(path)
        try:
            table = parquet.read_table(local_path(path, "a metadata file"), name=name)
        except ChecksumError as error:
            raise SourceError(f"{error}; load it again") from error
        missing = [column for column in OFFICIAL_SCHEMA.names if column not in table.column_names]
        if missing:
            raise SourceError(
                f"{name}: not official metadata, it lacks {', '.join(missing)} (it has {', '.join(table.column_names)})"
            )
        try:
            tables.append(table.select(OFFICIAL_SCHEMA.names).cast(OFFICIAL_SCHEMA))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise SourceError(f"{name}: not official metadata: {error}") from error
        _check_rows(tables[-1], name)
    if not tables:
        raise SourceError("no metadata file was given")
    found = pa.concat_tables(tables).sort_by("patch_id").combine_chunks()
    for column in ("patch_id", "s1_name"):
        # An empty S1 name, of a dataset made from Sentinel-2 alone, may come again and again.
        named = found.column(column).filter(pc.not_equal(found.column(column), ""))
        counts = pc.value_counts(named)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise SourceError(
                f"{twice[0]['values']}: this {column} comes {twice[0]['counts']} times in the metadata; "
                "was one file given twice?"
            )
    return found


_PATCH_PATTERN = r"^S2[A-D]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d{2}[C-X][A-Z]{2}_([0-8]\d|90)_([0-8]\d|90)$"
_S1_PATTERN = r"^(S1[A-D]_IW_GRDH_1SDV_\d{8}T\d{6}_\d{2}[A-Z]{3}_\d{1,2}_\d{1,2})?$"


def _check_rows(table: pa.Table, name: str) -> None:
    for column in OFFICIAL_SCHEMA.names:
        values = table.column(column)
        if values.null_count:
            raise SourceError(f"{name}: column {column} has {values.null_count} nulls")
    for column, pattern in (("patch_id", _PATCH_PATTERN), ("s1_name", _S1_PATTERN)):
        values = table.column(column)
        bad = values.filter(pc.invert(pc.match_substring_regex(values, pattern)))
        if len(bad):
            raise SourceError(f"{name}: {bad[0]} is no {column}")
    try:
        labels.check_labels(pc.unique(pc.list_flatten(table.column("labels"))).to_pylist())
        check_names(pc.unique(table.column("split")).to_pylist(), SPLITS, "split")
    except ValueError as error:
        raise SourceError(f"{name}: {error}") from error


def patch_infos(table: pa.Table) -> Iterator[PatchInfo]:
    """The rows of an official table as values."""
    for row in table.select(OFFICIAL_SCHEMA.names).to_pylist():
        yield PatchInfo(**{**row, "labels": tuple(row["labels"])})


def patches_table(official: pa.Table, placement: pa.Table | None = None) -> pa.Table:
    """The stac-geoparquet table: a STAC Item a row, by place (square), then product, then grid.

    Args:
        official: Rows in the official schema.
        placement: ``patch_id`` and where each patch lies in a root (``reben:zarr_row``, ...), in
            the same order; None for a catalog of metadata alone, without those columns.

    Returns:
        The columns of ``patches.parquet``, the ones that filters read first.

    Raises:
        ValueError: If `placement` has other patches, or another order.
    """
    if placement is not None and placement.column("patch_id") != official.column("patch_id"):
        raise ValueError("placement must have the patches of official in the same order")
    order = pa.array(_by_place(official.column("patch_id").combine_chunks()))
    official = official.take(order).combine_chunks()
    patch_ids = official.column("patch_id").combine_chunks()
    epsg, minx, miny, maxx, maxy = grid.footprints(patch_ids.to_pylist())
    lonlat = _lonlat_squares(epsg, minx, miny, maxx, maxy)
    count = len(patch_ids)
    products = pc.utf8_slice_codeunits(patch_ids, 0, -6).dictionary_encode()
    west, east = lonlat[:, :, 0].min(axis=1), lonlat[:, :, 0].max(axis=1)
    south, north = lonlat[:, :, 1].min(axis=1), lonlat[:, :, 1].max(axis=1)
    columns: dict[str, Any] = {
        "bbox": pa.StructArray.from_arrays(
            [pa.array(v) for v in (west, south, east, north)], ["xmin", "ymin", "xmax", "ymax"]
        ),
        "datetime": _times(patch_ids, 11),
        "reben:split": official.column("split").combine_chunks().dictionary_encode(),
        "reben:country": official.column("country").combine_chunks().dictionary_encode(),
        "reben:labels": official.column("labels"),
        "reben:contains_seasonal_snow": official.column("contains_seasonal_snow"),
        "reben:contains_cloud_or_shadow": official.column("contains_cloud_or_shadow"),
        "reben:product": products,
        "reben:s1_datetime": _times(official.column("s1_name").combine_chunks(), 17),
        "id": patch_ids,
        "reben:s1_name": official.column("s1_name"),
        "reben:s2v1_name": official.column("s2v1_name"),
        "platform": _mapped(
            pc.utf8_slice_codeunits(patch_ids, 0, 3), {f"S2{x.upper()}": f"sentinel-2{x}" for x in "abcd"}
        ),
        "constellation": _constant("sentinel-2", count),
        "grid:code": pc.binary_join_element_wise(
            "MGRS", pc.utf8_slice_codeunits(patch_ids, 39, 44), "-"
        ).dictionary_encode(),
        "proj:code": pa.array(np.char.add("EPSG:", epsg.astype(str)).tolist()).dictionary_encode(),
        "proj:shape": _repeated(pa.array([120, 120], pa.int32()), count),
        "proj:bbox": _lists(
            pa.array(np.stack([minx, miny, maxx, maxy], axis=1).astype(np.float64).ravel()), 4
        ),
        "stac_version": _constant("1.1.0", count),
        "stac_extensions": _repeated(pa.array(EXTENSIONS), count),
        "collection": _constant(COLLECTION_ID, count),
        "links": _links(count),
        "geometry": _wkb_polygons(lonlat),
    }
    if placement is not None:
        placed = placement.take(order)
        columns |= {name: placed.column(name) for name in placed.column_names if name.startswith("reben:")}
        columns["assets"] = _assets(products)
    ordered = [name for name in columns if name not in LAST_COLUMNS]
    return pa.table({name: columns[name] for name in [*ordered, *(n for n in LAST_COLUMNS if n in columns)]})


EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
    REBEN_EXTENSION,
)
"""Extensions that a patch's Item declares."""


def write_patches(table: pa.Table) -> bytes:
    """The bytes of ``patches.parquet``: GeoParquet 1.1.0, stac-geoparquet 1.1.0; same in, same out."""
    out = io.BytesIO()
    with patches_writer(out, table.schema, table.select(["bbox", "datetime"])) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    parquet.add_chunk_sums(out)
    return out.getvalue()


def patches_writer(out: Any, schema: pa.Schema, extents: pa.Table) -> pq.ParquetWriter:
    """What writes ``patches.parquet``, row group by row group, for tables that are not held in memory.

    When it is closed, `parquet.add_chunk_sums` finishes the file.

    Args:
        out: A path, or a file.
        schema: Columns of the table.
        extents: ``bbox`` and ``datetime`` of all rows, which the file's metadata sums up.
    """
    bbox = extents.column("bbox").combine_chunks()
    bounds = [
        float(reduce(bbox.field(side)).as_py())
        for side, reduce in zip(
            ("xmin", "ymin", "xmax", "ymax"), (pc.min, pc.min, pc.max, pc.max), strict=True
        )
    ]
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            # No "crs": OGC:CRS84, longitude and latitude, is the default.
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "orientation": "counterclockwise",
                "bbox": bounds,
                "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
            }
        },
    }
    times = pc.min_max(extents.column("datetime")).as_py()
    collection = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": COLLECTION_ID,
        "description": DESCRIPTION,
        "license": LICENSE,
        "extent": {
            "spatial": {"bbox": [bounds]},
            "temporal": {"interval": [[rfc3339(times["min"]), rfc3339(times["max"])]]},
        },
        "links": [],
    }
    stac = {"version": "1.1.0", "collections": {COLLECTION_ID: collection}}
    return pq.ParquetWriter(
        out,
        schema.with_metadata({"geo": json.dumps(geo), "stac-geoparquet": json.dumps(stac)}),
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=[*_dictionary_columns(schema), "reben:labels.list.element"],
        column_encoding={
            **{f"bbox.{side}": "BYTE_STREAM_SPLIT" for side in ("xmin", "ymin", "xmax", "ymax")},
            **dict.fromkeys(("id", "reben:s1_name", "reben:s2v1_name"), "DELTA_BYTE_ARRAY"),
        },
    )


def rfc3339(time: Any) -> str:
    """A UTC datetime as STAC writes it: ``2017-06-13T10:10:31Z``."""
    return str(time.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns of few values; for the others a dictionary only costs time and a second page."""
    return (
        [field.name for field in schema if pa.types.is_dictionary(field.type)]
        + [f"links.list.element.{name}" for name in ("rel", "href", "type", "title")]
        + ["stac_extensions.list.element", "datetime", "reben:s1_datetime", "assets.zarr.href"]
    )


def _times(names: Column, start: int) -> Column:
    """The UTC times that stand in `names` from character `start` as ``20170613T101031``, null in an empty one."""
    text = pc.utf8_slice_codeunits(names, start, start + 15)
    return pc.assume_timezone(pc.strptime(text, format="%Y%m%dT%H%M%S", unit="us", error_is_null=True), "UTC")


def _constant(value: str, count: int) -> Column:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), [value])


def _mapped(values: Column, names: dict[str, str]) -> Column:
    index = pc.index_in(values, pa.array(list(names))).cast(pa.int8())
    return pa.DictionaryArray.from_arrays(index, list(names.values()))


def _lists(values: Column, length: int) -> Column:
    """Lists of `length` values each; plain lists, which every Parquet reader knows."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32)), values)


def _repeated(rows: Column, count: int) -> Column:
    """`count` lists that all hold `rows`."""
    return _lists(rows.take(pa.array(np.tile(np.arange(len(rows)), count))), len(rows))


def _links(count: int) -> Column:
    collection = {
        "rel": "collection",
        "href": f"./{COLLECTION_ID}/collection.json",
        "type": "application/json",
        "title": "BigEarthNet v2.0 (reBEN)",
    }
    return _repeated(pa.array([collection]), count)


def _assets(products: Column) -> Column:
    """The product's Zarr store, which holds the patch in row ``reben:zarr_row``."""
    stores = pa.array(
        [
            {
                "zarr": {
                    "href": f"./zarr/{product}.zarr",
                    "type": "application/vnd.zarr; version=3",
                    "title": "Zarr store of the product; the patch is row reben:zarr_row",
                    "roles": ["data"],
                }
            }
            for product in products.dictionary.to_pylist()
        ]
    )
    return stores.take(products.indices)


def _by_place(patch_ids: Column) -> NDArray[np.int64]:
    """The order of the rows: squares along a Z curve, products of a square by time, patches by id.

    Within a product that is the order of its Zarr rows, and what compresses best.
    """
    products = pc.utf8_slice_codeunits(patch_ids, 0, -6).dictionary_encode()
    names: list[str] = products.dictionary.to_pylist()
    corners = _lonlat_squares(*grid.footprints([f"{name}_00_00" for name in names]))[:, 3]
    # Cells of half a degree; the name decides in a cell.
    curve = _z_order(*((corners.T + 180) * 2).astype(np.int64)).tolist()
    ranked = sorted(range(len(names)), key=lambda n: (curve[n], names[n][39:44], names[n][11:26], names[n]))
    rank = np.empty(len(names), np.int64)
    rank[ranked] = np.arange(len(names))
    x, y = grid.grid_positions(patch_ids.to_pylist())
    return np.lexsort((y, x, rank[products.indices.to_numpy()]))


def _z_order(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Morton code of two coordinates below 1024: their bits interleaved."""
    found = np.zeros_like(x)
    for bit in range(10):
        found |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1)
    return found


def _lonlat_squares(
    epsg: NDArray[np.int64],
    minx: NDArray[np.int64],
    miny: NDArray[np.int64],
    maxx: NDArray[np.int64],
    maxy: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Closed counterclockwise rings in degrees, (n, 5, 2) longitude and latitude, rounded to 1 cm.

    Straight lines between the corners leave the square's true edges by less than 3 cm.
    """
    from pyproj import Transformer

    xs = np.stack([minx, maxx, maxx, minx, minx], axis=1).astype(np.float64)
    ys = np.stack([miny, miny, maxy, maxy, miny], axis=1).astype(np.float64)
    out = np.empty((len(epsg), 5, 2))
    for code in np.unique(epsg).tolist():
        rows = epsg == code
        to_lonlat = Transformer.from_crs(code, 4326, always_xy=True)
        out[rows, :, 0], out[rows, :, 1] = to_lonlat.transform(xs[rows], ys[rows])
    return np.round(out, 7)


def _wkb_polygons(rings: NDArray[np.float64]) -> Column:
    """Little-endian WKB of polygons with one ring of five points."""
    record = np.dtype([("head", "V13"), ("points", "<f8", (5, 2))])
    head = b"\x01" + (3).to_bytes(4, "little") + (1).to_bytes(4, "little") + (5).to_bytes(4, "little")
    buffer = pa.allocate_buffer(len(rings) * record.itemsize)
    values = np.frombuffer(buffer, record)
    values["head"] = np.void(head)
    values["points"] = rings
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(record.itemsize), len(rings), [None, buffer])
    return fixed.cast(pa.binary())
