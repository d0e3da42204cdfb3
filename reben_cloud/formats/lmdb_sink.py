"""A new ``data.mdb`` in which every payload has its place from the start, filled in any order."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import StorageError
from reben_cloud.files.system import disk_bytes, open_file, pread, write_at, write_pieces_at
from reben_cloud.formats import lmdb
from reben_cloud.formats.lmdb_pages import PAGE_BYTES, VALUE_OFFSET, plan_pages
from reben_cloud.schema import Buffer, Modality

MAX_MAP_SIZE = 2**47
"""Address space of a process on x86-64; rico-hdl asks for 100 TiB of it."""


class Keyed(Protocol):
    """What is to be stored: a key and a modality a record."""

    @property
    def modalities(self) -> Sequence[Modality]:
        """What there is."""

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """Keys, rising, shape (n,)."""

    @property
    def code(self) -> NDArray[np.uint8]:
        """Modality of each, counted in `modalities`, shape (n,)."""


class LmdbSink:
    """The file of an export while it is made.

    Args:
        folder: Where ``data.mdb`` goes.
        records: What goes in it.
        map_size: What the file is to say of its map size, bytes; its own size by default.

    Raises:
        ValueError: If LMDB could not open the file with that map size.
    """

    def __init__(self, folder: Path, records: Keyed, *, map_size: int | None) -> None:
        sizes = np.array([m.payload_bytes for m in records.modalities], np.int32)[records.code]
        self._layout = plan_pages(records.keys, sizes)
        self._folder, self._records, self._map_size = folder, records, map_size
        self._file: int | None = None
        size = self._layout.nbytes
        if map_size is not None and not (size <= map_size <= MAX_MAP_SIZE and map_size % PAGE_BYTES == 0):
            raise ValueError(
                f"map_size must be a multiple of {PAGE_BYTES:,} from {size:,} (what the data takes) to "
                f"{MAX_MAP_SIZE:,} (what a process can map), got {map_size:,}"
            )
        self._as_rico_hdl = bool(np.bincount(records.code).max() <= lmdb.TRANSACTION_RECORDS)
        self.nbytes = size * (2 if self._as_rico_hdl else 1)
        """Most that the file takes while it is made, with its copy."""

    def present_bytes(self) -> int:
        """What the file takes on the disk now."""
        try:
            return disk_bytes(self._path)
        except FileNotFoundError:
            return 0

    def open(self) -> bool:
        """Make the file, or open that of an earlier run; whether there was one."""
        there = self._path.exists()
        self._file = open_file(self._path, os.O_RDWR | os.O_CREAT)
        _reserve(self._file, self._layout.nbytes)
        return there

    def write(self, number: int, payload: Buffer) -> None:
        """Put a payload in its place; safe for many threads."""
        assert self._file is not None
        start = self._layout.value_offset(number) - VALUE_OFFSET
        header = self._layout.value_header(number)
        write_pieces_at(self._file, [header, payload], start)

    def read(self, number: int) -> bytes | None:
        """What lies in a payload's place; None when nothing was written there."""
        assert self._file is not None
        start = self._layout.value_offset(number)
        if pread(self._file, VALUE_OFFSET, start - VALUE_OFFSET) != self._layout.value_header(number):
            return None
        return pread(self._file, int(self._layout.sizes[number]), start)

    def sync(self) -> None:
        """Bring what was written so far to the disk."""
        assert self._file is not None
        os.fsync(self._file)

    def finish(self) -> int:
        """Write tree and meta pages, sync, and let LMDB itself look at the file.

        Raises:
            StorageError: If LMDB does not find what was written, or the disk is full.
        """
        assert self._file is not None
        for number, page in enumerate(self._layout.tree(), self._layout.tree_page):
            write_at(self._file, page, number * PAGE_BYTES)
        write_at(self._file, self._layout.meta(self._layout.nbytes), 0)
        os.fsync(self._file)
        self.close()
        with lmdb.create_environment(self._folder, map_size=self._layout.nbytes) as env:
            if env.stat()["entries"] != len(self._records.keys):
                raise StorageError(f"{self._path}: LMDB finds {env.stat()['entries']:,} records in it")
            if self._as_rico_hdl:
                self._rewrite(env)
        size = self._path.stat().st_size
        lmdb.set_map_size(self._path, size if self._map_size is None else self._map_size)
        return size

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @property
    def _path(self) -> Path:
        return self._folder / "data.mdb"

    def _rewrite(self, env: Any) -> None:
        """Give a small file the bytes that rico-hdl's transactions would have given it."""
        copy = self._folder / "copy"
        with env.begin(buffers=True) as txn:

            def records_of(modality: str) -> Iterator[tuple[bytes, Buffer]]:
                names = [one.name for one in self._records.modalities]
                if modality in names:
                    mine = self._records.code == names.index(modality)
                    for key in self._records.keys[mine].tolist():
                        yield key, txn.get(key)

            # As rico-hdl does: by name, those with a suffix last.
            order = sorted(self._records.modalities, key=lambda m: (bool(m.key_suffix), m.name))
            try:
                shutil.rmtree(copy, ignore_errors=True)
                lmdb.put_as_rico_hdl(copy, [records_of(m.name) for m in order])
                os.replace(copy / "data.mdb", self._path)
            finally:
                shutil.rmtree(copy, ignore_errors=True)


def _reserve(file: int, nbytes: int) -> None:
    """Give a file its size, and its room on the disk where the file system can: nobody else takes it meanwhile.

    Not `os.posix_fallocate`, which writes to every page where the file system cannot.
    """
    os.ftruncate(file, nbytes)
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if fallocate and fallocate(file, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        number = ctypes.get_errno()
        if number == errno.ENOSPC:
            raise OSError(number, os.strerror(number))
