"""Peers of `bench_loader` that hold the samples as arrays or records of their own: raw batches only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from tests.benchmarks.loader_data import BATCH, Buffers, make_once, payloads_of

RAW_ONLY = ("mapped arrays", "SPDL", "loaderx", "ArrayRecord", "Lance")
"""How their names begin."""

MODALITIES = ("s2", "s1", "map")


def _arrays(root: Path, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The batch arrays of all samples, mapped, private to this process as torch wants them."""
    from reben_cloud.bigearthnet.reben import REBEN

    def make(path: Path) -> None:
        count = sum(1 for _ in payloads_of(root))
        out = {
            name: np.lib.format.open_memmap(path / f"{name}.npy", "w+", spec.dtype, (count, *spec.shape))
            for modality in REBEN.modalities
            for name, spec in modality.samples.items()
        }
        for row, (_, payloads) in enumerate(payloads_of(root)):
            for name in MODALITIES:
                for array, values in REBEN.modality(name).stack(payloads[name]).items():
                    out[array][row] = values

    path = make_once(folder / "npy", make)
    return {file.stem: np.load(file, mmap_mode="c") for file in sorted(path.glob("*.npy"))}


def _batches(order: np.ndarray[Any, Any]) -> Iterator[tuple[int, torch.Tensor]]:
    for number, start in enumerate(range(0, len(order), BATCH)):
        yield number, torch.from_numpy(order[start : start + BATCH])


def mapped_arrays(
    root: Path, folder: Path, *, floats: bool, threads: int = 2, checks: bool = False
) -> Callable[[], int]:
    """What somebody writes in fifteen lines: arrays in five files, mapped, gathered by threads some batches ahead.

    A file that is cut short ends the process, and nothing is compared; with `checks`, the xxh3 of each sample of
    each array is, after it was gathered, as the loader does.
    """
    from reben_cloud.torch.model_input import work_alone

    arrays = {name: torch.from_numpy(values) for name, values in _arrays(root, folder).items()}
    digest = xxhash.xxh3_64_intdigest
    sums = {n: [digest(row) for row in a.numpy()] for n, a in arrays.items()} if checks else {}
    ring = [
        {n: torch.empty((BATCH, *a.shape[1:]), dtype=a.dtype) for n, a in arrays.items()}
        for _ in range(threads + 2)
    ]
    rng, count = np.random.default_rng(0), len(arrays["map"])

    def fill(number: int, part: torch.Tensor) -> int:
        for name, array in arrays.items():
            out = ring[number % len(ring)][name][: len(part)]
            torch.index_select(array, 0, part, out=out)
            if checks:
                for row, sample in zip(out.numpy(), part.tolist(), strict=True):
                    assert digest(row) == sums[name][sample]
        return len(part)

    def epoch() -> int:
        seen, ahead = 0, deque[Future[int]]()
        with ThreadPoolExecutor(threads, initializer=work_alone) as pool:
            for number, part in _batches(rng.permutation(count)):
                ahead.append(pool.submit(fill, number, part))
                if len(ahead) > threads:
                    seen += ahead.popleft().result()
            return seen + sum(future.result() for future in ahead)

    return epoch


def spdl(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    """SPDL's pipeline of threads over the same mapped arrays."""
    from spdl.pipeline import PipelineBuilder

    arrays = {name: torch.from_numpy(values) for name, values in _arrays(root, folder).items()}
    ring = [
        {n: torch.empty((BATCH, *a.shape[1:]), dtype=a.dtype) for n, a in arrays.items()} for _ in range(8)
    ]
    rng, count = np.random.default_rng(0), len(arrays["map"])

    def fill(job: tuple[int, torch.Tensor]) -> int:
        number, part = job
        for name, array in arrays.items():
            torch.index_select(array, 0, part, out=ring[number % len(ring)][name][: len(part)])
        return len(part)

    def epoch() -> int:
        jobs = list(_batches(rng.permutation(count)))
        pipeline = (
            PipelineBuilder().add_source(jobs).pipe(fill, concurrency=2).add_sink(2).build(num_threads=2)
        )
        with pipeline.auto_stop():
            return sum(pipeline)

    return epoch


def loaderx(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    """loaderx over its raw containers, a stream for each array."""
    from loaderx import Allocator, Loader
    from loaderx.sampler import Sampler
    from loaderx.zrecord import DenseStore, DenseWriter

    arrays = _arrays(root, folder)

    def make(path: Path) -> None:
        for name, values in arrays.items():
            with DenseWriter(str(path / name), values.dtype, values.shape[1:], codec="raw") as writer:
                for start in range(0, len(values), 256):
                    writer.append(np.ascontiguousarray(values[start : start + 256]))

    path, count = make_once(folder / "loaderx", make), len(arrays["map"])
    allocator = Allocator("cpu")
    views = {name: [DenseStore(str(path / name)).bind(allocator)] for name in arrays}
    sampler = Sampler(count, BATCH, Sampler.Mode.CYCLIC, seed=0)
    loader = iter(Loader(views, sampler, transform=lambda shards: shards))

    def epoch() -> int:
        seen = 0
        while seen < count:
            batch = {name: torch.from_dlpack(values) for name, values in next(loader)[0].items()}
            seen += len(batch["map"])
        return seen

    return epoch


def array_record(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    """ArrayRecord, a record a group, not compressed: the reader's own threads read a batch."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    def make(path: Path) -> None:
        writer = ArrayRecordWriter(str(path / "records"), "group_size:1,uncompressed")
        for _, payloads in payloads_of(root):
            writer.write(b"".join(payloads[name] for name in MODALITIES))
        writer.close()

    path = make_once(folder / "array_record", make)
    reader = ArrayRecordReader(str(path / "records"), "readahead_buffer_size:0")
    buffers, rng, cuts = Buffers(floats=False), np.random.default_rng(0), _cuts()

    def epoch() -> int:
        order = rng.permutation(reader.num_records())
        for start in range(0, len(order), BATCH):
            for record in reader.read(order[start : start + BATCH].tolist()):
                whole = memoryview(record)
                buffers.add(**{name: whole[a:b] for name, (a, b) in cuts.items()})
        return len(order)

    return epoch


def _cuts() -> dict[str, tuple[int, int]]:
    from reben_cloud.bigearthnet.reben import REBEN

    ends = np.cumsum([REBEN.modality(name).payload_bytes for name in MODALITIES]).tolist()
    return dict(zip(MODALITIES, zip([0, *ends[:-1]], ends, strict=True), strict=True))


def lance(root: Path, folder: Path, *, floats: bool) -> Callable[[], int]:
    """Lance, a column of binaries for each modality, a batch by `take`."""
    import lance as library
    import pyarrow as pa

    schema = pa.schema([pa.field(name, pa.large_binary()) for name in MODALITIES])

    def chunks() -> Iterator[pa.RecordBatch]:
        held: list[dict[str, bytes]] = []
        for _, payloads in payloads_of(root):
            held.append({name: bytes(payloads[name]) for name in MODALITIES})
            if len(held) == 256:
                yield pa.RecordBatch.from_pylist(held, schema)
                held.clear()
        if held:
            yield pa.RecordBatch.from_pylist(held, schema)

    def make(path: Path) -> None:
        library.write_dataset(chunks(), str(path / "data"), schema=schema)

    dataset = library.dataset(str(make_once(folder / "lance", make) / "data"))
    buffers, rng, count = Buffers(floats=False), np.random.default_rng(0), dataset.count_rows()

    def epoch() -> int:
        order = rng.permutation(count)
        for start in range(0, count, BATCH):
            for chunk in dataset.take(order[start : start + BATCH].tolist()).to_batches():
                for row in range(len(chunk)):
                    buffers.add(**{name: chunk.column(name)[row].as_buffer() for name in MODALITIES})
        return count

    return epoch
