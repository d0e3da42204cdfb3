"""What an epoch is expected to take, beside what a run then counts; and which stage is said to limit one."""

import json
import os
import subprocess
import sys
import time
from dataclasses import fields

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.formats import tar
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from reben_cloud.stream.expected import RULES
from reben_cloud.stream.loader import _say_shared
from tests import webserver
from tests.conftest import Bucket, empty_bucket
from tests.faultproxy import RandomRule

NUM_PATCHES = 200


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "root"
    source, table = open_source(f"synthetic:{NUM_PATCHES}")
    build(make_plan(source, table, open_store(folder), options=PlacementOptions(shard_samples=16)))
    return folder


@pytest.fixture(scope="module")
def http_root(root):
    with webserver.serve(root) as url:
        yield url


def compare(loader, *, within=0.05):
    """Run what is left of the epoch; both values."""
    expected, before = loader.expected(), loader.stats()
    num_batches = sum(1 for _ in loader)
    found = loader.stats()
    assert expected.batches == num_batches
    assert expected.samples == found.samples - before.samples
    for name in ("bytes_read", "requests"):
        counted = getattr(found, name) - getattr(before, name)
        assert getattr(expected, name) == pytest.approx(counted, rel=within), name
    return expected


SHARES = [pytest.param(100, id="all"), pytest.param(10, id="10 %"), pytest.param(1, id="1 %")]


def part_of(dataset, percent):
    return dataset.search(sample=NUM_PATCHES * percent // 100, sample_seed=1)


@pytest.mark.parametrize("percent", SHARES)
@pytest.mark.parametrize("where", ["folder", "server"])
def test_shards_are_read_as_expected(root, http_root, where, percent):
    dataset = rc.open(root if where == "folder" else http_root)

    loader = RawLoader(part_of(dataset, percent), batch_size=16)

    compare(loader, within=0)
    compare(loader, within=0)  # and in the next epoch


def test_what_is_left_of_an_epoch_is_expected(http_root):
    loader = RawLoader(rc.open(http_root).search(), batch_size=16, lanes=2)
    loader.load_state_dict({**loader.state_dict(), "position": 112})

    assert compare(loader, within=0).batches == 6


@pytest.mark.parametrize("percent", [100, 10])
def test_a_cache_is_counted_on(http_root, tmp_path, percent):
    loader = RawLoader(
        part_of(rc.open(http_root), percent), batch_size=16, lanes=2, cache_dir=tmp_path / "shards"
    )

    first = compare(loader)
    later = compare(loader, within=0)

    if percent == 100:
        assert later.requests == 0
        assert first.requests > 0


@pytest.mark.parametrize("where", ["folder", "server"])
@pytest.mark.parametrize("room", [1.0, 0.5])
def test_shards_kept_in_memory_are_counted_on(root, http_root, where, room):
    dataset = rc.open(root if where == "folder" else http_root)
    shards = [path.stat().st_size for path in root.glob("shards/**/*.tar")]
    loader = RawLoader(
        dataset.search(), batch_size=16, lanes=1, window=1, memory_bytes=int(sum(shards) * room)
    )

    first = compare(loader)
    later = compare(loader)

    assert first.requests > 0
    assert (later.requests == 0) == (room == 1.0)


def test_ranks_that_share_lanes_read_what_they_expect(http_root):
    selection = rc.open(http_root).search()
    alone = RawLoader(selection, batch_size=24, modalities=["s2"]).expected()

    together = [
        compare(RawLoader(selection, batch_size=8, rank=r, world_size=3, modalities=["s2"]), within=0)
        for r in range(3)
    ]

    assert {one.overlap for one in together} == {1.25}
    assert alone.overlap == 1
    assert alone.bytes_read < sum(one.bytes_read for one in together) <= 1.3 * alone.bytes_read
    assert sum(one.samples for one in together) == NUM_PATCHES


def test_sharing_lanes_is_said_once_and_only_where_it_costs(root, http_root, caplog):
    _say_shared.cache_clear()  # another test of this process may have had it said
    for _ in range(2):
        RawLoader(rc.open(http_root).search(), batch_size=8, rank=0, world_size=6)
        RawLoader(rc.open(http_root).search(), batch_size=8, rank=1, world_size=6)
        RawLoader(rc.open(root).search(), batch_size=8, rank=0, world_size=12)

    (said,) = [record.getMessage() for record in caplog.records if "lanes" in record.getMessage()]
    assert "6 ranks do not divide 8 lanes" in said
    assert "up to 1.50 times the bytes" in said


@pytest.mark.parametrize("passes", [1, 3])
def test_weights_are_expected(http_root, root, passes):
    weights = np.linspace(0, 3, NUM_PATCHES)
    for url in (http_root, root):
        compare(RawLoader(rc.open(url).search().weighted(weights, passes=passes), batch_size=16), within=0)


def test_an_export_and_references_are_read_as_expected(root, tmp_path):
    rc.open(root).search().export_lmdb(tmp_path / "BENv2.lmdb")
    compare(RawLoader(rc.open(tmp_path / "BENv2.lmdb").search(), batch_size=16), within=0)
    for name in ("export.json", "patches.parquet"):
        (tmp_path / "BENv2.lmdb" / name).unlink()
    index_hosted(tmp_path / "BENv2.lmdb", tmp_path / "ref", checksums=True)

    for percent in (100, 10):
        compare(RawLoader(part_of(rc.open(tmp_path / "ref"), percent), batch_size=16), within=0)


@pytest.mark.parametrize("percent", [100, 10])
def test_zarr_stores_are_read_about_as_expected(root, percent):
    compare(RawLoader(part_of(rc.open(root), percent), batch_size=16, form="zarr"))


def test_a_mixture_is_expected(root, http_root):
    mixture = rc.concat([rc.open(root).search(), rc.open(http_root).search()])

    compare(RawLoader(mixture, batch_size=16), within=0)


@pytest.fixture(scope="module")
def s3_root(root, s3_server):
    """A bucket that has the root under ``r``."""
    bucket = Bucket(name=f"reben-expected-{os.getpid()}", server=s3_server)
    client = s3_server.client()
    client.create_bucket(Bucket=bucket.name)
    for path in root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket.name, f"r/{path.relative_to(root)}")
    yield bucket
    empty_bucket(client, bucket.name)
    client.delete_bucket(Bucket=bucket.name)


@pytest.mark.s3
@pytest.mark.parametrize("percent", SHARES)
def test_from_s3_it_is_as_expected(s3_root, percent, tmp_path):
    dataset = rc.open(f"{s3_root.url}/r", s3_root.storage_options)

    compare(RawLoader(part_of(dataset, percent), batch_size=16), within=0)
    loader = RawLoader(part_of(dataset, percent), batch_size=16, cache_dir=tmp_path / "shards", lanes=2)
    compare(loader)
    compare(loader, within=0)


def test_memory_is_that_of_batches_and_of_shards_in_use_and_ahead(root, http_root):
    modalities = rc.open(root).schema.modalities
    batch = 16 * sum(spec.nbytes for m in modalities for spec in m.samples.values())
    shard = sum(tar.shard_bytes(m, 16) for m in modalities)

    local, remote = (
        RawLoader(rc.open(url).search(), batch_size=16, lanes=1).expected().memory_bytes
        for url in (root, http_root)
    )

    assert 4 * batch < local < 4 * batch + 100_000
    assert remote - local == 2 * shard


def test_every_number_has_its_rule(root):
    expected = RawLoader(rc.open(root).search(), batch_size=16).expected()

    assert {one.name for one in fields(expected)} == {"epoch", *RULES}
    text = expected.to_text()
    assert all(rule in text for rule in RULES.values())


def test_a_dry_run_says_it_and_reads_nothing(root):
    command = [
        sys.executable,
        "-m",
        "reben_cloud.cli",
        "stream",
        str(root),
        "--dry-run",
        "--batch-size",
        "16",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    as_json = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    )

    expected = RawLoader(rc.open(root).search(), batch_size=16).expected()
    assert shown == expected.to_text() + "\n"
    assert as_json == {one.name: getattr(expected, one.name) for one in fields(expected)}


# -- what limits ------------------------------------------------------------------------------------------


class _Slow(webserver._Ranged):
    def do_GET(self):
        if "shards/" in self.path:
            time.sleep(0.3)
        super().do_GET()


def test_a_slow_store_is_named(root):
    with webserver.serve(root, _Slow) as url:
        loader = RawLoader(rc.open(url).search(), batch_size=16, fetch_threads=2)
        for _ in loader:
            pass

    stats = loader.stats()
    assert stats.limiting_stage == "store"
    assert "raise fetch_threads" in stats.advice
    said = stats.to_text()
    assert f"limit store: {stats.advice}" in " ".join(said.split())
    assert max(map(len, said.splitlines()[1:])) <= 80


@pytest.mark.s3
def test_a_slow_network_is_named(s3_root, fault_proxy):
    fault_proxy.rules.append(RandomRule(faults=["delay"], rate=0.9, match="shards/", seconds=0.3))
    slow = s3_root.through(fault_proxy.endpoint)
    loader = RawLoader(
        rc.open(f"{slow.url}/r", slow.storage_options).search(), batch_size=16, fetch_threads=2
    )
    for _ in loader:
        pass

    assert loader.stats().limiting_stage == "store"


def test_a_slow_consumer_is_named(root):
    quick, loader = (RawLoader(rc.open(root).search(), batch_size=16) for _ in range(2))
    begin = time.perf_counter()
    num_batches = sum(1 for _ in quick)
    batch_s = (time.perf_counter() - begin) / num_batches
    for _ in loader:
        time.sleep(max(0.2, 10 * batch_s))

    stats = loader.stats()
    assert stats.limiting_stage == "consumer"
    assert "what takes the batches is the limit" in stats.advice


def test_where_the_time_goes_is_counted_by_stage(root, http_root):
    local, remote = (RawLoader(rc.open(url).search(), batch_size=16) for url in (root, http_root))
    for loader in (local, remote):
        for _ in loader:
            pass

    files, served = local.stats().stages, remote.stats().stages
    assert files.fetch_checks_s == 0
    assert min(files.fill_store_s, files.fill_checks_s, files.fill_copy_s) > 0
    assert (served.fill_store_s, served.fill_checks_s) == (0, 0)
    assert min(served.fetch_store_s, served.fetch_checks_s, served.fill_copy_s) > 0
