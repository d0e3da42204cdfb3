"""Find patches by area, time and label."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from reben_cloud.dataset import Dataset


class Selection:
    """Patches found by a search, in the order of ``patches.parquet``."""

    def __init__(self, dataset: Dataset, table: pa.Table) -> None:
        self.dataset = dataset
        """The dataset it was found in."""
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    @cached_property
    def patch_ids(self) -> list[str]:
        """Ids of the patches."""
        return [str(i) for i in self._table.column("id").to_pylist()]

    def column(self, name: str) -> pa.ChunkedArray[Any]:
        """A column of ``patches.parquet`` for the patches."""
        return self._table.column(name)

    def export_lmdb(self, path: str | os.PathLike[str], **options: Any) -> Any:
        """Write the patches as an LMDB."""
        from reben_cloud.export import export_lmdb

        return export_lmdb(self, path, **options)


def search(dataset: Dataset) -> Selection:
    """Every patch."""
    data = dataset.store.get("patches.parquet")
    return Selection(dataset, pq.read_table(pa.BufferReader(data)))
