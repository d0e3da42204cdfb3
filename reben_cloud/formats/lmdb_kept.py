"""A local file that keeps record batches as they come, for the process that goes on after one that was killed."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from reben_cloud.files.whole import locked
from reben_cloud.formats.parquet import arrow_memory

logger = logging.getLogger(__name__)

_FRAME = struct.Struct("<II")
"""Bytes and CRC-32 of what follows."""


class Kept:
    """Batches in the order in which they were added; what was torn at the end is left out and written over.

    A file that cannot be written, or that another process is writing, keeps nothing; that is logged and no error.

    Args:
        path: The file; None keeps nothing.
        identity: What the batches are of: those of something else are given up.
    """

    def __init__(self, path: str | os.PathLike[str] | None, identity: str) -> None:
        self._identity = identity.encode()
        self._file: BinaryIO | None = None
        self._lock = ExitStack()
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                # Two that write one file would mix their batches.
                handle = self._lock.enter_context(locked(path))
                self._file = os.fdopen(os.dup(handle), "r+b")
            except OSError as error:
                logger.warning("what is found is not kept for the next time (%s)", error)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What was kept by an earlier process; to be read to its end before anything is added."""
        if self._file is None:
            return
        end = 0
        if self._frame() == self._identity:
            end = self._file.tell()
            while (frame := self._frame()) is not None:
                try:
                    batch = pa.ipc.open_stream(arrow_memory(frame)).read_next_batch()
                except pa.ArrowInvalid:
                    break
                end = self._file.tell()
                yield batch
        self._file.seek(end)
        try:
            self._file.truncate()
        except OSError as error:
            self._give_up(error)
        if end == 0:
            self._write(self._identity)

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep one more."""
        if self._file is not None:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            self._write(sink.getvalue().to_pybytes())

    def close(self) -> None:
        """Close the file."""
        with self._lock, suppress(OSError):
            if self._file is not None:
                self._file.close()

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_FRAME.pack(len(data), zlib.crc32(data)) + data)
            self._file.flush()  # to the system, which outlives the process
        except OSError as error:  # what was torn is left out by the next process
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning("what is found from here on is not kept for the next time (%s)", error)
        self.close()
        self._file = None

    def _frame(self) -> bytes | None:
        """The next one that is whole."""
        assert self._file is not None
        head = self._file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return None
        nbytes, checksum = _FRAME.unpack(head)
        if nbytes > os.fstat(self._file.fileno()).st_size - self._file.tell():
            return None
        data = self._file.read(nbytes)
        return data if zlib.crc32(data) == checksum else None
