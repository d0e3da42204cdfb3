"""Bytes of remote images: signed if they must be, asked for with retries, and kept in a folder for the next time.

What is kept are pieces of an object, named by its URL, its version and their place; an object that was written again
has another version, and its pieces are fetched anew. Of an object whose server tells neither ETag nor time nothing is
kept. The retries are the store's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import xxhash

from reben_cloud.errors import SourceError, StorageError
from reben_cloud.scenes.items.signing import signed
from reben_cloud.store import Store, open_store, public_url
from reben_cloud.store.address import is_http, parent
from reben_cloud.store.answers import dated_version
from reben_cloud.stream.cache import ShardCache

_CHECKSUM_BYTES = 8
"""At the end of what is kept stands its xxh3-64."""

_GAP_BYTES = 4_096
"""Pieces with no more than this between them are asked for at once."""

_REQUEST_BYTES = 4 * 1024 * 1024
"""About how much is asked for at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How remote images are read."""

    cache_dir: Path | None = None
    """Folder for what was read, which later runs read instead; None keeps nothing."""
    cache_bytes: int | None = None
    """Most bytes in that folder; what was used longest ago goes. None for no bound."""
    token_url: str | None = None
    """Where a query is to be had that lets one read the images (`signing`); None where they are public."""

    def __post_init__(self) -> None:
        if self.cache_bytes is not None and self.cache_dir is None:
            raise ValueError("cache_bytes bounds the files in cache_dir, which is not given")
        if self.cache_bytes is not None and self.cache_bytes < 0:
            raise ValueError(f"cache_bytes must not be negative, got {self.cache_bytes}")


class Span(NamedTuple):
    """A piece of an object."""

    start: int
    """Its first byte."""
    length: int
    """Its size, bytes."""


class RemoteFile:
    """One object at a URL, as it was when it was first asked for.

    Args:
        href: Its URL, or a path.
        reading: How it is read.

    Raises:
        FileNotFoundError: If there is no such object.
        StorageError: If the store refuses, or fails after its retries.
    """

    def __init__(self, href: str, reading: Reading) -> None:
        self.url = public_url(href)
        """Where it is, without what may be secret."""
        self._href, self._reading = href, reading
        self._cache = _cache(reading.cache_dir, reading.cache_bytes)
        store, path = self._place()
        try:
            self.size, self.version = store.stat(path)
        except StorageError as error:
            raise self._told(error) from error
        if self.version == dated_version(self.size, None):
            self._cache = None  # by its size alone one cannot tell whether it was written again

    def read(self, span: Span) -> memoryview:
        """One piece, shorter where the object ends. Raises StorageError."""
        (data,) = self.read_near([Span(span.start, max(0, min(span.length, self.size - span.start)))])
        return data

    def read_near(self, spans: Sequence[Span]) -> list[memoryview]:
        """Pieces that are near each other, from the cache or by one request.

        Raises:
            SourceError: If the object ends before they do.
            ChangedError: If the object was written again meanwhile.
            StorageError: If the store refuses, or fails after its retries.
        """
        found = [self._kept(span) for span in spans]
        lacking = [span for span, data in zip(spans, found, strict=True) if data is None]
        if lacking:
            first, stop = lacking[0].start, max(span.start + span.length for span in lacking)
            data = self._fetch(first, stop - first)
            for number, span in enumerate(spans):
                if found[number] is None:
                    piece = data[span.start - first : span.start - first + span.length]
                    found[number] = self._keep(span, piece)
        return [data for data in found if data is not None]

    def _fetch(self, start: int, length: int) -> memoryview:
        if not length:
            return memoryview(b"")
        store, path = self._place()
        try:
            data = store.get_range(path, start, length, version=self.version)
        except StorageError as error:
            raise self._told(error) from error
        if len(data) != length:
            raise SourceError(
                f"{self.url}: ends after {start + len(data):,} bytes, and what it says of itself goes to byte "
                f"{start + length:,}; it was cut short where it lies"
            )
        return data

    def _place(self) -> tuple[Store, str]:
        """The store and the path in it, with a signature that is valid now."""
        href = signed(self._href, self._reading.token_url)
        if is_http(href):
            parts = urlsplit(href)
            query = f"?{parts.query}" if parts.query else ""
            return _store(f"{parts.scheme}://{parts.netloc}{query}"), unquote(parts.path).lstrip("/")
        above, name = parent(href)
        return _store(above), name

    def _told(self, error: StorageError) -> StorageError:
        """The error, with the way out where a signature may be what is lacking."""
        said = str(error)
        refused = "permission denied" in said or "status 409" in said
        if self._reading.token_url is None and refused and is_http(self._href):
            return type(error)(
                f"{said}; if the images of this API must be signed, as those of the Planetary Computer, name where a "
                "token is to be had (--stac-token)"
            )
        return error

    # -- the cache ---------------------------------------------------------------------------------

    def _kept(self, span: Span) -> memoryview | None:
        if self._cache is None:
            return None
        file = self._cache.find(_NAME, self._key(span))
        if file is None:
            return None
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None  # another process made room meanwhile
        piece = memoryview(data)[: span.length]
        whole = len(data) == span.length + _CHECKSUM_BYTES
        if whole and xxhash.xxh3_64_digest(piece) == data[span.length :]:
            return piece
        file.unlink(missing_ok=True)  # damaged: fetched again
        return None

    def _keep(self, span: Span, piece: memoryview) -> memoryview:
        if self._cache is not None:
            stored = memoryview(bytes(piece) + xxhash.xxh3_64_digest(piece))
            store, _ = self._place()
            self._cache.add(_NAME, self._key(span), stored.nbytes, lambda _: stored, store.budget)
        return piece

    def _key(self, span: Span) -> int:
        # With the query that the Item gives, which may say which object is meant; a token is added to it later.
        return xxhash.xxh3_64_intdigest(f"{self._href}\n{self.version}\n{span.start}\n{span.length}".encode())


_NAME = "piece"
"""What the files of the cache are called after their key."""


def near_spans(spans: Sequence[Span]) -> list[list[int]]:
    """Groups of pieces that one request may bring: numbers of `spans`, in the order of their places."""
    groups: list[list[int]] = []
    stop = first = 0
    for number in sorted(range(len(spans)), key=lambda n: spans[n].start):
        span = spans[number]
        if groups and span.start - stop <= _GAP_BYTES and span.start + span.length - first <= _REQUEST_BYTES:
            groups[-1].append(number)
        else:
            groups.append([number])
            first = span.start
        stop = span.start + span.length
    return groups


@functools.lru_cache(64)
def _store(address: str) -> Store:
    """One store for all images of a server: it keeps its connections."""
    return open_store(address)


@functools.lru_cache(8)
def _cache(folder: Path | None, most_bytes: int | None) -> ShardCache | None:
    return None if folder is None else ShardCache(folder, most_bytes)
