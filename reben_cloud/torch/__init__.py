"""The PyTorch face of the loader: tensors, distributed ranks, DataLoader workers, model input.

Batches stay raw until they are on the device: `ModelInput` upsamples, stacks, normalises and augments
there. The order, the threads and the reading are `reben_cloud.stream`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from reben_cloud.errors import ForkError, missing_extra
from reben_cloud.root.mixture import Mixture
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Schema
from reben_cloud.stream import Expected, Form, Layout, RawLoader, StreamStats, merge_states
from reben_cloud.stream.gather import Arrays
from reben_cloud.torch.device import OnDevice, Transform
from reben_cloud.torch.image_dataset import ImageDataset
from reben_cloud.torch.map_targets import MapTargets
from reben_cloud.torch.model_input import ModelInput
from reben_cloud.torch.patch_dataset import PatchDataset
from reben_cloud.torch.pinned import PinnedBatches
from reben_cloud.torch.records import Batch, unpack
from reben_cloud.torch.render import RenderRGB

try:
    import torch
    from torch.utils.data import IterableDataset, get_worker_info
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

__all__ = [
    "Batch",
    "ImageDataset",
    "MapTargets",
    "ModelInput",
    "OrderOptions",
    "PatchDataset",
    "PinnedBatches",
    "ReadOptions",
    "RenderRGB",
    "StreamDataset",
    "StreamLoader",
    "merge_states",
    "unpack",
]


class ReadOptions(TypedDict, total=False):
    """Arguments of `StreamLoader` that change how fast it reads and what that takes, and nothing else."""

    prefetch: int | None
    """Shards fetched ahead of the ones in use."""
    fetch_threads: int
    """Concurrent requests."""
    gather_threads: int
    """Threads that fill batches."""
    cache_dir: str | os.PathLike[str] | None
    """Folder for whole shards of a remote root."""
    cache_bytes: int | None
    """Most bytes in that folder."""
    memory_bytes: int
    """Most bytes of whole shards that are kept in memory."""
    form: Form
    """``shards`` or ``zarr``."""
    layout: Layout
    """``arrays`` or ``records``."""


class OrderOptions(ReadOptions, total=False):
    """`ReadOptions`, and arguments of `StreamLoader` that the order of an epoch depends on."""

    shuffle: bool
    """Shuffle; otherwise samples come in the order of the selection."""
    lanes: int
    """Canonical partitions of the order."""
    window: int
    """Shards of a lane that are shuffled together."""


class StreamLoader:
    """Shuffled raw batches of a selection as tensors, exactly once per epoch; no DataLoader needed.

    The fast way: threads of this process fetch and copy, nothing is pickled. With CUDA, batches are in
    pinned memory, so ``tensor.to(device, non_blocking=True)`` overlaps with the next step; it is written
    again only when nothing refers to the batch and the device has done such copies, on whatever stream. What a
    batch holds, how long it stays valid and what the arguments mean is said at
    `reben_cloud.stream.RawLoader`; `rank` and `world_size` come from ``torch.distributed`` when it is
    initialised and they are not given.

    Iterate it once per epoch; the epoch's number then goes up by itself (`set_epoch` chooses another).
    `state_dict` after any batch, `load_state_dict` into a new loader, also one of another number of
    ranks, and the next batch is the one that would have come.

    With `device`, batches are there: with CUDA they are copied and transformed on a stream of their own, one ahead
    of the one in use, so that one more batch than you hold is in the device's memory. They belong to the stream that
    is current when they are handed out; on another one, `Tensor.record_stream` is yours to call.

    Args:
        selection: What to stream.
        modalities: As for `RawLoader`, as is all that follows but for three.
        columns: Columns of table layers with a row per patch that batches have.
        batch_size: Samples in a batch of this rank.
        seed: Seed of the order.
        epoch: Number of the first epoch.
        shuffle: Shuffle; otherwise samples come in the order of the selection.
        drop_last: Leave out the last global batch when it is not full.
        rank: This rank; from ``torch.distributed`` when it is None and that is initialised.
        world_size: Number of ranks; likewise.
        lanes: Canonical partitions of the order.
        window: Shards of a lane that are shuffled together.
        prefetch: Shards fetched ahead of the ones in use.
        fetch_threads: Concurrent requests.
        gather_threads: Threads that fill batches.
        cache_dir: Folder for whole shards of a remote root; may be shared by processes.
        cache_bytes: Most bytes in that folder; None for no bound.
        memory_bytes: Most bytes of whole shards that are kept in the memory of this process.
        form: ``shards`` or ``zarr``.
        layout: ``arrays`` or ``records``.
        bands: Names of bands, to have these alone, such as ``("B04", "B03", "B02")``.
        pin_memory: Whether batches are filled in pinned memory; by default, if they can go to a CUDA device.
        device: Where batches are handed out, such as ``cuda``; by default where they are filled.
        transform: Called with each batch on `device` (the CPU by default). A tensor that it gives is added to the
            batch as ``image``, which is what `ModelInput` is for; a dict is the batch in place of the one it got.
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
        rank: int | None = None,
        world_size: int | None = None,
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
        pin_memory: bool | None = None,
        device: str | torch.device | None = None,
        transform: Transform | None = None,
    ) -> None:
        rank, world_size = _place(rank, world_size)
        where = None if device is None else torch.device(device)
        if pin_memory is None:
            pin_memory = torch.cuda.is_available() if where is None else where.type == "cuda"
        self._on_device = None
        if where is not None or transform is not None:
            self._on_device = OnDevice(where or torch.device("cpu"), transform)
        self._state: dict[str, int] | None = None
        self._raw = RawLoader(
            selection,
            modalities=modalities,
            columns=columns,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
            lanes=lanes,
            window=window,
            prefetch=prefetch,
            fetch_threads=fetch_threads,
            gather_threads=gather_threads,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            form=form,
            layout=layout,
            bands=bands,
            buffers=PinnedBatches if pin_memory else None,
        )
        self.batch_size = batch_size
        """Samples in a batch of this rank."""

    @property
    def epoch(self) -> int:
        """Number of the epoch that runs or comes next."""
        return self._raw.epoch if self._state is None else self._state["epoch"]

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks."""
        return self._raw.num_samples

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the batches hold, of ``s2``, ``s1``, ``map``."""
        return self._raw.modalities

    @property
    def schema(self) -> Schema:
        """What the pixels of the batches are, for `ModelInput`."""
        return self._raw.schema

    def __len__(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        return len(self._raw)

    def __iter__(self) -> Iterator[Batch]:
        """Run one epoch; closing the iterator (or leaving the loop) stops its threads."""
        if (
            self._state is not None
        ):  # the raw loader may be through with the epoch, which was left before its end
            self._raw.set_epoch(self._state["epoch"])
            self._state = None
        batches = iter(self._raw)  # refuses a fork now, not at the first batch
        if self._on_device is None:
            return (_tensors(batch) for batch in batches)
        return self._run_ahead(batches, self._on_device)

    def _run_ahead(self, batches: Iterator[Arrays], on_device: OnDevice) -> Iterator[Batch]:
        marked = ((_tensors(batch), self._raw.state_dict()) for batch in batches)
        for batch, self._state in on_device.run(marked):
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter()`` runs; a resume position holds if it is the same one."""
        if epoch != self.epoch:
            self._state = None
            self._raw.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, after the batch handed out last: a few integers. See `RawLoader.state_dict`."""
        return self._raw.state_dict() if self._state is None else dict(self._state)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where another loader stopped; see `RawLoader.load_state_dict`."""
        self._raw.load_state_dict(state)
        self._state = None

    def expected(self) -> Expected:
        """What the next ``iter()`` takes: batches, bytes, requests, memory; reads nothing."""
        return self._raw.expected()

    def stats(self) -> StreamStats:
        """Samples, bytes, waiting, retries so far; may be called at any time."""
        return self._raw.stats()


class StreamDataset(IterableDataset[Batch]):
    """Batches for ``DataLoader(dataset, batch_size=None, num_workers=...)``, for who needs workers.

    Worker v of V on rank r of W reads as rank ``v * W + r`` of ``W * V``: lanes are split over ranks
    and workers, and none is read twice if `lanes` is a multiple of W * V. Prefer `StreamLoader`: a
    DataLoader copies every batch once more through shared memory.

    Each ``iter()`` runs the next epoch, also if the one before was left early: workers run ahead of the
    batches that are taken, so one that is through with its share could not tell. Likewise its state at the
    end of its share is the end of this epoch, never the start of the next.

    Args:
        selection: What to stream.
        modalities: As for `StreamLoader`, as is all that follows but for two.
        columns: Columns of table layers with a row per patch that batches have.
        batch_size: Samples in a batch of a worker.
        seed: Seed of the order.
        epoch: Number of the first epoch.
        shuffle: Shuffle; otherwise samples come in the order of the selection.
        drop_last: Leave out the last global batch when it is not full.
        rank: This rank; from ``torch.distributed`` when it is None and that is initialised.
        world_size: Number of ranks; likewise.
        lanes: Canonical partitions of the order.
        window: Shards of a lane that are shuffled together.
        prefetch: Shards that a worker fetches ahead of the ones in use.
        fetch_threads: Concurrent requests of a worker.
        gather_threads: Threads of a worker that fill batches.
        cache_dir: Folder for whole shards of a remote root; may be shared by processes.
        cache_bytes: Most bytes in that folder; None for no bound.
        memory_bytes: Most bytes of whole shards that are kept in the memory of this process.
        form: ``shards`` or ``zarr``.
        layout: ``arrays`` or ``records``.
        bands: Names of bands, to have these alone.
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
        rank: int | None = None,
        world_size: int | None = None,
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
    ) -> None:
        self._selection = selection
        self._place = _place(rank, world_size)
        self._options: dict[str, Any] = {
            "modalities": modalities,
            "columns": columns,
            "batch_size": batch_size,
            "seed": seed,
            "shuffle": shuffle,
            "drop_last": drop_last,
            "lanes": lanes,
            "window": window,
            "prefetch": prefetch,
            "fetch_threads": fetch_threads,
            "gather_threads": gather_threads,
            "cache_dir": cache_dir,
            "cache_bytes": cache_bytes,
            "memory_bytes": memory_bytes,
            "form": form,
            "layout": layout,
            "bands": bands,
        }
        self._epoch = epoch  # of the next iter()
        self._running = self._epoch
        self._loader: StreamLoader | None = None
        self._state: Mapping[str, int] | None = None
        self._pid = os.getpid()
        self._given_away = False

    def __getstate__(self) -> dict[str, Any]:
        # Threads and clients belong to a process; a worker makes its own, and only it knows where it is.
        self._given_away = True
        return {**self.__dict__, "_loader": None, "_pid": None, "_given_away": False}

    def __iter__(self) -> Iterator[Batch]:
        """Run one epoch of this worker's share."""
        if self._pid not in (None, os.getpid()):
            raise ForkError(
                "this DataLoader forked its workers, and store clients and threads hang after a fork; "
                "pass multiprocessing_context='forkserver' or 'spawn', "
                "or use StreamLoader without workers (it has threads of its own)"
            )
        if self._loader is None:
            rank, world_size = self._place
            info = get_worker_info()
            worker, workers = (info.id, info.num_workers) if info else (0, 1)
            self._loader = StreamLoader(
                self._selection,
                rank=worker * world_size + rank,
                world_size=world_size * workers,
                pin_memory=False,
                **self._options,
            )
        if self._state is None:
            self._loader.set_epoch(self._epoch)
        else:
            self._loader.load_state_dict(self._state)
            self._state = None
        self._running = self._loader.epoch
        self._epoch = self._running + 1
        return iter(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next ``iter()``; a state that was loaded holds if it is of the same one.

        Workers that persist count by themselves, and it does not reach them. Without
        ``persistent_workers`` they are made again for every epoch: call this before each, or all are alike.
        """
        self._epoch = epoch
        if self._state is not None and self._state["epoch"] != epoch:
            self._state = None

    def state_dict(self) -> dict[str, int]:
        """Where this worker is (``torchdata``'s StatefulDataLoader collects these).

        Raises:
            RuntimeError: In a process that gave the dataset to workers, which alone know how far they are.
        """
        if self._loader is None:
            if self._given_away:
                raise RuntimeError(
                    "the workers of the DataLoader know how far they are, this process does not; "
                    "use torchdata's StatefulDataLoader, whose state_dict() asks them, or StreamLoader"
                )
            return dict(self._state or {})
        state = self._loader.state_dict()
        if state["epoch"] != self._running:  # with its last batch, a loader is at the start of the next epoch
            state |= {"epoch": self._running, "position": self._loader.num_samples}
            state |= self._loader.stats().delivered.to_state()
        return state

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a worker's state, with as many workers as there were.

        The next ``iter()`` gives the rest of that epoch, which at its end is nothing.
        """
        self._state = dict(state) or None


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if world_size is None:
        world_size = torch.distributed.get_world_size() if distributed else 1
    return rank, world_size


def _tensors(batch: Mapping[str, Any]) -> Batch:
    return {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in batch.items()}
