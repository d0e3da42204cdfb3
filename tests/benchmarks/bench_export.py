"""How fast an export is, beside the floors that it is measured against; all in one run.

    python tests/benchmarks/bench_export.py [--patches 3000] [--folder DIR] [--s3 s3://bucket/prefix]

Local: against writing as many bytes to one file, with fsync. S3 (``--s3``, credentials from the
``AWS_*`` variables; the root is copied there first): against GETs of the same shards by as many
threads, the bytes thrown away; and against the same GETs while as many bytes are written to one file,
with fsync. rico-hdl's way: the TIFFs of the same patches decoded with rasterio,
encoded with safetensors, put with lmdb, one core. Readers: the same patches in the same random order
through our loader and through ConfigILM's reader, to stacked float32 images of 14 bands. Each figure
is the best of `--repeats`; caches are warm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import rasterio
from safetensors.numpy import save

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

MODALITIES = ("s2", "s1")
THREADS = 6
TIFF_PATCHES = 200


def best(work: Callable[[], Any], repeats: int) -> float:
    """Shortest wall time of some runs, seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def write_one_file(path: Path, nbytes: int) -> None:
    """As many bytes, from memory, in pieces of 16 MB, with fsync."""
    piece = memoryview(random.Random(0).randbytes(16 * 2**20))
    path.unlink(missing_ok=True)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, nbytes, len(piece)):
            file.write(piece[: nbytes - start])
        os.fsync(file.fileno())


def export(selection: Any, path: Path, **options: Any) -> None:
    """A new export."""
    shutil.rmtree(path, ignore_errors=True)
    selection.export_lmdb(path, threads=THREADS, **options)


def get_all(store: Any, paths: list[str]) -> None:
    """Fetch the objects and drop them."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda path: store.get(path).nbytes, paths):
            pass


def get_and_write(store: Any, paths: list[str], path: Path, nbytes: int) -> None:
    """Fetch the objects and drop them, while as many bytes go to one file, with fsync."""
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write_one_file, path, nbytes)
        get_all(store, paths)
        written.result()


def as_rico_hdl(folders: Path, path: Path) -> int:
    """Decode, encode, put: the number of pairs."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    pairs = 0
    with lmdb.open(str(path), map_size=2**34) as env:
        for name in ("BigEarthNet-S1", "BigEarthNet-S2"):
            patches = sorted({file.parent for file in (folders / name).rglob("*.tif")})
            pairs = len(patches)
            for start in range(0, pairs, 512):
                with env.begin(write=True) as txn:
                    for patch in patches[start : start + 512]:
                        bands = {}
                        for file in sorted(patch.glob("*.tif")):
                            with rasterio.open(file) as image:
                                bands[file.stem.rsplit("_", 1)[-1]] = image.read(1)
                        txn.put(patch.name.encode(), save(bands))
    return pairs


def rico_hdl_rate(folders: Path, path: Path, repeats: int) -> float:
    """Pairs a second of rico-hdl's way, in a process of its own."""
    command = [sys.executable, __file__, "--rico-hdl-way", folders, path, "--repeats", str(repeats)]
    # rasterio makes a session for each file where it sees credentials, which takes longer than the file.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


CONFIGILM = """
import json, random, sys, time
from configilm.extra.DataSets.BENv2_DataSet import BENv2DataSet
folder, count = sys.argv[1], int(sys.argv[2])
data = BENv2DataSet({"images_lmdb": folder, "metadata_parquet": folder + "/metadata.parquet",
    "metadata_snow_cloud_parquet": folder + "/metadata_for_patches_with_snow_cloud_or_shadow.parquet"},
    img_size=(14, 120, 120), include_cloudy=True, include_snowy=True)
order = random.Random(0).sample(range(len(data)), count)
for number in order[:20]:
    data[number]
start = time.perf_counter()
for number in order:
    data[number]
print(count / (time.perf_counter() - start))
"""


def configilm_rate(folder: Path, count: int) -> float:
    """Patches a second of ConfigILM's reader, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests" / "support")}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONFIGILM, folder, str(count)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    ).stdout
    return float(output.split()[-1])


ORDER = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]


def loader_rate(folder: Path) -> float:
    """Patches a second of our loader in random order, to what ConfigILM gives: float32 [B, 14, 120, 120]."""
    from reben_cloud.bigearthnet.bands import ARRAYS

    loader = RawLoader(rc.open(folder).search(), batch_size=32, seed=0)
    out = np.empty((32, 14, 120, 120), np.float32)
    places = {band: 2 + number for number, band in enumerate(ORDER)}

    def epoch() -> int:
        count = 0
        for batch in loader:
            rows = len(batch["index"])
            out[:rows, :2] = batch["s1"]
            for array, factor in (("s2_10m", 1), ("s2_20m", 2), ("s2_60m", 6)):
                size = 120 // factor
                for number, band in enumerate(ARRAYS[array]):
                    target = out[:rows, places[band]].reshape(rows, size, factor, size, factor)
                    target[:] = batch[array][:, number, :, None, :, None]
            count += rows
        return count

    epoch()
    start = time.perf_counter()
    count = epoch()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "bench-export")
    parser.add_argument("--s3", help="where to copy the root to, s3://bucket/prefix")
    parser.add_argument("--rico-hdl-way", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rico_hdl_way:
        pairs = as_rico_hdl(*options.rico_hdl_way)
        print(pairs / best(lambda: as_rico_hdl(*options.rico_hdl_way), options.repeats))
        return
    folder, repeats = options.folder, options.repeats
    root = folder / f"root-{options.patches}"
    if not (root / "manifest.json").exists():
        source, official = open_source(f"synthetic:{options.patches}")
        build(make_plan(source, official, open_store(root), modalities=MODALITIES))
    from tests import official as tiffs

    folders = folder / "tiffs"
    if not folders.exists():
        tiffs.write_folders(folders, tiffs.table_of(TIFF_PATCHES, num_products=6))
    found: dict[str, float] = {}
    found["rico_hdl_way_patches_s"] = rico_hdl_rate(folders, folder / "rico", repeats)

    selection = rc.open(root).search()
    selection.columns(selection.table.names)
    out = folder / "lmdb"
    export(selection, out)
    nbytes = (out / "data.mdb").stat().st_size
    found["gigabytes"] = nbytes / 1e9
    found["local_floor_mb_s"] = nbytes / 1e6 / best(lambda: write_one_file(folder / "one", nbytes), repeats)
    found["local_export_mb_s"] = nbytes / 1e6 / best(lambda: export(selection, out), repeats)
    found["local_share"] = found["local_export_mb_s"] / found["local_floor_mb_s"]
    found["export_patches_s"] = len(selection) * found["local_export_mb_s"] / (nbytes / 1e6)
    (folder / "one").unlink()

    found["times_rico_hdl"] = found["export_patches_s"] / found["rico_hdl_way_patches_s"]

    found["configilm_patches_s"] = configilm_rate(out, min(1000, options.patches))
    found["loader_patches_s"] = loader_rate(out)
    found["times_configilm"] = found["loader_patches_s"] / found["configilm_patches_s"]

    if options.s3:
        store, here = open_store(options.s3), open_store(root)
        if not store.exists("manifest.json"):
            for path, _ in here.list():
                if not path.startswith("zarr"):
                    store.put(path, here.get(path))
        remote = rc.open(options.s3).search()
        remote.columns(remote.table.names)
        paths = [path for path, _ in store.list("shards")]
        size = sum(n for _, n in store.list("shards"))
        found["s3_floor_mb_s"] = size / 1e6 / best(lambda: get_all(store, paths), repeats)
        found["s3_and_write_floor_mb_s"] = (
            size / 1e6 / best(lambda: get_and_write(store, paths, folder / "one", nbytes), repeats)
        )
        (folder / "one").unlink()
        found["s3_export_mb_s"] = size / 1e6 / best(lambda: export(remote, out), repeats)
        found["s3_share"] = found["s3_export_mb_s"] / found["s3_floor_mb_s"]
        found["s3_and_write_share"] = found["s3_export_mb_s"] / found["s3_and_write_floor_mb_s"]
    print(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
