"""Payloads in tar shards: read in place, from a cache, whole or by ranges.

How a remote shard is read is decided by one rule (`plan_ranges`). The names in a shard are compared with
those of the table when it arrives.
"""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import IO

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, InvalidPatchError, NotFoundError, StorageError
from reben_cloud.files.local import LocalFile
from reben_cloud.formats import tar
from reben_cloud.root import layout as paths
from reben_cloud.root.references import REQUEST_BYTES
from reben_cloud.sampling import Ints
from reben_cloud.schema import Buffer, Modality
from reben_cloud.store import Store, Tries
from reben_cloud.stream.cache import ShardCache
from reben_cloud.stream.gather import BufferPool, Layout, copies_of
from reben_cloud.stream.kept import KeptShards
from reben_cloud.stream.payloads import InFile, InMemory, Part, Payloads
from reben_cloud.stream.readers.base import Brought, Cost, Counters, Places, persistently

CACHED_USES = 4
"""Epochs over which a shard in the disk cache, or kept in memory, is expected to pay; a training run has more."""


def plan_ranges(
    rows: Ints, modality: Modality, num_samples: int, *, request_bytes: int = REQUEST_BYTES, uses: int = 1
) -> list[tuple[int, int]] | None:
    """How to read some rows of a shard.

    A request costs as much as reading `request_bytes`: two rows are read together when what lies
    between them costs less than a request, and the whole shard when the ranges cost more than it
    (over all the epochs in which a cached shard will be used again).

    Args:
        rows: Wanted rows, rising.
        modality: What the shard holds.
        num_samples: Samples in the shard.
        request_bytes: Price of a request.
        uses: How often a whole shard is used, and ranges would be read.

    Returns:
        (first row, row after the last) of each range; None for the whole shard.
    """
    record = tar.record_bytes(modality)
    cuts = np.flatnonzero((np.diff(rows) - 1) * record > request_bytes) + 1
    ranges = [(int(r[0]), int(r[-1]) + 1) for r in np.split(rows, cuts)]
    cost = sum((stop - start) * record + request_bytes for start, stop in ranges)
    return None if uses * cost >= tar.shard_bytes(modality, num_samples) else ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """Some samples of one shard."""

    path: str
    """The shard."""
    modality: Modality
    """Its modality."""
    nbytes: int
    """Size of the shard."""
    num_samples: int
    """Samples in it, wanted or not."""
    is_strided: bool
    """Whether the size is that of a shard in which every record has one size."""
    here: Ints
    """Where they are among the samples that are asked for."""
    rows: Ints
    """Row of each sample."""
    names: NDArray[np.bytes_]
    """Member in which each sample's payload must be."""
    checksums: NDArray[np.uint64]
    """xxh3-64 of each payload."""

    def part(self, which: Ints) -> _Wanted:
        """Some of these samples."""
        return replace(
            self,
            here=self.here[which],
            rows=self.rows[which],
            names=self.names[which],
            checksums=self.checksums[which],
        )

    @property
    def records(self) -> Ints:
        """Where the records start if the shard is strided."""
        return self.rows * tar.record_bytes(self.modality)


class ShardReader:
    """Reads tar shards: local and cached files sample by sample, others into memory, sparse ones by ranges.

    Args:
        store: The root.
        places: Where the samples are.
        objects: Path of each shard -> (bytes, xxh3-64).
        modalities: What to read.
        counters: Where to count.
        layout: What pixels batches have.
        cache: Disk cache of a remote root.
        kept: Where whole shards are kept in memory; None for nowhere.
        uses: How often a shard in that cache is expected to save what is asked for at one time.
        keep: Buffers of each modality that are kept for the next shards.
    """

    def __init__(
        self,
        store: Store,
        places: Places,
        objects: Mapping[str, tuple[int, int]],
        modalities: Sequence[Modality],
        counters: Counters,
        *,
        layout: Layout,
        cache: ShardCache | None = None,
        kept: KeptShards | None = None,
        uses: int = CACHED_USES,
        keep: int,
    ) -> None:
        self._modalities = {m.name: m for m in modalities}
        self.copies = {m.name: copies_of(m, layout) for m in modalities}
        # Objects of a remote root come at the same time; opening files costs less than handing it out.
        self.parts = (tuple(self._modalities),) if store.is_local else tuple((m,) for m in self._modalities)
        self._store = store
        self._folder = store.local_path()
        self._places = places
        self._objects = objects
        self._counters = counters
        self._cache = None if store.is_local else cache
        self._kept = kept
        self._uses = 1 if self._cache is None and kept is None else uses
        # A group's last shard is smaller, and goes to the smallest buffer that holds it.
        most = int(places.num_samples.max(initial=0))
        self._pools = [
            BufferPool(size, keep=keep) for size in sorted(tar.shard_bytes(m, most) for m in modalities)
        ]
        self._foreign: dict[str, Mapping[str, int]] = {}

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these modalities."""
        found: Part = {name: [] for name in part}
        for wanted in self._each_wanted(part, stored):
            found[wanted.modality.name] += self._load_shard(wanted)
        return found

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:
        """What `load` will take: as it decides, without reading."""
        total = Cost()
        for wanted in self._each_wanted(part, stored):
            total += self._expect_shard(wanted, int(times[wanted.here].sum()), brought)
        return total

    def _expect_shard(self, wanted: _Wanted, num_delivered: int, brought: Brought) -> Cost:
        nbytes, checksum = self._objects[wanted.path]
        in_file = num_delivered * wanted.modality.payload_bytes
        if self._store.is_local and self._kept is None:
            return Cost(1, in_file, 0)
        ranges = self._ranges(wanted)
        if self._kept is not None and ranges is None:
            if checksum in brought or self._kept.has(checksum):
                return Cost()
            if self._kept.has_room(brought.nbytes + nbytes):
                brought.add(checksum, nbytes)
                return Cost(1, nbytes, 0)
        if self._store.is_local:
            return Cost(1, in_file, 0)
        if self._cache is not None and (
            checksum in brought or self._cache.path(wanted.path, checksum).exists()
        ):
            return Cost(0, in_file, 0)
        if ranges is None:
            if self._cache is not None and nbytes <= (self._cache.budget_bytes or nbytes):
                brought.add(checksum, nbytes)
            return Cost(1, nbytes, nbytes)
        range_bytes = sum(_range_bytes(wanted.modality, first, stop)[1] for first, stop in ranges)
        return Cost(len(ranges), range_bytes, range_bytes)

    def _ranges(self, wanted: _Wanted) -> list[tuple[int, int]] | None:
        """The ranges to read; None for the whole shard."""
        if not wanted.is_strided:
            return None
        return plan_ranges(np.sort(wanted.rows), wanted.modality, wanted.num_samples, uses=self._uses)

    def _each_wanted(self, part: tuple[str, ...], stored: Ints) -> Iterator[_Wanted]:
        """What is wanted of each shard of these modalities."""
        places, shards = self._places, self._places.shard[stored]
        for shard in sorted(set(shards.tolist())):
            here = np.flatnonzero(shards == shard)
            mine, (group, number) = stored[here], places.shards[shard]
            num_samples, rows, ids = int(places.num_samples[shard]), places.row[mine], places.ids[mine]
            for name in part:
                modality, path = self._modalities[name], paths.shard(group, name, number)
                if path not in self._objects:
                    raise NotFoundError(
                        f"{self._store.url}: objects.parquet has no {path}; run `reben-cloud verify`"
                    )
                nbytes = self._objects[path][0]
                yield _Wanted(
                    path=path,
                    modality=modality,
                    nbytes=nbytes,
                    num_samples=num_samples,
                    is_strided=nbytes == tar.shard_bytes(modality, num_samples),
                    here=here,
                    rows=rows,
                    names=np.char.add(ids, f".{name}.safetensors".encode()),
                    checksums=places.checksums[name][mine],
                )

    def _load_shard(self, wanted: _Wanted) -> list[tuple[Ints, Payloads]]:
        """Some samples of one shard, by where they are: (where among those asked for, payloads)."""
        if (kept := self._find_kept(wanted)) is not None:
            return [(wanted.here, self._in_memory(wanted, kept))]
        if self._folder is not None:
            try:
                file = LocalFile(f"{self._folder}/{wanted.path}")
            except FileNotFoundError as error:
                raise self._lost(wanted.path) from error
            self._counters.add(requests=1)
            return [(wanted.here, self._in_file(wanted, file))]
        if self._cache is not None:
            cached = self._find_cached(wanted)
            if cached is not None:
                return [(wanted.here, cached)]
        few = self._load_few(wanted)
        if few is not None:
            return few
        if self._cache is None:
            return [(wanted.here, self._in_memory(wanted, self._download(wanted.path)))]
        return [(wanted.here, self._through_cache(wanted))]

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
            first = int(records.min())
            file.read_ahead(first, int(records.max()) - first + tar.record_bytes(wanted.modality))

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
            starts=starts.tolist(),
            nbytes=wanted.modality.payload_bytes,
            header=wanted.modality.payload_header,
            checksums=wanted.checksums.tolist(),
            names=tar.name_fields(wanted.names) if is_ours else (),
            damage=lambda number, cause: self._damage(wanted, number, cause),
            count=self._counters.add_file,
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

        def fetch(tries: Tries | None = None) -> memoryview:
            fetched.append(self._download(wanted.path, tries))
            return fetched[-1].data

        self._cache.add(wanted.path, checksum, nbytes, fetch, self._store.budget)
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
        self._cache.add(wanted.path, checksum, nbytes, lambda _: data.data, self._store.budget)
        return self._in_memory(wanted, data)

    def _find_kept(self, wanted: _Wanted) -> NDArray[np.uint8] | None:
        """The whole shard, kept in memory from now on; None where that is not asked for, or too dear for a few rows."""
        if self._kept is None or self._ranges(wanted) is not None:
            return None
        nbytes, checksum = self._objects[wanted.path]
        return self._kept.get(checksum, nbytes, lambda: self._download(wanted.path))

    # -- in memory ---------------------------------------------------------------------------------

    def _in_memory(self, wanted: _Wanted, data: NDArray[np.uint8]) -> InMemory:
        """Payloads in the bytes of a whole shard, whose checksum was compared."""
        name, nbytes = f"{self._store.url}/{wanted.path}", wanted.modality.payload_bytes
        if wanted.is_strided and _are_named(wanted.names, data, wanted.records):
            return InMemory(data, wanted.records + tar.PAYLOAD_OFFSET, nbytes, name=name)
        found = InMemory(data, self._members(wanted, lambda: io.BytesIO(data.data)), nbytes, name=name)
        for number in range(len(wanted.rows)):
            self._check_payload(wanted, number, found.read(number))
        return found

    def _download(self, path: str, tries: Tries | None = None) -> NDArray[np.uint8]:
        """A whole shard; `tries` are those of its first answer, another is asked for when that is damaged."""
        nbytes, checksum = self._objects[path]
        # Another writer's tar may be larger than ours.
        pool = next((p for p in self._pools if p.nbytes >= nbytes), None) or BufferPool(nbytes, keep=0)

        def attempt() -> NDArray[np.uint8]:
            data, begin = pool.take(nbytes), time.perf_counter()
            try:
                found = self._store.get_into(path, data.data, tries=tries)
            except FileNotFoundError as error:
                raise self._lost(path) from error
            there = time.perf_counter()
            is_right = found == nbytes and xxhash.xxh3_64_intdigest(data.data) == checksum
            spent_s = time.perf_counter() - there
            self._counters.add(requests=1, bytes_read=found, store_s=there - begin, checks_s=spent_s)
            if not is_right:
                raise ChecksumError(
                    f"{self._store.url}/{path}: the {found:,} bytes read are not the {nbytes:,} that "
                    "objects.parquet lists (xxh3 differs); if `reben-cloud verify` says so too, the object is damaged"
                )
            return data

        return persistently(attempt, self._counters)

    def _load_few(self, wanted: _Wanted) -> list[tuple[Ints, Payloads]] | None:
        """The samples without the rest of their shard, where that costs less and its rows are as expected."""
        ranges = self._ranges(wanted)
        if ranges is None:
            return None
        rising = np.argsort(wanted.rows, kind="stable")
        found: list[tuple[Ints, Payloads]] = []
        # What does not verify is damaged, or another writer's tar with rows elsewhere: the whole
        # shard's checksum tells which.
        with suppress(ChecksumError):
            for first, stop in ranges:
                inside = rising[(wanted.rows[rising] >= first) & (wanted.rows[rising] < stop)]
                some = wanted.part(inside)
                read = partial(self._load_range, some, first, stop)
                found.append((some.here, persistently(read, self._counters)))
            return found
        return None

    def _load_range(self, wanted: _Wanted, first: int, stop: int) -> InMemory:
        """Rows that lie close together, by one range read; each payload verified on arrival."""
        payload, (start, length) = wanted.modality.payload_bytes, _range_bytes(wanted.modality, first, stop)
        name, begin = f"{self._store.url}/{wanted.path}", time.perf_counter()
        try:
            data = self._store.get_range(wanted.path, start, length)
        except FileNotFoundError as error:
            raise self._lost(wanted.path) from error
        there = time.perf_counter()
        self._counters.add(requests=1, bytes_read=data.nbytes, store_s=there - begin)
        if data.nbytes != length:
            raise ChecksumError(f"{name}: asked for {length:,} bytes at {start:,}, got {data.nbytes:,}")
        memory, records = np.frombuffer(data, np.uint8), wanted.records - start
        if not _are_named(wanted.names, memory, records):
            raise ChecksumError(f"{name}: other patches are in its rows than patches.parquet says")
        found = InMemory(memory, records + tar.PAYLOAD_OFFSET, payload, name=name)
        for number in range(len(records)):
            self._check_payload(wanted, number, found.read(number))
        self._counters.add(checks_s=time.perf_counter() - there)
        return found

    # -- who is where ------------------------------------------------------------------------------

    def _members(self, wanted: _Wanted, open_shard: Callable[[], IO[bytes]]) -> Ints:
        """Where the payloads start in a tar of another writer, read member by member, by their names."""
        name = f"{self._store.url}/{wanted.path}"
        if wanted.path not in self._foreign:
            try:
                self._foreign[wanted.path] = tar.find_payloads(wanted.modality, open_shard())
            except (tarfile.TarError, InvalidPatchError) as error:
                raise ChecksumError(f"{name} is not a shard of {wanted.modality.name}: {error}") from error
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
        header = wanted.modality.payload_header
        if payload[: len(header)] != header or xxhash.xxh3_64_intdigest(payload) != wanted.checksums[number]:
            raise ChecksumError(self._damage(wanted, number, "xxh3 differs"))

    def _damage(self, wanted: _Wanted, number: int, cause: str) -> str:
        return (
            f"{self._store.url}/{wanted.path}: the payload in row {wanted.rows[number]} is not the one that "
            f"patches.parquet lists ({cause}); if `reben-cloud verify` says so too, the object is damaged"
        )

    def _lost(self, path: str) -> NotFoundError:
        return NotFoundError(f"{self._store.url} has lost the shard {path}; run `reben-cloud verify`")


def _range_bytes(modality: Modality, first: int, stop: int) -> tuple[int, int]:
    """First byte and number of bytes of some rows of a shard, without what follows the last payload."""
    record = tar.record_bytes(modality)
    return first * record, (stop - 1 - first) * record + tar.PAYLOAD_OFFSET + modality.payload_bytes


def _are_named(names: NDArray[np.bytes_], memory: NDArray[np.uint8], records: Ints) -> bool:
    """Whether the members of these names start at these bytes."""
    found = memory[records[:, None] + np.arange(tar.NAME_BYTES)]
    return bool((found.view(f"S{tar.NAME_BYTES}")[:, 0] == names).all())
