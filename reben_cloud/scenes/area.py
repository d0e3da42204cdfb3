"""Which squares of a tile lie within a box in degrees, and the rectangle around some of them. Arithmetic alone."""

from __future__ import annotations

import numpy as np
import pyproj
from numpy.typing import NDArray

Bounds = tuple[int, int, int, int]
"""West, south, east and north of a rectangle, metres."""

Degrees = tuple[float, float, float, float]
"""West, south, east and north of a box in degrees; west > east goes over the antimeridian."""


def squares_within(
    box: Degrees, *, epsg: int, left: int, top: int, patch_m: int, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Squares whose four corners lie in a box, its edges included.

    Args:
        box: The box.
        epsg: CRS of the tile.
        left: West edge of the tile, metres.
        top: North edge of the tile, metres.
        patch_m: Side of a square, metres.
        shape: Rows and columns of squares.

    Returns:
        bool (rows, columns).
    """
    west, south, east, north = box
    rows, columns = shape
    x, y = np.meshgrid(left + patch_m * np.arange(columns + 1), top - patch_m * np.arange(rows + 1))
    longitude, latitude = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    beside = (longitude >= west, longitude <= east)
    inside = np.logical_and(*beside) if west <= east else np.logical_or(*beside)
    inside &= (latitude >= south) & (latitude <= north)
    found: NDArray[np.bool_] = inside[:-1, :-1] & inside[:-1, 1:] & inside[1:, :-1] & inside[1:, 1:]
    return found


def bounds_of(squares: NDArray[np.bool_], *, left: int, top: int, patch_m: int) -> Bounds:
    """The rectangle around the marked squares of a tile; without one, an empty one in its corner."""
    rows, columns = np.flatnonzero(squares.any(axis=1)), np.flatnonzero(squares.any(axis=0))
    if not rows.size:
        return left, top, left, top
    return (
        left + patch_m * int(columns[0]),
        top - patch_m * int(rows[-1] + 1),
        left + patch_m * int(columns[-1] + 1),
        top - patch_m * int(rows[0]),
    )


def window_of(
    bounds: Bounds, *, left: int, top: int, pixel_m: int, shape: tuple[int, int]
) -> tuple[slice, slice]:
    """The rows and columns of a raster that a rectangle touches.

    Args:
        bounds: The rectangle.
        left: West edge of the raster, metres.
        top: North edge of the raster, metres.
        pixel_m: Size of its pixels, metres.
        shape: Its height and width, pixels.
    """
    west, south, east, north = bounds
    height, width = shape
    rows = slice(max(0, (top - north) // pixel_m), min(height, -((south - top) // pixel_m)))
    columns = slice(max(0, (west - left) // pixel_m), min(width, -((left - east) // pixel_m)))
    return rows, columns
