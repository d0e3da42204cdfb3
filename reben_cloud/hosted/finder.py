"""Places of records in a remote LMDB, looked up when they are asked for and kept for the next time."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing
from reben_cloud.formats import parquet
from reben_cloud.formats.lmdb_index import SCHEMA, RemoteLmdb
from reben_cloud.hosted.lmdb import HostedLmdb
from reben_cloud.root.backing import Found
from reben_cloud.root.references import RemoteObject
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
        self._known: pa.Table | None = None
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
        wanted = pa.array([key.encode() for key in keys], pa.binary())
        with self._lock:
            known = self._load() if self._known is None else self._known
            rows = pc.index_in(wanted, known.column("key").combine_chunks())
            if rows.null_count:
                missing = pc.unique(wanted.filter(pc.is_null(rows)))
                found = self._pages().lookup(missing.to_pylist())
                there = found.filter(pc.is_valid(found.column("offset")))
                known = pa.concat_tables([known, there]).combine_chunks()
                rows = pc.index_in(wanted, known.column("key").combine_chunks())
                self._keep(known)
            self._known = known
        if rows.null_count:
            absent = wanted.filter(pc.is_null(rows))
            raise NotFoundError(
                f"{self.remote.url}: no record {absent[0].as_py().decode()!r} ({len(absent):,} such records): "
                "the metadata beside it name patches that it lacks; `reben-cloud index` makes a root of those it has"
            )
        starts = known.column("offset").take(rows).to_numpy().astype(np.int64)
        return Found(np.zeros(len(starts), np.int64), starts)

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
