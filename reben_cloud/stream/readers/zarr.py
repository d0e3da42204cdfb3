"""Payloads made of the chunks of Zarr stores."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.formats import zarr
from reben_cloud.root import layout as paths
from reben_cloud.root.objects import Objects, read_end
from reben_cloud.root.references import REQUEST_BYTES
from reben_cloud.sampling import Ints
from reben_cloud.schema import Copy, Modality
from reben_cloud.store import Store
from reben_cloud.stream.gather import Layout
from reben_cloud.stream.payloads import InMemory, Part
from reben_cloud.stream.readers.base import Brought, Cost, Counters, persistently


class ZarrReader:
    """Reads samples from the products' Zarr stores, chunk by chunk; slower than shards, same pixels.

    Args:
        store: The root.
        products: Product of each sample in stored order.
        rows: Row of each sample in its product's store, shape (n,).
        ids: Patch id of each sample, shape (n,).
        listed: Path of each Zarr shard -> what the root lists of it, and of its other objects.
        modalities: What to read.
        counters: Where to count.
        layout: What pixels batches have; records are put together from their header and the chunks of their arrays.
    """

    def __init__(
        self,
        store: Store,
        products: Sequence[str],
        rows: NDArray[np.integer],
        ids: NDArray[np.bytes_],
        listed: Objects,
        modalities: Sequence[Modality],
        counters: Counters,
        *,
        layout: Layout,
    ) -> None:
        self._arrays: dict[str, zarr.PixelArray] = {}
        self._headers: dict[str, bytes] = {}
        self.copies: dict[str, tuple[Copy, ...]] = {}
        for modality in modalities:
            for batch, array in zip(modality.arrays, zarr.pixel_arrays(modality), strict=True):
                self._arrays[array.name] = array
                self.copies[array.name] = (
                    (Copy(0, array.nbytes, batch.name, 0),)
                    if layout == "arrays"
                    else _pieces(modality, batch.tensors)
                )
            if layout == "records":
                name, header = f"{modality.name}:header", modality.payload_header
                self._headers[name] = header
                self.copies[name] = (Copy(0, len(header), modality.name, 0),)
        self.parts = tuple((name,) for name in self.copies)
        self._store = store
        self._products = np.asarray(products)
        self._rows = np.asarray(rows, np.int64)
        self._ids = ids
        self._named: set[str] = set()
        self._listed, self._sizes = listed, listed.sizes()
        self._counters = counters

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The decoded chunks of these Zarr arrays, and the headers of records."""
        every = np.arange(len(stored), dtype=np.int64)
        found: Part = {}
        for name in part:
            if (header := self._headers.get(name)) is not None:
                memory = np.frombuffer(header, np.uint8)
                found[name] = [(every, InMemory(memory, 0 * every, len(header), name=name))]
                continue
            array = self._arrays[name]
            memory = self._pixels(array, stored).reshape(-1).view(np.uint8)
            found[name] = [(every, InMemory(memory, every * array.nbytes, array.nbytes, name=name))]
        return found

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:  # noqa: ARG002
        """What `load` will take; of a Zarr shard that is read in part, as if all its chunks were of one size."""
        total, counts = Cost(), np.bincount(self._rows // zarr.PATCHES_PER_ZARR_SHARD)
        products = self._products[stored]
        shards = self._rows[stored] // zarr.PATCHES_PER_ZARR_SHARD
        for name in part:
            if (array := self._arrays.get(name)) is None:
                continue
            pairs = zip(products.tolist(), shards.tolist(), strict=True)
            for (product, shard), num_rows in Counter(pairs).items():
                path = paths.zarr_shard(product, array.name, shard, ndim=len(array.shape))
                size, held = self._sizes[path], num_rows * array.nbytes
                if size < (num_rows + 1) * REQUEST_BYTES:
                    total += Cost(1, size, held)
                else:
                    there = min(zarr.PATCHES_PER_ZARR_SHARD, int(counts[shard]))
                    chunks = num_rows * (size - zarr.INDEX_BYTES) // there
                    total += Cost(1 + num_rows, zarr.INDEX_BYTES + chunks, held)
        return total

    def _pixels(self, array: zarr.PixelArray, stored: Ints) -> NDArray[Any]:
        out = np.empty((len(stored), *array.shape), array.dtype)
        product, rows = self._products[stored], self._rows[stored]
        shard = rows // zarr.PATCHES_PER_ZARR_SHARD
        order = np.lexsort((shard, product))
        cuts = np.flatnonzero((product[order][1:] != product[order][:-1]) | (np.diff(shard[order]) != 0)) + 1
        for name in np.unique(product).tolist():
            self._check_names(name)
        for group in np.split(order, cuts):
            number, name = int(shard[group[0]]), str(product[group[0]])
            path = paths.zarr_shard(name, array.name, number, ndim=len(array.shape))
            inner = rows[group] % zarr.PATCHES_PER_ZARR_SHARD
            out[group] = self._read(array, path, inner)
        return out

    def _check_names(self, product: str) -> None:
        """See, once, that the rows of a product's store are the patches that the table says."""
        if product in self._named:
            return
        prefix = f"{paths.zarr_store(product)}/"
        try:
            names = zarr.read_patch_ids(lambda path: self._store.get(prefix + path), name=prefix[:-1])
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._store.url} has lost {prefix}patch_id: {error}") from error
        mine = np.flatnonzero(self._products == product)
        rows = self._rows[mine]
        inside = (rows >= 0) & (rows < len(names))
        wrong = np.flatnonzero(~inside | (names[np.where(inside, rows, 0)] != self._ids[mine]))
        if wrong.size:
            raise ChecksumError(
                f"{self._store.url}/{prefix[:-1]}: row {rows[wrong[0]]} is not {self._ids[mine[wrong[0]]].decode()}, "
                "as patches.parquet says: one of them is damaged; run `reben-cloud verify`"
            )
        self._named.add(product)

    def _read(self, array: zarr.PixelArray, path: str, rows: Ints) -> NDArray[Any]:
        """Some patches of one Zarr shard: their chunks, or all of it when that is cheaper."""
        if path not in self._sizes:
            raise NotFoundError(f"{self._store.url}: objects.parquet has no {path}; run `reben-cloud verify`")
        size, name = self._sizes[path], f"{self._store.url}/{path}"

        def attempt() -> NDArray[Any]:
            begin = time.perf_counter()
            try:
                if size < (len(rows) + 1) * REQUEST_BYTES:
                    data = self._store.get(path)
                    there = time.perf_counter()
                    self._counters.add(requests=1, bytes_read=data.nbytes, store_s=there - begin)
                    out = zarr.decode_shard(array, data, rows=rows, name=name)
                    # A shard of another root is as sound as its own.
                    self._listed[path].require(data, name=name)
                    self._counters.add(checks_s=time.perf_counter() - there)
                    return out
                tail = read_end(self._store, path, zarr.INDEX_BYTES, nbytes=size)
                index = zarr.decode_index(tail, name=name)
                places = [zarr.chunk_range(index, row, name=name) for row in rows.tolist()]
                chunks = self._store.get_ranges(path, [s for s, _ in places], [n for _, n in places])
            except FileNotFoundError as error:
                raise NotFoundError(f"{self._store.url} has lost {path}; run `reben-cloud verify`") from error
            there = time.perf_counter()
            nbytes = tail.nbytes + sum(c.nbytes for c in chunks)
            self._counters.add(requests=1 + len(chunks), bytes_read=nbytes, store_s=there - begin)
            out = np.empty((len(rows), *array.shape), array.dtype)
            for position, (row, chunk) in enumerate(zip(rows.tolist(), chunks, strict=True)):
                # With "...", a patch that is a single value is a view too.
                zarr.decode_chunk(chunk, out[position, ...], name=f"{name}: patch {row}")
            self._counters.add(checks_s=time.perf_counter() - there)
            return out

        return persistently(attempt, self._counters)


def _pieces(modality: Modality, tensors: Sequence[str]) -> tuple[Copy, ...]:
    """How the pixels of some tensors, one after the other, become parts of a payload."""
    nbytes = modality.specs[tensors[0]].nbytes
    return tuple(
        Copy(number * nbytes, nbytes, modality.name, modality.places[name].offset)
        for number, name in enumerate(tensors)
    )
