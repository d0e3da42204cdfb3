"""The metadata tables: the official parquet files in, ``patches.parquet`` (stac-geoparquet) out."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud import grid, labels
from reben_cloud.errors import SourceError
from reben_cloud.patch import PatchInfo

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


def read_official(paths: Sequence[str | os.PathLike[str]]) -> pa.Table:
    """The rows of official metadata files in one table sorted by ``patch_id``."""
    tables = []
    for path in paths:
        table = pq.read_table(path)
        missing = [name for name in OFFICIAL_SCHEMA.names if name not in table.column_names]
        if missing:
            raise SourceError(f"{os.fspath(path)}: not official metadata, it has no column {missing[0]}")
        tables.append(table.select(OFFICIAL_SCHEMA.names).cast(OFFICIAL_SCHEMA))
    found = pa.concat_tables(tables).sort_by("patch_id").combine_chunks()
    ids = found.column("patch_id")
    if pc.count_distinct(ids).as_py() != len(ids):
        raise SourceError("the metadata has a patch_id twice; was one file given twice?")
    return found


def patch_infos(table: pa.Table) -> Iterator[PatchInfo]:
    """The rows of an official table as values."""
    for row in table.select(OFFICIAL_SCHEMA.names).to_pylist():
        yield PatchInfo(**{**row, "labels": tuple(row["labels"])})


ROW_GROUP_ROWS = 16_384
"""Rows of a row group of ``patches.parquet``: small enough to prune, large enough to scan."""


def patches_table(official: pa.Table, placement: pa.Table | None = None) -> pa.Table:
    """The stac-geoparquet table of the patches, sorted by product, row and column."""
    ids = [str(i) for i in official.column("patch_id").to_pylist()]
    lonlat = _lonlat_squares(ids)
    bbox = {
        "xmin": lonlat[:, :, 0].min(axis=1),
        "ymin": lonlat[:, :, 1].min(axis=1),
        "xmax": lonlat[:, :, 0].max(axis=1),
        "ymax": lonlat[:, :, 1].max(axis=1),
    }
    epsg = grid.footprints(ids)[0]
    columns: dict[str, Any] = {
        "id": official.column("patch_id"),
        "geometry": _wkb_polygons(lonlat),
        "bbox": pa.StructArray.from_arrays([pa.array(v) for v in bbox.values()], list(bbox)),
        "datetime": _times([i[11:26] for i in ids]),
        "proj:code": pa.array([f"EPSG:{code}" for code in epsg.tolist()]).dictionary_encode(),
        "reben:s1_datetime": _times([str(n)[17:32] for n in official.column("s1_name").to_pylist()]),
        **{
            f"reben:{name}": official.column(name)
            for name in OFFICIAL_SCHEMA.names
            if name != "patch_id"
        },
    }
    if placement is not None:
        columns |= {name: placement.column(name) for name in placement.column_names if name != "patch_id"}
    return pa.table(columns)


def write_patches(table: pa.Table) -> bytes:
    """The bytes of ``patches.parquet``."""
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": ["Polygon"],
                "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
            }
        },
    }
    out = io.BytesIO()
    table = table.replace_schema_metadata({"geo": json.dumps(geo)})
    pq.write_table(table, out, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    return out.getvalue()


def _times(texts: list[str]) -> pa.Array[Any]:
    parsed = pc.strptime(pa.array(texts), format="%Y%m%dT%H%M%S", unit="us")
    return pc.assume_timezone(parsed, "UTC")


def _lonlat_squares(patch_ids: Sequence[str]) -> Any:
    from pyproj import Transformer

    epsg, minx, miny, maxx, maxy = grid.footprints(patch_ids)
    xs = np.stack([minx, maxx, maxx, minx, minx], axis=1).astype(np.float64)
    ys = np.stack([miny, miny, maxy, maxy, miny], axis=1).astype(np.float64)
    out = np.empty((len(patch_ids), 5, 2))
    for code in np.unique(epsg).tolist():
        rows = epsg == code
        to_lonlat = Transformer.from_crs(code, 4326, always_xy=True)
        out[rows, :, 0], out[rows, :, 1] = to_lonlat.transform(xs[rows], ys[rows])
    return np.round(out, 7)


def _wkb_polygons(rings: Any) -> pa.Array[Any]:
    record = np.dtype([("head", "V13"), ("points", "<f8", (5, 2))])
    head = b"\x01" + (3).to_bytes(4, "little") + (1).to_bytes(4, "little") + (5).to_bytes(4, "little")
    values = np.empty(len(rings), record)
    values["head"] = np.void(head)
    values["points"] = rings
    fixed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(record.itemsize), len(rings), [None, pa.py_buffer(values.tobytes())]
    )
    return fixed.cast(pa.binary())
