"""Places of records in a remote LMDB, looked up when they are asked for and kept for the next time."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing
from reben_cloud.formats import parquet
from reben_cloud.formats.lmdb_index import SCHEMA, RemoteLmdb
from reben_cloud.hosted.lmdb import HostedLmdb
from reben_cloud.root.references import Found, RemoteObject
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "REBEN_CACHE"
"""Environment variable that names the folder for what is kept of remote datasets."""


def cache_folder() -> Path:
    """Where what was looked up in remote objects is kept: ``$REBEN_CACHE``, or ``reben_cloud`` in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return local_path(named, CACHE_VARIABLE)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reben_cloud"


def name_of(remote: RemoteObject) -> str:
    """Names this version of an object among what is kept."""
    return hashlib.sha256(f"{remote.url}\n{remote.version}".encode()).hexdigest()[:24]


class _Known(NamedTuple):
    """Places that were looked up, by rising keys: they are found one at a time while a build reads."""

    table: pa.Table
    keys: NDArray[np.bytes_]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table) -> _Known:
        table = table.sort_by("key")
        keys = np.array(table.column("key").to_pylist(), np.bytes_)
        return cls(table, keys, table.column("offset").to_numpy())

    def find(self, wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The row of each key, and whether it is there."""
        rows = np.searchsorted(self.keys, wanted)
        is_there = rows < len(self.keys)
        is_there[is_there] = self.keys[rows[is_there]] == wanted[is_there]
        return rows, is_there


class LmdbFinder:
    """Looks the places of records up in a remote LMDB, and keeps them in the cache folder for the next time.

    Args:
        hosted: The LMDB.
        remote: Its file as it was when it was opened.
        threads: Requests at a time.
    """

    def __init__(self, hosted: HostedLmdb, remote: RemoteObject, *, threads: int = 16) -> None:
        self.hosted, self.remote, self._threads = hosted, remote, threads
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._opened: RemoteLmdb | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LmdbFinder, threads=self._threads), (self.hosted, self.remote)

    @property
    def place(self) -> tuple[Store, str]:
        """Store and path of the file."""
        return self.hosted.store, self.hosted.path

    @property
    def cache_file(self) -> Path:
        """Where places are kept; another file when the object was written again."""
        return cache_folder() / "places" / f"{name_of(self.remote)}.parquet"

    def find(self, keys: Sequence[str]) -> Found:
        """Where these records lie.

        Raises:
            NotFoundError: If one is not there.
            SourceError: If the LMDB is damaged.
        """
        wanted = np.array([key.encode() for key in keys], np.bytes_)
        with self._lock:
            known = self._known or _Known.of(self._load())
            rows, is_there = known.find(wanted)
            if not is_there.all():
                missing = np.unique(wanted[~is_there]).tolist()
                found = self._pages().lookup(missing)
                known = _Known.of(
                    pa.concat_tables([known.table, found.filter(pc.is_valid(found.column("offset")))])
                )
                rows, is_there = known.find(wanted)
                self._keep(known.table)
            self._known = known
        if not is_there.all():
            absent = wanted[~is_there]
            raise NotFoundError(
                f"{self.remote.url}: no record {absent[0].decode()!r} ({len(absent):,} such records): "
                "the metadata beside it name patches that it lacks; `reben-cloud index` makes a root of those it has"
            )
        return Found(np.zeros(len(rows), np.int64), known.starts[rows])

    def _pages(self) -> RemoteLmdb:
        if self._opened is None:
            self._opened = self.hosted.pages(self.remote, threads=self._threads)
        return self._opened

    def _load(self) -> pa.Table:
        try:
            return parquet.read_table(self.cache_file, SCHEMA.names, name=str(self.cache_file)).cast(SCHEMA)
        except FileNotFoundError:
            pass
        except (OSError, ChecksumError, pa.ArrowException) as error:
            logger.warning("%s: damaged, looked up anew (%s)", self.cache_file, error)
        return SCHEMA.empty_table()

    def _keep(self, known: pa.Table) -> None:
        file = self.cache_file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as new:
                pq.write_table(known, new, compression="zstd", write_page_checksum=True)
        except OSError as error:
            what = "%s: cannot keep what was looked up (%s); %s names another folder"
            logger.warning(what, file, error, CACHE_VARIABLE)
