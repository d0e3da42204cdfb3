"""`PatchDataset`: a selection as a map-style dataset, for samplers, trainers and loaders that bring their own order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np

from reben_cloud.errors import missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Schema
from reben_cloud.stream import Form, Layout, RawPatches

try:
    import torch
    from torch.utils.data import Dataset
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

Sample = dict[str, Any]
"""Name -> tensor; texts are strings, and rows of a table layer lists."""

T = TypeVar("T")


class PatchDataset(Dataset[T], Generic[T]):
    """The samples of a selection by number, for ``DataLoader``, its samplers, and trainers that make one.

    Prefer `StreamLoader` where its order will do: it reads whole shards, is exactly-once over ranks and resumes.
    This is for an order of one's own (``WeightedRandomSampler``, ``DistributedSampler``, a trainer's): a patch
    that is asked for alone is a request for each modality of a remote root. A ``DataLoader`` asks for a batch at
    a time, whose requests are then made at one time (``__getitems__``).

    A sample is the dict of arrays of `StreamLoader` without the axis of the batch and without ``valid``:
    ``s2_10m`` [4, 120, 120] uint16 and so on, ``labels`` [19] float32, ``index`` [] int64. A ``DataLoader``
    puts them together by itself; `collate` does it as `StreamLoader` has them where a table layer gives lists. Give
    workers ``multiprocessing_context="forkserver"`` or ``"spawn"``.

    Args:
        selection: What to read, in its order: sample i is the patch i of the selection. Under the rule ``all`` of
            `Selection.with_rows`, every row is a sample.
        modalities: As for `StreamLoader`.
        columns: As for `StreamLoader`.
        transform: Called with each sample, as torchvision's datasets do; what it returns is given instead. It
            travels to workers, so it must pickle: a function of a module, not a lambda. What is done to batches
            (`ModelInput`) belongs after the ``DataLoader``, on the device.
        seed: Which row of a table layer a patch has under the rule ``one``, with `set_epoch`.
        epoch: Number of the first epoch, for the same.
        fetch_threads: Concurrent requests of each process.
        cache_dir: Folder for whole shards of a remote root; may be shared by processes. A shard goes there where
            the selection has so many of its samples that this pays over a few epochs of single reads.
        cache_bytes: Most bytes in that folder; None for no bound.
        memory_bytes: Most bytes of whole shards, by the same rule, that each process keeps in its memory; of a local
            root too. Workers are processes, and each keeps its own.
        form: ``shards`` or ``zarr``.
        layout: As for `StreamLoader`.
        bands: As for `StreamLoader`: names of bands, to have these alone.

    Raises:
        NotFoundError: If the selection is empty (it names the condition that left nothing).
        TypeError: If `selection` is no selection.
        ValueError: If an argument is out of range, or the selection lacks a modality or has weights, which are a
            sampler's here (``WeightedRandomSampler``).
    """

    @overload
    def __init__(
        self: PatchDataset[Sample],
        selection: Selection,
        *,
        modalities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        transform: None = None,
        seed: int = 0,
        epoch: int = 0,
        fetch_threads: int = 8,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        memory_bytes: int = 0,
        form: Form = "shards",
        layout: Layout = "arrays",
        bands: Sequence[str] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        selection: Selection,
        *,
        modalities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        transform: Callable[[Sample], T],
        seed: int = 0,
        epoch: int = 0,
        fetch_threads: int = 8,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        memory_bytes: int = 0,
        form: Form = "shards",
        layout: Layout = "arrays",
        bands: Sequence[str] | None = None,
    ) -> None: ...

    def __init__(
        self,
        selection: Selection,
        *,
        modalities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        transform: Callable[[Sample], T] | None = None,
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
        self._raw = RawPatches(
            selection,
            modalities=modalities,
            columns=columns,
            seed=seed,
            epoch=epoch,
            fetch_threads=fetch_threads,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            form=form,
            layout=layout,
            bands=bands,
        )
        self.transform = transform
        """What becomes of each sample."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._raw)

    def __getitem__(self, index: int) -> T:
        """One sample.

        Raises:
            ForkError: In a worker that was forked.
            IndexError: If there is no such sample.
            ChecksumError: If it is not what was written.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[T]:
        """The samples of a batch, read together; raises as ``__getitem__``."""
        batch = self._prepare(
            {
                name: torch.from_numpy(values) if isinstance(values, np.ndarray) else values
                for name, values in self._raw.take(list(indexes)).items()
            }
        )
        samples = [{name: values[row] for name, values in batch.items()} for row in range(len(indexes))]
        if self.transform is None:
            return cast("list[T]", samples)
        return [self.transform(sample) for sample in samples]

    def _prepare(self, batch: Sample) -> Sample:
        """What samples are made of, from a raw batch; before `transform`."""
        return batch

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the samples hold, of ``s2``, ``s1``, ``map`` and array layers."""
        return self._raw.modalities

    @property
    def schema(self) -> Schema:
        """What the pixels of samples are, for `ModelInput`."""
        return self._raw.schema

    def set_epoch(self, epoch: int) -> None:
        """Choose which row of a table layer patches have under the rule ``one``; nothing else depends on it.

        Workers that persist have a copy, which does not hear of it.
        """
        self._raw.set_epoch(epoch)

    @staticmethod
    def collate(samples: Sequence[Mapping[str, Any]]) -> Sample:
        """A batch of untransformed samples, as `StreamLoader` has them: tensors stacked, all else in lists.

        For ``DataLoader(collate_fn=...)``, which by itself refuses lists of several lengths, such as texts of patches.
        """
        return {
            name: torch.stack([sample[name] for sample in samples])
            if isinstance(first, torch.Tensor)
            else [sample[name] for sample in samples]
            for name, first in samples[0].items()
        }
