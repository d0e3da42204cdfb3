"""How long a full-size product takes, beside the decoding of its JP2 bands alone; and the overlays alone.

    python tests/benchmarks/bench_prepare.py [FOLDER] [--out DISK]

Makes a Level-2A product of real size (10,980 px, 12 bands; about 500 MB, two minutes, kept in FOLDER) and 20,000
CORINE-like polygons. Decoding, the whole of `prepare` (8,281 patches, maps, labels, 107,653 files) and decoding
again run in processes of their own. Prints seconds and the peak of memory.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import shapely

from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.scenes.class_table import REBEN19, load_class_table
from reben_cloud.scenes.land_cover import rasterise, read_land_cover
from reben_cloud.scenes.land_raster import read_land_raster
from reben_cloud.scenes.prepare import CutOptions, prepare
from reben_cloud.scenes.rules import label_patches
from reben_cloud.scenes.safe import open_safe
from reben_cloud.scenes.safe_metadata import S2_BANDS
from tests.scenes import PRODUCT, make_clc, make_safe, make_world_raster

SIDE_M = 109_800


def noisy_terrain(name, shape):
    """Smooth terrain and noise, which compress like an image."""
    rng = np.random.default_rng(len(name) + shape[0])
    y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)[None]
    base = 1500 + 700 * np.sin(y / 97) * np.cos(x / 131) + 300 * np.sin((x + y) / 17)
    return base.astype(np.uint16) + rng.integers(0, 40, shape, dtype=np.uint16)


def polygons(count, left, top):
    """A partition into jagged polygons: like CORINE, about fifty vertices each."""
    rng = np.random.default_rng(0)
    points = np.array([left, top - SIDE_M]) + rng.uniform(-2000, SIDE_M + 2000, (count, 2))
    box = shapely.box(left - 3000, top - SIDE_M - 3000, left + SIDE_M + 3000, top + 3000)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=box))
    codes = rng.choice([c for c, label in REBEN19.labels.items() if label], count)
    return shapely.segmentize(cells, 100.0), codes


def step_decode(safe, clc, out):
    product = open_safe(safe)
    # As many bands at a time as `prepare` decodes.
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda name: product.read_band(name).size, S2_BANDS):
            pass


def step_prepare(safe, clc, out):
    for report in prepare([safe], out, CutOptions(land_cover=clc, countries=load_countries())):
        print(report, file=sys.stderr)


def step_overlay(safe, clc, out):
    product = open_safe(safe)
    left, top = product.left, product.top
    cover = read_land_cover(clc, epsg=product.epsg, bounds=(left, top - SIDE_M, left + SIDE_M, top))
    label_patches(rasterise(cover, left=left, top=top, shape=product.shapes[10]), patch_px=120)
    print(f"{len(cover.polygons):,} polygons", file=sys.stderr)


def step_raster(safe, world, out):
    """Reference maps and labels of a whole tile from a map of the world of 10 m."""
    product, table = open_safe(safe), load_class_table("worldcover2021")
    codes = read_land_raster(
        [world], epsg=product.epsg, left=product.left, top=product.top, shape=product.shapes[10], table=table
    )
    label_patches(codes, patch_px=120, classes=table.classes)


def measured(step, *paths):
    """Wall seconds, processor seconds and peak memory of a step in a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--step", step, *map(str, paths)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(f"{step:8} {time.perf_counter() - start:7.1f} s wall, {text.strip()}", flush=True)
    return json.loads(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-prepare"))
    parser.add_argument("--out", type=Path, help="disk for the patches, 1.5 GB; FOLDER by default")
    arguments = parser.parse_args()
    folder = arguments.folder
    left, top = 300_000, 5_400_000
    safe = next(folder.glob("*.SAFE"), None) or make_safe(folder, side_m=SIDE_M, pixels=noisy_terrain)
    if not (clc := folder / "clc.gpkg").exists():
        make_clc(clc, *polygons(20_000, left, top))
    # A new folder, removed at the very end: on ext4, to create a file was seen to take several times as long for
    # minutes after as many were removed.
    out = Path(tempfile.mkdtemp(dir=arguments.out or folder, prefix="out-"))
    paths = (safe, clc, out)
    first = measured("decode", *paths)
    whole = measured("prepare", *paths)
    second = measured("decode", *paths)
    measured("overlay", *paths)
    if not (world := folder / "world.tif").exists():
        codes = list(load_class_table("worldcover2021").labels)
        make_world_raster(world, product=PRODUCT, side_m=SIDE_M, codes=codes, cell_px=4)
    measured("raster", safe, world, out)
    decode = (first["seconds"] + second["seconds"]) / 2
    print(f"prepare / decode = {whole['seconds'] / decode:.2f}, peak {whole['peak_gb']:.2f} GB")
    shutil.rmtree(out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        begin = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_SELF)
        globals()[f"step_{sys.argv[2]}"](*map(Path, sys.argv[3:]))
        after = resource.getrusage(resource.RUSAGE_SELF)
        used = {
            "seconds": time.perf_counter() - begin,
            "cpu_s": after.ru_utime - before.ru_utime,
            "kernel_s": after.ru_stime - before.ru_stime,
            "peak_gb": after.ru_maxrss / 1e6,
        }
        print(json.dumps({name: round(value, 2) for name, value in used.items()}))
    else:
        main()
