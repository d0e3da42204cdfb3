"""Tables as people have them, read again and again a few rows at a time: in memory, parquet, CSV, or batches.

This module knows nothing of patches.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import parquet
from reben_cloud.layers.csv_file import csv_names, csv_to_parquet
from reben_cloud.layers.inputs import InputFiles

_PARQUET = b"PAR1"
_BLOCK_BYTES = 1 << 22
_CODED_ROWS = 1 << 20
_CODES = pa.dictionary(pa.int32(), pa.string())


@runtime_checkable
class ArrowStream(Protocol):
    """A table of pyarrow, pandas, polars and others, which hands itself over in Arrow's own form."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The table as a PyCapsule."""


Tabular = ArrowStream | str | os.PathLike[str] | Iterable[pa.RecordBatch]
"""A table in memory, the path of a parquet or CSV file, or record batches."""


class TableSource(Protocol):
    """A table that is read as often as need be."""

    @property
    def name(self) -> str:
        """What to call it in a message."""

    @property
    def identity(self) -> Mapping[str, str | int]:
        """What tells it from others, as far as that is known."""

    @property
    def schema(self) -> pa.Schema:
        """Its columns."""

    def batches(self, columns: Sequence[str], *, batch_rows: int) -> Iterator[pa.Table]:
        """Columns, some rows at a time, in order; a name may be there once only."""

    def codes(self, column: str) -> pa.ChunkedArray[pa.Scalar]:
        """A column of strings as codes of one dictionary."""

    def require_unchanged(self) -> None:
        """See that it is still what it was when it was opened; raises SourceError."""


@dataclass(frozen=True, eq=False)
class _InMemory:
    table: pa.Table
    name: str
    identity: Mapping[str, str | int]

    def require_unchanged(self) -> None:
        pass  # nobody else has it

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def batches(self, columns: Sequence[str], *, batch_rows: int) -> Iterator[pa.Table]:
        table = self.table.select(list(columns))
        for start in range(0, table.num_rows, batch_rows):
            yield table.slice(start, batch_rows)

    def codes(self, column: str) -> pa.ChunkedArray[pa.Scalar]:
        return self.table.column(column).cast(pa.string()).dictionary_encode().unify_dictionaries()


@dataclass(frozen=True, eq=False)
class _InFile:
    path: Path
    name: str
    schema: pa.Schema
    identity: Mapping[str, str | int]
    inputs: InputFiles

    def require_unchanged(self) -> None:
        self.inputs.require_unchanged()

    def batches(self, columns: Sequence[str], *, batch_rows: int) -> Iterator[pa.Table]:
        for batch in parquet.iter_batches(self.path, columns, batch_rows=batch_rows, name=self.name):
            yield pa.table(batch)

    def codes(self, column: str) -> pa.ChunkedArray[pa.Scalar]:
        found = parquet.iter_batches(
            self.path, [column], batch_rows=_CODED_ROWS, name=self.name, as_codes=[column]
        )
        parts = [_coded(batch.column(0)) for batch in found]
        return pa.chunked_array(parts, _CODES).unify_dictionaries()


def _coded(column: pa.Array[pa.Scalar]) -> pa.Array[pa.Scalar]:
    if pa.types.is_dictionary(column.type):
        return column.cast(_CODES)
    return column.cast(pa.string()).dictionary_encode()


def open_table(table: Tabular, scratch: Path) -> TableSource:
    """What reads a table.

    Args:
        table: The table.
        scratch: Folder for batches that come only once, which exists.

    Raises:
        NotFoundError: If there is no such file.
        SourceError: If it cannot be read, or two columns have one name.
        TypeError: If it is no table.
    """
    found = _open(table, scratch)
    _check_names(found.schema.names, found.name)
    return found


def _check_names(names: Sequence[str], where: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise SourceError(f"{where} has two columns {twice[0]!r}; rename one")


def _open(table: Tabular, scratch: Path) -> TableSource:
    if isinstance(table, str | os.PathLike):
        return _open_file(local_path(table, "a table"), scratch)
    if isinstance(table, pa.RecordBatchReader):
        return _spooled(table, table.schema, scratch)
    if isinstance(table, ArrowStream):
        try:
            return _InMemory(pa.table(table), "the table", {})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:  # of pandas: a column of several types
            raise SourceError(f"the table cannot be read: {'; '.join(map(str, error.args))}") from error
    if not isinstance(table, Iterable) or isinstance(table, Mapping):
        raise TypeError(
            f"a table must be a pyarrow or pandas table, a path or record batches, got {table!r:.80}"
            + ("; make one of it with pyarrow.table" if isinstance(table, Mapping) else "")
        )
    batches = iter(table)
    first = next(batches, None)
    if not isinstance(first, pa.RecordBatch | pa.Table):
        raise TypeError(
            f"a table's batches must be record batches of pyarrow, got {first!r:.80}"
            + ("; make a table of them with pyarrow.Table.from_pylist" if isinstance(first, Mapping) else "")
        )
    return _spooled(chain([first], batches), first.schema, scratch)


def _open_file(path: Path, scratch: Path) -> TableSource:
    name, inputs = str(path), InputFiles(path, [path.name])
    try:
        _ = inputs.state  # before it is read
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET)) == _PARQUET
            digest = xxhash.xxh3_64()
            file.seek(0)
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        identity: dict[str, str | int] = {
            "name": path.name,
            "bytes": path.stat().st_size,
            "xxh3": digest.hexdigest(),
        }
        rows = path
        if not is_parquet:
            _check_names(csv_names(path), name)
            rows = scratch / "csv.parquet"
            csv_to_parquet(path, rows)
            inputs.require_unchanged()
        schema = parquet.read_footer(rows, name=name).schema.to_arrow_schema()
        return _InFile(rows, name, schema, identity, inputs)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file of a table") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read as a table: {error.strerror or error}") from error
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"{path}: neither parquet nor a CSV with a header: {str(error).splitlines()[0]}"
        ) from error


def _spooled(batches: Iterable[pa.RecordBatch], schema: pa.Schema, scratch: Path) -> TableSource:
    """Batches that come once, in a file of ours."""
    path = scratch / "batches.parquet"
    try:
        with pq.ParquetWriter(path, schema, compression="lz4") as writer:
            for batch in batches:
                writer.write(batch)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise SourceError(f"the batches cannot be put together: {str(error).splitlines()[0]}") from error
    return _InFile(path, "the batches", schema, {}, InputFiles(path, []))  # ours: nobody writes to it
