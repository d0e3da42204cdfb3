"""LMDB folders as rico-hdl writes them: one unnamed database, UTF-8 keys, one payload a key.

Read by `lmdb_file`, without a mapping; written by LMDB itself. This module knows keys and bytes, not
selections or metadata.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reben_cloud.errors import NotFoundError, StorageError, missing_extra
from reben_cloud.files.system import write_at
from reben_cloud.formats.lmdb_file import LmdbFile
from reben_cloud.formats.lmdb_pages import MAP_SIZE_OFFSETS, PAGE_BYTES, pages_of
from reben_cloud.schema import Buffer

try:
    import lmdb
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("lmdb", "lmdb") from error

logger = logging.getLogger(__name__)

TRANSACTION_RECORDS = 512
"""Records that rico-hdl puts in one transaction."""


def open_lmdb(folder: str | os.PathLike[str]) -> LmdbFile:
    """The LMDB of `folder`, to read. A file that was replaced or written to since is opened again.

    Raises:
        NotFoundError: If there is none.
        SourceError: If the file is not an LMDB database, or cut short.
    """
    path = os.path.realpath(folder)
    try:
        status = os.stat(os.path.join(path, "data.mdb"))
        return _opened(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not an LMDB folder: it has no data.mdb") from None


@functools.lru_cache(maxsize=8)
def _opened(path: str, *_identity: int) -> LmdbFile:
    return LmdbFile(os.path.join(path, "data.mdb"))


def keys(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Every key, in LMDB's byte order."""
    for key in open_lmdb(folder).iter_keys():
        yield text_of(key)


def num_records(folder: str | os.PathLike[str]) -> int:
    """How many records it has."""
    return open_lmdb(folder).num_records


def read_many(folder: str | os.PathLike[str], wanted: Iterable[str]) -> list[bytes]:
    """The values of the keys `wanted`.

    Raises:
        NotFoundError: If a key is missing.
    """
    file, found = open_lmdb(folder), []
    for key in wanted:
        value = file.get(key.encode())
        if value is None:
            raise NotFoundError(f"{os.fspath(folder)}: no record {key!r}")
        found.append(value)
    return found


def put_as_rico_hdl(
    folder: str | os.PathLike[str],
    passes: Iterable[Iterable[tuple[bytes, Buffer]]],
    *,
    map_size: int | None = None,
) -> int:
    """Write a new LMDB folder with rico-hdl's own transactions, so that the same records give its bytes.

    Args:
        folder: The new folder.
        passes: Records (key, value) of S1, of S2, of the maps; each with keys rising.
        map_size: What the file is to say of its map size, bytes; by default what it takes.

    Returns:
        Number of records.

    Raises:
        StorageError: If the disk is full.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    batches = [batch for records in passes for batch in _batches(records)]
    # Pages that a transaction gives up are not all used again: a leaf and its branch a record at most.
    pages = sum(pages_of(len(value)) + 2 for batch in batches for _, value in batch)
    room = (pages + 64) * PAGE_BYTES
    # Not the map size that is wanted: rico-hdl's 100 TiB cannot be mapped by every Python.
    with create_environment(folder, map_size=room) as env:
        for batch in batches:
            with env.begin(write=True) as txn:
                for key, value in batch:
                    txn.put(key, value, overwrite=False)
        env.sync(True)
    file = Path(folder) / "data.mdb"
    set_map_size(file, file.stat().st_size if map_size is None else map_size)
    return sum(len(batch) for batch in batches)


@contextmanager
def create_environment(folder: str | os.PathLike[str], *, map_size: int) -> Iterator[Any]:
    """An environment to write to, with its ``lock.mdb``; closed at the end.

    Raises:
        StorageError: If LMDB cannot write, perhaps for lack of room.
    """
    try:
        with lmdb.open(os.fspath(folder), map_size=map_size) as env:
            yield env
    except lmdb.Error as error:
        # On a full disk LMDB says "Input/output error" as often as "No space left on device".
        free = shutil.disk_usage(folder).free / 1e6
        raise StorageError(
            f"cannot write {os.fspath(folder)}/data.mdb: {error}, with {free:,.1f} MB free on the disk; "
            "make room and run the same command again"
        ) from error


def set_map_size(file: Path, map_size: int) -> None:
    """Write the map size into both meta pages of a closed LMDB file, and sync it."""
    with file.open("r+b") as handle:
        for offset in MAP_SIZE_OFFSETS:
            write_at(handle.fileno(), map_size.to_bytes(8, "little"), offset)
        os.fsync(handle.fileno())


def _batches(records: Iterable[tuple[bytes, Buffer]]) -> Iterator[list[tuple[bytes, Buffer]]]:
    batch = []
    for record in records:
        batch.append(record)
        if len(batch) == TRANSACTION_RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch


def text_of(key: bytes) -> str:
    """A key as text, whatever its bytes are."""
    return key.decode("utf-8", "backslashreplace")
