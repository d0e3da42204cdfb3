"""Arrow columns as NumPy arrays and back, through their buffers.

pyarrow's own ways (`pa.array`, `pa.scalar`, ``to_numpy``) load pandas when one of them is first used, which
takes longer than a search of the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.formats.parquet import arrow_memory


def values_of(column: Any) -> NDArray[Any]:
    """A column of numbers or times, shape (n,), read-only where it is one chunk; anything where it is null."""
    dtype = np.dtype(f"i{column.type.bit_width // 8}")
    if not pa.types.is_temporal(column.type):
        dtype = np.dtype(column.type.to_pandas_dtype())
    parts = []
    for chunk in _chunks(column):
        values = np.frombuffer(chunk.buffers()[1], dtype)
        parts.append(values[chunk.offset : chunk.offset + len(chunk)])
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def valid_of(column: Any) -> NDArray[np.bool_]:
    """Where a column is not null, shape (n,)."""
    return _joined([_bits(chunk, chunk.buffers()[0]) for chunk in _chunks(column)])


def mask_of(column: Any) -> NDArray[np.bool_]:
    """A boolean column, shape (n,); False where it is null."""
    bits = [_bits(chunk, chunk.buffers()[1]) for chunk in _chunks(column)]
    return _joined(bits) & valid_of(column)


def codes_of(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """The different strings of a column without nulls, sorted, and which of them each row has, shape (n,)."""
    codes, known = [np.empty(0, np.int64)], dict[str, int]()
    for chunk in _chunks(column):
        encoded = chunk if isinstance(chunk, pa.DictionaryArray) else chunk.dictionary_encode()
        numbers = [known.setdefault(name, len(known)) for name in encoded.dictionary.to_pylist()]
        codes.append(np.array(numbers, np.int64)[values_of(encoded.indices)])
    names = sorted(known)
    rank = {name: number for number, name in enumerate(names)}
    return names, np.array([rank[name] for name in known], np.int64)[np.concatenate(codes)]


def texts_of(column: Any) -> NDArray[np.bytes_]:
    """A column of strings without nulls as bytes of fixed width, shape (n,); read-only where it is one chunk."""
    parts = [_fixed_width(chunk) for chunk in _chunks(column)]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, "S1"), *parts])


def _fixed_width(chunk: Any) -> NDArray[np.bytes_]:
    _, offsets, data = chunk.buffers()
    kind = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
    ends = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1]
    lengths = np.diff(ends)
    body = np.frombuffer(b"" if data is None else data, np.uint8)[ends[0] : ends[-1]]
    width = max(1, int(lengths.max()))
    if len(body) != width * len(lengths):  # else all are equally long, and lie as they are wanted
        padded = np.zeros((len(lengths), width), np.uint8)
        padded[np.arange(width) < lengths[:, None]] = body
        body = padded
    return body.reshape(-1).view(f"S{width}")


def ints_array(values: NDArray[np.int64], *, valid: NDArray[np.bool_] | None = None) -> pa.Array[Any]:
    """An int64 array of these numbers, null where they are not valid."""
    data = np.ascontiguousarray(values, np.int64)
    bits = None if valid is None else _packed(valid)
    return pa.Array.from_buffers(pa.int64(), len(data), [bits, arrow_memory(data.data)])


def bools_array(values: NDArray[np.bool_]) -> pa.Array[Any]:
    """A boolean array of these values."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, _packed(values)])


def _packed(values: NDArray[np.bool_]) -> pa.Buffer:
    return arrow_memory(np.packbits(values, bitorder="little").data)


def names_array(names: Iterable[str]) -> pa.Array[Any]:
    """A string array of these names."""
    encoded = [name.encode() for name in names]
    ends = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
    buffers = [None, arrow_memory(ends.data), arrow_memory(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers).cast(pa.string())


def _chunks(column: Any) -> list[Any]:
    return [c for c in (column.chunks if isinstance(column, pa.ChunkedArray) else [column]) if len(c)]


def _bits(chunk: Any, buffer: Any) -> NDArray[np.bool_]:
    if buffer is None:  # there is no null
        return np.ones(len(chunk), bool)
    bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
    return bits[chunk.offset : chunk.offset + len(chunk)].astype(bool)


def _joined(parts: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return np.concatenate([np.empty(0, bool), *parts])
