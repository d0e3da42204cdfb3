"""Raw batches of a selection: exactly once an epoch, prefetched by threads, verified, resumable.

`RawLoader` joins the order (`sampling`), the readers (`stream.fetch`) and the buffers
(`stream.gather`). It gives NumPy arrays and knows nothing of PyTorch; `reben_cloud.torch` wraps it.
"""

from __future__ import annotations

import operator
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from reben_cloud.errors import ForkError, NotFoundError
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Block, EpochOrder, Ints, Steps
from reben_cloud.schema import SampleArray
from reben_cloud.stream.gather import Arrays, BatchBuffers, LentBatches, Slot
from reben_cloud.stream.payloads import Part
from reben_cloud.stream.readers.base import Counters, Reader
from reben_cloud.stream.select import Form, StoredSelection, open_reader

__all__ = ["Form", "RawLoader", "StreamStats"]

STATE_VERSION = 1
"""Version of `RawLoader.state_dict`; it goes up when an order changes."""

AHEAD_AT_ONCE = 2
"""Blocks that are asked for ahead of need each time a batch is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamStats:
    """What a loader did so far, over all its epochs."""

    samples: int
    """Samples handed out."""
    batches: int
    """Batches handed out."""
    bytes_delivered: int
    """Bytes of pixels in these samples."""
    bytes_read: int
    """Bytes fetched from the store, or read from local files."""
    requests: int
    """Objects, ranges and records asked for."""
    retries: int
    """Objects asked for again, because they came damaged or the store failed."""
    cache_hits: int
    """Shards found in the disk cache."""
    wait_s: float
    """Seconds that the caller waited for batches: what storage and copying cost the training."""
    elapsed_s: float
    """Seconds from the start of the first epoch to the last batch."""

    @property
    def samples_per_s(self) -> float:
        """Samples handed out a second."""
        return self.samples / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes of pixels handed out a second."""
        return self.bytes_delivered / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time that the caller waited, in [0, 1]."""
        return self.wait_s / self.elapsed_s if self.elapsed_s else 0.0

    def to_line(self) -> str:
        """The rates, in one line."""
        return (
            f"{self.samples_per_s:,.0f} samples/s, {self.bytes_per_s / 1e6:,.0f} MB/s, "
            f"waited {self.wait_share:.0%}, {self.retries} retries"
        )

    def to_text(self) -> str:
        """A few lines for people."""
        return "\n".join(
            [
                f"{self.samples:,} samples in {self.batches:,} batches, {self.elapsed_s:.2f} s: {self.to_line()}",
                f"  read       {self.bytes_read / 1e6:,.1f} MB in {self.requests:,} requests",
                f"  delivered  {self.bytes_delivered / 1e6:,.1f} MB of pixels",
                f"  cache      {self.cache_hits:,} hits",
            ]
        )


class RawLoader:
    """Iterable over the raw batches of one epoch after another.

    Each ``iter()`` runs one epoch, and ends an earlier one of this loader that was not through; with
    its last batch, the loader is at the start of the next epoch.

    A batch is a dict of arrays: the pixel arrays of the modalities in native resolution (``s2_10m``
    [B, 4, 120, 120], ``s2_20m`` [B, 6, 60, 60], ``s2_60m`` [B, 2, 20, 20] uint16, ``s1``
    [B, 2, 120, 120] float32 dB with VV first, ``map`` [B, 120, 120] uint16), ``labels`` [B, 19]
    float32 in alphabetical class order, ``index`` [B] int64 (position in the selection) and
    ``valid`` [B] bool. Rows that are not valid are padding: zeros, with index -1.

    A batch stays as it is for as long as anything refers to it or to a view of it; then its memory is used
    again. Keep what you like (it costs memory), but do not keep bare addresses.

    What a batch holds was compared with checksums after it was read, each time: files that are written to,
    cut short or replaced while they are read are an error, or fetched again where they were a cache.

    Args:
        selection: What to stream (`Dataset.search`).
        modalities: Of ``s2``, ``s1``, ``map``; by default all that the dataset has.
        batch_size: Samples in a batch of this rank.
        seed: Seed of the order.
        epoch: Number of the first epoch.
        shuffle: Shuffle; otherwise samples come in the order of the selection, which reads a
            remote root sample by sample. To evaluate, shuffle and use ``index``.
        drop_last: Leave out the last global batch when it is not full.
        rank: This rank.
        world_size: Number of ranks; must divide `lanes`.
        lanes: Canonical partitions of the order; the order depends on it.
        window: Shards of a lane that are shuffled together; the order depends on it.
        prefetch: Shards (of all modalities) fetched ahead of the ones in use; by default as many
            as are in use. At most (lanes of this rank x window + prefetch) shards are resident.
        fetch_threads: Concurrent requests.
        gather_threads: Threads that fill batches.
        cache_dir: Folder for whole shards of a remote root; may be shared by processes.
        cache_bytes: Most bytes in that folder; None for no bound.
        form: ``shards`` or ``zarr``; an LMDB export is always read as what it is.
        buffers: Makes the memory that batches are handed out in, given the name, shape and dtype of every
            array; by default NumPy arrays that are used again.

    Raises:
        NotFoundError: If the selection is empty (it names the condition that left nothing), or `drop_last`
            leaves no batch.
        TypeError: If `selection` is no selection, or `batch_size` no integer.
        ValueError: If an argument is out of range, or the selection lacks a modality.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        modalities: Sequence[str] | None = None,
        batch_size: int = 256,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 8,
        window: int = 1,
        prefetch: int | None = None,
        fetch_threads: int = 8,
        gather_threads: int = 2,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        form: Form = "shards",
        buffers: Callable[[Mapping[str, SampleArray]], BatchBuffers] | None = None,
    ) -> None:
        if fetch_threads < 1 or gather_threads < 1:
            raise ValueError(
                f"fetch_threads and gather_threads must be at least 1, got {fetch_threads} and {gather_threads}"
            )
        batch_size = operator.index(batch_size)
        stored = StoredSelection.of(selection, modalities)
        selection.require_patches("nothing to stream")
        self.modalities = tuple(m.name for m in stored.modalities)
        """What the batches hold."""
        self.epoch = epoch
        """Number of the epoch that runs or comes next."""
        self.num_samples = len(stored.index)
        """Samples in an epoch, over all ranks."""
        self._order_key = {"seed": seed, "lanes": lanes, "window": window, "shuffle": shuffle}
        self._fingerprint = stored.fingerprint
        self._digest = stored.digest
        self._stored = stored
        self._steps = Steps(
            num_samples=self.num_samples,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        if not len(self):
            raise NotFoundError(
                f"nothing to stream: {self.num_samples:,} patches do not fill a batch of {self._steps.global_batch} "
                "(over all ranks), and drop_last leaves out what does not"
            )
        self._order()  # refuses wrong lanes, window, rank now and not in the first epoch
        self._counters = Counters()
        lanes_here = lanes // world_size
        self._resident = lanes_here * window + (lanes_here * window if prefetch is None else prefetch)
        if self._resident < lanes_here * window:
            raise ValueError(f"prefetch must not be negative, got {prefetch}")
        self._window = window
        self._reader: Reader = open_reader(
            stored,
            self._counters,
            form=form,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            keep=self._resident,
        )
        self._threads = (fetch_threads, gather_threads)
        pixels = {name: spec for m in stored.modalities for name, spec in m.samples.items()}
        self._sample_bytes = sum(spec.nbytes for spec in pixels.values())
        # Ranks must agree on shapes; one alone never needs more rows than there are samples.
        rows = batch_size if world_size > 1 else min(batch_size, self.num_samples)
        in_memory = gather_threads + 2
        _check_memory(rows * self._sample_bytes, in_memory, batch_size)
        specs = {name: SampleArray((rows, *shape), dtype) for name, (shape, dtype) in pixels.items()} | {
            "labels": SampleArray((rows, stored.labels.shape[1]), np.dtype(np.float32)),
            "index": SampleArray((rows,), np.dtype(np.int64)),
            "valid": SampleArray((rows,), np.dtype(np.bool_)),
        }
        self._buffers = (
            buffers(specs) if buffers else LentBatches(partial(_make_arrays, specs), keep=in_memory)
        )
        self._position = 0
        self._resume_at = 0
        self._running: object = None
        self._samples = self._batches = 0
        self._wait_s = self._elapsed_s = 0.0
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return self._steps.remaining(0)

    def __iter__(self) -> Iterator[Arrays]:
        """Run the epoch `self.epoch`, from where `load_state_dict` says or from its start."""
        if os.getpid() != self._pid:
            raise ForkError(
                "this loader was made before its process was forked, and its threads and clients do not survive that; "
                "start workers with multiprocessing_context='forkserver' or 'spawn', "
                "or use StreamLoader without workers (it has threads of its own)"
            )
        start, self._resume_at = self._resume_at, 0
        self._position = start
        self._running = running = object()
        return self._run(start, running)

    def _run(self, start: int, running: object) -> Iterator[Arrays]:
        begin, before = time.perf_counter(), self._elapsed_s
        steps = self._steps
        # With one rank the last batch is simply short; ranks must agree on shapes and steps.
        pad = steps.world_size > 1
        num_steps = steps.remaining(start)
        if not num_steps:
            self._go_to_next_epoch()
        with _Pipeline(self, start) as pipeline:
            for left in reversed(range(num_steps)):
                if self._running is not running:
                    raise RuntimeError(
                        "this iterator was left behind: the loader was iterated again, or told to go to another epoch "
                        "or position; make a second loader to run two epochs at the same time"
                    )
                asked = time.perf_counter()
                slot, num_valid = pipeline.next()
                now = time.perf_counter()
                self._wait_s += now - asked
                self._elapsed_s = before + now - begin
                self._samples += num_valid
                self._batches += 1
                if left:
                    self._position += steps.global_batch
                else:  # now, because not everybody asks for a batch after the last one
                    self._go_to_next_epoch()
                batch = self._buffers.hand_out(slot, steps.batch_size if pad else num_valid)
                del slot
                yield batch
                del batch

    def _go_to_next_epoch(self) -> None:
        self._position = 0
        self.epoch += 1

    def _order(self) -> EpochOrder:
        key = dict(self._order_key)
        shuffle = key.pop("shuffle")
        order = EpochOrder(
            np.bincount(self._stored.places.shard, minlength=len(self._stored.places.shards)),
            self._stored.places.row,
            epoch=self.epoch,
            fingerprint=self._fingerprint,
            in_order=None if shuffle else np.argsort(self._stored.index, kind="stable"),
            **key,
        )
        order.schedule(self._steps.rank, self._steps.world_size, start=self.num_samples)
        return order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter()`` runs; a resume position holds if it is the same one."""
        if epoch != self.epoch:
            self.epoch, self._resume_at, self._position, self._running = epoch, 0, 0, None

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, after the batch handed out last: a few integers."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "position": self._position,
            "num_samples": self.num_samples,
            "fingerprint": _number(self._fingerprint),
            "selection": self._digest,
            **{name: int(value) for name, value in self._order_key.items()},
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where another loader stopped; the number of ranks and the batch size may differ.

        Raises:
            ValueError: If the state is of another selection or order, or these ranks cannot continue there.
        """
        self._adopt_former(state)
        here = self.state_dict()
        for name in here.keys() - {"epoch", "position"}:
            if name == "fingerprint" and state.get(name) != here[name] and self._former():
                raise ValueError(
                    f"the state was saved with fingerprint={state.get(name)}, this loader has {here[name]}: another "
                    "dataset, or this LMDB as an earlier reben_cloud with another pyarrow named it; go on with the "
                    "versions that saved it, or begin the epoch again"
                )
            if state.get(name) != here[name]:
                raise ValueError(
                    f"the state was saved with {name}={state.get(name)}, this loader has {name}={here[name]}; "
                    "resume with the same dataset, selection and order"
                )
        self._steps.check_start(state["position"])
        self.epoch, self._running = state["epoch"], None
        self._resume_at = self._position = state["position"]

    def _former(self) -> str | None:
        return self._stored.selection.dataset.former_fingerprint

    def _adopt_former(self, state: Mapping[str, int]) -> None:
        """Go on in the order of the first version, if a state was saved by it."""
        former = self._former()
        if former is not None and state.get("fingerprint") == _number(former):
            self._fingerprint = former

    def stats(self) -> StreamStats:
        """What was done so far; may be called at any time, from any thread."""
        counted = self._counters
        return StreamStats(
            samples=self._samples,
            batches=self._batches,
            bytes_delivered=self._samples * self._sample_bytes,
            bytes_read=counted.bytes_read,
            requests=counted.requests,
            retries=counted.retries,
            cache_hits=counted.cache_hits,
            wait_s=self._wait_s,
            elapsed_s=self._elapsed_s,
        )


def _number(fingerprint: str) -> int:
    return int(fingerprint or "0", 16) % 2**63


def _check_memory(nbytes: int, batches: int, batch_size: int) -> None:
    """Refuse batches that this machine cannot hold: memory is given on paper, and the machine dies of it later."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes * batches > memory:
        raise ValueError(
            f"batch_size={batch_size} takes {nbytes / 1e9:,.1f} GB a batch, and {batches} are in memory at a time; "
            f"this machine has {memory / 1e9:,.1f} GB: take a smaller batch_size"
        )


def _make_arrays(specs: Mapping[str, SampleArray]) -> Arrays:
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in specs.items()}


class _Fetched(NamedTuple):
    """A block that is in memory, or on its way."""

    block: Block
    parts: tuple[Future[Part], ...]


class _Run(NamedTuple):
    """Rows of a batch that come from one block."""

    fetched: _Fetched
    inside: slice
    """Which samples of the block."""
    rows: slice
    """Which rows of the batch."""


class _Pipeline:
    """The threads of one epoch: blocks are fetched ahead, batches filled ahead, delivered in order.

    Plans are made by the caller's thread, when it asks for a batch; threads only read and copy.
    """

    def __init__(self, loader: RawLoader, start: int) -> None:
        self._loader = loader
        self._steps = loader._steps
        self._order = loader._order()
        self._number = start
        self._left = self._steps.remaining(start)
        self._schedule = deque(self._order.schedule(self._steps.rank, self._steps.world_size, start=start))
        self._blocks: dict[int, deque[_Fetched]] = {}
        self._in_use = 0
        self._queue: deque[tuple[Slot, int, Future[None]]] = deque()
        fetch_threads, gather_threads = loader._threads
        self._depth = gather_threads + 1
        self._fetchers = ThreadPoolExecutor(fetch_threads, "reben-fetch")
        self._gatherers = ThreadPoolExecutor(gather_threads, "reben-gather")
        self._lock = threading.Lock()

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever ended the epoch, no thread outlives it. Requests in flight are waited for.
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._gatherers.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown()
        self._gatherers.shutdown()
        while self._queue:
            self._loader._buffers.give_back(self._queue.popleft()[0])

    def next(self) -> tuple[Slot, int]:
        """The next batch's slot and its number of valid rows."""
        self._top_up()
        slot, num_valid, filled = self._queue[0]
        filled.result()
        self._queue.popleft()
        self._top_up()
        return slot, num_valid

    def _top_up(self) -> None:
        while self._left and len(self._queue) < self._depth:
            numbers = self._steps.numbers(self._number)
            if self._queue and self._is_full() and self._lacks_blocks(numbers):
                break  # the batches that are being filled give blocks back first
            runs = self._plan(numbers)
            slot = self._loader._buffers.take()
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
        return self._in_use * self._loader._window >= self._loader._resident

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
        reader = self._loader._reader
        parts = tuple(self._fetchers.submit(reader.load, part, block.samples) for part in reader.parts)
        with self._lock:
            self._in_use += 1
        self._blocks.setdefault(lane, deque()).append(_Fetched(block, parts))

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

    def _fill(self, slot: Slot, num_valid: int, runs: list[_Run]) -> None:
        """Copy the samples into the slot; runs on a gather thread."""
        loader = self._loader
        stored = np.empty(num_valid, np.int64)
        finished = 0
        # Let go of each block's memory first: what is counted as free must be free.
        while runs:
            finished += self._fill_run(slot, runs.pop(), stored)
        arrays = slot.arrays
        arrays["labels"][:num_valid] = loader._stored.labels[stored]
        arrays["index"][:num_valid] = loader._stored.index[stored]
        arrays["valid"][:num_valid] = True
        if num_valid < len(arrays["index"]):
            for name in arrays:
                arrays[name][num_valid:] = 0
            arrays["index"][num_valid:] = -1
        with self._lock:
            self._in_use -= finished

    def _fill_run(self, slot: Slot, run: _Run, stored: Ints) -> bool:
        """Copy the pixels of a run into the slot, and note what they are; whether that was the last of its block."""
        stored[run.rows] = run.fetched.block.samples[run.inside]
        rows = np.arange(run.rows.start, run.rows.stop, run.rows.step)
        for source, found in chain.from_iterable(part.result().items() for part in run.fetched.parts):
            copies = self._loader._reader.copies[source]
            for positions, payloads in found:
                numbers = np.flatnonzero((positions >= run.inside.start) & (positions < run.inside.stop))
                if numbers.size:
                    payloads.fill(numbers, slot, copies, rows[positions[numbers] - run.inside.start])
        return bool(run.inside.stop == len(run.fetched.block.samples))
