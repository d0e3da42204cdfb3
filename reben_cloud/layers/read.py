"""The payloads of an array layer, shard by shard or one alone, each compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.formats import tar
from reben_cloud.root import layers, layout
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import Layer
from reben_cloud.schema import Modality


class LayerPayload(NamedTuple):
    """What an array layer has for a patch."""

    patch_id: str
    """The patch."""
    payload: bytes
    """Its record in safetensors form."""


def iter_payloads(layer: Layer, *, wanted: NDArray[np.bool_] | None = None) -> Iterator[LayerPayload]:
    """The payloads of the patches that a layer has, in the order of its shards; each shard is read once.

    Args:
        layer: An array layer.
        wanted: Which rows of its ``rows.parquet`` to give; by default all that are present.

    Raises:
        ChecksumError: If a payload is not the one that was written.
        NotFoundError: If a shard is lost.
    """
    modality, table = _modality(layer), layer.rows
    rows = table.read(range(len(table.group_starts) - 1), _COLUMNS)
    mask = rows.column(layers.PRESENT).to_numpy()
    at = rows.column_names.index(layers.GROUP)
    rows = rows.set_column(at, layers.GROUP, rows.column(layers.GROUP).cast(pa.string()))
    rows = rows.filter(pa.array(mask if wanted is None else mask & wanted))
    rows = rows.sort_by([(name, "ascending") for name in (layers.GROUP, layers.SHARD, layers.SHARD_ROW)])
    record, last, data = tar.record_bytes(modality), "", memoryview(b"")
    for part in rows.to_batches():
        for row in part.to_pylist():
            path = layout.shard(row[layers.GROUP], modality.name, row[layers.SHARD])
            if path != last:
                last, data = path, _read(layer, path)
            start = row[layers.SHARD_ROW] * record
            yield LayerPayload(row[PATCH_ID], _checked(layer, path, bytes(data[start : start + record]), row))


def read_payload(layer: Layer, number: int) -> bytes | None:
    """The payload of one patch, by a read of its record alone; None where the layer has nothing for it.

    Args:
        layer: An array layer.
        number: Row of its ``rows.parquet``.

    Raises:
        ChecksumError: If it is not the one that was written.
        NotFoundError: If its shard is lost.
    """
    modality = _modality(layer)
    (row,) = layer.rows.take(np.array([number]), _COLUMNS).to_pylist()
    if not row[layers.PRESENT]:
        return None
    path = layout.shard(row[layers.GROUP], modality.name, row[layers.SHARD])
    record = tar.record_bytes(modality)
    try:
        data = layer.store.get_range(path, row[layers.SHARD_ROW] * record, record)
    except FileNotFoundError as error:
        raise _lost(layer, path) from error
    return _checked(layer, path, bytes(data), row)


_COLUMNS = (PATCH_ID, layers.PRESENT, layers.XXH3, layers.GROUP, layers.SHARD, layers.SHARD_ROW)
"""What says where a payload lies, and which it is."""


def _modality(layer: Layer) -> Modality:
    if layer.modality is None:
        raise TypeError(f"{layer.url}: the layer {layer.name} is a table and has no payloads")
    return layer.modality


def _checked(layer: Layer, path: str, record: bytes, row: dict[str, Any]) -> bytes:
    """The payload in a record, compared with the row that lists it."""
    payload = tar.payload_of(_modality(layer), record, row[PATCH_ID])
    if payload is None or xxhash.xxh3_64_intdigest(payload) != row[layers.XXH3]:
        raise ChecksumError(
            f"{layer.url}/{path}: row {row[layers.SHARD_ROW]} is not the payload of {row[PATCH_ID]} that "
            f"{layout.ROWS} lists; if `reben-cloud verify` says so too, the shard is damaged"
        )
    return payload


def _read(layer: Layer, path: str) -> memoryview:
    try:
        return layer.store.get(path)
    except FileNotFoundError as error:
        raise _lost(layer, path) from error


def _lost(layer: Layer, path: str) -> NotFoundError:
    return NotFoundError(f"{layer.url} has lost the shard {path}; run `reben-cloud verify`")
