"""Objects that others keep, and the reading of payloads out of them: what a reference root is made of.

A payload is named by an object, its first byte there and its size. Ranges that lie close together are
read as one, by the rule that readers of shards follow too: a request costs as much as `REQUEST_BYTES`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChangedError, ChecksumError, NotFoundError, StorageError
from reben_cloud.root import layout
from reben_cloud.sampling import Ints
from reben_cloud.schema import Buffer, Modality
from reben_cloud.store import Store, open_store

REQUEST_BYTES = 256 * 1024
"""What a request costs, in bytes that could have been read instead: 5 ms at 50 MB/s a connection."""

RANGE_BYTES = 8 * 1024 * 1024
"""Most that is read by one request, so that several run at a time and what one brings is soon used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteObject:
    """An object that holds payloads and belongs to somebody else."""

    url: str
    """Where it lies; without credentials."""
    nbytes: int
    """Its size when it was indexed."""
    version: str
    """What its store called it then (`Store.stat`): another text when it was written again."""

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


class Found(NamedTuple):
    """Where payloads lie in the objects of a reference root."""

    object: Ints
    """Number of the object that holds each payload, shape (n,)."""
    start: Ints
    """Its first byte there, shape (n,)."""


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


class RemoteObjects:
    """Objects that payloads are read from, by their numbers; safe to use from many threads.

    Every read wants the version that was indexed.

    Args:
        objects: The objects.
        storage_options: Credentials and endpoint of their stores.
        place: Store and path of the only object, where more than its URL lets one in.
    """

    def __init__(
        self,
        objects: Sequence[RemoteObject],
        storage_options: Mapping[str, object] | None = None,
        *,
        place: tuple[Store, str] | None = None,
    ) -> None:
        self.objects = tuple(objects)
        self._place = place
        self._storage_options = dict(storage_options or {})
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), place=self._place), (self.objects, self._storage_options)

    def read(
        self, number: int, spans: Sequence[Span], memory: NDArray[np.uint8] | None = None
    ) -> list[memoryview]:
        """Ranges of an object, one request each, several at a time.

        Args:
            number: The object.
            spans: The ranges.
            memory: Where they are put one after the other; fresh memory by default.

        Raises:
            NotFoundError: If the object is gone.
            ChangedError: If it is not the one that was indexed.
            ChecksumError: If an answer is too short.
            StorageError: If its store fails or refuses.
        """
        remote, (store, path) = self.objects[number], self._open(number)
        stops = list(accumulate(span.nbytes for span in spans))
        if memory is None:
            memory = np.empty(stops[-1] if stops else 0, np.uint8)
        found = [memory[stop - span.nbytes : stop].data for span, stop in zip(spans, stops, strict=True)]
        try:
            came = store.get_ranges_into(path, [span.start for span in spans], found, version=remote.version)
        except FileNotFoundError as error:
            raise self._gone(number) from error
        except ChangedError as error:
            raise self._changed(number) from error
        for span, nbytes in zip(spans, came, strict=True):
            if nbytes != span.nbytes:
                raise ChecksumError(
                    f"{remote.url}: asked for {span.nbytes:,} bytes at {span.start:,}, got {nbytes:,}"
                )
        return found

    def check_payload(
        self,
        payload: Buffer,
        modality: Modality,
        *,
        number: int,
        start: int,
        checksum: int | None,
        patch_id: str,
    ) -> None:
        """See that what was read at byte `start` of an object is the payload of a patch.

        Raises:
            ChangedError: If it is not, because the object was written again.
            ChecksumError: If it is not for another reason.
        """
        # As bytes: a memoryview compares item by item.
        if bytes(payload[: len(modality.payload_header)]) != modality.payload_header:
            cause = "its header is another"
        elif checksum is not None and xxhash.xxh3_64_intdigest(payload) != checksum:
            cause = "its xxh3 differs"
        else:
            return
        self.check_version(number)  # the likelier cause, and the better message
        raise ChecksumError(
            f"{self.objects[number].url}: what lies at byte {start:,} is not the {modality.name} payload of "
            f"{patch_id} ({cause}); the object or its index is damaged, index it again (reben-cloud index)"
        )

    def check_version(self, number: int) -> None:
        """See that an object is the one that was indexed.

        Raises:
            NotFoundError: If it is gone.
            ChangedError: If it was written again since.
            StorageError: If its store fails or refuses.
        """
        store, path = self._open(number)
        try:
            there = store.stat(path)
        except FileNotFoundError as error:
            raise self._gone(number) from error
        if there != (self.objects[number].nbytes, self.objects[number].version):
            raise self._changed(number)

    def _open(self, number: int) -> tuple[Store, str]:
        if self._place is not None:
            return self._place
        store, name = open_store(self.objects[number].url, self._storage_options).parent()
        with self._lock:
            return self._stores.setdefault(store.url, store), name

    def _changed(self, number: int) -> ChangedError:
        return ChangedError(
            f"{self.objects[number].url} has changed since it was indexed, when it was {self.objects[number].version}: "
            "where its payloads lie is no longer known; index it again (reben-cloud index)"
        )

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


def places_in(table: pa.Table, modality: Modality, objects: Sequence[RemoteObject], *, name: str) -> Found:
    """The places of a modality's payloads that a table of patches names, row by row.

    Args:
        table: With the columns `layout.place_columns`.
        modality: The modality.
        objects: The objects that the manifest names.
        name: What the table is called in messages.

    Raises:
        ChecksumError: If one would not be inside its object, or has another size than the schema says.
    """
    number, start, nbytes = (
        table.column(column).to_numpy().astype(np.int64) for column in layout.place_columns(modality.name)
    )
    wrong = check_places(objects, number, start, modality.payload_bytes)
    if wrong or (nbytes != modality.payload_bytes).any():
        wrong = wrong or f"{modality.name} payloads of another size than {modality.payload_bytes:,} bytes"
        raise ChecksumError(f"{name}: names {wrong}; the root is damaged, index it again (reben-cloud index)")
    return Found(number, start)


def options_for(store: Store, objects: Sequence[RemoteObject]) -> Mapping[str, object]:
    """What a root's store was opened with, where it may be meant for the objects; nobody else is shown credentials.

    A root on this machine needs none itself; elsewhere, the objects must be in the same kind of store.

    Raises:
        StorageError: As `require_reachable`.
    """
    require_reachable(store, objects)
    same = all(one.url.partition("://")[0] == store.url.partition("://")[0] for one in objects)
    return store.storage_options if same or store.is_local else {}


def require_reachable(store: Store, objects: Sequence[RemoteObject]) -> None:
    """See that a root elsewhere refers to nothing on this machine, which whoever wrote it has no business to name.

    Raises:
        StorageError: If it does.
    """
    here = [one.url for one in objects if one.url.startswith(("file://", "memory://"))]
    if here and not store.url.startswith(("file://", "memory://")):
        raise StorageError(
            f"{store.url} refers to {here[0]}, which lies on the machine of whoever reads it: a root elsewhere may not "
            "name files; index the data where others can reach it, or keep the root on this machine"
        )
