"""Files of this machine: written whole or not at all, locked, synced. One way to do each.

This module knows no format, and nothing of object stores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from reben_cloud.files.system import lock_or_fail, open_file, require_locks, sync_folder_or_file

Path_ = str | os.PathLike[str]

POLL_S = 0.05
"""How often a lock that another process holds is asked for again."""


@contextmanager
def replacing(path: Path_, *, sync: bool = False) -> Iterator[Path]:
    """A new name beside `path`, to write to; it takes the place of `path` at the end, and goes on an error.

    Whoever reads `path` sees the old file or the new one. Several processes may do this at the same
    time: the last one stays.

    Args:
        path: The file to be.
        sync: Bring the file and its name to the disk: it is then there after a power failure.
    """
    target = Path(path)
    # Hidden, and with a name of its own: another process may be writing the same file.
    new = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        yield new
        if sync:
            sync_path(new)
        os.replace(new, target)
        if sync:
            sync_path(target.parent)
    finally:
        with suppress(FileNotFoundError):
            new.unlink()


def write_whole(path: Path_, data: bytes | memoryview, *, sync: bool = False) -> None:
    """Write a file so that it is there as a whole or not at all; see `replacing`."""
    with replacing(path, sync=sync) as new:
        new.write_bytes(data)


def sync_path(path: Path_) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    sync_folder_or_file(path)


class Locked(OSError):  # noqa: N818 - a state, which callers explain in their own words
    """Another process holds the lock."""


@contextmanager
def locked(path: Path_, *, wait: bool = False, create: bool = True) -> Iterator[int]:
    """Hold the lock of a file or folder; its open file is given.

    The lock goes with the process that holds it, however that ends. A file that its holder removes or
    renames while others wait for it is no longer the one to lock: they take the new one.

    Args:
        path: A file, or a folder that exists.
        wait: Wait until it is free.
        create: Make the file if it is not there.

    Raises:
        Locked: If another process holds it and `wait` is not set.
        FileNotFoundError: If it is not there and `create` is not set.
    """
    require_locks(f"keeping {os.fspath(path)} up to date")
    handle = _lock(path, wait=wait, create=create)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(path: Path_, *, wait: bool, create: bool) -> int:
    is_folder = os.path.isdir(path)
    while True:
        flags = os.O_RDONLY if is_folder else os.O_RDWR | (os.O_CREAT if create else 0)
        handle = open_file(path, flags)
        try:
            _flock(handle, path, wait=wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # removed or replaced by its holder while we waited


def _flock(handle: int, path: Path_, *, wait: bool) -> None:
    while True:
        try:
            # Not the blocking form: it would not answer to Ctrl-C in a thread other than the first.
            lock_or_fail(handle, f"keeping {os.fspath(path)} up to date")
            return
        except BlockingIOError as error:
            if not wait:
                raise Locked(f"{os.fspath(path)} is in use by another process") from error
            time.sleep(POLL_S)
