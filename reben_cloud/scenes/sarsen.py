"""Sentinel-1 GRD products by sarsen, a program that is not part of this package: a tile in blocks of bounded memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing
from reben_cloud.scenes.elevation import resample_heights
from reben_cloud.scenes.grd import check_grd
from reben_cloud.scenes.provenance import differences, identify
from reben_cloud.scenes.runs import Run, find_program
from reben_cloud.scenes.sentinel1 import POLARIZATIONS

Bounds = tuple[int, int, int, int]
"""West, south, east, north, metres."""

_BLOCK_M = 27_450
"""Side of what sarsen makes at a time, a quarter of a tile's. Its memory goes with the area: 2.1 GB for 28 km."""

_MARGIN_M = 2_400
"""How far around a block sarsen gets heights, whose pixels are then cut off. It adds up the areas that each cell of the
radar image sees: those of a cell at the border lack what is beyond, where they come out up to 12 dB too bright, and
slopes of 1,500 m are seen in cells that far away."""

_PIXEL_M = 10


def run_sarsen(
    products: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    epsg: int,
    bounds: Bounds,
    dem: str | os.PathLike[str],
    dem_datum: str | None = None,
    geoid: str | os.PathLike[str] | None = None,
    program: str = "sarsen",
    workers: int = 1,
) -> list[Path]:
    """Sentinel-1 GRD products to scenes in dB, with sarsen's radiometric terrain correction (``sarsen rtc``).

    What comes out is gamma nought, flattened by the terrain; `run_snap` gives sigma nought. sarsen writes on
    the grid of its elevation model and takes its heights as above the ellipsoid, so the model is resampled to
    10 m and brought there first. It runs once for each block of 27 km, with a margin that is cut off again: its memory
    goes with the area, and a whole tile would take 20 GB.

    Args:
        products: GRD ``.SAFE`` folders.
        output: Where the GeoTIFFs, one per polarization, and ``logs/`` go; those made from the same inputs are
            skipped, and so are blocks of one that was interrupted.
        epsg: CRS to write, the Sentinel-2 tile's.
        bounds: West, south, east, north of what to write, metres in `epsg`.
        dem: Raster of elevations, metres, of any CRS and resolution.
        dem_datum: What its heights are above, where its CRS does not say: ``ellipsoid``, ``EGM96``, ``EGM2008``.
        geoid: Grid of the geoid that they are above; by default PROJ's, where it is installed.
        program: Name or path of sarsen's command (0.9.6 or later).
        workers: Runs at a time; one takes up to 3 GB of memory.

    Returns:
        The GeoTIFFs: VV and VH of the first product, of the second, ...

    Raises:
        NotFoundError: If the program or the geoid's grid is not installed.
        SourceError: If a product is no GRD product, the elevations do not cover `bounds` or do not say what
            they are above, or sarsen fails.
        ConflictError: If an output was made from other inputs, or nothing says from which.
    """
    tool = find_program(
        program,
        "sarsen 0.9.6 (pip install sarsen, best in an environment of its own) and pass its command as --sarsen, "
        "or give terrain-corrected GeoTIFFs in dB",
    )
    folder = local_path(output, "the folder of processed products")
    jobs = [
        (path, check_grd(path, folder_only=True), polarization)
        for path in (local_path(product, "a Sentinel-1 product") for product in products)
        for polarization in POLARIZATIONS
    ]
    west, south, east, north = bounds
    place = f"{epsg}_{west}_{north}_{east - west}x{north - south}"
    heights_from = {
        "datum of heights": str(dem_datum), "margin": f"{_MARGIN_M} m", **identify("elevation model", dem),
    }  # fmt: skip
    if geoid is not None:
        heights_from |= identify("geoid grid", geoid)
    heights = folder / f"dem_{place}.tif"
    resampling = Run(folder=folder, name=heights.stem, pattern=heights.name, made_from=heights_from)
    if resampling.find_output() is None:
        resampling.record()
        resample_heights(
            dem, heights, epsg=epsg, bounds=bounds, datum=dem_datum, geoid=geoid, margin_m=_MARGIN_M
        )

    def process(job: tuple[Path, str, str]) -> Path:
        path, scene, polarization = job
        made_from = {"program": program, **heights_from, **identify("product", path)}
        whole = Run(
            folder=folder,
            name=f"{path.stem}_{place}_{polarization}",
            pattern=f"{scene}_{place}_{polarization}.tif",
            made_from=made_from,
        )
        if (done := whole.find_output()) is not None:
            return done
        parts = folder / f".blocks-{whole.name}"  # with their logs, until all are there
        _keep_if_same(parts, made_from)
        arguments = [tool, "rtc", str(path.absolute()), f"IW/{polarization}"]
        blocks = dict[Bounds, Path]()
        for block in _blocks(bounds):
            corner = f"{block[0]}_{block[3]}"
            run = Run(
                folder=parts, name=f"{whole.name}_{corner}", pattern=f"{corner}.tif", made_from=made_from
            )
            blocks[block] = run.make(
                partial(_command, run, block, heights, arguments), finish=partial(_to_decibel, bounds=block)
            )
        whole.record()
        _join(blocks, folder / whole.pattern, bounds)
        shutil.rmtree(parts)
        return folder / whole.pattern

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, jobs))


def _blocks(bounds: Bounds) -> Iterator[Bounds]:
    """Squares that cover the bounds, those at the east and the south cut to them."""
    west, south, east, north = bounds
    for top in range(north, south, -_BLOCK_M):
        for left in range(west, east, _BLOCK_M):
            yield left, max(south, top - _BLOCK_M), min(east, left + _BLOCK_M), top


def _keep_if_same(parts: Path, made_from: Mapping[str, str]) -> None:
    """Make the folder of blocks, without those that an interrupted run made from other inputs."""
    records = (json.loads(record.read_text()) for record in parts.glob("logs/*.json"))
    if any(differences(record, made_from) for record in records):
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)


def _command(run: Run, block: Bounds, heights: Path, arguments: Sequence[str], scratch: Path) -> list[str]:
    """The call of sarsen for a block, whose heights are written beside what it makes."""
    around = scratch / "heights.tif"
    _cut_out(heights, around, block)
    return [*arguments, str(around.absolute()), "--output-urlpath", str(scratch / run.pattern)]


def _window(west_edge: float, north_edge: float, bounds: Bounds) -> tuple[slice, slice]:
    """Rows and columns, within the bounds, of a raster whose corner is given."""
    west, south, east, north = bounds
    top, left = round((north_edge - north) / _PIXEL_M), round((west - west_edge) / _PIXEL_M)
    return slice(top, top + (north - south) // _PIXEL_M), slice(left, left + (east - west) // _PIXEL_M)


def _cut_out(heights: Path, made: Path, block: Bounds) -> None:
    """The heights of a block and of a margin around it."""
    import rasterio
    from rasterio.windows import Window

    west, south, east, north = block
    wide = west - _MARGIN_M, south - _MARGIN_M, east + _MARGIN_M, north + _MARGIN_M
    with rasterio.open(heights) as file:
        window = Window.from_slices(*_window(file.transform.c, file.transform.f, wide))
        _write(made, file.read(1, window=window), file.crs, wide)


def _to_decibel(path: Path, *, bounds: Bounds) -> None:
    """Linear power to dB, within the bounds, in place; north up, while sarsen writes south up."""
    import rasterio

    with rasterio.open(path) as file:
        power, transform, crs = file.read(1), file.transform, file.crs
    north_edge = transform.f
    if transform.e > 0:
        power = power[::-1]
        north_edge += transform.e * power.shape[0]
    power = power[_window(transform.c, north_edge, bounds)]
    decibel = np.full(power.shape, np.nan, np.float32)
    np.log10(power, out=decibel, where=power > 0)
    _write(path, 10 * decibel, crs, bounds)


def _join(blocks: Mapping[Bounds, Path], made: Path, bounds: Bounds) -> None:
    """One file of all blocks."""
    import rasterio

    west, south, east, north = bounds
    decibel = np.empty(((north - south) // _PIXEL_M, (east - west) // _PIXEL_M), np.float32)
    for block, path in blocks.items():
        with rasterio.open(path) as file:
            file.read(1, out=decibel[_window(west, north, block)])
            crs = file.crs
    _write(made, decibel, crs, bounds)


def _write(made: Path, pixels: NDArray[np.float32], crs: object, bounds: Bounds) -> None:
    """A raster of float32, as a whole or not at all."""
    import rasterio
    from rasterio.transform import from_origin

    with (
        replacing(made) as new,
        rasterio.open(
            new, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype="float32",
            crs=crs, transform=from_origin(bounds[0], bounds[3], _PIXEL_M, _PIXEL_M), nodata=np.nan, tiled=True,
        ) as target,
    ):  # fmt: skip
        target.write(pixels, 1)
