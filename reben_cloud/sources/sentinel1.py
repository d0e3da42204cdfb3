"""Sentinel-1 for the patches of a tile: official v1 patches by name, or terrain-corrected scenes.

How v1's S1 patches were made is not public: sigma0 or gamma0, the resampling kernel, the version of
SNAP and the orbit files are unknown; measured on real patches, no speckle filter was used. Patches
cut from scenes here follow what is known (dB, 10 m, one scene a patch) and equal the official ones
only where the scene was processed the same way.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.paths import local_path

POLARIZATIONS = ("VV", "VH")
"""The bands of a Sentinel-1 patch."""

_SCENE = re.compile(r"S1[A-D]_IW_GRDH_1SDV_(\d{8}T\d{6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One terrain-corrected Sentinel-1 scene in dB, of any CRS."""

    name: str
    """First 32 characters of the GRD product's name: what S1 names begin with."""
    time: datetime
    """Start of the acquisition, UTC."""
    bands: Mapping[str, tuple[Path, int]]
    """VV and VH -> file and number of the band in it, from 1."""


class Piece(NamedTuple):
    """The part of a scene that belongs to one patch."""

    y: int
    """Row of the patch in the tile."""
    x: int
    """Column of the patch in the tile."""
    scene: Scene
    """Where it was cut from."""
    pixels: NDArray[np.float32]
    """(2, size, size): VV and VH, dB."""


def open_scenes(paths: Sequence[str | os.PathLike[str]]) -> list[Scene]:
    """The scenes behind GeoTIFF files, or folders of them; only headers are read.

    A scene is one file with a band a polarization (described as VV and VH, or in this order), or a
    file each with VV or VH in its name. Names begin like the GRD product.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no GeoTIFF.
        SourceError: If a file is no GeoTIFF, a name is no scene's, a polarization or the CRS is missing,
            or it comes twice.
    """
    try:
        import rasterio
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    found: dict[str, dict[str, tuple[Path, int]]] = {}
    for path in (file for given in paths for file in _files(local_path(given, "a Sentinel-1 scene"))):
        match = _SCENE.match(path.name)
        if match is None:
            raise SourceError(
                f"{path.name}: no Sentinel-1 scene; a name begins like S1A_IW_GRDH_1SDV_20170613T165043"
            )
        try:
            with rasterio.open(path) as file:
                if file.crs is None:
                    raise SourceError(f"{path.name}: has no CRS; terrain-correct the scene first")
                described = [(d or "").upper() for d in file.descriptions]
        except rasterio.errors.RasterioError as error:
            raise SourceError(f"{path.name}: no readable GeoTIFF ({str(error).splitlines()[0]})") from error
        scene = found.setdefault(match[0], {})
        for polarization, number in _polarizations(path.name, described):
            if polarization in scene:
                raise SourceError(
                    f"{path.name}: {polarization} of this scene is also in {scene[polarization][0].name}"
                )
            scene[polarization] = (path, number)
    for name, bands in found.items():
        lacking = [p for p in POLARIZATIONS if p not in bands]
        if lacking:
            raise SourceError(f"{name}: no {' and no '.join(lacking)}; a scene needs VV and VH")
    return [
        Scene(
            name=name,
            time=datetime.strptime(name[17:32], "%Y%m%dT%H%M%S").replace(tzinfo=UTC),
            bands=bands,
        )
        for name, bands in sorted(found.items())
    ]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in (".tif", ".tiff"))
        if not found:
            raise FileNotFoundError(f"{path}: no Sentinel-1 scenes (.tif) and no official patches there")
        return found
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such Sentinel-1 scene")
    return [path]


def _polarizations(name: str, described: Sequence[str]) -> list[tuple[str, int]]:
    if len(described) == 1:
        named = re.findall(r"(?:^|[_.-])(VV|VH)(?=[_.-])", name.upper())
        if len(set(named)) != 1:
            raise SourceError(f"{name}: is it VV or VH? the name must have one of them between _, - or .")
        return [(named[0], 1)]
    by_text = [(p, i + 1) for p in POLARIZATIONS for i, text in enumerate(described) if p in text]
    if [p for p, _ in by_text] == list(POLARIZATIONS):
        return by_text
    if len(described) == 2 and not any(described):
        return [("VV", 1), ("VH", 2)]
    raise SourceError(
        f"{name}: cannot tell VV from VH, its bands are described as {', '.join(map(repr, described))}"
    )


def pair(
    scenes: Sequence[Scene],
    *,
    time: datetime,
    epsg: int,
    left: int,
    top: int,
    patch_px: int,
    wanted: NDArray[np.bool_],
) -> Iterator[Piece]:
    """For each wanted patch, its part of the nearest scene in time that covers it fully.

    Scenes on the tile's own 10 m grid are cut as they are, others resampled bilinearly.

    Args:
        scenes: Candidates.
        time: Start of the Sentinel-2 acquisition.
        epsg: CRS of the tile.
        left: West edge, metres.
        top: North edge, metres.
        patch_px: Pixels along a side of a patch.
        wanted: Patches to find, (rows, columns).

    Yields:
        One piece a patch, at most; a patch that no scene covers gets none.

    Raises:
        SourceError: If a scene is not in dB or cannot be read.
    """
    open_patches = wanted.copy()
    for scene in sorted(scenes, key=lambda s: (abs(s.time - time), s.name)):
        if not open_patches.any():
            return
        for piece in _cut(scene, epsg, left, top, patch_px, open_patches):
            open_patches[piece.y, piece.x] = False
            yield piece


def _cut(
    scene: Scene, epsg: int, left: int, top: int, patch_px: int, wanted: NDArray[np.bool_]
) -> Iterator[Piece]:
    """The wanted patches that `scene` covers fully, row of patches by row of patches."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.transform import from_origin
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import transform_bounds
    from rasterio.windows import Window

    rows, columns = wanted.shape
    grid: dict[str, Any] = {
        "crs": f"EPSG:{epsg}",
        "transform": from_origin(left, top, 10, 10),
        "height": rows * patch_px,
        "width": columns * patch_px,
        "resampling": Resampling.bilinear,
        "nodata": np.nan,
        "dtype": "float32",
        # Otherwise a pixel with nodata in one band only counts as data.
        "UNIFIED_SRC_NODATA": "NO",
    }
    with ExitStack() as stack:
        try:
            views = []
            for polarization in POLARIZATIONS:
                path, number = scene.bands[polarization]
                file = stack.enter_context(rasterio.open(path))
                minx, miny, maxx, maxy = transform_bounds(file.crs, grid["crs"], *file.bounds)
                if (
                    minx > left + 10 * grid["width"]
                    or maxx < left
                    or miny > top
                    or maxy < top - 10 * grid["height"]
                ):
                    return
                views.append((stack.enter_context(WarpedVRT(file, src_nodata=file.nodata, **grid)), number))
            for row in np.flatnonzero(wanted.any(axis=1)).tolist():
                window = Window(0, row * patch_px, grid["width"], patch_px)
                strip = np.stack([view.read(number, window=window) for view, number in views])
                # SNAP fills with exact zeros and does not always say so.
                valid = (np.isfinite(strip) & (strip != 0)).all(axis=0)
                covered = valid.reshape(patch_px, columns, patch_px).all(axis=(0, 2))
                for column in np.flatnonzero(covered & wanted[row]).tolist():
                    pixels = strip[:, :, column * patch_px : (column + 1) * patch_px]
                    if pixels.min() > 0:
                        raise SourceError(
                            f"{scene.name}: all values of a patch are positive (up to {pixels.max():.3g}); "
                            "it is linear power, convert it to dB (10 log10)"
                        )
                    yield Piece(row, column, scene, np.ascontiguousarray(pixels))
        except rasterio.errors.RasterioError as error:
            raise SourceError(f"{scene.name}: cannot be read ({str(error).splitlines()[0]})") from error


def v1_files(root: str | os.PathLike[str], s1_name: str) -> dict[str, Path]:
    """The files of an official S1 patch, in v1's flat folders or in v2's, one folder a scene.

    Raises:
        FileNotFoundError: If a file is not there.
    """
    for folder in (local_path(root) / s1_name, local_path(root) / s1_name[:32] / s1_name):
        if folder.is_dir():
            found = {p: folder / f"{s1_name}_{p}.tif" for p in POLARIZATIONS}
            for path in found.values():
                if not path.exists():
                    raise FileNotFoundError(f"{path}: this S1 patch lacks a band")
            return found
    raise FileNotFoundError(f"{s1_name}: no folder of this S1 patch in {root}")
