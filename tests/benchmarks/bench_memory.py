"""How much memory an epoch of 50,000 samples takes, and many epochs: it must not grow with the dataset, nor with time.

    python -m tests.benchmarks.bench_memory [--samples 50000] [--remote]
    python -m tests.benchmarks.bench_memory --epochs 200 [--samples 1024]

The samples are synthetic; their shards are hard links to a few that are built, so the disk holds a few
hundred MB while the loader sees 15 GB. With --remote the shards are downloaded into memory, from a web
server on this machine, instead of mapped.
Prints the largest resident set beside the bound: (window + prefetch) shards and 300 MB.

With --epochs, a small root is streamed so often from Ceph's gateway (as the tests start it), and the memory that
belongs to this process alone is taken after every epoch: its slope by least squares, after the first quarter, with
the standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.formats import parquet
from reben_cloud.formats.tar import shard_bytes
from reben_cloud.root import layout
from reben_cloud.root.manifest import Manifest
from reben_cloud.stream import RawLoader
from tests.benchmarks.bench_loader import make_root
from tests.benchmarks.bench_s3 import upload
from tests.conftest import ceph
from tests.webserver import serve

SHARD = 256
MODALITIES = ("s2", "s1", "map")


def repeat_root(root: Path, target: Path, samples: int) -> Path:
    """A root whose train shards are the full train shards of `root`, over and over."""
    manifest = json.loads((root / "manifest.json").read_text())
    table = pq.read_table(root / "patches.parquet")
    num_full = manifest["groups"]["train"]["num_samples"] // SHARD
    shard = table.column("reben:shard")
    train = pc.equal(table.column("reben:shard_group").cast(pa.string()), "train")
    table = table.filter(pc.and_(train, pc.less(shard, num_full)))
    copies = -(-samples // table.num_rows)
    position = table.column_names.index("reben:shard")
    tables, objects = [], []
    known = {row["path"]: row for row in pq.read_table(root / "objects.parquet").to_pylist()}
    for copy in range(copies):
        moved = pc.add(table.column("reben:shard"), pa.scalar(copy * num_full, pa.int32()))
        tables.append(table.set_column(position, "reben:shard", moved))
        for number in range(num_full):
            for modality in MODALITIES:
                old = layout.shard("train", modality, number)
                new = layout.shard("train", modality, copy * num_full + number)
                (target / new).parent.mkdir(parents=True, exist_ok=True)
                os.link(root / old, target / new)
                objects.append({**known[old], "path": new})
    pq.write_table(pa.concat_tables(tables), target / "patches.parquet", row_group_size=16_384)
    schema = pq.read_schema(root / "objects.parquet")
    pq.write_table(pa.Table.from_pylist(objects, schema=schema), target / "objects.parquet")
    num_samples = copies * table.num_rows
    manifest["num_patches"] = num_samples
    manifest["groups"] = {"train": {"num_samples": num_samples, "num_shards": copies * num_full}}
    digest = hashlib.sha256((target / "objects.parquet").read_bytes())
    manifest["objects_sha256"] = digest.hexdigest()
    with (target / "patches.parquet").open("r+b") as file:
        parquet.add_chunk_sums(file)
        manifest["patches_parquet"] = parquet.Seal.of(file).to_json()
    (target / "manifest.json").write_bytes(Manifest(manifest).to_bytes())
    return target


def measure(root: str) -> None:
    """One epoch in this process, and what it took."""
    dataset = rc.open(root)
    loader = RawLoader(dataset.search(), batch_size=64)
    process, largest, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            largest[0] = max(largest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    count = sum(len(batch["index"]) for batch in loader)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    shards = loader._resident
    bound = shards * sum(shard_bytes(REBEN.modality(m), SHARD) for m in MODALITIES) + 300e6
    how = "mapped" if dataset.store.is_local else "downloaded"
    print(
        f"{count:,} samples ({how}) in {seconds:.1f} s: largest resident set "
        f"{largest[0] / 1e6:,.0f} MB, bound for {shards} shards {bound / 1e6:,.0f} MB: "
        f"{'kept' if largest[0] <= bound else 'BROKEN'}"
    )


def measure_epochs(root: str, epochs: int) -> None:
    """Many epochs of one loader in this process, and how its memory went."""
    selection = rc.open(root).search()
    loader = RawLoader(selection, batch_size=64)
    process = psutil.Process()
    memory, count, start = [], 0, time.perf_counter()
    for epoch in range(epochs):
        count += sum(len(batch["index"]) for batch in loader)
        memory.append(process.memory_full_info().uss / 1e6)
        if sys.stderr.isatty() or epoch % 20 == 19:
            print(f"epoch {epoch + 1} of {epochs}: {memory[-1]:,.0f} MB", file=sys.stderr)
    seconds = time.perf_counter() - start
    settled = np.array(memory[epochs // 4 :])
    (slope, _), covariance = np.polyfit(np.arange(len(settled)), settled, 1, cov=True)
    print(
        f"{epochs} epochs, {count:,} samples ({loader.stats().bytes_read / 1e9:,.1f} GB) in {seconds:,.0f} s: "
        f"{settled.min():,.0f} to {settled.max():,.0f} MB, slope {slope * 1e3:+.1f} kB an epoch, "
        f"standard error {covariance[0, 0] ** 0.5 * 1e3:.1f}; first epoch {memory[0]:,.0f} MB"
    )


def measure_on_s3(root: Path, epochs: int) -> None:
    """`measure_epochs` in a process of its own, from an S3 server with a copy of the root."""
    with ceph() as server:
        client = server.client()
        client.create_bucket(Bucket="bench")
        upload(client, root, "root")
        command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--epochs", str(epochs)]
        environment = {**os.environ, **server.environment}
        subprocess.run([*command, "--measure", "s3://bench/root"], check=True, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="50,000 by default, and 1,024 with --epochs")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/reben-bench"))
    parser.add_argument("--remote", action="store_true")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return (
            measure_epochs(arguments.measure, arguments.epochs)
            if arguments.epochs
            else measure(arguments.measure)
        )
    arguments.dir.mkdir(parents=True, exist_ok=True)
    if arguments.epochs:
        samples = arguments.samples or 1024
        return measure_on_s3(make_root(arguments.dir / f"of-{samples}", samples), arguments.epochs)
    small = make_root(arguments.dir, 4096).resolve()
    target = Path(tempfile.mkdtemp(prefix="repeated-", dir=small.parent))
    try:
        url = str(repeat_root(small, target, arguments.samples or 50_000))
        # In a process of its own: what made the root, or serves it, must not count.
        command = [sys.executable, "-m", "tests.benchmarks.bench_memory", "--measure"]
        if not arguments.remote:
            subprocess.run([*command, url], check=True)
        else:
            with serve(target) as address:
                subprocess.run([*command, address], check=True)
    finally:
        shutil.rmtree(target)
    return None


if __name__ == "__main__":
    main()
