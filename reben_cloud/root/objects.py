"""``objects.parquet``: every object of a root with its size and checksums. Read and written here only."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.formats import parquet
from reben_cloud.root import layout


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


SCHEMA = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string()), ("xxh3", pa.uint64())]
)
"""Columns of the table."""


class Objects(Mapping[str, WrittenObject]):
    """The objects of a root by path, sorted."""

    def __init__(self, written: Iterable[WrittenObject]) -> None:
        self._by_path = {o.path: o for o in sorted(written, key=lambda o: o.path)}

    def __getitem__(self, path: str) -> WrittenObject:
        return self._by_path[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._by_path)

    def find(self, path: str, *, url: str) -> WrittenObject:
        """The object at `path`.

        Raises:
            NotFoundError: If the list has none.
        """
        if path not in self._by_path:
            raise NotFoundError(f"{url}: {layout.OBJECTS} has no {path}; run `reben-cloud verify`")
        return self._by_path[path]

    def encode(self) -> bytes:
        """The bytes of ``objects.parquet``."""
        rows = list(self.values())
        table = pa.table(
            {
                "path": [o.path for o in rows],
                "bytes": [o.nbytes for o in rows],
                "sha256": [o.sha256 for o in rows],
                "xxh3": [o.xxh3 for o in rows],
            },
            schema=SCHEMA,
        )
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd", write_page_checksum=True)
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
        table = parquet.read_table(data, SCHEMA.names, name=where).cast(SCHEMA)
        columns = [table.column(name).to_pylist() for name in SCHEMA.names]
        return cls(
            WrittenObject(path=p, nbytes=n, sha256=s, xxh3=x) for p, n, s, x in zip(*columns, strict=True)
        )
