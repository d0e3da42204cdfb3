"""LMDB folders as rico-hdl writes them: one unnamed database, UTF-8 keys, one payload a key.

One environment a process and folder, whatever asks for it: py-lmdb 2 and later refuse to open one
twice. This module knows keys and bytes, not selections or metadata.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reben_cloud.errors import NotFoundError, SourceError, missing_extra
from reben_cloud.patch import PAYLOAD_BYTES, Buffer, Patch, PatchInfo, lmdb_key

try:
    import lmdb
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("lmdb", "lmdb") from error

PAGE_BYTES = 4096
"""LMDB's page size on every platform that BigEarthNet tools run on."""

RECORD_PAGES: Mapping[str, int] = MappingProxyType(
    # 16 bytes of page header come before the value, which lies on pages of its own.
    {m: -(-(size + 16) // PAGE_BYTES) for m, size in PAYLOAD_BYTES.items()}
)
"""Whole pages that a payload takes: s2 40, s1 29, map 8."""

_environments: dict[tuple[int, str], Any] = {}
_lock = threading.Lock()


def is_lmdb(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds an LMDB environment."""
    return (Path(folder) / "data.mdb").is_file()


def open_environment(folder: str | os.PathLike[str]) -> Any:
    """The read-only environment of `folder`, the same object for all of this process.

    Raises:
        NotFoundError: If there is none.
        SourceError: If the file is no LMDB database.
    """
    path = os.path.realpath(folder)
    if not is_lmdb(path):
        raise NotFoundError(f"{path} is not an LMDB folder: it has no data.mdb")
    with _lock:
        key = (os.getpid(), path)
        if key not in _environments:
            try:
                _environments[key] = lmdb.open(
                    path, readonly=True, lock=False, readahead=False, meminit=False, max_readers=512
                )
            except lmdb.Error as error:
                raise SourceError(f"{path}: not a readable LMDB database ({error})") from error
        return _environments[key]


def keys(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Every key, in LMDB's byte order."""
    with open_environment(folder).begin() as txn:
        for key in txn.cursor().iternext(keys=True, values=False):
            yield bytes(key).decode()


def read_many(folder: str | os.PathLike[str], wanted: Iterable[str]) -> list[bytes]:
    """The values of the keys `wanted`, copied.

    Raises:
        NotFoundError: If a key is missing.
    """
    found = []
    with open_environment(folder).begin(buffers=True) as txn:
        for key in wanted:
            value = txn.get(key.encode())
            if value is None:
                raise NotFoundError(f"{folder}: no record {key!r}")
            found.append(bytes(value))
    return found


def map_size_for(num_records: Mapping[str, int]) -> int:
    """A map size that holds so many records a modality, with room for LMDB's tree."""
    pages = sum(RECORD_PAGES[m] * n for m, n in num_records.items())
    # A leaf page holds about 50 keys of 50 bytes; half-full pages and free lists are allowed for.
    tree = sum(num_records.values()) // 20 + 64
    return (pages + tree) * PAGE_BYTES


def write(folder: str | os.PathLike[str], records: Iterable[tuple[str, Buffer]], *, map_size: int) -> int:
    """Write a new LMDB folder from records sorted by key, synced to disk.

    Args:
        folder: The new folder.
        records: (key, value), keys rising in byte order.
        map_size: Largest size of the file, bytes.

    Returns:
        Number of records.

    Raises:
        OSError: If the disk is full.
    """
    count = 0
    Path(folder).mkdir(parents=True, exist_ok=True)
    env = lmdb.open(os.fspath(folder), map_size=map_size, writemap=False, metasync=False, sync=False)
    try:
        txn = env.begin(write=True)
        for key, value in records:
            txn.put(key.encode(), bytes(value), append=True)
            count += 1
            if count % 512 == 0:
                txn.commit()
                txn = env.begin(write=True)
        txn.commit()
        env.sync(True)
    finally:
        env.close()
    return count


_MAP_SUFFIX = "_reference_map"


@dataclass(frozen=True, slots=True)
class LmdbSource:
    """The records of an LMDB folder that rico-hdl or `reben-cloud export` wrote."""

    folder: str
    """The folder that holds ``data.mdb``."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "rico-hdl LMDB"

    def describe(self) -> str:
        """One line for people."""
        return f"rico-hdl LMDB {self.folder}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality, from the keys."""
        found: dict[str, list[str]] = {}
        for key in keys(self.folder):
            if key.startswith("S1"):
                found.setdefault("s1", []).append(key)
            elif key.endswith(_MAP_SUFFIX):
                found.setdefault("map", []).append(key.removesuffix(_MAP_SUFFIX))
            elif key.startswith("S2"):
                found.setdefault("s2", []).append(key)
            else:
                raise SourceError(f"{self.folder}: key {key!r} is none of BigEarthNet v2")
        return found

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch."""
        wanted = [lmdb_key(m, info) for m in modalities]
        values = read_many(self.folder, wanted)
        return Patch(info=info, payloads=dict(zip(modalities, values, strict=True)))


def find_lmdb(folder: str | os.PathLike[str]) -> str | None:
    """The folder with a ``data.mdb`` at or below `folder`, None if there is none.

    Raises:
        SourceError: If there are several.
    """
    found = []
    for place, below, files in os.walk(folder):
        # Products, scenes and patches of an unpacked dataset: millions of files, and no LMDB.
        below[:] = sorted(name for name in below if not name.startswith(("S1A_", "S1B_", "S2A_", "S2B_")))
        if "data.mdb" in files:
            found.append(place)
    if len(found) > 1:
        raise SourceError(f"{os.fspath(folder)} holds several LMDB folders, name one: {', '.join(found)}")
    return found[0] if found else None
