"""The threads of one epoch: what fetches blocks and fills batches, ahead of the one who asks for them."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reben_cloud.root.arrow import ints_array
from reben_cloud.sampling import EpochOrder, Ints, Steps
from reben_cloud.stream.columns import Beside, LoadedRows, Rest, RowReader
from reben_cloud.stream.epoch import EpochSamples
from reben_cloud.stream.gather import BatchBuffers, Rows, Slot
from reben_cloud.stream.payloads import Payloads
from reben_cloud.stream.readers.base import Counters, Reader
from reben_cloud.stream.select import StoredSelection

AHEAD_AT_ONCE = 2
"""Blocks that are asked for ahead of need each time a batch is asked for."""


class _Source(NamedTuple):
    """The payloads of one source that the samples of a block have."""

    name: str
    """A key of `Reader.copies`."""
    payloads: list[Payloads]
    """Where they are."""
    owners: list[int] | None
    """In which of these each sample has its payload; None: in the only one."""
    numbers: Sequence[int]
    """Which payload there it is."""

    def fill(self, inside: slice, slot: Rows, rows: Sequence[int]) -> None:
        """Copy the payloads of some samples into as many rows of a slot."""
        numbers = self.numbers[inside]
        if self.owners is None:
            self.payloads[0].fill(numbers, slot, rows)
            return
        owners = self.owners[inside]
        for owner in dict.fromkeys(owners):
            mine = [i for i, other in enumerate(owners) if other == owner]
            self.payloads[owner].fill([numbers[i] for i in mine], slot, [rows[i] for i in mine])


@dataclass(slots=True, eq=False)
class _Fetched:
    """What this rank delivers of a block, in memory or on its way."""

    samples: Ints
    """Stored positions of the samples in the order in which they are delivered."""
    parts: tuple[Future[list[_Source]], ...]
    """What was asked for of these patches."""
    rows: tuple[Future[LoadedRows], ...]
    """What was asked for of the rows of table layers that the samples have."""
    taken: int = 0
    """How many samples batches have been planned of."""
    _sources: list[_Source] | None = None

    def sources(self) -> list[_Source]:
        """What was asked for of the patches; waits for it."""
        if self._sources is None:
            # `futures.wait` never returns for one that was cancelled.
            self._sources = [source for part in self.parts for source in part.result()]
        return self._sources


class _Run(NamedTuple):
    """Rows of a batch that come from one block."""

    fetched: _Fetched
    inside: slice
    """Which of its samples."""
    rows: range
    """Which rows of the batch."""


class Pipeline:
    """The threads of one epoch: blocks are fetched ahead, batches filled ahead, delivered in order.

    Plans are made by the caller's thread, when it asks for a batch; threads only read and copy.

    Args:
        stored: What is streamed.
        epoch: The samples of the epoch.
        steps: Which samples of the order are this rank's, batch by batch.
        order: Order of the epoch.
        start: Number of the sample, over all ranks, to begin with.
        rows: Read the rows of table layers that samples have.
        reader: Reads the patches of blocks.
        counters: Where to count.
        buffers: Gives memory for batches, and takes back what was not handed out.
        max_blocks: Most blocks that are in use or on their way before they are needed.
        fetch_threads: Concurrent requests.
        gather_threads: Threads that fill batches.
    """

    def __init__(
        self,
        stored: StoredSelection,
        *,
        epoch: EpochSamples,
        steps: Steps,
        order: EpochOrder,
        rows: Sequence[RowReader],
        start: int,
        reader: Reader,
        counters: Counters,
        buffers: BatchBuffers,
        max_blocks: int,
        fetch_threads: int,
        gather_threads: int,
    ) -> None:
        self._stored = stored
        self._epoch = epoch
        self._steps = steps
        self._order = order
        self._rows = rows
        self._reader = reader
        self._counters = counters
        self._buffers = buffers
        self._max_blocks = max_blocks
        self._start = self._number = start
        self._left = self._steps.remaining(start)
        self._schedule = deque(self._order.schedule(self._steps, start))
        self._blocks: defaultdict[int, deque[_Fetched]] = defaultdict(deque)
        self._there: Counter[int] = Counter()  # lane -> samples of its blocks that no batch is planned of yet
        self._in_use = 0
        self._queue: deque[tuple[Slot, int, Future[tuple[Beside, int]]]] = deque()
        self._depth = gather_threads + 1
        self._fetchers = ThreadPoolExecutor(fetch_threads, "reben-fetch")
        self._gatherers = ThreadPoolExecutor(gather_threads, "reben-gather")
        self._lock = threading.Lock()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever ended the epoch, no thread outlives it. Requests in flight are waited for.
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._gatherers.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown()
        self._gatherers.shutdown()
        while self._queue:
            self._buffers.give_back(self._queue.popleft()[0])

    def next(self) -> tuple[Slot, int, Beside, int]:
        """The next batch: slot, number of valid rows, what it has beside arrays of fixed size, sum of its hashes."""
        self._top_up()
        slot, num_valid, filled = self._queue[0]
        beside, value = filled.result()
        self._queue.popleft()
        self._top_up()
        return slot, num_valid, beside, value

    def _top_up(self) -> None:
        while self._left and len(self._queue) < self._depth:
            lanes = self._steps.runs(self._number)
            num_valid = sum(len(rows) for _, rows in lanes)
            if self._queue and self._is_full() and self._lacks_blocks(lanes):
                break  # the batches that are being filled give blocks back first
            runs = self._plan(lanes)
            slot = self._buffers.take()
            future = self._gatherers.submit(self._fill, slot, num_valid, runs)
            self._queue.append((slot, num_valid, future))
            self._number += self._steps.global_batch
            self._left -= 1
        # Ahead of need, but bounded: blocks that nobody will use again have left `_in_use`. A few at a
        # time, so that an epoch's first batch does not wait for the plans of what is needed much later.
        for _ in range(AHEAD_AT_ONCE):
            if self._schedule and not self._is_full():
                self._fetch_next()

    def _is_full(self) -> bool:
        return self._in_use >= self._max_blocks

    def _lacks_blocks(self, lanes: Sequence[tuple[int, range]]) -> bool:
        return any(self._there[lane] < len(rows) for lane, rows in lanes)

    def _fetch_next(self) -> None:
        lane, number = self._schedule.popleft()
        samples = self._order.share(lane, number, self._steps, self._start)
        patches, entries = self._epoch.patches(samples), self._epoch.entries(samples)
        parts = tuple(self._fetchers.submit(self._load, part, patches) for part in self._reader.parts)
        copies = self._epoch.copies(samples)
        rows = tuple(self._fetchers.submit(reader.load, entries, copies) for reader in self._rows)
        with self._lock:
            self._in_use += 1
        self._blocks[lane].append(_Fetched(samples, parts, rows))
        self._there[lane] += len(samples)

    def _load(self, part: tuple[str, ...], patches: Ints) -> list[_Source]:
        """Bring the payloads of a block near; runs on a fetch thread. Where each is, is found out for all at once."""
        unique, inverse = patches, None
        if self._epoch.has_repeats:
            unique, inverse = np.unique(patches, return_inverse=True)
        sources, every = [], np.arange(len(unique))
        for name, found in self._reader.load(part, unique).items():
            payloads = [some for _, some in found]
            # Nearly every block lies in one object, and comes in the order in which it is asked for.
            if inverse is None and len(found) == 1 and np.array_equal(found[0][0], every):
                sources.append(_Source(name, payloads, None, range(len(every))))
                continue
            owner, number = np.full((2, len(unique)), -1)
            for which, (positions, _) in enumerate(found):
                owner[positions], number[positions] = which, np.arange(len(positions))
            assert (owner >= 0).all()
            if inverse is not None:
                owner, number = owner[inverse], number[inverse]
            owners = owner.tolist() if len(found) > 1 else None
            sources.append(_Source(name, payloads, owners, number.tolist()))
        return sources

    def _plan(self, lanes: Sequence[tuple[int, range]]) -> list[_Run]:
        """Which rows come from which blocks; asks for blocks that nobody asked for yet."""
        runs: list[_Run] = []
        for lane, rows in lanes:
            blocks = self._blocks[lane]
            while self._there[lane] < len(rows):
                self._fetch_next()
            self._there[lane] -= len(rows)
            while rows:
                fetched, start = blocks[0], blocks[0].taken
                fetched.taken = min(start + len(rows), len(fetched.samples))
                count = fetched.taken - start
                runs.append(_Run(fetched, slice(start, fetched.taken), rows[:count]))
                rows = rows[count:]
                if fetched.taken == len(fetched.samples):
                    blocks.popleft()
        return runs

    def _fill(self, slot: Slot, num_valid: int, runs: list[_Run]) -> tuple[Beside, int]:
        """Copy the samples into the slot, on a gather thread; returns what does not go there, and their sum."""
        begin, late_s = time.perf_counter(), 0.0
        samples = np.empty(num_valid, np.int64)
        arrays, columns = slot.arrays, self._stored.columns
        beside = Rest(len(arrays["index"]), self._rows)
        to = {name: slot.rows(name, copies) for name, copies in self._reader.copies.items()}
        finished = 0
        # Let go of each block's memory first: what is counted as free must be free.
        while runs:
            asked = time.perf_counter()
            runs[-1].fetched.sources()
            late_s += time.perf_counter() - asked
            finished += self._fill_run(to, runs.pop(), samples, beside)
        patches = self._epoch.patches(samples)
        self._stored.fill(arrays, patches)
        arrays["valid"][:num_valid] = True
        for name, texts in columns.texts.items():
            beside.put_texts(name, texts.take(ints_array(patches)).to_pylist())
        if num_valid < len(arrays["index"]):
            for name in arrays:
                arrays[name][num_valid:] = 0
            arrays["index"][num_valid:] = -1
        with self._lock:
            self._in_use -= finished
        self._counters.add(late_s=late_s, fill_s=time.perf_counter() - begin - late_s)
        return beside.columns, self._epoch.sum_of(samples)

    def _fill_run(self, to: Mapping[str, Rows], run: _Run, samples: Ints, beside: Rest) -> bool:
        """Copy what a run has, and note which samples they are; whether it was the last of its block."""
        fetched, inside, rows = run
        where = slice(rows.start, rows.stop, rows.step)
        samples[where] = fetched.samples[inside]
        for source in fetched.sources():
            source.fill(inside, to[source.name], rows)
        for loaded in fetched.rows:
            for name, values in loaded.result().take(inside).items():
                beside.put(name, where, values)
        return bool(inside.stop == len(fetched.samples))
