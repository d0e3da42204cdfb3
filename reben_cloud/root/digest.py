"""Digests of what is said, not of the bytes in which a library says it: of tables and of JSON documents.

The bytes of a parquet file change with the library that writes it; names, types and values do not.
A digest from here is the same for good, on every machine, whatever the versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGEST = "digest"
"""Key under which a document carries its own digest."""


def document_digest(document: Mapping[str, object]) -> str:
    """The sha256 of a JSON document: of its keys, sorted, and values, but for its own `DIGEST`; hex digits."""
    body = {key: value for key, value in document.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(document: Mapping[str, object]) -> dict[str, Any]:
    """The document with its digest, which stands last."""
    body = {key: value for key, value in document.items() if key != DIGEST}
    return {**body, DIGEST: document_digest(body)}


def is_intact(document: Mapping[str, object]) -> bool:
    """Whether a document carries a digest, and the right one."""
    return document.get(DIGEST) == document_digest(document)


def table_digest(table: pa.Table) -> str:
    """The sha256 of a table: names, types and values of its columns, in their order; hex digits.

    It depends on nothing else: not on chunks, offsets, what stands below a null, metadata, nor on whether
    a column is dictionary-encoded or has 32- or 64-bit offsets. A null is not an empty value; every NaN
    is the same NaN.

    Raises:
        TypeError: If a column has a type that is not known here.
    """
    digest = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        _put(digest, name.encode())
        # Chunks may have dictionaries of their own, and 32-bit offsets that do not reach for all of them.
        chunks = [_plain(chunk) for chunk in column.chunks]
        _add(digest, pa.concat_arrays(chunks) if chunks else _plain(pa.array([], column.type)))
    return digest.hexdigest()


_TEXT = {
    pa.string(): "string",
    pa.large_string(): "string",
    pa.binary(): "binary",
    pa.large_binary(): "binary",
}


def _plain(array: pa.Array) -> pa.Array:
    """An array without dictionary, of texts and bytes with 64-bit offsets."""
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    kind = array.type
    if kind in _TEXT:
        return array.cast(pa.large_string() if _TEXT[kind] == "string" else pa.large_binary())
    return array


def _add(digest: Any, array: pa.Array) -> None:
    """Add type, number, nulls and values of an array."""
    array = _plain(array)
    kind = array.type
    valid = array.is_valid()
    if kind in _TEXT:
        lengths, data = _texts(array)
        parts = [_TEXT[kind].encode(), _bytes_of(valid), lengths, data]
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array).cast(pa.int64()), 0)
        parts = [b"list", _bytes_of(valid), lengths.to_numpy(zero_copy_only=False).astype("<i8").data]
    elif pa.types.is_struct(kind):
        parts = [f"struct of {kind.num_fields}".encode(), _bytes_of(valid)]
    else:
        name, values = _numbers(array)
        parts = [name.encode(), _bytes_of(valid), np.ascontiguousarray(values).data]
    for part in parts:
        _put(digest, part)
    if pa.types.is_struct(kind):
        # Flattened, for what stands below a null must not count.
        for number, child in enumerate(array.flatten()):
            _put(digest, kind.field(number).name.encode())
            _add(digest, child)
    elif parts[0] == b"list":
        _add(digest, array.flatten())


def _put(digest: Any, data: Any) -> None:
    """Add bytes after their number, so that no two sequences of them read alike."""
    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    digest.update(view.nbytes.to_bytes(8, "little"))
    digest.update(view)


def _bytes_of(valid: pa.Array) -> bytes:
    return bytes(valid.to_numpy(zero_copy_only=False).astype(np.uint8).tobytes())


def _texts(array: pa.Array) -> tuple[memoryview, memoryview]:
    """Length of each text in bytes (0 for null), and all of them on end."""
    empty = "" if pa.types.is_large_string(array.type) else b""
    array = pc.fill_null(array, pa.scalar(empty, array.type))
    _, offsets, data = array.buffers()
    if not len(array):
        return memoryview(b""), memoryview(b"")
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    body = memoryview(b"") if data is None else memoryview(data)[int(ends[0]) : int(ends[-1])]
    return np.diff(ends).astype("<i8").data, body


def _numbers(array: pa.Array) -> tuple[str, Any]:
    """Name of a type of fixed width, and the values, 0 for null, as little-endian NumPy."""
    kind = array.type
    if pa.types.is_null(kind):
        return "null", np.zeros(0, np.uint8)
    if pa.types.is_boolean(kind):
        return "bool", pc.fill_null(array, False).to_numpy(zero_copy_only=False).astype(np.uint8)
    if pa.types.is_timestamp(kind):
        return f"timestamp {kind.unit} {kind.tz or 'local'}", _numbers(array.cast(pa.int64()))[1]
    if pa.types.is_date32(kind):
        return "date32", _numbers(array.cast(pa.int32()))[1]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = pc.fill_null(array, pa.scalar(0, kind)).to_numpy(zero_copy_only=False)
        if pa.types.is_floating(kind):
            values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)
        name = f"{'u' if values.dtype.kind == 'u' else ''}{'int' if values.dtype.kind in 'iu' else 'float'}"
        return f"{name}{8 * values.itemsize}", values.astype(values.dtype.newbyteorder("<"))
    raise TypeError(f"a column of type {kind} has no digest")
