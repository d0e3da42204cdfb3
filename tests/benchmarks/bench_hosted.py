"""A hosted LMDB streamed through its index, beside bare range GETs of the same bytes and reading it from front to back.

    python -m tests.benchmarks.bench_hosted [--patches 2000] [--chosen 1000] [--rounds 5] [--latency 0.05]
        [--fetch-threads 8] [--lanes 8]

The hub is a process of its own on this machine. Medians of interleaved rounds: chosen patches (a seeded sample) by the
loader, and by GETs of the same ranges with as many threads; all patches by the loader, and the same span of the file in
pieces of 8 MiB; then the time from the start of an interpreter to the first batch of a search, with torch, and
that of importing torch alone. A loader's first epoch touches its memory for the first time: it is told apart, and the
rounds are later epochs of the same loader, as GETs have their memory from earlier rounds. Beside each rate stand the
CPU seconds of this process and of the hub: with few cores, both want the same ones, which no distant hub does.
`--fetch-threads` and `--lanes` (fewer make another order, and less of a small selection resident) are for trying
other ways; docs/comparisons.md says what came of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.root import layout
from reben_cloud.root.references import plan_spans
from reben_cloud.root.selection import Selection
from reben_cloud.sources.synthetic import SyntheticSource, synthetic_metadata
from reben_cloud.store import Store, open_store
from reben_cloud.stream import RawLoader

BATCH, PIECE_BYTES, CONNECTIONS = 64, 8 * 1024 * 1024, 32
MODALITIES = ("s2", "s1")
FIRST_BATCH = """
import sys, torch
import reben_cloud as rc
from reben_cloud.torch import StreamLoader
next(iter(StreamLoader(rc.open(sys.argv[1]).search(split="train", limit=64), batch_size=64)))
"""


def loaded(selection: Selection, *, fetch_threads: int, lanes: int) -> Callable[[], int]:
    """Bytes that an epoch reads, one epoch of a loader after another."""
    loader = RawLoader(
        selection, batch_size=BATCH, modalities=MODALITIES, fetch_threads=fetch_threads, lanes=lanes
    )

    def epoch() -> int:
        before = loader.stats().bytes_read
        for _ in loader:
            pass
        return loader.stats().bytes_read - before

    return epoch


def bare(store: Store, path: str, selection: Selection) -> Callable[[], int]:
    """The ranges that the loader asks for, by as many connections, and nothing else done with them."""
    spans = []
    for name in MODALITIES:
        _, offset, nbytes = layout.place_columns(name)
        table = selection.columns([offset, nbytes])
        starts = table.column(offset).to_numpy().astype(np.int64)
        spans += plan_spans(starts, int(table.column(nbytes)[0].as_py()))

    def epoch() -> int:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return sum(pool.map(lambda span: store.get_range(path, span.start, span.nbytes).nbytes, spans))

    return epoch


def front_to_back(store: Store, path: str) -> Callable[[], int]:
    """The whole file in pieces."""
    size = store.head(path)

    def epoch() -> int:
        with ThreadPoolExecutor(8) as pool:
            pieces = pool.map(
                lambda at: store.get_range(path, at, PIECE_BYTES).nbytes, range(0, size, PIECE_BYTES)
            )
            return sum(pieces)

    return epoch


class Rate(NamedTuple):
    """How fast a way was; medians."""

    mb_s: float
    cpu_s: float
    """CPU seconds of this process in a round."""
    hub_s: float
    """And of the hub."""

    def __str__(self) -> str:
        return f"{self.mb_s:,.0f} MB/s (CPU {self.cpu_s:.2f} s, hub {self.hub_s:.2f} s)"


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(way: Callable[[], int], hub: int) -> Rate:
    """One round of a way."""
    start, here, there = time.perf_counter(), time.process_time(), cpu_seconds(hub)
    nbytes = way()
    wall_s = time.perf_counter() - start
    return Rate(nbytes / 1e6 / wall_s, time.process_time() - here, cpu_seconds(hub) - there)


def compare(
    name: str, load: Callable[[], int], other: str, way: Callable[[], int], *, rounds: int, hub: int
) -> None:
    """Print the rates of a loader and of another way, in interleaved rounds."""
    first = measured(load, hub)
    found = [(measured(load, hub), measured(way, hub)) for _ in range(rounds)]
    ours, theirs = (
        Rate(*map(statistics.median, zip(*some, strict=True))) for some in zip(*found, strict=True)
    )
    ratio = statistics.median(a.mb_s / b.mb_s for a, b in found)
    print(f"{name}: {ours}, {other} {theirs}: {ratio:.2f}; first epoch {first}")


def seconds(code: str, *arguments: str) -> float:
    """What an interpreter takes for some code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def make_lmdb(folder: Path, num_patches: int) -> Path:
    """An LMDB of synthetic patches, its metadata beside it."""
    table = synthetic_metadata(num_patches)
    build(make_plan(SyntheticSource(num_patches, MODALITIES), table, open_store(folder / "root")))
    rc.open(folder / "root").search().export_lmdb(folder / "lmdb")
    return folder / "lmdb"


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--chosen", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds that the hub waits before each answer"
    )
    parser.add_argument("--fetch-threads", type=int, default=8)
    parser.add_argument("--lanes", type=int, default=8)
    options = parser.parse_args()
    how = {"fetch_threads": options.fetch_threads, "lanes": options.lanes}
    with tempfile.TemporaryDirectory() as folder:
        lmdb = make_lmdb(Path(folder), options.patches)
        command = [sys.executable, "-m", "tests.hub", str(lmdb / "data.mdb"), str(options.latency)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
            assert hub.stdout is not None
            assert hub.stdin is not None
            url = f"{hub.stdout.readline().strip()}/datasets/owner/name/resolve/main"
            index_hosted(url, f"{folder}/index", metadata_paths=sorted(lmdb.glob("metadata*.parquet")))
            dataset, store = rc.open(f"{folder}/index"), open_store(url)
            chosen = dataset.search(sample=options.chosen)
            compare(
                f"{options.chosen:,} chosen patches",
                loaded(chosen, **how),
                "bare GETs",
                bare(store, "data.mdb", chosen),
                rounds=options.rounds,
                hub=hub.pid,
            )
            compare(
                f"all {options.patches:,} patches",
                loaded(dataset.search(), **how),
                "front to back",
                front_to_back(store, "data.mdb"),
                rounds=options.rounds,
                hub=hub.pid,
            )
            times: dict[str, list[float]] = {"torch": [], "first batch": []}
            for _ in range(options.rounds):
                times["torch"].append(seconds("import torch"))
                times["first batch"].append(seconds(FIRST_BATCH, f"{folder}/index"))
            torch, first = map(statistics.median, times.values())
            print(
                f"to the first batch: {first:.2f} s, importing torch alone {torch:.2f} s: {first - torch:+.2f} s"
            )
            hub.stdin.close()


if __name__ == "__main__":
    main()
