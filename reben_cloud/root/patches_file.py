"""The file ``patches.parquet``: how the table of patches is encoded, and what its metadata say of all rows."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet.about import about
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.metadata import rfc3339
from reben_cloud.schema import Schema

ROW_GROUP_ROWS = 16_384
"""Rows of a row group of ``patches.parquet``: small enough to prune, large enough to scan."""


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
    return [
        name for name in map(layout.column, ("patch_id", "s1_name", "s2v1_name")) if name in columns.names
    ]


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns of few values; for the others a dictionary only costs time and a second page."""
    return (
        [field.name for field in schema if pa.types.is_dictionary(field.type)]
        + [f"links.list.element.{name}" for name in ("rel", "href", "type", "title")]
        + ["stac_extensions.list.element", layout.DATETIME, layout.S1_DATETIME, "assets.zarr.href"]
    )
