"""The official metadata files of a source: those that are named, or those in or beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from reben_cloud.bigearthnet import official
from reben_cloud.errors import SourceError
from reben_cloud.root.documents import check_exported
from reben_cloud.store import Store

OFFICIAL_METADATA = (official.METADATA, official.EXTRA_METADATA)
"""Names of the two official metadata files."""


def read_metadata(stores: Sequence[Store], paths: Sequence[str | os.PathLike[str]]) -> pa.Table:
    """The rows of the metadata files of some sources that belong together, sorted by ``patch_id``.

    Args:
        stores: Where the sources are; with one, files are looked for in it and beside it, with several in and beside
            any of them. What is found twice counts once.
        paths: The files, if they are named.

    Raises:
        SourceError: If there are none, or they are not the official ones.
    """
    if paths:
        return official.read_official(paths)
    if len(stores) == 1:
        tables = [official.read_official(found)] if (found := _local(stores[0])) else _remote(stores[0])
    else:
        files = dict.fromkeys(file.resolve() for store in stores for file in _local(store))
        tables = [official.read_official([file]) for file in files]
        tables += [table for store in stores if store.local_path() is None for table in _remote(store)]
    if not tables:
        raise SourceError(_none(stores))
    return official.joined_official(tables)


def _local(store: Store) -> list[Path]:
    """The files in the folder of a store, else those beside it."""
    path = store.local_path()
    if path is None:
        return []
    folder = path if path.is_dir() else path.parent
    for place in (folder, folder.parent):
        if found := sorted(place.glob("metadata*.parquet")):
            for file in found:
                check_exported(file)
            return found
    return []


def _remote(store: Store) -> list[pa.Table]:
    """The rows of the files under their official names at a URL."""
    return [] if store.local_path() is not None else list(_fetched(store))


def _fetched(store: Store) -> Iterator[pa.Table]:
    with tempfile.TemporaryDirectory() as copies:
        for name in OFFICIAL_METADATA:
            try:
                data = store.get(name)
            except FileNotFoundError:
                continue
            copy = Path(copies) / name
            copy.write_bytes(data)
            yield official.read_official([copy])


def _none(stores: Sequence[Store]) -> str:
    first = stores[0]
    if (folder := first.local_path()) is None:
        return f"{first.url}: no {official.METADATA} there; name the official files (--metadata)"
    where = " or ".join(str(store.local_path() or store.url) for store in stores) if stores[1:] else folder
    if folder.is_file() and not stores[1:]:
        where = folder.parent
    return (
        f"{where}: no metadata*.parquet in or beside it, which says what its patches are; put the official "
        f"{official.METADATA} there, or name it where it is (--metadata of build and index)"
    )
