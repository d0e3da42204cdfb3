"""Places of records in a remote LMDB, looked up when they are asked for and kept for the next time."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import NotFoundError
from reben_cloud.files.whole import replacing
from reben_cloud.formats import lmdb_index
from reben_cloud.hosted.lmdb import HostedLmdb
from reben_cloud.root.backing import Found
from reben_cloud.root.patch import Patch, PatchInfo, key_of
from reben_cloud.root.references import RemoteObject, RemoteObjects, Span
from reben_cloud.sources import Official

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "REBEN_CACHE"
"""Environment variable that names the folder for what is kept of remote datasets."""

_PLACES = pa.schema([("key", pa.binary()), ("offset", pa.int64()), ("nbytes", pa.int64())])


def cache_folder() -> Path:
    """Where what was looked up in remote objects is kept: ``$REBEN_CACHE``, or ``reben_cloud`` in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reben_cloud"


class LmdbFinder:
    """Looks the places of records up in a remote LMDB, and keeps them in the cache folder for the next time.

    Args:
        hosted: The LMDB.
        remote: Its file as it was when it was opened.
        storage_options: Credentials of its store.
        threads: Requests at a time.
    """

    def __init__(
        self,
        hosted: HostedLmdb,
        remote: RemoteObject,
        storage_options: Mapping[str, Any] | None = None,
        *,
        threads: int = 16,
    ) -> None:
        self.hosted, self.remote, self._threads = hosted, remote, threads
        self.objects = RemoteObjects([remote], storage_options)
        """The file, to read payloads from."""
        self._storage_options = dict(storage_options or {})
        self._lock = threading.Lock()
        self._known: pa.Table | None = None

    def __getstate__(self) -> dict[str, object]:
        return {
            "hosted": self.hosted,
            "remote": self.remote,
            "storage_options": self._storage_options,
            "threads": self._threads,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def cache_file(self) -> Path:
        """Where places are kept; another file when the object was written again."""
        name = hashlib.sha256(f"{self.remote.url}\n{self.remote.version}".encode()).hexdigest()[:24]
        return cache_folder() / "places" / f"{name}.parquet"

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
                found = lmdb_index.lookup(
                    self.hosted.read, self.remote.nbytes, missing.to_pylist(), threads=self._threads
                )
                known = pa.concat_tables([known, found.select(_PLACES.names).cast(_PLACES)]).combine_chunks()
                rows = pc.index_in(wanted, known.column("key").combine_chunks())
                self._keep(known)
            self._known = known
        if rows.null_count:
            absent = wanted.filter(pc.is_null(rows))
            raise NotFoundError(
                f"{self.remote.url}: no record {absent[0].as_py().decode()!r} ({len(absent):,} such records): "
                "the metadata name patches that it does not have; take the metadata of this LMDB (--metadata)"
            )
        starts = known.column("offset").take(rows).to_numpy().astype(np.int64)
        return Found(np.zeros(len(starts), np.int64), starts)

    def _load(self) -> pa.Table:
        try:
            return pq.read_table(self.cache_file, schema=_PLACES, page_checksum_verification=True)
        except FileNotFoundError:
            pass
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s: damaged, looked up anew (%s)", self.cache_file, error)
        return _PLACES.empty_table()

    def _keep(self, known: pa.Table) -> None:
        file = self.cache_file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as new:
                pq.write_table(known, new, compression="zstd", write_page_checksum=True)
        except OSError as error:
            what = "%s: cannot keep what was looked up (%s); %s names another folder"
            logger.warning(what, file, error, CACHE_VARIABLE)


@dataclass(frozen=True, slots=True)
class HostedSource(Official):
    """A hosted LMDB as a source: the places of its records are looked up, and its payloads read by ranges."""

    finder: LmdbFinder
    """Where records lie."""
    held: tuple[str, ...]
    """Modalities that it has."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Credentials of its store."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Nothing is looked for beside it."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "rico-hdl LMDB"

    @property
    def is_remote(self) -> bool:
        """Yes: a read waits for a network."""
        return True

    def describe(self) -> str:
        """One line for people."""
        return f"rico-hdl LMDB {self.finder.remote.url}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Every patch of the metadata; one that is not there is told when it is looked up."""
        return dict.fromkeys(self.held)

    def identity(self) -> Mapping[str, str]:
        """Version of the file."""
        return {self.finder.hosted.path: self.finder.remote.version}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: the file holds many patches."""
        return ""

    def look_up(self, table: pa.Table, modalities: Sequence[str]) -> None:
        """Look the records of many patches up together, which takes far fewer requests than one by one.

        Raises:
            NotFoundError: If one is not there.
        """
        for modality in map(REBEN.modality, modalities):
            names = table.column(modality.key_column).to_pylist()
            self.finder.find([f"{name}{modality.key_suffix}" for name in names])

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch."""
        payloads = {}
        for modality in map(REBEN.modality, modalities):
            key = key_of(modality, info)
            start = int(self.finder.find([key]).start[0])
            span = Span(start, modality.payload_bytes, np.zeros(1, np.int64))
            payload = bytes(self._objects.read(0, [span])[0])
            modality.check(payload, name=f"{self.finder.remote.url}: record {key!r}")
            payloads[modality.name] = payload
        return Patch(info=info, payloads=payloads)

    @property
    def _objects(self) -> RemoteObjects:
        return self.finder.objects


def open_hosted(
    hosted: HostedLmdb, first: Mapping[str, str], storage_options: Mapping[str, Any]
) -> HostedSource:
    """A hosted LMDB as a source.

    Args:
        hosted: The LMDB.
        first: Modality -> key that it has if it has the modality at all.
        storage_options: Credentials of its store.

    Raises:
        NotFoundError: If it has none of them.
    """
    finder = LmdbFinder(hosted, hosted.describe(), storage_options)
    held = []
    for modality, key in first.items():
        try:
            finder.find([key])
        except NotFoundError:
            continue
        held.append(modality)
    if not held:
        raise NotFoundError(
            f"{hosted.url} has no record {next(iter(first.values()))!r}: it is not the LMDB of this metadata, or of "
            "another form; take the metadata of this LMDB (--metadata)"
        )
    return HostedSource(finder, tuple(held), dict(storage_options))
