"""Where the values of an LMDB lie that is read by ranges, from wherever it is: of all keys, or of some.

Only branch and leaf pages are read, level by level, many at a time. With the result, values are read by their
offsets alone. It knows no stores: whoever has the file gives a function that reads from it.
"""

from __future__ import annotations

import bisect
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.formats.lmdb_format import (
    META,
    NO_PAGE,
    PAGE_SIZES,
    Nodes,
    damaged,
    newest_meta,
    parse_nodes,
)
from reben_cloud.formats.lmdb_kept import Kept
from reben_cloud.formats.lmdb_requests import Request, plan_requests
from reben_cloud.formats.parquet import arrow_memory
from reben_cloud.schema import Buffer

Read = Callable[[int, int], Buffer]
"""Bytes of the file: offset and length -> so many bytes. Called by many threads at once; it tries again by itself."""

SCHEMA = pa.schema([("key", pa.binary()), ("offset", pa.int64()), ("length", pa.int64())])
"""An index: rows rise by `key` in byte order; a value is the `length` bytes of the file from byte `offset`."""

GROUP_PAGES = 256
"""Leaves that are taken up, and kept, together."""

_COMBINED_ROWS = 2**18
_BRANCHES_KEPT = 4096


class Estimate(NamedTuple):
    """What a full index costs, at most."""

    entries: int
    """Records of the file."""
    requests: int
    """Most requests; fewer where pages are neighbours."""
    nbytes: int
    """Bytes of all branches and leaves, and of the file's head; `lmdb_requests.GAP_SHARE` says what may be read
    between them."""


def estimate(read: Read, size: int, *, name: str = "data.mdb") -> Estimate:
    """What `index` will read, by one request.

    Args:
        read: Reads the file.
        size: Bytes of the file.
        name: What the file is called in messages.

    Raises:
        SourceError: If it is not an LMDB that can be read, or cut short.
    """
    return RemoteLmdb(read, size, name=name).estimate()


def index(
    read: Read,
    size: int,
    *,
    keep: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 16,
    name: str = "data.mdb",
) -> pa.Table:
    """Where every value lies.

    Args:
        read: Reads the file.
        size: Bytes of the file.
        keep: A local file in which what is found is kept while it is found: the next call with it goes on, also
            after the process was killed. It is begun again when the LMDB was written to since.
        progress: Called with the leaves that are done, and all.
        threads: Requests on their way at once.
        name: What the file is called in messages.

    Returns:
        A table of `SCHEMA`.

    Raises:
        SourceError: If the file is not an LMDB that can be read, is cut short or damaged; it names page and cause.
    """
    return RemoteLmdb(read, size, threads=threads, name=name).index(keep=keep, progress=progress)


def lookup(
    read: Read, size: int, keys: Sequence[bytes], *, threads: int = 16, name: str = "data.mdb"
) -> pa.Table:
    """Where the values of some keys lie, by the pages that lead to them alone.

    Returns:
        A table of `SCHEMA`, in the order of `keys`; offset and length are null where there is no such key.
        Raises as `index`.
    """
    return RemoteLmdb(read, size, threads=threads, name=name).lookup(keys)


class RemoteLmdb:
    """An LMDB file as its last transaction left it when this was made; branches are remembered over lookups.

    Args: as `index`. Raises as `estimate`.
    """

    def __init__(self, read: Read, size: int, *, threads: int = 16, name: str = "data.mdb") -> None:
        if threads < 1:
            raise ValueError(f"threads must be 1 or more, got {threads}")
        self._read, self._size, self._threads, self._name = read, size, threads, name
        self._head = self._exactly(0, min(size, PAGE_SIZES[-1] + META.size)) if size else b""
        self._meta = newest_meta(self._head, size, name)
        self._branches: dict[int, Nodes] = {}

    def estimate(self) -> Estimate:
        """As the function."""
        pages = self._meta.branch_pages + self._meta.leaf_pages
        nbytes = pages * self._meta.page_bytes + memoryview(self._head).nbytes
        return Estimate(self._meta.entries, 1 + pages, nbytes)

    def index(
        self,
        *,
        keep: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> pa.Table:
        """As the function."""
        meta = self._meta
        if meta.root == NO_PAGE:
            return SCHEMA.empty_table()
        with ThreadPoolExecutor(self._threads) as pool:
            leaves = self._leaves(pool)
            groups = [leaves[n : n + GROUP_PAGES] for n in range(0, len(leaves), GROUP_PAGES)]
            found = _Found(self._name)
            done = 0
            with closing(Kept(keep, self._identity(leaves))) as kept:
                for batch in kept.batches():
                    if done == len(groups):
                        raise SourceError(
                            f"{os.fspath(keep or '')} keeps more than there is of {self._name}; delete it"
                        )
                    found.add(batch, int(groups[done][0]))
                    done += 1
                for group, pages in self._pages(pool, groups[done:]):
                    parts = [
                        parse_nodes(page, int(number), meta, self._name, is_leaf=True)
                        for number, page in zip(group, pages, strict=True)
                    ]
                    batch = _batch(parts)
                    found.add(batch, int(group[0]))
                    kept.add(batch)
                    done += 1
                    if progress is not None:
                        progress(min(done * GROUP_PAGES, len(leaves)), len(leaves))
        if found.num_rows != meta.entries:
            raise SourceError(
                f"{self._name}: its leaves have {found.num_rows:,} records and its meta page says {meta.entries:,}"
            )
        return found.table()

    def lookup(self, keys: Sequence[bytes]) -> pa.Table:
        """As the function."""
        wanted = sorted(set(keys))
        places: dict[bytes, tuple[int, int]] = {}
        at: dict[int, list[bytes]] = (
            {self._meta.root: wanted} if wanted and self._meta.root != NO_PAGE else {}
        )
        with ThreadPoolExecutor(self._threads) as pool:
            for level in range(self._meta.depth if at else 0):
                is_leaf = level == self._meta.depth - 1
                below: dict[int, list[bytes]] = {}
                for number, nodes in self._nodes(pool, sorted(at), is_leaf=is_leaf):
                    here = nodes.keys()
                    for key in at[number]:
                        if not is_leaf:
                            # The first key of a branch stands for everything that is smaller than the second.
                            child = int(nodes.below[bisect.bisect_right(here, key, lo=1) - 1])
                            below.setdefault(child, []).append(key)
                            continue
                        position = bisect.bisect_left(here, key)
                        if position < len(here) and here[position] == key:
                            places[key] = int(nodes.offsets[position]), int(nodes.lengths[position])
                at = below
        found = [places.get(key, (None, None)) for key in keys]
        columns = [list(keys), [offset for offset, _ in found], [length for _, length in found]]
        return pa.table(
            [pa.array(c, field.type) for c, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
        )

    # -- levels ------------------------------------------------------------------------------------

    def _leaves(self, pool: ThreadPoolExecutor) -> NDArray[np.int64]:
        """The numbers of all leaves, in order; every number comes once, and as many as the meta page says."""
        meta = self._meta
        level, left = np.array([meta.root], np.int64), meta.branch_pages
        if not 2 <= meta.root <= meta.last_page:
            raise SourceError(f"{self._name}: the root, page {meta.root}, lies outside the file")
        for depth in range(meta.depth - 1):
            left -= len(level)
            if left < 0:
                raise SourceError(
                    f"{self._name}: page {level[0]} and others of level {depth} are more branches than the "
                    f"{meta.branch_pages:,} that the meta page says"
                )
            below = [nodes.below for _, nodes in self._nodes(pool, level.tolist(), is_leaf=False)]
            level = np.concatenate(below)
            values, counts = np.unique(level, return_counts=True)
            if counts.max() > 1:
                raise damaged(self._name, int(values[counts.argmax()]), "two branches lead to it")
            most = meta.branch_pages + meta.leaf_pages
            if len(level) > most:
                raise damaged(
                    self._name, int(level[0]), f"its level has more pages than the {most:,} of the tree"
                )
        if left or len(level) != meta.leaf_pages:
            raise SourceError(
                f"{self._name}: the tree has {len(level):,} leaves and {meta.branch_pages - left:,} branches, and its "
                f"meta page says {meta.leaf_pages:,} and {meta.branch_pages:,}"
            )
        return level

    def _nodes(
        self, pool: ThreadPoolExecutor, numbers: Sequence[int], *, is_leaf: bool
    ) -> Iterator[tuple[int, Nodes]]:
        """Pages of one level; branches that were read before are not read again."""
        missing = [n for n in numbers if n not in self._branches]
        for number in numbers:
            if number in self._branches:
                yield number, self._branches[number]
        groups = [
            np.array(missing[n : n + GROUP_PAGES], np.int64) for n in range(0, len(missing), GROUP_PAGES)
        ]
        for group, pages in self._pages(pool, groups):
            for number, page in zip(group.tolist(), pages, strict=True):
                nodes = parse_nodes(page, number, self._meta, self._name, is_leaf=is_leaf)
                if not is_leaf and len(self._branches) < _BRANCHES_KEPT:
                    self._branches[number] = nodes
                yield number, nodes

    def _pages(
        self, pool: ThreadPoolExecutor, groups: Iterable[NDArray[np.int64]]
    ) -> Iterator[tuple[NDArray[np.int64], list[Buffer]]]:
        """The bytes of groups of pages, in order; the requests of the next ones are on their way meanwhile."""
        size = self._meta.page_bytes
        waiting: deque[tuple[NDArray[np.int64], list[tuple[Request, Future[Buffer]]]]] = deque()
        num_asked = 0

        def taken() -> tuple[NDArray[np.int64], list[Buffer]]:
            nonlocal num_asked
            group, asked = waiting.popleft()
            pages: list[Buffer] = [b""] * len(group)
            for request, future in asked:
                data = memoryview(future.result())
                for position in request.positions.tolist():
                    start = int(group[position]) * size - request.start
                    pages[position] = data[start : start + size]
            num_asked -= len(asked)
            return group, pages

        try:
            for group in groups:
                requests = plan_requests(group, size)
                waiting.append(
                    (group, [(r, pool.submit(self._exactly, r.start, r.nbytes)) for r in requests])
                )
                num_asked += len(requests)
                while num_asked > 2 * self._threads and len(waiting) > 1:
                    yield taken()
            while waiting:
                yield taken()
        finally:
            for _, asked in waiting:
                for _, future in asked:
                    future.cancel()

    def _exactly(self, start: int, nbytes: int) -> Buffer:
        data = self._read(start, nbytes)
        came = memoryview(data).nbytes
        if came != nbytes:
            raise SourceError(
                f"{self._name} is truncated: {came:,} bytes came of {nbytes:,} from byte {start:,}"
            )
        return data

    def _identity(self, leaves: NDArray[np.int64]) -> str:
        """What a kept index is of."""
        return f"{self._size} {tuple(self._meta)} {GROUP_PAGES} {zlib.crc32(leaves.tobytes())}"


class _Found:
    """The rows found so far; each batch's keys follow those before it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._combined: list[pa.RecordBatch] = []
        self._batches: list[pa.RecordBatch] = []
        self._last: bytes | None = None
        self.num_rows = 0

    def add(self, batch: pa.RecordBatch, page: int) -> None:
        """Rows of leaves from `page` on.

        Raises:
            SourceError: If their keys do not rise.
        """
        keys = batch.column(0)
        first = keys[0].as_py()
        rises = pc.all(pc.less(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py() is not False
        if not rises or (self._last is not None and first <= self._last):
            raise damaged(self._name, page, "from here on, keys do not rise")
        self._last = keys[len(keys) - 1].as_py()
        self._batches.append(batch)
        self.num_rows += len(keys)
        # Thousands of small batches would cost more than what is in them.
        if sum(len(b) for b in self._batches) >= _COMBINED_ROWS:
            self._combine()

    def _combine(self) -> None:
        if self._batches:
            self._combined += pa.Table.from_batches(self._batches).combine_chunks().to_batches()
            self._batches = []

    def table(self) -> pa.Table:
        """All rows."""
        self._combine()
        return pa.Table.from_batches(self._combined, SCHEMA)


def _batch(parts: Sequence[Nodes]) -> pa.RecordBatch:
    """The rows of some leaves."""
    data = np.concatenate([p.key_data for p in parts])
    sizes = np.concatenate([np.diff(p.key_ends, prepend=0) for p in parts])
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    keys = pa.Array.from_buffers(
        pa.binary(), len(sizes), [None, arrow_memory(ends.data.cast("B")), arrow_memory(data.data)]
    )
    offsets = pa.array(np.concatenate([p.offsets for p in parts]))
    lengths = pa.array(np.concatenate([p.lengths for p in parts]))
    return pa.record_batch([keys, offsets, lengths], schema=SCHEMA)
