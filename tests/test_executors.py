"""Executors: local processes, a real Dask cluster, progress, and the command that drives them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from distributed import Client
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud import cli
from reben_cloud.build import build, executors, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.cli.progress import bar
from reben_cloud.errors import ConflictError, NotFoundError, RebenError, SourceError, StorageError
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import official
from tests.clusters import local_cluster
from tests.conftest import PATIENT_S, processes_of, wait_for

OPTIONS = PlacementOptions(shard_samples=16)

pytestmark = pytest.mark.filterwarnings(
    # distributed's own housekeeping, on its way out.
    "ignore::DeprecationWarning:distributed.*",
    "ignore:.*Sending large graph.*:UserWarning",
)


def plan_of(store, num_patches=48, **options):
    return make_plan(
        SyntheticSource(num_patches), official.table_of(num_patches), store, options=OPTIONS, **options
    )


def contents(store):
    return {path: bytes(store.get(path)) for path, _ in store.list() if not path.startswith("_build/")}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("here") / "root")
    build(plan_of(store))
    return contents(store)


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(2) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_local_processes_write_the_same_root(here, tmp_path):
    store = open_store(tmp_path / "root")
    pids = set()

    def watched(items, total, what):
        assert (what, total) == ("build", len(plan_of(store).tasks))
        for item in items:
            pids.add(item.task)
            yield item

    build(plan_of(store, scratch=tmp_path / "scratch"), workers=2, progress=watched)

    assert len(pids) == len(plan_of(store).tasks)
    assert contents(store) == here


@pytest.mark.slow
def test_an_error_in_a_process_reaches_the_caller_as_it_is(tmp_path):
    official.write_folders(tmp_path / "folders", official.table_of(6))
    broken = next((tmp_path / "folders").rglob("*_B02.tif"))
    broken.write_bytes(b"")
    source, table = open_source(tmp_path / "folders")

    with pytest.raises(SourceError, match=f"{broken.name}: not a TIFF"):
        build(make_plan(source, table, open_store(tmp_path / "root")), workers=2)


class _Killed(SyntheticSource):
    """A source that kills the process which reads it, as a kernel short of memory does."""

    def read(self, info, modalities):
        os.kill(os.getpid(), 9)


@pytest.mark.slow
def test_a_killed_process_is_explained(tmp_path):
    table = official.table_of(6)

    with pytest.raises(
        RebenError, match=r"a worker process was killed .* run again, perhaps with fewer --workers"
    ):
        build(make_plan(_Killed(6), table, open_store(tmp_path / "root")), workers=2)


@pytest.mark.slow
def test_jobs_that_cannot_be_pickled_are_refused_and_not_waited_for():
    with pytest.raises(TypeError, match="cannot pickle"):
        list(executors.run_processes(print, (threading.Lock() for _ in range(9)), workers=2))


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    code = (
        "import sys, time; sys.path[:0] = [p for p in sys.argv[1].split(':') if p]\n"
        "from concurrent.futures import ProcessPoolExecutor; from multiprocessing import get_context; import os\n"
        "from reben_cloud.build.executors import _start_worker\n"
        "if __name__ == '__main__':\n"
        "    spawn = get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_start_worker,"
        " initargs=(os.getpid(), spawn.Event()))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    script = tmp_path / "pool.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, ":".join(sys.path)], stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())

    parent.kill()
    parent.wait()

    def gone():
        try:
            with open(f"/proc/{worker}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    wait_for(gone)


def test_there_is_at_least_one_worker():
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        executors.local(0)


# -- Dask ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dask_cluster_writes_the_same_root(here, cluster, tmp_path):
    store = open_store(tmp_path / "root")

    build(plan_of(store), executor=executors.dask(cluster))

    assert contents(store) == here


@pytest.mark.slow
def test_archives_are_unpacked_on_the_cluster(here, cluster, tmp_path):
    official.write_archives(tmp_path / "archives", official.table_of(48))
    source, table = open_source(tmp_path / "archives")
    store = open_store(tmp_path / "root")
    plan = make_plan(source, table, store, options=OPTIONS, scratch=tmp_path / "scratch")

    build(plan, executor=executors.dask(cluster))

    same = {path for path in here if path.startswith(("zarr/", "shards/"))}
    assert {p: d for p, d in contents(store).items() if p in same} == {p: here[p] for p in same}


@pytest.mark.slow
def test_a_dask_worker_that_dies_costs_nothing(here, cluster, tmp_path):
    store = open_store(tmp_path / "root")
    with Client(cluster) as client:
        pids = list(client.run(os.getpid).values())
    killed = []

    def killing(items, total, what):
        for item in items:
            if not killed:
                os.kill(pids[0], 9)
                killed.append(pids[0])
            yield item

    build(plan_of(store), executor=executors.dask(cluster), progress=killing)

    assert killed
    assert contents(store) == here


def test_a_missing_scheduler_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "SCHEDULER_S", 1)
    with pytest.raises(StorageError, match=r"no Dask scheduler at tcp://127.0.0.1:9 "):
        build(plan_of(open_store(tmp_path / "root")), executor=executors.dask("tcp://127.0.0.1:9"))


@pytest.mark.slow
@pytest.mark.s3
def test_many_patches_go_to_s3_through_dask(s3_bucket, cluster, shared):
    """20,000 patches with REBEN_TEST_DASK_PATCHES=20000; fewer by default, for the time it takes."""
    count = int(os.environ.get("REBEN_TEST_DASK_PATCHES", "1000"))
    folder = shared / "data" / "bigearthnet_pipeline"
    from reben_cloud.bigearthnet.official import read_official

    table = read_official([folder / "metadata.parquet"]).slice(0, count)
    store = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)

    manifest = build(make_plan(SyntheticSource(count), table, store), executor=executors.dask(cluster))

    assert manifest["num_patches"] == count
    root = rc.open(store.url, s3_bucket.storage_options)
    assert verify(root, quick=True).problems == ()
    assert len(root.search()) == count


# -- the command ---------------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    code, text, _ = run("build", "synthetic:100", tmp_path / "root", "--dry-run")
    _, machine, _ = run("build", "synthetic:100", tmp_path / "root", "--dry-run", "--json")

    assert code == 0
    assert re.search(r"patches   100 of \d+ products \(s2, s1, map\)", text)
    assert "scratch   none" in text
    assert json.loads(machine)["num_patches"] == 100
    assert not (tmp_path / "root").exists()


@pytest.mark.slow
def test_build_and_verify_from_the_command_line(tmp_path):
    official.write_folders(tmp_path / "folders", official.table_of(12))
    root = tmp_path / "root"

    code, text, _ = run(
        "build", tmp_path / "folders", root, "--scratch", tmp_path / "scratch", "--shard-samples", 5
    )
    assert (code, text) == (0, f"published 12 patches at {root.as_uri()}: s2 12, s1 12, map 12\n")
    there = f"already there, nothing to do: 12 patches at {root.as_uri()}: s2 12, s1 12, map 12\n"
    assert run("build", tmp_path / "folders", root, "--shard-samples", 5)[:2] == (0, there)

    code, text, _ = run("verify", root, "--deep", "--against", tmp_path / "folders")
    assert code == 0
    assert text.endswith(": all right\n")

    next(root.rglob("*.tar")).unlink()
    code, text, _ = run("verify", root, "--quick", "--json")
    assert code == 1
    report = json.loads(text)
    assert report["ok"] is False
    assert re.fullmatch(r"shards/\S+\.tar: missing", report["problems"][0])


def test_a_part_of_a_root_from_the_command_line(tmp_path):
    store = open_store(tmp_path / "root")
    build(plan_of(store))

    code, _, _ = run("build", tmp_path / "root", tmp_path / "part", "--split", "test", "--modality", "s2")

    part = rc.open(tmp_path / "part")
    assert code == 0
    assert sorted(part.search().patch_ids) == sorted(rc.open(store.url).search(split="test").patch_ids)
    with pytest.raises(NotFoundError, match=r"no dataset is published there"):
        run("build", "synthetic:3", tmp_path / "other", "--split", "test")


def test_shares_from_the_command_line(tmp_path):
    root = tmp_path / "root"
    first = run("build", "synthetic:3", root, "--worker-index", 1, "--workers-total", 2)
    second = run("build", "synthetic:3", root, "--worker-index", 0, "--workers-total", 2)

    assert first[1] == "share 1 of 2 is done; the last of them publishes\n"
    assert second[1].startswith("published 3 patches")


@pytest.mark.slow
def test_progress_is_a_line_at_once_and_then_every_ten_seconds_when_nobody_watches(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))

    assert list(bar(iter("abcdefgh"), 8, "build")) == list("abcdefgh")

    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["build: 0 of 8", "build: 1 of 8, 0.2/s, 0:00:28 left"]
    assert [line.split()[1] for line in lines] == ["0", "1", "4", "7", "8"]
    assert lines[-1] == "build: 8 of 8 in 0:00:36"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("group", [True, False], ids=["terminal", "kill -INT"])
def test_ctrl_c_says_what_is_done_and_the_same_command_goes_on(tmp_path, workers, group):
    command = [sys.executable, "-m", "reben_cloud.cli", "build", "synthetic:1500", tmp_path / "root"]
    command += ["--shard-samples", "16", "--workers", str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    receipts = tmp_path / "root" / "_build"
    wait_for(lambda: len(list(receipts.glob("*/shard-*.json"))) >= 3)

    # A terminal sends it to the worker processes as well.
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)

    _, err = process.communicate(timeout=PATIENT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    found = re.search(r"stopped, (\d+) of (\d+) tasks are done .* the same command goes on", err)
    assert found, err
    done, total = map(int, found.groups())
    assert 3 <= done < total
    assert len(list(receipts.glob("*/[sz]*-*.json"))) <= done + 2 * workers + 1  # at work, or handed over
    assert not (tmp_path / "root" / "manifest.json").exists()
    wait_for(lambda: not processes_of(process.pid))
    plan = plan_of(open_store(tmp_path / "root"))
    with pytest.raises(ConflictError, match="unfinished build of something else"):
        build(plan)
