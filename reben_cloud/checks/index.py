"""``patches.parquet`` in the order of ``patch_id``: what the payload of every patch must be, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.root import layout, metadata
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.patch import PatchInfo
from reben_cloud.schema import Buffer, Modality

PATCHES_PER_CHECK = 256
"""Patches that one unit of work reads."""


class PatchIndex:
    """Columns of the table as arrays, a patch per row; read by many threads, changed by none."""

    def __init__(self, dataset: Dataset) -> None:
        self.official = dataset.selection.official()
        """The official metadata."""
        self.modalities = dataset.schema.modalities
        """What every patch has."""
        table = dataset.selection.to_arrow().sort_by(layout.ID)
        self.metadata = metadata.described_metadata(table, dataset.manifest.metadata_columns)
        """The same with times and places."""
        self.ids: list[str] = table.column(layout.ID).to_pylist()
        self.product = np.array(table.column(layout.PRODUCT).to_pylist())
        # A reference root has no Zarr stores.
        has_zarr = layout.ZARR_ROW in table.column_names
        self.zarr_row = table.column(layout.ZARR_ROW).to_numpy() if has_zarr else np.full(len(self.ids), -1)
        self.group = np.array(table.column(layout.SHARD_GROUP).to_pylist())
        self.shard = table.column(layout.SHARD).to_numpy()
        self.shard_row = table.column(layout.SHARD_ROW).to_numpy()
        columns = {m.name: layout.checksum_column(m.name) for m in self.modalities}
        self.sums = {m: table.column(c).to_numpy() for m, c in columns.items() if c in table.column_names}
        self._owner = {m: dict(zip(s.tolist(), self.ids, strict=True)) for m, s in self.sums.items()}

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.ids)

    def parts(self) -> list[NDArray[np.int64]]:
        """The rows in parts of `PATCHES_PER_CHECK`."""
        rows = np.arange(len(self))
        return np.split(rows, range(PATCHES_PER_CHECK, len(rows), PATCHES_PER_CHECK))

    def rows(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The official metadata of some rows."""
        found: list[dict[str, Any]] = self.official.take(pa.array(rows)).to_pylist()
        return found

    def infos(self, rows: NDArray[np.int64]) -> Iterator[PatchInfo]:
        """The same as values."""
        return metadata.patch_infos(self.official.take(pa.array(rows)))

    def compare(self, modality: Modality, row: int, payload: Buffer, where: str) -> list[str]:
        """Findings about one payload that must be the one of `row`."""
        if modality.name not in self.sums:
            return []
        found = xxhash.xxh3_64_intdigest(payload)
        if found == int(self.sums[modality.name][row]):
            return []
        other = self._owner[modality.name].get(found)
        kind = f"holds the pixels of {other}" if other else f"has other pixels than {layout.PATCHES} says"
        return [f"{where}: {modality.name} of {self.ids[row]} {kind}"]
