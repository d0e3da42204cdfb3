"""An LMDB that is hosted somewhere: found by its URL, with the metadata beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from reben_cloud.bigearthnet import official
from reben_cloud.errors import SourceError
from reben_cloud.formats.lmdb_index import RemoteLmdb
from reben_cloud.root.references import RemoteObject
from reben_cloud.store import Store

DATA = "data.mdb"
"""Name of an LMDB's file."""

_MOST_FOLDERS = 16
"""Folders that are looked into when none is named like an LMDB: each is a request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostedLmdb:
    """An LMDB at a URL."""

    store: Store
    """Where the LMDB lies."""
    path: str
    """Its file, below the store."""

    @property
    def url(self) -> str:
        """The file."""
        return self.store.child(self.path).url

    def describe(self) -> RemoteObject:
        """The file as it is now.

        Raises:
            FileNotFoundError: If it is gone.
            StorageError: If the store fails or refuses.
        """
        there = self.store.stat(self.path)
        return RemoteObject(url=self.url, nbytes=there.size, version=there.version)

    def pages(self, remote: RemoteObject, *, threads: int = 16) -> RemoteLmdb:
        """The reader of the file's pages, as long as it is this version.

        Raises:
            SourceError: If it is no LMDB that is read, or cut short.
            StorageError: If the store fails or refuses.
        """
        read = partial(self.store.get_range, self.path, version=remote.version)
        return RemoteLmdb(read, remote.nbytes, threads=threads, name=remote.url)

    def read_metadata(self, paths: Sequence[str | os.PathLike[str]] = ()) -> pa.Table:
        """The official metadata: from these files, or from those in the LMDB's folder, or in the one above.

        Raises:
            SourceError: If there are none, or they are not the official ones.
        """
        if paths:
            return official.read_official(paths)
        # Looked for only when they are needed: not every server lets its folders be listed, or says what is not there.
        found = _metadata_near(self.store)
        if not found:
            raise SourceError(
                f"{self.url}: no metadata*.parquet in or beside it; index it with the official files "
                "(reben-cloud index URL ROOT --metadata FILE) and use the index"
            )
        with tempfile.TemporaryDirectory() as folder:
            copies = []
            for number, (store, name) in enumerate(found):
                copies.append(Path(folder) / f"{number}-{os.path.basename(name)}")
                copies[-1].write_bytes(store.get(name))
            return official.read_official(copies)


def find_hosted(store: Store) -> HostedLmdb | None:
    """The LMDB at a URL, which may name its file, its folder or the folder above; None if there is none.

    Raises:
        SourceError: If there are several.
        StorageError: If the store cannot be reached or refuses.
    """
    store = store.pinned()
    above, name = store.parent()
    if name == DATA:
        return HostedLmdb(store=above, path=DATA)
    if store.exists(DATA):
        return HostedLmdb(store=store, path=DATA)
    found = [name for name in _one_below(store) if name.rpartition("/")[2] == DATA]
    if len(found) > 1:
        raise SourceError(f"{store.url} holds several LMDBs, name one: {', '.join(sorted(found))}")
    if not found:
        return None
    return HostedLmdb(store=store.child(found[0].rpartition("/")[0]), path=DATA)


def _metadata_near(folder: Store) -> tuple[tuple[Store, str], ...]:
    """The metadata files in the folder of an LMDB, or in the one above, or in folders beside it."""
    if found := _metadata_in(folder, _right_in(folder)):
        return found
    try:
        above = folder.parent()[0]
        return _metadata_in(above, _right_in(above)) or _metadata_in(above, _one_below(above))
    except ValueError:  # there is nothing above the top of a bucket or a repository
        return ()


def _right_in(store: Store) -> list[str]:
    """Files of a folder. A web server lists nothing: the names that an LMDB and its metadata most often have."""
    if store.url.startswith(("http://", "https://")):
        return [name for name in (DATA, "metadata.parquet", official.EXTRA_METADATA) if store.exists(name)]
    return [path for path, _ in store.list_folder().files]


def _one_below(store: Store) -> list[str]:
    """Files of the folders in a folder: of those that are named like an LMDB, or else of a few, never of all below."""
    if store.url.startswith(("http://", "https://")):
        return []
    folders = store.list_folder().folders
    named = [folder for folder in folders if folder.endswith(".lmdb")]
    return [
        file for folder in (named or folders)[:_MOST_FOLDERS] for file, _ in store.list_folder(folder).files
    ]


def _metadata_in(store: Store, names: Iterable[str]) -> tuple[tuple[Store, str], ...]:
    last = ((name, name.rpartition("/")[2]) for name in names)
    return tuple(
        (store, name)
        for name, file in sorted(last)
        if file.startswith("metadata") and file.endswith(".parquet")
    )
