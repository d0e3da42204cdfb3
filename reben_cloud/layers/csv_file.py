"""A CSV file as a table, however large: read in blocks, twice for its types and once for its rows.

The type of a column follows from all of its rows, as if Arrow had inferred it from the whole file at once: whole
numbers, booleans, dates and times where all values are such, floats where some numbers are not whole, else strings.
An empty field is null. An error is Arrow's, for who opened the file to translate.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from reben_cloud.formats import parquet

_BLOCK_BYTES = 8 << 20
"""Bytes that are in memory at a time."""

_ROW_GROUP_ROWS = 1 << 17


def csv_names(path: Path) -> list[str]:
    """The names in the first line.

    Raises:
        pa.ArrowInvalid: If there is none.
    """
    with csv.open_csv(path, read_options=csv.ReadOptions(block_size=_BLOCK_BYTES)) as reader:
        return list(reader.schema.names)


def csv_to_parquet(path: Path, out: Path) -> None:
    """Write the rows of a CSV file, whose columns have different names, to a parquet file.

    Raises:
        pa.ArrowInvalid: If it is not a CSV file with a header.
    """
    names = csv_names(path)
    types = dict.fromkeys(names, pa.null())
    for block in _blocks(path, dict.fromkeys(names, pa.string())):
        text = io.BytesIO()
        csv.write_csv(block, text)
        found = csv.read_csv(pa.BufferReader(parquet.arrow_memory(text.getvalue()))).schema
        types = {name: _common(types[name], found.field(name).type) for name in names}
    with pq.ParquetWriter(out, pa.schema(types.items()), compression="lz4") as writer:
        for block in _blocks(path, types):
            writer.write_batch(block, row_group_size=_ROW_GROUP_ROWS)


def _blocks(path: Path, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    options = csv.ConvertOptions(column_types=types)
    read = csv.ReadOptions(block_size=_BLOCK_BYTES)
    with csv.open_csv(path, read_options=read, convert_options=options) as reader:
        yield from reader


def _common(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """The first type, in the order in which Arrow tries them, that values of both are of."""
    for narrow, wide in ((left, right), (right, left)):
        if narrow == wide or pa.types.is_null(narrow) or (narrow, wide) in _WIDER:
            return wide
    return pa.string()


_DAY, _SECOND, _NANO = pa.date32(), pa.timestamp("s"), pa.timestamp("ns")
_WIDER = frozenset(
    {(pa.int64(), pa.float64()), (_DAY, _SECOND), (_DAY, _NANO), (_SECOND, _NANO)}
    | {(pa.timestamp("s", "UTC"), pa.timestamp("ns", "UTC"))}
)
"""Pairs of types of which the second can be read from what the first was inferred from."""
