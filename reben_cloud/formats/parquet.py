"""Parquet as this package reads and writes it: bytes that are checked before Arrow sees them, in Arrow's own memory.

Arrow's threads may let go of a buffer after the call that they worked for has returned, even while the interpreter
ends. A buffer that belongs to Python needs the interpreter for that and takes the process down with it, so nothing
of Python's is ever given to them: no file objects, and no `pa.py_buffer`. This module knows nothing of patches.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, StorageError
from reben_cloud.formats.vectors import VALUE_SUMS, Tail, vector_bytes, vectors_in
from reben_cloud.store import Store

CHUNK_SUMS = b"reben:chunk_xxh3"
"""Key of the file's metadata with the xxh3-64 of every column chunk, page headers and all: base64 of little-endian
uint64 (num_row_groups, num_leaf_columns). The checksums of pages cover no page header, and the footer is covered by
its `Seal`."""

_MAGIC = b"PAR1"
_GAP_BYTES = 64 * 1024
"""Ranges that are nearer to each other than this are read in one request."""


def arrow_memory(data: bytes | memoryview) -> pa.Buffer:
    """A copy of `data` in memory that belongs to Arrow, which its threads may free at any time."""
    buffer = pa.allocate_buffer(memoryview(data).nbytes)
    np.frombuffer(buffer, np.uint8)[:] = np.frombuffer(data, np.uint8)
    return buffer


def read_table(
    source: str | os.PathLike[str] | bytes | memoryview, columns: Sequence[str] | None = None, *, name: str
) -> pa.Table:
    """Columns of a small parquet file, in the order asked for; checksums of its pages are compared.

    Args:
        source: A local file, or all its bytes.
        columns: Names of the columns; all by default.
        name: What to call it in an error.

    Raises:
        ChecksumError: If it is not a parquet file that has these columns, or a damaged one.
        FileNotFoundError, PermissionError: If there is no such file, or it must not be read.
    """
    with _translated(name):
        if isinstance(source, bytes | memoryview):
            opened = pa.BufferReader(arrow_memory(source))
        else:
            opened = pa.OSFile(os.fspath(source))
        with opened, pq.ParquetFile(opened, page_checksum_verification=True) as file:
            table = file.read(None if columns is None else list(columns))
            return table if columns is None else table.select(list(columns))


def read_footer(source: str | os.PathLike[str], *, name: str) -> pq.FileMetaData:
    """The footer of a local parquet file; raises as `read_table`."""
    with _translated(name), pa.OSFile(os.fspath(source)) as opened:
        return pq.read_metadata(opened)


def iter_row_groups(
    source: str | os.PathLike[str], columns: Sequence[str] | None, *, name: str
) -> Iterator[pa.Table]:
    """Columns of a large local parquet file, a row group at a time; raises as `read_table`.

    Args:
        source: The file.
        columns: Names of the columns, in the order asked for; all by default.
        name: What to call it in an error.
    """
    with _translated(name):
        opened = pa.OSFile(os.fspath(source))
    with opened:
        with _translated(name):
            file = pq.ParquetFile(opened, page_checksum_verification=True)
        with file:
            for group in range(file.num_row_groups):
                with _translated(name):
                    table = file.read_row_group(group, None if columns is None else list(columns))
                    table = table if columns is None else table.select(list(columns))
                yield table


def iter_batches(
    source: str | os.PathLike[str],
    columns: Sequence[str],
    *,
    batch_rows: int,
    name: str,
    as_codes: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """Columns of a local parquet file, however large its row groups, some rows at a time; raises as `read_table`.

    Args:
        source: The file.
        columns: Names of the columns, in the order asked for.
        batch_rows: Most rows of a batch.
        name: What to call it in an error.
        as_codes: Columns of strings that are to come as dictionaries.
    """
    with _translated(name):
        opened = pa.OSFile(os.fspath(source))
    with opened:
        with _translated(name):
            file = pq.ParquetFile(opened, page_checksum_verification=True, read_dictionary=list(as_codes))
        with file:
            batches = file.iter_batches(batch_rows, columns=list(columns))
            while True:
                with _translated(name):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch.select(list(columns))


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """What Arrow says of damaged bytes (it knows no one type for it) as a ChecksumError."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        cause = str(error.args[0] if error.args else error).split("\n", 1)[0]
        raise ChecksumError(f"{name}: not a parquet file, or a damaged one ({cause})") from error


# -- sealed files ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """What vouches for a file that is read by ranges: it covers the footer, which covers the column chunks."""

    nbytes: int
    """Size of the file."""
    footer_nbytes: int
    """Size of its end: the file's metadata, their length, and the closing magic."""
    footer_xxh3: str
    """Checksum of that end, 16 hex digits."""

    @classmethod
    def of(cls, file: BinaryIO) -> Seal:
        """The seal of a file that `add_chunk_sums` has finished."""
        size = file.seek(0, os.SEEK_END)
        tail = _tail(file)
        return cls(nbytes=size, footer_nbytes=len(tail), footer_xxh3=xxhash.xxh3_64_hexdigest(tail))

    @classmethod
    def from_json(cls, value: Any) -> Seal:
        """The seal as a manifest has it.

        Raises:
            ValueError, TypeError, KeyError: If it is not one.
        """
        return cls(
            nbytes=int(value["nbytes"]),
            footer_nbytes=int(value["footer_nbytes"]),
            footer_xxh3=str(value["footer_xxh3"]),
        )

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


def add_chunk_sums(file: BinaryIO, *, tails: Sequence[Mapping[str, Tail]] = ()) -> None:
    """Put the checksums of all column chunks into the footer of a finished file.

    Args:
        file: The file, open for reading and writing.
        tails: Of each row group leaf column -> what its chunk is to end with; the footer says where it does.
    """
    tail = _tail(file)
    start = file.seek(0, os.SEEK_END) - len(tail)
    meta = _metadata(tail)
    starts, sizes = _chunks(meta)
    sums, values = np.empty(starts.shape, "<u8"), np.zeros(starts.shape, "<u8")
    for group, leaf in np.ndindex(starts.shape):
        file.seek(int(starts[group, leaf]))
        chunk = memoryview(file.read(int(sizes[group, leaf])))
        sums[group, leaf] = xxhash.xxh3_64_intdigest(chunk)
        last = tails[group].get(meta.row_group(group).column(leaf).path_in_schema) if tails else None
        if last and last.nbytes and xxhash.xxh3_64_intdigest(chunk[-last.nbytes :]) == last.xxh3:
            values[group, leaf] = last.xxh3
    added = {CHUNK_SUMS: sums} | ({VALUE_SUMS: values} if values.any() else {})
    # Arrow writes a footer only with a file: one without rows, which then takes over the row groups.
    empty, whole = io.BytesIO(), io.BytesIO()
    with pq.ParquetWriter(empty, meta.schema.to_arrow_schema()) as writer:
        writer.add_key_value_metadata({key: base64.b64encode(one.tobytes()) for key, one in added.items()})
    footer = _metadata(empty.getvalue())
    footer.append_row_groups(meta)
    footer.write_metadata_file(whole)
    file.seek(start)
    file.write(whole.getvalue().removeprefix(_MAGIC))
    file.truncate()


def check_sealed(data: bytes | memoryview, seal: Seal, *, name: str) -> None:
    """Compare every byte of a sealed file, which readers of parts of it never do.

    Raises:
        ChecksumError: If one is not what was written; says which part.
    """
    view = memoryview(data)
    if view.nbytes != seal.nbytes:
        raise ChecksumError(f"{name}: {view.nbytes:,} bytes, must be {seal.nbytes:,}")
    start = seal.nbytes - seal.footer_nbytes
    if xxhash.xxh3_64_hexdigest(view[start:]) != seal.footer_xxh3:
        raise ChecksumError(f"{name}: damaged, its footer is not the one that was written")
    meta = _metadata(view[start:])
    sums = np.frombuffer(base64.b64decode((meta.metadata or {}).get(CHUNK_SUMS, b"")), "<u8")
    starts, sizes = (extents.reshape(-1) for extents in _chunks(meta))
    if bytes(view[:4]) != _MAGIC or int(sizes.sum()) != start - len(_MAGIC):
        raise ChecksumError(f"{name}: damaged outside of its columns")
    for chunk, (first, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        if xxhash.xxh3_64_intdigest(view[first : first + size]) != int(sums[chunk]):
            raise ChecksumError(f"{name}: damaged at bytes {first:,} to {first + size:,}")


def _tail(file: BinaryIO) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 8)
    length = int.from_bytes(file.read(4), "little") + 8
    file.seek(size - length)
    return file.read(length)


def _metadata(tail: bytes | memoryview) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(arrow_memory(tail)))


def _chunks(meta: pq.FileMetaData) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte and size of each column chunk, both (num_row_groups, num_leaf_columns)."""
    found = np.empty((2, meta.num_row_groups, meta.num_columns), np.int64)
    for group in range(meta.num_row_groups):
        row_group = meta.row_group(group)
        for leaf in range(meta.num_columns):
            chunk = row_group.column(leaf)
            found[:, group, leaf] = (
                chunk.dictionary_page_offset or chunk.data_page_offset,
                chunk.total_compressed_size,
            )
    return found[0], found[1]


class ChunkReader:
    """A parquet object that is read by row group and column; what Arrow decodes was compared with a checksum.

    Args:
        store: Where it lies.
        path: Its path in the store.
        seal: What vouches for it. None: nothing does, and only the checksums of pages are compared.
        whole: All its bytes, when they were read and compared already.
    """

    def __init__(
        self, store: Store, path: str, seal: Seal | None, *, whole: bytes | memoryview | None = None
    ) -> None:
        self._store, self._path = store, path
        self._whole = None if whole is None else arrow_memory(whole)
        self._name = f"{store.url}/{path}"
        self.nbytes = seal.nbytes if seal else store.head(path) if whole is None else memoryview(whole).nbytes
        """Size of the object."""
        tail = self._read_tail(seal) if whole is None else whole
        with _translated(self._name):
            self.metadata = _metadata(tail)
            """The footer."""
            self.schema: pa.Schema = self.metadata.schema.to_arrow_schema()
            """Names and types of the columns."""
        is_sealed = seal is not None and whole is None
        self._sums = self._recorded(CHUNK_SUMS) if is_sealed else None
        has_values = is_sealed and VALUE_SUMS in (self.metadata.metadata or {})
        self._value_sums = self._recorded(VALUE_SUMS) if has_values else None

    def _read_tail(self, seal: Seal | None) -> memoryview:
        if seal is None:
            end = self._store.get_range(self._path, self.nbytes - 8, 8)
            length = int.from_bytes(end[:4], "little") + 8
            if bytes(end[4:]) != _MAGIC or length > self.nbytes:
                raise ChecksumError(f"{self._name}: not a parquet file, or a damaged one (no footer)")
            return self._store.get_range(self._path, self.nbytes - length, length)
        [tail] = self._ranges([(seal.nbytes - seal.footer_nbytes, seal.nbytes)])
        if xxhash.xxh3_64_hexdigest(tail) != seal.footer_xxh3:
            raise ChecksumError(
                f"{self._name}: its footer is not the one that the manifest names; if `reben-cloud verify` "
                "says so too, the object is damaged: copy it again from where the root was made"
            )
        return tail

    def _recorded(self, key: bytes) -> NDArray[np.uint64]:
        """What the footer has under a key: a number for each column chunk."""
        text = (self.metadata.metadata or {}).get(key, b"")
        shape = self.metadata.num_row_groups, self.metadata.num_columns
        with _translated(self._name):
            return np.frombuffer(base64.b64decode(text), "<u8").reshape(shape)

    @cached_property
    def _extents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _chunks(self.metadata)

    @cached_property
    def _leaves(self) -> Mapping[str, list[int]]:
        """Column -> numbers of the leaf columns that it is made of."""
        group, found = self.metadata.row_group(0), dict[str, list[int]]()
        for number in range(self.metadata.num_columns):
            found.setdefault(group.column(number).path_in_schema.split(".")[0], []).append(number)
        return found

    def read(
        self, groups: Sequence[int], columns: Sequence[str], *, as_codes: Sequence[str] = ()
    ) -> list[pa.Table]:
        """Columns of some row groups, a table each, in order.

        Args:
            groups: Numbers of the row groups.
            columns: Names of the columns.
            as_codes: Those of them, of strings or lists of strings, whose strings are to come as dictionaries.

        Raises:
            ChecksumError: If the bytes are not those that were written.
        """
        buffer = self._whole
        if buffer is None:
            leaves = sorted(leaf for name in columns for leaf in self._leaves[name])
            buffer = self._fetch(groups, leaves)
        with _translated(self._name):
            row_group = self.metadata.row_group(0) if self.metadata.num_row_groups else None
            # Checksums of pages say nothing where those of whole chunks were compared already.
            file = pq.ParquetFile(
                pa.BufferReader(buffer),
                metadata=self.metadata,
                page_checksum_verification=self._sums is None,
                read_dictionary=[
                    row_group.column(leaf).path_in_schema
                    for name in as_codes
                    if row_group is not None
                    for leaf in self._leaves[name]
                ],
            )
            # Without Arrow's threads, which take more time to share a row group of this size than they save: all
            # 549,488 patches cost 0.1 s of processor time for what a loader reads, with them 0.25 s on two cores.
            return [file.read_row_group(g, columns=list(columns), use_threads=False) for g in groups]

    def read_vectors(self, group: int, column: str) -> NDArray[Any] | None:
        """The vectors of a row group as they stand in the file, (rows, size), read-only.

        Returns:
            None where they do not stand there so, which `read` decodes; see `formats.vectors`.

        Raises:
            ChecksumError: If the bytes are not those that were written.
        """
        leaf = self._leaves[column][0]
        if self._value_sums is None or not (expected := self._value_sums[group, leaf]):
            return None
        starts, sizes = self._extents
        kind = self.schema.field(column).type
        end = int(starts[group, leaf] + sizes[group, leaf])
        start = end - self.metadata.row_group(group).num_rows * vector_bytes(kind)
        [data] = self._ranges([(start, end)])
        if xxhash.xxh3_64_intdigest(data) != expected:
            raise self._damaged(group, leaf, start, end)
        return vectors_in(data, kind)

    def _fetch(self, groups: Sequence[int], leaves: Sequence[int]) -> pa.Buffer:
        """Memory as large as the file, in which the chunks stand where they do in the file.

        What is between them is never touched, so it takes no memory of the machine.
        """
        starts, sizes = self._extents
        wanted = [
            (int(starts[g, leaf]), int(starts[g, leaf] + sizes[g, leaf])) for g in groups for leaf in leaves
        ]
        # From the first to the last column of each row group, neighbours in one.
        merged: list[list[int]] = []
        for group in groups:
            mine = starts[group, leaves], starts[group, leaves] + sizes[group, leaves]
            start, end = int(mine[0].min()), int(mine[1].max())
            if merged and 0 <= start - merged[-1][1] < _GAP_BYTES:
                merged[-1][1] = end
            else:
                merged.append([start, end])
        # Not from Arrow's usual pool, which gives the same memory to the next read, so that in the end all of it is
        # touched; the system takes a large piece back at once.
        buffer = pa.allocate_buffer(self.nbytes, memory_pool=pa.system_memory_pool())
        memory = np.frombuffer(buffer, np.uint8)
        for (start, end), part in zip(merged, self._ranges(merged), strict=True):
            memory[start:end] = np.frombuffer(part, np.uint8)
        if self._sums is not None:
            places = [(g, leaf) for g in groups for leaf in leaves]
            for (start, end), place in zip(wanted, places, strict=True):
                if xxhash.xxh3_64_intdigest(memory[start:end].data) != self._sums[place]:
                    raise self._damaged(*place, start, end)
        return buffer

    def _damaged(self, group: int, leaf: int, start: int, end: int) -> ChecksumError:
        column = self.metadata.row_group(group).column(leaf).path_in_schema
        return ChecksumError(
            f"{self._name}: column {column} of row group {group} (bytes {start:,} to {end:,}) is not what was "
            "written; if `reben-cloud verify` says so too, the object is damaged: copy it again from where the root "
            "was made"
        )

    def _ranges(self, extents: Sequence[Sequence[int]]) -> list[memoryview]:
        """The bytes of these extents (start, end), a request each, all at once."""
        starts, lengths = [start for start, _ in extents], [end - start for start, end in extents]
        try:
            found = self._store.get_ranges(self._path, starts, lengths)
        except StorageError:
            self._check_size()
            raise
        if [part.nbytes for part in found] != lengths:
            self._check_size()
            raise ChecksumError(f"{self._name}: asked for {sum(lengths):,} bytes, fewer came; try again")
        return found

    def _check_size(self) -> None:
        size = self._store.head(self._path)
        if size != self.nbytes:
            raise ChecksumError(
                f"{self._name}: has {size:,} bytes, must have {self.nbytes:,}; copy it again from where the "
                "root was made"
            )
