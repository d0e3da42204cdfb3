"""Elevation models brought to the grid of a tile and to the ellipsoid, which radar geometry is computed on.

A raster of heights is above a geoid more often than above the ellipsoid; between the two lie up to 100 m,
which shift a Sentinel-1 scene by several pixels. GDAL drops the vertical part of a CRS when it warps to a
flat one, and PROJ without the geoid's grid changes nothing; neither says so. Here nothing is assumed: what
the heights are above is read from the file or declared, and the grid is applied or missed by name.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray
from pyproj.datadir import get_data_dir, get_user_data_dir  # type: ignore[attr-defined]

from reben_cloud.errors import NotFoundError, SourceError, missing_extra
from reben_cloud.files.whole import replacing

ELLIPSOID = "ellipsoid"
"""Datum of heights above the ellipsoid."""

GEOID_GRIDS = {
    "EGM96": ("us_nga_egm96_15.tif", "egm96_15.gtx"),
    "EGM2008": ("us_nga_egm08_25.tif", "egm08_25.gtx"),
}
"""Geoid -> names of its grid among PROJ's, newest form first."""

DATUMS = (ELLIPSOID, *GEOID_GRIDS)
"""What heights may be declared to be above."""

_GEOID_CODES = {"5773": "EGM96", "3855": "EGM2008"}
_METRES = ("", "m", "metre", "meter", "metres", "meters")
_LOWEST_M, _HIGHEST_M = -600.0, 9_100.0
_STRIP_PX = 512


def resample_heights(
    dem: str | os.PathLike[str],
    made: Path,
    *,
    epsg: int,
    bounds: tuple[int, int, int, int],
    datum: str | None = None,
    geoid: str | os.PathLike[str] | None = None,
    margin_m: int = 0,
) -> None:
    """Write the heights above the ellipsoid on the 10 m grid of `bounds`, bilinear, as float32 GeoTIFF.

    Args:
        dem: Raster of elevations, metres, of any CRS and resolution.
        made: File to write.
        epsg: CRS to write, a UTM zone of WGS 84.
        bounds: West, south, east, north of what to write, metres in `epsg`.
        datum: What the heights are above, of `DATUMS`; needed where the CRS of `dem` does not say, and an
            error where it says something else.
        geoid: Grid of the geoid's height above the ellipsoid (GTX or GeoTIFF), which the heights are above;
            by default PROJ's for the datum, where it is installed.
        margin_m: How far beyond `bounds` to write as well, a multiple of 10; what `dem` lacks there is as high as the
            nearest edge of `bounds`.

    Raises:
        FileNotFoundError: If there is no such grid.
        NotFoundError: If the grid is needed and PROJ has none.
        SourceError: If the elevations or the grid are not what they must be, do not cover `bounds`, or do
            not say what they are above.
    """
    try:
        import rasterio
        from rasterio.enums import Resampling
        from rasterio.transform import from_origin
        from rasterio.vrt import WarpedVRT
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    west, south, east, north = bounds
    margin = margin_m // 10
    size = {"height": (north - south) // 10 + 2 * margin, "width": (east - west) // 10 + 2 * margin}
    corner = from_origin(west - margin_m, north + margin_m, 10, 10)
    grid: dict[str, Any] = {"crs": f"EPSG:{epsg}", "transform": corner, **size}
    try:
        # Files of GeoTIFF 1.0 hide their vertical CRS otherwise.
        with rasterio.Env(GTIFF_REPORT_COMPD_CS="YES"), rasterio.open(dem) as source:
            geoid_grid = _geoid_grid(source, Path(dem), datum, None if geoid is None else Path(geoid))
            with WarpedVRT(
                source, resampling=Resampling.bilinear, nodata=np.nan, dtype="float32", **grid
            ) as view:
                heights = view.read(1)
            heights *= source.scales[0]
            heights += source.offsets[0]
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{dem}: cannot be read ({str(error).splitlines()[0]})") from error
    within = heights[margin : heights.shape[0] - margin, margin : heights.shape[1] - margin]
    _check_heights(within, f"{dem}", bounds, epsg)
    if (lacking := np.isnan(heights)).any():
        np.copyto(heights, np.pad(within, margin, "edge"), where=lacking)
    if geoid_grid is not None:
        for rows, above in _undulation(geoid_grid, epsg, bounds, margin):
            heights[rows] += above
    with (
        replacing(made) as new,
        rasterio.open(new, "w", driver="GTiff", count=1, dtype="float32", tiled=True, **grid) as target,
    ):
        target.write(heights, 1)


def _check_heights(
    heights: NDArray[np.float32], dem: str, bounds: tuple[int, int, int, int], epsg: int
) -> None:
    """That there are heights everywhere, and that they are metres on Earth."""
    lacking = np.isnan(heights).mean()
    if lacking:
        raise SourceError(
            f"{dem}: has no elevations for {lacking:.1%} of the area {bounds} in EPSG:{epsg}; take one that covers it"
        )
    lowest, highest = float(heights.min()), float(heights.max())
    if not _LOWEST_M <= lowest <= highest <= _HIGHEST_M:
        raise SourceError(
            f"{dem}: elevations from {lowest:g} to {highest:g}, outside [{_LOWEST_M:g}, {_HIGHEST_M:g}] m; are they "
            "metres, and is the value for gaps declared as nodata (gdal_edit -a_nodata)?"
        )


def _geoid_grid(source: Any, dem: Path, datum: str | None, geoid: Path | None) -> Path | None:
    """The grid to add, None for heights above the ellipsoid."""
    if source.crs is None:
        raise SourceError(f"{dem}: these elevations have no CRS; say which with gdal_edit -a_srs")
    if (source.units[0] or "").lower() not in _METRES:
        raise SourceError(f"{dem}: elevations in {source.units[0]!r}; convert them to metres")
    if datum is not None and datum not in DATUMS:
        raise ValueError(f"the datum of heights (--dem-datum) is one of {', '.join(DATUMS)}, got {datum!r}")
    if geoid is not None and not geoid.is_file():
        raise FileNotFoundError(f"{geoid}: no such geoid grid")
    said = _vertical_datum(pyproj.CRS.from_wkt(source.crs.to_wkt()), dem)
    if said and datum and said != datum:
        raise SourceError(
            f"{dem}: its CRS says that the heights are above {said}, --dem-datum says {datum}; leave that out, or "
            "correct the file with gdal_edit -a_srs"
        )
    datum = said or datum
    if datum == ELLIPSOID:
        if geoid is not None:
            raise SourceError(
                f"{dem}: heights above the ellipsoid need no geoid grid; leave {geoid} out (--geoid)"
            )
        return None
    if geoid is not None:
        # Whoever names a grid says that the heights are above it.
        _check_grid(geoid, datum)
        return geoid
    if datum is None:
        raise SourceError(
            f"{dem}: its CRS does not say what the heights are above; say it: --dem-datum {'|'.join(DATUMS)}, or "
            "--geoid FILE with the grid of another geoid"
        )
    return _installed_grid(datum, dem)


def _vertical_datum(crs: pyproj.CRS, dem: Path) -> str | None:
    """What heights in `crs` are above: one of `DATUMS`, another geoid's name, or None if it does not say."""
    while crs.is_bound and crs.source_crs is not None:
        crs = crs.source_crs
    vertical = next((part for part in crs.sub_crs_list if part.is_vertical), None)
    if vertical is None:
        return ELLIPSOID if len(crs.axis_info) == 3 else None
    while vertical.is_bound and vertical.source_crs is not None:
        vertical = vertical.source_crs
    axis = vertical.axis_info[0]
    if axis.unit_conversion_factor != 1 or axis.direction != "up":
        raise SourceError(
            f"{dem}: its vertical CRS {vertical.name} counts {axis.unit_name} {axis.direction}; convert it to metres up"
        )
    authority = vertical.to_authority()
    if authority and authority[1] in _GEOID_CODES:
        return _GEOID_CODES[authority[1]]
    plain = vertical.name.upper().replace(" ", "")
    if "ELLIPSOID" in plain:
        return ELLIPSOID
    return next((name for name in GEOID_GRIDS if name in plain), vertical.name)


def _installed_grid(datum: str, dem: Path) -> Path:
    names = GEOID_GRIDS.get(datum)
    if names is None:
        raise NotFoundError(
            f"{dem}: heights above {datum}; give the grid of its height above the ellipsoid (GTX or GeoTIFF) as --geoid"
        )
    folders = [get_user_data_dir(), *get_data_dir().split(os.pathsep)]
    for folder, name in itertools.product(folders, names):
        if Path(folder, name).is_file():
            _check_grid(Path(folder, name), datum)
            return Path(folder, name)
    raise NotFoundError(
        f"{dem}: heights above {datum}, whose geoid grid PROJ lacks, so they cannot be brought to the ellipsoid; get "
        f"{names[0]} (projsync --file {names[0]}, or cdn.proj.org) and, where PROJ does not find it, give it as --geoid"
    )


def _check_grid(grid: Path, datum: str | None) -> None:
    """That a grid is one of geoid heights, and of the right geoid where it says which."""
    import rasterio

    try:
        with rasterio.open(grid) as file:
            tags, numbers = file.tags(), file.count
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{grid}: no geoid grid ({str(error).splitlines()[0]})") from error
    kind = tags.get("TYPE", "VERTICAL_OFFSET_GEOGRAPHIC_TO_VERTICAL")
    if numbers != 1 or kind != "VERTICAL_OFFSET_GEOGRAPHIC_TO_VERTICAL":
        raise SourceError(f"{grid}: no geoid grid, it has {numbers} band(s) of type {kind}")
    of = _GEOID_CODES.get(tags.get("target_crs_epsg_code", ""))
    if of and datum in GEOID_GRIDS and of != datum:
        raise SourceError(
            f"{grid}: the grid of {of}, the heights are above {datum}; give that one's (--geoid)"
        )


def _undulation(
    grid: Path, epsg: int, bounds: tuple[int, int, int, int], margin: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Height of the geoid above the ellipsoid at the pixel centres, strip of rows by strip; metres, float32.

    In the margin, pixels on each side, it is that of the nearest pixel within the bounds, which the grid must cover.
    """
    west, south, east, north = bounds
    # Quotes, because a path may have spaces; PROJ knows no escape for these two.
    path = str(grid.absolute())
    if any(mark in path for mark in ',"'):
        raise SourceError(f"{grid}: PROJ cannot open a grid with a comma or a quote in its path; rename it")
    try:
        shift = pyproj.Transformer.from_pipeline(
            "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad "
            f'+step +proj=vgridshift +grids="{path}" +multiplier=1 '
            "+step +proj=unitconvert +xy_in=rad +xy_out=deg"
        )
    except pyproj.exceptions.ProjError as error:
        raise SourceError(f"{grid}: no geoid grid that PROJ reads ({error})") from error
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)
    x = np.pad(np.arange(west + 5.0, east, 10), margin, "edge")
    y_of = np.pad(np.arange(north - 5.0, south, -10), margin, "edge")
    for start in range(0, len(y_of), _STRIP_PX):
        rows = slice(start, min(start + _STRIP_PX, len(y_of)))
        y = y_of[rows]
        longitude, latitude = to_degrees.transform(*np.meshgrid(x, y))
        above = shift.transform(longitude, latitude, np.zeros_like(longitude))[2]
        if not np.isfinite(above).all():
            raise SourceError(f"{grid}: does not cover the tile at {west} m E, {north} m N in EPSG:{epsg}")
        yield rows, above.astype(np.float32)
