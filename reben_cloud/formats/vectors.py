"""Columns of vectors in a parquet file whose numbers stand there as they do in memory: read without decoding.

To any reader of parquet they are plain lists. Each of their column chunks is one page, not compressed, and a page
ends with its values: where no list and no number is null, the last bytes of the chunk are the vectors of the row
group on end. Decoding the levels before them, which say that every list has the same length, would take ten times as
long as reading. The footer has a checksum of those last bytes, where they are that.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

VALUE_SUMS = b"reben:values_xxh3"
"""Key of the file's metadata with the xxh3-64 of the last bytes of each column chunk that are all values of its row
group, and 0 where they are not: base64 of little-endian uint64 (num_row_groups, num_leaf_columns)."""

_LARGEST_PAGE = 1 << 30
"""Bytes; a row group is always smaller."""

_AS_IN_MEMORY = (pa.float16(), pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.uint32(), pa.uint64())
"""Types that parquet's plain encoding writes as they are; it widens smaller integers."""


class Tail(NamedTuple):
    """The last bytes of a column chunk."""

    nbytes: int
    """How many."""
    xxh3: int
    """Their xxh3-64."""


class WriterOptions(TypedDict, total=False):
    """Options of `pyarrow.parquet.ParquetWriter`."""

    compression: str | dict[str, str]
    data_page_size: int
    write_statistics: bool | list[str]


def writer_options(schema: pa.Schema, *, statistics: bool) -> WriterOptions:
    """How a file with these columns is written, so that its vectors stand as they do in memory.

    Args:
        schema: The columns.
        statistics: Whether the smallest and largest value of each column of a row group are kept; not of vectors.
    """
    others = [field.name for field in schema if not _is_plain(field.type)]
    if len(others) == len(schema):
        return {"compression": "zstd", "write_statistics": statistics}
    leaves = {_leaf(field): "zstd" if field.name in others else "none" for field in schema}
    kept = [leaf for leaf, codec in leaves.items() if codec == "zstd"] if statistics else False
    return {"compression": leaves, "data_page_size": _LARGEST_PAGE, "write_statistics": kept}


def tails_of(table: pa.Table) -> dict[str, Tail]:
    """What the chunks of one row group end with: leaf column -> its values, of vectors of which none is null."""
    found = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        if _is_plain(field.type) and not column.null_count:
            digest, nbytes = xxhash.xxh3_64(), 0
            for chunk in column.chunks:
                values = chunk.flatten()
                if values.null_count:
                    break
                width = values.type.bit_width // 8
                start = values.offset * width
                data = memoryview(values.buffers()[1])[start : start + len(values) * width]
                digest.update(data)
                nbytes += data.nbytes
            else:
                found[_leaf(field)] = Tail(nbytes, digest.intdigest())
    return found


def vectors_in(data: memoryview, kind: pa.DataType) -> NDArray[Any]:
    """The vectors that some last bytes of a chunk are, (rows, size), read-only.

    Args:
        data: The bytes.
        kind: Type of the column.
    """
    return np.frombuffer(data, _dtype(kind)).reshape(-1, kind.list_size)


def vector_bytes(kind: pa.DataType) -> int:
    """Bytes of a vector of a column of this type; 0 if it is of another kind of column."""
    return kind.list_size * _dtype(kind).itemsize if pa.types.is_fixed_size_list(kind) else 0


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind)) and kind.value_type in _AS_IN_MEMORY


def _dtype(kind: pa.DataType) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
    return dtype


def _leaf(field: pa.Field) -> str:
    """Path of a column's one leaf."""
    return f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else str(field.name)
