"""Programs that turn raw Sentinel products into what `prepare` reads: sen2cor, SNAP's gpt and sarsen.

Each product is one run, with a log of its own and an output that appears only when it is complete (`runs`).
The programs are not part of this package.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import glob_data
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing
from reben_cloud.scenes.elevation import resample_heights
from reben_cloud.scenes.grd import check_grd
from reben_cloud.scenes.provenance import identify
from reben_cloud.scenes.runs import Run, find_program
from reben_cloud.scenes.sentinel1 import POLARIZATIONS

_MARGIN_M = 2_400
"""How far around a tile sarsen gets heights, whose pixels are then cut off. It adds up the areas that each cell of the
radar image sees: those of a cell at the border lack what is beyond, where they come out up to 12 dB too bright, and
slopes of 1,500 m are seen in cells that far away."""


def run_sen2cor(
    products: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    program: str = "L2A_Process",
    workers: int = 1,
) -> list[Path]:
    """Level-1C products to Level-2A, as reBEN was made: sen2cor with its stock configuration.

    Empty folders that downloads leave out and sen2cor insists on are made first. Baseline, auxiliary
    data and version (2.11.0 for reBEN) are the installation's.

    Args:
        products: ``.SAFE`` folders of Level-1C products.
        output: Where the Level-2A products and ``logs/`` go, in folders of their own of several datastrips of a tile;
            those made from the same inputs are skipped.
        program: Name or path of ``L2A_Process``.
        workers: Runs at a time; one takes about 4 GB of memory.

    Returns:
        The Level-2A products, in order.

    Raises:
        NotFoundError: If the program is not installed.
        SourceError: If a product is no Level-1C product, or sen2cor fails on it.
        ConflictError: If an output was made from other inputs, or nothing says from which.
    """
    if not products:
        return []
    tool = find_program(
        program, "sen2cor 2.11 (step.esa.int) and pass its L2A_Process as --sen2cor, or give L2A products"
    )
    output = local_path(output, "the folder of processed products")
    alike = Counter(map(_check_l1c, map(Path, products)))

    def process(path: Path) -> Path:
        pattern = _check_l1c(path)
        # Two datastrips of one tile get names that do not tell from which of them they were made.
        folder = output if alike[pattern] == 1 else output / path.stem
        run = Run(
            folder=folder, name=path.stem, pattern=pattern,
            made_from={"program": program, **identify("product", path)},
        )  # fmt: skip

        def command(scratch: Path) -> list[str]:
            for place in ("DATASTRIP/*/QI_DATA", "GRANULE/*/AUX_DATA"):
                parent, _, name = place.rpartition("/")
                for child in glob_data(path, f"{parent}/"):
                    (child / name).mkdir(exist_ok=True)
            return [tool, "--output_dir", str(scratch), str(path.absolute())]

        return run.make(command)

    return _in_parallel(process, products, workers)


def run_snap(
    products: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    epsg: int,
    program: str = "gpt",
    dem: str = "SRTM 1Sec HGT",
    workers: int = 1,
) -> list[Path]:
    """Sentinel-1 GRD products to terrain-corrected scenes in dB, with the graph of this package.

    Args:
        products: GRD ``.SAFE`` folders or zips.
        output: Where the GeoTIFFs and ``logs/`` go; those made from the same inputs are skipped.
        epsg: CRS to write, the Sentinel-2 tile's.
        program: Name or path of SNAP's ``gpt``.
        dem: SNAP's name of the elevation model; SRTM ends at 60 degrees north.
        workers: Runs at a time; one takes about 16 GB of memory.

    Returns:
        The GeoTIFFs, in order.

    Raises:
        NotFoundError: If the program is not installed.
        SourceError: If a product is no GRD product, or gpt fails on it.
        ConflictError: If an output was made from other inputs, or nothing says from which.
    """
    tool = find_program(
        program,
        "ESA SNAP (step.esa.int) and pass its gpt as --gpt, give a file of elevations as --dem to use sarsen, or "
        "give terrain-corrected GeoTIFFs in dB",
    )
    folder = local_path(output, "the folder of processed products")

    def process(path: Path) -> Path:
        made = f"{check_grd(path)}_{epsg}.tif"
        with as_file(files("reben_cloud.scenes").joinpath("snap", "grd_to_db.xml")) as graph:
            made_from = {
                "program": program, "elevation model": dem,
                "graph": hashlib.sha256(graph.read_bytes()).hexdigest(), **identify("product", path),
            }  # fmt: skip
            run = Run(folder=folder, name=f"{path.stem}_{epsg}", pattern=made, made_from=made_from)
            return run.make(
                lambda scratch: [
                    tool, str(graph), f"-Pinput={path.absolute()}", f"-Poutput={scratch / made}",
                    f"-Pdem={dem}", f"-Pcrs=EPSG:{epsg}",
                ]
            )  # fmt: skip

    return _in_parallel(process, products, workers)


def run_sarsen(
    products: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    epsg: int,
    bounds: tuple[int, int, int, int],
    dem: str | os.PathLike[str],
    dem_datum: str | None = None,
    geoid: str | os.PathLike[str] | None = None,
    program: str = "sarsen",
    workers: int = 1,
) -> list[Path]:
    """Sentinel-1 GRD products to scenes in dB, with sarsen's radiometric terrain correction (``sarsen rtc``).

    What comes out is gamma nought, flattened by the terrain; `run_snap` gives sigma nought. sarsen writes on
    the grid of its elevation model and takes its heights as above the ellipsoid, so the model is resampled to
    10 m and brought there first, with a margin around the tile that is cut off again.

    Args:
        products: GRD ``.SAFE`` folders.
        output: Where the GeoTIFFs, one per polarization, and ``logs/`` go; those made from the same inputs are
            skipped.
        epsg: CRS to write, the Sentinel-2 tile's.
        bounds: West, south, east, north of what to write, metres in `epsg`.
        dem: Raster of elevations, metres, of any CRS and resolution.
        dem_datum: What its heights are above, where its CRS does not say: ``ellipsoid``, ``EGM96``, ``EGM2008``.
        geoid: Grid of the geoid that they are above; by default PROJ's, where it is installed.
        program: Name or path of sarsen's command (0.9.6 or later).
        workers: Runs at a time.

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
        made = f"{scene}_{place}_{polarization}.tif"
        made_from = {"program": program, **heights_from, **identify("product", path)}
        run = Run(
            folder=folder, name=f"{path.stem}_{place}_{polarization}", pattern=made, made_from=made_from
        )
        return run.make(
            lambda scratch: [
                tool, "rtc", str(path.absolute()), f"IW/{polarization}", str(heights.absolute()),
                "--output-urlpath", str(scratch / made),
            ],
            finish=partial(_to_decibel, bounds=bounds),
        )  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, jobs))


def _check_l1c(path: Path) -> str:
    """The pattern of the names that the Level-2A product of a Level-1C product may get."""
    try:
        name = grid.parse_safe_name(path.name)
    except ValueError:
        name = None
    whole = name is not None and name.level == "L1C" and path.suffix == ".SAFE"
    if name is None or not whole or not (path / "MTD_MSIL1C.xml").exists():
        raise SourceError(f"{path}: no Level-1C .SAFE folder")
    return f"{name.satellite}_MSIL2A_{name.start}_N????_{name.orbit}_T{name.square}_*.SAFE"


def _to_decibel(path: Path, *, bounds: tuple[int, int, int, int]) -> None:
    """Linear power to dB, within the bounds, in place; north up, while sarsen writes south up."""
    import rasterio

    with rasterio.open(path) as file:
        power, transform, crs = file.read(1), file.transform, file.crs
    if transform.e > 0:
        power = power[::-1]
        transform = transform @ transform.translation(0, power.shape[0]) @ transform.scale(1, -1)
    west, south, east, north = bounds
    top, left = round((transform.f - north) / 10), round((west - transform.c) / 10)
    power = power[top : top + (north - south) // 10, left : left + (east - west) // 10]
    transform = transform @ transform.translation(left, top)
    decibel = np.full(power.shape, np.nan, np.float32)
    np.log10(power, out=decibel, where=power > 0)
    with (
        replacing(path) as new,
        rasterio.open(
            new, "w", driver="GTiff", height=power.shape[0], width=power.shape[1], count=1, dtype="float32",
            crs=crs, transform=transform, nodata=np.nan, tiled=True,
        ) as target,
    ):  # fmt: skip
        target.write(10 * decibel, 1)


def _in_parallel(
    process: Callable[[Path], Path], products: Sequence[str | os.PathLike[str]], workers: int
) -> list[Path]:
    # Threads: the work is in the programs.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, map(Path, products)))
