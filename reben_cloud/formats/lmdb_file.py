"""Read an LMDB file without mapping it: where the value of a key is, and which keys there are.

LMDB itself maps its file, so that one cut short ends the process, and opens it once per process. The
tree is small and read page by page here; every number in it is compared with what the file can hold
before anything is read by it. The pages themselves are `lmdb_format`'s: one database of unique keys in byte order.
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
from reben_cloud.formats.lmdb_format import (
    F_BIGDATA,
    F_SUBDATA,
    MAX_DEPTH,
    META,
    NO_PAGE,
    NODE,
    OVERFLOW,
    P_BRANCH,
    P_LEAF,
    P_META,
    P_OVERFLOW,
    PAGE,
    Meta,
    parse_meta,
)

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
        for _ in range(MAX_DEPTH):
            if number == NO_PAGE:
                return None
            page = self._page(number)
            if not page.below:
                position = bisect.bisect_left(page.keys, key)
                found = position < len(page.keys) and page.keys[position] == key
                return page.values[position] if found else None
            # The first key of a branch stands for everything that is smaller than the second.
            number = page.below[bisect.bisect_right(page.keys, key, lo=1) - 1]
        raise SourceError(f"{self.file.path}: the tree is damaged, it has more than {MAX_DEPTH} levels")

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, None if there is no such key. Raises as `find`."""
        value = self.find(key)
        return None if value is None else self.file.read(*value)

    def iter_keys(self) -> Iterator[bytes]:
        """Every key, in byte order. Raises as `find`."""
        todo = [(self._meta.root, 0)]
        while todo:
            number, depth = todo.pop()
            if number == NO_PAGE:
                continue
            if depth > MAX_DEPTH:
                raise SourceError(
                    f"{self.file.path}: the tree is damaged, it has more than {MAX_DEPTH} levels"
                )
            page = self._page(number)
            if page.below:
                todo += [(child, depth + 1) for child in reversed(page.below)]
            else:
                yield from page.keys


def _read_meta(file: LocalFile) -> Meta:
    """The meta page of the last transaction."""
    size = file.nbytes
    if size < META.size:
        raise SourceError(f"{file.path}: not a readable LMDB database, it has {size:,} bytes")
    first = parse_meta(file.read(0, META.size), 0, file.path)
    found = [first]
    if size >= first.page_bytes + META.size:
        found.append(parse_meta(file.read(first.page_bytes, META.size), 0, file.path))
    meta = max(found, key=lambda m: m.transaction)
    expected = (meta.last_page + 1) * meta.page_bytes
    if size < expected:
        raise SourceError(
            f"{file.path} is truncated: {size:,} bytes of {expected:,}; export or copy it again"
        )
    return meta


def _read_page(file: LocalFile, meta: Meta, number: int) -> _Page:
    """A branch or leaf page, every number in it checked."""
    _check_pages(file, meta, number, 1)
    data = file.read(number * meta.page_bytes, meta.page_bytes)
    own_number, _, flags, lower, upper = PAGE.unpack_from(data)
    kind = flags & (P_BRANCH | P_LEAF | P_OVERFLOW | P_META)
    count = (lower - PAGE.size) // 2
    if (
        own_number != number
        or kind not in (P_BRANCH, P_LEAF)
        or not PAGE.size <= lower <= upper <= len(data)
        or (kind == P_BRANCH and not count)
    ):
        raise _damaged(file, number)
    keys, below, values = [], [], []
    for offset in struct.unpack_from(f"<{count}H", data, PAGE.size):
        if not upper <= offset <= len(data) - NODE.size:
            raise _damaged(file, number)
        low, high, flags, key_bytes = NODE.unpack_from(data, offset)
        start = offset + NODE.size + key_bytes
        if start > len(data):
            raise _damaged(file, number)
        keys.append(data[offset + NODE.size : start])
        if kind == P_BRANCH:
            below.append(low | high << 16 | flags << 32)
            continue
        nbytes = low | high << 16
        if flags == F_BIGDATA and start + 8 <= len(data):
            values.append(_big_value(file, meta, int.from_bytes(data[start : start + 8], "little"), nbytes))
        elif flags in (0, F_SUBDATA) and start + nbytes <= len(data):
            values.append(Value(number * meta.page_bytes + start, nbytes))
        else:
            raise _damaged(file, number)
    return _Page(keys, below, values)


def _big_value(file: LocalFile, meta: Meta, number: int, nbytes: int) -> Value:
    """A value on pages of its own."""
    _check_pages(file, meta, number, -(-(OVERFLOW.size + nbytes) // meta.page_bytes))
    return Value(number * meta.page_bytes + OVERFLOW.size, nbytes)


def _check_pages(file: LocalFile, meta: Meta, number: int, count: int) -> None:
    # The first two pages are meta pages.
    if not 2 <= number <= meta.last_page + 1 - count:
        raise _damaged(file, number)


def _damaged(file: LocalFile, number: int) -> SourceError:
    return SourceError(f"{file.path}: the tree is damaged at page {number}; export or copy it again")
