"""``files.parquet``: every file that an export made of its patches, with size and checksum.

A folder of a million files is known by this one table, whose own checksum is in the manifest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from reben_cloud.errors import ChecksumError
from reben_cloud.files.whole import sync_path
from reben_cloud.formats import parquet

LISTING = "files.parquet"
"""Name of the table."""

_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("patch_id", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("xxh3", pa.uint64(), nullable=False),
    ]
)


class MadeFile(NamedTuple):
    """A file that was made of a patch."""

    path: str
    """Below the folder, with ``/``."""
    patch_id: str
    """The patch."""
    nbytes: int
    """Its size."""
    xxh3: int
    """Its xxh3-64."""

    @classmethod
    def of(cls, path: str, patch_id: str, data: bytes) -> MadeFile:
        """A file that has these bytes."""
        return cls(path, patch_id, len(data), xxhash.xxh3_64_intdigest(data))

    def difference(self, folder: Path, *, whole: bool) -> str | None:
        """How the file in `folder` is not this one: by its size, or by its bytes too; None when it is."""
        file = folder / self.path
        try:
            size = os.stat(file).st_size
            if size != self.nbytes:
                return f"{self.path} has {size:,} bytes, must have {self.nbytes:,}"
            if whole and xxhash.xxh3_64_intdigest(file.read_bytes()) != self.xxh3:
                return f"{self.path} is not the file that was written, its checksum differs"
        except FileNotFoundError:
            return f"{self.path} is missing"
        return None


def write_listing(folder: Path, files: Sequence[MadeFile]) -> None:
    """Write the table, sorted by path: it is there as a whole or not at all."""
    columns = zip(*sorted(files), strict=True)
    table = pa.table(dict(zip(_SCHEMA.names, map(list, columns), strict=True)), schema=_SCHEMA)
    new = folder / f"{LISTING}.part"  # always that name, so that what a crash leaves is written over
    pq.write_table(table, new, compression="zstd", write_page_checksum=True)
    sync_path(new)
    os.replace(new, folder / LISTING)


def read_listing(folder: Path) -> Iterator[MadeFile]:
    """The files of the table, by path; none where there is no table.

    Raises:
        ChecksumError: If it is damaged.
    """
    file = folder / LISTING
    if not file.exists():
        return
    table = parquet.read_table(file.read_bytes(), name=os.fspath(file))
    if table.schema.names != _SCHEMA.names:
        raise ChecksumError(f"{file} is not a table of an export's files, it has other columns")
    yield from map(MadeFile._make, zip(*(column.to_pylist() for column in table.columns), strict=True))
