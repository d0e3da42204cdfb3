"""The official folder layout of single-band GeoTIFFs as a source.

    BigEarthNet-S2/<product>/<patch id>/<patch id>_<band>.tif
    BigEarthNet-S1/<scene>/<S1 name>/<S1 name>_<VV|VH>.tif
    Reference_Maps/<product>/<patch id>/<patch id>_reference_map.tif

``.tiff`` is taken for ``.tif``, and the product or scene folder may be missing. Foreign files and folders are
left out with a warning; a patch folder that lacks a band is an error when the patch is read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import xxhash

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import MAP_TENSOR, REBEN
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.formats.geotiff_decode import Footprint, read_pixels
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.schema import Schema

logger = logging.getLogger(__name__)

FOLDERS: Mapping[str, str] = {"s2": "BigEarthNet-S2", "s1": "BigEarthNet-S1", "map": "Reference_Maps"}
"""Modality -> official name of the folder that holds it."""

SUFFIXES = (".tif", ".tiff")
"""Endings of a GeoTIFF's name."""

_V1_PATCH = re.compile(r"S2[A-D]_MSIL2A_\d{8}T\d+_\d+_\d+")
_READ_BYTES = 1 << 16  # the largest official file has 58,024 bytes


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Unpacked official folders, or folders that are laid out as these."""

    roots: Mapping[str, str]
    """Modality -> the folder that holds its patches."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modality that it lacks -> what is near it, looks like that modality and is not taken (`recognise`)."""
    schema: Schema = REBEN
    """What the patches have."""

    @property
    def is_remote(self) -> bool:
        """Not."""
        return False

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "GeoTIFF folders"

    def describe(self) -> str:
        """One line for people."""
        return "GeoTIFF folders " + ", ".join(f"{m}: {root}" for m, root in self.roots.items())

    def described(self, metadata: pa.Table) -> pa.Table:
        """The metadata with what follows from the names."""
        return describe(metadata, patch_m=self._patch_m)

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality, from the folders' names."""
        wanted = {m: root for m, root in self.roots.items() if m in self.schema.modality_names}
        return {m: names for m, root in wanted.items() if (names := _patch_folders(m, root))}

    def identity(self) -> Mapping[str, str]:
        """Nothing: no file holds more than one band of one patch."""
        return {}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:
        """Names, sizes and times of a patch's files."""
        digest = xxhash.xxh3_64()
        for modality in modalities:
            name = info.s1_name if modality == "s1" else info.patch_id
            with os.scandir(self._folder(modality, name)) as entries:
                files = sorted(
                    (entry.name, entry.stat()) for entry in entries if entry.name.endswith(SUFFIXES)
                )
            for file, status in files:
                digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, decoded from its GeoTIFFs."""
        footprint = grid.footprint(info.patch_id, patch_m=self._patch_m)
        payloads = {}
        for modality in modalities:
            name = info.s1_name if modality == "s1" else info.patch_id
            payloads[modality] = self._payload(modality, name, footprint)
        return Patch(info=info, payloads=payloads)

    @property
    def _patch_m(self) -> int:
        return round(self.schema.patch_m)

    def _payload(self, modality: str, name: str, footprint: Footprint) -> bytes:
        folder, kind = self._folder(modality, name), self.schema.modality(modality)
        parts: list[bytes | memoryview] = [kind.payload_header]
        for tensor, expected in kind.places.items():
            path, data = _read_file(folder, name, tensor)
            parts.append(read_pixels(data, expected, footprint, name=path))
        return b"".join(parts)

    def _folder(self, modality: str, name: str) -> str:
        root = self.roots[modality]
        official = f"{root}/{group_of(modality, name)}/{name}"
        for folder in (official, f"{root}/{name}"):
            if os.path.isdir(folder):
                return folder
        raise SourceError(f"{name}: no folder {official}; is the {modality} archive unpacked completely?")


def group_of(modality: str, name: str) -> str:
    """The official folder of a name: its product, or its Sentinel-1 scene."""
    # The scene is an S1 name without square, x and y; the product a patch id without x and y.
    return name.rsplit("_", 3 if modality == "s1" else 2)[0]


def file_part(tensor: str) -> str:
    """What a tensor is called in the name of its file."""
    return "reference_map" if tensor == MAP_TENSOR else tensor


def _patch_folders(modality: str, root: str) -> list[str]:
    """Names of the patch folders in `root` or one level below it, sorted; a warning counts what else is there."""
    found: list[str] = []
    foreign: list[str] = []

    def look(folder: str, *, is_root: bool) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                is_folder = entry.is_dir()
                if is_folder and is_patch(modality, entry.name):
                    found.append(entry.name)
                elif is_folder and is_root and entry.name.startswith(("S1", "S2")):
                    look(entry.path, is_root=False)
                elif not is_root and not is_other_patch(modality, entry.name):
                    foreign.append(entry.path)

    look(root, is_root=True)
    if foreign:
        logger.warning(
            "%s: %s there that are no folders of %s patches are left out, the first is %s",
            root,
            f"{len(foreign):,} {'file or folder' if len(foreign) == 1 else 'files and folders'}",
            modality,
            min(foreign),
        )
    return sorted(found)


def is_patch(modality: str, name: str) -> bool:
    """Whether `name` looks like a patch id, or for ``s1`` like an S1 name."""
    parts = name.split("_")
    if modality == "s1":
        return len(parts) == 8 and parts[0] in ("S1A", "S1B", "S1C", "S1D") and parts[1:3] == ["IW", "GRDH"]
    return len(parts) == 8 and parts[0] in ("S2A", "S2B", "S2C", "S2D") and parts[1] == "MSIL2A"


def is_other_patch(modality: str, name: str) -> bool:
    """Whether `name` is a patch of the other sensor; their folders may be in one folder."""
    return is_patch("s2" if modality == "s1" else "s1", name)


def is_v1_patch(name: str) -> bool:
    """Whether `name` looks like a Sentinel-2 patch of BigEarthNet v1; an S1 patch has one name in v1 and v2."""
    return _V1_PATCH.fullmatch(name) is not None


def _read_file(folder: str, name: str, tensor: str) -> tuple[str, bytes]:
    for suffix in SUFFIXES:
        path = f"{folder}/{name}_{file_part(tensor)}{suffix}"
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # One read where a file object takes five calls: there are 8.2 million files.
        try:
            data = os.read(handle, _READ_BYTES)
            while len(data) % _READ_BYTES == 0 and (more := os.read(handle, _READ_BYTES)):
                data += more
        finally:
            os.close(handle)
        return path, data
    raise SourceError(
        f"{name}: {folder} has no file for {file_part(tensor)} ({name}_{file_part(tensor)}.tif)"
    )
