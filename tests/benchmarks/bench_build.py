"""How fast a root is built, against what decoding and compressing alone cost.

    python tests/benchmarks/bench_build.py [--patches 5000] [--folder DIR]

The data is synthetic (real ids, labels and footprints) in the official forms: GeoTIFF folders,
archives, a rico-hdl LMDB. The floor is imagecodecs decoding the same files from memory once, plus
the codecs compressing the same arrays and the digests that the format asks for. Rates are patches
a second of processor time of one core, and of wall time; caches are warm, and no memory is unused:
a virtual machine gives unused memory back to its host, and there a page's first touch costs eight
times what writing it does (measured: 2.0 and 0.25 ms a MB). A mapped LMDB counts as resident.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import imagecodecs
import lmdb
import pyarrow.parquet as pq
from numcodecs import Blosc

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import make_plan
from reben_cloud.build.tasks import stack_patches
from reben_cloud.formats import zarr
from reben_cloud.root import metadata
from reben_cloud.root.patch import key_of
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests import official  # noqa: E402 - found by the line above

METADATA = (
    Path(os.environ.get("REBEN_SHARED", REPOSITORY.parent / "shared")) / "data" / "bigearthnet_pipeline"
)
ALL_PATCHES = 549_488
MODALITIES = ("s2", "s1", "map")


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(Wall, processor) seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def make_data(folder: Path, num_patches: int) -> None:
    """The dataset in its three forms, once."""
    if (folder / "ready").exists():
        return
    names = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    table = metadata.read_official([METADATA / name for name in names]).slice(0, num_patches)
    official.write_folders(folder / "folders", table)
    official.write_archives(folder / "archives", table)
    source = SyntheticSource(table.num_rows)
    (folder / "lmdb" / "BENv2.lmdb").mkdir(parents=True)
    env = lmdb.open(str(folder / "lmdb" / "BENv2.lmdb"), map_size=table.num_rows * 400_000)
    with env.begin(write=True) as txn:
        for info in metadata.patch_infos(table):
            for modality, payload in source.read(info, MODALITIES).payloads.items():
                txn.put(key_of(REBEN.modality(modality), info).encode(), payload)
    env.close()
    pq.write_table(table, folder / "lmdb" / "metadata.parquet")
    (folder / "ready").touch()


def floors(folder: Path, sample: int = 500) -> dict[str, float]:
    """Processor seconds a patch that nothing can avoid: decoding with imagecodecs, compressing, digests."""
    source, table = open_source(folder / "folders")
    infos = list(metadata.patch_infos(table))[:sample]
    files = [
        path.read_bytes()
        for info in infos
        for pattern in (
            f"BigEarthNet-S2/*/{info.patch_id}/*.tif",
            f"BigEarthNet-S1/*/{info.s1_name}/*.tif",
            f"Reference_Maps/*/{info.patch_id}/*.tif",
        )
        for path in (folder / "folders").glob(pattern)
    ]
    assert len(files) == 15 * len(infos)
    patches = [source.read(info, MODALITIES) for info in infos]
    stacks = stack_patches(iter(patches), len(infos), list(zarr.PIXEL_ARRAYS))
    codec = Blosc("zstd", 3, Blosc.BITSHUFFLE)

    def decode() -> None:
        for data in files:
            imagecodecs.tiff_decode(data)

    def compress() -> None:
        for stack in stacks.values():
            for patch in stack:
                google_crc32c.value(codec.encode(patch))

    encoded = b"".join(codec.encode(patch) for stack in stacks.values() for patch in stack)
    payloads = b"".join(p for patch in patches for p in patch.payloads.values())

    def digest() -> None:
        hashlib.sha256(encoded).digest()
        hashlib.sha256(payloads).digest()

    return {
        name: min(timed(work)[1] for _ in range(3)) / len(infos)
        for name, work in (("decode", decode), ("compress", compress), ("digest", digest))
    }


def fill_memory(folder: Path) -> None:
    """Have the kernel use all memory that is free, for the cache of a file."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemFree")) << 10
    block = os.urandom(1 << 24)
    with open(folder / "filler", "ab") as file:
        for _ in range(min(free, shutil.disk_usage(folder).free // 2) // len(block)):
            file.write(block)


def run_build(source: Path, root: Path, *options: str, scratch: Path | None = None) -> dict[str, float]:
    """Wall and processor seconds, and peak memory of a process, of a build by the command in a fresh process."""
    fill_memory(root.parent)
    for path in source.rglob("*"):
        if path.is_file():
            path.read_bytes()
    more = ["--scratch", str(scratch)] if scratch else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "reben_cloud.cli", "build", str(source), str(root), *options, *more],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": after.ru_maxrss / 1024}


def write_floor(folder: Path, num_patches: int) -> float:
    """Seconds that writing the root's tasks takes when reading costs nothing: payloads are in memory."""
    source, table = open_source(folder / "lmdb")
    infos = list(metadata.patch_infos(table))[: min(num_patches, 1024)]
    patches = {info.patch_id: source.read(info, MODALITIES) for info in infos}

    class InMemory(SyntheticSource):
        def read(self, info: Any, modalities: Any) -> Any:
            return patches[info.patch_id]

    with tempfile.TemporaryDirectory(dir=folder) as place:
        rows = table.slice(0, len(infos))
        plan = make_plan(InMemory(len(infos)), rows, open_store(place))
        from reben_cloud.build.tasks import run_job

        # Nor are payloads read from the shards again.
        jobs = [replace(job, places=None) for job in plan.jobs(plan.tasks)]
        wall, _ = timed(lambda: [run_job(job) for job in jobs])
    return wall / len(infos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "reben-bench-build")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder, count = given.folder / str(given.patches), given.patches
    folder.mkdir(parents=True, exist_ok=True)
    make_data(folder, count)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        roots = Path(place)
        runs = {
            "folders": run_build(folder / "folders", roots / "1"),
            "folders, 2 processes": run_build(folder / "folders", roots / "2", "--workers", "2"),
            "archives": run_build(folder / "archives", roots / "3", scratch=roots / "scratch"),
            "LMDB": run_build(folder / "lmdb", roots / "4"),
        }
    # After the builds: a child's peak memory starts at its parent's.
    floor = floors(folder)
    both = floor["decode"] + floor["compress"]
    print(f"floor, ms a patch: {', '.join(f'{k} {v * 1e3:.2f}' for k, v in floor.items())}")
    print(f"floor (decode + compress): {1 / both:,.0f} patches/s of a core")
    for name, run in runs.items():
        print(
            f"{name:22} {count / run['wall_s']:7,.0f} patches/s, {count / run['cpu_s']:7,.0f} a core of processor time "
            f"({count / run['cpu_s'] * both:.0%} of the floor), peak {run['peak_mb']:,.0f} MB a process"
        )
    per_write = write_floor(folder, count)
    share = count / runs["LMDB"]["wall_s"] * per_write
    print(f"write floor (payloads in memory): {1 / per_write:,.0f} patches/s; LMDB at {share:.0%} of it")
    print(f"two processes: {runs['folders']['wall_s'] / runs['folders, 2 processes']['wall_s']:.2f} x one")
    print(f"archives: {runs['folders']['cpu_s'] / runs['archives']['cpu_s']:.0%} of folders")
    per_patch = runs["folders"]["cpu_s"] / count
    for cores in (os.cpu_count() or 1, 32):
        hours = ALL_PATCHES * per_patch / cores / 3600
        rate = ALL_PATCHES * 530_000 / (hours * 3600) / 1e6
        print(
            f"all {ALL_PATCHES:,} patches from folders on {cores} cores: {hours:.2f} h at {rate:,.0f} MB/s of writing; "
            "bound by processor time, half of it compression, where the store takes that much"
        )
    if given.json:
        given.json.write_text(json.dumps({"floor": floor, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
