"""The server under attack: what honest clients wait, without and with hostile ones, on all 549,488 real rows.

    python tests/benchmarks/bench_hostile.py ../shared/data/bigearthnet_pipeline [SECONDS [HONEST [HOSTILE]]]

150 honest clients ask for a page of Items every 5 s, each by another box, time, filter or polygon. 50 hostile ones
send one request after the other without a pause: polygons of thousands of corners, filters that fold the case of every
id, the largest pages, shapes with too many corners, filters nested out of reason, bodies that trickle in; and they hang
up early. Prints percentiles of both times, the processor time of clients and server, and every quarter of the time the
memory, threads and counts of both the server's processes. The clients want the same cores, so how long they run is a
part of what the honest ones wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from reben_cloud.bigearthnet.official import describe, read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build.publish import publish_metadata
from reben_cloud.store import open_store

PAUSE_S = 5.0
Json = dict[str, Any]


def teeth(rng: np.random.Generator, corners: int) -> Json:
    """A polygon of long thin teeth over all patches, each time another."""
    half = corners // 2
    x, tall = np.linspace(-9, 31 + rng.random(), half), np.arange(half) % 2 == 1
    low, high = 36.5 + rng.random(), 69.0
    up = np.stack([x, np.where(tall, high, low)], axis=1)
    down = np.stack([x[::-1], np.where(tall[::-1], high - 0.2, low - 0.3)], axis=1)
    ring = [*up.tolist(), *down.tolist()]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def honest(rng: np.random.Generator) -> Json:
    """A search as people make them."""
    west, south = float(rng.uniform(-9, 28)), float(rng.uniform(37, 66))
    size = float(rng.uniform(0.1, 1.5))
    box = [west, south, west + size, south + size]
    ring = [[west, south], [west + size, south], [west + size / 2, south + size], [west, south]]
    first = f"201{rng.integers(7, 9)}-{rng.integers(1, 13):02}"
    month = f"{first}-01T00:00:00Z/{first}-28T00:00:00Z"
    return [
        {"bbox": box, "limit": 20},
        {"bbox": box, "datetime": f"2016-06-01T00:00:00Z/{first}-28T00:00:00Z", "limit": 20},
        {"intersects": {"type": "Polygon", "coordinates": [ring]}, "limit": 20},
        {"filter": "\"reben:split\" = 'train' AND \"reben:country\" = 'Finland'", "bbox": box, "limit": 20},
        {"datetime": month, "sortby": [{"field": "properties.datetime", "direction": "desc"}], "limit": 20},
    ][rng.integers(5)]


def hostile(rng: np.random.Generator) -> Json:
    """A search that is made to cost as much as one can."""
    shape, word = teeth(rng, 4_900), f"x{rng.integers(1 << 40)}"
    deep: Json = {"op": "=", "args": [{"property": "id"}, word]}
    for _ in range(300):
        deep = {"op": "not", "args": [deep]}
    return [
        {"intersects": shape},
        {
            "filter": {
                "op": "not",
                "args": [{"op": "s_intersects", "args": [{"property": "geometry"}, shape]}],
            }
        },
        {"intersects": teeth(rng, 9_000)},
        {"filter": " OR ".join(f"casei(accenti(id)) = '{word}{number}'" for number in range(40))},
        {"filter": deep},
        {"filter": "(" * 200 + f"id = '{word}"},
        {
            "limit": 1_000,
            "sortby": [{"field": "id", "direction": "desc"}],
            "bbox": [-9, 30 + float(rng.random()), 32, 70],
        },
    ][rng.integers(7)]


async def ask(
    client: httpx.AsyncClient, seed: int, end: float, taken: list[float], statuses: Counter[int]
) -> None:
    """An honest client until `end`."""
    rng = np.random.default_rng(seed)
    await asyncio.sleep(float(rng.uniform(0, PAUSE_S)))
    while time.monotonic() < end:
        start = time.perf_counter()
        answer = await client.post("/search", json=honest(rng))
        taken.append(1000 * (time.perf_counter() - start))
        statuses[answer.status_code] += 1
        await asyncio.sleep(PAUSE_S)


async def attack(client: httpx.AsyncClient, seed: int, end: float, statuses: Counter[int]) -> None:
    """A hostile client until `end`."""
    rng = np.random.default_rng(seed)

    async def trickle() -> Any:
        for _ in range(100):
            yield b'{"ids": '
            await asyncio.sleep(0.3)

    while time.monotonic() < end:
        how = rng.random()
        with contextlib.suppress(httpx.TransportError):
            if how < 0.1:
                answer = await client.post("/search", content=trickle())
            else:
                patience = 0.5 if how < 0.4 else 60
                answer = await client.post("/search", json=hostile(rng), timeout=patience)
            statuses[answer.status_code] += 1
            continue
        statuses[0] += 1


def clients(kind: str, url: str, seconds: float, count: int) -> None:
    """All clients of a kind, in a process of their own; prints what they met."""

    async def run() -> None:
        taken, statuses = list[float](), Counter[int]()
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            if kind == "honest":
                await asyncio.gather(*(ask(client, seed, end, taken, statuses) for seed in range(count)))
            else:
                await asyncio.gather(*(attack(client, 1000 + seed, end, statuses) for seed in range(count)))
        json.dump({"taken": taken, "statuses": statuses, "cpu_s": time.process_time()}, sys.stdout)

    asyncio.run(run())


def measure(url: str, seconds: float, num_honest: int, num_hostile: int) -> float:
    """The 99th percentile of the honest, in ms; what happened is printed."""
    kinds = [("honest", num_honest), *([("hostile", num_hostile)] if num_hostile else [])]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, "--clients", kind, url, str(seconds), str(count)],
            stdout=subprocess.PIPE,
        )
        for kind, count in kinds
    ]
    for quarter in range(5):
        numbers = dict(
            line.split(" ")
            for line in httpx.get(f"{url}/_mgmt/metrics", timeout=30).text.splitlines()
            if line[0] != "#"
        )
        print(
            f"  {quarter * seconds / 4:4.0f} s: {float(numbers['reben_resident_memory_bytes']) / 1e6:.0f} MB, "
            f"{numbers['reben_threads']} threads, {numbers['reben_searches_given_up_total']} searches given up, "
            f"{numbers['reben_searches_refused_total']} refused, "
            f"{numbers['reben_processor_seconds_total']} s of a core",
            flush=True,
        )
        if quarter < 4:
            time.sleep(seconds / 4)
    found = [json.loads(process.communicate()[0]) for process in started]
    taken = np.array(found[0]["taken"])
    p50, p99 = np.percentile(taken, [50, 99])
    for (kind, count), one in zip(kinds, found, strict=True):
        print(
            f"  {count} {kind}: {sum(one['statuses'].values())} requests, by status {one['statuses']}, "
            f"{one['cpu_s']:.1f} s of a core"
        )
    print(f"  honest: p50 {p50:.0f} ms, p99 {p99:.0f} ms, longest {taken.max():.0f} ms", flush=True)
    return float(p99)


def main() -> None:
    if sys.argv[1] == "--clients":
        clients(sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
        return
    seconds, num_honest, num_hostile = (
        float(sys.argv[at]) if len(sys.argv) > at else default
        for at, default in ((2, 300), (3, 150), (4, 50))
    )
    with tempfile.TemporaryDirectory() as folder:
        official = read_official(sorted(Path(sys.argv[1]).glob("metadata*.parquet")))
        publish_metadata(describe(official), REBEN, open_store(folder), given=official.column_names)
        command = [sys.executable, "-m", "reben_cloud.cli", "serve", folder, "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            url = server.stderr.readline().split()[0].rstrip("/")
            print(f"quiet, {num_honest:.0f} honest clients:", flush=True)
            quiet = measure(url, min(seconds, 60), int(num_honest), 0)
            print(f"attacked by {num_hostile:.0f} of {num_honest + num_hostile:.0f} clients:", flush=True)
            attacked = measure(url, seconds, int(num_honest), int(num_hostile))
            print(f"p99 under attack is {attacked / quiet:.2f} x that of quiet times")
            server.terminate()


if __name__ == "__main__":
    main()
