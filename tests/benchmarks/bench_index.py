"""The index of an LMDB on a hub, and values read by it, beside bare range GETs of the same bytes.

    python -m tests.benchmarks.bench_index [--records N] [--keys N] [--threads N] [--repeats N]

The hub is another process on this machine: its answers take CPU too, so that ratios say more than rates. "Bare"
are GETs of the signed URL by http.client, and by obstore, with as many threads. Medians of interleaved runs.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import lmdb
import numpy as np
import obstore
from obstore.store import HTTPStore

from reben_cloud.formats.lmdb_index import estimate, index, lookup
from reben_cloud.formats.lmdb_pages import plan_pages
from reben_cloud.store import Store

VALUE_BYTES = 160_832
"""A Sentinel-2 payload."""


class Server:
    """A hub of one file in a process of its own."""

    def __init__(self, file):
        command = [sys.executable, "-m", "tests.hub", str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        self.file = file
        self.store = Store("hf://datasets/owner/name", {"endpoint": self.url})

    def counts(self):
        """What came since the last call."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def signed_url(self):
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port)
        connection.request("GET", f"/datasets/owner/name/resolve/main/{self.file.name}")
        return connection.getresponse().headers["Location"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def serving(file):
    server = Server(file)
    yield server
    server.close()


def bare(url, ranges, threads):
    """Seconds of plain GETs."""
    parts, local = urlsplit(url), threading.local()
    target = f"{parts.path}?{parts.query}"

    def get(span):
        connection = getattr(local, "connection", None)
        if connection is None:
            connection = local.connection = http.client.HTTPConnection(parts.hostname, parts.port)
        connection.request("GET", target, headers={"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"})
        assert len(connection.getresponse().read()) == span[1]

    return timed(get, ranges, threads)


def bare_obstore(url, ranges, threads):
    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    return timed(lambda s: len(obstore.get_range(store, "", start=s[0], length=s[1])), ranges, threads)


def timed(get, ranges, threads):
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(get, ranges))
    return time.perf_counter() - start


def written(folder, num_records):
    """An LMDB as rico-hdl's transactions leave it, with values of one page each."""
    keys = sorted(f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{n:08}".encode() for n in range(num_records))
    with lmdb.open(str(folder), map_size=2**36, sync=False) as env:
        for start in range(0, num_records, 512):
            with env.begin(write=True) as txn:
                for key in keys[start : start + 512]:
                    txn.put(key, bytes(2100))
    return folder / "data.mdb"


def synthetic(file, num_keys):
    """The tree of an LMDB of so many keys, over values that are holes."""
    keys = np.array(
        [f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{n:08}".encode() for n in range(num_keys)]
    )
    layout = plan_pages(keys, np.full(num_keys, 2048))
    with file.open("wb") as out:
        out.truncate(layout.nbytes)
        out.write(layout.meta(layout.nbytes))
        out.seek(layout.tree_page * 4096)
        for page in layout.tree():
            out.write(page)
    return file


def bench_full_index(folder, num_records, threads, repeats):
    with serving(written(folder, num_records)) as server:
        name = server.file.name
        size, version = server.store.stat(name)
        ratios, times, ranges = [], [], []

        def read(start, length):
            ranges.append((start, length))
            return server.store.get_range(name, start, length, version=version)

        told = estimate(read, size)
        print(
            f"estimate: {told.entries:,} records, at most {told.requests:,} requests, {told.nbytes / 1e6:.1f} MB"
        )
        for _ in range(repeats):
            ranges.clear()
            server.counts()
            start = time.perf_counter()
            found = index(read, size, threads=threads)
            seconds = time.perf_counter() - start
            counts, asked = server.counts(), list(ranges)
            assert len(found) == num_records
            plain = bare(server.signed_url(), asked, threads)
            ratios.append(plain / seconds)
            times.append(seconds)
        print(
            f"index: {counts['requests']:,} requests, {counts['nbytes'] / told.nbytes:.3f} of the bytes of its pages, "
            f"{counts['most']} in flight, {statistics.median(times):.2f} s; "
            f"bare GETs of the same ranges take {statistics.median(ratios):.2f} of that"
        )
        ranges.clear()
        keys = random.Random(0).sample(found.column("key").to_pylist(), min(1000, num_records))
        start = time.perf_counter()
        lookup(read, size, keys, threads=threads)
        print(f"lookup of {len(keys):,} keys: {len(ranges):,} requests, {time.perf_counter() - start:.2f} s")


def peak_kib():
    """Most memory of this process so far; that of getrusage counts the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def bench_memory(file):
    """In a process of its own; see `main`."""
    data = file.open("rb", buffering=0)
    lock = threading.Lock()

    def read(start, length):
        with lock:
            data.seek(start)
            return data.read(length)

    before = peak_kib()
    start = time.perf_counter()
    found = index(read, file.stat().st_size)
    seconds = time.perf_counter() - start
    more = (peak_kib() - before) / 1024
    print(
        f"memory: {len(found):,} keys take {found.nbytes / 2**20:.0f} MiB, at most {more:.0f} MiB, {seconds:.1f} s"
    )


def bench_values(file, threads, repeats):
    with serving(file) as server:
        name = file.name
        size, version = server.store.stat(name)
        rng = random.Random(1)
        ranges = [(rng.randrange(size - VALUE_BYTES), VALUE_BYTES) for _ in range(1000)]
        runs = {
            "Store.get_range": lambda: timed(
                lambda s: server.store.get_range(name, *s, version=version), ranges, threads
            ),
            "bare http.client": lambda: bare(server.signed_url(), ranges, threads),
            "bare obstore": lambda: bare_obstore(server.signed_url(), ranges, threads),
        }
        seconds = {run: [] for run in runs}
        for _ in range(repeats):
            for run, call in runs.items():
                seconds[run].append(call())
        for run, values in seconds.items():
            ratio = statistics.median(v / s for v, s in zip(values, seconds["Store.get_range"], strict=True))
            print(
                f"1,000 values of 160 kB, {threads} threads, {run}: {1000 / statistics.median(values):,.0f} a second; "
                f"its time is {ratio:.2f} of the store's"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=1_100_000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        bench_memory(given.memory_of)
        return
    with tempfile.TemporaryDirectory() as folder:
        bench_full_index(Path(folder), given.records, given.threads, given.repeats)
        file = synthetic(Path(folder) / "synthetic.mdb", given.keys)
        command = [sys.executable, "-m", "tests.benchmarks.bench_index", "--memory-of", str(file)]
        subprocess.run(command, check=True)
        bench_values(file, given.threads, given.repeats)
        bench_values(file, 2 * given.threads, given.repeats)


if __name__ == "__main__":
    main()
