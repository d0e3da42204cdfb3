"""Objects that others keep, and the reading of payloads out of them: what a reference root is made of.

A payload is named by an object, its first byte there and its size. Ranges that lie close together are
read as one, by the rule that readers of shards follow too: a request costs as much as `REQUEST_BYTES`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.sampling import Ints
from reben_cloud.store import Store, open_store

REQUEST_BYTES = 256 * 1024
"""What a request costs, in bytes that could have been read instead: 5 ms at 50 MB/s a connection."""

RANGE_BYTES = 8 * 1024 * 1024
"""Most that is read by one request, so that several run at a time and what one brings is soon used."""

RECHECK_S = 60.0
"""Seconds after which the version of an object that is still being read is asked for again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteObject:
    """An object that holds payloads and belongs to somebody else."""

    url: str
    """Where it lies; without credentials."""
    nbytes: int
    """Its size when it was indexed."""
    version: str
    """What its store called it then (`Store.version`): another text when it was written again."""

    def to_json(self) -> dict[str, object]:
        """For a manifest."""
        return {"url": self.url, "nbytes": self.nbytes, "version": self.version}

    @classmethod
    def from_json(cls, value: object) -> RemoteObject:
        """What `to_json` gave.

        Raises:
            ValueError: If it is something else.
        """
        if not isinstance(value, Mapping) or value.keys() != {"url", "nbytes", "version"}:
            raise ValueError(f"{value!r:.80} is not an object with url, nbytes and version")
        url, nbytes, version = value["url"], value["nbytes"], value["version"]
        if not (isinstance(url, str) and url and isinstance(version, str) and version):
            raise ValueError(f"{value!r:.80} has no url or no version")
        if not isinstance(nbytes, int) or isinstance(nbytes, bool) or not 0 < nbytes < 2**63:
            raise ValueError(f"{url}: it cannot have {nbytes!r} bytes")
        return cls(url=url, nbytes=nbytes, version=version)

    def open(self, storage_options: Mapping[str, Any] | None = None) -> tuple[Store, str]:
        """The store that it lies in, and its path there."""
        folder, _, name = self.url.rpartition("/")
        return open_store(folder, storage_options), name


class Span(NamedTuple):
    """A range of an object, and which payloads lie in it."""

    start: int
    """First byte."""
    nbytes: int
    """Size."""
    members: Ints
    """Which of the payloads asked for, in the order of their bytes."""


def plan_spans(starts: Ints, nbytes: int, *, request_bytes: int = REQUEST_BYTES) -> list[Span]:
    """How to read payloads of one size out of an object.

    Two are read together when what lies between them costs less than a request would, and the range
    does not grow beyond `RANGE_BYTES`.

    Args:
        starts: First byte of each payload, shape (n,).
        nbytes: Size of each.
        request_bytes: Price of a request.
    """
    order = np.argsort(starts, kind="stable")
    found: list[Span] = []
    begin = 0
    ordered = starts[order].tolist()
    for at in range(1, len(ordered) + 1):
        first, stop = ordered[begin], ordered[at - 1] + nbytes
        if at < len(ordered):
            following = ordered[at]
            if following - stop <= request_bytes and following + nbytes - first <= RANGE_BYTES:
                continue
        found.append(Span(first, stop - first, order[begin:at]))
        begin = at
    return found


@dataclass(slots=True)
class _Opened:
    """An object that is read in this process."""

    store: Store
    path: str
    checked: float = -np.inf
    """When its version was compared last (`time.monotonic`)."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class RemoteObjects:
    """Objects that payloads are read from, by their numbers; safe to use from many threads.

    Before anything is read from an object, and every `RECHECK_S` seconds while it is read, its version is
    compared with the one that was indexed.

    Args:
        objects: The objects.
        storage_options: Credentials and endpoint of their stores.
    """

    def __init__(
        self, objects: Sequence[RemoteObject], storage_options: Mapping[str, Any] | None = None
    ) -> None:
        self.objects = tuple(objects)
        self._storage_options = dict(storage_options or {})
        self._opened: dict[int, _Opened] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"objects": self.objects, "storage_options": self._storage_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["objects"], state["storage_options"])  # type: ignore[misc]

    def read(self, number: int, spans: Sequence[Span]) -> list[memoryview]:
        """Ranges of an object, one request each.

        Raises:
            NotFoundError: If the object is gone.
            ChecksumError: If it is not the one that was indexed, or an answer is too short.
            StorageError: If its store fails or refuses.
        """
        remote, opened = self.objects[number], self._open(number)
        self.check_version(number)
        try:
            found = opened.store.get_ranges(
                opened.path, [span.start for span in spans], [span.nbytes for span in spans]
            )
        except FileNotFoundError as error:
            raise self._gone(number) from error
        for span, data in zip(spans, found, strict=True):
            if data.nbytes != span.nbytes:
                opened.checked = -np.inf
                self.check_version(number)
                raise ChecksumError(
                    f"{remote.url}: asked for {span.nbytes:,} bytes at {span.start:,}, got {data.nbytes:,}"
                )
        return found

    def check_version(self, number: int, *, now: bool = False) -> None:
        """See that an object is the one that was indexed; `now`: even if that was seen a moment ago.

        Raises:
            NotFoundError: If it is gone.
            ChecksumError: If it was written again since.
        """
        opened = self._open(number)
        with opened.lock:
            if not now and time.monotonic() - opened.checked < RECHECK_S:
                return
            try:
                version = opened.store.version(opened.path)
            except FileNotFoundError as error:
                raise self._gone(number) from error
            remote = self.objects[number]
            if version != remote.version:
                raise ChecksumError(
                    f"{remote.url} has changed since it was indexed: it was {remote.version} and is {version}; "
                    "index it again (reben-cloud index)"
                )
            opened.checked = time.monotonic()

    def _open(self, number: int) -> _Opened:
        with self._lock:
            if number not in self._opened:
                self._opened[number] = _Opened(*self.objects[number].open(self._storage_options))
            return self._opened[number]

    def _gone(self, number: int) -> NotFoundError:
        return NotFoundError(
            f"{self.objects[number].url} is gone, and its payloads lie nowhere else; index it where it is now "
            "(reben-cloud index)"
        )


def check_places(
    objects: Sequence[RemoteObject], number: NDArray[np.int64], start: Ints, nbytes: int
) -> str | None:
    """What is wrong with places that a table names: None when every payload is inside its object.

    Args:
        objects: The objects that the manifest names.
        number: Object of each payload, shape (n,).
        start: First byte of each, shape (n,).
        nbytes: Size of each.
    """
    unknown = np.flatnonzero((number < 0) | (number >= len(objects)))
    if unknown.size:
        return f"object {number[unknown[0]]}, of {len(objects)} that the manifest names"
    sizes = np.array([one.nbytes for one in objects], np.int64)
    # As a difference: a sum could wrap around.
    outside = np.flatnonzero((start < 0) | (start > sizes[number] - nbytes))
    if outside.size:
        at = int(outside[0])
        return f"byte {start[at]:,} of an object of {sizes[number[at]]:,} bytes for a payload of {nbytes:,}"
    return None


def options_for(store: Store, objects: Sequence[RemoteObject]) -> Mapping[str, Any]:
    """What a root's store was opened with, for objects of the same kind of store; nobody else is shown credentials."""
    same = all(one.url.partition("://")[0] == store.url.partition("://")[0] for one in objects)
    return store.storage_options if same else {}
