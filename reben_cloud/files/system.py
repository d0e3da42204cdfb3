"""What operating systems do differently: open files read and written at a place, locks, and what a machine has.

Linux and macOS have all of it. On Windows reads and writes at a place are done one after the other, and what needs a
lock between processes (exports, the shard cache, kept indexes) says that it cannot be had there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from reben_cloud.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HAS_PLACES = hasattr(os, "pread")
_one_at_a_time = threading.Lock()  # where a read at a place is a seek and a read

Buffer = bytes | bytearray | memoryview


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o644) -> int:
    """`os.open` of bytes: Windows translates the ends of lines where it is not told."""
    return os.open(path, flags | getattr(os, "O_BINARY", 0), mode)


def pread(file: int, nbytes: int, start: int) -> bytes:
    """`os.pread`: up to `nbytes` bytes from byte `start`."""
    if _HAS_PLACES:
        return os.pread(file, nbytes, start)
    with _one_at_a_time:
        os.lseek(file, start, os.SEEK_SET)
        return os.read(file, nbytes)


def write_at(file: int, data: Buffer, start: int) -> None:
    """Write all of `data` from byte `start` on.

    Raises:
        OSError: If the disk is full, or fails.
    """
    rest = memoryview(data).cast("B")
    while rest.nbytes:  # a disk about to be full takes a part, and refuses the rest
        count = _pwrite(file, rest, start)
        rest, start = rest[count:], start + count


def _pwrite(file: int, data: Buffer, start: int) -> int:
    """`os.pwrite`: how many bytes of `data` were written at byte `start`."""
    if _HAS_PLACES:
        return os.pwrite(file, data, start)
    with _one_at_a_time:
        os.lseek(file, start, os.SEEK_SET)
        return os.write(file, data)


def preadv(file: int, pieces: Sequence[bytearray | memoryview], start: int) -> int:
    """`os.preadv`: how many bytes from byte `start` filled the pieces, one after the other."""
    if hasattr(os, "preadv"):
        return os.preadv(file, pieces, start)
    found = 0
    for piece in pieces:
        data = pread(file, len(piece), start + found)
        piece[: len(data)] = data
        found += len(data)
        if len(data) < len(piece):
            break
    return found


def write_pieces_at(file: int, pieces: Sequence[Buffer], start: int) -> None:
    """Write all of the pieces, one after the other, from byte `start` on.

    Raises:
        OSError: If the disk is full, or fails.
    """
    count = os.pwritev(file, pieces, start) if hasattr(os, "pwritev") else 0
    if count < sum(memoryview(piece).nbytes for piece in pieces):
        write_at(file, b"".join(pieces)[count:], start + count)


def lock_or_fail(file: int, what: str) -> None:
    """Lock an open file or folder against other processes, until it is closed.

    Args:
        file: Of `os.open`.
        what: What cannot be done without, to begin a message with.

    Raises:
        BlockingIOError: If another process has the lock.
        StorageError: If this system has no such locks.
    """
    require_locks(what)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def require_locks(what: str) -> None:
    """Say at once that something needs locks that this system has not.

    Raises:
        StorageError: On Windows.
    """
    if fcntl is None:
        raise StorageError(
            f"{what} needs locks between processes, which reben_cloud has on Linux and macOS only; on Windows run it "
            "in the Windows Subsystem for Linux (`wsl --install`)"
        )


def disk_bytes(path: str | os.PathLike[str]) -> int:
    """What a file takes on its disk; where that is not told, its size."""
    status = os.stat(path)
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else blocks * 512


def sync_folder_or_file(path: str | os.PathLike[str]) -> None:
    """Bring a file, or the names in a folder, to the disk; Windows opens no folders, and keeps names itself."""
    if not _HAS_PLACES and os.path.isdir(path):
        return
    handle = open_file(path, os.O_RDONLY if _HAS_PLACES else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def memory_bytes() -> int | None:
    """The memory of this machine, bytes; None where it is not told."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
