"""A folder of whole shards beside the training process: bounded, shared, safe against ``kill -9``.

Files are named by content (checksum and name), written under another name and renamed. Processes
agree by file locks, which the kernel drops when a process dies. The file read last goes last.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from reben_cloud.errors import StorageError
from reben_cloud.files.system import lock_or_fail, open_file, require_locks, write_at
from reben_cloud.store import Budget, Tries

_PART = ".part"
_POLL_S = 0.02

_SPARE = 20
"""One in so many bytes of the bound is left free where files are small."""

_SHARERS = 8
"""Processes that may share a folder without going beyond its bound for a while."""


class ShardCache:
    """Whole shards on a local disk.

    Args:
        folder: The folder; made if it is missing. Several processes may share it.
        budget_bytes: Most bytes of shards kept; None for no bound.
    """

    def __init__(self, folder: str | os.PathLike[str], budget_bytes: int | None = None) -> None:
        if budget_bytes is not None and budget_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {budget_bytes}")
        self.folder = Path(folder)
        """Where the files lie."""
        self.budget_bytes = budget_bytes
        """Most bytes kept, or None."""
        self._room = 0  # bytes that may be written before the folder is looked at again
        require_locks("a shard cache (cache_dir)")
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.glob(f"*{_PART}"):
            # Left by a process that was killed; one that still lives holds its lock.
            with suppress(OSError), _Lock(part, wait=False):
                part.unlink()

    def path(self, name: str, checksum: int) -> Path:
        """The file of a shard, there or not."""
        return self.folder / f"{checksum:016x}-{name.rsplit('/', 1)[-1]}"

    def find(self, name: str, checksum: int) -> Path | None:
        """The file of a shard, marked as used now, or None. Its bytes are the caller's to verify."""
        path = self.path(name, checksum)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def add(
        self, name: str, checksum: int, nbytes: int, fetch: Callable[[Tries], memoryview], budget: Budget
    ) -> tuple[Path | None, memoryview | None]:
        """Fetch a shard into the cache, once for all processes that ask at the same time.

        Who waits for another process counts the time in which that one makes no progress as its own, and fetches for
        itself when that is all of the budget.

        Args:
            name: Path of the shard.
            checksum: Its xxh3-64, part of the file's name.
            nbytes: Its size.
            fetch: Downloads and verifies it, with the attempts and the time that are left.
            budget: What the wait and the download may cost together.

        Returns:
            The file; or the bytes when there is none, because they are larger than the whole cache or another process
            was given up.

        Raises:
            StorageError: If the folder cannot be written.
        """
        if self.budget_bytes is not None and nbytes > self.budget_bytes:
            return None, fetch(Tries(budget))
        path = self.path(name, checksum)
        try:
            with _Lock(Path(f"{path}{_PART}"), most_s=budget.seconds) as lock:
                if self.find(name, checksum) is not None:
                    if lock.is_held:
                        lock.discard()
                    return path, None
                if not lock.is_held:
                    return None, fetch(Tries(budget, waited_s=lock.idle_s))
                try:
                    data = fetch(Tries(budget, waited_s=lock.idle_s, tell=lock.touch))
                    self._make_room(nbytes)
                    lock.write(data)
                except BaseException:
                    lock.discard()
                    raise
                os.replace(lock.path, path)
                return path, None
        except OSError as error:
            if isinstance(error, StorageError | FileNotFoundError):
                raise
            raise StorageError(
                f"cannot write to the shard cache {self.folder}: {error}; "
                "free some disk, lower cache_bytes, or leave cache_dir out"
            ) from error

    def _make_room(self, nbytes: int) -> None:
        """Delete the files used longest ago. A mapped file lives on until it is unmapped.

        To list ten thousands of small files takes longer than to fetch one. So where files are small, a part of the
        bound is left free, and each process may write its share of that part before it looks again.
        """
        if self.budget_bytes is None:
            return
        if nbytes <= self._room:
            self._room -= nbytes
            return
        spare = self.budget_bytes // _SPARE
        self._room = spare // _SHARERS if nbytes <= spare // _SHARERS else 0
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(_PART):
                continue
            with suppress(FileNotFoundError):  # another process made room at the same time
                status = entry.stat()
                found.append((status.st_mtime_ns, status.st_size, entry.path))
        excess = sum(size for _, size, _ in found) + nbytes - self.budget_bytes + (spare if self._room else 0)
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            excess -= size


class _Lock:
    """A locked file; waits for whoever holds it, while that one gets on: it touches the file when it does.

    Args:
        path: The file.
        wait: Whether to wait at all.
        most_s: Longest wait without a sign of the holder.
    """

    def __init__(self, path: Path, *, wait: bool = True, most_s: float = math.inf) -> None:
        self.path = path
        self.is_held = False
        """Whether it was had, and the holder not given up."""
        self.idle_s = 0.0
        """How long there had been no sign when the wait ended."""
        self._wait, self._most_s = wait, most_s

    def __enter__(self) -> _Lock:
        since = time.monotonic()
        while True:
            self._file = open_file(self.path, os.O_RDWR | os.O_CREAT)
            try:
                if not self._acquire(since):
                    return self
                if os.fstat(self._file).st_nlink and os.path.samestat(
                    os.fstat(self._file), os.stat(self.path)
                ):
                    self.is_held = True
                    self.touch()
                    return self
            except FileNotFoundError:
                pass  # renamed or deleted by the holder while we waited
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)

    def _acquire(self, since: float) -> bool:
        """Lock the file; False if its holder is given up."""
        while True:
            try:
                lock_or_fail(self._file, "a shard cache (cache_dir)")
                return True
            except BlockingIOError:
                if not self._wait:
                    raise
            # The age of the last sign is of the clock, which may be set: never more than what was waited.
            age = max(0.0, time.time() - os.fstat(self._file).st_mtime)
            self.idle_s = min(age, time.monotonic() - since)
            if self.idle_s > self._most_s:
                return False
            time.sleep(_POLL_S)

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def touch(self) -> None:
        """Show those who wait that it gets on."""
        os.utime(self._file)

    def write(self, data: memoryview) -> None:
        os.ftruncate(self._file, 0)
        write_at(self._file, data, 0)

    def discard(self) -> None:
        with suppress(FileNotFoundError):
            self.path.unlink()
