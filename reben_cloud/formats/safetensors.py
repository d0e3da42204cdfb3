"""Plain safetensors files of stacked arrays: N patches per file, for people without LMDB; and back.

``part-00000.safetensors`` holds ``s2_10m`` [n, 4, 120, 120], ``s2_20m``, ``s2_60m`` uint16, ``s1``
[n, 2, 120, 120] float32 and ``map`` [n, 120, 120] uint16, bands in the order of `bands.ARRAYS`;
patch n of ``patches.parquet`` is row n % N of part n // N. Files have their size from the start and
are filled in any order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.files.system import disk_bytes, open_file, pread, write_at
from reben_cloud.schema import Buffer, Modality, TensorSpec, safetensors_layout


class _Piece(NamedTuple):
    """A band: where it lies in a payload, and where in a part file."""

    source: int
    nbytes: int
    target: int
    """Of the first patch."""
    stride: int
    """From one patch to the next."""


class _Part(NamedTuple):
    """The layout of a file of some number of patches."""

    header: bytes
    pieces: Mapping[str, Sequence[_Piece]]
    """By name of the modality."""
    nbytes: int


def _part(modalities: Sequence[Modality], count: int) -> _Part:
    specs = {
        array.name: TensorSpec(
            name=array.name, shape=(count, *modality.shape_of(array)), dtype=modality.tensor_of(array).dtype
        )
        for modality in modalities
        for array in modality.arrays
    }
    header, places = safetensors_layout(specs.values())
    pieces: dict[str, list[_Piece]] = {modality.name: [] for modality in modalities}
    for modality in modalities:
        for array in modality.arrays:
            stride = specs[array.name].nbytes // count
            for number, name in enumerate(array.tensors):
                nbytes = stride // len(array.tensors)
                target = places[array.name].offset + number * nbytes
                pieces[modality.name].append(_Piece(modality.places[name].offset, nbytes, target, stride))
    return _Part(header, pieces, len(header) + sum(spec.nbytes for spec in specs.values()))


class Placed(Protocol):
    """What is to be stored: modality and patch of each record."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What there is."""

    @property
    def code(self) -> NDArray[np.uint8]:
        """Modality of each, counted in `modalities`, shape (n,)."""

    @property
    def patch(self) -> NDArray[np.int32]:
        """Patch of each, shape (n,)."""


class SafetensorsSink:
    """The part files of an export while they are made.

    Args:
        folder: Where they go.
        records: What goes in them.
        patches_per_file: Patches in each, but for the last.
    """

    def __init__(self, folder: Path, records: Placed, *, patches_per_file: int) -> None:
        self._folder, self._records, self._step = folder, records, patches_per_file
        self._num_patches = int(records.patch.max()) + 1
        self._counts = [
            min(patches_per_file, self._num_patches - s)
            for s in range(0, self._num_patches, patches_per_file)
        ]
        # All parts are alike, but for the last.
        self._parts = {count: _part(records.modalities, count) for count in set(self._counts)}
        self.nbytes = sum(self._parts[count].nbytes for count in self._counts)
        """Size of all finished files."""

    def present_bytes(self) -> int:
        """What the files take on the disk now."""
        return sum(disk_bytes(path) for path in self._folder.glob("part-*.safetensors"))

    def open(self) -> bool:
        """Make the files, or open those of an earlier run; whether there were any."""
        there = any(self._folder.glob("part-*.safetensors"))
        for number, count in enumerate(self._counts):
            part = self._parts[count]
            file = open_file(_path(self._folder, number), os.O_RDWR | os.O_CREAT)
            try:
                os.ftruncate(file, part.nbytes)
                write_at(file, part.header, 0)
            finally:
                os.close(file)
        return there

    def write(self, number: int, payload: Buffer) -> None:
        """Put a payload's bands in their places; safe for many threads."""
        view = memoryview(payload)
        file, row, pieces = self._place(number, os.O_WRONLY)
        try:
            for piece in pieces:
                part = view[piece.source : piece.source + piece.nbytes]
                write_at(file, part, piece.target + row * piece.stride)
        finally:
            os.close(file)

    def read(self, number: int) -> bytes | None:
        """The payload whose bands lie there; whether it is the right one is the caller's to check."""
        file, row, pieces = self._place(number, os.O_RDONLY)
        try:
            return _gather(file, row, self._modality(number), pieces)
        finally:
            os.close(file)

    def sync(self) -> None:
        """Nothing: `finish` syncs one part after the other."""

    def finish(self) -> int:
        """Bring the files to the disk."""
        for number in range(len(self._counts)):
            file = open_file(_path(self._folder, number), os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        return self.nbytes

    def close(self) -> None:
        """Nothing stays open."""

    def _modality(self, number: int) -> Modality:
        return self._records.modalities[int(self._records.code[number])]

    def _place(self, number: int, flags: int) -> tuple[int, int, Sequence[_Piece]]:
        """(Open file, row, pieces) of a record."""
        part, row = divmod(int(self._records.patch[number]), self._step)
        pieces = self._parts[self._counts[part]].pieces[self._modality(number).name]
        return open_file(_path(self._folder, part), flags), row, pieces


def _path(folder: str | os.PathLike[str], number: int) -> Path:
    return Path(folder) / f"part-{number:05d}.safetensors"


def _gather(file: int, row: int, modality: Modality, pieces: Sequence[_Piece]) -> bytes:
    payload = bytearray(modality.payload_bytes)
    payload[: len(modality.payload_header)] = modality.payload_header
    for piece in pieces:
        part = pread(file, piece.nbytes, piece.target + row * piece.stride)
        payload[piece.source : piece.source + len(part)] = part
    return bytes(payload)


def read_part(
    folder: str | os.PathLike[str], modalities: Sequence[Modality], *, number: int, count: int, row: int
) -> dict[str, bytes]:
    """The payloads of one patch, put together from its arrays.

    Args:
        folder: The folder with the part files.
        modalities: All that the files hold.
        number: Which part.
        count: Patches in it.
        row: Which of them.

    Raises:
        SourceError: If the file is not of these modalities and that many patches.
    """
    part = _part(modalities, count)
    file = open_file(_path(folder, number), os.O_RDONLY)
    try:
        if pread(file, len(part.header), 0) != part.header:
            raise SourceError(f"{_path(folder, number)} is not the part file that was exported")
        return {m.name: _gather(file, row, m, part.pieces[m.name]) for m in modalities}
    finally:
        os.close(file)
