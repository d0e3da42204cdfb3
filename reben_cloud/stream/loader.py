"""`RawLoader`: an epoch's batches one after another, from an order (`sampling`), a reader and buffers.

What runs in its threads is in `pipeline`; where a loader was, and going on there, is here.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from reben_cloud.errors import ForkError, NotFoundError
from reben_cloud.files.system import memory_bytes
from reben_cloud.root.mixture import Mixture
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import EpochOrder, Steps
from reben_cloud.schema import SampleArray, Schema
from reben_cloud.stream.bands import Narrowed, shown_of
from reben_cloud.stream.delivered import Delivered
from reben_cloud.stream.epoch import Entries, EpochSamples
from reben_cloud.stream.expected import Expected, expect_epoch
from reben_cloud.stream.gather import Arrays, BatchBuffers, Layout, LentBatches, samples_of
from reben_cloud.stream.kept import keep_shards
from reben_cloud.stream.mixed import open_reader_of, stored_of
from reben_cloud.stream.pipeline import Pipeline
from reben_cloud.stream.readers.base import Counters, Reader
from reben_cloud.stream.select import Form, StoredSelection
from reben_cloud.stream.stats import StreamStats
from reben_cloud.wording import size_text

logger = logging.getLogger(__name__)

STATE_VERSION = 1
"""Version of `RawLoader.state_dict`; it goes up when an order changes."""


_OF_A_PLACE = {"epoch", "position", "rank", "world_size", "delivered", "digest"}
"""What of a state may differ between two loaders of one order."""


class RawLoader:
    """Iterable over the raw batches of one epoch after another.

    Each ``iter()`` runs one epoch, and ends an earlier one of this loader that was not through; with
    its last batch, the loader is at the start of the next epoch.

    A batch is a dict of arrays: the pixel arrays of the modalities in native resolution (``s2_10m``
    [B, 4, 120, 120], ``s2_20m`` [B, 6, 60, 60], ``s2_60m`` [B, 2, 20, 20] uint16, ``s1``
    [B, 2, 120, 120] float32 dB with VV first, ``map`` [B, 120, 120] uint16), ``labels`` [B, 19]
    float32 in alphabetical class order, ``index`` [B] int64 (position in the selection) and
    ``valid`` [B] bool. Rows that are not valid are padding: zeros, with index -1. An array layer adds its
    arrays and ``<name>_present`` [B] bool: where that is False they hold fill values.

    A batch stays as it is for as long as anything refers to it or to a view of it; then its memory is used
    again. Keep what you like (it costs memory), but do not keep bare addresses.

    What a batch holds was compared with checksums after it was read, each time: files that are written to,
    cut short or replaced while they are read are an error, or fetched again where they were a cache.

    Args:
        selection: What to stream (`Dataset.search`), or several as one (`concat`).
        modalities: Of ``s2``, ``s1``, ``map``, and the names of array layers; by default all that the dataset has.
        columns: Columns of table layers with a row per patch that batches have, such as ``["climate:zone"]``:
            numbers as arrays, texts as lists of strings. By default all of numbers that are never null. Rows of
            a layer with several rows per patch come with the selection (`Selection.with_rows`).
        batch_size: Samples in a batch of this rank.
        seed: Seed of the order.
        epoch: Number of the first epoch.
        shuffle: Shuffle; otherwise samples come in the order of the selection, which reads a
            remote root sample by sample. To evaluate, shuffle and use ``index``.
        drop_last: Leave out the last global batch when it is not full.
        rank: This rank.
        world_size: Number of ranks. If it does not divide `lanes`, ranks share lanes: they deliver the same
            global batches and read more bytes of a remote root, which is logged once.
        lanes: Canonical partitions of the order; the order depends on it.
        window: Shards of a lane that are shuffled together; the order depends on it.
        prefetch: Shards (of all modalities) fetched ahead of the ones in use; by default as many
            as are in use. At most (lanes of this rank x window + prefetch) shards are resident.
        fetch_threads: Concurrent requests.
        gather_threads: Threads that fill batches.
        cache_dir: Folder for whole shards of a remote root; may be shared by processes.
        cache_bytes: Most bytes in that folder; None for no bound.
        memory_bytes: Most bytes of whole shards, local or remote, that are kept in the memory of this process once
            they were read and verified. Later epochs copy from there, at half the cost of files in the page cache;
            what does not fit is read as ever.
        form: ``shards`` or ``zarr``; an LMDB export is always read as what it is.
        layout: ``arrays``, or ``records``: a batch then has, for each modality under its name, the payloads as they
            are stored, uint8 [B, payload_bytes] (rows of padding are zeros), in place of the pixel arrays. It is a
            copy for each payload and no more; `reben_cloud.torch.ModelInput` takes either, and
            `reben_cloud.torch.unpack` makes the arrays of it, on any device. Order, state and cache are the same.
        bands: Names of bands, such as ``("B04", "B03", "B02")``: batches have these alone, in this order within
            each array (``s2_10m`` [B, 3, 120, 120]), and `schema` says so to a `ModelInput`. Modalities without any of
            them are not read, but for those without bands (``map``) that `modalities` names. Payloads are read and
            compared whole, because a checksum is of all of one; with ``form="zarr"`` only arrays with one of the
            bands are read. Order, state and cache are the same.
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
        selection: Selection | Mixture,
        *,
        modalities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
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
        memory_bytes: int = 0,
        form: Form = "shards",
        layout: Layout = "arrays",
        bands: Sequence[str] | None = None,
        buffers: Callable[[Mapping[str, SampleArray]], BatchBuffers] | None = None,
    ) -> None:
        if fetch_threads < 1 or gather_threads < 1:
            raise ValueError(
                f"fetch_threads and gather_threads must be at least 1, got {fetch_threads} and {gather_threads}"
            )
        batch_size = operator.index(batch_size)
        first = selection.parts[0] if isinstance(selection, Mixture) else selection
        shown = shown_of(first, modalities, bands, layout)
        stored = stored_of(selection, modalities if shown is None else shown.modality_names, columns)
        selection.require_patches("nothing to stream")
        self.modalities = tuple(m.name for m in stored.modalities)
        """What the batches hold."""
        self.schema = shown or first.dataset.schema.only(self.modalities)
        """What the pixels of batches are."""
        self.epoch = epoch
        """Number of the epoch that runs or comes next."""
        self._entries = Entries(stored, selection.repeats)
        self.num_samples = self._entries.num_samples
        """Samples in an epoch, over all ranks."""
        self._order_key = {"seed": seed, "lanes": lanes, "window": window, "shuffle": shuffle}
        self._fingerprint = stored.fingerprint
        self._digest = self._entries.digest
        self._stored = stored
        self._steps = Steps(
            num_samples=self.num_samples,
            batch_size=batch_size,
            lanes=lanes,
            rank=rank,
            world_size=world_size,
            drop_last=drop_last,
        )
        if not len(self):
            raise NotFoundError(
                f"nothing to stream: {self.num_samples:,} patches do not fill a batch of {self._steps.global_batch} "
                "(over all ranks), and drop_last leaves out what does not"
            )
        self._plan()  # refuses a wrong seed, epoch or window now and not in the first epoch
        self._counters = Counters()
        lanes_read = self._steps.readers()
        lanes_here = int(lanes_read[rank])
        self._resident = lanes_here * window + (lanes_here * window if prefetch is None else prefetch)
        if self._resident < lanes_here * window:
            raise ValueError(f"prefetch must not be negative, got {prefetch}")
        self._memory_bytes = memory_bytes
        self._window = window
        self._reader: Reader = open_reader_of(
            stored,
            self._counters,
            form=form,
            layout=layout,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            keep=self._resident,
            kept=keep_shards(memory_bytes, cache_dir),
        )
        if self._steps.shares_lanes and not rank and not stored.is_local:
            _say_shared(lanes, world_size, int(lanes_read.sum()))
        if shown is not None:
            self._reader = Narrowed(self._reader, stored.modalities, shown.modalities)
        self._threads = (fetch_threads, gather_threads)
        self._sample_bytes = sum(tensor.nbytes for m in self.schema.modalities for tensor in m.tensors)
        # Ranks must agree on shapes; one alone never needs more rows than there are samples.
        rows = batch_size if world_size > 1 else min(batch_size, self.num_samples)
        specs, self._batch_bytes = _specs_of_batch(self.schema, stored, layout, rows)
        in_memory = gather_threads + 2
        _check_memory(self._batch_bytes, in_memory, batch_size)
        self._buffers = buffers(specs) if buffers else LentBatches(specs, keep=in_memory)
        self._position = 0
        self._resume_at = 0
        self._running: object = None
        self._delivered = Delivered(epoch=epoch)
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
        if not start or self._delivered.epoch != self.epoch:
            self._delivered = Delivered(epoch=self.epoch)
        if not num_steps:
            self._go_to_next_epoch()
        fetch_threads, gather_threads = self._threads
        samples, order = self._plan()
        pipeline = Pipeline(
            self._stored,
            epoch=samples,
            steps=steps,
            order=order,
            rows=self._stored.columns.readers(self.epoch, seed=self._order_key["seed"]),
            start=start,
            reader=self._reader,
            counters=self._counters,
            buffers=self._buffers,
            max_blocks=-(-self._resident // self._window),
            fetch_threads=fetch_threads,
            gather_threads=gather_threads,
        )
        with pipeline:
            for left in reversed(range(num_steps)):
                if self._running is not running:
                    raise RuntimeError(
                        "this iterator was left behind: the loader was iterated again, or told to go to another epoch "
                        "or position; make a second loader to run two epochs at the same time"
                    )
                asked = time.perf_counter()
                slot, num_valid, beside, value = pipeline.next()
                now = time.perf_counter()
                self._wait_s += now - asked
                self._elapsed_s = before + now - begin
                self._delivered = self._delivered.plus(num_valid, value)
                self._samples += num_valid
                self._batches += 1
                if left:
                    self._position += steps.global_batch
                else:  # now, because not everybody asks for a batch after the last one
                    self._go_to_next_epoch()
                num_rows = steps.batch_size if pad else num_valid
                batch = self._buffers.hand_out(slot, num_rows)
                batch |= {name: values[:num_rows] for name, values in beside.items()}
                del slot
                yield batch
                del batch

    def _go_to_next_epoch(self) -> None:
        self._position = 0
        self.epoch += 1

    def _plan(self) -> tuple[EpochSamples, EpochOrder]:
        """The samples of the epoch and their order."""
        seed, lanes, window, shuffle = (
            self._order_key[name] for name in ("seed", "lanes", "window", "shuffle")
        )
        samples = self._entries.of_epoch(self.epoch, seed=seed)
        order = samples.order(
            seed=seed, fingerprint=self._fingerprint, lanes=lanes, window=window, shuffle=bool(shuffle)
        )
        return samples, order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter()`` runs; a resume position holds if it is the same one."""
        if epoch != self.epoch:
            self.epoch, self._resume_at, self._position, self._running = epoch, 0, 0, None

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, after the batch handed out last: a few integers.

        All but ``rank``, ``delivered`` and ``digest`` are the same on every rank: these say what this rank delivered
        of the epoch (`Delivered`). `merge_states` makes one state of those of all ranks.
        """
        delivered = self._delivered
        if delivered.epoch != self.epoch or not self._position:
            delivered = Delivered(epoch=self.epoch)
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "position": self._position,
            "num_samples": self.num_samples,
            "fingerprint": _number(self._fingerprint),
            "selection": self._digest,
            **{name: int(value) for name, value in self._order_key.items()},
            "rank": self._steps.rank,
            "world_size": self._steps.world_size,
            **delivered.to_state(),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where another loader stopped; the number of ranks and the batch size may differ.

        What was delivered goes on being summed from a state of this rank, or, on rank 0, from one that says what all
        ranks delivered (`merge_states`, or of a run of one rank). From any other, this loader's sum begins with
        nothing.

        Raises:
            ValueError: If the state is of another selection or order.
        """
        self._adopt_former(state)
        here = self.state_dict()
        for name in here.keys() - _OF_A_PLACE:
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
        delivered = Delivered.of_state(state)
        is_whole = delivered.num_samples == self._position
        is_mine = (state.get("rank"), state.get("world_size")) == (self._steps.rank, self._steps.world_size)
        self._delivered = (
            delivered if (not self._steps.rank if is_whole else is_mine) else Delivered(epoch=self.epoch)
        )

    def _former(self) -> str | None:
        return self._stored.former_fingerprint

    def _adopt_former(self, state: Mapping[str, int]) -> None:
        """Go on in the order of the first version, if a state was saved by it."""
        former = self._former()
        if former is not None and state.get("fingerprint") == _number(former):
            self._fingerprint = former

    def expected(self) -> Expected:
        """What the next ``iter()`` takes, up to the end of its epoch; computed by the plans it will follow.

        Reads nothing but the names of files in a cache folder. It costs about 0.1 ms for each shard.
        """
        samples, order = self._plan()
        batches = (self._threads[1] + 2) * self._batch_bytes
        return expect_epoch(
            self._reader,
            samples,
            order,
            self._steps,
            self._resume_at,
            epoch=self.epoch,
            max_blocks=-(-self._resident // self._window),
            other_bytes=batches + self._stored.nbytes + self._memory_bytes,
        )

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
            delivered=self._delivered,
            stages=counted.stages(),
        )


@functools.cache
def _say_shared(lanes: int, world_size: int, num_read: int) -> None:
    logger.warning(
        "%d ranks do not divide %d lanes, so ranks share lanes: every sample is delivered once, and up to "
        "%.2f times the bytes of an epoch are read; a number of ranks that divides the lanes reads them once",
        world_size,
        lanes,
        num_read / lanes,
    )


def _number(fingerprint: str) -> int:
    return int(fingerprint or "0", 16) % 2**63


def _specs_of_batch(
    schema: Schema, stored: StoredSelection, layout: Layout, rows: int
) -> tuple[dict[str, SampleArray], int]:
    """Shapes and dtypes of all that a batch of so many rows holds, and the bytes of its pixels."""
    pixels = {n: spec for m in schema.modalities for n, spec in samples_of(m, layout).items()}
    if taken := pixels.keys() & {"labels", "index", "valid"}:
        raise ValueError(
            f"layout='records' gives a modality's payloads under its name, and {sorted(taken)[0]!r} is what every "
            "batch holds; leave layout out"
        )
    known, valid = stored.specs, SampleArray((), np.dtype(np.bool_))
    each = {**pixels, "labels": known["labels"], "index": known["index"], "valid": valid, **known}
    specs = {name: SampleArray((rows, *shape), dtype) for name, (shape, dtype) in each.items()}
    return specs, rows * sum(spec.nbytes for spec in pixels.values())


def _check_memory(nbytes: int, batches: int, batch_size: int) -> None:
    """Refuse batches that this machine cannot hold: memory is given on paper, and the machine dies of it later."""
    memory = memory_bytes()
    if memory is not None and nbytes * batches > memory:
        raise ValueError(
            f"batch_size={batch_size} takes {size_text(nbytes)} per batch, and {batches} are in memory at a time; "
            f"this machine has {size_text(memory)}: take a smaller batch_size"
        )
