"""How an archive is packed: zstd, gzip or not at all, in one file or cut into parts (``.tar.gzaa``, ``.tar.gzab``).

Names say which files belong together; what they are packed with, their first bytes say.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.store import Store

SUFFIXES = (".tar.zst", ".tar.gz", ".tar")
"""Endings under which archives are looked for at a URL, where few servers say what they have."""

FIRST_PARTS = (".tar.gzaa", ".tar.gz.aa", ".tar.zstaa", ".tar.zst.aa")
"""The same of archives in parts: the ending of the first."""

_WHOLE = re.compile(r"\.(tar|tar\.zstd?|tzst|tar\.gz|tgz)", re.IGNORECASE)
# Letters as `split` gives them, from aa; 78 parts of at least a few GB are enough.
_PART = re.compile(r"(?P<stem>.*\.(tar|tar\.zstd?|tzst|tar\.gz|tgz)\.?)(?P<part>[a-c][a-z]|\d{2,4})", re.I)

_FETCH_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # frames with which pzstd begins

Read = Callable[[int], bytes]
"""``read(n)``: the next n bytes; fewer only at the end."""


class CutShortError(SourceError):
    """An archive ends before its end."""


def is_whole(ending: str) -> bool:
    """Whether a name that ends like this (from ``.tar`` on) is an archive in one file."""
    return _WHOLE.fullmatch(ending) is not None


def part_of(name: str) -> tuple[str, str] | None:
    """What the parts of an archive have in common, and which part a file is by its name; None if it is none."""
    match = None if _is_whole_name(name) else _PART.fullmatch(name)
    return None if match is None else (match["stem"], match["part"])


def is_first(part: str) -> bool:
    """Whether a part is the first of its archive."""
    return part.strip("aA") == "" or (part.isdigit() and int(part) <= 1)


def parts_from(store: Store, path: str) -> Iterator[str]:
    """`path` and, if it is the first part of an archive, the other parts that are there, in order."""
    yield path
    if part_of(path.rpartition("/")[2]) is None:
        return
    while store.exists(path := _following(path)):
        yield path


def _is_whole_name(name: str) -> bool:
    return re.search(rf"{_WHOLE.pattern}$", name, re.IGNORECASE) is not None


def _following(path: str) -> str:
    """The path of the part that comes after a part."""
    if match := re.search(r"\d{2,4}$", path):
        return f"{path[: match.start()]}{int(match[0]) + 1:0{len(match[0])}}"
    first, last = path[-2], path[-1]
    following = (
        f"{first}{chr(ord(last) + 1)}" if last not in "zZ" else f"{chr(ord(first) + 1)}{chr(ord(last) - 25)}"
    )
    return path[:-2] + following


@contextmanager
def unpacked(store: Store, path: str) -> Iterator[Read]:
    """What an archive holds, from front to back: a plain file, or ranges of an object that are read ahead.

    Raises:
        SourceError: If there is no such object; from `read`, if it is damaged.
        CutShortError: From `read`, if it ends too soon.
    """
    where = f"{store.url}/{path}"
    with ExitStack() as opened:
        files = map(opened.enter_context, _open_parts(store, path))
        stream = io.BufferedReader(cast("io.RawIOBase", _Joined(files)), _READ_BYTES)
        beginning = stream.peek(4)[:4]
        if not beginning:
            yield stream.read
        elif beginning == _ZSTD or _SKIPPABLE.match(beginning):
            yield _of_zstd(stream, where)
        elif beginning[:2] == _GZIP:
            yield _of_gzip(stream, where)
        else:
            yield _plain(stream, where, path)


def _open_parts(store: Store, path: str) -> Iterator[BinaryIO]:
    """The parts of an archive, each opened when the one before it is at its end; one that is missing is an error."""
    part = path
    for part in parts_from(store, path):
        yield open_stream(store, part)
    if part_of(part.rpartition("/")[2]) is None:
        return
    missing = _following(part)
    if store.exists(further := _following(missing)):
        raise CutShortError(
            f"{store.url}/{path}: its part {missing} is not there, though {further} is; load it as well"
        )


def open_stream(store: Store, path: str) -> BinaryIO:
    """A file-like reader of an object, from front to back: a plain file, or ranges read ahead.

    Raises:
        SourceError: If there is no such object.
    """
    local = store.local_path(path)
    try:
        return open(local, "rb") if local else io.BufferedReader(_Ranges(store, path), _READ_BYTES)
    except FileNotFoundError as error:
        raise SourceError(f"{store.url}/{path}: no such archive") from error


class _Joined(io.RawIOBase):
    """Files, one after the other, as one."""

    def __init__(self, files: Iterator[BinaryIO]) -> None:
        self._files = files
        self._file = next(files)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (count := cast("io.BufferedReader", self._file).readinto(buffer)):
            following = next(self._files, None)
            if following is None:
                return 0
            self._file.close()
            self._file = following
        return count


class _Ranges(io.RawIOBase):
    """Reads an object in ranges of 16 MiB, the next one fetched while this one is used.

    A connection that drops costs one range, which the store asks for again.
    """

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._size = store.head(path)
        self._pool = ThreadPoolExecutor(1)
        self._fetched = 0
        self._next: Future[memoryview] | None = None
        self._have = memoryview(b"")
        self._ask()

    def _ask(self) -> None:
        length = min(_FETCH_BYTES, self._size - self._fetched)
        self._next = (
            self._pool.submit(self._store.get_range, self._path, self._fetched, length) if length else None
        )
        self._fetched += length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._have.nbytes and self._next is not None:
            self._have = self._next.result()
            self._ask()
        count = min(len(buffer), self._have.nbytes)
        buffer[:count] = self._have[:count]
        self._have = self._have[count:]
        return count

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        super().close()


def _of_zstd(stream: BinaryIO, where: str) -> Read:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("zstandard", "geo") from error
    reader = io.BufferedReader(
        zstandard.ZstdDecompressor().stream_reader(stream, read_size=_READ_BYTES, read_across_frames=True),
        _READ_BYTES,
    )

    def read(count: int) -> bytes:
        try:
            return reader.read(count)
        except zstandard.ZstdError as error:
            raise SourceError(
                f"{where}: not zstd, or damaged ({error}); compare its md5 with the published one"
            ) from error

    return read


def _of_gzip(stream: BinaryIO, where: str) -> Read:
    reader = io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=stream)), _READ_BYTES)

    def read(count: int) -> bytes:
        try:
            return reader.read(count)
        except EOFError as error:
            raise CutShortError(
                f"{where}: cut short, or its last part is not there; load it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(
                f"{where}: not gzip, or damaged ({error}); compare its md5 with the published one"
            ) from error

    return read


def _plain(stream: BinaryIO, where: str, path: str) -> Read:
    if not _PLAIN.search(path):
        raise SourceError(f"{where}: not zstd or gzip, or damaged; compare its md5 with the published one")
    return stream.read


_PLAIN = re.compile(r"\.tar(\.?([a-c][a-z]|\d{2,4}))?$", re.IGNORECASE)
