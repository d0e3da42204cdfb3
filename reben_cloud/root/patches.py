"""The table of patches (``patches.parquet``, stac-geoparquet), made of a table of metadata.

Everything is made column by column. What a patch *is* comes from the metadata (`metadata`), where it *lies*
in a root from the caller (`placement`). How the table becomes a file is in `patches_file`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from reben_cloud.bigearthnet.about import about
from reben_cloud.root import layout
from reben_cloud.root.metadata import PLACE, SQUARE
from reben_cloud.root.squares import by_place, lonlat_squares, wkb_polygons
from reben_cloud.schema import Schema

Column = Any
"""An Arrow array; the stubs' element types would say no more than the column's name does."""

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
    order = pa.array(by_place(metadata))
    metadata = metadata.take(order).combine_chunks()
    epsg, x0, y0 = (metadata.column(name).to_numpy() for name in ("epsg", "x0", "y0"))
    minx, miny, maxx, maxy = x0, y0 - schema.patch_m, x0 + schema.patch_m, y0
    lonlat = lonlat_squares(epsg, minx, miny, maxx, maxy)
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
        layout.GEOMETRY: wkb_polygons(lonlat),
    }
    if placement is not None:
        placed = placement.take(order)
        columns |= {
            name: placed.column(name)
            for name in placed.column_names
            if name.startswith(layout.PREFIX) and name != layout.PRODUCT
        }
        if layout.ZARR_ROW in placed.column_names:
            columns[layout.ASSETS] = _assets(columns[layout.PRODUCT])
    last = _last_columns(schema)
    ordered = [name for name in columns if name not in last]
    return pa.table({name: columns[name] for name in [*ordered, *(n for n in last if n in columns)]})


def _last_columns(schema: Schema) -> tuple[str, ...]:
    """Bulky columns that a filter never needs, last in the file: what it needs is then one range."""
    sums = map(layout.checksum_column, schema.modality_names)
    places = (column for name in schema.modality_names for column in layout.place_columns(name))
    return (layout.LINKS, layout.ASSETS, layout.GEOMETRY, *places, *sums)


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
