"""The metadata tables of prepared patches: a product's rows, and the files from all receipts.

Of the paper's recipe they are the official ones. Any other dataset has the columns that it needs of those, and a
document that says what its patches are (`sources.prepared`).
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.v1 import V1Patch
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import write_whole
from reben_cloud.formats import parquet
from reben_cloud.scenes.options import CutOptions
from reben_cloud.scenes.quality import COLUMNS
from reben_cloud.scenes.receipts import list_receipts
from reben_cloud.scenes.separation import Separation, separations
from reben_cloud.scenes.split import Squares
from reben_cloud.scenes.tile import Cut, Tile
from reben_cloud.sources.prepared import write_document
from reben_cloud.sources.recognise import OFFICIAL_METADATA

METADATA, EXTRA_METADATA = OFFICIAL_METADATA
"""Files with the rows of the recommended patches, and with those of the others."""

_ROW_GROUP_ROWS = 124_928  # as DuckDB cut the official files


def metadata_schema(options: CutOptions) -> pa.Schema:
    """Columns of the metadata of what is made with these options."""
    if options.is_official:
        return OFFICIAL_SCHEMA
    left = {*(() if options.has_s1 else ("s1_name",)), *(("s2v1_name",) if options.v1 is None else ())}
    kept = [field for field in OFFICIAL_SCHEMA if field.name not in left]
    return pa.schema([*kept, *(pa.field(name, pa.float32()) for name in COLUMNS)])


def patch_rows(tile: Tile, cut: Cut, v1: Mapping[tuple[int, int], V1Patch] | None) -> pa.Table:
    """Metadata of a product's patches, sorted by id. Names that do not exist are empty.

    Args:
        tile: The product's grid of patches.
        cut: Which squares were kept, with their labels and S1 names.
        v1: What v1 says of the product, (x, y) -> patch; None if it was not asked.
    """
    y, x = np.nonzero(cut.squares.kept)
    schema = metadata_schema(tile.options)
    if not y.size:
        return schema.empty_table()
    side, product = tile.options.patch_m, tile.product
    left, top = product.left + side * x, product.top - side * y
    places = list(zip(y.tolist(), x.tolist(), strict=True))
    known = [v1[column, row] if v1 is not None else None for row, column in places]
    ids = [tile.patch_id(*place) for place in places]
    squares = Squares(ids, product.epsg, left, top, side, (product.left, product.top))
    columns: dict[str, Any] = {
        "patch_id": ids,
        "labels": [cut.labels.of(*place) for place in places],
        "split": tile.options.split.splits_of(squares),
        "country": tile.options.countries.nearest(epsg=product.epsg, left=left, top=top, side_m=side),
        "s1_name": [cut.s1_names.get(place, "") for place in places],
        "s2v1_name": [patch.name if patch else "" for patch in known],
    }
    snow, cloud = cut.quality.flags(tile.options.flags, tile.shape)
    if v1 is not None:
        columns["contains_seasonal_snow"] = [patch is not None and patch.snow for patch in known]
        columns["contains_cloud_or_shadow"] = [patch is not None and patch.cloud for patch in known]
    else:
        columns["contains_seasonal_snow"], columns["contains_cloud_or_shadow"] = snow[y, x], cloud[y, x]
    for name in COLUMNS:
        shares = cut.quality.shares.get(name)
        columns[name] = [None] * len(ids) if shares is None else shares[y, x]
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema).sort_by("patch_id")


def write_metadata(folder: str | os.PathLike[str], options: CutOptions) -> None:
    """The metadata files from the receipts of all products in `folder`, which `options` made: zstd, sorted by id."""
    root = local_path(folder, "the folder of the official layout")
    schema = metadata_schema(options)
    parts = [parquet.read_table(path, name=str(path)).cast(schema) for path in list_receipts(root)]
    table = pa.concat_tables([schema.empty_table(), *parts]).sort_by("patch_id")
    extra = pc.or_(table["contains_seasonal_snow"], table["contains_cloud_or_shadow"])
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in ((METADATA, pc.invert(extra)), (EXTRA_METADATA, extra)):
        out = io.BytesIO()
        pq.write_table(
            table.filter(rows),
            out,
            version="1.0",
            compression="zstd",
            row_group_size=_ROW_GROUP_ROWS,
            use_dictionary=["split", "country"],
            write_statistics=["contains_seasonal_snow", "contains_cloud_or_shadow"],
        )
        write_whole(root / name, out.getbuffer())
    if not options.is_official:
        write_document(root, options.schema)


def read_separations(folder: str | os.PathLike[str], options: CutOptions) -> list[Separation]:
    """How far patches of different splits are from each other, of all that a folder's metadata name.

    Empty where no metadata are there yet, because others have products to do still.
    """
    files = [Path(folder, name) for name in (METADATA, EXTRA_METADATA)]
    if not all(file.exists() for file in files):
        return []
    tables = [parquet.read_table(file, ["patch_id", "split"], name=str(file)) for file in files]
    return separations(pa.concat_tables(tables), patch_m=options.patch_m)
