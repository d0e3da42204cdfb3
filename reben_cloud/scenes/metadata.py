"""The official metadata tables of prepared patches: a product's rows, and both files from all receipts."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.v1 import V1Patch
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import write_whole
from reben_cloud.formats import parquet
from reben_cloud.scenes.receipts import list_receipts
from reben_cloud.scenes.tile import Cut, Tile
from reben_cloud.sources.recognise import OFFICIAL_METADATA

METADATA, EXTRA_METADATA = OFFICIAL_METADATA
"""Files with the rows of the recommended patches, and with those of the others."""

_ROW_GROUP_ROWS = 124_928  # as DuckDB cut the official files


def patch_rows(tile: Tile, cut: Cut, v1: Mapping[tuple[int, int], V1Patch] | None) -> pa.Table:
    """Metadata of a product's patches, sorted by id. Names that do not exist are empty.

    Args:
        tile: The product's grid of patches.
        cut: Which squares were kept, with their labels and S1 names.
        v1: What v1 says of the product, (x, y) -> patch; None if it was not asked.
    """
    y, x = np.nonzero(cut.squares.kept)
    if not y.size:
        return OFFICIAL_SCHEMA.empty_table()
    side, product = tile.options.patch_m, tile.product
    places = list(zip(y.tolist(), x.tolist(), strict=True))
    known = [v1[column, row] if v1 is not None else None for row, column in places]
    columns = {
        "patch_id": [tile.patch_id(*place) for place in places],
        "labels": [cut.labels.of(*place) for place in places],
        "split": grid.split_of_centres((x + 0.5) * side, (y + 0.5) * side),
        "country": tile.options.countries.nearest(
            epsg=product.epsg, left=product.left + side * x, top=product.top - side * y, side_m=side
        ),
        "s1_name": [cut.s1_names.get(place, "") for place in places],
        "s2v1_name": [patch.name if patch else "" for patch in known],
        "contains_seasonal_snow": [patch is not None and patch.snow for patch in known],
        "contains_cloud_or_shadow": [patch is not None and patch.cloud for patch in known],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in OFFICIAL_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=OFFICIAL_SCHEMA).sort_by("patch_id")


def write_metadata(folder: str | os.PathLike[str]) -> None:
    """Both metadata files from the receipts of all products in `folder`: zstd, sorted by id."""
    root = local_path(folder, "the folder of the official layout")
    parts = [parquet.read_table(path, name=str(path)).cast(OFFICIAL_SCHEMA) for path in list_receipts(root)]
    table = pa.concat_tables([OFFICIAL_SCHEMA.empty_table(), *parts]).sort_by("patch_id")
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
