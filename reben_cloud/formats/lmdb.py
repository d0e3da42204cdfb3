"""LMDB folders as rico-hdl writes them: one unnamed database, UTF-8 keys, one payload a key.

Read by `lmdb_file`, without a mapping; written by LMDB itself. This module knows keys and bytes, not
selections or metadata.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reben_cloud.bigearthnet.bands import MODALITIES
from reben_cloud.errors import NotFoundError, SourceError, StorageError, missing_extra
from reben_cloud.formats.lmdb_file import LmdbFile
from reben_cloud.formats.lmdb_pages import MAP_SIZE_OFFSETS, PAGE_BYTES, pages_of
from reben_cloud.root.patch import Buffer, Patch, PatchInfo, check_payload, lmdb_key
from reben_cloud.store import file_version

try:
    import lmdb
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("lmdb", "lmdb") from error

logger = logging.getLogger(__name__)

TRANSACTION_RECORDS = 512
"""Records that rico-hdl puts in one transaction."""


def is_lmdb(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds an LMDB environment."""
    return (Path(folder) / "data.mdb").is_file()


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
        yield _text(key)


def num_records(folder: str | os.PathLike[str]) -> int:
    """How many records it has."""
    return open_lmdb(folder).num_records


def modalities_of(folder: str | os.PathLike[str]) -> list[str]:
    """The modalities that an LMDB's keys say it has; the keys of one are not all read if more is soon found."""
    found = set()
    for key in open_lmdb(folder).iter_keys():
        modality = _MODALITY.get(key[:4])
        if modality is not None:
            found.add("map" if key.endswith(_MAP_SUFFIX) else modality)
            if len(found) == len(MODALITIES):
                break
    return [modality for modality in MODALITIES if modality in found]


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
        StorageError: If LMDB cannot write, be it for want of room.
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
            os.pwrite(handle.fileno(), map_size.to_bytes(8, "little"), offset)
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


_MAP_SUFFIX = b"_reference_map"
_MODALITY = {f"S{sensor}{satellite}_".encode(): f"s{sensor}" for sensor in (1, 2) for satellite in "ABCD"}
_V1_UNDERSCORES = 4  # S2A_MSIL2A_20170613T101031_87_48; of v2 it is seven
_CHECKED_RECORDS = 256


@dataclass(frozen=True, slots=True)
class LmdbSource:
    """The records of an LMDB folder that rico-hdl or `reben-cloud export` wrote."""

    folder: str
    """The folder that holds ``data.mdb``."""
    only: tuple[str, ...] = ()
    """Modalities to look at; all when empty."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modality that it lacks -> what is near it, looks like that modality and is not taken (`recognise`)."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "rico-hdl LMDB"

    def describe(self) -> str:
        """One line for people."""
        return f"rico-hdl LMDB {self.folder}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality, from the keys; a few hundred records of each are looked at, the others when they are read.

        Keys that are not records (``__len__`` and the like) are left out, with a warning that counts them.

        Raises:
            SourceError: If it has no records of BigEarthNet v2, or some of v1.
            InvalidPatchError: If a record has other tensors, dtypes or shapes; it names the record.
        """
        found: dict[str, list[str]] = {}
        foreign: list[bytes] = []
        # Keys alone: a value's size is on its own first page, and 1.6 million of those take minutes to read.
        file = open_lmdb(self.folder)
        for key in file.iter_keys():
            modality, name = _MODALITY.get(key[:4]), key.removesuffix(_MAP_SUFFIX)
            if modality is None:
                foreign.append(key)
                continue
            if len(name) < len(key):
                modality = "map"
            if self.only and modality not in self.only:
                continue
            if modality == "s2" and key.count(b"_") == _V1_UNDERSCORES:
                raise SourceError(
                    f"{self.folder}: the record {_text(key)!r} is named as BigEarthNet v1 names its patches; "
                    "a root is made of v2's"
                )
            found.setdefault(modality, []).append(_text(name))
        for modality, names in found.items():
            for one in [*names[:: -(-len(names) // _CHECKED_RECORDS)], names[-1]]:
                record = f"{one}{_text(_MAP_SUFFIX)}" if modality == "map" else one
                payload = file.get(record.encode()) or b""
                check_payload(modality, payload, name=f"{self.folder}: record {record!r}")
        lacking = [modality for modality in self.only if modality not in found]
        if lacking:
            raise SourceError(f"{self.folder}: an LMDB without records of {' and '.join(lacking)}")
        if not found:
            keys_are = (
                f"; its keys are like {_text(foreign[0])!r} ({len(foreign):,} keys)"
                if foreign
                else ", it is empty"
            )
            raise SourceError(
                f"{self.folder}: an LMDB without records of BigEarthNet v2{keys_are}. Records in "
                "named databases inside it are not read"
            )
        if foreign:
            logger.warning(
                "%s: %s that are not records of BigEarthNet v2 are left out, the first is %r",
                self.folder,
                f"{len(foreign):,} {'key' if len(foreign) == 1 else 'keys'}",
                _text(foreign[0]),
            )
        return found

    def identity(self) -> Mapping[str, str]:
        """Size and time of ``data.mdb``."""
        return {"data.mdb": file_version(Path(self.folder, "data.mdb"))}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: the file holds many patches."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch."""
        wanted = [lmdb_key(m, info) for m in modalities]
        values = read_many(self.folder, wanted)
        for modality, key, value in zip(modalities, wanted, values, strict=True):
            check_payload(modality, value, name=f"{self.folder}: record {key!r}")
        return Patch(info=info, payloads=dict(zip(modalities, values, strict=True)))


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
