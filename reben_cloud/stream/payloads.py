"""Payloads that can be put into a batch: in memory and verified, or in a file and verified as they come.

A payload in a file is read straight into the batch, and what is compared with its checksum is what the
batch then holds: there is no time between check and use in which somebody could write to the file.
"""

from __future__ import annotations

import threading
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
from reben_cloud.schema import Buffer, Copy
from reben_cloud.stream.gather import Slot


class Payloads(Protocol):
    """Some payloads of one modality, or of one Zarr array, numbered from 0."""

    def fill(self, numbers: Ints, slot: Slot, copies: Sequence[Copy], rows: Ints) -> None:
        """Copy payloads into rows of a slot.

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
        self._starts = starts
        self._nbytes = nbytes

    def fill(self, numbers: Ints, slot: Slot, copies: Sequence[Copy], rows: Ints) -> None:
        """Copy payloads into rows of a slot."""
        memory, targets = self._memory, slot.targets(copies)
        for row, start in zip(rows.tolist(), self._starts[numbers].tolist(), strict=True):
            for first, stop, target in targets:
                target[row] = memory[start + first : start + stop]

    def read(self, number: int) -> Buffer:
        """One payload."""
        start = int(self._starts[number])
        return self._memory[start : start + self._nbytes].data


@dataclass(kw_only=True, slots=True, eq=False)
class InFile:
    """Payloads in a local file, verified whenever they are read."""

    file: LocalFile
    """The file."""
    starts: Ints
    """First byte of each payload."""
    nbytes: int
    """Bytes of each payload."""
    header: bytes
    """First bytes of every payload."""
    checksums: NDArray[np.uint64] | None
    """xxh3-64 of each payload; None where none is known."""
    names: Sequence[bytes] = ()
    """What the tar header right before each payload starts with, where there is one: the member's name, and its end."""
    damage: Callable[[int, str], str]
    """What to say when a payload is not the one that was written, given its number and how that shows."""
    count: Callable[[int], None]
    """Told how many bytes were read."""
    fetch_again: Callable[[], InMemory] | None = None
    """Brings the same payloads from where the file was copied from; None for the original."""
    _again: InMemory | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fill(self, numbers: Ints, slot: Slot, copies: Sequence[Copy], rows: Ints) -> None:
        """Read payloads into rows of a slot."""
        read, pieces = self._make_read(), slot.row_pieces(copies)
        for position, (number, row) in enumerate(zip(numbers.tolist(), rows.tolist(), strict=True)):
            try:
                read(number, pieces[row])
            except (ChecksumError, StorageError) as error:
                self._recovered(error).fill(numbers[position:], slot, copies, rows[position:])
                break
        self.count(len(numbers) * self.nbytes)

    def read(self, number: int) -> Buffer:
        """One payload."""
        rest = bytearray(self.nbytes - len(self.header))
        try:
            self._make_read()(number, [memoryview(rest)])
        except (ChecksumError, StorageError) as error:
            return self._recovered(error).read(number)
        self.count(self.nbytes)
        return self.header + rest

    def _make_read(self) -> Callable[[int, Sequence[memoryview]], None]:
        """What reads the pixels of a payload into pieces and compares them; for one thread.

        It runs three times for each sample: whatever is the same for all payloads is made once, here.
        """
        header, checksums, read_into = self.header, self.checksums, self.file.read_into
        lead = tar.BLOCK_BYTES if self.names else 0
        head, nbytes = bytearray(lead + len(header)), lead + self.nbytes
        digest = xxhash.xxh3_64()
        reset, update, result = digest.reset, digest.update, digest.intdigest

        def read(number: int, pieces: Sequence[memoryview]) -> None:
            read_into([head, *pieces], int(self.starts[number]) - lead, nbytes)
            if lead and not head.startswith(self.names[number]):
                raise ChecksumError(self.damage(number, f"it is {bytes(head[: tar.NAME_BYTES])!r}"))
            is_right = head.endswith(header)
            if checksums is not None:
                reset()
                update(header)
                for piece in pieces:
                    update(piece)
                is_right = is_right and result() == checksums[number]
            if not is_right:
                raise ChecksumError(self.damage(number, "xxh3 differs"))

        return read

    def _recovered(self, error: ChecksumError | StorageError) -> InMemory:
        """The payloads fetched again, once; an original that is damaged stays an error."""
        if self.fetch_again is None:
            raise error
        with self._lock:
            if self._again is None:
                self._again = self.fetch_again()
            return self._again
