"""The rows of a table in another order, a row group at a time, in little memory.

Rows are first dealt out to files on the scratch disk, each of which holds the rows of some row groups on end; then
one file after the other is read and put in order. Where all rows are few, no file is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.layers.tabular import TableSource
from reben_cloud.root.arrow import ints_array, values_of

_BATCH_ROWS, _BATCH_VECTORS = 1 << 17, 1 << 14
"""Rows that are read at a time: of numbers and strings, and of a table that has vectors too."""

_FILE_BYTES = 96 << 20
"""Bytes of rows that are put in order at a time, about."""
_MOST_FILES = 200
_PLACE = "__place__"


def sorted_groups(
    source: TableSource,
    columns: Sequence[str],
    convert: Callable[[pa.Table], pa.Table],
    *,
    places: NDArray[np.int64],
    sizes: Sequence[int],
    scratch: Path,
) -> Iterator[pa.Table]:
    """Yield the rows of a table by their places, a table for each row group; rows of one place keep their order.

    Args:
        source: The table.
        columns: Its columns that are wanted.
        convert: What a batch of them becomes.
        places: Place of each row, -1 for those that are left out, (num_rows,).
        sizes: Rows of each row group; no place is in two of them.
        scratch: Folder for files, which exists.

    Raises:
        SourceError: If the table has not as many rows as there are places: it has changed.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    rising = np.sort(places[places >= 0])
    first_place = rising[ends - np.asarray(sizes)] if len(ends) else np.empty(0, np.int64)
    del rising
    with ExitStack() as files:
        writers: list[pa.RecordBatchFileWriter] = []
        held: list[pa.Table] = []
        cuts = np.zeros(0, np.int64)  # first row group of each file but the first
        start = 0
        has_vectors = any(pa.types.is_nested(source.schema.field(name).type) for name in columns)
        for part in source.batches(columns, batch_rows=_BATCH_VECTORS if has_vectors else _BATCH_ROWS):
            mine = places[start : start + part.num_rows]
            start += part.num_rows
            if len(mine) < part.num_rows:
                raise SourceError(f"{source.name} has changed while it was read; begin again")
            batch = convert(part).append_column(_PLACE, ints_array(mine))
            if start == part.num_rows:
                num_files = _num_files(batch, len(places))
                per_file = -(-len(sizes) // num_files) if len(sizes) else 1
                cuts = np.arange(per_file, len(sizes), per_file)
                if len(cuts):
                    writers = [
                        files.enter_context(_writer(scratch / f"part-{number}.arrow", batch.schema))
                        for number in range(len(cuts) + 1)
                    ]
            for number, rows in _dealt(mine, first_place[cuts]):
                chosen = batch.take(ints_array(rows)) if len(rows) < batch.num_rows else batch
                if writers:
                    writers[number].write_table(chosen)
                else:
                    held.append(chosen)
        if start != len(places):
            raise SourceError(f"{source.name} has changed while it was read; begin again")
    bounds = [0, *cuts.tolist(), len(sizes)]
    for number, (low, high) in enumerate(pairwise(bounds)):
        if writers:
            path = scratch / f"part-{number}.arrow"
            held = [_read(path)]
            path.unlink()
        yield from _in_order(held, sizes[low:high])


def _num_files(batch: pa.Table, num_rows: int) -> int:
    nbytes = batch.nbytes * num_rows / max(1, batch.num_rows)
    return max(1, min(_MOST_FILES, int(nbytes / _FILE_BYTES)))


def _dealt(places: NDArray[np.int64], cuts: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Number of a file, and the rows with these places that go there, in their order."""
    kept = np.flatnonzero(places >= 0)
    number = np.searchsorted(cuts, places[kept], side="right")
    order = np.argsort(number, kind="stable")
    edges = np.flatnonzero(np.diff(number[order])) + 1
    for part in np.split(order, edges):
        if len(part):
            yield int(number[part[0]]), kept[part]


def _writer(path: Path, schema: pa.Schema) -> pa.RecordBatchFileWriter:
    return pa.ipc.new_file(str(path), schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))


def _read(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return reader.read_all()


def _in_order(tables: Sequence[pa.Table], sizes: Sequence[int]) -> Iterator[pa.Table]:
    if not tables:
        return
    table = pa.concat_tables(tables).combine_chunks()
    order = np.argsort(values_of(table.column(_PLACE)), kind="stable")
    table = table.drop_columns([_PLACE])
    start = 0
    for size in sizes:
        yield table.take(ints_array(order[start : start + size]))
        start += size
