"""What every reader is: it finds the payloads of a block and brings them near.

A reader answers ``load(part, stored)`` with `Payloads`, so that what follows does not know where samples
came from. Every byte that is delivered was compared with a checksum in memory that nobody else writes to,
or belongs to a format with checksums of its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.sampling import Ints
from reben_cloud.schema import Copy
from reben_cloud.stream.payloads import Part
from reben_cloud.stream.stats import Stages

T = TypeVar("T")

ATTEMPTS = 4
"""How often an object is read before its damage is reported; a store that fails is the store's own matter."""


@dataclass(slots=True)
class Counters:
    """What was done so far; updated by many threads."""

    bytes_read: int = 0
    """Bytes fetched from the store, or read from local files."""
    requests: int = 0
    """Objects and ranges asked for."""
    retries: int = 0
    """Objects read again because they were damaged."""
    cache_hits: int = 0
    """Shards found in the disk cache."""
    store_s: float = 0.0
    """Seconds of fetch threads in requests."""
    checks_s: float = 0.0
    """Seconds of fetch threads comparing checksums, and decoding what has its own."""
    late_s: float = 0.0
    """Seconds of gather threads waiting for blocks."""
    fill_s: float = 0.0
    """Seconds of gather threads filling batches."""
    files_s: float = 0.0
    """Of these, reading files."""
    file_checks_s: float = 0.0
    """Of these, comparing checksums of what was read from files."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: float) -> None:
        """Add to the counters named."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def add_file(self, nbytes: int, read_s: float, checks_s: float) -> None:
        """Add what was read from a file into a batch, and how long that and comparing it took."""
        with self._lock:  # some times a batch: half of what `add` takes
            self.bytes_read += nbytes
            self.files_s += read_s
            self.file_checks_s += checks_s

    def stages(self) -> Stages:
        """Where the threads' time went."""
        return Stages(
            fetch_store_s=self.store_s,
            fetch_checks_s=self.checks_s,
            late_s=self.late_s,
            fill_store_s=self.files_s,
            fill_checks_s=self.file_checks_s,
            fill_copy_s=max(0.0, self.fill_s - self.files_s - self.file_checks_s),
        )


class Cost(NamedTuple):
    """What reading takes; costs are added up field by field."""

    requests: int = 0
    """Objects, ranges and records asked for."""
    bytes_read: int = 0
    """Bytes of them."""
    held_bytes: int = 0
    """Bytes that stay in memory until they are delivered."""

    def __add__(self, other: object) -> Cost:
        assert isinstance(other, Cost)
        return Cost(*(int(a) + int(b) for a, b in zip(self, other, strict=True)))


class Brought:
    """Whole shards that the blocks before one will have brought into a cache, or into memory, by checksum."""

    def __init__(self) -> None:
        self._shards: set[int] = set()
        self.nbytes = 0
        """Bytes of them."""

    def __contains__(self, checksum: int) -> bool:
        return checksum in self._shards

    def add(self, checksum: int, nbytes: int) -> None:
        """One more."""
        self._shards.add(checksum)
        self.nbytes += nbytes


class Reader(Protocol):
    """A form at rest from which samples can be streamed."""

    @property
    def copies(self) -> Mapping[str, tuple[Copy, ...]]:
        """Source -> how its payloads become samples of batch arrays."""

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Sources in groups: each group is loaded by one call, and calls may run at the same time."""

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these sources, of the samples at these stored positions, brought near."""

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:
        """What `load` will take, and delivering each sample so many times.

        Args:
            part: As for `load`.
            stored: As for `load`.
            times: How often each is delivered, shape of `stored`.
            brought: Shards that earlier blocks will have brought into a cache or memory; this one's are added.
        """


class Together:
    """Several readers of the same samples as one; their sources have different names."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.copies = {name: copies for reader in readers for name, copies in reader.copies.items()}
        self.parts = tuple(part for reader in readers for part in reader.parts)
        self._readers = tuple(readers)

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these sources, each by the reader whose they are."""
        found: Part = {}
        for reader in self._readers:
            if mine := tuple(name for name in part if name in reader.copies):
                found |= reader.load(mine, stored)
        return found

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:
        """What `load` will take."""
        total = Cost()
        for reader in self._readers:
            if mine := tuple(name for name in part if name in reader.copies):
                total += reader.expect(mine, stored, times, brought)
        return total


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the selected samples lie, in stored order."""

    shard: NDArray[np.int64]
    """Index into `shards` of each sample, rising, shape (n,)."""
    row: NDArray[np.int64]
    """Row in the shard of each sample, rising within a shard, shape (n,)."""
    shards: Sequence[tuple[str, int]]
    """(Group, number) of each shard."""
    num_samples: NDArray[np.int64]
    """All samples of each shard, selected or not, shape (num_shards,)."""
    ids: NDArray[np.bytes_]
    """Patch id of each sample, shape (n,)."""
    checksums: Mapping[str, NDArray[np.uint64]]
    """Modality -> xxh3-64 of each sample's payload, shape (n,)."""

    def __post_init__(self) -> None:
        # Addresses are computed from it.
        outside = np.flatnonzero((self.row < 0) | (self.row >= self.num_samples[self.shard]))
        if outside.size:
            first = int(outside[0])
            group, number = self.shards[int(self.shard[first])]
            raise ChecksumError(
                f"patches.parquet places {self.ids[first].decode()} in row {self.row[first]} of shard {number} of "
                f"{group}, which has {max(0, int(self.num_samples[self.shard[first]])):,} samples by the manifest: "
                "one of them is damaged; run `reben-cloud verify`"
            )


def persistently(attempt: Callable[[], T], counters: Counters) -> T:
    """Try again, with backoff and jitter, when bytes are damaged."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except ChecksumError:
            if number == ATTEMPTS - 1:
                raise
            counters.add(retries=1)
            # Jitter: readers that were damaged by one fault must not come back all at once.
            time.sleep(0.05 * 2**number * (0.5 + random.random()))  # noqa: S311
    raise AssertionError
