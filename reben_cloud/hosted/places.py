"""Places of records that were looked up: in memory, and in small files for the next process.

A lookup writes its own few rows and leaves what was kept before as it is. Every process writes files of its own, so
that none waits for another; what one of them damages or takes away is looked up again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.files.whole import replacing
from reben_cloud.formats import parquet
from reben_cloud.formats.lmdb_index import SCHEMA

logger = logging.getLogger(__name__)

SETTLED_ROWS = 4096
"""A file of so many rows is left as it is; until then, it is written again with each lookup, in milliseconds."""

_MOST_FILES = 16
"""More of them are made one when they are read."""


class _Known(NamedTuple):
    """Places by rising keys: they are found one at a time while a build reads."""

    table: pa.Table
    keys: NDArray[np.bytes_]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> _Known:
        table = pa.concat_tables([SCHEMA.empty_table(), *tables])
        # Two processes may have looked the same records up.
        keys, rows = np.unique(np.array(table.column("key").to_pylist(), np.bytes_), return_index=True)
        table = table.take(pa.array(rows))
        return cls(table, keys, table.column("offset").to_numpy())

    def find(
        self, wanted: NDArray[np.bytes_], starts: NDArray[np.int64], is_there: NDArray[np.bool_]
    ) -> None:
        """Put down where the keys that are here lie."""
        rows = np.searchsorted(self.keys, wanted)
        here = rows < len(self.keys)
        here[here] = self.keys[rows[here]] == wanted[here]
        starts[here] = self.starts[rows[here]]
        is_there |= here


class KeptPlaces:
    """Places of the records of one version of an LMDB; not safe to use from several threads at once.

    Args:
        folder: Where they are kept; a folder that cannot be written keeps nothing, which is logged.
        way_out: What names another folder, for messages.
    """

    def __init__(self, folder: Path, *, way_out: str) -> None:
        self._folder, self._way_out = folder, way_out
        self._settled = _Known.of(self._load())
        self._recent = _Known.of(())
        self._file = self._new_file()

    def find(self, wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """First byte of each record, and whether it is known."""
        starts, is_there = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
        for known in (self._settled, self._recent):
            known.find(wanted, starts, is_there)
        return starts, is_there

    def add(self, found: pa.Table) -> None:
        """Keep more of them.

        Args:
            found: Of `formats.lmdb_index.SCHEMA`, without nulls.
        """
        if not found.num_rows:
            return
        self._recent = _Known.of([self._recent.table, found])
        self._write(self._recent.table, self._file)
        if self._recent.table.num_rows >= SETTLED_ROWS:
            self._settled = _Known.of([self._settled.table, self._recent.table])
            self._recent, self._file = _Known.of(()), self._new_file()

    def _new_file(self) -> Path:
        return self._folder / f"{uuid.uuid4().hex}.parquet"

    def _load(self) -> list[pa.Table]:
        tables, files = [], []
        for file in sorted(self._folder.glob("*.parquet")):
            try:
                table = parquet.read_table(file, SCHEMA.names, name=str(file)).cast(SCHEMA)
            except FileNotFoundError:  # another process has just made one of several
                continue
            except (OSError, ChecksumError, pa.ArrowException) as error:
                logger.warning("%s: damaged, looked up anew (%s)", file, error)
            else:
                tables.append(table)
            files.append(file)
        # Not before the new one is whole are the old ones taken away.
        if len(files) > _MOST_FILES and self._write(_Known.of(tables).table, self._new_file()):
            for file in files:
                with suppress(OSError):
                    file.unlink()
        return tables

    def _write(self, table: pa.Table, file: Path) -> bool:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as new:
                pq.write_table(table, new, compression="zstd", write_page_checksum=True)
        except OSError as error:
            what = "%s: cannot keep what was looked up (%s); %s names another folder"
            logger.warning(what, file, error, self._way_out)
            return False
        return True
