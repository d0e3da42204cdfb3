"""Official Sentinel-1 patches of BigEarthNet v1, found by the names that its lists give; copied as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.reben import S1
from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats.geotiff_decode import Footprint, read_pixels
from reben_cloud.scenes.sentinel1 import POLARIZATIONS


def holds_patches(folder: Path) -> bool:
    """Whether a folder is one of official Sentinel-1 patches, in v1's form or v2's."""
    return any(folder.glob("S1?_IW_GRDH_1SDV_*/"))


def v1_files(root: str | os.PathLike[str], s1_name: str, *, missing_ok: bool = False) -> dict[str, Path]:
    """The files of an official S1 patch, in v1's flat folders or in v2's, one folder per scene.

    Args:
        root: Folder of the patches.
        s1_name: Name of the patch.
        missing_ok: Leave out what is not there.

    Raises:
        FileNotFoundError: If a file is not there.
    """
    for folder in (local_path(root) / s1_name, local_path(root) / grid.scene_of(s1_name) / s1_name):
        if folder.is_dir():
            found = {p: folder / f"{s1_name}_{p}.tif" for p in POLARIZATIONS}
            lacking = [polarization for polarization, path in found.items() if not path.exists()]
            if lacking and not missing_ok:
                raise FileNotFoundError(f"{found[lacking[0]]}: this S1 patch lacks a band")
            return {polarization: path for polarization, path in found.items() if polarization not in lacking}
    if missing_ok:
        return {}
    raise FileNotFoundError(f"{s1_name}: no folder of this S1 patch in {root}")


def read_medians(files: Mapping[str, bytes], *, name: str, place: Footprint) -> NDArray[np.float32]:
    """Medians of an official patch, whose files must be whole and of its place.

    Args:
        files: Polarization -> the whole file.
        name: Name of the patch.
        place: EPSG code, west, south, east and north of the patch, metres.

    Returns:
        Medians of VV and VH, dB, (2,).

    Raises:
        SourceError: If a file is damaged, is of another place or holds values that are not numbers.
        InvalidPatchError: If its dtype or shape is not the band's.
    """
    medians = []
    for polarization in POLARIZATIONS:
        tensor, path = S1.places[polarization], f"{name}_{polarization}.tif"
        pixels = np.frombuffer(read_pixels(files[polarization], tensor, place, name=path), tensor.dtype)
        if not np.isfinite(pixels).all():
            raise SourceError(f"{path}: holds values that are not numbers; fetch the patch again")
        medians.append(np.median(pixels))
    return np.array(medians, np.float32)
