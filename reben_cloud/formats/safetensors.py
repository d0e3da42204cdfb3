"""Plain safetensors files of stacked arrays: N patches a file, for people without LMDB; and back.

``part-00000.safetensors`` holds ``s2_10m`` [n, 4, 120, 120], ``s2_20m``, ``s2_60m`` uint16, ``s1``
[n, 2, 120, 120] float32 and ``map`` [n, 120, 120] uint16, bands in the order of `bands.ARRAYS`;
patch n of ``patches.parquet`` is row n % N of part n // N. Files have their size from the start and
are filled in any order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import ARRAYS, MODALITIES
from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.root.documents import EXPORT_MANIFEST, read_patches
from reben_cloud.root.manifest import EXPORT_FORMAT, InvalidManifestError, from_bytes
from reben_cloud.root.patch import (
    MAP_SHAPE,
    MAP_TENSOR,
    PAYLOAD_BYTES,
    PAYLOAD_HEADER,
    TENSORS,
    Buffer,
    Patch,
    PatchInfo,
)
from reben_cloud.store import file_version, open_store

_DTYPES = {"uint16": "U16", "float32": "F32"}


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
    """By modality."""
    nbytes: int


@lru_cache(maxsize=8)
def _part(modalities: tuple[str, ...], count: int) -> _Part:
    arrays: dict[str, tuple[str, list[int], str, tuple[str, ...]]] = {}
    for modality in modalities:
        if modality == "map":
            arrays["map"] = ("map", [count, *MAP_SHAPE], "uint16", (MAP_TENSOR,))
            continue
        for array in MODALITIES[modality]:
            first = TENSORS[modality][ARRAYS[array][0]]
            shape = [count, len(ARRAYS[array]), *first.shape]
            arrays[array] = (modality, shape, first.dtype.name, ARRAYS[array])
    # As safetensors writes them: wide types first, then by name.
    ordered = sorted(arrays, key=lambda a: (-np.dtype(arrays[a][2]).itemsize, a))
    entries, position = {}, 0
    for name in ordered:
        _, shape, dtype, _ = arrays[name]
        end = position + int(np.prod(shape)) * np.dtype(dtype).itemsize
        entries[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    pieces: dict[str, list[_Piece]] = {m: [] for m in modalities}
    position = start
    for name in ordered:
        modality, shape, dtype, bands = arrays[name]
        stride = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        for number, band in enumerate(bands):
            nbytes = stride // len(bands)
            pieces[modality].append(
                _Piece(TENSORS[modality][band].offset, nbytes, position + number * nbytes, stride)
            )
        position += count * stride
    return _Part(len(text).to_bytes(8, "little") + text, pieces, position)


class Placed(Protocol):
    """What is to be stored: modality and patch of each record."""

    @property
    def modalities(self) -> tuple[str, ...]:
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
        self.nbytes = sum(_part(self._records.modalities, count).nbytes for count in self._counts)
        """Size of all finished files."""

    def present_bytes(self) -> int:
        """What the files take on the disk now."""
        return sum(path.stat().st_blocks * 512 for path in self._folder.glob("part-*.safetensors"))

    def open(self) -> bool:
        """Make the files, or open those of an earlier run; whether there were any."""
        there = any(self._folder.glob("part-*.safetensors"))
        for number, count in enumerate(self._counts):
            part = _part(self._records.modalities, count)
            file = os.open(_path(self._folder, number), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                os.ftruncate(file, part.nbytes)
                os.pwrite(file, part.header, 0)
            finally:
                os.close(file)
        return there

    def write(self, number: int, payload: Buffer) -> None:
        """Put a payload's bands in their places; safe for many threads."""
        view = memoryview(payload)
        file, row, pieces = self._place(number, os.O_WRONLY)
        try:
            for piece in pieces:
                part, start = (
                    view[piece.source : piece.source + piece.nbytes],
                    piece.target + row * piece.stride,
                )
                while part.nbytes:
                    written = os.pwrite(file, part, start)
                    part, start = part[written:], start + written
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
            file = os.open(_path(self._folder, number), os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        return self.nbytes

    def close(self) -> None:
        """Nothing stays open."""

    def _modality(self, number: int) -> str:
        return self._records.modalities[int(self._records.code[number])]

    def _place(self, number: int, flags: int) -> tuple[int, int, Sequence[_Piece]]:
        """(Open file, row, pieces) of a record."""
        part, row = divmod(int(self._records.patch[number]), self._step)
        pieces = _part(self._records.modalities, self._counts[part]).pieces[self._modality(number)]
        return os.open(_path(self._folder, part), flags), row, pieces


def _path(folder: str | os.PathLike[str], number: int) -> Path:
    return Path(folder) / f"part-{number:05d}.safetensors"


def _gather(file: int, row: int, modality: str, pieces: Sequence[_Piece]) -> bytes:
    payload = bytearray(PAYLOAD_BYTES[modality])
    payload[: len(PAYLOAD_HEADER[modality])] = PAYLOAD_HEADER[modality]
    for piece in pieces:
        part = os.pread(file, piece.nbytes, piece.target + row * piece.stride)
        payload[piece.source : piece.source + len(part)] = part
    return bytes(payload)


@dataclass(frozen=True, slots=True)
class SafetensorsSource:
    """The patches of a folder that an export to safetensors wrote."""

    folder: str
    """The folder with the part files."""
    only: tuple[str, ...] = ()
    """Modalities to look at; all when empty."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "safetensors files"

    def describe(self) -> str:
        """One line for people."""
        return f"safetensors files {self.folder}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality: every patch has all of them."""
        index = _index(self.folder)
        ids = list(index.rows)
        modalities = [m for m in index.modalities if not self.only or m in self.only]
        return {m: [index.s1_names[i] for i in ids] if m == "s1" else ids for m in modalities}

    def identity(self) -> Mapping[str, str]:
        """Sizes and times of the part files and of what says which patch is where."""
        files = sorted(file for file in Path(self.folder).iterdir() if file.is_file())
        return {file.name: file_version(file) for file in files}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: a part file holds many patches."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, put together from its arrays.

        Raises:
            NotFoundError: If the patch is not there.
        """
        index = _index(self.folder)
        if info.patch_id not in index.rows:
            raise NotFoundError(f"{self.folder} has no patch {info.patch_id}")
        number, row = divmod(index.rows[info.patch_id], index.step)
        layout = _part(index.modalities, min(index.step, len(index.rows) - number * index.step))
        file = os.open(_path(self.folder, number), os.O_RDONLY)
        try:
            if os.pread(file, len(layout.header), 0) != layout.header:
                raise SourceError(f"{_path(self.folder, number)} is not the part file that was exported")
            payloads = {m: _gather(file, row, m, layout.pieces[m]) for m in modalities}
        finally:
            os.close(file)
        return Patch(info=info, payloads=payloads)


class _Index(NamedTuple):
    rows: Mapping[str, int]
    s1_names: Mapping[str, str]
    modalities: tuple[str, ...]
    step: int


@lru_cache(maxsize=2)
def _index(folder: str) -> _Index:
    try:
        text = (Path(folder) / EXPORT_MANIFEST).read_bytes()
        manifest = from_bytes(text, where=folder, kind=EXPORT_FORMAT)
    except InvalidManifestError as error:
        raise SourceError(f"{folder}/{EXPORT_MANIFEST} is damaged: {error}; export again") from error
    table = read_patches(open_store(folder), manifest, ["id", "reben:s1_name"])
    ids = table.column("id").to_pylist()
    return _Index(
        {patch_id: row for row, patch_id in enumerate(ids)},
        dict(zip(ids, table.column("reben:s1_name").to_pylist(), strict=True)),
        tuple(manifest["modalities"]),
        int(manifest["settings"]["patches_per_file"]),
    )


def is_safetensors(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds an export to safetensors."""
    try:
        manifest = json.loads((Path(folder) / EXPORT_MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == "safetensors"
