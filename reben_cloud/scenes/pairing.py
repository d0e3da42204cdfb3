"""Terrain-corrected scenes cut into the Sentinel-1 parts of a tile's patches: the nearest in time that covers one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.scenes.choice import ALL_SCENES, SceneChoice
from reben_cloud.scenes.land_cover import PIXEL_M
from reben_cloud.scenes.sentinel1 import POLARIZATIONS, Scene, check_backscatter


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


def pair(
    scenes: Sequence[Scene],
    *,
    time: datetime,
    epsg: int,
    left: int,
    top: int,
    patch_px: int,
    wanted: NDArray[np.bool_],
    choice: SceneChoice = ALL_SCENES,
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
        choice: Which of the candidates may be taken.

    Yields:
        One piece a patch, at most; a patch that no scene covers gets none.

    Raises:
        SourceError: If a scene is not in dB, is not brighter in VV than in VH, or cannot be read.
    """
    open_patches = wanted.copy()
    height, width = (PIXEL_M * patch_px * count for count in wanted.shape)
    bounds = left, top - height, left + width, top
    for scene in choice.ordered(scenes, time=time, epsg=epsg, bounds=bounds):
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
    from rasterio.windows import Window

    rows, columns = wanted.shape
    height, width = rows * patch_px, columns * patch_px
    if not scene.reaches(epsg=epsg, bounds=(left, top - PIXEL_M * height, left + PIXEL_M * width, top)):
        return
    medians = []
    with ExitStack() as stack:
        try:
            views = _views(stack, scene, epsg, left, top, height, width)
            for row in np.flatnonzero(wanted.any(axis=1)).tolist():
                window = Window(0, row * patch_px, width, patch_px)
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
                    medians.append(np.median(pixels, axis=(1, 2)))
                    yield Piece(row, column, scene, np.ascontiguousarray(pixels))
        except rasterio.errors.RasterioError as error:
            raise SourceError(f"{scene.name}: cannot be read ({str(error).splitlines()[0]})") from error
    check_backscatter(medians, name=", ".join(path.name for path in scene.files))


def _views(
    stack: ExitStack, scene: Scene, epsg: int, left: int, top: int, height: int, width: int
) -> list[tuple[Any, int]]:
    """VV and VH on the tile's 10 m grid: a raster and the number of the band in it, each."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.transform import from_origin
    from rasterio.vrt import WarpedVRT

    views = []
    for polarization in POLARIZATIONS:
        path, number = scene.bands[polarization]
        file = stack.enter_context(rasterio.open(path))
        view = WarpedVRT(
            file,
            src_nodata=file.nodata,
            crs=f"EPSG:{epsg}",
            transform=from_origin(left, top, PIXEL_M, PIXEL_M),
            height=height,
            width=width,
            resampling=Resampling.bilinear,
            nodata=np.nan,
            dtype="float32",
            # Otherwise a pixel with nodata in one band only counts as data.
            UNIFIED_SRC_NODATA="NO",
        )
        views.append((stack.enter_context(view), number))
    return views
