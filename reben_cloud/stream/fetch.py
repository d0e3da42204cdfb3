"""Find the payloads of a block and bring them near: from shards, Zarr stores or an LMDB.

Every reader answers ``load(part, stored)`` with `Payloads`, so that what follows does not know where
samples came from. How a remote shard is read is decided by one rule (`plan_ranges`). Names in a shard are
compared with those of the table when it arrives; every byte that is delivered was compared with a
checksum in memory that nobody else writes to, or belongs to a format with checksums of its own.
"""

from __future__ import annotations

import io
import random
import tarfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Any, Protocol, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, InvalidPatchError, NotFoundError, StorageError
from reben_cloud.formats import tar, zarr
from reben_cloud.local_file import LocalFile
from reben_cloud.patch import PAYLOAD_BYTES, PAYLOAD_HEADER, Buffer
from reben_cloud.sampling import Ints
from reben_cloud.store import Store
from reben_cloud.stream.cache import ShardCache
from reben_cloud.stream.gather import PAYLOAD_COPIES, BufferPool, Copy, arrays_of
from reben_cloud.stream.payloads import InFile, InMemory, Part, Payloads

T = TypeVar("T")

REQUEST_BYTES = 256 * 1024
"""What a request costs, in bytes that could have been read instead: 5 ms at 50 MB/s a connection."""

CACHED_USES = 4
"""Epochs over which a shard in the disk cache is expected to pay; a training run has more."""

ATTEMPTS = 4
"""How often an object is read before its damage is reported; a store that fails is the store's own matter."""


@dataclass(slots=True)
class Counters:
    """What was done so far; updated by many threads."""

    bytes_read: int = 0
    """Bytes fetched from the store, or read from local files."""
    requests: int = 0
    """Objects and ranges asked for."""
    retries: int = 0
    """Objects read again because they were damaged."""
    cache_hits: int = 0
    """Shards found in the disk cache."""
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
        """The payloads of these sources, of the samples at these stored positions, brought near."""


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
    ids: NDArray[np.bytes_]
    """Patch id of each sample, shape (n,)."""
    checksums: Mapping[str, NDArray[np.uint64]]
    """Modality -> xxh3-64 of each sample's payload, shape (n,)."""

    def __post_init__(self) -> None:
        # Addresses are computed from it.
        outside = np.flatnonzero((self.row < 0) | (self.row >= self.num_samples[self.shard]))
        if outside.size:
            first = int(outside[0])
            group, number = self.shards[int(self.shard[first])]
            raise ChecksumError(
                f"patches.parquet places {self.ids[first].decode()} in row {self.row[first]} of shard {number} of "
                f"{group}, which has {max(0, int(self.num_samples[self.shard[first]])):,} samples by the manifest: "
                "one of them is damaged; run `reben-cloud verify`"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """Some samples of one shard."""

    path: str
    """The shard."""
    modality: str
    """Its modality."""
    nbytes: int
    """Size of the shard."""
    num_samples: int
    """Samples in it, wanted or not."""
    is_strided: bool
    """Whether the size is that of a shard in which every record has one size."""
    rows: Ints
    """Row of each sample."""
    names: NDArray[np.bytes_]
    """Member in which each sample's payload must be."""
    checksums: NDArray[np.uint64]
    """xxh3-64 of each payload."""

    def part(self, which: Ints) -> _Wanted:
        """Some of these samples."""
        return replace(self, rows=self.rows[which], names=self.names[which], checksums=self.checksums[which])

    @property
    def records(self) -> Ints:
        """Where the records start if the shard is strided."""
        return self.rows * tar.RECORD_BYTES[self.modality]


class ShardReader:
    """Reads tar shards: local and cached files sample by sample, others into memory, sparse ones by ranges.

    Args:
        store: The root.
        places: Where the samples are.
        objects: Path of each shard -> (bytes, xxh3-64).
        modalities: What to read.
        counters: Where to count.
        cache: Disk cache of a remote root.
        keep: Buffers of each modality that are kept for the next shards.
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
        keep: int,
    ) -> None:
        self.copies = {m: PAYLOAD_COPIES[m] for m in modalities}
        # Objects of a remote root come at the same time; opening files costs less than handing it out.
        self.parts = (tuple(modalities),) if store.is_local else tuple((m,) for m in modalities)
        self._store = store
        self._places = places
        self._objects = objects
        self._counters = counters
        self._cache = None if store.is_local else cache
        # A group's last shard is smaller, and goes to the smallest buffer that holds it.
        most = int(places.num_samples.max(initial=0))
        self._pools = [
            BufferPool(size, keep=keep) for size in sorted(tar.shard_bytes(m, most) for m in modalities)
        ]
        self._foreign: dict[str, Mapping[str, int]] = {}

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these modalities."""
        shards = self._places.shard[stored]
        found: Part = {modality: [] for modality in part}
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            for modality in part:
                wanted = self._wanted(modality, shard, stored[here])
                found[modality] += [(here[inside], some) for inside, some in self._load_shard(wanted)]
        return found

    def _wanted(self, modality: str, shard: int, stored: Ints) -> _Wanted:
        group, number = self._places.shards[shard]
        path = tar.shard_path(group, modality, number)
        if path not in self._objects:
            raise NotFoundError(f"{self._store.url}: objects.parquet has no {path}; run `reben-cloud verify`")
        nbytes, num_samples = self._objects[path][0], int(self._places.num_samples[shard])
        return _Wanted(
            path=path,
            modality=modality,
            nbytes=nbytes,
            num_samples=num_samples,
            is_strided=nbytes == tar.shard_bytes(modality, num_samples),
            rows=self._places.row[stored],
            names=np.char.add(self._places.ids[stored], f".{modality}.safetensors".encode()),
            checksums=self._places.checksums[modality][stored],
        )

    def _load_shard(self, wanted: _Wanted) -> list[tuple[Ints, Payloads]]:
        """Some samples of one shard, by where they are: (which of them, payloads)."""
        every = np.arange(len(wanted.rows))
        local = self._store.local_path(wanted.path)
        if local is not None:
            try:
                file = LocalFile(local)
            except FileNotFoundError as error:
                raise self._lost(wanted.path) from error
            self._counters.add(requests=1)
            return [(every, self._in_file(wanted, file))]
        if self._cache is not None:
            cached = self._find_cached(wanted)
            if cached is not None:
                return [(every, cached)]
        few = self._load_few(wanted)
        if few is not None:
            return few
        if self._cache is None:
            return [(every, self._in_memory(wanted, self._download(wanted.path)))]
        return [(every, self._through_cache(wanted))]

    # -- in files ----------------------------------------------------------------------------------

    def _in_file(
        self, wanted: _Wanted, file: LocalFile, fetch_again: Callable[[], InMemory] | None = None
    ) -> InFile:
        """The payloads in a file, which is the shard by its size and by the names in it."""
        found = file.nbytes
        if found != wanted.nbytes:
            raise ChecksumError(
                f"{self._store.url}/{wanted.path}: {file.path} has {found:,} bytes, not the {wanted.nbytes:,} "
                "that objects.parquet lists: it was cut short or replaced; run `reben-cloud verify`"
            )
        records = wanted.records
        if wanted.is_strided:
            file.read_ahead(int(records.min()), int(np.ptp(records)) + tar.RECORD_BYTES[wanted.modality])

        # The other names are compared when their payloads are read.
        is_ours = (
            wanted.is_strided and tar.name_in(file.read(int(records[0]), tar.BLOCK_BYTES)) == wanted.names[0]
        )
        if is_ours:
            starts = records + tar.PAYLOAD_OFFSET
        else:
            starts = self._members(wanted, lambda: io.BytesIO(file.read(0, wanted.nbytes)))
        return InFile(
            file=file,
            starts=starts,
            nbytes=PAYLOAD_BYTES[wanted.modality],
            header=PAYLOAD_HEADER[wanted.modality],
            checksums=wanted.checksums,
            names=[name + b"\0" for name in wanted.names.tolist()] if is_ours else (),
            damage=lambda number, cause: self._damage(wanted, number, cause),
            count=lambda nbytes: self._counters.add(bytes_read=nbytes),
            fetch_again=fetch_again,
        )

    def _find_cached(self, wanted: _Wanted) -> InFile | None:
        """The payloads in the cached file, None if there is none that fits."""
        assert self._cache is not None
        path = self._cache.find(wanted.path, self._objects[wanted.path][1])
        if path is None:
            return None
        try:
            found = self._in_file(wanted, LocalFile(path), lambda: self._fetch_again(wanted))
        except (ChecksumError, StorageError, FileNotFoundError):
            # Damaged on disk, or evicted by another process since.
            path.unlink(missing_ok=True)
            return None
        self._counters.add(cache_hits=1)
        return found

    def _through_cache(self, wanted: _Wanted) -> Payloads:
        """Fetch a shard into the cache; what was fetched here is in memory already."""
        assert self._cache is not None
        nbytes, checksum = self._objects[wanted.path]
        fetched: list[NDArray[np.uint8]] = []

        def fetch() -> memoryview:
            fetched.append(self._download(wanted.path))
            return fetched[-1].data

        self._cache.add(wanted.path, checksum, nbytes, fetch)
        if not fetched:
            # Another thread or process brought it; its file may be evicted or damaged again already.
            cached = self._find_cached(wanted)
            if cached is not None:
                return cached
            fetch()
        return self._in_memory(wanted, fetched[-1])

    def _fetch_again(self, wanted: _Wanted) -> InMemory:
        """A shard whose cached file is damaged, from the store; the cache gets it too."""
        assert self._cache is not None
        nbytes, checksum = self._objects[wanted.path]
        self._counters.add(retries=1)
        data = self._download(wanted.path)
        self._cache.path(wanted.path, checksum).unlink(missing_ok=True)
        self._cache.add(wanted.path, checksum, nbytes, lambda: data.data)
        return self._in_memory(wanted, data)

    # -- in memory ---------------------------------------------------------------------------------

    def _in_memory(self, wanted: _Wanted, data: NDArray[np.uint8]) -> InMemory:
        """Payloads in the bytes of a whole shard, whose checksum was compared."""
        name, nbytes = f"{self._store.url}/{wanted.path}", PAYLOAD_BYTES[wanted.modality]
        if wanted.is_strided and _are_named(wanted.names, data, wanted.records):
            return InMemory(data, wanted.records + tar.PAYLOAD_OFFSET, nbytes, name=name)
        found = InMemory(data, self._members(wanted, lambda: io.BytesIO(data.data)), nbytes, name=name)
        for number in range(len(wanted.rows)):
            self._check_payload(wanted, number, found.read(number))
        return found

    def _download(self, path: str) -> NDArray[np.uint8]:
        nbytes, checksum = self._objects[path]
        # Another writer's tar may be larger than ours.
        pool = next((p for p in self._pools if p.nbytes >= nbytes), None) or BufferPool(nbytes, keep=0)

        def attempt() -> NDArray[np.uint8]:
            data = pool.take(nbytes)
            try:
                found = self._store.get_into(path, data.data)
            except FileNotFoundError as error:
                raise self._lost(path) from error
            self._counters.add(requests=1, bytes_read=found)
            if found != nbytes or xxhash.xxh3_64_intdigest(data.data) != checksum:
                raise ChecksumError(
                    f"{self._store.url}/{path}: the {found:,} bytes read are not the {nbytes:,} that "
                    "objects.parquet lists (xxh3 differs); if `reben-cloud verify` says so too, the object is damaged"
                )
            return data

        return persistently(attempt, self._counters)

    def _load_few(self, wanted: _Wanted) -> list[tuple[Ints, Payloads]] | None:
        """The samples without the rest of their shard, where that costs less and its rows are as expected."""
        if not wanted.is_strided:
            return None
        rising = np.argsort(wanted.rows, kind="stable")
        uses = 1 if self._cache is None else CACHED_USES
        ranges = plan_ranges(wanted.rows[rising], wanted.modality, wanted.num_samples, uses=uses)
        if ranges is None:
            return None
        found: list[tuple[Ints, Payloads]] = []
        # What does not verify is damaged, or another writer's tar with rows elsewhere: the whole
        # shard's checksum tells which.
        with suppress(ChecksumError):
            for first, stop in ranges:
                inside = rising[(wanted.rows[rising] >= first) & (wanted.rows[rising] < stop)]
                read = partial(self._load_range, wanted.part(inside), first, stop)
                found.append((inside, persistently(read, self._counters)))
            return found
        return None

    def _load_range(self, wanted: _Wanted, first: int, stop: int) -> InMemory:
        """Rows that lie close together, by one range read; each payload verified on arrival."""
        record, payload = tar.RECORD_BYTES[wanted.modality], PAYLOAD_BYTES[wanted.modality]
        start, length = first * record, (stop - 1 - first) * record + tar.PAYLOAD_OFFSET + payload
        name = f"{self._store.url}/{wanted.path}"
        try:
            data = self._store.get_range(wanted.path, start, length)
        except FileNotFoundError as error:
            raise self._lost(wanted.path) from error
        self._counters.add(requests=1, bytes_read=data.nbytes)
        if data.nbytes != length:
            raise ChecksumError(f"{name}: asked for {length:,} bytes at {start:,}, got {data.nbytes:,}")
        memory, records = np.frombuffer(data, np.uint8), wanted.records - start
        if not _are_named(wanted.names, memory, records):
            raise ChecksumError(f"{name}: other patches are in its rows than patches.parquet says")
        found = InMemory(memory, records + tar.PAYLOAD_OFFSET, payload, name=name)
        for number in range(len(records)):
            self._check_payload(wanted, number, found.read(number))
        return found

    # -- who is where ------------------------------------------------------------------------------

    def _members(self, wanted: _Wanted, open_shard: Callable[[], IO[bytes]]) -> Ints:
        """Where the payloads start in a tar of another writer, read member by member, by their names."""
        name = f"{self._store.url}/{wanted.path}"
        if wanted.path not in self._foreign:
            try:
                self._foreign[wanted.path] = tar.find_payloads(wanted.modality, open_shard())
            except (tarfile.TarError, InvalidPatchError) as error:
                raise ChecksumError(f"{name} is not a shard of {wanted.modality}: {error}") from error
        places = self._foreign[wanted.path]
        members = [member.decode() for member in wanted.names.tolist()]
        for row, member in zip(wanted.rows.tolist(), members, strict=True):
            if member not in places:
                raise ChecksumError(
                    f"{name} has no member {member}, which patches.parquet places in row {row}: the table is of "
                    "another root, or one of them is damaged; run `reben-cloud verify`"
                )
        return np.array([places[member] for member in members], np.int64)

    def _check_payload(self, wanted: _Wanted, number: int, payload: Buffer) -> None:
        header = PAYLOAD_HEADER[wanted.modality]
        if payload[: len(header)] != header or xxhash.xxh3_64_intdigest(payload) != wanted.checksums[number]:
            raise ChecksumError(self._damage(wanted, number, "xxh3 differs"))

    def _damage(self, wanted: _Wanted, number: int, cause: str) -> str:
        return (
            f"{self._store.url}/{wanted.path}: the payload in row {wanted.rows[number]} is not the one that "
            f"patches.parquet lists ({cause}); if `reben-cloud verify` says so too, the object is damaged"
        )

    def _lost(self, path: str) -> NotFoundError:
        return NotFoundError(f"{self._store.url} has lost the shard {path}; run `reben-cloud verify`")


def _are_named(names: NDArray[np.bytes_], memory: NDArray[np.uint8], records: Ints) -> bool:
    """Whether the members of these names start at these bytes."""
    found = memory[records[:, None] + np.arange(tar.NAME_BYTES)]
    return bool((found.view(f"S{tar.NAME_BYTES}")[:, 0] == names).all())


class LmdbReader:
    """Reads the values of an LMDB from its file into batches.

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
        self._counters = counters
        from reben_cloud.formats import lmdb

        self._file = lmdb.open_lmdb(folder)
        self._starts = {m: np.full(len(patch_ids), -1, np.int64) for m in modalities}

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The values of these modalities."""
        self._file.check_unchanged()
        every = np.arange(len(stored))
        return {modality: [(every, self._payloads(modality, stored))] for modality in part}

    def _payloads(self, modality: str, stored: Ints) -> InFile:
        keys, nbytes, found = self._keys[modality], PAYLOAD_BYTES[modality], self._starts[modality]
        for sample in stored[found[stored] < 0].tolist():
            value = self._file.find(keys[sample].encode())
            if value is None:
                raise NotFoundError(f"{self._folder}: no record {keys[sample]!r}")
            if value.nbytes != nbytes:
                raise ChecksumError(self._damage(keys[sample]))
            found[sample] = value.start
        starts = found[stored]
        for start in starts.tolist():
            self._file.file.read_ahead(start, nbytes)
        self._counters.add(requests=len(stored))
        sums = self._checksums.get(modality)
        return InFile(
            file=self._file.file,
            starts=starts,
            nbytes=nbytes,
            header=PAYLOAD_HEADER[modality],
            checksums=None if sums is None else sums[stored],
            damage=lambda number, _: self._damage(keys[stored[number]]),
            count=lambda nbytes: self._counters.add(bytes_read=nbytes),
        )

    def _damage(self, key: str) -> str:
        return f"{self._folder}: record {key!r} is not the payload that was written; export or copy it again"


class ZarrReader:
    """Reads samples from the products' Zarr stores, chunk by chunk; slower than shards, same pixels.

    Args:
        store: The root.
        products: Product of each sample in stored order.
        rows: Row of each sample in its product's store, shape (n,).
        ids: Patch id of each sample, shape (n,).
        sizes: Path of each Zarr shard -> bytes.
        modalities: What to read.
        counters: Where to count.
    """

    def __init__(
        self,
        store: Store,
        products: Sequence[str],
        rows: NDArray[np.integer],
        ids: NDArray[np.bytes_],
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
        self._ids = ids
        self._named: set[str] = set()
        self._sizes = sizes
        self._counters = counters

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The decoded chunks of these Zarr arrays."""
        every = np.arange(len(stored), dtype=np.int64)
        found: Part = {}
        for array in part:
            pixels = self._pixels(array, stored)
            nbytes = self.copies[array][0].nbytes
            memory = pixels.reshape(-1).view(np.uint8)
            found[array] = [(every, InMemory(memory, every * nbytes, nbytes, name=array))]
        return found

    def _pixels(self, array: str, stored: Ints) -> NDArray[Any]:
        spec = zarr.PIXEL_ARRAYS[array]
        out = np.empty((len(stored), *spec.shape), spec.dtype)
        product, rows = self._products[stored], self._rows[stored]
        shard = rows // zarr.PATCHES_PER_ZARR_SHARD
        order = np.lexsort((shard, product))
        cuts = np.flatnonzero((product[order][1:] != product[order][:-1]) | (np.diff(shard[order]) != 0)) + 1
        for name in np.unique(product).tolist():
            self._check_names(name)
        for group in np.split(order, cuts):
            path = f"zarr/{product[group[0]]}.zarr/{zarr.shard_path(array, int(shard[group[0]]))}"
            inner = rows[group] % zarr.PATCHES_PER_ZARR_SHARD
            out[group] = self._read(array, path, inner)
        return out

    def _check_names(self, product: str) -> None:
        """See, once, that the rows of a product's store are the patches that the table says."""
        if product in self._named:
            return
        prefix = f"zarr/{product}.zarr/"
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
    """Try again, with backoff and jitter, when bytes are damaged."""
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except ChecksumError:
            if number == ATTEMPTS - 1:
                raise
            counters.add(retries=1)
            # Jitter: readers that were damaged by one fault must not come back all at once.
            time.sleep(0.05 * 2**number * (0.5 + random.random()))  # noqa: S311
    raise AssertionError
