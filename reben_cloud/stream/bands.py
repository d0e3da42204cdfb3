"""Some bands of what is read: which pieces of a payload go where, and which go nowhere.

A payload is one record with one checksum, so it is read whole and compared whole, and only what is wanted of it
goes into batches. Of Zarr stores, whose chunks have checksums of their own, other arrays are not read at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Ints
from reben_cloud.schema import Copy, Modality, Schema
from reben_cloud.stream.gather import NOWHERE, Layout
from reben_cloud.stream.payloads import Part
from reben_cloud.stream.readers.base import Brought, Cost, Reader


def shown_of(
    selection: Selection, modalities: Sequence[str] | None, bands: Sequence[str] | None, layout: Layout
) -> Schema | None:
    """What batches have if bands are asked for; None for all of what is read.

    Raises:
        ValueError: As `Schema.narrowed`; or records are asked for, which are whole payloads.
    """
    if bands is None:
        return None
    if layout != "arrays":
        raise ValueError(
            f"layout={layout!r} gives whole payloads, so bands cannot be chosen; leave one of them out"
        )
    return selection.dataset.schema.narrowed(bands, modalities)


class Narrowed:
    """A reader of whole modalities, as one of some of their bands.

    Args:
        reader: Reads whole payloads, or arrays.
        whole: The modalities as it reads them.
        shown: The same modalities as batches are to have them (`Modality.narrowed`).
    """

    def __init__(self, reader: Reader, whole: Sequence[Modality], shown: Sequence[Modality]) -> None:
        self._reader = reader
        places = _places(whole, shown)
        narrowed = {source: _narrow(copies, places) for source, copies in reader.copies.items()}
        # An array none of whose bands is wanted need not be read.
        self.copies: Mapping[str, tuple[Copy, ...]] = {
            source: copies for source, copies in narrowed.items() if any(c.array != NOWHERE for c in copies)
        }
        kept = (tuple(source for source in part if source in self.copies) for part in reader.parts)
        self.parts = tuple(part for part in kept if part)

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these sources."""
        return self._reader.load(part, stored)

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:
        """What `load` will take."""
        return self._reader.expect(part, stored, times, brought)


Places = Mapping[str, tuple[int, tuple[int | None, ...]]]
"""Batch array -> bytes of a tensor, and where each of its tensors is among those wanted, None for nowhere."""


def _places(whole: Sequence[Modality], shown: Sequence[Modality]) -> Places:
    wanted = {array.name: array.tensors for modality in shown for array in modality.arrays}
    return {
        array.name: (
            modality.tensor_of(array).nbytes,
            tuple(
                wanted[array.name].index(name) if name in wanted.get(array.name, ()) else None
                for name in array.tensors
            ),
        )
        for modality in whole
        for array in modality.arrays
    }


def _narrow(copies: Sequence[Copy], places: Places) -> tuple[Copy, ...]:
    """The same pieces, cut where bands begin; those that nobody wants go nowhere. Neighbours are joined."""
    found: list[Copy] = []
    for copy in sorted(copies):
        size, positions = places[copy.array]
        start, stop = copy.target, copy.target + copy.nbytes
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            source, place = copy.source + first - start, positions[number]
            new = (
                Copy(source, last - first, NOWHERE, 0)
                if place is None
                else Copy(source, last - first, copy.array, place * size + first - number * size)
            )
            before = found[-1] if found else None
            if before is not None and _follows(before, new):
                found[-1] = before._replace(nbytes=before.nbytes + new.nbytes)
            else:
                found.append(new)
    return tuple(found)


def _follows(before: Copy, new: Copy) -> bool:
    """Whether a piece goes on where one before it ends, in the payload and in the batch."""
    is_next = before.array == new.array and before.source + before.nbytes == new.source
    return is_next and (new.array == NOWHERE or before.target + before.nbytes == new.target)
