"""The pages of an LMDB file: their structures, and the meta page, branches and leaves read with every number checked.

Format: LMDB 0.9's ``mdb.c`` (``MDB_page``, ``MDB_node``, ``MDB_meta``), data version 1, little-endian. It knows
neither files nor stores: who reads brings the bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.schema import Buffer

PAGE = struct.Struct("<QHHHH")
"""Number, pad, flags, lower and upper end of the free space."""

OVERFLOW = struct.Struct("<QHHI")
"""Number, pad, flags, how many pages: what stands before a value on pages of its own."""

META_HEAD = struct.Struct("<IIQQ")
"""Magic, version, fixed address, map size: what follows the page header of a meta page."""

DATABASE = struct.Struct("<IHHQQQQQ")
"""Pad (the page size, in the free list's), flags, depth, branch, leaf, overflow pages, entries, root."""

META = struct.Struct("<QHHIIIQQ48s48sQQ")
"""A meta page: header, magic, version, address, map size, free list, main database, last page, transaction."""

NODE = struct.Struct("<HHHH")
"""Size of the value, or the child's page, in two halves; flags, or the page's third part; size of the key."""

P_BRANCH, P_LEAF, P_OVERFLOW, P_META = 1, 2, 4, 8
F_BIGDATA, F_SUBDATA, F_DUPDATA = 1, 2, 4
INTEGER_KEY = 8
MAGIC, VERSION = 0xBEEFC0DE, 1
NO_PAGE = 2**64 - 1
MAX_DEPTH = 32
"""LMDB's own bound (``CURSOR_STACK``)."""
PAGE_SIZES = tuple(2**n for n in range(9, 17))
"""Sizes of a page that LMDB can be built with."""

_DUPSORT = 4


class Meta(NamedTuple):
    """What a meta page says."""

    page_bytes: int
    depth: int
    """Levels of the tree; 0 when there is no record."""
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    """Records."""
    root: int
    last_page: int
    transaction: int


def parse_meta(data: Buffer, start: int, name: str) -> Meta:
    """A meta page.

    Args:
        data: Bytes of the file from its beginning, or `META.size` of them.
        start: Where in them the page begins.
        name: What the file is called in messages.

    Raises:
        SourceError: If it cannot be understood.
    """
    _, _, flags, _, magic, version, _, _, free, main, last_page, transaction = META.unpack_from(data, start)
    if magic == int.from_bytes(MAGIC.to_bytes(4, "little"), "big"):
        raise SourceError(f"{name}: this LMDB was written on a big-endian machine, which is not read")
    page_bytes = DATABASE.unpack(free)[0]
    _, main_flags, depth, branches, leaves, overflow, entries, root = DATABASE.unpack(main)
    is_ours = flags & P_META and magic == MAGIC and version == VERSION and page_bytes in PAGE_SIZES
    if not is_ours:
        raise SourceError(f"{name}: not a readable LMDB database (version {VERSION}, little-endian, 64 bits)")
    if main_flags & _DUPSORT:
        raise SourceError(
            f"{name}: an LMDB of sorted duplicates or keys in another order is not read (dupsort)"
        )
    if main_flags:
        raise SourceError(f"{name}: an LMDB of sorted duplicates or keys in another order is not read")
    return Meta(page_bytes, depth, branches, leaves, overflow, entries, root, last_page, transaction)


def newest_meta(head: Buffer, size: int, name: str) -> Meta:
    """The meta page of the last transaction that is whole.

    Args:
        head: The first `META.size` bytes after a page of the largest size, or all there are.
        size: Bytes of the file.
        name: What the file is called in messages.

    Raises:
        SourceError: If there is none, or the file is shorter than it says, or its numbers contradict each other.
    """
    found: list[Meta] = []
    cause = SourceError(f"{name}: not a readable LMDB database, it has {size:,} bytes")
    nbytes = memoryview(head).nbytes
    for start in (0, *PAGE_SIZES):
        if start + META.size > nbytes or (start and found and found[0].page_bytes != start):
            continue
        try:
            meta = parse_meta(head, start, name)
        except SourceError as error:
            cause = error if start == 0 else cause
            continue
        if start in (0, meta.page_bytes):
            found.append(meta)
    if not found:
        raise cause
    meta = max(found, key=lambda m: m.transaction)
    expected = (meta.last_page + 1) * meta.page_bytes
    if size < expected:
        raise SourceError(f"{name} is truncated: {size:,} bytes of {expected:,}")
    problem = _contradiction(meta)
    if problem:
        raise SourceError(f"{name}: the meta page of transaction {meta.transaction} is damaged: {problem}")
    return meta


def _contradiction(meta: Meta) -> str | None:
    pages = meta.branch_pages + meta.leaf_pages + meta.overflow_pages
    if meta.root == NO_PAGE or meta.depth == 0:
        return None if meta.root == NO_PAGE and not meta.entries else "a tree without a root has records"
    if meta.depth > MAX_DEPTH:
        return f"it says {meta.depth} levels, and {MAX_DEPTH} are most"
    if pages > meta.last_page + 1:
        return f"it says {pages:,} pages, and the file has {meta.last_page + 1:,}"
    if not meta.leaf_pages or (meta.depth > 1) != bool(meta.branch_pages):
        return f"{meta.branch_pages:,} branches and {meta.leaf_pages:,} leaves are no tree of {meta.depth} levels"
    if meta.entries > meta.leaf_pages * (meta.page_bytes // (NODE.size + 2)):
        return f"{meta.entries:,} records do not fit in {meta.leaf_pages:,} leaves"
    return None


class Nodes(NamedTuple):
    """The nodes of a branch or leaf page, in order."""

    key_data: NDArray[np.uint8]
    """The keys, one after the other."""
    key_ends: NDArray[np.int64]
    """Where each ends in `key_data`."""
    below: NDArray[np.int64]
    """Child page of each; empty for a leaf."""
    offsets: NDArray[np.int64]
    """Where in the file each value starts; empty for a branch."""
    lengths: NDArray[np.int64]
    """Bytes of each value."""

    def keys(self) -> list[bytes]:
        """Each key."""
        data, ends = self.key_data.tobytes(), self.key_ends.tolist()
        return [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


def parse_nodes(page: Buffer, number: int, meta: Meta, name: str, *, is_leaf: bool) -> Nodes:
    """A branch or leaf page.

    Args:
        page: Its bytes.
        number: Its number.
        meta: What the file says of itself.
        name: What the file is called in messages.
        is_leaf: Which of both it must be.

    Raises:
        SourceError: If a number in it cannot be, with the page and the cause.
    """
    size = meta.page_bytes
    own, _, flags, lower, upper = PAGE.unpack_from(page)
    kind = flags & (P_BRANCH | P_LEAF | P_OVERFLOW | P_META)
    if own != number:
        raise damaged(name, number, f"it says that it is page {own}")
    if kind != (P_LEAF if is_leaf else P_BRANCH):
        raise damaged(name, number, f"it is not a {'leaf' if is_leaf else 'branch'} (flags {flags:#x})")
    count = (lower - PAGE.size) // 2
    if not PAGE.size <= lower <= upper <= size or count < (1 if is_leaf else 2):
        raise damaged(name, number, f"{count} nodes and free space {lower}-{upper} cannot be")
    data, halves = np.frombuffer(page, np.uint8, size), np.frombuffer(page, "<u2", size // 2)
    at = halves[PAGE.size // 2 : lower // 2].astype(np.int64)
    if at.min() < upper or at.max() > size - NODE.size or (at & 1).any():
        raise damaged(name, number, "a node lies outside")
    low, high, third, key_bytes = (halves[at // 2 + n].astype(np.int64) for n in range(4))
    start = at + NODE.size + key_bytes
    if start.max() > size:
        raise damaged(name, number, "a key goes beyond its end")
    ends = np.cumsum(key_bytes)
    key_data = data[np.repeat(at + NODE.size - (ends - key_bytes), key_bytes) + np.arange(ends[-1])]
    none = np.empty(0, np.int64)
    if not is_leaf:
        below = low | high << 16 | third << 32
        if below.min() < 2 or below.max() > meta.last_page:
            raise damaged(name, number, "a child lies outside the file")
        return Nodes(key_data, ends, below, none, none)
    lengths = low | high << 16
    offsets = _value_offsets(data, number, meta, name, third, start, lengths)
    return Nodes(key_data, ends, none, offsets, lengths)


def _value_offsets(
    data: NDArray[np.uint8],
    number: int,
    meta: Meta,
    name: str,
    flags: NDArray[np.int64],
    start: NDArray[np.int64],
    lengths: NDArray[np.int64],
) -> NDArray[np.int64]:
    size = meta.page_bytes
    if (flags & F_SUBDATA).any():
        raise SourceError(f"{name}: page {number} has a database within the database, which is not read")
    if (flags & F_DUPDATA).any():
        raise SourceError(f"{name}: page {number} has sorted duplicates, which are not read")
    if (flags & ~F_BIGDATA).any():
        raise damaged(name, number, f"a node has unknown flags ({int(flags.max()):#x})")
    is_big = flags == F_BIGDATA
    if (start + np.where(is_big, 8, lengths)).max() > size:
        raise damaged(name, number, "a value goes beyond its end")
    offsets = number * size + start
    if is_big.any():
        first = data[start[is_big][:, None] + np.arange(8)].view("<u8")[:, 0]
        pages = (OVERFLOW.size + lengths[is_big] + size - 1) // size
        # Compared before it is made signed: 2**63 and more would pass for small.
        if first.min() < 2 or first.max() > meta.last_page:
            raise damaged(name, number, "a value lies outside the file")
        if (first.astype(np.int64) + pages).max() > meta.last_page + 1:
            raise damaged(name, number, "a value goes beyond the end of the file")
        offsets[is_big] = first.astype(np.int64) * size + OVERFLOW.size
    return offsets


def damaged(name: str, number: int, cause: str) -> SourceError:
    """The error of a page that cannot be."""
    return SourceError(f"{name}: the tree is damaged at page {number}: {cause}; export or copy it again")
