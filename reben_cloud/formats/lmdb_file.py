"""Read an LMDB file without mapping it: where the value of a key is, and which keys there are.

LMDB itself maps its file, so that one cut short ends the process, and opens it once per process. The
tree is small and read page by page here; every number in it is compared with what the file can hold
before anything is read by it. Format: LMDB 0.9's ``mdb.c`` (``MDB_page``, ``MDB_node``, ``MDB_meta``),
data version 1, little-endian, one database of unique keys in byte order.
"""

from __future__ import annotations

import bisect
import functools
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from reben_cloud.errors import SourceError
from reben_cloud.files.local import LocalFile

_PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower and upper end of the free space
_OVERFLOW_HEADER_BYTES = 16
# Page header, magic, version, address, map size, free list, main database, last page, transaction.
_META = struct.Struct("<QHHIIIQQ48s48sQQ")
# Size of a page (the free list's), flags, depth, branch, leaf and overflow pages, entries, root.
_DATABASE = struct.Struct("<IHHQQQQQ")
# Size of the value, or the child's page, in two halves; flags, or the page's third part; size of the key.
_NODE = struct.Struct("<HHHH")

_P_BRANCH, _P_LEAF, _P_OVERFLOW, _P_META = 1, 2, 4, 8
_F_BIGDATA = 1
_F_SUBDATA = 2  # a named database, of which the keys are told to whoever opens the file
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32
_PAGES_KEPT = 512


class Value(NamedTuple):
    """Where a value lies in the file."""

    start: int
    """First byte."""
    nbytes: int
    """Length."""


class _Page(NamedTuple):
    keys: list[bytes]
    below: list[int]
    """Child pages; empty for a leaf."""
    values: list[Value]
    """Values; empty for a branch."""


class LmdbFile:
    """An LMDB file as its last transaction left it.

    Args:
        path: The ``data.mdb``.

    Raises:
        FileNotFoundError: If there is none.
        SourceError: If it is not an LMDB file, or cut short.
        StorageError: If it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = LocalFile(path)
        """The file, to read values from."""
        self._meta = _read_meta(self.file)
        # Not a method: the cache would keep this object, and its file open, in a circle.
        self._page = functools.lru_cache(_PAGES_KEPT)(functools.partial(_read_page, self.file, self._meta))

    @property
    def num_records(self) -> int:
        """How many records it has."""
        return self._meta.entries

    def check_unchanged(self) -> None:
        """See that nobody wrote to the file since it was opened: pages may have been used again.

        Raises:
            SourceError: If somebody did.
        """
        if _read_meta(self.file) != self._meta:
            raise SourceError(f"{self.file.path} was written to while it was read; open it again")

    def find(self, key: bytes) -> Value | None:
        """Where the value of `key` lies, None if there is no such key.

        Raises:
            SourceError: If the tree is damaged.
            StorageError: If the file cannot be read.
        """
        number = self._meta.root
        for _ in range(_MAX_DEPTH):
            if number == _NO_PAGE:
                return None
            page = self._page(number)
            if not page.below:
                position = bisect.bisect_left(page.keys, key)
                found = position < len(page.keys) and page.keys[position] == key
                return page.values[position] if found else None
            # The first key of a branch stands for everything that is smaller than the second.
            number = page.below[bisect.bisect_right(page.keys, key, lo=1) - 1]
        raise SourceError(f"{self.file.path}: the tree is damaged, it has more than {_MAX_DEPTH} levels")

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, None if there is no such key. Raises as `find`."""
        value = self.find(key)
        return None if value is None else self.file.read(*value)

    def iter_keys(self) -> Iterator[bytes]:
        """Every key, in byte order. Raises as `find`."""
        todo = [(self._meta.root, 0)]
        while todo:
            number, depth = todo.pop()
            if number == _NO_PAGE:
                continue
            if depth > _MAX_DEPTH:
                raise SourceError(
                    f"{self.file.path}: the tree is damaged, it has more than {_MAX_DEPTH} levels"
                )
            page = self._page(number)
            if page.below:
                todo += [(child, depth + 1) for child in reversed(page.below)]
            else:
                yield from page.keys


class _Meta(NamedTuple):
    page_bytes: int
    root: int
    entries: int
    last_page: int
    transaction: int


def _read_meta(file: LocalFile) -> _Meta:
    """The meta page of the last transaction."""
    size = file.nbytes
    if size < _META.size:
        raise SourceError(f"{file.path}: not a readable LMDB database, it has {size:,} bytes")
    first = _parse_meta(file, 0)
    found = [first]
    if size >= first.page_bytes + _META.size:
        found.append(_parse_meta(file, first.page_bytes))
    meta = max(found, key=lambda m: m.transaction)
    expected = (meta.last_page + 1) * meta.page_bytes
    if size < expected:
        raise SourceError(
            f"{file.path} is truncated: {size:,} bytes of {expected:,}; export or copy it again"
        )
    return meta


def _parse_meta(file: LocalFile, start: int) -> _Meta:
    _, _, flags, _, magic, version, _, _, free, main, last_page, transaction = _META.unpack(
        file.read(start, _META.size)
    )
    page_bytes = _DATABASE.unpack(free)[0]
    _, main_flags, _, _, _, _, entries, root = _DATABASE.unpack(main)
    is_ours = (
        flags & _P_META
        and magic == _MAGIC
        and version == _VERSION
        and page_bytes in (2**n for n in range(9, 17))
    )
    if not is_ours:
        raise SourceError(
            f"{file.path}: not a readable LMDB database (version {_VERSION}, little-endian, 64 bits)"
        )
    if main_flags:
        raise SourceError(f"{file.path}: an LMDB of sorted duplicates or keys in another order is not read")
    return _Meta(page_bytes, root, entries, last_page, transaction)


def _read_page(file: LocalFile, meta: _Meta, number: int) -> _Page:
    """A branch or leaf page, every number in it checked."""
    _check_pages(file, meta, number, 1)
    data = file.read(number * meta.page_bytes, meta.page_bytes)
    own_number, _, flags, lower, upper = _PAGE.unpack_from(data)
    kind = flags & (_P_BRANCH | _P_LEAF | _P_OVERFLOW | _P_META)
    count = (lower - _PAGE.size) // 2
    if (
        own_number != number
        or kind not in (_P_BRANCH, _P_LEAF)
        or not _PAGE.size <= lower <= upper <= len(data)
        or (kind == _P_BRANCH and not count)
    ):
        raise _damaged(file, number)
    keys, below, values = [], [], []
    for offset in struct.unpack_from(f"<{count}H", data, _PAGE.size):
        if not upper <= offset <= len(data) - _NODE.size:
            raise _damaged(file, number)
        low, high, flags, key_bytes = _NODE.unpack_from(data, offset)
        start = offset + _NODE.size + key_bytes
        if start > len(data):
            raise _damaged(file, number)
        keys.append(data[offset + _NODE.size : start])
        if kind == _P_BRANCH:
            below.append(low | high << 16 | flags << 32)
            continue
        nbytes = low | high << 16
        if flags == _F_BIGDATA and start + 8 <= len(data):
            values.append(_big_value(file, meta, int.from_bytes(data[start : start + 8], "little"), nbytes))
        elif flags in (0, _F_SUBDATA) and start + nbytes <= len(data):
            values.append(Value(number * meta.page_bytes + start, nbytes))
        else:
            raise _damaged(file, number)
    return _Page(keys, below, values)


def _big_value(file: LocalFile, meta: _Meta, number: int, nbytes: int) -> Value:
    """A value on pages of its own."""
    _check_pages(file, meta, number, -(-(_OVERFLOW_HEADER_BYTES + nbytes) // meta.page_bytes))
    return Value(number * meta.page_bytes + _OVERFLOW_HEADER_BYTES, nbytes)


def _check_pages(file: LocalFile, meta: _Meta, number: int, count: int) -> None:
    # The first two pages are meta pages.
    if not 2 <= number <= meta.last_page + 1 - count:
        raise _damaged(file, number)


def _damaged(file: LocalFile, number: int) -> SourceError:
    return SourceError(f"{file.path}: the tree is damaged at page {number}; export or copy it again")
