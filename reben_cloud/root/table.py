"""``patches.parquet`` read in parts: the footer, then ranges of row groups, column by column.

A remote file is read with one range a row group (neighbours in one), from the first to the last
column that is wanted; what was read once is kept. This module knows nothing of queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.formats.parquet import ChunkReader
from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array
from reben_cloud.root.documents import again, open_patches
from reben_cloud.root.manifest import Manifest
from reben_cloud.store import Store


class PatchTable:
    """``patches.parquet`` of a root, read by row group and column, no byte twice.

    Args:
        store: The root.
        manifest: What vouches for the table (`root.open_patches`).
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        """Where the file is."""
        self.manifest = manifest
        """What the root or the export says of itself."""
        self._columns: dict[tuple[int, str], pa.ChunkedArray[Any]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"store": self.store, "manifest": self.manifest, "_columns": {}}

    def afresh(self) -> PatchTable:
        """The same table with no columns read yet: what it reads is gone with it."""
        found = PatchTable(self.store, self.manifest)
        found._reader = self._reader
        return found

    @cached_property
    def _reader(self) -> ChunkReader:
        reader = open_patches(self.store, self.manifest)
        if reader.metadata.num_rows != (expected := self.manifest.num_patches):
            raise ChecksumError(
                f"{self.store.url}/{layout.PATCHES} has {reader.metadata.num_rows:,} rows and the manifest says "
                f"{expected:,} patches; the root is damaged: copy it again from where it was made"
            )
        return reader

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First row of each row group, and the number of rows; int64 (num_row_groups + 1,)."""
        meta = self._reader.metadata
        sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._reader.schema

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def bounds(self, group: int, leaf: str) -> tuple[Any, Any] | None:
        """Smallest and largest value of a leaf column in a row group; None when not recorded.

        As the file has them: a time is its microseconds since 1970.
        """
        column = self._reader.metadata.row_group(group).column(self._leaf(leaf))
        stats = column.statistics
        # The cooked values of a time would load pandas, which takes longer than all else of a search.
        return (stats.min_raw, stats.max_raw) if stats is not None and stats.has_min_max else None

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some row groups, in order.

        Raises:
            KeyError: If there is no such column.
            ChecksumError: If what was read is not what was written.
        """
        for name in columns:
            if name not in self.names:
                text = f"{self.store.url}/{layout.PATCHES} has no column {name!r}; it has {', '.join(self.names)}"
                raise KeyError(text)
        wanted = [g for g in groups if any((g, c) not in self._columns for c in columns)]
        missing = [c for c in columns if any((g, c) not in self._columns for g in groups)]
        if wanted:
            found = again(self.store, layout.PATCHES, lambda: self._reader.read(wanted, missing))
            for group, part in zip(wanted, found, strict=True):
                for name in missing:
                    self._columns[group, name] = part.column(name)
        chunks = {name: [c for g in groups for c in self._columns[g, name].chunks] for name in columns}
        return pa.table({n: pa.chunked_array(c, self.schema.field(n).type) for n, c in chunks.items()})

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
        return table.take(ints_array(local))

    def parts(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of rising rows, a row group at a time; what is read for that is not kept."""
        for mine in np.split(rows, np.searchsorted(rows, self.group_starts[1:-1])):
            if len(mine):
                kept = dict(self._columns)
                yield self.take(mine, columns)
                self._columns = kept

    def _leaf(self, path: str) -> int:
        group = self._reader.metadata.row_group(0)
        return next(i for i in range(group.num_columns) if group.column(i).path_in_schema == path)
