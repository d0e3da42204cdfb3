"""What is fetched of a full-size product behind a STAC API: for a box of 12 km, for the same again, and for all of it.

    python tests/benchmarks/bench_items.py [FOLDER]

Makes the twelve bands and the scene classification of a tile as cloud-optimised GeoTIFFs (880 MB, some minutes, kept in
FOLDER) and serves them on this machine. Prints bytes, requests, seconds, processor time (the server's is in it) and the
peak of memory of each.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from reben_cloud import grid
from reben_cloud.bigearthnet.bands import BANDS
from tests.commands import invoke
from tests.items import COLOURS, degrees, serve_api, write_cog
from tests.scenes import BANDS_S2, KENYA, make_countries, make_world_raster

SIDE_M = 109_800


def pixels_of(band, pixel_m):
    """Fields of 30 pixels with noise, which compress like an image; vegetation everywhere of the classification."""
    side = SIDE_M // pixel_m
    if band == "SCL":
        return np.full((side, side), 4, np.uint8)
    rng = np.random.default_rng(len(band) + pixel_m)
    fields = rng.integers(300, 4_000, (side // 30 + 1,) * 2, dtype=np.int16).repeat(30, 0).repeat(30, 1)
    noise = rng.integers(-60, 60, (side, side), dtype=np.int16)
    return (fields[:side, :side] + noise).astype(np.uint16)


def make_item(folder, epsg, left, top):
    """The Item of a tile whose images lie in `folder`."""
    assets = {}
    for band in [*BANDS_S2, "SCL"]:
        pixel_m = 20 if band == "SCL" else BANDS[band].resolution_m
        if not (folder / f"{band}.tif").exists():
            write_cog(
                folder / f"{band}.tif", pixels_of(band, pixel_m), epsg=epsg, left=left, top=top, pixel_m=pixel_m,
                blocksize=512, overviews="NONE", level=1,
            )  # fmt: skip
        assets[COLOURS[band]] = {"href": f"{band}.tif", "proj:shape": [SIDE_M // 10] * 2}
    west, south, east, north = degrees(epsg, (left, top - SIDE_M, left + SIDE_M, top))
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": "S2A_37MBU", "collection": "made",
        "bbox": [west, south, east, north], "geometry": {"type": "Polygon", "coordinates": [corners]}, "links": [],
        "properties": {
            "datetime": "2024-01-15T07:52:00Z", "s2:product_uri": f"{KENYA}_20240101T000000.SAFE",
            "earthsearch:boa_offset_applied": True,
        },
        "assets": assets,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "reben-bench-items"
    )
    folder = parser.parse_args().folder
    epsg, left, top = grid.tile_corner(KENYA[39:44])
    if not (folder / "cover").exists():
        make_world_raster(
            folder / "cover" / "tile.tif", product=KENYA, side_m=SIDE_M, codes=[10, 20, 30, 40, 50]
        )
    make_countries(folder / "countries.geojson", {"Kenya": (33, -9, 45, 5)})
    box = degrees(epsg, (left + 40_000, top - 52_000, left + 52_000, top - 40_000))
    shutil.rmtree(folder / "cache", ignore_errors=True)
    (folder / "images").mkdir(exist_ok=True)
    with serve_api(folder / "images") as api:
        api.add(make_item(api.folder, epsg, left, top))
        total = sum(file.stat().st_size for file in api.folder.iterdir())
        for what, options in (("box", ["--bbox", *box]), ("box again", ["--bbox", *box]), ("whole tile", [])):
            api.reset()
            shutil.rmtree(folder / "out", ignore_errors=True)
            start, cpu = time.perf_counter(), time.process_time()
            done = invoke(
                "prepare", "--stac", api.url, "--collection", "made", *options, "--land-cover", folder / "cover",
                "--classes", "worldcover2021", "--countries", folder / "countries.geojson", "--any-country",
                "--out", folder / "out", "--cache-dir", folder / "cache",
            )  # fmt: skip
            assert done.exit_code == 0, done.exception
            patches = done.stdout.split("written now: ")[1].split(" of ")[0]
            print(
                f"{what}: {patches}, {api.sent_bytes / 1e6:.1f} of {total / 1e6:.0f} MB in {len(api.log)} requests, "
                f"{time.perf_counter() - start:.1f} s, {time.process_time() - cpu:.1f} s of processor, "
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most",
                flush=True,
            )
    shutil.rmtree(folder / "out")


if __name__ == "__main__":
    main()
