"""Builds: the plan, the objects, repeats, crashes, rivals, and stores that fail."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, build_share, lease, make_plan
from reben_cloud.build.jobs import ShardTask, ZarrTask
from reben_cloud.build.receipts import Receipt
from reben_cloud.build.tasks import run_job
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError, RebenError, StorageError
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official
from tests.conftest import PATIENT_S, processes_of, wait_for

OPTIONS = PlacementOptions(shard_samples=16)


def plan_of(store, num_patches=48, **options):
    table = official.table_of(num_patches)
    return make_plan(
        SyntheticSource(num_patches), table, store, options=options.pop("options", OPTIONS), **options
    )


def contents(store):
    """Path -> bytes of everything that belongs to the dataset."""
    return {path: bytes(store.get(path)) for path, _ in store.list() if not path.startswith("_build/")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("whole") / "root")
    build(plan_of(store))
    return contents(store)


# -- the plan ------------------------------------------------------------------------------------------


def test_tasks_cover_every_patch_once_in_each_form(tmp_path):
    plan = plan_of(open_store(tmp_path), 100)

    for kind in (ShardTask, ZarrTask):
        rows = np.concatenate([plan.rows_of(t) for t in plan.tasks if isinstance(t, kind)])
        assert sorted(rows.tolist()) == list(range(100))
    names = [task.name for task in plan.tasks]
    assert len(names) == len(set(names))


def test_a_job_is_small_whatever_the_size_of_the_dataset(tmp_path):
    import pickle

    plan = plan_of(open_store(tmp_path), 100)
    sizes = [len(pickle.dumps(job)) for job in plan.jobs(plan.tasks)]
    many = plan_of(open_store(tmp_path), 113)

    assert max(sizes) < 40_000
    assert max(len(pickle.dumps(job)) for job in many.jobs(many.tasks)) < 40_000


def test_the_estimate_is_right(tmp_path):
    store = open_store(tmp_path / "root")
    plan = plan_of(store)
    estimate = plan.estimate()
    assert not (tmp_path / "root").exists()

    build(plan)

    found = contents(store)
    shards = sum(len(data) for path, data in found.items() if path.startswith("shards/"))
    stores = sum(len(data) for path, data in found.items() if "/c/" in path and path.startswith("zarr/"))
    assert estimate.shard_bytes == shards
    assert 0.5 < stores / estimate.zarr_bytes < 1.5
    assert estimate.num_objects == sum(path.startswith(("shards/", "zarr/")) for path in found)


# -- repeats -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scratch_changes_no_byte_and_is_removed(uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")
    plan = plan_of(store, scratch=tmp_path / "scratch")

    build(plan)

    assert contents(store) == uninterrupted
    assert plan.spool.nbytes == 48 * sum(size + 8 for size in (m.payload_bytes for m in REBEN.modalities))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_finished_root_is_left_alone(tmp_path):
    store = open_store(tmp_path / "root")
    manifest = build(plan_of(store))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")}

    assert build(plan_of(store)) == manifest

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "root").rglob("*")} == times


def test_done_tasks_are_skipped_and_damaged_objects_written_again(uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")
    plan = plan_of(store)
    for job in plan.jobs(plan.tasks):
        run_job(job)
    objects = {p: p.stat().st_mtime_ns for p in (tmp_path / "root").rglob("*.tar")}
    damaged, lost = sorted(objects)[:2]
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    lost.unlink()

    build(plan)

    assert contents(store) == uninterrupted
    touched = {p for p in objects if p.stat().st_mtime_ns != objects[p]}
    assert {damaged, lost} <= touched
    assert len(touched) <= 6  # the three modalities of two tasks


def test_a_receipt_reads_back_and_another_thing_is_none():
    receipt = Receipt(task="t", objects=(), payloads={"s2": (1, 2**64 - 1)})

    assert Receipt.from_json(receipt.to_json()) == receipt
    with pytest.raises(ValueError, match="not a receipt, or a damaged one"):
        Receipt.from_json(b"{}")


class Counting(SyntheticSource):
    """Counts what it is asked for."""

    read_so_far = 0

    def read(self, info, modalities):
        type(self).read_so_far += len(modalities)
        return super().read(info, modalities)


@pytest.mark.slow
@pytest.mark.parametrize(("url", "readings"), [("{}/root", 1), ("memory://counted", 2)])
def test_a_local_root_takes_one_reading_of_the_source(tmp_path, url, readings, uninterrupted, monkeypatch):
    monkeypatch.setattr(Counting, "read_so_far", 0)
    store = open_store(url.format(tmp_path))

    build(make_plan(Counting(48), official.table_of(48), store, options=OPTIONS))

    assert Counting.read_so_far == 48 * 3 * readings
    assert contents(store) == uninterrupted


def test_a_zarr_task_reads_the_source_where_shards_are_missing_or_anothers(tmp_path, uninterrupted):
    store = open_store(tmp_path / "root")
    plan = plan_of(store)
    shards = [job for job in plan.jobs(plan.tasks) if isinstance(job.task, ShardTask)]
    for job in shards[:2]:
        run_job(job)
    first, second = sorted((tmp_path / "root").rglob("*-s1-*.tar"))
    first.write_bytes(second.read_bytes())

    for job in plan.jobs(plan.tasks):
        if isinstance(job.task, ZarrTask):
            run_job(job)

    found = contents(store)
    zarr = {path: data for path, data in uninterrupted.items() if path.startswith("zarr/") and "/c/" in path}
    assert {path: found[path] for path in found if path.startswith("zarr/")}.items() <= zarr.items()


def test_another_plan_does_not_touch_a_root(tmp_path):
    store = open_store(tmp_path / "root")
    plan = plan_of(store)
    run_job(next(iter(plan.jobs(plan.tasks))))
    from reben_cloud.build import claim

    assert claim(plan) is None
    with pytest.raises(ConflictError, match=r"unfinished build of something else .* take an empty root"):
        build(plan_of(store, 47))
    build(plan)
    with pytest.raises(ConflictError, match=r"published already, with other patches or options"):
        build(plan_of(store, options=PlacementOptions(shard_samples=17)))


# -- crashes -------------------------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    from reben_cloud.build import build, make_plan
    from reben_cloud.root.placement import PlacementOptions
    from reben_cloud.sources.synthetic import SyntheticSource
    from reben_cloud.store import open_store
    from tests import official

    if __name__ == "__main__":
        url, options, count, workers, scratch = json.loads(sys.argv[1])
        plan = make_plan(
            SyntheticSource(count), official.table_of(count), open_store(url, options),
            options=PlacementOptions(shard_samples=16), scratch=Path(scratch) if scratch else None,
        )
        print("ready", flush=True)
        build(plan, workers=workers)
    """
)


def start_build(tmp_path, url, options=None, *, count=48, workers=1, scratch=None, **popen):
    script = tmp_path / "run_build.py"
    if not script.exists():  # A rival may be starting from it.
        script.write_text(SCRIPT)
    arguments = json.dumps([url, options or {}, count, workers, scratch and str(scratch)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, script, arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **popen,
    )


def kill_and_finish(tmp_path, store, *, kills, seed, **options):
    """Start builds and kill each after a random time, then let one end."""
    rng = random.Random(seed)
    options["start_new_session"] = True
    first = start_build(tmp_path, store.url, store.storage_options, **options)
    assert first.stdout.readline() == b"ready\n", first.stderr.read().decode()
    longest, killed = 1.0, 0
    process, groups = first, [first.pid]
    while killed < kills:
        time.sleep(rng.uniform(0, longest))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0)
        killed += 1
        if store.exists("manifest.json"):
            break
        process = start_build(tmp_path, store.url, store.storage_options, **options)
        groups.append(process.pid)
        assert process.stdout.readline() == b"ready\n", process.stderr.read().decode()
    errors = process.communicate(timeout=PATIENT_S)[1]
    # The workers of a killed build write on until they notice.
    wait_for(lambda: not any(map(processes_of, groups)))
    return killed, process.returncode, errors.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("place", "kills"), [("folder", 10), pytest.param("s3", 10, marks=pytest.mark.s3)])
def test_killed_at_random_points_and_run_again_gives_the_same_bytes(place, kills, tmp_path, request):
    count = 96
    if place == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        store = open_store(f"{bucket.url}/root", bucket.storage_options)
    else:
        store = open_store(tmp_path / "root")
    whole = open_store(tmp_path / "whole")
    build(plan_of(whole, count))

    killed, code, errors = kill_and_finish(
        tmp_path, store, kills=kills, seed=3, count=count, workers=2, scratch=tmp_path / "scratch"
    )

    assert code == 0 or store.exists("manifest.json"), errors
    build(plan_of(store, count, scratch=tmp_path / "scratch"))
    assert killed >= 3
    assert contents(store) == contents(whole)
    if place == "folder":
        assert not list((tmp_path / "root").rglob("*#*"))
    assert verify(rc.open(store.url, store.storage_options)).problems == ()


DYING = """
import os, sys
import reben_cloud.store as stores
left, put = int(sys.argv[2]), stores.Store.put
def dying(self, path, data, *, create=False):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    put(self, path, data, create=create)
stores.Store.put = dying
from tests.test_build import build, plan_of
build(plan_of(stores.open_store(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9, 0.98, 1.0])
def test_a_process_that_dies_between_two_writes_leaves_nothing_that_matters(share, uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Beside the objects: the plan, the lease (put twice) and a receipt for each task.
    num_puts = len(uninterrupted) + 2 + len(plan_of(store).tasks)

    command = [sys.executable, "-c", DYING, store.url, str(int(share * num_puts))]
    died = subprocess.run(command, env=environment, check=False).returncode

    assert died == 9
    assert build(plan_of(store))
    assert contents(store) == uninterrupted


# -- rivals --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_builds_at_once_end_in_one_root_and_a_clear_message(uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")
    with lease.Lease(store, "_build/leases/build.json"):
        process = start_build(tmp_path, store.url)
        errors = process.communicate(timeout=PATIENT_S)[1].decode()

        assert process.returncode == 1
        assert f"another build is at work (process {os.getpid()} on" in errors
        assert "--worker-index" in errors
    build(plan_of(store))
    assert contents(store) == uninterrupted


@pytest.mark.slow
def test_two_processes_race_for_a_root(tmp_path):
    store = open_store(tmp_path / "root")
    rivals = [start_build(tmp_path, store.url, count=96) for _ in range(3)]
    for process in rivals:
        assert process.stdout.readline() == b"ready\n", process.stderr.read().decode()
    ended = [(p.communicate(timeout=PATIENT_S)[1].decode(), p.returncode) for p in rivals]

    assert [code for _, code in ended].count(0) >= 1
    assert all("another build is at work" in text for text, code in ended if code)
    assert verify(rc.open(store.url), deep=True, against=SyntheticSource(96)).problems == ()


@pytest.mark.slow
def test_a_lease_of_a_dead_process_is_taken_over_at_once(tmp_path):
    store = open_store(tmp_path / "root")
    code = (
        "import os, sys; from reben_cloud.build.lease import Lease; from reben_cloud.store import open_store;"
        "Lease(open_store(sys.argv[1]), '_build/leases/build.json').__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, store.url], check=False)
    assert len(json.loads(bytes(store.get("_build/leases/build.json")))["id"]) == 32

    start = time.monotonic()
    build(plan_of(store))

    assert time.monotonic() - start < lease.DEAD_S  # which a holder that may live is given
    assert bytes(store.get("_build/leases/build.json")) == b"{}"


def test_a_lease_of_another_machine_counts_until_it_is_silent(tmp_path):
    store = open_store(tmp_path / "root")
    other = {"id": "x", "host": "elsewhere/1", "pid": 1, "started": "1", "time": time.time()}
    path = "_build/leases/build.json"
    store.put(path, json.dumps(other).encode())

    with pytest.raises(ConflictError, match=r"another build is at work \(process 1 on elsewhere\)"):
        build(plan_of(store))

    store.put(path, json.dumps({**other, "time": time.time() - lease.DEAD_S - 1}).encode())
    build(plan_of(store))


def test_a_build_whose_lease_is_taken_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    store = open_store(tmp_path / "root")
    path = "_build/leases/build.json"
    with lease.Lease(store, path) as held:
        held.check()
        theft = json.dumps({**json.loads(bytes(store.get(path))), "id": "thief"}).encode()

        def is_noticed():
            store.put(path, theft)  # again if a beat, which had found its own, was written over it
            return held._lost

        wait_for(is_noticed)
        with pytest.raises(ConflictError, match="another build is at work"):
            held.check()
    assert json.loads(bytes(store.get(path)))["id"] == "thief"


# -- stores that fail ----------------------------------------------------------------------------------


@pytest.mark.s3
def test_a_throttling_store_is_waited_for(uninterrupted, slow_gateway, s3_bucket):
    options = {**s3_bucket.storage_options, "endpoint_url": slow_gateway.endpoint}
    build(plan_of(open_store(f"{s3_bucket.url}/root", options)))

    assert contents(open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)) == uninterrupted


@pytest.mark.s3
def test_dropped_connections_are_survived_or_reported_and_resumed(uninterrupted, s3_bucket, fault_proxy):
    from tests.faultproxy import RandomRule

    fault_proxy.rules.append(
        RandomRule(faults=["503", "reset-before", "reset-mid"], rate=0.15, seed=1, max_times=2)
    )
    behind = s3_bucket.through(fault_proxy.endpoint)
    store = open_store(f"{behind.url}/root", behind.storage_options)

    for _ in range(8):
        with contextlib.suppress(StorageError):
            build(plan_of(store))
            break

    assert fault_proxy.num_faults() > 10
    assert contents(open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)) == uninterrupted


@pytest.mark.s3
def test_a_store_that_stays_away_is_named(s3_bucket, fault_proxy):
    behind = s3_bucket.through("http://127.0.0.1:9")
    store = open_store(f"{behind.url}/root", behind.storage_options)

    with pytest.raises(StorageError, match=r"no connection to the store .*AWS_ENDPOINT_URL"):
        build(plan_of(store))


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.slow
def test_a_disk_that_takes_no_more_is_reported_and_resumed(uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")
    process = start_build(tmp_path, store.url, preexec_fn=limit_files)
    errors = process.communicate(timeout=PATIENT_S)[1].decode()

    assert process.returncode == 1
    assert "StorageError: cannot write file://" in errors
    assert not store.exists("manifest.json")
    build(plan_of(store))
    assert contents(store) == uninterrupted


@pytest.mark.slow
def test_a_full_scratch_disk_is_reported_and_resumed(uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")
    process = start_build(tmp_path, store.url, scratch=tmp_path / "scratch", preexec_fn=limit_files)
    errors = process.communicate(timeout=PATIENT_S)[1].decode()

    assert process.returncode == 1
    assert "StorageError: " in errors
    assert "scratch" in errors
    build(plan_of(store, scratch=tmp_path / "scratch"))
    assert contents(store) == uninterrupted


@pytest.mark.s3
def test_a_bucket_over_its_quota_is_reported_and_resumed(uninterrupted, s3_bucket, tmp_path):
    if s3_bucket.server.folder is None or shutil.which("radosgw-admin") is None:
        pytest.skip("a quota can only be set on the S3 server that the tests start themselves")
    conf = next(s3_bucket.server.folder.rglob("ceph.conf"), None)
    if conf is None:
        pytest.skip("the S3 server's configuration is not at hand")
    admin = ["radosgw-admin", "-c", str(conf)]
    quota = ["--quota-scope=bucket", f"--bucket={s3_bucket.name}"]
    subprocess.run([*admin, "quota", "set", *quota, "--max-objects=20"], check=True, capture_output=True)
    subprocess.run([*admin, "quota", "enable", *quota], check=True, capture_output=True)
    store = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)

    with pytest.raises(StorageError, match="QuotaExceeded"):
        build(plan_of(store))

    subprocess.run([*admin, "quota", "disable", *quota], check=True, capture_output=True)
    build(plan_of(store))
    assert contents(store) == uninterrupted


# -- shares --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shares_together_end_in_the_same_root(uninterrupted, tmp_path):
    store = open_store(tmp_path / "root")

    ends = [build_share(plan_of(store), worker_index=index, workers_total=3) for index in (2, 0, 1)]

    assert ends[:2] == [None, None]
    assert ends[2]["num_patches"] == 48
    assert contents(store) == uninterrupted
    assert build_share(plan_of(store), worker_index=0, workers_total=3) == ends[2]


def test_a_share_and_a_whole_build_do_not_mix(tmp_path):
    store = open_store(tmp_path / "root")
    with lease.Lease(store, "_build/leases/share-00000-of-00002.json"):
        with pytest.raises(ConflictError, match="another build is at work"):
            build(plan_of(store))
        with pytest.raises(ConflictError, match="another build is at work"):
            build_share(plan_of(store), worker_index=1, workers_total=3)
        assert build_share(plan_of(store), worker_index=1, workers_total=2) is None
    with pytest.raises(ValueError, match=r"worker_index must be in \[0, 2\), got 2"):
        build_share(plan_of(store), worker_index=2, workers_total=2)


# -- what is published ---------------------------------------------------------------------------------


def test_objects_parquet_lists_everything_but_itself_and_the_manifest(uninterrupted):
    import hashlib

    import pyarrow as pa

    listed = pq.read_table(pa.BufferReader(uninterrupted["objects.parquet"])).to_pylist()

    assert {row["path"] for row in listed} | {"objects.parquet", "manifest.json"} == uninterrupted.keys()
    for row in listed:
        data = uninterrupted[row["path"]]
        assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    manifest = json.loads(uninterrupted["manifest.json"])
    assert manifest["objects_sha256"] == hashlib.sha256(uninterrupted["objects.parquet"]).hexdigest()


@pytest.mark.slow
def test_an_object_that_vanishes_before_the_end_stops_the_commit(tmp_path):
    store = open_store(tmp_path / "root")
    plan = plan_of(store)

    def losing(do, jobs):
        for job in jobs:
            receipt = do(job)
            if job.task is plan.tasks[0]:
                lost = receipt.objects[0].path
            yield receipt
        store.delete(lost)

    with pytest.raises(StorageError, match=r"the store now lists nothing; .* Run the same again"):
        build(plan, executor=losing)
    assert not store.exists("manifest.json")
    build(plan)
    assert issubclass(StorageError, RebenError)
