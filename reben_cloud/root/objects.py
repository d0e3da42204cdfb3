"""``objects.parquet``: every object of a root with its size and checksums. Read and written here only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from reben_cloud.errors import ChecksumError, NotFoundError, StorageError, UnreachableError
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array, valid_of, values_of
from reben_cloud.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenObject:
    """One object of a root."""

    path: str
    """Path below the root."""
    nbytes: int
    """Size in bytes."""
    sha256: str
    """Hex digest."""
    xxh3: int | None = None
    """xxh3-64 of a shard, which the loader compares; None for other objects."""

    @classmethod
    def of(cls, path: str, data: bytes | memoryview, *, is_shard: bool = False) -> WrittenObject:
        """What is to be listed of an object with these bytes."""
        return cls(
            path=path,
            nbytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            xxh3=xxhash.xxh3_64_intdigest(data) if is_shard else None,
        )

    @classmethod
    def of_file(cls, path: str, file: Path) -> WrittenObject:
        """What is to be listed of an object with the bytes of a local file."""
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return cls(path=path, nbytes=file.stat().st_size, sha256=sha256)

    def require(self, data: bytes | memoryview, *, name: str) -> None:
        """Refuse bytes that are not the object's, such as those of another root's object of that name.

        Args:
            data: All its bytes.
            name: What to call it.

        Raises:
            ChecksumError: If they differ.
        """
        if len(data) != self.nbytes or hashlib.sha256(data).hexdigest() != self.sha256:
            raise ChecksumError(
                f"{name} is not the object that was written, its sha256 differs; copy it again from where the root "
                "was made"
            )


SCHEMA = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("xxh3", pa.uint64())]
)
"""Columns of the table."""


class Objects(Mapping[str, WrittenObject]):
    """The objects of a root by path, sorted.

    They stay columns: a whole root has tens of thousands, of which a loader wants two numbers each.

    Args:
        table: With the columns of `SCHEMA`; no objects by default.
    """

    def __init__(self, table: pa.Table | None = None) -> None:
        self._table = SCHEMA.empty_table() if table is None else table
        paths = self._table.column("path").to_pylist()
        self._row_of = dict(sorted(zip(paths, range(len(paths)), strict=True)))

    @classmethod
    def of(cls, written: Iterable[WrittenObject]) -> Objects:
        """The list of these objects."""
        rows = list(written)
        columns = {
            "path": [o.path for o in rows],
            "bytes": [o.nbytes for o in rows],
            "sha256": [o.sha256 for o in rows],
            "xxh3": [o.xxh3 for o in rows],
        }
        return cls(pa.table(columns, schema=SCHEMA))

    def __getitem__(self, path: str) -> WrittenObject:
        row = self._row_of[path]
        _, nbytes, sha256, xxh3 = (column[row].as_py() for column in self._table.columns)
        return WrittenObject(path=path, nbytes=nbytes, sha256=sha256, xxh3=xxh3)

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_of)

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._row_of)

    def sizes(self) -> dict[str, int]:
        """Path -> bytes, of every object."""
        nbytes = values_of(self._table.column("bytes")).tolist()
        return {path: nbytes[row] for path, row in self._row_of.items()}

    def shards(self) -> dict[str, tuple[int, int]]:
        """Path -> bytes and xxh3-64, of every shard."""
        column = self._table.column("xxh3")
        nbytes, xxh3 = values_of(self._table.column("bytes")).tolist(), values_of(column).tolist()
        is_shard = valid_of(column).tolist()
        return {path: (nbytes[row], xxh3[row]) for path, row in self._row_of.items() if is_shard[row]}

    def find(self, path: str, *, url: str) -> WrittenObject:
        """The object at `path`.

        Raises:
            NotFoundError: If the list has none.
        """
        if path not in self:
            raise NotFoundError(f"{url}: {layout.OBJECTS} has no {path}; run `reben-cloud verify`")
        return self[path]

    def encode(self) -> bytes:
        """The bytes of ``objects.parquet``."""
        rows = ints_array(np.array(list(self._row_of.values()), np.int64))
        out = io.BytesIO()
        pq.write_table(self._table.take(rows), out, compression="zstd", write_page_checksum=True)
        return out.getvalue()

    @classmethod
    def parse(cls, data: bytes | memoryview, *, sha256: str | None, url: str) -> Objects:
        """The objects of the root at `url`.

        Args:
            data: The bytes of ``objects.parquet``.
            sha256: What the manifest says of them.
            url: The root, for the message.

        Raises:
            ChecksumError: If it is not the list that the manifest names.
        """
        where = f"{url}/{layout.OBJECTS}"
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ChecksumError(
                f"{where} is not the one that the manifest names, its sha256 differs: the root is damaged; "
                "copy the file again from where the root was made"
            )
        return cls.unchecked(data, where=where)

    @classmethod
    def unchecked(cls, data: bytes | memoryview, *, where: str) -> Objects:
        """The objects of a list that nothing vouches for; only a check of a damaged root wants that.

        Raises:
            ChecksumError: If it cannot be read.
        """
        return cls(parquet.read_table(data, SCHEMA.names, name=where).cast(SCHEMA))


def read_end(store: Store, path: str, length: int, *, nbytes: int) -> memoryview:
    """The last bytes of an object of a known size; of one that is longer, some that are not its last.

    Raises:
        ChecksumError: If it is shorter.
    """
    try:
        return store.get_range(path, max(0, nbytes - length), length)
    except UnreachableError:
        raise
    except StorageError as error:  # of a range that begins behind the end, too
        there = store.head(path)
        if there == nbytes:
            raise
        raise ChecksumError(
            f"{store.url}/{path}: has {there:,} bytes, must have {nbytes:,}; it is cut off, or that of another root: "
            "copy it again from where the root was made"
        ) from error
