"""The scratch folder: payloads in plain files of fixed-size records, addressed by row.

Every payload is needed twice, in the order of places (Zarr) and in training order (shards). Read
once and kept here, it is written to its row and found there: no index, no order of arrival, any
number of processes. Each record has a checksum beside it, written after it: a record that a crash
left half-written counts as absent.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import StorageError
from reben_cloud.files.system import disk_bytes, open_file, pread, write_at
from reben_cloud.wording import size_text

_SUM_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Spool:
    """Records of a known number of rows; opening costs nothing, the files are made by `prepare`."""

    folder: str
    """Where the files lie; of one plan alone."""
    num_rows: int
    """Rows of the plan."""
    sizes: Mapping[str, int]
    """Modality -> bytes of a payload, of all that a row has."""

    @property
    def nbytes(self) -> int:
        """Size when full."""
        return self.num_rows * sum(size + _SUM_BYTES for size in self.sizes.values())

    def prepare(self) -> None:
        """Make the (sparse) files, or leave those of an earlier run.

        Raises:
            StorageError: If the disk has too little room for what is still to come, or is not writable.
        """
        path = Path(self.folder)
        sizes = {self._records(m): size for m, size in self.sizes.items()}
        sizes |= {self._sums(m): _SUM_BYTES for m in self.sizes}
        try:
            path.mkdir(parents=True, exist_ok=True)
            for file, size in sizes.items():
                with open(file, "ab") as handle:
                    handle.truncate(self.num_rows * size)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot make the scratch folder ({error.strerror}); name another one (--scratch)"
            ) from error
        present = sum(disk_bytes(file) for file in path.iterdir())
        free = shutil.disk_usage(path).free
        if self.nbytes - present > free:
            raise StorageError(
                f"{self.folder}: the scratch folder needs {size_text(self.nbytes - present)} more and its "
                f"disk has {size_text(free)}; make room, or name a folder on another disk (--scratch)"
            )

    def write(self, modality: str, row: int, payload: bytes, *, stamp: str = "") -> None:
        """Keep a payload, and with its checksum the stamp of the files that it came from.

        Raises:
            StorageError: If the disk is full.
        """
        digest = _sum_of(payload, stamp)
        try:
            _write_at(self._records(modality), row * len(payload), payload)
            _write_at(self._sums(modality), row * _SUM_BYTES, digest.to_bytes(_SUM_BYTES, "little"))
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot write ({error.strerror}); make room on the scratch disk and run again"
            ) from error

    def read(self, modality: str, row: int, *, stamp: str = "") -> bytes | None:
        """The payload of a row, None when it is not here, not whole, or of files that have changed since.

        It then counts as absent from now on.
        """
        size = self.sizes[modality]
        expected = int.from_bytes(_read_at(self._sums(modality), row * _SUM_BYTES, _SUM_BYTES), "little")
        if not expected:
            return None
        payload = _read_at(self._records(modality), row * size, size)
        if _sum_of(payload, stamp) == expected:
            return payload
        _write_at(self._sums(modality), row * _SUM_BYTES, bytes(_SUM_BYTES))
        return None

    def held(self, modality: str) -> NDArray[np.bool_]:
        """Which rows are here, (num_rows,)."""
        sums: NDArray[np.uint64] = np.fromfile(self._sums(modality), np.uint64)
        return sums.astype(np.bool_)

    def delete(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _records(self, modality: str) -> str:
        return f"{self.folder}/{modality}.records"

    def _sums(self, modality: str) -> str:
        return f"{self.folder}/{modality}.xxh3"


def _sum_of(payload: bytes, stamp: str) -> int:
    seed = xxhash.xxh3_64_intdigest(stamp.encode()) if stamp else 0
    return xxhash.xxh3_64_intdigest(payload, seed) or 1  # 0 stands for "absent"


# Opened and closed for each record: 10 us of a millisecond, and no state that pickling would lose.
def _write_at(path: str, start: int, data: bytes) -> None:
    handle = open_file(path, os.O_WRONLY)
    try:
        write_at(handle, data, start)
    finally:
        os.close(handle)


def _read_at(path: str, start: int, length: int) -> bytes:
    handle = open_file(path, os.O_RDONLY)
    try:
        return pread(handle, length, start)
    finally:
        os.close(handle)
