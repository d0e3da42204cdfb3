"""Bring the payloads of an export to their places: what lies there already, what an earlier export has, the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.errors import NotFoundError, SourceError, StorageError
from reben_cloud.export.plan import Records, afresh
from reben_cloud.formats import tar
from reben_cloud.schema import Buffer
from reben_cloud.stream.readers.base import Counters, Places, Reader
from reben_cloud.stream.select import StoredSelection, open_reader

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection

PIECE_BYTES = 8 * 1024 * 1024
"""Most that is brought at once. Measured: 4 MB and 16 MB are as fast, 64 MB takes twice the CPU (page faults)."""

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Called with an iterable, its length and what it is; gives the items on."""


class Sink(Protocol):
    """Files of known size in which every payload has its place."""

    @property
    def nbytes(self) -> int:
        """Most that the files take on the disk while they are made."""

    def present_bytes(self) -> int:
        """What they take on the disk now."""

    def open(self) -> bool:
        """Make the files, or open those of an earlier run; whether there were any."""

    def write(self, number: int, payload: Buffer) -> None:
        """Put a payload in its place; called by many threads."""

    def read(self, number: int) -> Buffer | None:
        """What lies in a payload's place; None when that is certainly not it."""

    def sync(self) -> None:
        """Bring to the disk what was written so far, or a part of it; that is less for `finish`."""

    def finish(self) -> int:
        """Bring all to the disk, close, check; the answer is the size of the data."""

    def close(self) -> None:
        """Close what is open."""


def find_missing(sink: Sink, records: Records, progress: Progress) -> NDArray[np.int64]:
    """Open the sink; the records that no earlier run brought to their place, or that cannot be checked."""
    every = np.arange(len(records.keys))
    if not sink.open() or records.xxh3 is None:
        return every
    found = []
    for number in progress(range(len(every)), len(every), "look at what is there"):
        payload = sink.read(number)
        if payload is None or not records.check(number, payload):
            found.append(number)
    return np.array(found, np.int64)


def copy_from(folder: Path, sink: Sink, records: Records, missing: NDArray[np.int64]) -> NDArray[np.int64]:
    """Copy what an earlier LMDB export has undamaged; the records that it has not."""
    from reben_cloud.formats import lmdb

    try:
        earlier = lmdb.open_lmdb(folder)
    except (NotFoundError, SourceError):
        return missing
    left = []
    for number in missing.tolist():
        payload = None
        with suppress(SourceError, StorageError):  # damaged or cut short there: fetched like what it lacks
            payload = earlier.get(records.keys[number])
        if payload is not None and records.check(number, payload):
            sink.write(number, payload)
        else:
            left.append(number)
    return np.array(left, np.int64)


class Origin(NamedTuple):
    """Where payloads come from."""

    reader: Reader
    """Brings and verifies them, as it does for a loader."""
    places: Places
    """Where they lie, in stored order."""
    patch: NDArray[np.int64]
    """Patch of each stored position, counted in the order of the table, shape (num_patches,)."""


def open_origin(chosen: Selection, modalities: Sequence[str]) -> Origin:
    """The reader of a selection, and no more of it than copying needs."""
    stored = StoredSelection.of(afresh(chosen, chosen.rows), modalities)
    reader = open_reader(stored, Counters(), form="shards", cache_dir=None, cache_bytes=None, keep=2)
    origin = Origin(reader, stored.places, stored.index)
    del stored
    pa.default_memory_pool().release_unused()  # a hundred megabytes, for the whole dataset
    return origin


def fetch(
    origin: Origin,
    sink: Sink,
    records: Records,
    missing: NDArray[np.int64],
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Copy the missing records to their places, by several threads."""

    def copy(piece: Piece) -> None:
        part = origin.reader.load((piece.modality,), piece.stored)
        for positions, payloads in part[piece.modality]:
            for inside, position in enumerate(positions.tolist()):
                sink.write(int(piece.numbers[position]), payloads.read(inside))

    with ThreadPoolExecutor(threads, "reben-export") as pool:
        futures = [pool.submit(copy, piece) for piece in plan_pieces(origin, records, missing)]
        try:
            for future in progress(as_completed(futures), len(futures), "export"):
                future.result()
                # This thread has nothing else to do, and the disk works while the others fetch.
                sink.sync()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Piece(NamedTuple):
    """Some rows of a shard that are brought together."""

    modality: str
    stored: NDArray[np.int64]
    """Their stored positions, rising."""
    numbers: NDArray[np.int64]
    """Their records."""


def plan_pieces(origin: Origin, records: Records, missing: NDArray[np.int64]) -> Iterator[Piece]:
    """The missing records by shard, at most `PIECE_BYTES` of it together."""
    wanted = np.zeros(len(records.keys), np.bool_)
    wanted[missing] = True
    places = origin.places
    for modality in records.modalities:
        numbers = records.numbers(modality)[origin.patch]
        mine = np.flatnonzero(wanted[numbers])
        piece = places.row[mine] // max(1, PIECE_BYTES // tar.record_bytes(modality))
        cuts = np.flatnonzero((np.diff(places.shard[mine]) != 0) | (np.diff(piece) != 0)) + 1
        for part in np.split(mine, cuts):
            if part.size:
                yield Piece(modality.name, part, numbers[part])
