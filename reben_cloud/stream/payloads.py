"""Payloads that can be put into a batch: in memory and verified, or in a file and verified as they come.

A payload in a file is read straight into the batch, and what is compared with its checksum is what the
batch then holds: there is no time between check and use in which somebody could write to the file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, StorageError
from reben_cloud.files.local import LocalFile
from reben_cloud.formats import tar
from reben_cloud.sampling import Ints
from reben_cloud.schema import Buffer
from reben_cloud.stream.gather import Rows


class Payloads(Protocol):
    """Some payloads of one modality, or of one Zarr array, numbered from 0."""

    def fill(self, numbers: Sequence[int], slot: Rows, rows: Sequence[int]) -> None:
        """Copy payloads into as many rows of a slot.

        Raises:
            ChecksumError: If one is not what was written.
            StorageError: If one cannot be read.
        """

    def read(self, number: int) -> Buffer:
        """One payload. Raises as `fill`."""


Part = dict[str, list[tuple[Ints, Payloads]]]
"""Source (a key of `Reader.copies`) -> the payloads asked for, by where they are: (positions in what was
asked for, payloads in that order)."""


class InMemory:
    """Verified payloads in memory that nobody writes to.

    Args:
        memory: Bytes, shape (n,).
        starts: First byte of each payload.
        nbytes: Bytes of each.
        name: What to call the object in messages.

    Raises:
        ChecksumError: If one would not be inside the memory.
    """

    def __init__(self, memory: NDArray[np.uint8], starts: Ints, nbytes: int, *, name: str) -> None:
        if len(starts) and not (starts.min() >= 0 and starts.max() + nbytes <= memory.nbytes):
            raise ChecksumError(
                f"{name}: a payload of {nbytes:,} bytes at byte {starts.max():,} is not inside its "
                f"{memory.nbytes:,} bytes; run `reben-cloud verify`"
            )
        self._memory = memory
        self._starts: list[int] = starts.tolist()
        self._nbytes = nbytes

    def fill(self, numbers: Sequence[int], slot: Rows, rows: Sequence[int]) -> None:
        """Copy payloads into as many rows of a slot."""
        memory, starts, targets = self._memory, self._starts, slot.targets
        for number, row in zip(numbers, rows, strict=True):
            start = starts[number]
            for first, stop, target in targets:
                target[row] = memory[start + first : start + stop]

    def read(self, number: int) -> Buffer:
        """One payload."""
        start = self._starts[number]
        return self._memory[start : start + self._nbytes].data


@dataclass(kw_only=True, slots=True, eq=False)
class InFile:
    """Payloads in a local file, verified whenever they are read."""

    file: LocalFile
    """The file."""
    starts: list[int]
    """First byte of each payload."""
    nbytes: int
    """Bytes of each payload."""
    header: bytes
    """First bytes of every payload."""
    checksums: list[int] | None
    """xxh3-64 of each payload; None where none is known."""
    names: Sequence[bytes] = ()
    """What the tar header right before each payload starts with, where there is one (`tar.name_fields`)."""
    damage: Callable[[int, str], str]
    """What to say when a payload is not the one that was written, given its number and how that shows."""
    count: Callable[[int, float, float], None]
    """Told how many bytes were read, and how many seconds reading and comparing them took."""
    fetch_again: Callable[[], InMemory] | None = None
    """Brings the same payloads from where the file was copied from; None for the original."""
    _again: InMemory | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, numbers: Sequence[int], slot: Rows, rows: Sequence[int]) -> None:
        """Read payloads into as many rows of a slot."""
        spent = [0.0, 0.0]
        read, pieces = self._make_read(spent), slot.pieces
        for position, (number, row) in enumerate(zip(numbers, rows, strict=True)):
            try:
                read(number, pieces[row])
            except (ChecksumError, StorageError) as error:
                self._recovered(error).fill(numbers[position:], slot, rows[position:])
                break
        self.count(len(numbers) * self.nbytes, *spent)

    def read(self, number: int) -> Buffer:
        """One payload."""
        payload, spent = memoryview(bytearray(self.nbytes)), [0.0, 0.0]
        try:
            self._make_read(spent)(number, [payload])
        except (ChecksumError, StorageError) as error:
            return self._recovered(error).read(number)
        self.count(self.nbytes, *spent)
        return payload

    def _make_read(self, spent: list[float]) -> Callable[[int, list[memoryview]], None]:
        """What reads a payload into pieces and compares it, and adds to the seconds that both took; for one thread.

        It runs three times for each sample: whatever is the same for all payloads is made once, here.
        """
        starts, names, checksums, read_into = self.starts, self.names, self.checksums, self.file.read_into
        lead = bytearray(tar.BLOCK_BYTES if names else 0)
        before, nbytes = len(lead), len(lead) + self.nbytes
        digest, clock = xxhash.xxh3_64(), time.perf_counter
        reset, update, result = digest.reset, digest.update, digest.intdigest

        def read(number: int, pieces: list[memoryview]) -> None:
            begin = clock()
            read_into([lead, *pieces], starts[number] - before, nbytes)
            there = clock()
            if names and not lead.startswith(names[number]):
                raise ChecksumError(self.damage(number, f"it is {bytes(lead[: tar.NAME_BYTES])!r}"))
            if checksums is None:
                is_right = pieces[0][: len(self.header)] == self.header
            else:
                # The pieces that were just written are still in the processor's cache.
                reset()
                for piece in pieces:
                    update(piece)
                is_right = result() == checksums[number]
            if not is_right:
                raise ChecksumError(self.damage(number, "xxh3 differs"))
            spent[0] += there - begin
            spent[1] += clock() - there

        return read

    def _recovered(self, error: ChecksumError | StorageError) -> InMemory:
        """The payloads fetched again, once; an original that is damaged stays an error."""
        if self.fetch_again is None:
            raise error
        with self._lock:
            if self._again is None:
                self._again = self.fetch_again()
            return self._again
