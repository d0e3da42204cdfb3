"""A build goes on only from the source that it began with; a damaged receipt never counts as done."""

import functools
import json
import os
import random
import shutil

import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.build import build, build_share, make_plan
from reben_cloud.build.receipts import Receipt
from reben_cloud.build.tasks import run_job
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests import official

NUM_PATCHES = 12
OPTIONS = PlacementOptions(shard_samples=4)


@pytest.fixture(scope="module")
def table():
    return official.table_of(NUM_PATCHES, num_products=1)


@pytest.fixture(scope="module")
def first_root(table, tmp_path_factory):
    from reben_cloud.sources.synthetic import SyntheticSource

    folder = tmp_path_factory.mktemp("first") / "root"
    build(make_plan(SyntheticSource(NUM_PATCHES), table, open_store(folder), options=OPTIONS))
    return folder


@pytest.fixture(scope="module")
def forms(table, first_root, tmp_path_factory):
    """A folder for each form of source, with the official metadata beside it."""
    where = tmp_path_factory.mktemp("forms")
    official.write_folders(where / "folders", table)
    official.write_archives(where / "archives", table)
    rc.open(first_root).search().export_lmdb(where / "lmdb")
    from reben_cloud.export import export_safetensors

    export_safetensors(rc.open(first_root).search(), where / "safetensors")
    shutil.copytree(first_root, where / "root")
    return where


TOUCHED = {
    "folders": "*_B02.tif",
    "archives": "BigEarthNet-S1.tar.zst",
    "lmdb": "data.mdb",
    "safetensors": "part-00000.safetensors",
    "root": "manifest.json",
}
"""What is written again in each form: for a root, that it is another one."""


def plan_of(form, root):
    source, table = open_source(form)
    scratch = root.parent / "scratch" if form.name == "archives" else None
    return make_plan(source, table, open_store(root), options=OPTIONS, scratch=scratch)


def begin(plan):
    """A build that is killed when half of its tasks are done."""

    def dies(work, jobs):
        jobs = list(jobs)
        # The tasks that come before all others, and half of the others.
        whole = not hasattr(jobs[0].task, "group")
        for number, job in enumerate(jobs):
            if not whole and number >= len(jobs) // 2:
                raise KeyboardInterrupt
            yield work(job)

    with pytest.raises(KeyboardInterrupt):
        build(plan, executor=dies)


@pytest.mark.parametrize("name", TOUCHED)
def test_a_source_that_changed_is_refused_with_what_differs_and_the_way_out(forms, tmp_path, name):
    form = shutil.copytree(forms / name, tmp_path / name)
    root = tmp_path / "out"
    begin(plan_of(form, root))
    files = sorted(form.rglob(TOUCHED[name]))
    file = files[0]
    if name == "root":
        manifest = json.loads(file.read_text())
        from reben_cloud.root.manifest import Manifest

        file.write_bytes(Manifest({**manifest, "created_from": "something else"}).to_bytes())
    else:
        for one in files:  # of the folders' patches some are not read yet, and may still change
            os.utime(one, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns + 1_000_000))

    with pytest.raises(ConflictError) as raised:
        build(plan_of(form, root))

    what = "the files of this patch have changed" if name == "folders" else file.name
    assert what in str(raised.value)
    assert f"start over: remove all that is in file://{root}" in str(raised.value)
    shutil.rmtree(root)
    build(plan_of(form, root))
    assert verify(rc.open(root), deep=True).problems == ()


@pytest.mark.parametrize("name", TOUCHED)
def test_a_source_that_is_the_same_or_has_moved_goes_on(forms, first_root, tmp_path, name):
    form = shutil.copytree(forms / name, tmp_path / name)
    root = tmp_path / "out"
    begin(plan_of(form, root))
    moved = tmp_path / "elsewhere" / name
    shutil.copytree(form, moved)  # keeps the times
    shutil.rmtree(form)

    build(plan_of(moved, root))

    assert shards(root) == shards(first_root)
    assert verify(rc.open(root)).problems == ()


def shards(root):
    return {path.name: path.read_bytes() for path in root.rglob("*.tar")}


def test_a_file_that_changes_while_it_is_built_from_is_noticed(forms, tmp_path):
    form = shutil.copytree(forms / "folders", tmp_path / "folders")
    plan = plan_of(form, tmp_path / "out")

    def touches(work, jobs):
        for job in jobs:
            if not hasattr(job.task, "group"):
                os.utime(max(form.rglob("*_VH.tif")))
            yield work(job)

    with pytest.raises(ConflictError, match="the files of this patch have changed since the build began"):
        build(plan, executor=touches)


def test_payloads_of_replaced_files_do_not_come_back_from_the_scratch_folder(forms, tmp_path):
    form = shutil.copytree(forms / "folders", tmp_path / "folders")
    source, table = open_source(form)
    of = functools.partial(make_plan, source, table, options=OPTIONS, scratch=tmp_path / "scratch")
    begin(of(open_store(tmp_path / "first")))
    theirs = {p.name: p for p in (forms / "folders").rglob("*_B02.tif")}
    first, second = sorted(form.rglob("*_B02.tif"))[:2]
    data = bytearray(first.read_bytes())
    data[-3:] = theirs[second.name].read_bytes()[-3:]
    first.write_bytes(data)

    build(of(open_store(tmp_path / "second")))

    assert verify(rc.open(tmp_path / "second"), against=open_source(form)[0]).problems == ()


def test_a_finished_root_is_not_said_to_be_that_of_a_source_that_changed(forms, tmp_path):
    form = shutil.copytree(forms / "lmdb", tmp_path / "lmdb")
    build(plan_of(form, tmp_path / "out"))
    os.utime(form / "data.mdb")

    with pytest.raises(ConflictError, match=r"data\.mdb was .* bytes of .*build into a new one"):
        build(plan_of(form, tmp_path / "out"))


def test_other_metadata_is_another_build(forms, tmp_path):
    form = shutil.copytree(forms / "folders", tmp_path / "folders")
    begin(plan_of(form, tmp_path / "out"))
    for file in form.glob("metadata*.parquet"):
        rows = pq.read_table(file).to_pylist()
        countries = {row["country"] for row in rows}
        if rows:
            rows[0]["country"] = next(c for c in ("Austria", "Serbia") if c not in countries)
        pq.write_table(official.pa.Table.from_pylist(rows, pq.read_schema(file)), file)

    with pytest.raises(ConflictError, match=r"unfinished build of something else .*other metadata"):
        build(plan_of(form, tmp_path / "out"))


# -- receipts -------------------------------------------------------------------------------------------


def test_a_flip_anywhere_in_a_receipt_makes_it_none(first_root):
    (path, *_) = sorted((first_root / "_build").rglob("shard-*.json"))
    whole = path.read_bytes()
    chance = random.Random(0)
    for at in {*range(200), *(chance.randrange(len(whole)) for _ in range(500))}:
        data = whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        with pytest.raises((ValueError, KeyError, TypeError)):
            Receipt.from_json(data)


def test_flipped_receipts_are_done_again_and_the_root_is_the_same(forms, first_root, tmp_path):
    root = tmp_path / "out"
    plan = plan_of(forms / "folders", root)
    begin(plan)
    receipts = sorted((root / "_build").glob("*/*.json"))
    chance = random.Random(1)
    for path in receipts:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)

    assert build_share(plan, worker_index=0, workers_total=1) is not None

    assert len(receipts) > 2
    assert shards(root) == shards(first_root)
    assert verify(rc.open(root), deep=True).problems == ()


def test_the_receipt_of_another_task_is_none_of_this_one(forms, tmp_path):
    plan = plan_of(forms / "folders", tmp_path / "out")
    one, other = (job for job in plan.jobs(plan.tasks[:2]))
    run_job(one)
    folder = tmp_path / "out" / "_build" / plan.fingerprint
    shutil.copy(folder / f"{one.task.name}.json", folder / f"{other.task.name}.json")

    assert run_job(other).task == other.task.name


def test_a_flip_in_the_plan_of_an_unfinished_build_is_refused(forms, tmp_path):
    root = tmp_path / "out"
    begin(plan_of(forms / "folders", root))
    path = root / "_build" / "plan.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(ConflictError, match=r"plan\.json is damaged"):
        build(plan_of(forms / "folders", root))
