"""Land cover that comes as a raster -> reference map: by nearest neighbour onto the tile's grid, block by block.

A pixel of the map gets the code of the raster's pixel that its centre lies in; GDAL projects the centres to a
hundredth of a raster pixel. Of several files (tiles of one product) the first that has data at a place counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.labels import UNLABELLED
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import glob_data
from reben_cloud.layers.raster_files import Cut, Raster, Wanted, import_rasterio, open_gdal, unreadable
from reben_cloud.layers.raster_zarr import is_zarr, open_zarr
from reben_cloud.layers.squares import Square
from reben_cloud.scenes.class_table import ClassTable
from reben_cloud.scenes.land_cover import PIXEL_M

_SUFFIXES = (".tif", ".tiff", ".vrt")
_BLOCK_PX = 1024
"""Side of a block, pixels: 2 MB of codes, and about a block of the usual cloud-optimised files."""

_TOLERANCE_PX = 0.01
"""How far GDAL may be off where it interpolates between projected pixels; its default is 0.125."""


def raster_files(path: Path) -> list[Path]:
    """The rasters that a path names: a Zarr store, a file, or those of a folder; none for anything else."""
    if is_zarr(os.fspath(path)):
        return [path]
    if path.is_dir():
        return [file for file in glob_data(path, "**/*") if file.suffix.lower() in _SUFFIXES]
    return [path] if path.suffix.lower() in _SUFFIXES else []


def files_reaching(files: Sequence[Path], *, epsg: int, bounds: tuple[int, int, int, int]) -> list[Path]:
    """Those of several rasters that may have something in a rectangle, by their headers.

    Args:
        files: As for `read_land_raster`.
        epsg: CRS of the rectangle.
        bounds: West, south, east and north, metres.

    Raises:
        SourceError: If a raster cannot be read.
    """
    west, south, east, north = bounds
    square, side_m = Square(epsg, west, north), max(east - west, north - south)
    found = []
    for file in files:
        name = os.fspath(file)
        with open_zarr(name) if is_zarr(name) else open_gdal(name) as raster:
            _check(raster, name)
            # Of a Zarr store this would read pixels.
            if is_zarr(name):
                found.append(file)
                continue
            with raster.around([square], Wanted((raster.facts.bands[0].index,), side_m, PIXEL_M)) as cut:
                if cut is not None:
                    found.append(file)
    return found


def read_land_raster(
    files: Sequence[Path], *, epsg: int, left: int, top: int, shape: tuple[int, int], table: ClassTable
) -> NDArray[np.uint16]:
    """Codes of land cover on a grid of 10 m pixels.

    Args:
        files: GeoTIFFs, VRTs and Zarr stores of one band of codes each, of any CRS.
        epsg: CRS of the grid, a UTM zone.
        left: West edge of the grid, metres.
        top: North edge, metres.
        shape: Height and width, pixels.
        table: The codes that may occur.

    Returns:
        uint16 of that shape; 999 where no raster has data, or the table says that a code is nodata.

    Raises:
        SourceError: If a raster cannot be read, does not say where it is, has several bands, or holds a code that is
            not in the table.
    """
    found = np.full(shape, UNLABELLED, np.uint16)
    for file in files:
        name = os.fspath(file)
        with ExitStack() as stack:
            raster = stack.enter_context(open_zarr(name) if is_zarr(name) else open_gdal(name))
            _check(raster, name)
            for y, x in _corners(shape):
                block = found[y : y + _BLOCK_PX, x : x + _BLOCK_PX]
                open_pixels = block == UNLABELLED
                if open_pixels.any():
                    square = Square(epsg, left + PIXEL_M * x, top - PIXEL_M * y)
                    codes = _warped(raster, square, block.shape, table, name)
                    if codes is not None:
                        np.copyto(block, codes, where=open_pixels)
    return found


def _corners(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for y in range(0, shape[0], _BLOCK_PX):
        for x in range(0, shape[1], _BLOCK_PX):
            yield y, x


def _check(raster: Raster, name: str) -> None:
    """That a raster holds one band of codes, and says where."""
    bands = raster.facts.bands
    if len(bands) != 1:
        raise SourceError(
            f"{name}: has {len(bands)} bands ({', '.join(band.name for band in bands[:9])}); land cover is one band of "
            "codes: take a VRT of it (gdal_translate -b N -of VRT)"
        )
    if bands[0].is_scaled:
        raise SourceError(f"{name}: its values are scaled, so they are not codes of classes")
    if raster.facts.crs is None or raster.facts.transform is None:
        raise SourceError(
            f"{name}: does not say where it is (CRS and transform); set both, e.g. gdal_edit.py"
        )


def _warped(
    raster: Raster, square: Square, shape: tuple[int, ...], table: ClassTable, name: str
) -> NDArray[np.uint16] | None:
    """Codes of a block, `UNLABELLED` where the raster has none; None where it has nothing there at all."""
    (band,) = raster.facts.bands
    nodata = band.nodata
    with raster.around([square], Wanted((band.index,), PIXEL_M * max(shape), PIXEL_M)) as cut:
        if cut is None:
            return None
        try:
            values, valid = _nearest(cut, square, shape, nodata)
        except import_rasterio().errors.RasterioError as error:
            raise unreadable(name, error) from error
    if nodata is not None:
        valid &= ~(np.isnan(values) if np.isnan(nodata) else values == nodata)
    if values.dtype.kind == "f":
        valid &= ~np.isnan(values)
    if not valid.any():
        return None
    if valid.all():
        return table.recoded(values, name=name)
    codes = np.full(shape, UNLABELLED, np.uint16)
    codes[valid] = table.recoded(values[valid], name=name)
    return codes


def _nearest(
    cut: Cut, square: Square, shape: tuple[int, ...], nodata: float | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values on the grid of a block, and which of them the raster has."""
    rasterio = import_rasterio()
    has_alpha = rasterio.enums.ColorInterp.alpha in cut.dataset.colorinterp
    fill = {} if nodata is None else {"src_nodata": nodata, "nodata": nodata}
    # Without a value for nodata, an alpha band tells what is there.
    masked = has_alpha or (nodata is None and not cut.is_whole)
    with rasterio.vrt.WarpedVRT(
        cut.dataset,
        crs=rasterio.CRS.from_epsg(square.epsg),
        transform=rasterio.transform.from_origin(square.left, square.top, PIXEL_M, PIXEL_M),
        height=shape[0],
        width=shape[1],
        resampling=rasterio.enums.Resampling.nearest,
        tolerance=_TOLERANCE_PX,
        add_alpha=masked and not has_alpha,
        **fill,
    ) as view:
        values: NDArray[Any] = view.read(cut.bands[0])
        valid = view.read(view.count) != 0 if masked else np.ones(values.shape, np.bool_)
    return values, valid
