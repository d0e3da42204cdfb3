"""Streaming from an S3 server on this machine, beside bare GETs of the same objects; and what selections cost.

    python -m tests.benchmarks.bench_s3 [--root ROOT] [--rounds 5]

Starts Ceph's gateway (as the tests do), uploads a root, and prints medians of interleaved rounds: bytes/s of
`StreamLoader` without a cache, of obstore GETs with the same number of threads, of webdataset reading through curl,
and of MosaicML Streaming and LitData where they are installed; those two keep what they fetch in a folder, which is
new each round. Then: bytes read for 1 %, 10 % and 50 % of the patches, as a share of a full epoch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import reben_cloud as rc
from reben_cloud.torch import StreamLoader
from reben_cloud.training.torchvision_ops import load_torchvision
from tests.benchmarks.bench_loader import BATCH, Buffers, litdata, make_root, mosaicml, webdataset
from tests.conftest import ceph

THREADS = 8


def upload(client: Any, folder: Path, prefix: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
        list(
            pool.map(
                lambda p: client.upload_file(str(p), "bench", f"{prefix}/{p.relative_to(folder)}"), files
            )
        )


def bare_gets(store: Any, paths: list[str]) -> Callable[[], int]:
    def epoch() -> int:
        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(lambda path: store.get(path).nbytes, paths))

    return epoch


def ours(selection: Any) -> Callable[[], int]:
    loader = StreamLoader(selection, batch_size=BATCH, fetch_threads=THREADS)

    def epoch() -> int:
        before = loader.stats().bytes_read
        for _ in loader:
            pass
        return loader.stats().bytes_read - before

    return epoch


def webdataset_through_curl(client: Any, names: list[str]) -> Callable[[], int]:
    import webdataset as wds

    links = [client.generate_presigned_url("get_object", Params={"Bucket": "bench", "Key": n}) for n in names]
    buffers = Buffers(floats=False)

    def epoch() -> int:
        count = 0
        urls = [f"pipe:curl -s '{link}'" for link in links]
        for sample in wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000):
            buffers.add(s2=sample["s2.bin"], s1=sample["s1.bin"], map=sample["map.bin"])
            count += sum(len(sample[f"{m}.bin"]) for m in ("s2", "s1", "map"))
        return count

    return epoch


def mosaicml_from_s3(server: Any) -> Callable[[], int]:
    from streaming import StreamingDataset

    os.environ["S3_ENDPOINT_URL"] = server.endpoint  # it takes no options
    os.environ.update(AWS_ACCESS_KEY_ID=server.key, AWS_SECRET_ACCESS_KEY=server.secret)
    buffers = Buffers(floats=False)

    def epoch() -> int:
        with tempfile.TemporaryDirectory() as local:
            dataset = StreamingDataset(
                remote="s3://bench/mds", local=local, shuffle=True, batch_size=BATCH, num_canonical_nodes=1
            )
            return sum(_put(buffers, sample) for sample in dataset)

    return epoch


def litdata_from_s3(server: Any) -> Callable[[], int]:
    from litdata import StreamingDataset
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # it has no option for a server without TLS
    buffers = Buffers(floats=False)
    options = {
        "endpoint_url": server.endpoint,
        "aws_access_key_id": server.key,
        "aws_secret_access_key": server.secret,
    }

    def epoch() -> int:
        with tempfile.TemporaryDirectory() as local:
            dataset = StreamingDataset(
                "s3://bench/lit", cache_dir=local, storage_options=options, shuffle=True, batch_decode=0
            )
            return sum(_put(buffers, sample) for sample in dataset)

    return epoch


def _put(buffers: Buffers, sample: Mapping[str, bytes]) -> int:
    buffers.add(**sample)
    return sum(len(payload) for payload in sample.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/reben-bench-s3"))
    arguments = parser.parse_args()
    arguments.dir.mkdir(parents=True, exist_ok=True)
    root = arguments.root or make_root(arguments.dir, 2048)
    webdataset(root, arguments.dir, floats=False)  # writes its shards
    with ceph() as server:
        client = server.client()
        client.create_bucket(Bucket="bench")
        upload(client, root, "root")
        upload(client, arguments.dir / "wds", "wds")
        dataset = rc.open("s3://bench/root", server.storage_options)
        paths = [path for path, _ in dataset.store.list("shards")]
        tars = [f"wds/{p.name}" for p in sorted((arguments.dir / "wds").glob("*.tar"))]
        epochs = {
            "bare obstore GETs": bare_gets(dataset.store, paths),
            "reben_cloud": ours(dataset.search()),
            "webdataset, curl": webdataset_through_curl(client, tars),
        }
        for name, form, write, read in (
            ("MosaicML streaming", "mds", mosaicml, mosaicml_from_s3),
            ("LitData", "lit", litdata, litdata_from_s3),
        ):
            try:
                load_torchvision()  # both import it
                write(root, arguments.dir, floats=False)
                upload(client, arguments.dir / form, form)
                epochs[name] = read(server)
            except ImportError as error:
                print(f"{name}: left out ({error})", file=sys.stderr)
        rates: dict[str, list[float]] = {name: [] for name in epochs}
        for number in range(arguments.rounds + 1):
            for name, epoch in epochs.items():
                start = time.perf_counter()
                nbytes = epoch()
                if number:  # the first round warms up
                    rates[name].append(nbytes / (time.perf_counter() - start) / 1e6)
        print(
            f"from S3 on this machine, {len(dataset)} samples, {THREADS} threads, median of {arguments.rounds}"
        )
        for name, values in rates.items():
            share = statistics.median(v / b for v, b in zip(values, rates["bare obstore GETs"], strict=True))
            print(f"  {name:20s} {statistics.median(values):8,.0f} MB/s   {share:6.1%} of bare GETs")
        whole = sum(size for _, size in dataset.store.list("shards"))
        everything = dataset.search()
        rng = np.random.default_rng(0)
        for share in (0.01, 0.1, 0.5):
            chosen = np.sort(rng.choice(len(everything), max(1, int(share * len(everything))), replace=False))
            part = type(everything)(dataset, everything.table, everything.rows[chosen])
            loader = StreamLoader(part, batch_size=BATCH)
            for _ in loader:
                pass
            print(
                f"  {share:4.0%} of the patches: {loader.stats().bytes_read / whole:6.2%} of the bytes of the shards"
            )


if __name__ == "__main__":
    main()
