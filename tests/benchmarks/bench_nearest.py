"""How fast the nearest of all patches are found, beside FAISS' flat index and reading the vectors once.

    python tests/benchmarks/bench_nearest.py [--rows 549488] [--dims 768] [--queries 1] [--metadata FILE...]

Random vectors. With the official metadata files, ours is measured from a layer too: a catalog is made of them and the
vectors are written beside it, so that there are as many rows as patches; its floor reads the layer's file once. Ours
searches float16; `IndexFlatIP`, which is exact too, holds them as float32, normalised before the clock starts, in twice
the memory. The other floor is a sum over the bytes of the halves. Medians of alternating rounds, warm; processor time
beside them, because wall time on a shared machine says little. FAISS is left out where it is not installed
(tests/benchmarks/requirements.txt).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

import reben_cloud as rc
from reben_cloud.ranking.nearest import nearest

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=549_488)
    parser.add_argument("--dims", type=int, default=768)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--metadata", nargs="+", default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(given, Path(scratch))


def measure(given: argparse.Namespace, folder: Path) -> None:
    ds = catalog(given.metadata, folder / "root") if given.metadata else None
    given.rows = given.rows if ds is None else len(ds)
    rng = np.random.default_rng(0)
    vectors = np.empty((given.rows, given.dims), np.float16)
    for start in range(0, given.rows, 1 << 13):
        part = vectors[start : start + (1 << 13)]
        part[:] = rng.standard_normal(part.shape, np.float32) * 0.05
    queries = vectors[rng.integers(0, given.rows, given.queries)].astype(np.float32)
    # Whole numbers of the most bytes that a row's divide into: what is summed is what is read.
    words = vectors.reshape(-1)[: vectors.size // 4 * 4].view(np.uint64)

    works: dict[str, Callable[[], object]] = {
        "floor: the bytes once": lambda: words.sum(),
        "ours, float16": lambda: nearest(vectors, queries, given.k),
    }
    if ds is not None:
        begin = time.process_time()
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), given.dims)
        table = pa.table({"patch_id": ds.selection.patch_ids, "vector": column})
        rc.write_table(folder / "layer", ds, name="emb", table=table)
        file = folder / "layer" / "rows.parquet"
        print(
            f"written in {time.process_time() - begin:.1f} s of processor time: {file.stat().st_size:,} bytes"
        )
        selection = rc.open(folder / "root", layers=[folder / "layer"]).selection
        buffer = bytearray(1 << 25)
        works["floor: the layer's file"] = lambda: read(file, buffer)
        works["ours, from the layer"] = lambda: [selection.nearest(one, k=given.k) for one in queries]
        found = [selection.nearest(one, k=given.k).selection.rows.tolist() for one in queries]
        assert found == nearest(vectors, queries, given.k)[0].tolist()
    if importlib.util.find_spec("faiss"):
        import faiss

        unit = vectors.astype(np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        index = faiss.IndexFlatIP(given.dims)
        index.add(unit)
        del unit
        works["FAISS flat, float32"] = lambda: index.search(asked, given.k)
        same = (index.search(asked, given.k)[1] == nearest(vectors, queries, given.k)[0]).mean()
        print(f"{same:.0%} of the rows that FAISS finds, in its order")
    else:
        print("FAISS is left out: it is not installed (pip install faiss-cpu)")

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    print(
        f"{given.rows:,} x {given.dims}, {given.queries} queries, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for name, rounds in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        least = min(one for one, _ in rounds)
        print(f"{name:24} {wall:6.3f} s (at least {least:.3f}), {cpu:6.3f} s of processor time")


def catalog(metadata: list[str], root: Path) -> rc.Dataset:
    command = [sys.executable, "-m", "reben_cloud.cli", "catalog", *metadata, str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return rc.open(root)


def read(path: Path, buffer: bytearray) -> None:
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


if __name__ == "__main__":
    main()
