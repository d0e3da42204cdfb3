"""Programs that turn raw Sentinel products into what `prepare` reads: sen2cor, SNAP's gpt and sarsen.

Each product is one run with a log of its own and an output that appears only when it is complete, so
a second call skips what is done. The programs are not part of this package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from reben_cloud.errors import NotFoundError, SourceError, missing_extra
from reben_cloud.paths import local_path

_L1C = re.compile(r"(S2[A-D])_MSIL1C_(\d{8}T\d{6})_N\d{4}_(R\d{3}_T\w{5})_\d{8}T\d{6}\.SAFE")
_GRD = re.compile(r"(S1[A-D]_IW_GRDH_1SDV_\d{8}T\d{6})_\w+\.(SAFE|zip)")


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
        output: Where the Level-2A products and ``logs/`` go; those that are there are skipped.
        program: Name or path of ``L2A_Process``.
        workers: Runs at a time; one takes about 4 GB of memory.

    Returns:
        The Level-2A products, in order.

    Raises:
        NotFoundError: If the program is not installed.
        SourceError: If a product is no Level-1C product, or sen2cor fails on it.
    """
    if not products:
        return []
    tool = _find(
        program, "sen2cor 2.11 (step.esa.int) and pass its L2A_Process as --sen2cor, or give L2A products"
    )
    folder = local_path(output, "the folder of processed products")

    def process(path: Path) -> Path:
        match = _L1C.fullmatch(path.name)
        if match is None or not (path / "MTD_MSIL1C.xml").exists():
            raise SourceError(f"{path}: no Level-1C .SAFE folder")
        pattern = f"{match[1]}_MSIL2A_{match[2]}_N????_{match[3]}_*.SAFE"
        done = sorted(folder.glob(pattern))
        if done:
            return done[0]
        for place in ("DATASTRIP/*/QI_DATA", "GRANULE/*/AUX_DATA"):
            parent, _, name = place.rpartition("/")
            for child in path.glob(parent):
                (child / name).mkdir(exist_ok=True)
        return _produce(
            lambda scratch: [tool, "--output_dir", str(scratch), str(path.absolute())],
            folder=folder, name=path.stem, pattern=pattern,
        )  # fmt: skip

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
        output: Where the GeoTIFFs and ``logs/`` go; those that are there are skipped.
        epsg: CRS to write, the Sentinel-2 tile's.
        program: Name or path of SNAP's ``gpt``.
        dem: SNAP's name of the elevation model; SRTM ends at 60 degrees north.
        workers: Runs at a time; one takes about 16 GB of memory.

    Returns:
        The GeoTIFFs, in order.

    Raises:
        NotFoundError: If the program is not installed.
        SourceError: If a product is no GRD product, or gpt fails on it.
    """
    tool = _find(
        program,
        "ESA SNAP (step.esa.int) and pass its gpt as --gpt, give a file of elevations as --dem to use sarsen, or "
        "give terrain-corrected GeoTIFFs in dB",
    )
    folder = local_path(output, "the folder of processed products")

    def process(path: Path) -> Path:
        match = _GRD.fullmatch(path.name)
        if match is None or not path.exists():
            raise SourceError(f"{path}: no Sentinel-1 IW GRDH product with VV and VH (1SDV)")
        pattern = f"{match[1]}_{epsg}.tif"
        if (folder / pattern).exists():
            return folder / pattern
        with as_file(files("reben_cloud").joinpath("snap", "grd_to_db.xml")) as graph:
            return _produce(
                lambda scratch: [
                    tool, str(graph), f"-Pinput={path.absolute()}", f"-Poutput={scratch / pattern}",
                    f"-Pdem={dem}", f"-Pcrs=EPSG:{epsg}",
                ],
                folder=folder, name=path.stem, pattern=pattern,
            )  # fmt: skip

    return _in_parallel(process, products, workers)


def run_sarsen(
    products: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    epsg: int,
    bounds: tuple[int, int, int, int],
    dem: str | os.PathLike[str],
    program: str = "sarsen",
    workers: int = 1,
) -> list[Path]:
    """Sentinel-1 GRD products to scenes in dB, with sarsen's radiometric terrain correction (``sarsen rtc``).

    What comes out is gamma nought, flattened by the terrain; `run_snap` gives sigma nought. sarsen
    writes on the grid of its elevation model, so that is resampled to 10 m first. Its heights should be
    above the ellipsoid, or its CRS say what they are above.

    Args:
        products: GRD ``.SAFE`` folders.
        output: Where the GeoTIFFs, one a polarization, and ``logs/`` go; those that are there are skipped.
        epsg: CRS to write, the Sentinel-2 tile's.
        bounds: West, south, east, north of what to write, metres in `epsg`.
        dem: Raster of elevations, metres, of any CRS and resolution.
        program: Name or path of sarsen's command (0.9.6 or later).
        workers: Runs at a time.

    Returns:
        The GeoTIFFs: VV and VH of the first product, of the second, ...

    Raises:
        NotFoundError: If the program is not installed.
        SourceError: If a product is no GRD product, the elevations do not cover `bounds`, or sarsen fails.
    """
    tool = _find(
        program,
        "sarsen 0.9.6 (pip install sarsen, best in an environment of its own) and pass its command as --sarsen, "
        "or give terrain-corrected GeoTIFFs in dB",
    )
    folder = local_path(output, "the folder of processed products")
    folder.mkdir(parents=True, exist_ok=True)
    west, _, east, north = bounds
    place = f"{epsg}_{west}_{north}_{east - west}x{north - bounds[1]}"
    heights = folder / f"dem_{place}.tif"
    if not heights.exists():
        _resample_heights(Path(dem), heights, epsg=epsg, bounds=bounds)
    runs = []
    for path in (local_path(product, "a Sentinel-1 product") for product in products):
        match = _GRD.fullmatch(path.name)
        if match is None or not path.is_dir():
            raise SourceError(
                f"{path}: no .SAFE folder of a Sentinel-1 IW GRDH product with VV and VH (1SDV)"
            )
        runs += [(path, f"{match[1]}_{place}", polarization) for polarization in ("VV", "VH")]

    def process(run: tuple[Path, str, str]) -> Path:
        path, name, polarization = run
        made = f"{name}_{polarization}.tif"
        if (folder / made).exists():
            return folder / made
        return _produce(
            lambda scratch: [
                tool, "rtc", str(path.absolute()), f"IW/{polarization}", str(heights.absolute()),
                "--output-urlpath", str(scratch / made),
            ],
            folder=folder, name=f"{path.stem}_{polarization}", pattern=made, finish=_to_decibel,
        )  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, runs))


def _resample_heights(dem: Path, made: Path, *, epsg: int, bounds: tuple[int, int, int, int]) -> None:
    """The elevations on the 10 m grid of `bounds`."""
    try:
        import rasterio
        from rasterio.enums import Resampling
        from rasterio.transform import from_origin
        from rasterio.vrt import WarpedVRT
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    west, south, east, north = bounds
    size = {"height": (north - south) // 10, "width": (east - west) // 10}
    grid = {"crs": f"EPSG:{epsg}", "transform": from_origin(west, north, 10, 10), **size}
    try:
        with rasterio.open(dem) as source:
            if source.crs is None:
                raise SourceError(f"{dem}: these elevations have no CRS; say which with gdal_edit -a_srs")
            with WarpedVRT(
                source, resampling=Resampling.bilinear, nodata=np.nan, dtype="float32", **grid
            ) as view:
                heights = view.read(1)
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{dem}: cannot be read ({str(error).splitlines()[0]})") from error
    lacking = np.isnan(heights).mean()
    if lacking:
        raise SourceError(
            f"{dem}: has no elevations for {lacking:.1%} of the area {bounds} in EPSG:{epsg}; take one that covers it"
        )
    scratch = made.with_suffix(".part")
    with rasterio.open(scratch, "w", driver="GTiff", count=1, dtype="float32", tiled=True, **grid) as target:
        target.write(heights, 1)
    scratch.rename(made)


def _to_decibel(path: Path) -> None:
    """Linear power to dB, in place; north up, while sarsen writes south up."""
    import rasterio

    with rasterio.open(path) as file:
        power, transform, crs = file.read(1), file.transform, file.crs
    if transform.e > 0:
        power = power[::-1]
        transform = transform @ transform.translation(0, power.shape[0]) @ transform.scale(1, -1)
    decibel = np.full(power.shape, np.nan, np.float32)
    np.log10(power, out=decibel, where=power > 0)
    path.unlink()
    with rasterio.open(
        path, "w", driver="GTiff", height=power.shape[0], width=power.shape[1], count=1, dtype="float32",
        crs=crs, transform=transform, nodata=np.nan, tiled=True,
    ) as target:  # fmt: skip
        target.write(10 * decibel, 1)


def _find(program: str, advice: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise NotFoundError(f"{program} is not installed; install {advice}")
    return found


def _in_parallel(
    process: Callable[[Path], Path], products: Sequence[str | os.PathLike[str]], workers: int
) -> list[Path]:
    # Threads: the work is in the programs.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, map(Path, products)))


def _produce(
    command: Callable[[Path], list[str]],
    *,
    folder: Path,
    name: str,
    pattern: str,
    finish: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Run a program in a scratch folder and move what it made, which `pattern` matches, to `folder`."""
    log = folder / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".running-{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with log.open("wb") as text:
        arguments = command(scratch)
        text.write((" ".join(arguments) + "\n").encode())
        text.flush()
        status = subprocess.run(arguments, stdout=text, stderr=subprocess.STDOUT, check=False).returncode
    made = sorted(scratch.glob(pattern))
    if status or len(made) != 1:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise SourceError(
            f"{name}: {Path(arguments[0]).name} ended with status {status} and made {len(made)} products; "
            f"its last words: {last!r}; all of them: {log}"
        )
    finish(made[0])
    target = folder / made[0].name
    made[0].rename(target)
    shutil.rmtree(scratch)
    return target
