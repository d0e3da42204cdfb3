"""``patches.parquet`` (stac-geoparquet), made of a table of metadata.

Everything is made column by column. What a patch *is* comes from the metadata, where it *lies* in a root
from the caller (`placement`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.bigearthnet.about import about
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.metadata import PLACE, SQUARE
from reben_cloud.root.metadata import rfc3339 as rfc3339
from reben_cloud.schema import Schema

Column = Any
"""An Arrow array; the stubs' element types would say no more than the column's name does."""

ROW_GROUP_ROWS = 16_384
"""Rows of a row group of ``patches.parquet``: small enough to prune, large enough to scan."""

_FIRST = (
    *("bbox", "datetime", "split", "country", "labels", "contains_seasonal_snow", "contains_cloud_or_shadow"),
    *("product", "s1_datetime", "patch_id", "s1_name", "s2v1_name"),
)
"""Metadata that filters read most, in this order first in the file; what else there is follows."""

_FEW = ("split", "country", "product", "platform", "constellation", "grid:code")
"""Metadata of few values, which are kept once."""


def patches_table(metadata: pa.Table, schema: Schema, placement: pa.Table | None = None) -> pa.Table:
    """The stac-geoparquet table: a STAC Item per row, by place (square), then product, then grid.

    Args:
        metadata: Rows with `REQUIRED` columns, and any others; ``square`` groups products that share a place.
        schema: Of the dataset.
        placement: ``patch_id`` and where each patch lies in a root (``reben:zarr_row``, ...), in
            the same order; None for a catalog of metadata alone, without those columns.

    Returns:
        The columns of ``patches.parquet``, the ones that filters read first.

    Raises:
        ValueError: If `placement` has other patches, or another order.
    """
    if placement is not None and placement.column("patch_id") != metadata.column("patch_id"):
        raise ValueError("placement must have the patches of the metadata in the same order")
    order = pa.array(_by_place(metadata))
    metadata = metadata.take(order).combine_chunks()
    epsg, x0, y0 = (metadata.column(name).to_numpy() for name in ("epsg", "x0", "y0"))
    minx, miny, maxx, maxy = x0, y0 - schema.patch_m, x0 + schema.patch_m, y0
    lonlat = _lonlat_squares(epsg, minx, miny, maxx, maxy)
    count = metadata.num_rows
    west, east = lonlat[:, :, 0].min(axis=1), lonlat[:, :, 0].max(axis=1)
    south, north = lonlat[:, :, 1].min(axis=1), lonlat[:, :, 1].max(axis=1)
    columns: dict[str, Any] = {}
    given = [name for name in metadata.column_names if name not in (*_FIRST, *PLACE, *SQUARE)]
    for name in (
        *_FIRST,
        *(n for n in given if n not in layout.STAC),
        *(n for n in given if n in layout.STAC),
    ):
        if name == "bbox":
            columns[layout.BBOX] = pa.StructArray.from_arrays(
                [pa.array(v) for v in (west, south, east, north)], ["xmin", "ymin", "xmax", "ymax"]
            )
        elif name in metadata.column_names:
            column = metadata.column(name).combine_chunks()
            few = name in _FEW and not pa.types.is_dictionary(column.type)
            columns[layout.column(name)] = column.dictionary_encode() if few else column
    shape = _pixels(schema)
    columns |= {
        "proj:code": pa.array(np.char.add("EPSG:", epsg.astype(str)).tolist()).dictionary_encode(),
        "proj:shape": _repeated(pa.array([shape, shape], pa.int32()), count),
        "proj:bbox": _lists(
            pa.array(np.stack([minx, miny, maxx, maxy], axis=1).astype(np.float64).ravel()), 4
        ),
        "stac_version": _constant("1.1.0", count),
        "stac_extensions": _repeated(pa.array(_extensions(schema, metadata.column_names)), count),
        "collection": _constant(about(schema).collection, count),
        layout.LINKS: _links(count, schema),
        layout.GEOMETRY: _wkb_polygons(lonlat),
    }
    if placement is not None:
        placed = placement.take(order)
        columns |= {
            name: placed.column(name)
            for name in placed.column_names
            if name.startswith(layout.PREFIX) and name != layout.PRODUCT
        }
        columns[layout.ASSETS] = _assets(columns[layout.PRODUCT])
    last = _last_columns(schema)
    ordered = [name for name in columns if name not in last]
    return pa.table({name: columns[name] for name in [*ordered, *(n for n in last if n in columns)]})


def _last_columns(schema: Schema) -> tuple[str, ...]:
    """Bulky columns that a filter never needs, last in the file: what it needs is then one range."""
    sums = map(layout.checksum_column, schema.modality_names)
    return (layout.LINKS, layout.ASSETS, layout.GEOMETRY, *sums)


def _pixels(schema: Schema) -> int:
    """Pixels on a side of a patch in the finest images that the schema has; 1 where it has none."""
    sizes = [t.pixel_m for m in schema.modalities for t in m.tensors if t.pixel_m]
    return round(schema.patch_m / min(sizes, default=schema.patch_m))


def _extensions(schema: Schema, metadata: Sequence[str]) -> list[str]:
    """Extensions that a patch's Item declares: one whose fields it lacks would make it invalid."""
    found = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
    if "grid:code" in metadata:
        found.append("https://stac-extensions.github.io/grid/v1.1.0/schema.json")
    own = about(schema).extension
    return found if own is None else [*found, own]


def write_patches(table: pa.Table, schema: Schema) -> bytes:
    """The bytes of ``patches.parquet``: GeoParquet 1.1.0, stac-geoparquet 1.1.0; same in, same out."""
    out = io.BytesIO()
    with patches_writer(out, table.schema, table.select([layout.BBOX, layout.DATETIME]), schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    parquet.add_chunk_sums(out)
    return out.getvalue()


def patches_writer(out: Any, columns: pa.Schema, extents: pa.Table, schema: Schema) -> pq.ParquetWriter:
    """What writes ``patches.parquet``, row group by row group, for tables that are not held in memory.

    When it is closed, `parquet.add_chunk_sums` finishes the file.

    Args:
        out: A path, or a file.
        columns: Columns of the table.
        extents: ``bbox`` and ``datetime`` of all rows, which the file's metadata sums up.
        schema: Of the dataset.
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
    collection_id = about(schema).collection
    collection = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": collection_id,
        "description": schema.description or schema.name,
        "license": schema.license,
        "extent": {
            "spatial": {"bbox": [bounds]},
            "temporal": {"interval": [[rfc3339(times["min"]), rfc3339(times["max"])]]},
        },
        "links": [],
    }
    stac = {"version": "1.1.0", "collections": {collection_id: collection}}
    return pq.ParquetWriter(
        out,
        columns.with_metadata({"geo": json.dumps(geo), "stac-geoparquet": json.dumps(stac)}),
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=[*_dictionary_columns(columns), f"{layout.LABELS}.list.element"],
        column_encoding={
            **{f"bbox.{side}": "BYTE_STREAM_SPLIT" for side in ("xmin", "ymin", "xmax", "ymax")},
            **dict.fromkeys(_long_texts(columns), "DELTA_BYTE_ARRAY"),
        },
    )


def _long_texts(columns: pa.Schema) -> list[str]:
    """Names that share their beginnings with their neighbours' and never come twice."""
    return [name for name in (layout.ID, "reben:s1_name", "reben:s2v1_name") if name in columns.names]


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns of few values; for the others a dictionary only costs time and a second page."""
    return (
        [field.name for field in schema if pa.types.is_dictionary(field.type)]
        + [f"links.list.element.{name}" for name in ("rel", "href", "type", "title")]
        + ["stac_extensions.list.element", layout.DATETIME, layout.S1_DATETIME, "assets.zarr.href"]
    )


def _constant(value: str, count: int) -> Column:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), [value])


def _lists(values: Column, length: int) -> Column:
    """Lists of `length` values each; plain lists, which every Parquet reader knows."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32)), values)


def _repeated(rows: Column, count: int) -> Column:
    """`count` lists that all hold `rows`."""
    return _lists(rows.take(pa.array(np.tile(np.arange(len(rows)), count))), len(rows))


def _links(count: int, schema: Schema) -> Column:
    collection = {
        "rel": "collection",
        "href": f"./{layout.collection(about(schema).collection)}",
        "type": "application/json",
        "title": schema.name,
    }
    return _repeated(pa.array([collection]), count)


def _assets(products: Column) -> Column:
    """The product's Zarr store, which holds the patch in row ``reben:zarr_row``."""
    stores = pa.array(
        [
            {
                "zarr": {
                    "href": f"./{layout.zarr_store(product)}",
                    "type": "application/vnd.zarr; version=3",
                    "title": "Zarr store of the product; the patch is row reben:zarr_row",
                    "roles": ["data"],
                }
            }
            for product in products.dictionary.to_pylist()
        ]
    )
    return stores.take(products.indices)


def _by_place(metadata: pa.Table) -> NDArray[np.int64]:
    """The order of the rows: squares along a Z curve, products of a square by time, patches by id.

    Within a product that is the order of its Zarr rows, and what compresses best.
    """
    products = metadata.column("product").cast(pa.string()).combine_chunks().dictionary_encode()
    code, names = products.indices.to_numpy(), products.dictionary.to_pylist()
    first = np.unique(code, return_index=True)[1]
    epsg, x0, y0 = (metadata.column(name).to_numpy() for name in ("epsg", "x0", "y0"))
    # The north-west corner of each product: of its square, or of the patches that are there.
    west, north = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    squared = {"square_x0", "square_y0"} <= set(metadata.column_names)
    np.minimum.at(west, code, metadata.column("square_x0").to_numpy() if squared else x0)
    np.maximum.at(north, code, metadata.column("square_y0").to_numpy() if squared else y0)
    corners = _lonlat_squares(epsg[first], west, north, west, north)[:, 0]
    # Cells of half a degree; the square, the time and the name decide in a cell.
    curve = _z_order(*((corners.T + 180) * 2).astype(np.int64)).tolist()
    times = metadata.column("datetime").take(pa.array(first)).to_pylist()
    squares = [""] * len(names)
    if "square" in metadata.column_names:
        squares = metadata.column("square").take(pa.array(first)).to_pylist()
    ranked = sorted(range(len(names)), key=lambda n: (curve[n], squares[n], times[n], names[n]))
    rank = np.empty(len(names), np.int64)
    rank[ranked] = np.arange(len(names))
    ids = np.argsort(np.array(metadata.column("patch_id").to_pylist(), np.bytes_), kind="stable")
    by_id = np.empty_like(ids)
    by_id[ids] = np.arange(len(ids))
    return np.lexsort((by_id, rank[code]))


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
