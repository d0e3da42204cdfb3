"""Programs that turn raw Sentinel products into what `prepare` reads: sen2cor, SNAP's gpt and sarsen.

Each product is one run with a log of its own and an output that appears only when it is complete. Beside
the log stands what the output was made from; a second call skips what was made from the same, and refuses
what was not. The programs are not part of this package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from reben_cloud.errors import ConflictError, NotFoundError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.scenes.elevation import resample_heights
from reben_cloud.scenes.provenance import differences, identify

_L1C = re.compile(r"(S2[A-D])_MSIL1C_(\d{8}T\d{6})_N\d{4}_(R\d{3}_T\w{5})_\d{8}T\d{6}\.SAFE")
_GRD = re.compile(
    r"((S1[A-D])_IW_GRDH_1SDV_(\d{8}T\d{6}))_(\d{8}T\d{6})_(\d{6})_([0-9A-F]{6})_\w+\.(SAFE|zip)"
)
_MEASUREMENT = re.compile(
    r"(s1[a-d])-iw-grd-(v[vh])-(\d{8}t\d{6})-(\d{8}t\d{6})-(\d{6})-([0-9a-f]{6})-\d{3}(?:-cog)?\.tiff"
)
_SAME_START_S = 2  # the next slice of a datatake begins 25 s later


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
        output: Where the Level-2A products and ``logs/`` go; those made from the same inputs are skipped.
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
    tool = _find(
        program, "sen2cor 2.11 (step.esa.int) and pass its L2A_Process as --sen2cor, or give L2A products"
    )
    folder = local_path(output, "the folder of processed products")

    def process(path: Path) -> Path:
        match = _L1C.fullmatch(path.name)
        if match is None or not (path / "MTD_MSIL1C.xml").exists():
            raise SourceError(f"{path}: no Level-1C .SAFE folder")
        pattern = f"{match[1]}_MSIL2A_{match[2]}_N????_{match[3]}_*.SAFE"
        made_from = {"program": program, **identify("product", path)}
        if (done := _done(folder, path.stem, pattern, made_from)) is not None:
            return done
        for place in ("DATASTRIP/*/QI_DATA", "GRANULE/*/AUX_DATA"):
            parent, _, name = place.rpartition("/")
            for child in path.glob(parent):
                (child / name).mkdir(exist_ok=True)
        return _produce(
            lambda scratch: [tool, "--output_dir", str(scratch), str(path.absolute())],
            folder=folder, name=path.stem, pattern=pattern, made_from=made_from,
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
    tool = _find(
        program,
        "ESA SNAP (step.esa.int) and pass its gpt as --gpt, give a file of elevations as --dem to use sarsen, or "
        "give terrain-corrected GeoTIFFs in dB",
    )
    folder = local_path(output, "the folder of processed products")

    def process(path: Path) -> Path:
        pattern, name = f"{_check_grd(path)}_{epsg}.tif", f"{path.stem}_{epsg}"
        with as_file(files("reben_cloud.scenes").joinpath("snap", "grd_to_db.xml")) as graph:
            made_from = {
                "program": program, "elevation model": dem,
                "graph": hashlib.sha256(graph.read_bytes()).hexdigest(), **identify("product", path),
            }  # fmt: skip
            if (done := _done(folder, name, pattern, made_from)) is not None:
                return done
            return _produce(
                lambda scratch: [
                    tool, str(graph), f"-Pinput={path.absolute()}", f"-Poutput={scratch / pattern}",
                    f"-Pdem={dem}", f"-Pcrs=EPSG:{epsg}",
                ],
                folder=folder, name=name, pattern=pattern, made_from=made_from,
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
    10 m and brought there first.

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
    tool = _find(
        program,
        "sarsen 0.9.6 (pip install sarsen, best in an environment of its own) and pass its command as --sarsen, "
        "or give terrain-corrected GeoTIFFs in dB",
    )
    folder = local_path(output, "the folder of processed products")
    runs = [
        (path, _check_grd(path, folder_only=True), polarization)
        for path in (local_path(product, "a Sentinel-1 product") for product in products)
        for polarization in ("VV", "VH")
    ]
    west, south, east, north = bounds
    place = f"{epsg}_{west}_{north}_{east - west}x{north - south}"
    heights_from = {"datum of heights": str(dem_datum), **identify("elevation model", dem)}
    if geoid is not None:
        heights_from |= identify("geoid grid", geoid)
    heights = folder / f"dem_{place}.tif"
    if _done(folder, heights.stem, heights.name, heights_from) is None:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        _record(folder, heights.stem).write_text(json.dumps(heights_from))
        resample_heights(dem, heights, epsg=epsg, bounds=bounds, datum=dem_datum, geoid=geoid)

    def process(run: tuple[Path, str, str]) -> Path:
        path, scene, polarization = run
        made, name = f"{scene}_{place}_{polarization}.tif", f"{path.stem}_{place}_{polarization}"
        made_from = {"program": program, **heights_from, **identify("product", path)}
        if (done := _done(folder, name, made, made_from)) is not None:
            return done
        return _produce(
            lambda scratch: [
                tool, "rtc", str(path.absolute()), f"IW/{polarization}", str(heights.absolute()),
                "--output-urlpath", str(scratch / made),
            ],
            folder=folder, name=name, pattern=made, made_from=made_from, finish=_to_decibel,
        )  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, runs))


def _check_grd(path: Path, *, folder_only: bool = False) -> str:
    """The scene's name, after a look at whether the images inside are those that the product's name says."""
    match = _GRD.fullmatch(path.name)
    if match is None or not (path.is_dir() if folder_only else path.exists()):
        form = "no .SAFE folder of a" if folder_only else "no"
        raise SourceError(f"{path}: {form} Sentinel-1 IW GRDH product with VV and VH (1SDV)")
    if path.is_dir():
        names = [file.name for file in path.glob("measurement/*.tiff")]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [
                    Path(n).name for n in archive.namelist() if "/measurement/" in n and n.endswith(".tiff")
                ]
        except zipfile.BadZipFile as error:
            raise SourceError(f"{path}: damaged ({error}); fetch the product again") from error
    found = {}
    for name in names:
        image = _MEASUREMENT.fullmatch(name)
        if image is not None:
            found[image[2].upper()] = name
            same = image.group(1, 5, 6) == tuple(text.lower() for text in match.group(2, 5, 6))
            if not same or abs(_seconds(image[3]) - _seconds(match[3])) > _SAME_START_S:
                raise SourceError(
                    f"{path.name}: holds {name}, an image of another product (other time or orbit); are two "
                    "products mixed?"
                )
    lacking = [polarization for polarization in ("VV", "VH") if polarization not in found]
    if lacking:
        raise SourceError(
            f"{path.name}: no image of {' and '.join(lacking)} in measurement/; the product is incomplete, "
            "fetch it again"
        )
    return match[1]


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


def _seconds(time: str) -> float:
    return datetime.strptime(time.upper(), "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()


def _record(folder: Path, name: str) -> Path:
    """File that says what an output was made from."""
    return folder / "logs" / f"{name}.json"


def _done(folder: Path, name: str, pattern: str, made_from: Mapping[str, str]) -> Path | None:
    """The output of an earlier run with the same inputs, None if there is no output.

    Raises:
        ConflictError: If it was made from others, or nothing says from which.
    """
    there = sorted(folder.glob(pattern))
    if not there:
        return None
    record = _record(folder, name)
    if len(there) > 1 or not record.exists():
        raise ConflictError(
            f"{', '.join(str(path) for path in there)}: nothing says what this was made from; delete it to have it "
            "made again, or give it as finished input instead of the raw product"
        )
    changed = differences(json.loads(record.read_text()), made_from)
    if changed:
        raise ConflictError(
            f"{there[0]} was made from other inputs: {changed}; delete it to have it made again, or take "
            "an empty folder"
        )
    return there[0]


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
    made_from: Mapping[str, str],
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
    # Before the output, which is what says that all is done.
    _record(folder, name).write_text(json.dumps(made_from))
    target = folder / made[0].name
    made[0].rename(target)
    shutil.rmtree(scratch)
    return target
