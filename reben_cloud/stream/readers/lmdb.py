"""Payloads on the pages of an LMDB, read from its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import NotFoundError
from reben_cloud.sampling import Ints
from reben_cloud.schema import Modality
from reben_cloud.stream.gather import Layout, copies_of
from reben_cloud.stream.payloads import InFile, Part
from reben_cloud.stream.readers.base import Brought, Cost, Counters


class LmdbReader:
    """Reads the values of an LMDB from its file into batches.

    Args:
        folder: The LMDB folder.
        keys: Modality -> key of each sample's record, in stored order.
        modalities: What to read.
        checksums: Modality -> xxh3-64 of each payload; empty for an LMDB that has none.
        counters: Where to count.
        layout: What pixels batches have.
    """

    def __init__(
        self,
        folder: str,
        keys: Mapping[str, Sequence[str]],
        modalities: Sequence[Modality],
        checksums: Mapping[str, NDArray[np.uint64]],
        counters: Counters,
        *,
        layout: Layout,
    ) -> None:
        self._modalities = {m.name: m for m in modalities}
        self.copies = {m.name: copies_of(m, layout) for m in modalities}
        self.parts = (tuple(self._modalities),)
        self._folder = folder
        self._keys = keys
        self._checksums = checksums
        self._counters = counters
        from reben_cloud.formats import lmdb

        self._file = lmdb.open_lmdb(folder)
        self._starts = {m: np.full(len(keys[m]), -1, np.int64) for m in self._modalities}

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The values of these modalities."""
        self._file.check_unchanged()
        every = np.arange(len(stored))
        return {name: [(every, self._payloads(self._modalities[name], stored))] for name in part}

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:  # noqa: ARG002
        """What `load` will take: nothing is kept."""
        payloads = sum(self._modalities[name].payload_bytes for name in part)
        return Cost(len(part) * len(stored), int(times.sum()) * payloads, 0)

    def _payloads(self, modality: Modality, stored: Ints) -> InFile:
        keys, nbytes = self._keys[modality.name], modality.payload_bytes
        found = self._starts[modality.name]
        for sample in stored[found[stored] < 0].tolist():
            value = self._file.find(keys[sample].encode())
            if value is None:
                raise NotFoundError(f"{self._folder}: no record {keys[sample]!r}")
            if value.nbytes != nbytes:
                self._refuse(modality, keys[sample])
            found[sample] = value.start
        starts = found[stored]
        for start in starts.tolist():
            self._file.file.read_ahead(start, nbytes)
        self._counters.add(requests=len(stored))
        sums = self._checksums.get(modality.name)
        return InFile(
            file=self._file.file,
            starts=starts.tolist(),
            nbytes=nbytes,
            header=modality.payload_header,
            checksums=None if sums is None else sums[stored].tolist(),
            damage=lambda number, _: self._damage(modality, keys[stored[number]]),
            count=self._counters.add_file,
        )

    def _refuse(self, modality: Modality, key: str) -> None:
        """Say what a record is that cannot be a payload of the modality."""
        modality.check(self._file.get(key.encode()) or b"", name=f"{self._folder}: record {key!r}")

    def _damage(self, modality: Modality, key: str) -> str:
        self._refuse(modality, key)
        return f"{self._folder}: record {key!r} is not the payload that was written; export or copy it again"
