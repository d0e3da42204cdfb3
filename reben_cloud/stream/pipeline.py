"""The threads of one epoch: what fetches blocks and fills batches, ahead of the one who asks for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from reben_cloud.root.arrow import ints_array
from reben_cloud.sampling import Block, EpochOrder, Ints, Steps
from reben_cloud.stream.columns import Beside, LoadedRows, Rest, RowReader
from reben_cloud.stream.gather import BatchBuffers, Rows, Slot
from reben_cloud.stream.payloads import Payloads
from reben_cloud.stream.readers.base import Reader
from reben_cloud.stream.select import StoredSelection

AHEAD_AT_ONCE = 2
"""Blocks that are asked for ahead of need each time a batch is asked for."""


class _Source(NamedTuple):
    """The payloads of one source that the samples of a block have."""

    name: str
    """A key of `Reader.copies`."""
    payloads: list[Payloads]
    """Where they are."""
    owners: list[int]
    """In which of these each sample has its payload."""
    numbers: list[int]
    """Which payload there it is."""

    def fill(self, inside: slice, slot: Rows, rows: Sequence[int]) -> None:
        """Copy the payloads of some samples into as many rows of a slot."""
        numbers = self.numbers[inside]
        if len(self.payloads) == 1:
            self.payloads[0].fill(numbers, slot, rows)
            return
        owners = self.owners[inside]
        for owner in dict.fromkeys(owners):
            mine = [i for i, other in enumerate(owners) if other == owner]
            self.payloads[owner].fill([numbers[i] for i in mine], slot, [rows[i] for i in mine])


class _Fetched(NamedTuple):
    """A block that is in memory, or on its way."""

    block: Block
    patches: Ints
    """The patch of each sample."""
    parts: tuple[Future[list[_Source]], ...]
    """What was asked for of these patches."""
    rows: tuple[Future[LoadedRows], ...]
    """What was asked for of the rows of table layers that the samples have."""


class _Run(NamedTuple):
    """Rows of a batch that come from one block."""

    fetched: _Fetched
    inside: slice
    """Which samples of the block."""
    rows: slice
    """Which rows of the batch."""


class Pipeline:
    """The threads of one epoch: blocks are fetched ahead, batches filled ahead, delivered in order.

    Plans are made by the caller's thread, when it asks for a batch; threads only read and copy.

    Args:
        stored: What is streamed.
        steps: Which samples of the order are this rank's, batch by batch.
        order: Order of the epoch.
        start: Number of the sample, over all ranks, to begin with.
        rows: Read the rows of table layers that samples have.
        reader: Reads the patches of blocks.
        buffers: Gives memory for batches, and takes back what was not handed out.
        max_blocks: Most blocks that are in use or on their way before they are needed.
        fetch_threads: Concurrent requests.
        gather_threads: Threads that fill batches.
    """

    def __init__(
        self,
        stored: StoredSelection,
        *,
        steps: Steps,
        order: EpochOrder,
        rows: Sequence[RowReader],
        start: int,
        reader: Reader,
        buffers: BatchBuffers,
        max_blocks: int,
        fetch_threads: int,
        gather_threads: int,
    ) -> None:
        self._stored = stored
        self._steps = steps
        self._order = order
        self._rows = rows
        self._reader = reader
        self._buffers = buffers
        self._max_blocks = max_blocks
        self._number = start
        self._left = self._steps.remaining(start)
        self._schedule = deque(self._order.schedule(self._steps.rank, self._steps.world_size, start=start))
        self._blocks: dict[int, deque[_Fetched]] = {}
        self._in_use = 0
        self._queue: deque[tuple[Slot, int, Future[Beside]]] = deque()
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

    def next(self) -> tuple[Slot, int, Beside]:
        """The next batch's slot, its number of valid rows, and what it has beside arrays of fixed size."""
        self._top_up()
        slot, num_valid, filled = self._queue[0]
        beside = filled.result()
        self._queue.popleft()
        self._top_up()
        return slot, num_valid, beside

    def _top_up(self) -> None:
        while self._left and len(self._queue) < self._depth:
            numbers = self._steps.numbers(self._number)
            if self._queue and self._is_full() and self._lacks_blocks(numbers):
                break  # the batches that are being filled give blocks back first
            runs = self._plan(numbers)
            slot = self._buffers.take()
            future = self._gatherers.submit(self._fill, slot, len(numbers), runs)
            self._queue.append((slot, len(numbers), future))
            self._number += self._steps.global_batch
            self._left -= 1
        # Ahead of need, but bounded: blocks that nobody will use again have left `_in_use`. A few at a
        # time, so that an epoch's first batch does not wait for the plans of what is needed much later.
        for _ in range(AHEAD_AT_ONCE):
            if self._schedule and not self._is_full():
                self._fetch_next()

    def _is_full(self) -> bool:
        return self._in_use >= self._max_blocks

    def _lacks_blocks(self, numbers: Ints) -> bool:
        stride = self._order.lanes // self._steps.world_size
        for last in numbers[-stride:].tolist():
            blocks = self._blocks.get(last % self._order.lanes)
            if not blocks or blocks[-1].block.stop <= last // self._order.lanes:
                return True
        return False

    def _fetch_next(self) -> None:
        lane, number = self._schedule.popleft()
        block = self._order.block(lane, number)
        patches = self._stored.patches(block.samples)
        parts = tuple(self._fetchers.submit(self._load, part, patches) for part in self._reader.parts)
        rows = tuple(self._fetchers.submit(reader.load, block.samples) for reader in self._rows)
        with self._lock:
            self._in_use += 1
        self._blocks.setdefault(lane, deque()).append(_Fetched(block, patches, parts, rows))

    def _load(self, part: tuple[str, ...], patches: Ints) -> list[_Source]:
        """Bring the payloads of a block near; runs on a fetch thread. Where each is, is found out for all at once."""
        unique, inverse = patches, None
        if self._stored.columns.patch_of is not None:
            unique, inverse = np.unique(patches, return_inverse=True)
        sources = []
        for name, found in self._reader.load(part, unique).items():
            owner, number = np.full((2, len(unique)), -1)
            for which, (positions, _) in enumerate(found):
                owner[positions], number[positions] = which, np.arange(len(positions))
            assert (owner >= 0).all()
            if inverse is not None:
                owner, number = owner[inverse], number[inverse]
            sources.append(
                _Source(name, [payloads for _, payloads in found], owner.tolist(), number.tolist())
            )
        return sources

    def _plan(self, numbers: Ints) -> list[_Run]:
        """Which rows come from which blocks; asks for blocks that nobody asked for yet."""
        runs: list[_Run] = []
        lanes, world_size = self._order.lanes, self._steps.world_size
        stride = lanes // world_size
        for first in range(min(stride, len(numbers))):
            lane = int(numbers[first]) % lanes
            position, stop = int(numbers[first]) // lanes, 0
            row = first
            count = len(range(first, len(numbers), stride))
            end = position + count
            while position < end:
                blocks = self._blocks.setdefault(lane, deque())
                while not blocks:
                    self._fetch_next()
                fetched = blocks[0]
                stop = min(end, fetched.block.stop)
                taken = stop - position
                rows = slice(row, row + (taken - 1) * stride + 1, stride)
                runs.append(
                    _Run(fetched, slice(position - fetched.block.start, stop - fetched.block.start), rows)
                )
                if stop == fetched.block.stop:
                    blocks.popleft()
                position, row = stop, row + taken * stride
        return runs

    def _fill(self, slot: Slot, num_valid: int, runs: list[_Run]) -> Beside:
        """Copy the samples into the slot; runs on a gather thread. What does not go there is returned."""
        patches = np.empty(num_valid, np.int64)
        arrays, columns = slot.arrays, self._stored.columns
        beside = Rest(len(arrays["index"]), self._rows)
        to = {name: slot.rows(name, copies) for name, copies in self._reader.copies.items()}
        finished = 0
        # Let go of each block's memory first: what is counted as free must be free.
        while runs:
            finished += self._fill_run(to, runs.pop(), patches, beside)
        arrays["labels"][:num_valid] = self._stored.labels[patches]
        arrays["index"][:num_valid] = self._stored.index[patches]
        arrays["valid"][:num_valid] = True
        for name, values in columns.arrays.items():
            arrays[name][:num_valid] = values[patches]
        for name, texts in columns.texts.items():
            beside.put_texts(name, texts.take(ints_array(patches)).to_pylist())
        if num_valid < len(arrays["index"]):
            for name in arrays:
                arrays[name][num_valid:] = 0
            arrays["index"][num_valid:] = -1
        with self._lock:
            self._in_use -= finished
        return beside.columns

    def _fill_run(self, to: Mapping[str, Rows], run: _Run, patches: Ints, beside: Rest) -> bool:
        """Copy what a run has, and note which patches they are; whether it was the last of its block."""
        fetched = run.fetched
        rows = range(run.rows.start, run.rows.stop, run.rows.step)
        patches[run.rows] = fetched.patches[run.inside]
        for part in fetched.parts:
            for source in part.result():
                source.fill(run.inside, to[source.name], rows)
        for loaded in fetched.rows:
            for name, values in loaded.result().take(run.inside).items():
                beside.put(name, run.rows, values)
        return bool(run.inside.stop == len(fetched.block.samples))
