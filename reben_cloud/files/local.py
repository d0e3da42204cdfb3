"""Local files read at positions, into memory of the reader's own.

Not by mapping them: a mapped file that is cut short ends the process without a word (SIGBUS), and one
that is written to changes after it was checked. What was read here stays as it was read.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

from reben_cloud.errors import StorageError
from reben_cloud.files.system import open_file, pread, preadv

READ_AHEAD_BYTES = 1 << 17
"""Bytes of one request to read ahead: Linux cuts larger ones to the read-ahead window of the device."""


class LocalFile:
    """An open file; closed once nothing refers to it. It outlives being renamed, replaced or unlinked.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        StorageError: If it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        """Its name when it was opened."""
        try:
            self._file = open_file(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot open {self.path}: {error.strerror}") from error
        # Not at exit: threads may still read then.
        weakref.finalize(self, os.close, self._file).atexit = False

    @property
    def nbytes(self) -> int:
        """Its size now."""
        return os.fstat(self._file).st_size

    def read(self, start: int, nbytes: int) -> bytes:
        """`nbytes` bytes from byte `start`.

        Raises:
            StorageError: If the file ends before, or cannot be read.
        """
        parts = []
        while nbytes:
            try:
                part = pread(self._file, nbytes, start)
            except OSError as error:
                raise self._unreadable(error) from error
            if not part:
                raise StorageError(
                    f"{self.path} ends at byte {self.nbytes:,}, before byte {start + nbytes:,}: "
                    "it was cut short; restore it, or delete it if it can be fetched again"
                )
            parts.append(part)
            start, nbytes = start + len(part), nbytes - len(part)
        return b"".join(parts)

    def read_into(self, pieces: Sequence[bytearray | memoryview], start: int, nbytes: int) -> None:
        """Fill the pieces, which have `nbytes` bytes together, one after the other. Raises as `read`."""
        try:
            found = preadv(self._file, pieces, start)
        except OSError as error:
            raise self._unreadable(error) from error
        if found == nbytes:
            return
        # At the end of the file, or on a file system that answers in parts.
        data = memoryview(self.read(start, nbytes))
        for piece in pieces:
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]

    def read_ahead(self, start: int, nbytes: int) -> None:
        """Ask the system to have these bytes in memory soon, unless it has; does not wait."""
        if not hasattr(os, "posix_fadvise") or all(
            self._is_at_hand(place) for place in (start, start + nbytes // 2, start + nbytes - 1)
        ):
            return
        for first in range(start, start + nbytes, READ_AHEAD_BYTES):
            length = min(READ_AHEAD_BYTES, start + nbytes - first)
            os.posix_fadvise(self._file, first, length, os.POSIX_FADV_WILLNEED)

    def _is_at_hand(self, place: int) -> bool:
        try:
            return os.preadv(self._file, [bytearray(1)], place, os.RWF_NOWAIT) == 1
        except OSError:  # it would have to wait, or the file system cannot tell
            return False

    def _unreadable(self, error: OSError) -> StorageError:
        return StorageError(f"cannot read {self.path}: {error.strerror}")
