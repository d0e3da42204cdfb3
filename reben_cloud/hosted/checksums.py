"""Checksums of payloads that are hosted: each is read once, and what was read is kept until the index is published."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from reben_cloud.errors import SourceError
from reben_cloud.export.copying import Progress
from reben_cloud.formats.lmdb_kept import Kept
from reben_cloud.root.references import Found, RemoteObjects, plan_spans
from reben_cloud.sampling import Ints
from reben_cloud.schema import Modality

PIECE_BYTES = 64 * 1024 * 1024
"""About how much is read between two signs of life; so much is read again after a kill."""


def checksums(
    objects: RemoteObjects,
    places: Found,
    modality: Modality,
    patch_ids: Sequence[str],
    *,
    keep: Path,
    progress: Progress,
) -> pa.Array[Any]:
    """The xxh3-64 of every payload of a modality.

    Args:
        objects: What they lie in.
        places: Where each lies, shape (n,).
        modality: The modality.
        patch_ids: Whose each is, for messages.
        keep: A local file in which they are kept as they are found: the next call with it goes on.
        progress: Wraps the reading.

    Returns:
        uint64, shape (n,).

    Raises:
        SourceError: If what lies there is no payload of the modality.
        StorageError: If a store fails.
    """
    numbers, starts = places
    found = np.zeros(len(starts), np.uint64)
    step = max(1, PIECE_BYTES // modality.payload_bytes)
    order = np.lexsort((starts, numbers))
    pieces = [order[first : first + step] for first in range(0, len(order), step)]
    kept = Kept(keep, _identity(objects, places, modality, step))
    try:
        done = 0
        for batch in kept.batches():
            found[pieces[done]] = batch.column(0).to_numpy()
            done += 1
        for rows in progress(iter(pieces[done:]), len(pieces) - done, f"checksums of {modality.name}"):
            for number in np.unique(numbers[rows]).tolist():
                here = rows[numbers[rows] == number]
                for member, payload in _payloads(objects, number, starts[here], modality):
                    if payload[: len(modality.payload_header)] != modality.payload_header:
                        raise SourceError(
                            f"{objects.objects[number].url}: what lies at byte {starts[here[member]]:,} is not the "
                            f"{modality.name} payload of {patch_ids[int(here[member])]}, its header is another"
                        )
                    found[here[member]] = xxhash.xxh3_64_intdigest(payload)
            kept.add(pa.record_batch({"xxh3": pa.array(found[rows])}))
    finally:
        kept.close()
    return pa.array(found)


def _payloads(
    objects: RemoteObjects, number: int, starts: Ints, modality: Modality
) -> Iterator[tuple[int, memoryview]]:
    spans = plan_spans(starts, modality.payload_bytes)
    for span, data in zip(spans, objects.read(number, spans), strict=True):
        for member in span.members.tolist():
            first = int(starts[member]) - span.start
            yield member, data[first : first + modality.payload_bytes]


def _identity(objects: RemoteObjects, places: Found, modality: Modality, step: int) -> str:
    """What is kept is of these payloads, of these versions, in pieces of this size."""
    digest = hashlib.sha256("\n".join(f"{one.url} {one.version}" for one in objects.objects).encode())
    for values in places:
        digest.update(np.ascontiguousarray(values, np.int64).data)
    return f"{modality.name} {modality.payload_bytes} {step} {digest.hexdigest()}"
