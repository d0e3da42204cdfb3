"""How fast the loader is beside its peers: the same samples, batches of 64, shuffled, page cache warm.

    pip install 'reben-cloud[torch,lmdb]' -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.bench_loader [--samples 4096] [--rounds 5] [--dir /tmp/reben-bench] [--only NAME ...]
        [--busy] [--metadata metadata.parquet metadata_for_patches_with_snow_cloud_or_shadow.parquet]

More than 4,553 samples need the official metadata files for their ids.

Each peer gets the samples in its own format (three payloads a sample, so nobody parses bands), its best
known configuration, a zero-copy decode and batch buffers that are reused: what is compared is reading
and handing over. Rounds are interleaved, so that a noisy neighbour hits all; medians and ratios are
printed, and the floors beside them: a random gather of the same records from memory with NumPy and memcpy.
Threads are named where there are several. CPU is the processor time of the whole process, which a busy machine distorts
less than rates; with --busy, two processes that do nothing but compute run beside.
DataLoader workers are left out for everybody: above 3,000 samples/s their hand-over makes all loaders slower.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reben_cloud.stream import Layout
from tests.benchmarks import loader_peers as peers
from tests.benchmarks.loader_data import BATCH, SHARD, Buffers, make_once, make_root, payloads_of

# -- the loaders: each returns a function that runs one epoch and says how many samples came ------------


def reben(
    root: Path,
    folder: Path,
    *,
    floats: bool,
    threads: int = 2,
    layout: Layout = "arrays",
    memory_bytes: int = 0,
    batch_size: int = BATCH,
) -> Callable[[], int]:
    import reben_cloud as rc
    from reben_cloud.torch import ModelInput, StreamLoader

    loader = StreamLoader(
        rc.open(root).search(),
        batch_size=batch_size,
        gather_threads=threads,
        modalities=("s2", "s1") if floats else ("s2", "s1", "map"),
        prefetch=32,  # all shards are open, as the peers have them
        layout=layout,
        memory_bytes=memory_bytes,
    )
    model_input = ModelInput("ALL", normalize=None)
    image = torch.empty(batch_size, 14, 120, 120)

    def epoch() -> int:
        count = 0
        for batch in loader:
            if floats:
                model_input(batch, out=image[: len(batch["index"])])
            count += len(batch["index"])
        return count

    return epoch


def reben_without_reading(
    root: Path, folder: Path, *, floats: bool, batch_size: int = BATCH
) -> Callable[[], int]:
    """All that the loader does but for reading payloads and comparing them: what its Python costs."""
    from reben_cloud.stream.payloads import InFile

    whole = reben(root, folder, floats=floats, batch_size=batch_size)

    def epoch() -> int:
        fill = InFile.fill
        InFile.fill = lambda self, numbers, slot, rows: None  # type: ignore[method-assign]
        try:
            return whole()
        finally:
            InFile.fill = fill  # type: ignore[method-assign]

    return epoch


def webdataset(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    import webdataset as wds

    def make(path: Path) -> None:
        with wds.ShardWriter(str(path / "%06d.tar"), maxcount=SHARD, verbose=0, mtime=0) as sink:
            for patch_id, payloads in payloads_of(root):
                sink.write({"__key__": patch_id, **{f"{m}.bin": p for m, p in payloads.items()}})

    urls = sorted(str(p) for p in make_once(folder / "wds", make).glob("*.tar"))
    buffers, count = Buffers(floats=floats), [0]

    def epoch() -> int:
        dataset = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False, seed=count[0]).shuffle(1000)
        count[0] += 1
        seen = 0
        for sample in dataset:
            buffers.add(s2=sample["s2.bin"], s1=sample["s1.bin"], map=sample["map.bin"])
            seen += 1
        return seen

    return epoch


def mosaicml(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    from streaming import MDSWriter, StreamingDataset

    def make(path: Path) -> None:
        columns = {"s2": "bytes", "s1": "bytes", "map": "bytes"}
        with MDSWriter(out=str(path), columns=columns, size_limit=80_000_000, exist_ok=True) as out:
            for _, payloads in payloads_of(root):
                out.write(payloads)

    path = make_once(folder / "mds", make)
    dataset = StreamingDataset(local=str(path), shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
    buffers = Buffers(floats=floats)

    def epoch() -> int:
        seen = 0
        for sample in dataset:
            buffers.add(**sample)
            seen += 1
        return seen

    return epoch


def litdata(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    from litdata import StreamingDataset
    from litdata.streaming.cache import Cache

    def make(path: Path) -> None:
        cache = Cache(str(path), chunk_bytes="80MB")
        for index, (_, payloads) in enumerate(payloads_of(root)):
            cache._add_item(index, {m: bytes(p) for m, p in payloads.items()})
        cache.done()
        cache.merge()

    path = make_once(folder / "lit", make)
    options: dict[str, Any] = {"shuffle": True, "drop_last": False}
    try:
        dataset = StreamingDataset(str(path), batch_decode=0, **options)
    except TypeError:
        dataset = StreamingDataset(str(path), **options)
    buffers = Buffers(floats=floats)

    def epoch() -> int:
        seen = 0
        for sample in dataset:
            buffers.add(**sample)
            seen += 1
        return seen

    return epoch


def _lmdb_folder(root: Path, folder: Path) -> tuple[Any, np.ndarray[Any, Any]]:
    import lmdb

    def make(path: Path) -> None:
        env = lmdb.open(str(path), map_size=4 << 30)
        for i, (_, payloads) in enumerate(payloads_of(root)):
            with env.begin(write=True) as txn:
                for m, p in payloads.items():
                    txn.put(f"{i:08d}-{m}".encode(), p)
        env.close()

    path = make_once(folder / "lmdb", make)
    global _lmdb
    if _lmdb is None:
        _lmdb = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
    return _lmdb, np.arange(_lmdb.stat()["entries"] // 3)


_lmdb: Any = None


def lmdb_zero_copy(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    env, numbers = _lmdb_folder(root, folder)
    buffers, rng = Buffers(floats=floats), np.random.default_rng(0)
    modalities = ("s2", "s1") if floats else ("s2", "s1", "map")

    def epoch() -> int:
        with env.begin(buffers=True) as txn:
            for i in rng.permutation(numbers).tolist():
                key = f"{i:08d}"
                buffers.add(**{m: txn.get(f"{key}-{m}".encode()) for m in modalities})
        return len(numbers)

    return epoch


def lmdb_safetensors(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    """As ConfigILM reads: bytes out of the database, decoded by the safetensors library, stacked."""
    from safetensors.numpy import load

    env, numbers = _lmdb_folder(root, folder)
    buffers, rng = Buffers(floats=floats), np.random.default_rng(0)

    def epoch() -> int:
        from reben_cloud.bigearthnet.bands import ARRAYS

        for i in rng.permutation(numbers).tolist():
            with env.begin() as txn:
                tensors = {}
                for m in ("s2", "s1", "map"):
                    tensors.update(load(txn.get(f"{i:08d}-{m}".encode())))
            row = buffers.row
            for array, names in ARRAYS.items():
                for position, name in enumerate(names):
                    buffers.arrays[array][row, position] = tensors[name]
            buffers.arrays["map"][row] = tensors["Data"]
            buffers.add()
        return len(numbers)

    return epoch


def tensorstore_zarr(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    """Whole Zarr shards of our stores, decoded by tensorstore, shuffled in a window of four."""
    import tensorstore as ts

    names = {"s2_10m": "s2_10m", "s2_20m": "s2_20m", "s2_60m": "s2_60m", "s1": "s1", "reference_map": "map"}
    stores = []
    for product in sorted(root.glob("zarr/*.zarr")):
        arrays = {
            out: ts.open(
                {"driver": "zarr3", "kvstore": f"file://{product}/{name}/"}, read=True, open=True
            ).result()
            for name, out in names.items()
        }
        stores.extend((arrays, i) for i in range(0, arrays["map"].shape[0], SHARD))
    buffers, rng = Buffers(floats=floats), np.random.default_rng(0)

    def epoch() -> int:
        seen = 0
        order = rng.permutation(len(stores)).tolist()
        for first in range(0, len(order), 4):
            futures = [
                {n: a[i : min(i + SHARD, a.shape[0])].read() for n, a in arrays.items()}
                for arrays, i in (stores[j] for j in order[first : first + 4])
            ]
            shards = [{n: f.result() for n, f in shard.items()} for shard in futures]
            places = [(s, i) for s, shard in enumerate(shards) for i in range(len(shard["map"]))]
            for p in rng.permutation(len(places)).tolist():
                s, i = places[p]
                for n in names.values():
                    buffers.arrays[n][buffers.row] = shards[s][n][i]
                buffers.add()
                seen += 1
        return seen

    return epoch


def floor_take(
    root: Path, folder: Path, *, floats: bool, buffers: int = 1, threads: int = 1
) -> Callable[[], int]:
    """The floor: records in anonymous memory, gathered at random by np.take(out=) into one buffer.

    One buffer stays in the processor's cache. With as many in turn as a loader has that fills batches
    ahead and leaves the last ones alone, every batch goes to memory.
    """
    whole = _records_of(root)
    ring = [np.zeros((BATCH, whole.shape[1]), np.uint8) for _ in range(buffers)]
    rng = np.random.default_rng(0)

    def epoch() -> int:
        order = rng.permutation(len(whole))

        def fill(i: int) -> None:
            part, buffer = order[i : i + BATCH], ring[i // BATCH % buffers]
            np.take(whole, part, axis=0, out=buffer[: len(part)], mode="clip")

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(0, len(order), BATCH)))
        return len(order)

    return epoch


@functools.cache
def _records_of(root: Path) -> np.ndarray[Any, Any]:
    """All records, those of a sample side by side, in anonymous memory; once for all floors."""
    from reben_cloud.bigearthnet.reben import REBEN
    from reben_cloud.formats.tar import record_bytes, records

    sizes = [record_bytes(modality) for modality in REBEN.modalities]
    paths = {m.name: sorted(root.glob(f"shards/*/{m.name}/*.tar")) for m in REBEN.modalities}
    counts = [len(records(REBEN.modality("map"), path.read_bytes())) for path in paths["map"]]
    whole = np.empty((sum(counts), sum(sizes)), np.uint8)
    for modality, stop, size in zip(REBEN.modalities, np.cumsum(sizes), sizes, strict=True):
        for path, end, count in zip(paths[modality.name], np.cumsum(counts), counts, strict=True):
            whole[end - count : end, stop - size : stop] = records(modality, path.read_bytes())
    return whole


LOADERS: dict[str, Callable[..., Callable[[], int]]] = {
    "reben_cloud, 2 threads": reben,
    "reben_cloud, 1 thread": partial(reben, threads=1),
    "reben_cloud, records, 2 threads": partial(reben, layout="records"),
    "reben_cloud, records, 1 thread": partial(reben, layout="records", threads=1),
    "reben_cloud, kept, 2 threads": partial(reben, memory_bytes=1 << 40),
    "reben_cloud, records kept, 2 threads": partial(reben, layout="records", memory_bytes=1 << 40),
    "reben_cloud, nothing read": reben_without_reading,
    "reben_cloud, nothing read, 256": partial(reben_without_reading, batch_size=256),
    "reben_cloud, nothing read, 512": partial(reben_without_reading, batch_size=512),
    "mapped arrays, 2 threads": peers.mapped_arrays,
    "mapped arrays, checks, 2 threads": partial(peers.mapped_arrays, checks=True),
    "SPDL, mapped arrays, 2 threads": peers.spdl,
    "loaderx": peers.loaderx,
    "ArrayRecord": peers.array_record,
    "Lance, take": peers.lance,
    "webdataset, zero-copy": webdataset,
    "MosaicML streaming": mosaicml,
    "LitData, batch_decode=0": litdata,
    "LMDB, zero-copy": lmdb_zero_copy,
    "LMDB, safetensors library": lmdb_safetensors,
    "tensorstore, Zarr shards": tensorstore_zarr,
    "floor: np.take(out=)": floor_take,
    "floor: the same, 6 buffers": partial(floor_take, buffers=6),
    "floor: 6 buffers, 2 threads": partial(floor_take, buffers=6, threads=2),
}


BUSY = "while True: sum(range(10**6))"
"""What a busy process runs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/reben-bench"))
    parser.add_argument("--metadata", type=Path, nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--busy", action="store_true", help="two processes that compute run beside")
    parser.add_argument("--floats", action="store_true", help="float32 [B,14,120,120] instead of raw batches")
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    root = make_root(arguments.dir, arguments.samples, arguments.metadata)
    from reben_cloud.training.torchvision_ops import load_torchvision

    load_torchvision()  # two peers import it
    epochs: dict[str, Callable[[], int]] = {}
    for name, make in LOADERS.items():
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        if arguments.floats and (name.startswith(("floor", *peers.RAW_ONLY)) or "records" in name):
            continue
        try:
            epochs[name] = make(root, arguments.dir, floats=arguments.floats)
            count = epochs[name]()  # warm: page cache, mappings, buffers
            assert count == arguments.samples, f"{name} delivered {count} samples"
        except ImportError as error:
            print(f"NOT MEASURED: {name}, which is not installed ({error})", file=sys.stderr)
            epochs.pop(name, None)
    rates: dict[str, list[float]] = {name: [] for name in epochs}
    # CPU time is what a busy machine does not distort as much.
    costs: dict[str, list[float]] = {name: [] for name in epochs}
    beside = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 * arguments.busy)]
    for _ in range(arguments.rounds):
        for name, epoch in epochs.items():
            start, cpu = time.perf_counter(), time.process_time()
            count = epoch()
            rates[name].append(count / (time.perf_counter() - start))
            costs[name].append((time.process_time() - cpu) / count * 1e6)
    for process in beside:
        process.kill()
    first = "reben_cloud, 2 threads" if "reben_cloud, 2 threads" in rates else next(iter(rates))
    ours, our_cost = rates[first], costs[first]
    print(
        f"\n{'float32 [64,14,120,120]' if arguments.floats else 'raw s2+s1+map'}, {arguments.samples} samples, "
        f"median of {arguments.rounds} interleaved rounds{', two busy processes beside' * arguments.busy}"
    )
    for name, values in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        ratio = statistics.median(o / v for o, v in zip(ours, values, strict=True))
        cost = statistics.median(o / c for o, c in zip(our_cost, costs[name], strict=True))
        print(
            f"  {name:36s} {statistics.median(values):9,.0f} samples/s   ours = {ratio:5.2f}x   "
            f"({min(values):,.0f} - {max(values):,.0f})   {statistics.median(costs[name]):6,.0f} us CPU a sample, "
            f"ours = {cost:5.2f}x"
        )
    print(json.dumps({"samples_s": _rounded(rates), "cpu_us": _rounded(costs)}))


def _rounded(figures: dict[str, list[float]]) -> dict[str, list[int]]:
    return {name: [round(v) for v in values] for name, values in figures.items()}


if __name__ == "__main__":
    main()
