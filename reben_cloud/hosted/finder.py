"""Places of records in a remote LMDB, looked up when they are asked for and kept for the next time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from reben_cloud.errors import NotFoundError
from reben_cloud.files.cache import CACHE_VARIABLE, cache_folder
from reben_cloud.formats.lmdb_index import RemoteLmdb
from reben_cloud.hosted.indexed import Index, index_of
from reben_cloud.hosted.lmdb import HostedLmdb
from reben_cloud.hosted.places import KeptPlaces
from reben_cloud.root.references import Found, RemoteObject
from reben_cloud.store import Store


def name_of(*remote: RemoteObject) -> str:
    """Names these versions of objects among what is kept."""
    text = "\n".join(f"{one.url}\n{one.version}" for one in remote)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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
        self._kept: KeptPlaces | None = None
        self._opened: RemoteLmdb | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LmdbFinder, threads=self._threads), (self.hosted, self.remote)

    @property
    def place(self) -> tuple[Store, str]:
        """Store and path of the file."""
        return self.hosted.store, self.hosted.path

    @property
    def cache_folder(self) -> Path:
        """Where places are kept; another folder when the object was written again."""
        return cache_folder() / "places" / name_of(self.remote)

    @property
    def num_records(self) -> int:
        """Records of the LMDB. Raises SourceError if it is damaged."""
        with self._lock:
            return self._pages().estimate().entries

    def list_all(self) -> Index:
        """Where all records lie; what was read of them is kept for the next time.

        Raises:
            SourceError: If the LMDB is damaged, or has no records of BigEarthNet v2.
        """
        with self._lock:
            table = self._pages().index(keep=cache_folder() / "places" / f"{name_of(self.remote)}.all")
        return index_of(self.remote, table)

    def find(self, keys: Sequence[str]) -> Found:
        """Where these records lie.

        Raises:
            NotFoundError: If one is not there.
            SourceError: If the LMDB is damaged.
        """
        wanted = np.array([key.encode() for key in keys], np.bytes_)
        with self._lock:
            if self._kept is None:
                self._kept = KeptPlaces(self.cache_folder, way_out=CACHE_VARIABLE)
            starts, is_there = self._kept.find(wanted)
            if not is_there.all():
                found = self._pages().lookup(np.unique(wanted[~is_there]).tolist())
                self._kept.add(found.filter(pc.is_valid(found.column("offset"))))
                starts, is_there = self._kept.find(wanted)
        if not is_there.all():
            absent = wanted[~is_there]
            raise NotFoundError(
                f"{self.remote.url}: no record {absent[0].decode()!r} ({len(absent):,} such records): "
                "the metadata beside it name patches that it lacks; `reben-cloud index` makes a root of those it has"
            )
        return Found(np.zeros(len(starts), np.int64), starts)

    def _pages(self) -> RemoteLmdb:
        if self._opened is None:
            self._opened = self.hosted.pages(self.remote, threads=self._threads)
        return self._opened
