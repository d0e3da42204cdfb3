"""Whole shards in this process's memory: read and verified once, copied from in every epoch after."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def keep_shards(memory_bytes: int, cache_dir: str | os.PathLike[str] | None) -> KeptShards | None:
    """Where shards are kept in memory by the options of a loader; None for nowhere.

    Raises:
        ValueError: If the number is negative, or shards are to be kept on a disk too.
    """
    if memory_bytes < 0:
        raise ValueError(f"memory_bytes must not be negative, got {memory_bytes}")
    if memory_bytes and cache_dir is not None:
        raise ValueError("memory_bytes keeps shards in memory and cache_dir on a disk: give one of them")
    return KeptShards(memory_bytes) if memory_bytes else None


class KeptShards:
    """Verified shards by their checksum, up to a number of bytes. What is kept stays.

    No shard makes room for another: an epoch asks for all of them once, in another order than the last one did,
    so whatever is here is as likely to be asked for next as what would take its place, and has been paid for.

    Args:
        budget_bytes: Most bytes kept.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._room = budget_bytes
        self._shards: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()

    def has(self, checksum: int) -> bool:
        """Whether the shard with this checksum is here."""
        return checksum in self._shards

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes more would be kept."""
        return nbytes <= self._room

    def get(
        self, checksum: int, nbytes: int, read: Callable[[], NDArray[np.uint8]]
    ) -> NDArray[np.uint8] | None:
        """The shard with this checksum, read now if it is not here; None if there is no room for it.

        Args:
            checksum: Its xxh3-64.
            nbytes: Its size.
            read: Brings it, verified, in memory that nobody writes to.
        """
        with self._lock:
            if (kept := self._shards.get(checksum)) is not None:
                return kept
            if nbytes > self._room:
                return None
            self._room -= nbytes
        try:
            data = read()
        except BaseException:
            with self._lock:
                self._room += nbytes
            raise
        with self._lock:
            if self._shards.setdefault(checksum, data) is not data:  # another thread read it meanwhile
                self._room += nbytes
            return self._shards[checksum]
