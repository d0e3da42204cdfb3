"""What layers cost: a batch with a layer beside the same bytes within the root, and texts joined to the whole catalog.

    python tests/benchmarks/bench_layers.py stream [--patches 2000]
    python tests/benchmarks/bench_layers.py join METADATA... [--patches 464044]

``stream`` builds a root of synthetic patches, an elevation layer beside it, and a second root that holds the same
elevation as a modality of its own. Epochs are alternated, and medians shown; the floor reads the files of both
modalities once from the page cache, without checksums. Processor time stands beside wall time, which says little on a
shared machine.

``join`` makes a file of the exact columns and counts of BigEarthNet.txt, with invented texts, for the patches of the
official metadata, and measures `write_table` in a process of its own: seconds and peak memory. The floor decodes the
file once.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.schema import TensorSpec
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader

ROUNDS = 15


def stream(given: argparse.Namespace) -> None:
    """Epochs with and without an elevation layer, and with the same within the root."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(make_plan(*open_source(f"synthetic:{given.patches}"), open_store(folder / "root")))
        ds = rc.open(folder / "root")
        heights = np.add.outer(np.arange(120), np.arange(120)).astype(np.int16)
        rc.write_layer(
            folder / "layer",
            ds,
            name="elevation",
            tensors=TensorSpec(name="dem", shape=(120, 120), dtype="int16", pixel_m=10),
            patches=((patch_id, heights + row % 99) for row, patch_id in enumerate(ds.selection.patch_ids)),
        )
        both = rc.open(folder / "root", layers=[folder / "layer"])
        both.search().export_lmdb(folder / "lmdb", modalities=["s2", "elevation"])
        build(make_plan(*open_source(str(folder / "lmdb")), open_store(folder / "within")))
        within = rc.open(folder / "within")
        loaders = {
            "s2 alone": RawLoader(ds.search(), modalities=["s2"], batch_size=64),
            "s2 and the layer": RawLoader(both.search(), modalities=["s2", "elevation"], batch_size=64),
            "the same within the root": RawLoader(
                within.search(), modalities=["s2", "elevation"], batch_size=64
            ),
        }
        works: dict[str, Callable[[], object]] = {
            name: lambda loader=loader: sum(len(batch["index"]) for batch in loader)  # type: ignore[misc]
            for name, loader in loaders.items()
        }
        shards = [
            path
            for part in ("s2", "elevation")
            for path in (folder / "within").glob(f"shards/*/{part}/*.tar")
        ]
        memory = bytearray(1 << 20)  # stays in the cache: what is measured is the kernel's copy alone
        works["floor: the files read once"] = lambda: _read(shards, memory)
        _alternate(works, given.patches)


def _read(paths: list[Path], memory: bytearray) -> None:
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def _alternate(works: dict[str, Callable[[], object]], count: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if turn:  # the first round warms
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(f"{count:,} patches, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, rounds in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:28} {wall / count * 1e6:7.1f} us a patch, {cpu / count * 1e6:7.1f} us of processor time"
        )
    # Of the same round, so that what else runs on the machine is the same for both.
    pairs = zip(times["s2 and the layer"], times["the same within the root"], strict=True)
    ratios = [beside[1] / within[1] for beside, within in pairs]
    print(
        f"the layer beside / within the root: {statistics.median(ratios):.2f} of processor time, by rounds of both"
    )


def join(given: argparse.Namespace) -> None:
    """Texts of the exact form of BigEarthNet.txt, joined to the catalog of the official metadata."""
    from reben_cloud.bigearthnet.official import read_official
    from tests.bigearthnet_txt import write_texts

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts = folder / "BigEarthNet.txt.parquet"
        write_texts(texts, read_official(given.metadata), num_patches=given.patches)
        command = [sys.executable, "-m", "reben_cloud.cli", "catalog", *given.metadata, str(folder / "root")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        start = time.perf_counter()
        for group in range(pq.read_metadata(texts).num_row_groups):
            pq.ParquetFile(texts).read_row_group(group)
        print(f"floor: decoded once           {time.perf_counter() - start:6.1f} s")
        code = (
            "import sys, reben_cloud as rc; "
            "l = rc.write_table(sys.argv[3], rc.open(sys.argv[1]), name='txt', table=sys.argv[2]); "
            "print(l.summary())"
        )
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        names = [str(folder / "root"), str(texts), str(folder / "layer")]
        done = subprocess.run(
            ["/usr/bin/time", "-f", "peak memory %M kB", sys.executable, "-c", code, *names],
            check=True,
            capture_output=True,
            text=True,
        )
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        print(
            f"write_table                   {time.perf_counter() - start:6.1f} s, {cpu:.1f} s of processor time"
        )
        print(done.stdout, done.stderr, sep="")
        ds = rc.open(folder / "root", layers=[folder / "layer"])
        start = time.perf_counter()
        drawn = ds.search().with_rows("txt", where="type = 'captioning'", columns=["input", "output"])
        print(f"with_rows of all captions     {time.perf_counter() - start:6.1f} s, {len(drawn):,} patches")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("stream")
    one.add_argument("--patches", type=int, default=2000)
    one.set_defaults(run=stream)
    one = parts.add_parser("join")
    one.add_argument("metadata", nargs="+")
    one.add_argument("--patches", type=int, default=464_044)
    one.set_defaults(run=join)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
