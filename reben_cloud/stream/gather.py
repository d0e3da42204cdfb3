"""The buffers that batches and downloads live in, and how a payload becomes a sample of a batch.

A batch has one of two layouts: the arrays of the schema, or the payloads as they are (`samples_of`).

Memory is lent: what was handed out may be written again once the last array over it, or view of one, is
gone. The arrays themselves say so when they end, in whichever thread that is; nothing counts references.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reben_cloud.schema import Copy, Modality, SampleArray

Arrays = dict[str, NDArray[Any]]

Layout = Literal["arrays", "records"]
"""What pixels a batch has: the arrays of the schema, or for each modality its payloads as bytes."""


NOWHERE = ""
"""The array of a `Copy` that no batch has: of a payload that is read whole, what is not wanted."""


def samples_of(modality: Modality, layout: Layout) -> Mapping[str, SampleArray]:
    """Batch array -> shape and dtype of one sample, of what a modality fills."""
    if layout == "arrays":
        return modality.samples
    return {modality.name: SampleArray((modality.payload_bytes,), np.dtype(np.uint8))}


def copies_of(modality: Modality, layout: Layout) -> tuple[Copy, ...]:
    """How a payload becomes a sample of these arrays."""
    if layout == "arrays":
        return modality.copies
    return (Copy(0, modality.payload_bytes, modality.name, 0),)


class _Loan:
    """Ends when no array refers to it any more."""

    __slots__ = ("__weakref__",)


class _Lent:
    """What NumPy takes for the owner of lent memory: it lives as long as any array, view or tensor over it."""

    def __init__(self, memory: NDArray[Any], loan: _Loan) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._keep = memory, loan


def lend(memory: NDArray[Any], give_back: Callable[[], object]) -> NDArray[Any]:
    """An array over memory that may be used again when it has ended.

    Args:
        memory: What is lent.
        give_back: Called once, when neither the array nor anything that was made of it without a copy (views,
            tensors, memoryviews) is left. It is called in any thread, and in the middle of anything: it must not
            wait for a lock.

    Returns:
        An array of the same shape and dtype over the same memory.
    """
    loan = _Loan()
    weakref.finalize(loan, give_back).atexit = False
    return np.asarray(_Lent(memory, loan))


class BufferPool:
    """Memory for downloads, used again.

    Fresh memory of this size costs a page fault for every 4 kB, and given back in another order than it
    was taken it stays with the process.

    Args:
        nbytes: Size of every buffer.
        keep: Most buffers that are kept for later; what comes back beyond them is freed. None keeps all, which
            are as many as were in use at one time.
    """

    def __init__(self, nbytes: int, *, keep: int | None) -> None:
        self.nbytes = nbytes
        """Size of every buffer."""
        # Appending to a deque, and taking from it, needs no lock on any Python.
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=keep)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """`nbytes` bytes, at most the size of a buffer; yours for as long as the array or a view of it lives."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty(self.nbytes, np.uint8)
        return lend(buffer[:nbytes], partial(self._free.append, buffer))


class Rows:
    """The rows of a slot, as the payloads of one source fill them.

    Args:
        arrays: Batch array -> the whole buffer.
        copies: How a payload of this source becomes a sample.
    """

    def __init__(self, arrays: Arrays, copies: Sequence[Copy]) -> None:
        self._bytes = {
            c.array: arrays[c.array].reshape(len(arrays[c.array]), -1).view(np.uint8)
            for c in copies
            if c.array != NOWHERE
        }
        self._copies = sorted(copies)

    @cached_property
    def targets(self) -> list[tuple[int, int, NDArray[np.uint8]]]:
        """Where a payload goes: (first byte, byte after the last, bytes of each row) of each piece."""
        return [
            (c.source, c.source + c.nbytes, self._bytes[c.array][:, c.target : c.target + c.nbytes])
            for c in self._copies
            if c.array != NOWHERE
        ]

    @cached_property
    def pieces(self) -> list[list[memoryview]]:
        """The memory of every row in the order of a payload, and as long: a payload can be read into it as it is.

        The header goes, where no array has it, to memory that all rows share, and so does what goes nowhere.
        """
        spare = [memoryview(bytearray(first))] if (first := self._copies[0].source) else []
        # One address for a whole array: NumPy's own slices cost four times as much, and a batch has hundreds.
        flat = {name: rows.reshape(-1).data for name, rows in self._bytes.items()}
        places = [
            (memoryview(bytearray(c.nbytes)), 0, 0, c.nbytes)
            if c.array == NOWHERE
            else (flat[c.array], self._bytes[c.array].shape[1], c.target, c.nbytes)
            for c in self._copies
        ]
        return [
            spare + [m[row * size + start : row * size + start + n] for m, size, start, n in places]
            for row in range(len(next(iter(self._bytes.values()))))
        ]


class Slot:
    """The buffers of one batch, while they are filled."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        """Batch array -> the whole buffer, contiguous, shape (batch_size, *shape of a sample)."""
        self._rows: dict[str, Rows] = {}

    def rows(self, source: str, copies: Sequence[Copy]) -> Rows:
        """The rows as the payloads of a source fill them; a source has the same copies for good."""
        found = self._rows.get(source)
        if found is None:
            found = self._rows[source] = Rows(self.arrays, copies)
        return found


class BatchBuffers(Protocol):
    """Where batches are filled, and what is handed out of it."""

    def take(self) -> Slot:
        """A slot that may be written: nobody reads it, nor will."""

    def hand_out(self, slot: Slot, num_rows: int) -> dict[str, Any]:
        """The batch: the first rows of every array. The slot is not touched any more."""

    def give_back(self, slot: Slot) -> None:
        """Return a slot that was not handed out."""


class LentBatches:
    """Batches in memory that is used again once nobody refers to the batch; whoever keeps batches gets new memory.

    Args:
        specs: Name, shape and dtype of every array of a slot.
        keep: Most slots that are kept for later.
    """

    def __init__(self, specs: Mapping[str, SampleArray], *, keep: int) -> None:
        # One piece of memory for all arrays, which is lent as one.
        self._places: list[tuple[str, SampleArray, int]] = []
        self._nbytes = 0
        for name, spec in specs.items():
            self._places.append((name, spec, self._nbytes))
            self._nbytes += -(-spec.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self._free: deque[_LentSlot] = deque(maxlen=keep)

    def take(self) -> Slot:
        """A slot that may be written."""
        try:
            return self._free.pop()
        except IndexError:
            memory = np.empty(self._nbytes + _ALIGNED_BYTES, np.uint8)
            first = -memory.ctypes.data % _ALIGNED_BYTES
            memory = memory[first : first + self._nbytes]
            return _LentSlot(self._arrays(memory, None), memory)

    def hand_out(self, slot: Slot, num_rows: int) -> Arrays:
        """The first rows of every array; the slot is free when they have ended."""
        assert isinstance(slot, _LentSlot)
        return self._arrays(lend(slot.memory, partial(self._free.append, slot)), num_rows)

    def give_back(self, slot: Slot) -> None:
        """Return a slot that was not handed out."""
        assert isinstance(slot, _LentSlot)
        self._free.append(slot)

    def _arrays(self, memory: NDArray[np.uint8], num_rows: int | None) -> Arrays:
        """The first rows of every array, or all of it."""
        return {
            name: np.ndarray((shape[0] if num_rows is None else num_rows, *shape[1:]), dtype, memory, start)
            for name, (shape, dtype), start in self._places
        }


_ALIGNED_BYTES = 64
"""Arrays of a slot begin at multiples of this, a line of the processor's cache."""


class _LentSlot(Slot):
    def __init__(self, arrays: Arrays, memory: NDArray[np.uint8]) -> None:
        super().__init__(arrays)
        self.memory = memory
