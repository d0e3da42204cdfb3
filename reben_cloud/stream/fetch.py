"""Bring the payloads of a block into memory and verify them: from shards, Zarr stores or an LMDB.

Every reader answers ``load(part, stored)`` with one address a sample, so that what follows does not
know where samples came from. How a shard is read is decided by one rule (`plan_ranges`); every byte
that is delivered was compared with a checksum in this process, or lies in a format with its own.
"""

from __future__ import annotations

import mmap
import os
import random
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError, StorageError
from reben_cloud.formats import tar, zarr
from reben_cloud.patch import PAYLOAD_BYTES, PAYLOAD_HEADER, check_payload
from reben_cloud.sampling import Ints
from reben_cloud.store import Store
from reben_cloud.stream.cache import ShardCache
from reben_cloud.stream.gather import PAYLOAD_COPIES, Addresses, BufferPool, Copy, address_of, arrays_of

T = TypeVar("T")

REQUEST_BYTES = 256 * 1024
"""What a request costs, in bytes that could have been read instead: 5 ms at 50 MB/s a connection."""

CACHED_USES = 4
"""Epochs over which a shard in the disk cache is expected to pay; a training run has more."""

ATTEMPTS = 4
"""How often an object is read before its damage is reported, over and above the store's own retries."""


class Part(NamedTuple):
    """What one `load` brought."""

    addresses: dict[str, Addresses]
    """Source (a key of `Reader.copies`) -> address of each sample's payload, in the order asked for."""
    keep: Sequence[object]
    """What must stay alive as long as the addresses are used."""


@dataclass(slots=True)
class Counters:
    """What was done so far; updated by many threads."""

    bytes_read: int = 0
    """Bytes fetched from the store or read from local files."""
    requests: int = 0
    """Objects and ranges asked for."""
    retries: int = 0
    """Objects read again because they were damaged or the store failed."""
    cache_hits: int = 0
    """Shards found in the disk cache, or still mapped."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Add to the counters named."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)


class Reader(Protocol):
    """A form at rest from which samples can be streamed."""

    @property
    def copies(self) -> Mapping[str, tuple[Copy, ...]]:
        """Source -> how its payloads become samples of batch arrays."""

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Sources in groups: each group is loaded by one call, and calls may run at the same time."""

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """Bring the payloads of these sources into memory, of the samples at these stored positions."""


def plan_ranges(
    rows: Ints, modality: str, num_samples: int, *, request_bytes: int = REQUEST_BYTES, uses: int = 1
) -> list[tuple[int, int]] | None:
    """How to read some rows of a shard.

    A request costs as much as reading `request_bytes`: two rows are read together when what lies
    between them costs less than a request, and the whole shard when the ranges cost more than it
    (over all the epochs in which a cached shard will be used again).

    Args:
        rows: Wanted rows, rising.
        modality: ``s2``, ``s1`` or ``map``.
        num_samples: Samples in the shard.
        request_bytes: Price of a request.
        uses: How often a whole shard is used, and ranges would be read.

    Returns:
        (first row, row after the last) of each range; None for the whole shard.
    """
    record = tar.RECORD_BYTES[modality]
    cuts = np.flatnonzero((np.diff(rows) - 1) * record > request_bytes) + 1
    ranges = [(int(r[0]), int(r[-1]) + 1) for r in np.split(rows, cuts)]
    cost = sum((stop - start) * record + request_bytes for start, stop in ranges)
    return None if uses * cost >= tar.shard_bytes(modality, num_samples) else ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the selected samples lie, in stored order."""

    shard: NDArray[np.int64]
    """Index into `shards` of each sample, rising, shape (n,)."""
    row: NDArray[np.int64]
    """Row in the shard of each sample, rising within a shard, shape (n,)."""
    shards: Sequence[tuple[str, int]]
    """(Group, number) of each shard."""
    num_samples: NDArray[np.int64]
    """All samples of each shard, selected or not, shape (num_shards,)."""
    checksums: Mapping[str, NDArray[np.uint64]]
    """Modality -> xxh3-64 of each sample's payload, shape (n,)."""


class ShardReader:
    """Reads tar shards: local ones and cached ones mapped, others into memory, sparse ones by ranges.

    Args:
        store: The root.
        places: Where the samples lie.
        objects: Path of each shard -> (bytes, xxh3-64).
        modalities: What to read.
        counters: Where to count.
        cache: Disk cache of a remote root.
        max_mapped_bytes: Shard files that nobody uses any more stay mapped up to so many bytes in all.
    """

    def __init__(
        self,
        store: Store,
        places: Places,
        objects: Mapping[str, tuple[int, int]],
        modalities: Sequence[str],
        counters: Counters,
        *,
        cache: ShardCache | None = None,
        max_mapped_bytes: int = 2**30,
    ) -> None:
        self.copies = {m: PAYLOAD_COPIES[m] for m in modalities}
        # Objects of a remote root come at the same time; mapping files costs less than handing it out.
        self.parts = (tuple(modalities),) if store.is_local else tuple((m,) for m in modalities)
        self._store = store
        self._places = places
        self._objects = objects
        self._counters = counters
        self._cache = None if store.is_local else cache
        self._max_mapped_bytes = max_mapped_bytes
        self._mapped_bytes = 0
        self._mapped: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._files: dict[str, str] = {}
        # A group's last shard is smaller, and lies in the smallest buffer that holds it.
        most = int(places.num_samples.max(initial=0))
        self._pools = [BufferPool(size) for size in sorted(tar.shard_bytes(m, most) for m in modalities)]
        self._verified: set[tuple[object, ...]] = set()
        # Follows from a shard's bytes, and these from its checksum: found out once a shard.
        self._strided: dict[str, bool] = {}
        self._checked = {m: np.zeros(len(places.row), np.bool_) for m in modalities}
        self._rows_of_file: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """Addresses of the payloads of these modalities."""
        shards = self._places.shard[stored]
        numbers = np.unique(shards).tolist()
        addresses = {modality: np.empty(len(stored), np.int64) for modality in part}
        keep: list[object] = []
        for shard in numbers:
            here = np.flatnonzero(shards == shard) if len(numbers) > 1 else slice(None)
            for modality in part:
                addresses[modality][here], kept = self._load_shard(modality, shard, stored[here])
                keep.append(kept)
        return Part(addresses, keep)

    def _load_shard(self, modality: str, shard: int, stored: Ints) -> tuple[Addresses, object]:
        """Addresses of some samples of one shard."""
        group, number = self._places.shards[shard]
        path = tar.shard_path(group, modality, number)
        if path not in self._objects:
            raise NotFoundError(f"{self._store.url}: objects.parquet has no {path}; run `reben-cloud verify`")
        data = self._whole_at_hand(path)
        if data is None:
            few = self._load_few(modality, path, int(self._places.num_samples[shard]), stored)
            if few is not None:
                return few
            data = self._whole(path)
        rows = self._places.row[stored]
        if path not in self._strided:
            self._strided[path] = tar.records(modality, data.data) is not None
        if not self._strided[path]:
            view = tar.payloads(modality, data.data)
            return address_of(view) + rows * PAYLOAD_BYTES[modality], view
        return address_of(data) + rows * tar.RECORD_BYTES[modality] + tar.PAYLOAD_OFFSET, data

    def _load_few(
        self, modality: str, path: str, num_samples: int, stored: Ints
    ) -> tuple[Addresses, object] | None:
        """The samples without the rest of their shard, where that costs less and its rows are as expected."""
        if self._cache and self._is_cached(path):
            return None
        rising = np.argsort(self._places.row[stored], kind="stable")
        stored = stored[rising]
        rows = self._places.row[stored]
        uses = 1 if self._cache is None else CACHED_USES
        ranges = plan_ranges(rows, modality, num_samples, uses=uses)
        if ranges is None:
            return None
        sums = self._places.checksums[modality][stored]
        addresses = np.empty(len(rows), np.int64)
        # What does not verify is damaged, or another writer's tar with rows elsewhere: the whole
        # shard's checksum tells which.
        with suppress(ChecksumError):
            if self._store.is_local:
                addresses[rising], kept = self._load_rows(modality, path, stored, rows, sums)
            else:
                addresses[rising], kept = self._load_ranges(modality, path, ranges, rows, sums)
            return addresses, kept
        return None

    # -- whole shards ------------------------------------------------------------------------------

    def _whole_at_hand(self, path: str) -> NDArray[np.uint8] | None:
        """All bytes of a local shard if it is mapped and was verified, and the file is still that one."""
        file = self._files.get(path)
        with self._lock:
            data = self._mapped.get(file or "")
            if file is None or data is None:
                return None
            self._mapped.move_to_end(file)
        with suppress(FileNotFoundError):  # whoever maps it again says so
            if (file, *_identity(file)) in self._verified:
                return data
        return None

    def _whole(self, path: str) -> NDArray[np.uint8]:
        """All bytes of a shard, verified."""
        local = self._store.local_path(path)
        if local is not None:
            self._files[path] = str(local)
            return self._map(path, local)
        if self._cache is None:
            return np.frombuffer(self._download(path), np.uint8)
        return persistently(lambda: self._through_cache(path), self._counters)

    def _through_cache(self, path: str) -> NDArray[np.uint8]:
        assert self._cache is not None
        nbytes, checksum = self._objects[path]
        file = self._cache.find(path, checksum)
        if file is not None:
            try:
                data = self._map(path, file)
            except (ChecksumError, FileNotFoundError, NotFoundError):
                # Damaged on disk, or evicted by another process since: fetch it again.
                file.unlink(missing_ok=True)
            else:
                self._counters.add(cache_hits=1)
                return data
        file, data_bytes = self._cache.add(path, checksum, nbytes, lambda: self._download(path))
        if file is not None:
            try:
                return self._map(path, file)
            except (FileNotFoundError, NotFoundError):
                # Evicted again already: the budget holds fewer shards than are in use.
                data_bytes = self._download(path)
        return np.frombuffer(data_bytes or b"", np.uint8)

    def _is_cached(self, path: str) -> bool:
        assert self._cache is not None
        return self._cache.path(path, self._objects[path][1]).exists()

    def _download(self, path: str) -> memoryview:
        nbytes, _ = self._objects[path]
        # Another writer's tar may be larger than ours.
        pool = next((p for p in self._pools if p.nbytes >= nbytes), None) or BufferPool(nbytes)

        def attempt() -> memoryview:
            data = pool.take(nbytes)
            try:
                found = self._store.get_into(path, data)
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"{self._store.url} has lost the shard {path}; run `reben-cloud verify`"
                ) from error
            self._counters.add(requests=1, bytes_read=found)
            self._check(path, data, found)
            return data

        return persistently(attempt, self._counters)

    def _check(self, path: str, data: Any, found: int) -> None:
        """See that `data` is the shard, of which `found` bytes came."""
        nbytes, checksum = self._objects[path]
        if found != nbytes or xxhash.xxh3_64_intdigest(data) != checksum:
            raise ChecksumError(
                f"{self._store.url}/{path}: the {found:,} bytes read are not the {nbytes:,} "
                "that objects.parquet lists (xxh3 differs); if `reben-cloud verify` says so too, the object is damaged"
            )

    def _map(self, path: str, file: Path, *, verify: bool = True) -> NDArray[np.uint8]:
        """A file as memory. Verified once for each state of the file in this process."""
        key = str(file)
        with self._lock:
            data = self._mapped.get(key)
            if data is not None:
                self._mapped.move_to_end(key)
        if data is None:
            data = _map_file(file, self._store.url)
            if data.nbytes != self._objects[path][0]:
                self._check(path, data, data.nbytes)
            with self._lock:
                self._mapped_bytes += data.nbytes - self._unmap(key)
                self._mapped[key] = data
                for old in list(self._mapped):
                    if self._mapped_bytes <= self._max_mapped_bytes:
                        break
                    # Only this call and the dict refer to it; to let go of one in use would free nothing.
                    if sys.getrefcount(self._mapped[old]) == 2:
                        self._mapped_bytes -= self._unmap(old)
            self._counters.add(requests=1)
        if verify:
            identity = (key, *_identity(file))
            if identity not in self._verified:
                try:
                    self._check(path, data, data.nbytes)
                except ChecksumError:
                    with self._lock:
                        self._mapped_bytes -= self._unmap(key)
                    raise
                self._counters.add(bytes_read=data.nbytes)
                self._verified.add(identity)
        return data

    def _unmap(self, key: str) -> int:
        """Let a mapping go (whoever uses it keeps it), and say how many bytes it had."""
        data = self._mapped.pop(key, None)
        return 0 if data is None else data.nbytes

    # -- single rows -------------------------------------------------------------------------------

    def _load_rows(
        self, modality: str, path: str, stored: Ints, rows: Ints, sums: NDArray[np.uint64]
    ) -> tuple[Addresses, object]:
        """Some rows of a local shard: mapped, and only these rows verified, once."""
        local = self._store.local_path(path)
        assert local is not None
        data = self._map(path, local, verify=False)
        identity = _identity(local)
        if self._rows_of_file.setdefault(path, identity) != identity:
            # Another file than the one whose rows were verified.
            self._checked[modality][self._places.shard == self._places.shard[stored[0]]] = False
            self._rows_of_file[path] = identity
        starts = rows * tar.RECORD_BYTES[modality] + tar.PAYLOAD_OFFSET
        if (str(local), *identity) in self._verified and self._strided.get(path):
            return address_of(data) + starts, data
        for position in np.flatnonzero(~self._checked[modality][stored]).tolist():
            start = int(starts[position])
            payload = data[start : start + PAYLOAD_BYTES[modality]]
            self._check_payload(modality, path, int(rows[position]), payload, int(sums[position]))
            self._checked[modality][stored[position]] = True
            self._counters.add(bytes_read=payload.nbytes)
        return address_of(data) + starts, data

    def _load_ranges(
        self,
        modality: str,
        path: str,
        ranges: Sequence[tuple[int, int]],
        rows: Ints,
        sums: NDArray[np.uint64],
    ) -> tuple[Addresses, object]:
        """Some rows of a remote shard, by range reads; each payload verified on arrival."""
        record, payload_bytes = tar.RECORD_BYTES[modality], PAYLOAD_BYTES[modality]
        addresses = np.empty(len(rows), np.int64)

        def attempt(first: int, stop: int) -> memoryview:
            start = first * record + tar.PAYLOAD_OFFSET
            length = (stop - 1 - first) * record + payload_bytes
            try:
                data = self._store.get_range(path, start, length)
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"{self._store.url} has lost the shard {path}; run `reben-cloud verify`"
                ) from error
            self._counters.add(requests=1, bytes_read=data.nbytes)
            if data.nbytes != length:
                raise ChecksumError(
                    f"{self._store.url}/{path}: asked for {length:,} bytes at {start:,}, got {data.nbytes:,}"
                )
            inside = np.flatnonzero((rows >= first) & (rows < stop))
            for position in inside.tolist():
                offset = (int(rows[position]) - first) * record
                payload = data[offset : offset + payload_bytes]
                self._check_payload(modality, path, int(rows[position]), payload, int(sums[position]))
            addresses[inside] = address_of(data) + (rows[inside] - first) * record
            return data

        keep = [persistently(lambda r=r: attempt(*r), self._counters) for r in ranges]  # type: ignore[misc]
        return addresses, keep

    def _check_payload(self, modality: str, path: str, row: int, payload: Any, checksum: int) -> None:
        header = PAYLOAD_HEADER[modality]
        if bytes(payload[: len(header)]) != header or xxhash.xxh3_64_intdigest(payload) != checksum:
            raise ChecksumError(
                f"{self._store.url}/{path}: the payload in row {row} is not the one that patches.parquet lists "
                "(xxh3 differs); if `reben-cloud verify` says so too, the object is damaged"
            )


def _map_file(file: Path, url: str) -> NDArray[np.uint8]:
    try:
        with file.open("rb") as opened:
            mapping = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    except FileNotFoundError as error:
        raise NotFoundError(f"{url} has lost the shard {file}; run `reben-cloud verify`") from error
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise StorageError(f"cannot map {file}: {error}") from error
    return np.frombuffer(mapping, np.uint8)


def _identity(file: str | os.PathLike[str]) -> tuple[int, ...]:
    """Changes when a file is replaced or written to."""
    status = os.stat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns


class LmdbReader:
    """Reads payloads where they lie on the pages of an LMDB; nothing is copied before the batch.

    Args:
        folder: The LMDB folder.
        patch_ids: Patch of each sample in stored order.
        s1_names: Sentinel-1 name of each sample.
        modalities: What to read.
        checksums: Modality -> xxh3-64 of each payload; empty for an LMDB that has none.
        counters: Where to count.
    """

    def __init__(
        self,
        folder: str,
        patch_ids: Sequence[str],
        s1_names: Sequence[str],
        modalities: Sequence[str],
        checksums: Mapping[str, NDArray[np.uint64]],
        counters: Counters,
    ) -> None:
        self.copies = {m: PAYLOAD_COPIES[m] for m in modalities}
        self.parts = (tuple(modalities),)
        self._folder = folder
        keys = {"s2": patch_ids, "s1": s1_names, "map": [f"{p}_reference_map" for p in patch_ids]}
        self._keys = {m: keys[m] for m in modalities}
        self._checksums = checksums
        self._checked = {m: np.zeros(len(patch_ids), np.bool_) for m in modalities}
        self._counters = counters

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """Addresses of the values of these modalities."""
        from reben_cloud.formats import lmdb

        transaction = lmdb.open_environment(self._folder).begin(buffers=True)
        return Part({m: self._addresses(transaction, m, stored) for m in part}, [transaction])

    def _addresses(self, transaction: Any, modality: str, stored: Ints) -> Addresses:
        keys, checked = self._keys[modality], self._checked[modality]
        addresses = np.empty(len(stored), np.int64)
        for position, sample in enumerate(stored.tolist()):
            key = keys[sample]
            value = transaction.get(key.encode())
            if value is None:
                raise NotFoundError(f"{self._folder}: no record {key!r}")
            if not checked[sample]:
                sums = self._checksums.get(modality)
                if sums is not None and xxhash.xxh3_64_intdigest(value) != sums[sample]:
                    raise ChecksumError(f"{self._folder}: record {key!r} is not the payload that was written")
                check_payload(modality, value, name=f"{self._folder}: record {key!r}")
                checked[sample] = True
                self._counters.add(bytes_read=len(value), requests=1)
            addresses[position] = address_of(value)
        return addresses


class ZarrReader:
    """Reads samples from the products' Zarr stores, chunk by chunk; slower than shards, same pixels.

    Args:
        store: The root.
        products: Product of each sample in stored order.
        rows: Row of each sample in its product's store, shape (n,).
        sizes: Path of each Zarr shard -> bytes.
        modalities: What to read.
        counters: Where to count.
    """

    def __init__(
        self,
        store: Store,
        products: Sequence[str],
        rows: NDArray[np.integer],
        sizes: Mapping[str, int],
        modalities: Sequence[str],
        counters: Counters,
    ) -> None:
        arrays = {
            zarr.REFERENCE_MAP if a == "map" else a: (a, s)
            for m in modalities
            for a, s in arrays_of(m).items()
        }
        self.copies = {z: (Copy(0, spec.nbytes, name, 0),) for z, (name, spec) in arrays.items()}
        self.parts = tuple((a,) for a in arrays)
        self._store = store
        self._products = np.asarray(products)
        self._rows = np.asarray(rows, np.int64)
        self._sizes = sizes
        self._counters = counters

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """Addresses of the decoded chunks of these Zarr arrays."""
        pixels = {array: self._pixels(array, stored) for array in part}
        return Part(
            {
                array: address_of(values.reshape(-1).view(np.uint8))
                + np.arange(len(stored)) * values[0].nbytes
                for array, values in pixels.items()
            },
            list(pixels.values()),
        )

    def _pixels(self, array: str, stored: Ints) -> NDArray[Any]:
        spec = zarr.PIXEL_ARRAYS[array]
        out = np.empty((len(stored), *spec.shape), spec.dtype)
        product, rows = self._products[stored], self._rows[stored]
        shard = rows // zarr.PATCHES_PER_ZARR_SHARD
        order = np.lexsort((shard, product))
        cuts = np.flatnonzero((product[order][1:] != product[order][:-1]) | (np.diff(shard[order]) != 0)) + 1
        for group in np.split(order, cuts):
            path = f"zarr/{product[group[0]]}.zarr/{zarr.shard_path(array, int(shard[group[0]]))}"
            inner = rows[group] % zarr.PATCHES_PER_ZARR_SHARD
            out[group] = self._read(array, path, inner)
        return out

    def _read(self, array: str, path: str, rows: Ints) -> NDArray[Any]:
        """Some patches of one Zarr shard: their chunks, or all of it when that is cheaper."""
        if path not in self._sizes:
            raise NotFoundError(f"{self._store.url}: objects.parquet has no {path}; run `reben-cloud verify`")
        size, name = self._sizes[path], f"{self._store.url}/{path}"

        def attempt() -> NDArray[Any]:
            try:
                if size < (len(rows) + 1) * REQUEST_BYTES:
                    data = self._store.get(path)
                    self._counters.add(requests=1, bytes_read=data.nbytes)
                    return zarr.decode_shard(array, data, rows=rows, name=name)
                tail = self._store.get_range(path, size - zarr.INDEX_BYTES, zarr.INDEX_BYTES)
                index = zarr.decode_index(tail, name=name)
                places = [zarr.chunk_range(index, row, name=name) for row in rows.tolist()]
                chunks = self._store.get_ranges(path, [s for s, _ in places], [n for _, n in places])
            except FileNotFoundError as error:
                raise NotFoundError(f"{self._store.url} has lost {path}; run `reben-cloud verify`") from error
            self._counters.add(
                requests=1 + len(chunks), bytes_read=tail.nbytes + sum(c.nbytes for c in chunks)
            )
            out = np.empty((len(rows), *zarr.PIXEL_ARRAYS[array].shape), zarr.PIXEL_ARRAYS[array].dtype)
            for row, chunk, pixels in zip(rows.tolist(), chunks, out, strict=True):
                zarr.decode_chunk(chunk, pixels, name=f"{name}: patch {row}")
            return out

        return persistently(attempt, self._counters)


def persistently(attempt: Callable[[], T], counters: Counters) -> T:
    """Try again, with backoff and jitter, when bytes are damaged or the store fails."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except (ChecksumError, StorageError):
            if number == ATTEMPTS - 1:
                raise
            counters.add(retries=1)
            # Jitter: the readers of a store that just failed must not come back all at once.
            time.sleep(0.05 * 2**number * (0.5 + random.random()))  # noqa: S311
    raise AssertionError
