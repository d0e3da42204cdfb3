"""Programs that turn raw Sentinel products into what `prepare` reads: sen2cor and SNAP's gpt; `sarsen` is another.

Each product is one run, with a log of its own and an output that appears only when it is complete (`runs`).
The programs are not part of this package.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import glob_data
from reben_cloud.files.paths import local_path
from reben_cloud.scenes.grd import check_grd
from reben_cloud.scenes.provenance import identify
from reben_cloud.scenes.runs import Run, find_program


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


def _in_parallel(
    process: Callable[[Path], Path], products: Sequence[str | os.PathLike[str]], workers: int
) -> list[Path]:
    # Threads: the work is in the programs.
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(process, map(Path, products)))
