"""Search on all 549,488 real rows beside hand-written DuckDB and rustac's client; the API under load.

    python tests/benchmarks/bench_search.py ../shared/data/bigearthnet_pipeline [EXTENSIONS]

The root is made in a temporary folder. Medians of `ROUNDS` alternating runs, all warm. rustac takes part
where it can be imported; it loads DuckDB's spatial and icu extensions, from the folder EXTENSIONS where
they cannot be fetched.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

import reben_cloud as rc
from reben_cloud.bigearthnet.official import describe, read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build.publish import publish_metadata
from reben_cloud.catalog import patch_items
from reben_cloud.store import open_store

ROUNDS = 15
BOX = (-8.5, 39.2, -8.4, 39.3)
MONTHS = "2017-07/2017-08"


def ours(dataset: rc.Dataset) -> list[str]:
    return dataset.search(bbox=BOX, datetime=MONTHS).patch_ids


def items_of(dataset: rc.Dataset) -> list[dict[str, Any]]:
    """Items as plain dictionaries, which is what rustac returns."""
    return list(patch_items(dataset.search(bbox=BOX, datetime=MONTHS).to_arrow(), dataset.url))


def by_duckdb(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    west, south, east, north = BOX
    rows = connection.execute(
        f"SELECT id FROM '{path}' WHERE bbox.xmin <= {east} AND bbox.xmax >= {west} AND bbox.ymin <= {north} "
        f"AND bbox.ymax >= {south} AND datetime >= '2017-07-01T00:00:00Z' AND datetime < '2017-09-01T00:00:00Z'"
    )
    return [str(row[0]) for row in rows.fetchall()]


def rustac_client() -> Any | None:
    """rustac's DuckDB client; None, and a line that says why, where there is none."""
    try:
        import rustac

        if len(sys.argv) > 2:
            return rustac.DuckdbClient(install_extensions=False, extension_directory=Path(sys.argv[2]))
        return rustac.DuckdbClient()
    except ImportError:
        print("rustac: not installed, left out")
    except rustac.RustacError as error:
        print(f"rustac: left out, {str(error).splitlines()[0]}")
    return None


def milliseconds(call: object) -> float:
    start = time.perf_counter()
    call()  # type: ignore[operator]
    return 1000 * (time.perf_counter() - start)


FIRST = """
import sys, time
import reben_cloud as rc
dataset = rc.open(sys.argv[1])
start, what = time.perf_counter(), sys.argv[2]
if what == "read":
    table = dataset.patch_table
    table.read(range(len(table.group_starts) - 1), ["reben:labels", "reben:split"])
else:
    dataset.search(labels="Pastures", split="train")
print(1000 * (time.perf_counter() - start))
"""


def first(folder: str) -> None:
    """The first search of a process, with all that it loads, beside reading the columns that it needs."""
    taken: dict[str, list[float]] = {"read": [], "search": []}
    for _ in range(ROUNDS):
        for what, times in taken.items():
            command = [sys.executable, "-c", FIRST, folder, what]
            times.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    read, search = map(statistics.median, taken.values())
    print(f"first search of all rows: {search:.0f} ms, {search - read:.0f} ms more than reading its columns")


def main() -> None:
    files = sorted(Path(sys.argv[1]).glob("metadata*.parquet"))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        official = read_official(files)
        publish_metadata(describe(official), REBEN, open_store(folder), given=official.column_names)
        print(f"catalog of all rows: {time.process_time() - start:.1f} core-seconds")
        path = Path(folder) / "patches.parquet"
        print(f"patches.parquet: {path.stat().st_size / 1e6:.1f} MB")
        dataset, connection = rc.open(folder), duckdb.connect()
        assert ours(dataset), "a search that finds nothing measures nothing"
        assert sorted(ours(dataset)) == sorted(by_duckdb(connection, path))
        times: dict[str, list[float]] = {
            "warm": [],
            "new dataset": [],
            "duckdb": [],
            "items": [],
            "pystac items": [],
        }
        rustac = rustac_client()
        by_rustac = {"bbox": list(BOX), "datetime": "2017-07-01T00:00:00Z/2017-08-31T23:59:59Z"}
        if rustac is not None:
            times["rustac items"] = []
            items = rustac.search(str(path), **by_rustac)
            assert sorted(item["id"] for item in items) == sorted(item["id"] for item in items_of(dataset))
        for _ in range(ROUNDS):
            times["warm"].append(milliseconds(lambda: ours(dataset)))
            times["new dataset"].append(milliseconds(lambda: ours(rc.open(folder))))
            times["duckdb"].append(milliseconds(lambda: by_duckdb(connection, path)))
            times["items"].append(milliseconds(lambda: items_of(dataset)))
            times["pystac items"].append(
                milliseconds(lambda: list(dataset.search(bbox=BOX, datetime=MONTHS).items()))
            )
            if rustac is not None:
                times["rustac items"].append(milliseconds(lambda: rustac.search(str(path), **by_rustac)))
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, median in medians.items():
            print(f"{name:12} {median:8.1f} ms  ({len(ours(dataset))} patches)")
        print(f"ids take {medians['warm'] / medians['duckdb']:.2f} of DuckDB's time")
        if rustac is not None:
            ratios = (medians["rustac items"] / medians[name] for name in ("warm", "items", "pystac items"))
            print(
                "rustac's Items take {:.1f} x as long as ids, {:.1f} x Items, {:.1f} x pystac's".format(
                    *ratios
                )
            )
        first(folder)
        load(dataset)


def load(dataset: rc.Dataset, seconds: float = 10) -> None:
    """Searches of 100 Items over HTTP by one client, one after another, each with another box."""
    import threading

    import httpx
    import uvicorn

    from reben_cloud.serve import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(dataset), port=8799, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    # Boxes around real patches, all different, so that every page is full and no result is cached.
    boxes = dataset.search().column("bbox").combine_chunks()
    rows = np.random.default_rng(0).permutation(len(boxes))
    taken, sizes = [], []
    with httpx.Client(base_url="http://127.0.0.1:8799", timeout=60) as client:
        end = time.monotonic() + seconds
        for row in rows.tolist():
            corner = boxes[row].as_py()
            bbox = [corner["xmin"] - 0.2, corner["ymin"] - 0.2, corner["xmax"] + 0.2, corner["ymax"] + 0.2]
            query = {"bbox": bbox, "limit": 100, "datetime": "2017-06-01T00:00:00Z/.."}
            start = time.perf_counter()
            page = client.post("/search", json=query).raise_for_status().json()
            taken.append(1000 * (time.perf_counter() - start))
            sizes.append(page["numberReturned"])
            if time.monotonic() > end:
                break
    server.should_exit = True
    taken.sort()
    rate, size = 1000 / statistics.mean(taken), statistics.mean(sizes)
    p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
    print(f"API: {len(taken)} searches of {size:.0f} Items, {rate:.0f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    main()
