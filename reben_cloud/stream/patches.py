"""`RawPatches`: samples of a selection by number, for samplers of one's own; NumPy arrays, no PyTorch.

What is read, how it is joined into requests and what it is compared with are the readers' matter, as for
`RawLoader`. Here is which samples are asked for, in threads, and where they go.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from reben_cloud.errors import ForkError
from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array
from reben_cloud.root.backing import LmdbFolder, References
from reben_cloud.root.positions import Several, position_of, positions_of
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Ints
from reben_cloud.schema import SampleArray
from reben_cloud.stream.bands import Narrowed, shown_of
from reben_cloud.stream.gather import Arrays, Layout, Slot, samples_of
from reben_cloud.stream.kept import keep_shards
from reben_cloud.stream.readers.base import Counters, Reader
from reben_cloud.stream.readers.shards import CACHED_USES
from reben_cloud.stream.select import Form, StoredSelection, open_reader

Sources = tuple[str, ...]
"""What a reader loads by one call (`Reader.parts`)."""

Sample = dict[str, Any]
"""Name -> array; texts, and lists of rows of a table layer, are lists in a batch."""


class RawPatches:
    """The samples of a selection by number, in the order of the selection: a sequence that is quick in batches.

    ``patches[7]`` is a sample, ``patches.take([7, 3, 3])`` a batch: the arrays of `RawLoader`, without ``valid``.
    What a batch needs is asked for at one time, in threads; neighbours in a shard come in one request by the rule
    of `plan_ranges`, and a patch that is asked for twice is read once from a store. Whatever is read is
    compared with its checksum.

    It pickles, for worker processes: they get what was asked for and the tables, no handle, thread or client.

    Args:
        selection: What to read. Under the rule ``all`` of `Selection.with_rows` every row is a sample.
        modalities: As for `RawLoader`, as is all that follows.
        columns: Columns of table layers with a row per patch.
        seed: Which row of a table layer a patch has under the rule ``one``, with `epoch`.
        epoch: See `set_epoch`.
        fetch_threads: Concurrent requests of a process.
        cache_dir: Folder for whole shards of a remote root. A shard goes there whole where the selection has so
            many of its samples that this pays over a few epochs of single reads.
        cache_bytes: Most bytes in that folder; None for no bound.
        memory_bytes: Most bytes of whole shards, by the same rule, that each process keeps in its memory.
        form: ``shards`` or ``zarr``.
        layout: ``arrays`` or ``records``.
        bands: Names of bands, to have these alone.

    Raises:
        NotFoundError: If the selection is empty (it names the condition that left nothing).
        TypeError: If `selection` is no selection.
        ValueError: If an argument is out of range, or the selection lacks a modality.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        modalities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        seed: int = 0,
        epoch: int = 0,
        fetch_threads: int = 8,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        memory_bytes: int = 0,
        form: Form = "shards",
        layout: Layout = "arrays",
        bands: Sequence[str] | None = None,
    ) -> None:
        if fetch_threads < 1:
            raise ValueError(f"fetch_threads must be at least 1, got {fetch_threads}")
        shown = shown_of(selection, modalities, bands, layout)
        stored = StoredSelection.of(selection, modalities if shown is None else shown.modality_names, columns)
        selection.refuse_repeats("a map-style dataset")
        selection.require_patches("nothing to read")
        self.modalities = tuple(m.name for m in stored.modalities)
        """What the samples hold."""
        self.schema = shown or selection.dataset.schema.only(self.modalities)
        """What their pixels are."""
        self.epoch = epoch
        """Number of the epoch, on which rows of table layers depend and nothing else."""
        self._stored = stored
        self._seed = seed
        self._fetch_threads = fetch_threads
        self._cache = (cache_dir, cache_bytes, memory_bytes)
        self._form: Form = form
        self._layout: Layout = layout
        self._specs: Mapping[str, SampleArray] = {
            **{n: spec for m in self.schema.modalities for n, spec in samples_of(m, layout).items()},
            **stored.specs,
        }
        every = np.arange(stored.num_entries)
        # The samples in the order of the selection, as numbers in stored order.
        self._order = np.argsort(stored.index[stored.patches(every)], kind="stable")
        self._pid: int | None = os.getpid()
        _ = self._reader  # refuses wrong options now, and not in a worker

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._order)

    def __getstate__(self) -> dict[str, Any]:
        # Threads, clients and open files belong to a process.
        own = ("_reader", "_threads", "_groups", "counters")
        return {name: value for name, value in self.__dict__.items() if name not in own} | {"_pid": None}

    def __getitem__(self, at: int | np.integer) -> Sample:
        """One sample: arrays without the axis of the batch, numbers without axes, texts as strings.

        Raises:
            IndexError: If there is no such sample.
        """
        batch = self.take([position_of(at, len(self), what="sample")])
        return {name: values[0] for name, values in batch.items()}

    def __iter__(self) -> Iterator[Sample]:
        """The samples one after another; batches (`take`) are quicker."""
        return (self[at] for at in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that `epoch` says; workers that have a copy already do not hear of it."""
        self.epoch = epoch

    def take(self, at: Several) -> Sample:
        """A batch.

        Args:
            at: Numbers of samples in any order, also several times, from the end where negative; a slice; a mask.

        Returns:
            Arrays with as many rows, new memory; texts and lists of rows as lists.

        Raises:
            ForkError: In a process that was forked.
            IndexError: If there is no such sample.
            ChecksumError: If one is not what was written.
            StorageError: If the store fails.
        """
        self._refuse_fork()
        samples = self._order[positions_of(at, len(self), what="sample")]
        stored = self._stored
        patches, inverse = np.unique(stored.patches(samples), return_inverse=True)
        arrays = {
            name: np.empty((len(samples), *shape), dtype) for name, (shape, dtype) in self._specs.items()
        }
        if len(samples):
            self._load(arrays, patches, inverse)
        found: Sample = dict(arrays)
        rows = patches[inverse]
        stored.fill(arrays, rows)
        for name, texts in stored.columns.texts.items():
            found[name] = texts.take(ints_array(rows)).to_pylist()
        for reader in stored.columns.readers(self.epoch, seed=self._seed):
            found |= reader.load(samples).take(slice(0, len(samples)))
        return found

    def _load(self, arrays: Arrays, patches: Ints, inverse: Ints) -> None:
        """Read the pixels of some patches into rows of arrays; each row is of the patch that `inverse` says."""
        todo = deque((part, group) for group in self._cut(patches) for part in self._reader.parts)
        tasks = [
            self._threads.submit(self._fill, arrays, patches, inverse, todo)
            for _ in range(min(self._fetch_threads, len(todo)))
        ]
        try:
            for task in tasks:
                task.result()
        finally:
            todo.clear()

    def _fill(self, arrays: Arrays, patches: Ints, inverse: Ints, todo: deque[tuple[Sources, Ints]]) -> None:
        """Do what is left: read what a part has of some of the patches, and copy it into the rows that want them."""
        slot = Slot(arrays)  # of this thread alone: what nobody wants of a payload goes to memory of the slot
        while True:
            try:
                part, group = todo.popleft()
            except IndexError:
                return
            for source, found in self._reader.load(part, patches[group]).items():
                for positions, payloads in found:
                    # Which of these payloads each row wants, -1 for none.
                    number = np.full(len(patches), -1)
                    number[group[positions]] = np.arange(len(positions))
                    numbers = number[inverse]
                    rows = np.flatnonzero(numbers >= 0)
                    target = slot.rows(source, self._reader.copies[source])
                    payloads.fill(numbers[rows].tolist(), target, rows.tolist())

    def _cut(self, patches: Ints) -> list[Ints]:
        """Which of the patches are asked for together: those that lie in one object, one after the other."""
        if self._groups is None:
            return [np.arange(len(patches))]
        groups = self._groups[patches]
        order = np.argsort(groups, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)

    @cached_property
    def _groups(self) -> Ints | None:
        """A number for each patch, the same for those in one object; None where readers ask for all at once."""
        stored = self._stored
        backing = stored.selection.dataset.backing
        if isinstance(backing, LmdbFolder | References):
            return None
        if self._form == "zarr":
            return np.unique(stored.values(layout.PRODUCT), return_inverse=True)[1]
        return stored.places.shard

    @cached_property
    def counters(self) -> Counters:
        """What this process has read so far."""
        return Counters()

    @cached_property
    def _reader(self) -> Reader:
        stored, (cache_dir, cache_bytes, memory_bytes) = self._stored, self._cache
        reader = open_reader(
            stored,
            self.counters,
            form=self._form,
            layout=self._layout,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            kept=keep_shards(memory_bytes, cache_dir),
            keep=self._fetch_threads,
            # A sampler asks for one sample of a shard at a time, and for all of them in an epoch.
            uses=CACHED_USES * -(-len(stored.index) // max(1, len(stored.places.shards))),
        )
        if self.schema.modalities == stored.modalities:
            return reader
        return Narrowed(reader, stored.modalities, self.schema.modalities)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._fetch_threads, "reben-fetch")

    def _refuse_fork(self) -> None:
        if self._pid is None:
            self._pid = os.getpid()
        if self._pid != os.getpid():
            raise ForkError(
                "this process was forked from the one that made the dataset, and store clients and threads hang after "
                "a fork; pass multiprocessing_context='forkserver' or 'spawn' to the DataLoader"
            )
