"""The official folder layout of single-band GeoTIFFs as a source.

    BigEarthNet-S2/<product>/<patch id>/<patch id>_<band>.tif
    BigEarthNet-S1/<scene>/<S1 name>/<S1 name>_<VV|VH>.tif
    Reference_Maps/<product>/<patch id>/<patch id>_reference_map.tif

``.tiff``, ``.TIF`` and ``.TIFF`` are taken for ``.tif``, the product or scene folder may be missing, and S1 names may
have their x and y with a zero before (``_08_05`` for ``_8_5``). Foreign files and folders are left out with a warning;
a patch folder that lacks a band is an error when the patch is read, or counts as none in a partial source.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import xxhash

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import MAP_TENSOR, REBEN
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.files.system import open_file
from reben_cloud.formats.geotiff_decode import Footprint, read_pixels
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.schema import Schema
from reben_cloud.wording import counted

logger = logging.getLogger(__name__)

FOLDERS: Mapping[str, str] = {"s2": "BigEarthNet-S2", "s1": "BigEarthNet-S1", "map": "Reference_Maps"}
"""Modality -> official name of the folder that holds it."""

SUFFIXES = (".tif", ".tiff")
"""Endings of a GeoTIFF's name, in lower case."""

_SPELLED = (*SUFFIXES, *(ending.upper() for ending in SUFFIXES))

_V1_PATCH = re.compile(r"S2[A-D]_MSIL2A_\d{8}T\d+_\d+_\d+")
_READ_BYTES = 1 << 16  # the largest official file has 58,024 bytes


@dataclass(frozen=True, slots=True)
class FolderSource:
    """Unpacked official folders, or folders that are laid out as these."""

    roots: Mapping[str, tuple[str, ...]]
    """Modality -> the folders that hold its patches, each patch in one of them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modality that it lacks -> what is near it, looks like that modality and is not taken (`recognise`)."""
    is_partial: bool = False
    """Whether files may lack: then every folder is looked into, and a patch without all of its files counts as none."""
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
        return "GeoTIFF folders " + ", ".join(
            f"{m}: {root}" for m, roots in self.roots.items() for root in roots
        )

    def described(self, metadata: pa.Table) -> pa.Table:
        """The metadata with what follows from the names."""
        return describe(metadata, patch_m=self._patch_m)

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality, from the folders' names.

        Raises:
            SourceError: If a patch is in two of the folders of a modality.
        """
        found = {}
        for modality, roots in self.roots.items():
            if modality not in self.schema.modality_names:
                continue
            wanted = tuple(self.schema.modality(modality).places) if self.is_partial else ()
            names: list[str] = []
            for root in roots:
                names += _patch_folders(modality, root, whole=wanted)
            refuse_twice(modality, names, self.describe())
            # Of a partial source none may be whole, which is not the same as not to have any.
            if names or self.is_partial:
                found[modality] = sorted(names)
        return found

    def identity(self) -> Mapping[str, str]:
        """Nothing: no file holds more than one band of one patch."""
        return {}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:
        """Names, sizes and times of a patch's files.

        Raises:
            SourceError: If there is no folder of the patch, or two files are of one band (``.tif`` and ``.tiff``).
        """
        digest = xxhash.xxh3_64()
        for modality in modalities:
            name = info.s1_name if modality == "s1" else info.patch_id
            folder = self._folder(modality, name)
            with os.scandir(folder) as entries:
                files = sorted(
                    (entry.name, entry.stat()) for entry in entries if entry.name.endswith(_SPELLED)
                )
            stems = [os.path.splitext(file)[0] for file, _ in files]
            if twice := [a for (a, _), stem in zip(files, stems, strict=True) if stems.count(stem) > 1]:
                raise SourceError(
                    f"{folder}: has {' and '.join(twice[:2])}, and one file is taken of each band; leave the right one"
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

    def holds(self, modality: str, info: PatchInfo) -> bool:
        """Whether there is a folder for a patch; of a partial source, one with all of its files."""
        name = info.s1_name if modality == "s1" else info.patch_id
        wanted = tuple(self.schema.modality(modality).places) if self.is_partial else ()
        return any(
            os.path.isdir(folder) and _is_complete(wanted, folder) for folder in self._folders(modality, name)
        )

    @property
    def _patch_m(self) -> int:
        return round(self.schema.patch_m)

    def _payload(self, modality: str, name: str, footprint: Footprint) -> bytes:
        folder, kind = self._folder(modality, name), self.schema.modality(modality)
        parts: list[bytes | memoryview] = [kind.payload_header]
        for tensor, expected in kind.places.items():
            path, data = _read_file(folder, tensor)
            parts.append(read_pixels(data, expected, footprint, name=path))
        return b"".join(parts)

    def _folder(self, modality: str, name: str) -> str:
        for folder in self._folders(modality, name):
            if os.path.isdir(folder):
                return folder
        official = f"{self.roots[modality][0]}/{group_of(modality, name)}/{name}"
        raise SourceError(f"{name}: no folder {official}; is the {modality} archive unpacked completely?")

    def _folders(self, modality: str, name: str) -> Iterator[str]:
        """Where the folder of a patch may be, the official places first."""
        for spelled in spellings(modality, name):
            for root in self.roots[modality]:
                yield f"{root}/{group_of(modality, spelled)}/{spelled}"
                yield f"{root}/{spelled}"


def official_name(modality: str, name: str) -> str:
    """A patch's name as the metadata spell it: x and y of an S1 name have no zero before them."""
    if modality != "s1":
        return name
    *rest, x, y = name.split("_")
    return "_".join([*rest, x.lstrip("0") or "0", y.lstrip("0") or "0"])


def spellings(modality: str, name: str) -> tuple[str, ...]:
    """Ways in which the files of a patch may spell its name, the official one first."""
    if modality != "s1":
        return (name,)
    *rest, x, y = name.split("_")
    padded = "_".join([*rest, f"{x:0>2}", f"{y:0>2}"])
    return (name,) if padded == name else (name, padded)


def refuse_twice(modality: str, names: Sequence[str], where: str) -> None:
    """Refuse names of which one comes twice.

    Raises:
        SourceError: With the first of them.
    """
    if len(set(names)) == len(names):
        return
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    raise SourceError(
        f"{twice[0]}: {where} has this {modality} patch twice ({counted(len(twice), 'such patch', 'such patches')}); "
        "a source has each patch once: leave out what has it again"
    )


def group_of(modality: str, name: str) -> str:
    """The official folder of a name: its product, or its Sentinel-1 scene."""
    # The scene is an S1 name without square, x and y; the product a patch id without x and y.
    return name.rsplit("_", 3 if modality == "s1" else 2)[0]


def file_part(tensor: str) -> str:
    """What a tensor is called in the name of its file."""
    return "reference_map" if tensor == MAP_TENSOR else tensor


def _patch_folders(modality: str, root: str, *, whole: Sequence[str]) -> list[str]:
    """Official names of the patch folders in `root` or one level below it; a warning counts what else is there.

    Folders that lack the file of a tensor of `whole`, or have one without a byte, are left out.
    """
    found: list[str] = []
    foreign: list[str] = []

    def look(folder: str, *, is_root: bool) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_clutter(entry.name):
                    continue
                is_folder = entry.is_dir()
                if is_folder and is_patch(modality, entry.name):
                    if _is_complete(whole, entry.path):
                        found.append(official_name(modality, entry.name))
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
    return found


def _is_complete(tensors: Sequence[str], folder: str) -> bool:
    """Whether a patch's folder has a file that is not empty for each of `tensors`; for none it is not looked into."""
    if not tensors:
        return True
    name = os.path.basename(folder)
    with os.scandir(folder) as entries:
        there = {entry.name for entry in entries if entry.stat().st_size}
    return all(
        any(f"{name}_{file_part(tensor)}{suffix}" in there for suffix in _SPELLED) for tensor in tensors
    )


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


def _read_file(folder: str, tensor: str) -> tuple[str, bytes]:
    name = folder.rpartition("/")[2]
    for suffix in _SPELLED:
        path = f"{folder}/{name}_{file_part(tensor)}{suffix}"
        try:
            handle = open_file(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        # One read where a file object takes five calls: there are 8.2 million files.
        try:
            data = os.read(handle, _READ_BYTES)
            while len(data) % _READ_BYTES == 0 and (more := os.read(handle, _READ_BYTES)):
                data += more
        except OSError as error:  # of a folder, or a disk that fails; it does not say of which file
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        finally:
            os.close(handle)
        return path, data
    raise SourceError(
        f"{name}: {folder} has no file for {file_part(tensor)} ({name}_{file_part(tensor)}.tif); complete the source, "
        "or leave such patches out (build --incomplete skip)"
    )
