"""The whole dataset through the loader, once: 549,488 patches, 167 GB, from an S3 server on this machine.

    python -m tests.benchmarks.bench_full_epoch METADATA... [--share 1.0] [--ranks 1] [--kill RANKS] [--folder DIR]

METADATA are the official metadata files. Nothing but tables is on the disk: the server computes each shard when it
is asked for (`tests.computed`), with every patch's own name, JSON and numbers in its pixels. Each rank is a process;
``--servers`` processes answer. It fails unless

- every id comes exactly once, over all ranks, and their digests add up to that of the selection;
- every tensor of every sample is the one of its own patch and band;
- with ``--kill``, also when all ranks are killed in the middle and others, RANKS of them, go on.

It prints the time to the first batch, the rate beside bare GETs of the same shards, and the slope of each rank's
memory. ``--share 0.1`` takes every tenth patch.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

import reben_cloud as rc
from reben_cloud.bigearthnet.official import read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.root import layout
from reben_cloud.root.documents import read_objects
from reben_cloud.root.selection import Selection
from reben_cloud.stream import Delivered, RawLoader, expected_delivery, merge_states
from tests import computed

URL = f"s3://{computed.BUCKET}"
GLOBAL_BATCH = 512
SEED = 1
ENOUGH_SAMPLES = 100_000
"""Samples of a rank below which its memory is still growing to what it needs, so that a slope would mislead."""
SAMPLE_S = 1.0
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What a rank did."""

    samples: int
    wrong: int
    """Tensors that were not those of their patch and band."""
    first_s: float
    """From opening the root to the first batch."""
    elapsed_s: float
    """From the first batch to the last."""
    bytes_read: int
    retries: int
    delivered: int
    """Samples that its digest is of, with those before a kill on rank 0."""
    digest: int
    """Its `Delivered.value`."""
    memory: list[tuple[int, int]]
    """(Samples so far, resident bytes) each second."""


def steps_of(folder: Path, rank: int) -> Path:
    """Where a rank notes the samples of every step, before it takes the next."""
    return folder / f"steps-{rank}.int64"


def states_of(folder: Path, rank: int) -> Path:
    """Where it keeps its state after every step, a line for each: what a trainer's checkpoints hold."""
    return folder / f"states-{rank}.jsonl"


def consume(
    folder: Path,
    options: Mapping[str, Any],
    rank: int,
    world_size: int,
    batch_size: int,
    state: Mapping[str, int] | None,
) -> None:
    """One rank: an epoch, or the rest of one, checked sample by sample."""
    begin = time.perf_counter()
    selection = rc.open(URL, options).search()
    loader = RawLoader(selection, batch_size=batch_size, rank=rank, world_size=world_size, seed=SEED)
    if state is not None:
        loader.load_state_dict(state)
    batches = iter(loader)
    batch: Any = next(batches)
    first_s = time.perf_counter() - begin
    expected = computed.expected_numbers(REBEN, selection.patch_ids)
    wrong = samples = 0
    memory: list[tuple[int, int]] = []
    process, begin, looked = psutil.Process(), time.perf_counter(), 0.0
    with steps_of(folder, rank).open("wb") as notes, states_of(folder, rank).open("w") as states:
        while batch is not None:
            index = batch["index"][batch["valid"]]
            for name, numbers in computed.numbers_in(REBEN, batch):
                wrong += int(np.count_nonzero(numbers[: len(index)] != expected[name][index]))
            step = np.full(batch_size, -1, np.int64)
            step[: len(index)] = index
            notes.write(step.tobytes())
            notes.flush()
            states.write(json.dumps(loader.state_dict()) + "\n")
            states.flush()
            samples += len(index)
            if time.perf_counter() - looked > SAMPLE_S:
                looked = time.perf_counter()
                memory.append((samples, process.memory_info().rss))
            batch = next(batches, None)
    stats = loader.stats()
    done = Rank(
        samples=samples, wrong=wrong, first_s=first_s, elapsed_s=time.perf_counter() - begin,
        bytes_read=stats.bytes_read, retries=stats.retries, memory=memory,
        delivered=stats.delivered.num_samples, digest=stats.delivered.value,
    )  # fmt: skip
    (folder / f"rank-{rank}.json").write_text(json.dumps(done.__dict__))


def run_ranks(
    folder: Path,
    options: Sequence[Mapping[str, Any]],
    world_size: int,
    *,
    global_batch: int = GLOBAL_BATCH,
    state: Mapping[str, int] | None = None,
    kill_after: int | None = None,
) -> tuple[list[Rank], list[NDArray[np.int64]]]:
    """Run the ranks, each a process; with `kill_after` kill all of them once each has so many steps.

    Returns:
        What each did (nothing if killed), and the samples of its steps, shape (steps, batch), -1 for none.
    """
    context = multiprocessing.get_context("spawn")
    batch_size = global_batch // world_size
    for path in folder.glob("steps-*"):
        path.unlink()
    processes = [
        context.Process(
            target=consume, args=(folder, options[r % len(options)], r, world_size, batch_size, state)
        )
        for r in range(world_size)
    ]
    for process in processes:
        process.start()

    def num_steps(rank: int) -> int:
        path = steps_of(folder, rank)
        return path.stat().st_size // (8 * batch_size) if path.exists() else 0

    if kill_after is not None:
        while min(map(num_steps, range(world_size))) < kill_after:
            if any(p.exitcode not in (None, 0) for p in processes):
                raise SystemExit("a rank failed before it could be killed")
            time.sleep(0.005)
        for process in processes:
            process.kill()
    for process in processes:
        process.join()
    if kill_after is None and any(p.exitcode for p in processes):
        raise SystemExit("a rank failed")
    found = []
    for rank in range(world_size):
        data = np.fromfile(steps_of(folder, rank), np.int64)
        found.append(data[: data.size // batch_size * batch_size].reshape(-1, batch_size))
    if kill_after is not None:
        return [], found
    told = [json.loads((folder / f"rank-{r}.json").read_text()) for r in range(world_size)]
    return [Rank(**one) for one in told], found


def check_once(num_ids: int, steps: Sequence[NDArray[np.int64]]) -> None:
    """See that each of the selection's patches came exactly once."""
    index = np.concatenate([one.reshape(-1) for one in steps])
    counts = np.bincount(index[index >= 0], minlength=num_ids)
    if (counts != 1).any():
        raise SystemExit(
            f"not exactly once: {np.count_nonzero(counts == 0):,} lost, {np.count_nonzero(counts > 1):,} repeated"
        )


def check_digest(selection: Selection, ranks: Sequence[Rank]) -> str:
    """See that the digests of the ranks add up to the one that follows from the selection alone; that one."""
    expected = expected_delivery(selection, epoch=0, seed=SEED)
    found = Delivered(epoch=0)
    for rank in ranks:
        found = found.plus(rank.delivered, rank.digest)
    if found != expected:
        raise SystemExit(f"the ranks delivered {found}, and the selection is {expected}")
    return found.digest


def slope_of(memory: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """MB per 100,000 samples over the last two thirds, and its standard error."""
    samples, rss = np.array(memory[len(memory) // 3 :], np.float64).T
    fit, residuals, *_ = np.polyfit(samples, rss / 1e6, 1, full=True)
    spread = np.sqrt(residuals[0] / (len(samples) - 2) / ((samples - samples.mean()) ** 2).sum())
    return float(fit[0]) * 1e5, float(spread) * 1e5


def bare_gets(options: Sequence[Mapping[str, Any]], *, most_bytes: float) -> float:
    """Bytes a second of GETs of whole shards into memory that is used again, 8 at a time; nothing is compared."""
    datasets = [rc.open(URL, one) for one in options]
    listed = read_objects(datasets[0].store, datasets[0].manifest).shards()
    shards = [(path, nbytes) for path, (nbytes, _) in listed.items()]
    chosen = [shards[n] for n in np.random.default_rng(0).permutation(len(shards))]
    sizes = np.cumsum([nbytes for _, nbytes in chosen])
    chosen = chosen[: int(np.searchsorted(sizes, most_bytes)) + 1]
    memory: list[memoryview] = [np.empty(max(n for _, n in chosen), np.uint8).data for _ in range(8)]

    def get(number: int) -> int:
        path, nbytes = chosen[number]
        buffer = memory.pop()
        try:
            return datasets[number % len(datasets)].store.get_into(path, buffer[:nbytes])
        finally:
            memory.append(buffer)

    begin = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        total = sum(threads.map(get, range(len(chosen))))
    return total / (time.perf_counter() - begin)


def prepare(paths: Sequence[str], share: float, folder: Path) -> pa.Table:
    """Write the tables of the root, unless they are there."""
    if (folder / layout.MANIFEST).exists():
        return
    official = read_official(paths)
    rows = np.arange(0, official.num_rows, round(1 / share), dtype=np.int64)
    begin = time.perf_counter()
    computed.make_root(official.take(pa.array(rows)), folder)
    print(f"tables of {len(rows):,} patches: {time.perf_counter() - begin:,.0f} s", flush=True)


def report(ranks: Sequence[Rank], bare: float) -> None:
    """What the ranks did, in a few lines."""
    samples, read = sum(r.samples for r in ranks), sum(r.bytes_read for r in ranks)
    elapsed = max(r.elapsed_s for r in ranks)
    print(
        f"{samples:,} samples, {read / 1e9:,.1f} GB read in {elapsed:,.0f} s: {samples / elapsed:,.0f} samples/s, "
        f"{read / elapsed / 1e6:,.0f} MB/s; bare GETs {bare / 1e6:,.0f} MB/s; "
        f"first batch after {max(r.first_s for r in ranks):.1f} s; {sum(r.retries for r in ranks)} retries"
    )
    for number, rank in enumerate(ranks):
        most = max(rss for _, rss in rank.memory) / 1e6
        text = f"  rank {number}: {most:,.0f} MB at most"
        if rank.samples >= ENOUGH_SAMPLES:
            slope, error = slope_of(rank.memory)
            text += f", slope {slope:+.2f} +- {error:.2f} MB per 100,000 samples"
        print(text)
        if rank.wrong:
            raise SystemExit(f"rank {number}: {rank.wrong:,} tensors are those of other patches or bands")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metadata", nargs="+")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--kill", type=int, help="ranks that go on after all were killed in the middle")
    parser.add_argument("--folder", type=Path, help="keep the tables here")
    parser.add_argument("--servers", type=int, default=1)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "root"
        folder.mkdir(exist_ok=True)
        prepare(given.metadata, given.share, folder)
        work = Path(temporary)
        with computed.serve(folder, REBEN, num_servers=given.servers) as options:
            selection = rc.open(URL, options[0]).search()
            for world_size in given.ranks:
                bare = bare_gets(options, most_bytes=min(5e9, 3e5 * len(selection)))
                print(f"-- {world_size} ranks, {len(selection):,} patches", flush=True)
                ranks, steps = run_ranks(work, options, world_size)
                report(ranks, bare)
                check_once(len(selection), steps)
                print(f"  every id once, digest {check_digest(selection, ranks)}", flush=True)
            if given.kill:
                print(f"-- {given.ranks[-1]} ranks killed in the middle, {given.kill} go on", flush=True)
                ranks, steps = kill_and_resume(work, options, len(selection), given.ranks[-1], given.kill)
                report(ranks, bare)
                check_once(len(selection), steps)
                print(f"  every id once, digest {check_digest(selection, ranks)}", flush=True)


def kill_and_resume(
    folder: Path,
    options: Sequence[Mapping[str, Any]],
    num_samples: int,
    before: int,
    after: int,
    *,
    global_batch: int = GLOBAL_BATCH,
) -> tuple[list[Rank], list[NDArray[np.int64]]]:
    """Kill all ranks in the middle and go on with others from the last step that all had taken.

    Returns:
        What those that went on did, and the samples of all steps that count.
    """
    middle = num_samples // global_batch // 2
    _, killed = run_ranks(folder, options, before, global_batch=global_batch, kill_after=middle)
    states = [states_of(folder, rank).read_text().split("\n")[:-1] for rank in range(before)]
    taken = min(map(len, states))
    state = merge_states(json.loads(lines[taken - 1]) for lines in states)
    ranks, rest = run_ranks(folder, options, after, global_batch=global_batch, state=state)
    return ranks, [*(steps[:taken] for steps in killed), *rest]


if __name__ == "__main__":
    main(sys.argv[1:])
