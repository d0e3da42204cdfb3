"""From payloads anywhere in memory to contiguous batch arrays, and the buffers that batches live in.

A payload's address is all that gathering needs, so mapped shards, downloaded buffers, LMDB pages and
decoded Zarr chunks are gathered by the same code. Whoever passes addresses keeps the memory alive.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bands import ARRAYS, BANDS, MODALITIES
from reben_cloud.patch import MAP_SHAPE, MAP_TENSOR, TENSORS

Addresses = NDArray[np.int64]
Arrays = dict[str, NDArray[Any]]


class Copy(NamedTuple):
    """One contiguous piece of a payload, and where it goes in a sample of a batch array."""

    source: int
    """Bytes from the start of the payload."""
    nbytes: int
    """Length."""
    array: str
    """Name of the batch array."""
    target: int
    """Bytes from the start of the sample in that array."""


class BatchArray(NamedTuple):
    """Shape of one sample in a batch array, and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def arrays_of(modality: str) -> dict[str, BatchArray]:
    """Names, shapes and dtypes of the batch arrays of a modality."""
    if modality == "map":
        return {"map": BatchArray(MAP_SHAPE, np.dtype("<u2"))}
    found = {}
    for array in MODALITIES[modality]:
        band = BANDS[ARRAYS[array][0]]
        shape = (len(ARRAYS[array]), band.size_px, band.size_px)
        found[array] = BatchArray(shape, np.dtype(band.dtype).newbyteorder("<"))
    return found


def _payload_copies(modality: str) -> tuple[Copy, ...]:
    """Pieces of a payload, neighbours joined: nine for s2, two for s1, one for map."""
    copies: list[Copy] = []
    for array, (shape, dtype) in arrays_of(modality).items():
        names = (MAP_TENSOR,) if modality == "map" else ARRAYS[array]
        nbytes = int(np.prod(shape)) * dtype.itemsize // len(names)
        for position, name in enumerate(names):
            new = Copy(TENSORS[modality][name].offset, nbytes, array, position * nbytes)
            last = copies[-1] if copies else None
            if last and last.array == array and last.source + last.nbytes == new.source:
                copies[-1] = last._replace(nbytes=last.nbytes + nbytes)
            else:
                copies.append(new)
    return tuple(copies)


PAYLOAD_COPIES: Mapping[str, tuple[Copy, ...]] = MappingProxyType({m: _payload_copies(m) for m in MODALITIES})
"""How a payload of each modality becomes a sample of its batch arrays."""


class _AddressSpace:
    # Page 0 is never mapped; the end is that of user space on x86-64 and arm64.
    __array_interface__ = {  # noqa: RUF012 - NumPy reads it from the class as well
        "data": (4096, False),
        "shape": (2**47 - 8192,),
        "typestr": "|u1",
        "version": 3,
    }


MEMORY: NDArray[np.uint8] = np.asarray(_AddressSpace())
"""All memory of this process as one array; byte a is ``MEMORY[a - MEMORY_START]``. Read only where you own it."""

MEMORY_START = 4096
"""Address of ``MEMORY[0]``."""


def address_of(buffer: Any) -> int:
    """Where a buffer lies. It must outlive every use of the address."""
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])


class BufferPool:
    """Memory that is used again once nobody refers to what was put there.

    Fresh memory of this size costs a page fault for every 4 kB, and given back in another order than it
    was taken it stays with the process.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        """Size of every buffer."""
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> memoryview:
        """`nbytes` bytes, at most the size of a buffer; theirs for as long as the view or one of it lives."""
        with self._lock:
            for buffer in self._buffers:
                # The list, this loop and the call itself refer to it.
                if sys.getrefcount(buffer) == 3:
                    return buffer[:nbytes].data
            self._buffers.append(np.empty(self.nbytes, np.uint8))
            return self._buffers[-1][:nbytes].data


Gather = Callable[[Addresses, Sequence[Copy], "Slot"], None]
"""Copies the payloads at the addresses into the first rows of a slot's arrays."""


def gather_rows(addresses: Addresses, copies: Sequence[Copy], slot: Slot) -> None:
    """The gather that needs NumPy only: a Python loop over rows and pieces."""
    targets = [(c.source - MEMORY_START, c.nbytes, slot.flat[c.array], c.target) for c in copies]
    for row, address in enumerate(addresses.tolist()):
        for source, nbytes, target, offset in targets:
            start = address + source
            target[row, offset : offset + nbytes] = MEMORY[start : start + nbytes]


class Slot:
    """The buffers of one batch; reused once nobody refers to the batch any more."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        """Batch array -> the whole buffer, shape (batch_size, *shape of a sample)."""
        self.flat = {n: a.view(np.uint8).reshape(len(a), -1) for n, a in arrays.items() if a.ndim > 2}
        """Pixel arrays as bytes, shape (batch_size, bytes of a sample)."""
        self.extra: dict[Any, Any] = {}
        """What a `Gather` wants to keep with the buffers."""
        self.number = 0
        """Number of the batch that was last put here, counted over all batches."""
        # What a view refers to: the array itself, or, when it does not own its memory (pinned buffers
        # do not), whatever NumPy takes for the owner.
        self._owners = [array[:1].base for array in arrays.values()]
        self._at_rest = self._references()

    def in_use(self) -> bool:
        """Whether a batch that was made from these buffers, or a view of it, is still referred to."""
        return self._references() != self._at_rest

    def _references(self) -> list[int]:
        return [sys.getrefcount(owner) for owner in self._owners]


class Ring:
    """Slots for batches, reused in turn.

    A slot is taken again when nothing refers to its batch any more *and* `hold` further batches
    were handed out since (a copy to a device may still run after the last reference is gone). Who
    keeps batches gets new slots, so a batch that is held is never overwritten.
    """

    def __init__(self, make: Callable[[], Arrays], *, hold: int) -> None:
        self._make = make
        self._hold = hold
        self._idle: deque[Slot] = deque()
        self._out: deque[Slot] = deque()
        self._handed = 0

    def take(self) -> Slot:
        """A slot that may be written."""
        for _ in range(len(self._out)):
            slot = self._out.popleft()
            if slot.number + self._hold <= self._handed and not slot.in_use():
                self._idle.append(slot)
            else:
                self._out.append(slot)
        return self._idle.popleft() if self._idle else Slot(self._make())

    def hand_out(self, slot: Slot) -> None:
        """Note that the slot's batch goes to the caller now."""
        self._handed += 1
        slot.number = self._handed
        self._out.append(slot)

    def give_back(self, slot: Slot) -> None:
        """Return a slot whose batch was never handed out."""
        self._idle.append(slot)
