"""Pixels of single patches for pictures and images: one modality at a time, and those of before for a while."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from reben_cloud.root.dataset import Dataset
from reben_cloud.schema import Array
from reben_cloud.stream.readers.base import Counters
from reben_cloud.stream.select import StoredSelection, open_reader

KEPT_BYTES = 16_000_000
"""About how much memory goes to payloads that were just read: a client asks for one band of a patch after another."""


class Payloads:
    """Reads a dataset's payloads by a request each; safe to use from many threads."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        largest = max((modality.payload_bytes for modality in dataset.schema.modalities), default=1)
        self._kept = lru_cache(max(1, KEPT_BYTES // largest))(self._read)

    def tensors(self, patch_id: str, modality: str) -> dict[str, Array]:
        """Tensors of one modality of a patch, each of the shape that the schema says, not to be written to.

        A layer that has nothing for the patch gives the fill values of its tensors.

        Args:
            patch_id: Id of a patch of the dataset.
            modality: One of the dataset's modalities or array layers.

        Raises:
            ChecksumError: If what is stored is damaged.
            NotFoundError: If it is lost, or there is no such patch.
            StorageError: If it cannot be read.
        """
        return self._kept(patch_id, modality)

    def _read(self, patch_id: str, modality: str) -> dict[str, Array]:
        stored = StoredSelection.of(self._dataset.search(ids=patch_id), [modality])
        reader = open_reader(stored, Counters(), form="shards", cache_dir=None, cache_bytes=None, keep=1)
        loaded = reader.load((modality,), np.zeros(1, np.int64))[modality]
        return dict(self._dataset.schema.modality(modality).decode(loaded[0][1].read(0)))
