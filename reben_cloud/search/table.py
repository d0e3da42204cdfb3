"""``patches.parquet`` read in parts: the footer, then ranges of row groups, column by column.

A remote file is read with one range a row group (neighbours in one), from the first to the last
column that is wanted; what was read once is kept. This module knows nothing of queries.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.store import Store

PATCHES = "patches.parquet"
"""Path of the table below a root."""

_FOOTER_BYTES = 256 * 1024
"""Read at once from the end of the file: the footer of 34 row groups takes about 130 kB."""


class PatchTable:
    """``patches.parquet`` of a root, read by row group and column, no byte twice.

    Args:
        store: The root.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        """Where the file lies."""
        self._columns: dict[tuple[int, str], pa.ChunkedArray[Any]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"store": self.store, "_columns": {}}

    @cached_property
    def _source(self) -> _Ranges:
        return _Ranges(self.store, PATCHES)

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._source)

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First row of each row group, and the number of rows; int64 (num_row_groups + 1,)."""
        meta = self._parquet.metadata
        sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._parquet.schema_arrow

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def bounds(self, group: int, leaf: str) -> tuple[Any, Any] | None:
        """Smallest and largest value of a leaf column in a row group; None when not recorded."""
        column = self._parquet.metadata.row_group(group).column(self._leaf(leaf))
        stats = column.statistics
        return (stats.min, stats.max) if stats is not None and stats.has_min_max else None

    def read(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some row groups, in order.

        Raises:
            KeyError: If there is no such column.
        """
        for name in columns:
            if name not in self.names:
                text = f"{self.store.url}/{PATCHES} has no column {name!r}; it has {', '.join(self.names)}"
                raise KeyError(text)
        wanted = [g for g in groups if any((g, c) not in self._columns for c in columns)]
        missing = [c for c in columns if any((g, c) not in self._columns for g in groups)]
        if wanted:
            self._source.fetch([self._extent(g, missing) for g in wanted])
            for group in wanted:
                found = self._parquet.read_row_group(group, columns=missing)
                for name in missing:
                    self._columns[group, name] = found.column(name)
            self._source.forget()
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
        return table.take(local)

    def parts(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of rising rows, a row group at a time; what is read for that is not kept."""
        for mine in np.split(rows, np.searchsorted(rows, self.group_starts[1:-1])):
            if len(mine):
                kept = dict(self._columns)
                yield self.take(mine, columns)
                self._columns = kept

    def _leaf(self, path: str) -> int:
        group = self._parquet.metadata.row_group(0)
        return next(i for i in range(group.num_columns) if group.column(i).path_in_schema == path)

    def _extent(self, group: int, columns: Sequence[str]) -> tuple[int, int]:
        """First byte and end of the part of a row group that holds `columns`."""
        meta = self._parquet.metadata.row_group(group)
        spans = []
        for number in range(meta.num_columns):
            column = meta.column(number)
            if column.path_in_schema.split(".")[0] in columns:
                start = column.dictionary_page_offset or column.data_page_offset
                spans.append((start, start + column.total_compressed_size))
        return min(s for s, _ in spans), max(e for _, e in spans)


class _Ranges(io.RawIOBase):
    """A remote file that answers reads from ranges fetched before; what is not there is fetched."""

    def __init__(self, store: Store, path: str) -> None:
        super().__init__()
        self._store, self._path, self._position = store, path, 0
        self._size = store.head(path)
        start = max(0, self._size - _FOOTER_BYTES)
        self._tail = (start, store.get_range(path, start, self._size - start))
        self._parts: list[tuple[int, memoryview]] = []

    def fetch(self, extents: Sequence[tuple[int, int]]) -> None:
        """Fetch the extents (start, end), neighbours in one request, all at once."""
        merged: list[list[int]] = []
        for start, end in sorted(extents):
            if merged and start - merged[-1][1] < 64 * 1024:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        starts, lengths = [s for s, _ in merged], [e - s for s, e in merged]
        self._parts = list(zip(starts, self._store.get_ranges(self._path, starts, lengths), strict=True))

    def forget(self) -> None:
        """Drop what was fetched."""
        self._parts = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._size if size is None or size < 0 else min(self._size, start + size)
        self._position = end
        for first, data in (*self._parts, self._tail):
            if first <= start and end <= first + data.nbytes:
                return bytes(data[start - first : end - first])
        return bytes(self._store.get_range(self._path, start, end - start)) if end > start else b""
