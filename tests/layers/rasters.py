"""GeoTIFFs for tests, and what rasterio makes of them on the grid of a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import Affine, from_origin
from rasterio.vrt import WarpedVRT

from reben_cloud.layers.squares import Square


def write_tif(
    path: Path,
    pixels: NDArray[Any],
    transform: Affine | None,
    *,
    crs: str | None = "EPSG:4326",
    **options: Any,
) -> Path:
    """Write pixels (y, x) or (band, y, x); without a transform the file has no place at all."""
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    place = {} if transform is None else {"crs": crs, "transform": transform}
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype.name, **place, **options,
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def warped(
    path: Path, square: Square, *, resampling: str, pixel_m: float, side_m: float = 1200, **options: Any
) -> NDArray[Any]:
    """The pixels (band, y, x) as rasterio gives them on the patch's own grid, with its defaults."""
    size = round(side_m / pixel_m)
    with (
        rasterio.open(path) as file,
        WarpedVRT(
            file, crs=f"EPSG:{square.epsg}", transform=from_origin(square.left, square.top, pixel_m, pixel_m),
            width=size, height=size, resampling=Resampling[resampling], **options,
        ) as view,
    ):  # fmt: skip
        found: NDArray[np.generic] = view.read()
    return found
