"""The pages of an LMDB file whose records are all known beforehand: where each value goes, and the tree.

LMDB itself must be given the values in the order in which they are to lie, or it scatters them.
With the layout known first, values are written to their places as they arrive, in any order and by
many threads, and the file is the same whatever the order was. A
value of less than half a page, which LMDB itself puts inside the tree, has a page of its own too: every
value is where arithmetic says, and LMDB reads either. Format: LMDB 0.9's ``mdb.c``
(``MDB_page``, ``MDB_node``, ``MDB_meta``), data version 1, pages of 4,096 bytes, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reben_cloud.formats.lmdb_format import (
    DATABASE,
    F_BIGDATA,
    INTEGER_KEY,
    MAGIC,
    META_HEAD,
    NO_PAGE,
    OVERFLOW,
    P_BRANCH,
    P_LEAF,
    P_META,
    P_OVERFLOW,
    PAGE,
    VERSION,
)

PAGE_BYTES = 4096
"""LMDB's page size on every platform that BigEarthNet tools run on."""

VALUE_OFFSET = OVERFLOW.size
"""Bytes of page header before a value, which lies on pages of its own."""

MAX_KEY_BYTES = 511
"""Longest key that LMDB takes unless it was compiled for another one."""

MAP_SIZE_OFFSETS = (32, PAGE_BYTES + 32)
"""Where both meta pages keep the map size, a little-endian uint64."""

_LEAF_NODE = struct.Struct("<IHH")  # size of the value, flags, size of the key; then key, page number
_BRANCH_NODE = struct.Struct("<IHH")  # child's page number in 48 bits, size of the key; then key


def pages_of(size: int) -> int:
    """Whole pages that a value takes."""
    return -(-(VALUE_OFFSET + size) // PAGE_BYTES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which page everything lies on; made by `plan_pages`."""

    keys: NDArray[np.bytes_]
    """Keys, rising, shape (n,)."""
    sizes: NDArray[np.integer]
    """Bytes of each value, shape (n,)."""
    first_page: NDArray[np.int64]
    """First page of each value, shape (n,)."""
    levels: Sequence[Sequence[tuple[int, int]]]
    """Leaves first, the root last: (first, end) of the keys, or pages below, of each page."""

    @property
    def tree_page(self) -> int:
        """First page of the tree, which follows the values."""
        return int(self.first_page[-1]) + pages_of(int(self.sizes[-1]))

    @property
    def num_pages(self) -> int:
        """Pages of the file."""
        return self.tree_page + sum(len(level) for level in self.levels)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self.num_pages * PAGE_BYTES

    def value_offset(self, number: int) -> int:
        """Where in the file a value starts; `value_header` goes before it."""
        return int(self.first_page[number]) * PAGE_BYTES + VALUE_OFFSET

    def value_header(self, number: int) -> bytes:
        """The page header of a value."""
        return OVERFLOW.pack(int(self.first_page[number]), 0, P_OVERFLOW, pages_of(int(self.sizes[number])))

    def tree(self) -> Iterator[bytes]:
        """The pages of the tree, one after the other; they go to page `tree_page`."""
        number = self.tree_page
        starts: list[int] = []
        first_keys: list[bytes] = []
        for depth, level in enumerate(self.levels):
            below, starts = starts, []
            below_keys, first_keys = first_keys, []
            for first, end in level:
                if depth == 0:
                    nodes = [self._leaf_node(n) for n in range(first, end)]
                    first_keys.append(self.keys[first])
                else:
                    # The first key of a branch page is never looked at, and empty.
                    nodes = [
                        _branch_node(below[n], below_keys[n] if n > first else b"") for n in range(first, end)
                    ]
                    first_keys.append(below_keys[first])
                yield _page(number, P_BRANCH if depth else P_LEAF, nodes)
                starts.append(number)
                number += 1

    def meta(self, map_size: int) -> bytes:
        """The two meta pages: an empty database, then, of transaction 1, this one."""
        overflow = self.tree_page - 2
        leaves = len(self.levels[0])
        branches = sum(len(level) for level in self.levels[1:])
        main = DATABASE.pack(
            0, 0, len(self.levels), branches, leaves, overflow, len(self.keys), self.num_pages - 1
        )
        empty = DATABASE.pack(0, 0, 0, 0, 0, 0, 0, NO_PAGE)
        return _meta_page(0, map_size, empty, 1) + _meta_page(1, map_size, main, self.num_pages - 1)

    def _leaf_node(self, number: int) -> bytes:
        key = self.keys[number]
        node = _LEAF_NODE.pack(int(self.sizes[number]), F_BIGDATA, len(key))
        return _even(node + key + int(self.first_page[number]).to_bytes(8, "little"))


def plan_pages(keys: Sequence[bytes] | NDArray[np.bytes_], sizes: NDArray[np.integer]) -> Layout:
    """Lay records out: two meta pages, the values in the order of their keys, the tree.

    Args:
        keys: Distinct keys, rising in byte order.
        sizes: Bytes of each value, shape (n,).

    Raises:
        ValueError: If there is no record, or the keys do not rise, or are not keys of LMDB.
    """
    keys = np.asarray(keys)  # keys are text: that NumPy takes no zero bytes at the end is no loss
    if not len(keys):
        raise ValueError("an LMDB file without records is not laid out")
    wrong = np.flatnonzero(keys[:-1] >= keys[1:])
    if wrong.size:
        raise ValueError(f"keys must be distinct and rise in byte order, {keys[wrong[0] + 1]!r} does not")
    lengths = np.char.str_len(keys)
    if not (int(lengths.min()) >= 1 and int(lengths.max()) <= MAX_KEY_BYTES):
        raise ValueError(
            f"a key of LMDB has 1 to {MAX_KEY_BYTES} bytes, these have {int(lengths.min())} to {int(lengths.max())}"
        )
    pages = -(-(VALUE_OFFSET + sizes) // PAGE_BYTES)
    longest = int(lengths.max()) + 1
    room = PAGE_BYTES - PAGE.size
    levels = [_share(len(keys), room // (_LEAF_NODE.size + longest + 8 + 2))]
    while len(levels[-1]) > 1:
        levels.append(_share(len(levels[-1]), room // (_BRANCH_NODE.size + longest + 2)))
    return Layout(
        keys=keys, sizes=sizes, first_page=2 + np.cumsum(pages, dtype=np.int64) - pages, levels=levels
    )


def _share(count: int, capacity: int) -> list[tuple[int, int]]:
    """Equal shares of at most `capacity`: no page is left with a single child, which LMDB forbids."""
    num_pages = -(-count // capacity)
    return [(n * count // num_pages, (n + 1) * count // num_pages) for n in range(num_pages)]


def _branch_node(page: int, key: bytes) -> bytes:
    return _even(_BRANCH_NODE.pack(page & 0xFFFFFFFF, page >> 32, len(key)) + key)


def _even(node: bytes) -> bytes:
    return node + bytes(len(node) % 2)


def _page(number: int, flags: int, nodes: Sequence[bytes]) -> bytes:
    """Header, offsets of the nodes in order, free space, the nodes from the end backwards."""
    offsets = PAGE_BYTES - np.cumsum([len(node) for node in nodes])
    lower = PAGE.size + 2 * len(nodes)
    head = PAGE.pack(number, 0, flags, lower, int(offsets[-1])) + offsets.astype("<u2").tobytes()
    return head + b"".join(reversed(nodes)).rjust(PAGE_BYTES - lower, b"\0")


def _meta_page(transaction: int, map_size: int, main: bytes, last_page: int) -> bytes:
    # The free list's record is empty, and says the page size and the flags of the file.
    free = DATABASE.pack(PAGE_BYTES, INTEGER_KEY, 0, 0, 0, 0, 0, NO_PAGE)
    body = (
        META_HEAD.pack(MAGIC, VERSION, 0, map_size) + free + main + struct.pack("<QQ", last_page, transaction)
    )
    return (PAGE.pack(transaction, 0, P_META, 0, 0) + body).ljust(PAGE_BYTES, b"\0")
