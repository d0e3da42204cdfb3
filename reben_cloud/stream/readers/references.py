"""Payloads that lie in other people's objects, read by ranges."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from reben_cloud.root.references import Found, RemoteObjects, Span, plan_spans
from reben_cloud.sampling import Ints
from reben_cloud.schema import Modality
from reben_cloud.stream.gather import BufferPool, Layout, copies_of
from reben_cloud.stream.payloads import InMemory, Part, Payloads
from reben_cloud.stream.readers.base import Brought, Cost, Counters, persistently

logger = logging.getLogger(__name__)

AT_ONCE_BYTES = 16 * 1024 * 1024
"""About how much one call of a store is asked for: its ranges come at the same time."""


class ReferenceReader:
    """Reads payloads out of objects by ranges; neighbours come together (`root.references.plan_spans`).

    Header and size of every payload are compared, and its checksum where one was recorded.

    Args:
        objects: What is read from.
        places: Modality -> where each payload lies, in stored order.
        ids: Patch id of each sample, for messages, shape (n,).
        modalities: What to read.
        checksums: Modality -> xxh3-64 of each payload; a modality without any is not a key.
        counters: Where to count.
        layout: What pixels batches have.
    """

    def __init__(
        self,
        objects: RemoteObjects,
        places: Mapping[str, Found],
        ids: NDArray[np.bytes_],
        modalities: Sequence[Modality],
        checksums: Mapping[str, NDArray[np.uint64]],
        counters: Counters,
        *,
        layout: Layout,
    ) -> None:
        self._modalities = {m.name: m for m in modalities}
        self.copies = {m.name: copies_of(m, layout) for m in modalities}
        self.parts = tuple((name,) for name in self._modalities)
        self._objects = objects
        self._places = places
        self._ids = ids
        self._checksums = checksums
        self._counters = counters
        largest = max([AT_ONCE_BYTES, *(m.payload_bytes for m in modalities)])
        self._pool = BufferPool(largest, keep=None)
        if any(name not in checksums for name in self._modalities):
            _say_once(objects.objects[0].url)

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these modalities."""
        return {name: self._load(self._modalities[name], stored) for name in part}

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:  # noqa: ARG002
        """What `load` will take."""
        total = Cost()
        for name in part:
            places, nbytes = self._places[name], self._modalities[name].payload_bytes
            numbers = places.object[stored]
            for number in np.unique(numbers).tolist():
                spans = plan_spans(places.start[stored][numbers == number], nbytes)
                span_bytes = sum(span.nbytes for span in spans)
                total += Cost(len(spans), span_bytes, span_bytes)
        return total

    def _load(self, modality: Modality, stored: Ints) -> list[tuple[Ints, Payloads]]:
        places, nbytes = self._places[modality.name], modality.payload_bytes
        numbers, starts = places.object[stored], places.start[stored]
        found: list[tuple[Ints, Payloads]] = []
        for number in np.flatnonzero(np.bincount(numbers)).tolist():
            here = np.flatnonzero(numbers == number)
            for spans in _at_once(plan_spans(starts[here], nbytes)):
                read = partial(self._read, modality, number, spans, stored[here], starts[here])
                inside, payloads = persistently(read, self._counters)
                found.append((here[inside], payloads))
        return found

    def _read(
        self, modality: Modality, number: int, spans: Sequence[Span], stored: Ints, starts: Ints
    ) -> tuple[Ints, InMemory]:
        """What lies in these ranges: which of the samples, and their payloads."""
        sizes = np.array([span.nbytes for span in spans], np.int64)
        memory = self._pool.take(int(sizes.sum()))
        begin = time.perf_counter()
        self._objects.read(number, spans, memory)
        there = time.perf_counter()
        self._counters.add(requests=len(spans), bytes_read=memory.nbytes, store_s=there - begin)
        # As one: a batch looks through everything that was read for a block, and a sparse one is many ranges.
        members = np.concatenate([span.members for span in spans])
        shift = np.cumsum(sizes) - sizes - [span.start for span in spans]
        places = starts[members] + np.repeat(shift, [len(span.members) for span in spans])
        payloads = InMemory(memory, places, modality.payload_bytes, name=self._objects.objects[number].url)
        sums = self._checksums.get(modality.name)
        header = np.frombuffer(modality.payload_header, np.uint8)
        is_right = (memory[places[:, None] + np.arange(len(header))] == header).all(axis=1)
        for inside in np.flatnonzero(~is_right if sums is None else np.ones(len(members), bool)).tolist():
            sample = int(stored[members[inside]])
            self._objects.check_payload(
                payloads.read(inside),
                modality,
                number=number,
                start=int(starts[members[inside]]),
                checksum=None if sums is None else int(sums[sample]),
                patch_id=self._ids[sample].decode(),
            )
        self._counters.add(checks_s=time.perf_counter() - there)
        return members, payloads


@functools.cache
def _say_once(url: str) -> None:
    logger.warning(
        "%s: no checksums of its payloads were recorded, so headers and sizes are compared and a changed pixel goes "
        "unnoticed; `reben-cloud index --checksum` records them",
        url,
    )


def _at_once(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans in groups of about `AT_ONCE_BYTES`."""
    found: list[list[Span]] = []
    room = 0
    for span in spans:
        if room < span.nbytes:
            found.append([])
            room = AT_ONCE_BYTES
        found[-1].append(span)
        room -= span.nbytes
    return found
