"""A parquet table of a store, read by row group and column, no byte twice. This module knows nothing of patches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.formats.parquet import ChunkReader
from reben_cloud.root.arrow import ints_array
from reben_cloud.root.documents import again
from reben_cloud.store import Store


class GroupedTable(ABC):
    """A table whose columns are read by row group, and kept.

    Args:
        store: Where it lies.
        path: Its path in the store.
    """

    def __init__(self, store: Store, path: str) -> None:
        self.store = store
        """Where the file is."""
        self.path = path
        """Its path there."""
        self._columns: dict[tuple[int, str], pa.ChunkedArray[Any]] = {}

    def __getstate__(self) -> dict[str, object]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_reader", "schema")}
        return {**state, "_columns": {}}

    @abstractmethod
    def _open(self) -> ChunkReader:
        """The file, compared with what vouches for it."""

    @cached_property
    def _reader(self) -> ChunkReader:
        return self._open()

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """First row of each row group, and the number of rows; int64 (num_row_groups + 1,)."""
        meta = self._reader.metadata
        sizes = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.group_starts[-1])

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._reader.schema

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def read(
        self, groups: Sequence[int], columns: Sequence[str], *, as_codes: Sequence[str] = ()
    ) -> pa.Table:
        """Columns of some row groups, in order.

        Args:
            groups: Numbers of the row groups.
            columns: Names of the columns.
            as_codes: Those of them whose strings are to come as dictionaries, which is read in a fifth of the time.

        Raises:
            KeyError: If there is no such column.
            ChecksumError: If what was read is not what was written.
        """
        for name in columns:
            if name not in self.schema.names:
                text = f"{self.store.url}/{self.path} has no column {name!r}; it has {', '.join(self.names)}"
                raise KeyError(text)
        keys = {name: f"{name} (codes)" if name in as_codes else name for name in columns}
        wanted = [g for g in groups if any((g, key) not in self._columns for key in keys.values())]
        missing = [c for c, key in keys.items() if any((g, key) not in self._columns for g in groups)]
        if wanted:
            found = self._fetch(wanted, missing, [name for name in missing if name in as_codes])
            self._columns |= {(g, keys[name]): column for (g, name), column in found.items()}
        return pa.table(
            {
                name: pa.chunked_array(
                    [chunk for g in groups for chunk in self._columns[g, key].chunks],
                    self._columns[groups[0], key].type
                    if name in as_codes and len(groups)
                    else self.schema.field(name).type,
                )
                for name, key in keys.items()
            }
        )

    def _fetch(
        self, groups: Sequence[int], columns: Sequence[str], as_codes: Sequence[str]
    ) -> dict[tuple[int, str], pa.ChunkedArray[Any]]:
        """Columns of row groups, each by (row group, name)."""
        found = again(self.store, self.path, lambda: self._reader.read(groups, columns, as_codes=as_codes))
        return {(g, c): part.column(c) for g, part in zip(groups, found, strict=True) for c in columns}

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Columns of some rows, in the rows' order."""
        groups, local = self.places(rows)
        table = self.read(groups, columns)
        if len(local) == table.num_rows and bool((np.diff(local) == 1).all()):
            return table
        return table.take(ints_array(local))

    def take_once(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Columns of some rows, in the rows' order; what is read for that is not kept. May be called in any thread."""
        groups, local = self.places(rows)
        return self.read_once(groups, columns).take(ints_array(local))

    def read_once(self, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Columns of some row groups, in order; what is read is not kept. May be called in any thread."""
        found = again(self.store, self.path, lambda: self._reader.read(groups, columns))
        return pa.concat_tables(found).select(list(columns))

    def vectors_once(self, group: int, column: str) -> NDArray[Any] | None:
        """The vectors of a row group as they stand in the file, (rows, size), or None where they have to be decoded.

        None of them is null. What is read is not kept. May be called in any thread.
        """
        return again(self.store, self.path, lambda: self._reader.read_vectors(group, column))

    def parts(self, rows: NDArray[np.int64], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of rising rows, a row group at a time; what is read for that is not kept."""
        for mine in np.split(rows, np.searchsorted(rows, self.group_starts[1:-1])):
            if len(mine):
                kept = dict(self._columns)
                yield self.take(mine, columns)
                self._columns = kept

    def places(self, rows: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
        """The row groups that hold some rows, and where each row is in these on end (`read` them)."""
        group_of = np.searchsorted(self.group_starts, rows, side="right") - 1
        sizes = np.diff(self.group_starts)
        is_there = np.bincount(group_of, minlength=len(sizes)) > 0
        first = np.cumsum(sizes * is_there) - sizes
        local = rows - self.group_starts[group_of] + first[group_of]
        return np.flatnonzero(is_there).tolist(), local
