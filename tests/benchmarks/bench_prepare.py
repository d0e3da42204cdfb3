"""Processor time of `prepare` for a full-size product, beside that of decoding its images alone; and its memory.

    python tests/benchmarks/bench_prepare.py [FOLDER] [--out DISK] [--rounds N]

Makes a Level-2A product of real size (10,980 px, 12 bands, scene classification and cloud probability; about 500 MB,
two minutes), two radar scenes which share it between them (1.2 GB), 20,000 CORINE-like polygons and a map of the
world; all kept in FOLDER. In each round decoding and the whole of `prepare` (8,281 patches, maps, labels, Sentinel-1:
124,215 files) run in processes of their own, one after the other, so that a busy machine slows both. The ratio is of
processor seconds of the process, without those of the kernel, which are the disk's. Prints the peak of memory too.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import rasterio
import shapely
from rasterio.transform import from_origin

from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.scenes.class_table import REBEN19, load_class_table
from reben_cloud.scenes.land_cover import rasterise, read_land_cover
from reben_cloud.scenes.land_raster import read_land_raster
from reben_cloud.scenes.prepare import CutOptions, prepare
from reben_cloud.scenes.rules import label_patches
from reben_cloud.scenes.safe import open_safe
from reben_cloud.scenes.safe_metadata import S2_BANDS
from reben_cloud.scenes.sentinel1 import open_scenes
from tests.scenes import PRODUCT, make_clc, make_safe, make_world_raster

SIDE_M = 109_800
LEFT, TOP = 300_000, 5_400_000
SCENES = {"S1A_IW_GRDH_1SDV_20170613T165043": (0, 6_240), "S1B_IW_GRDH_1SDV_20170614T165809": (4_680, 10_980)}
"""Radar scene -> its first row and the one after its last: each has over half of the tile, as slices of a pass do."""


def noisy_terrain(name, shape):
    """Smooth terrain and noise, which compress like an image."""
    rng = np.random.default_rng(len(name) + shape[0])
    y, x = np.arange(shape[0], dtype=np.float32)[:, None], np.arange(shape[1], dtype=np.float32)[None]
    base = 1500 + 700 * np.sin(y / 97) * np.cos(x / 131) + 300 * np.sin((x + y) / 17)
    return base.astype(np.uint16) + rng.integers(0, 40, shape, dtype=np.uint16)


def masks():
    """Scene classification and cloud probability of 20 m: blots of cloud over vegetation."""
    side = SIDE_M // 20
    y, x = np.arange(side, dtype=np.float32)[:, None], np.arange(side, dtype=np.float32)[None]
    probability = np.clip(50 * np.sin(y / 211) * np.cos(x / 173) + 30 * np.sin((x - y) / 41), 0, 100)
    return np.select([probability > 60, probability > 45], [9, 8], 4).astype(np.uint8), probability.astype(
        np.uint8
    )


def make_radar_scenes(folder):
    """Two scenes in dB on the tile's grid, as SNAP writes them: both bands in one file, uncompressed."""
    rng = np.random.default_rng(5)
    for name, (first, last) in SCENES.items():
        side, rows = SIDE_M // 10, last - first
        vv = rng.normal(-11, 2.5, (rows, side)).astype(np.float32)
        with rasterio.open(
            folder / f"{name}_VV_VH.tif", "w", driver="GTiff", height=rows, width=side, count=2, dtype="float32",
            crs="EPSG:32633", transform=from_origin(LEFT, TOP - 10 * first, 10, 10), nodata=0,
        ) as file:  # fmt: skip
            file.write(np.stack([vv, vv - 7]))


def polygons(count):
    """A partition into jagged polygons: like CORINE, about fifty vertices each."""
    rng = np.random.default_rng(0)
    points = np.array([LEFT, TOP - SIDE_M]) + rng.uniform(-2000, SIDE_M + 2000, (count, 2))
    box = shapely.box(LEFT - 3000, TOP - SIDE_M - 3000, LEFT + SIDE_M + 3000, TOP + 3000)
    cells = shapely.get_parts(shapely.voronoi_polygons(shapely.multipoints(points), extend_to=box))
    codes = rng.choice([c for c, label in REBEN19.labels.items() if label], count)
    return shapely.segmentize(cells, 100.0), codes


def make_inputs(folder):
    """What there is not yet of the inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.SAFE")):
        scl, cld = masks()
        make_safe(folder, side_m=SIDE_M, pixels=noisy_terrain, scl=scl, cld=cld)
    if not (clc := folder / "clc.gpkg").exists():
        make_clc(clc, *polygons(20_000))
    if not any(folder.glob("S1*.tif")):
        make_radar_scenes(folder)
    if not (world := folder / "world.tif").exists():
        codes = list(load_class_table("worldcover2021").labels)
        make_world_raster(world, product=PRODUCT, side_m=SIDE_M, codes=codes, cell_px=4)


def the_product(folder):
    """The product among the inputs."""
    return next(folder.glob("*.SAFE"))


def step_decode(folder, out):
    """The images that are read of a product: twelve bands and two masks."""
    product = open_safe(the_product(folder))
    # As many bands at a time as `prepare` decodes.
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda name: product.read_band(name).size, S2_BANDS):
            pass
    for name in product.masks:
        product.read_mask(name)


def step_prepare(folder, out):
    """The whole of a product, with Sentinel-1."""
    scenes = tuple(open_scenes(sorted(folder.glob("S1*.tif"))))
    options = CutOptions(land_cover=folder / "clc.gpkg", countries=load_countries(), s1_scenes=scenes)
    for report in prepare([the_product(folder)], out, options):
        print(report, file=sys.stderr)


def step_overlay(folder, out):
    """Reference maps and labels of a whole tile from polygons."""
    product = open_safe(the_product(folder))
    cover = read_land_cover(folder / "clc.gpkg", epsg=product.epsg, bounds=product.bounds)
    label_patches(
        rasterise(cover, left=product.left, top=product.top, shape=product.shapes[10]), patch_px=120
    )
    print(f"{len(cover.polygons):,} polygons", file=sys.stderr)


def step_raster(folder, out):
    """Reference maps and labels of a whole tile from a map of the world of 10 m."""
    product, table = open_safe(the_product(folder)), load_class_table("worldcover2021")
    codes = read_land_raster(
        [folder / "world.tif"], epsg=product.epsg, left=product.left, top=product.top, shape=product.shapes[10],
        table=table,
    )  # fmt: skip
    label_patches(codes, patch_px=120, classes=table.classes)


def measured(step, folder, out):
    """Wall seconds, processor seconds and peak memory of a step in a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--step", step, str(folder), str(out)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(f"{step:8} {time.perf_counter() - start:7.1f} s wall, {text.strip()}", flush=True)
    return json.loads(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("bench-prepare"))
    parser.add_argument("--out", type=Path, help="disk for the patches, 2.7 GB a round; FOLDER by default")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder = arguments.folder
    make_inputs(folder)
    ratios, peaks, outs = [], [], []
    for _ in range(arguments.rounds):
        # A new folder each, removed at the very end: on ext4, to create a file was seen to take several times as long
        # for minutes after as many were removed.
        outs.append(Path(tempfile.mkdtemp(dir=arguments.out or folder, prefix="out-")))
        decode, whole = measured("decode", folder, outs[-1]), measured("prepare", folder, outs[-1])
        ratios.append(whole["cpu_s"] / decode["cpu_s"])
        peaks.append(whole["peak_gb"])
    measured("overlay", folder, outs[-1])
    measured("raster", folder, outs[-1])
    print(f"prepare / decode = {statistics.median(ratios):.2f} of processor time, peak {max(peaks):.2f} GB")
    for out in outs:
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
            "peak_gb": after.ru_maxrss * 1024 / 1e9,
        }
        print(json.dumps({name: round(value, 2) for name, value in used.items()}))
    else:
        main()
