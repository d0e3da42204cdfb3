"""Exports: the same records whatever happens on the way, readers of others, kills, full disks, faults."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import lmdb as py_lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load, load_file
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud import export as exporting
from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.doctor import diagnose
from reben_cloud.checks.verify import verify
from reben_cloud.cli import app
from reben_cloud.errors import (
    ChecksumError,
    ConflictError,
    InvalidPatchError,
    NotFoundError,
    SourceError,
    StorageError,
)
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.metadata import patch_infos
from reben_cloud.root.patch import key_of
from reben_cloud.sources.lmdb import LmdbSource
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests.conftest import PATIENT_S, missing
from tests.faultproxy import Rule
from tests.forked import ForkServer
from tests.roots import synthetic_root

SUPPORT = Path(__file__).parent / "support"
"""What lets torchvision be imported beside a CPU-only torch."""

NUM_PATCHES = 600
"""More than 512, so that the file is laid out and not put."""


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def records_of(folder):
    """Key -> value of an LMDB, read by py-lmdb in a process that has it not open."""
    with py_lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return {key.decode(): value for key, value in txn.cursor()}


def truth(selection, modalities=("s2", "s1", "map")):
    """What the records must be, from the source itself."""
    return {
        key_of(REBEN.modality(modality), info): payload
        for info in patch_infos(selection.official())
        for modality, payload in synthetic(info).items()
        if modality in modalities
    }


@functools.cache
def synthetic(info):
    return SyntheticSource(NUM_PATCHES).read(info, ("s2", "s1", "map")).payloads


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A root of synthetic patches."""
    folder = tmp_path_factory.mktemp("export") / "root"
    synthetic_root(folder, NUM_PATCHES, num_products=20)
    return folder


@pytest.fixture(scope="module")
def whole(built, tmp_path_factory):
    """An uninterrupted export of all of it; only read."""
    folder = tmp_path_factory.mktemp("whole") / "lmdb"
    rc.open(built).search().export_lmdb(folder)
    return folder


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """A root of the 24 real pairs."""
    folder = tmp_path_factory.mktemp("real") / "root"
    source, official = open_source(shared / "data" / "configilm_benv2_mock")
    build(make_plan(source, official, open_store(folder)))
    return folder


def copy_to(bucket, built):
    """The root in a bucket, object by object."""
    store = open_store(f"{bucket.url}/root", bucket.storage_options)
    here = open_store(built)
    for path, _ in here.list():
        if not path.startswith("zarr"):
            store.put(path, here.get(path))
    return store


@pytest.mark.slow
def test_every_record_is_there_and_right(built, whole):
    assert records_of(whole) == truth(rc.open(built).search())
    assert sorted(p.name for p in whole.iterdir()) == [
        "data.mdb",
        "export.json",
        "lock.mdb",
        "metadata.parquet",
        "metadata_for_patches_with_snow_cloud_or_shadow.parquet",
        "patches.parquet",
    ]
    assert (whole / "lock.mdb").stat().st_size == 8192
    assert (whole / "data.mdb").stat().st_size < 1.04 * sum(map(len, records_of(whole).values()))


def test_the_metadata_is_the_official_one_restricted(built, whole):
    official = rc.open(built).search().official()
    extra = [bool(s or c) for s, c in zip(*(official.column(i).to_pylist() for i in (6, 7)), strict=True)]
    kept = pq.read_table(whole / "metadata.parquet")
    rest = pq.read_table(whole / "metadata_for_patches_with_snow_cloud_or_shadow.parquet")

    assert kept.schema.remove_metadata() == OFFICIAL_SCHEMA
    assert rest.schema.remove_metadata() == OFFICIAL_SCHEMA
    assert rest == official.filter(np.array(extra))
    assert kept == official.filter(~np.array(extra))


@pytest.mark.parametrize("modalities", [("s2",), ("s1", "map")])
def test_a_sparse_selection_in_some_modalities(built, tmp_path, modalities):
    selection = rc.open(built).search(country="Ireland")
    assert 0 < len(selection) < 200

    report = selection.export_lmdb(tmp_path / "out", modalities=modalities)

    assert report.num_records == len(selection) * len(modalities)
    assert records_of(tmp_path / "out") == truth(selection, modalities)


@pytest.mark.slow
def test_a_sorted_selection_gives_the_same_bytes(built, whole, tmp_path):
    rc.open(built).search(sortby="-id").export_lmdb(tmp_path / "out", threads=1)

    for name in ("data.mdb", "patches.parquet", "metadata.parquet", "export.json"):
        assert sha256(tmp_path / "out" / name) == sha256(whole / name)


def test_small_exports_have_rico_hdls_own_bytes(real, tmp_path):
    """The same records put by a few lines that do what rico-hdl does."""
    rc.open(real).search().export_lmdb(tmp_path / "ours", map_size=2**30)

    found = records_of(tmp_path / "ours")
    with py_lmdb.open(str(tmp_path / "theirs"), map_size=2**30) as env:
        for prefix in ("S1", "S2"):
            with env.begin(write=True) as txn:
                for key in sorted(k for k in found if k.startswith(prefix)):
                    txn.put(key.encode(), found[key], overwrite=False)
    assert sha256(tmp_path / "ours" / "data.mdb") == sha256(tmp_path / "theirs" / "data.mdb")


@pytest.mark.slow
def test_the_map_size_is_what_was_asked_for(built, whole, tmp_path):
    asked = 100 * 2**40

    rc.open(built).search().export_lmdb(tmp_path / "out", map_size=asked)

    theirs, ours = ((f / "data.mdb").read_bytes() for f in (whole, tmp_path / "out"))
    for start in (32, 4128):
        assert int.from_bytes(ours[start : start + 8], "little") == asked
        assert int.from_bytes(theirs[start : start + 8], "little") == len(theirs)
        ours = ours[:start] + theirs[start : start + 8] + ours[start + 8 :]
    assert ours == theirs


# -- again, more, less -----------------------------------------------------------------------------------


def test_a_finished_export_is_recognised(built, tmp_path):
    selection = rc.open(built).search(split="test")
    first = selection.export_lmdb(tmp_path / "out")
    before = os.stat(tmp_path / "out" / "data.mdb")

    again = selection.export_lmdb(tmp_path / "out")

    assert first.num_fetched == first.num_records > 0
    assert again.num_fetched == 0
    assert os.stat(tmp_path / "out" / "data.mdb").st_mtime_ns == before.st_mtime_ns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said", "fetched"),
    [
        (lambda out: (out / "data.mdb").unlink(), "data.mdb is missing", "all"),
        (
            lambda out: os.truncate(out / "data.mdb", 8192),
            r"data.mdb has 8,192 bytes, must have [\d,]+",
            "all",
        ),
        (lambda out: flip(out / "data.mdb", 20), "data.mdb is not the file that was written", "all"),
        (lambda out: flip(out / "data.mdb", 30_000_000), "data.mdb is not the file that was written", 1),
        # The record under the damaged key, and the one that is found in its stead.
        (lambda out: flip(out / "data.mdb", 9000), "data.mdb is not the file that was written", 2),
        (lambda out: flip(out / "patches.parquet", 5000), "patches.parquet is not the file", 0),
        (lambda out: (out / "metadata.parquet").unlink(), "metadata.parquet is missing", 0),
    ],
    ids=["lost", "truncated", "head", "value", "key", "table", "official"],
)
def test_a_damaged_export_is_told_and_made_again(built, tmp_path, caplog, damage, said, fetched):
    out = tmp_path / "out"
    selection = rc.open(built).search(split="test")
    selection.export_lmdb(out)
    before = {p.name: sha256(p) for p in out.iterdir()}
    damage(out)
    dataset = rc.open(out)

    (doctor,) = (f for f in diagnose(str(out)) if f.subject == "root")
    assert doctor.level == "problem"
    assert re.search(said, doctor.detail)
    assert any(re.search(said, problem) for problem in verify(dataset, quick=True).problems)
    assert not verify(dataset).ok

    report = selection.export_lmdb(out)

    assert re.search(f"out is damaged and made again: {said}", caplog.text)
    assert report.changed
    assert report.num_fetched == (3 * len(selection) if fetched == "all" else fetched)
    assert {p.name: sha256(p) for p in out.iterdir()} == before
    assert verify(rc.open(out)).ok


def test_a_damaged_manifest_of_an_export_is_named(built, tmp_path):
    out = tmp_path / "out"
    selection = rc.open(built).search(split="test")
    selection.export_lmdb(out)

    for text in ('{"format":', "[]"):
        (out / "export.json").write_text(text)
        for use in (lambda: rc.open(out), lambda: selection.export_lmdb(out)):
            with pytest.raises(SourceError, match=r"export\.json: .*; remove .*out and export again"):
                use()


def flip(file, position):
    """Change a byte, counted from the end when negative."""
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.slow
def test_verify_names_the_damaged_record_of_an_export(built, tmp_path):
    out = tmp_path / "out"
    selection = rc.open(built).search(split="test")
    selection.export_lmdb(out)
    assert verify(rc.open(out), deep=True).to_text().endswith(": all right")
    keys = sorted(records_of_copy(out, tmp_path / "copy"))
    shutil.copytree(out, tmp_path / "bad")
    data = bytearray((out / "data.mdb").read_bytes())
    payload = records_of(tmp_path / "copy")[keys[40]]
    data[data.index(payload[:5000]) + 4000] ^= 1
    (tmp_path / "bad" / "data.mdb").write_bytes(data)

    report = verify(rc.open(tmp_path / "bad"))

    assert [p for p in report.problems if keys[40] in p and "other pixels" in p], report.problems
    assert len(report.problems) <= 2  # and that the file is not the one that was written
    assert verify(rc.open(tmp_path / "copy"), against=LmdbSource(str(out))).ok


def test_verify_reads_an_lmdb_of_rico_hdl(shared, tmp_path):
    shutil.copytree(shared / "data" / "configilm_benv2_mock", tmp_path / "mock")
    shutil.copytree(tmp_path / "mock", tmp_path / "bad")
    dataset = rc.open(tmp_path / "mock")

    assert verify(dataset).to_text().endswith("records and their headers; it has no checksums: all right")
    with pytest.raises(ValueError, match="has no checksums to compare a source with"):
        verify(dataset, against=LmdbSource(dataset.backing.path))
    (bad,) = (tmp_path / "bad").rglob("data.mdb")
    with py_lmdb.open(str(bad.parent), map_size=2**30) as env, env.begin(write=True) as txn:
        key, value = next(iter(txn.cursor()))
        txn.put(key, value[:-1])

    with pytest.raises(InvalidPatchError, match=f"record '{key.decode()}': .* bytes"):
        verify(rc.open(tmp_path / "bad"))


@pytest.mark.slow
def test_update_adds_and_prune_drops_and_a_reader_keeps_what_it_reads(built, whole, tmp_path):
    dataset, out = rc.open(built), tmp_path / "out"
    train, test = dataset.search(split="train"), dataset.search(split="test")
    train.export_lmdb(out)
    reader = rc.open(out)
    old = [batch["index"].copy() for batch in iterate(reader)]
    with pytest.raises(ConflictError, match=r"holds another export of this root .* --update.* --prune"):
        test.export_lmdb(out)

    updated = test.export_lmdb(out, update=True)

    assert updated.num_patches == len(train) + len(test)
    assert updated.num_fetched == 3 * len(test)  # the others came from the folder itself
    assert f"{len(test)} patches added, 0 dropped" in updated.to_text()
    assert records_of_copy(out, tmp_path / "a") == truth(dataset.search(split=["train", "test"]))
    assert len(rc.open(out).search()) == len(train) + len(test)
    assert sum(map(len, old)) == len(train)

    pruned = test.export_lmdb(out, prune=True)

    assert (pruned.num_fetched, pruned.num_patches) == (0, len(test))
    assert f"0 patches added, {len(train)} dropped" in pruned.to_text()
    whose = dataset.manifest["fingerprint"]
    assert f"export       {len(test)} of the {len(dataset)} patches of root {whose}" in rc.open(out).summary()
    assert f"0 payloads copied, {3 * len(test):,} were there" in pruned.to_text()
    assert "complete already" in test.export_lmdb(out, update=True, prune=True).to_text()
    assert (
        f"groups       {', '.join(f'{g} {n}' for g, n in groups_of(out).items())}" in rc.open(out).summary()
    )
    assert records_of_copy(out, tmp_path / "b") == truth(test)
    test.export_lmdb(tmp_path / "fresh")
    assert sha256(out / "data.mdb") == sha256(tmp_path / "fresh" / "data.mdb")
    dataset.search().export_lmdb(out, update=True, prune=True)
    assert sha256(out / "data.mdb") == sha256(whole / "data.mdb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "fresh", "out"]


def groups_of(out):
    counts = pq.read_table(out / "patches.parquet").column("reben:shard_group").to_pylist()
    return {group: counts.count(group) for group in sorted(set(counts))}


def iterate(dataset):
    from reben_cloud.stream import RawLoader

    return RawLoader(dataset.search(), batch_size=64)


def records_of_copy(folder, copy):
    """`records_of`, for a folder that this process has open."""
    shutil.copytree(folder, copy)
    return records_of(copy)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loader_gives_the_roots_batches_bit_for_bit(built, tmp_path, world_size):
    pytest.importorskip("torch")
    from reben_cloud.torch import StreamLoader

    rc.open(built).search(split=["train", "test"]).export_lmdb(tmp_path / "out")
    query = {"recommended": True, "split": "train"}
    options = {"batch_size": 32, "seed": 5, "world_size": world_size}

    for rank in range(world_size):
        theirs = StreamLoader(rc.open(built).search(**query), rank=rank, **options)
        ours = StreamLoader(rc.open(tmp_path / "out").search(**query), rank=rank, **options)
        for epoch in range(2):
            theirs.set_epoch(epoch)
            ours.set_epoch(epoch)
            count = 0
            for one, other in zip(ours, theirs, strict=True):
                assert one.keys() == other.keys()
                for name in one:
                    assert one[name].dtype == other[name].dtype
                    assert one[name].numpy().tobytes() == other[name].numpy().tobytes(), name
                count += len(one["index"])
            assert count > 100 / world_size


def test_what_is_no_export_is_never_touched(built, tmp_path):
    selection = rc.open(built).search(split="test")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    selection.export_lmdb(tmp_path / "lmdb")

    for update, prune in ((False, False), (True, True)):
        with pytest.raises(ConflictError, match="mine exists and is not an export"):
            selection.export_lmdb(tmp_path / "mine", update=update, prune=prune)
    with pytest.raises(ConflictError, match="export of another kind"):
        exporting.export_safetensors(selection, tmp_path / "lmdb", update=True)
    manifest = json.loads((tmp_path / "lmdb" / "export.json").read_text())
    (tmp_path / "lmdb" / "export.json").write_bytes(
        ExportManifest({**manifest, "fingerprint": "0" * 16}).to_bytes()
    )
    with pytest.raises(ConflictError, match="export of another root"):
        selection.export_lmdb(tmp_path / "lmdb", update=True)

    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_wrong_arguments(built, tmp_path):
    dataset = rc.open(built)
    with pytest.raises(NotFoundError, match="nothing to export: no patch of"):
        dataset.search(ids=[]).export_lmdb(tmp_path / "x")
    with pytest.raises(ValueError, match="modality 's3' is not in"):
        dataset.search().export_lmdb(tmp_path / "x", modalities=["s3"])
    with pytest.raises(ValueError, match="threads must be at least 1"):
        dataset.search().export_lmdb(tmp_path / "x", threads=0)
    with pytest.raises(ValueError, match="patches_per_file must be at least 1"):
        exporting.export_safetensors(dataset.search(), tmp_path / "x", patches_per_file=0)
    for map_size in (-5, 0, 1, 2**20, 2**30 + 1, 2**48):
        with pytest.raises(ValueError, match=r"map_size must be a multiple of 4,096 from [\d,]{9,} .* got"):
            dataset.search().export_lmdb(tmp_path / "x", map_size=map_size)
    assert list(tmp_path.iterdir()) == []


def test_two_exports_to_one_place_at_once(built, tmp_path):
    selection = rc.open(built).search(split="test")
    started, go_on = threading.Event(), threading.Event()

    def slowly(items, total, what):
        started.set()
        go_on.wait(PATIENT_S)
        return items

    thread = threading.Thread(
        target=selection.export_lmdb, args=(tmp_path / "x",), kwargs={"progress": slowly}
    )
    thread.start()
    started.wait(PATIENT_S)
    with pytest.raises(ConflictError, match="another process is exporting"):
        selection.export_lmdb(tmp_path / "x")
    go_on.set()
    thread.join()

    assert records_of(tmp_path / "x") == truth(selection)


# -- the disk, the store -----------------------------------------------------------------------------------


def test_too_small_a_disk_is_refused_before_anything_is_written(built, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50_000_000))

    with pytest.raises(StorageError, match=r"needs 1\d\d MB more and the disk of .* has 50\.0 MB"):
        rc.open(built).search().export_lmdb(tmp_path / "out")

    assert not list(tmp_path.rglob("data.mdb"))


LIMITED = """
import resource, sys
import reben_cloud as rc
from reben_cloud.errors import InvalidPatchError, StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000_000, resource.RLIM_INFINITY))
try:
    rc.open(sys.argv[1]).search().export_lmdb(sys.argv[2])
except StorageError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.slow
def test_a_refused_write_says_so_and_the_next_run_continues(built, whole, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, built, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 3, run.stderr
    assert "cannot write the export" in run.stdout
    assert "it continues" in run.stdout
    assert not (tmp_path / "out").exists()

    rc.open(built).search().export_lmdb(tmp_path / "out")

    assert sha256(tmp_path / "out" / "data.mdb") == sha256(whole / "data.mdb")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 120 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=240m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", folder], check=True)


def leave(folder, nbytes):
    """Let something else take the disk, but for `nbytes`."""
    (folder / "other").unlink(missing_ok=True)
    (folder / "other").write_bytes(bytes(shutil.disk_usage(folder).free - nbytes))


@pytest.mark.slow
def test_what_else_fills_the_disk_meanwhile_does_not_take_the_room(built, whole, small_disk):
    """The room is reserved at the start; only the tables need more, and say so."""
    selection = rc.open(built).search()

    def fill(items, total, what):
        leave(small_disk, 8192)
        return items

    with pytest.raises(
        StorageError, match="No space left on device; make room and run the same command again"
    ):
        selection.export_lmdb(small_disk / "out", progress=fill)
    assert not (small_disk / "out").exists()
    with pytest.raises(StorageError, match=r"\wB more"):
        selection.export_lmdb(small_disk / "out")
    leave(small_disk, 2_000_000)

    report = selection.export_lmdb(small_disk / "out")

    assert (report.num_fetched, report.changed) == (0, True)
    assert report.to_text().endswith("0 payloads copied, 1,800 were there")
    assert sha256(small_disk / "out" / "data.mdb") == sha256(whole / "data.mdb")


def test_a_disk_that_fills_up_before_the_last_rewrite(built, small_disk):
    """Up to 512 patches are put again as rico-hdl puts them, which needs their room twice."""
    selection = rc.open(built).search(split="test")

    def fill(items, total, what):
        leave(small_disk, 1_000_000)
        return items

    with pytest.raises(
        StorageError,
        match=r"cannot write .* with 0\.\d MB free on the disk; make room and run the same command again",
    ):
        selection.export_lmdb(small_disk / "out", progress=fill)
    assert sorted(p.name for p in small_disk.rglob("*.mdb")) == ["data.mdb", "lock.mdb"]
    (small_disk / "other").unlink()
    selection.export_lmdb(small_disk / "out")

    assert records_of(small_disk / "out") == truth(selection)


@pytest.mark.slow
def test_damaged_and_lost_shards_are_named(built, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(built, root)
    shard = next(iter(sorted(root.glob("shards/test/s1/*.tar"))))
    data = bytearray(shard.read_bytes())
    data[5_000] ^= 1
    shard.write_bytes(data)
    selection = rc.open(root).search(split="test", recommended=True)

    with pytest.raises(ChecksumError, match=rf"{shard.name}: the payload in row 0 is not the one"):
        selection.export_lmdb(tmp_path / "out")
    os.truncate(shard, 1_000_000)
    with pytest.raises(ChecksumError, match=rf"{shard.name} has 1,000,000 bytes, not the"):
        selection.export_lmdb(tmp_path / "out")
    os.truncate(shard, 0)
    with pytest.raises(ChecksumError, match=rf"{shard.name} has 0 bytes, not the"):
        selection.export_lmdb(tmp_path / "out")
    shard.unlink()
    with pytest.raises(NotFoundError, match=f"has lost the shard .*{shard.name}"):
        selection.export_lmdb(tmp_path / "out")
    report = selection.export_lmdb(tmp_path / "s2", modalities=["s2"])

    assert not (tmp_path / "out").exists()
    assert report.num_patches == len(selection)


@pytest.mark.s3
def test_flipped_bytes_on_the_way_from_s3_are_asked_for_again(built, whole, s3_bucket, fault_proxy, tmp_path):
    copy_to(s3_bucket, built)
    through = s3_bucket.through(fault_proxy.endpoint)
    fault_proxy.rules.append(Rule(fault="corrupt", match="shards/", times=3))
    fault_proxy.rules.append(Rule(fault="truncate", match="shards/train", times=2))

    rc.open(f"{through.url}/root", through.storage_options).search().export_lmdb(tmp_path / "out")

    assert sha256(tmp_path / "out" / "data.mdb") == sha256(whole / "data.mdb")


EXPORT = """
import sys
import reben_cloud as rc
selection = rc.open(sys.argv[1]).search()
print("ready", flush=True)
selection.export_lmdb(sys.argv[2], threads=2)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def fork_server():
    with ForkServer("import reben_cloud, reben_cloud.export.folder, reben_cloud.search") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", pytest.param("s3", marks=pytest.mark.s3)])
def test_twenty_kills(built, whole, fork_server, tmp_path, request, place):
    url, environment = str(built), {}
    if place == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        url, environment = copy_to(bucket, built).url, bucket.environment
    out, draw, kills, longest = tmp_path / "out", random.Random(place), 0, 0.5

    while kills < 20:
        process = fork_server.start(EXPORT, url, out, env=environment)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0, longest))
        process.kill()
        finished = process.communicate() == b"done\n"
        if out.exists():
            # Complete, or not there at all.
            assert sha256(out / "data.mdb") == sha256(whole / "data.mdb")
            assert len(pq.read_table(out / "patches.parquet")) == NUM_PATCHES
            shutil.rmtree(out)
        kills += not finished
        longest *= 0.7 if finished else 1
    last = fork_server.start(EXPORT, url, out, env=environment)

    assert last.communicate() == b"ready\ndone\n"
    assert last.returncode == 0
    for name in ("data.mdb", "patches.parquet", "metadata.parquet", "export.json"):
        assert sha256(out / name) == sha256(whole / name)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# -- readers of others -------------------------------------------------------------------------------------


CONFIGILM = """
import sys
import numpy as np
from configilm.extra.DataSets.BENv2_DataSet import BENv2DataSet
folder, out = sys.argv[1:]
found = {}
dirs = {
    "images_lmdb": folder,
    "metadata_parquet": folder + "/metadata.parquet",
    "metadata_snow_cloud_parquet": folder + "/metadata_for_patches_with_snow_cloud_or_shadow.parquet",
}
for channels in (2, 14):
    data = BENv2DataSet(data_dirs=dirs, img_size=(channels, 120, 120), include_cloudy=True, include_snowy=True,
                        return_extras=True)
    for number in range(len(data)):
        image, labels, patch_id = data[number]
        found[f"{channels}/{patch_id}/image"] = image.numpy()
        found[f"{channels}/{patch_id}/labels"] = np.asarray(labels)
    data.BENv2Loader.env and data.BENv2Loader.env.close()
np.savez(out, **found)
"""


@pytest.mark.slow
def test_configilm_reads_the_real_pairs_unchanged(real, tmp_path):
    if find_spec("configilm") is None:
        missing("configilm is not installed: `make test` installs it, against its own requirements")
    from reben_cloud.bigearthnet.bands import ARRAYS
    from reben_cloud.stream import RawLoader

    selection = rc.open(real).search()
    selection.export_lmdb(tmp_path / "out")

    run = subprocess.run(
        [sys.executable, "-c", CONFIGILM, tmp_path / "out", tmp_path / "found.npz"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(SUPPORT)},
    )

    assert run.returncode == 0, run.stderr
    found = np.load(tmp_path / "found.npz")
    assert len(found.files) == 2 * 2 * 24
    order = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    for batch in RawLoader(rc.open(tmp_path / "out").search(), batch_size=24):
        for row, index in enumerate(batch["index"].tolist()):
            bands = {"VV": batch["s1"][row, 0], "VH": batch["s1"][row, 1]}
            for array in ("s2_10m", "s2_20m", "s2_60m"):
                for number, band in enumerate(ARRAYS[array]):
                    image = batch[array][row, number]
                    bands[band] = image.repeat(120 // len(image), 0).repeat(120 // len(image), 1)
            want = np.stack([bands[b] for b in ("VV", "VH", *order)]).astype(np.float32)
            patch_id = selection.patch_ids[index]
            np.testing.assert_array_equal(found[f"14/{patch_id}/image"], want)
            np.testing.assert_array_equal(found[f"2/{patch_id}/image"], want[:2])
            np.testing.assert_array_equal(found[f"14/{patch_id}/labels"], batch["labels"][row])


# -- safetensors -------------------------------------------------------------------------------------------


def test_safetensors_and_back(built, tmp_path):
    selection = rc.open(built).search(split="validation")

    report = exporting.export_safetensors(selection, tmp_path / "out", patches_per_file=50)

    assert exporting.export_safetensors(selection, tmp_path / "out", patches_per_file=50).num_fetched == 0
    want = truth(selection)
    ids = pq.read_table(tmp_path / "out" / "patches.parquet").column("id").to_pylist()
    assert ids == selection.patch_ids
    parts = sorted((tmp_path / "out").glob("part-*.safetensors"))
    assert len(parts) == -(-len(ids) // 50)
    assert sum(p.stat().st_size for p in parts) == report.nbytes
    for number, path in enumerate(parts):
        arrays = load_file(path)
        for row, patch_id in enumerate(ids[number * 50 : number * 50 + 50]):
            for name, array in REBEN.modality("s2").stack(want[patch_id]).items():
                np.testing.assert_array_equal(arrays[name][row], array)
    source, official = open_source(tmp_path / "out")
    assert official == selection.official()
    for info in patch_infos(official.slice(3, 20)):
        for modality, payload in source.read(info, ("s2", "s1", "map")).payloads.items():
            assert payload == want[key_of(REBEN.modality(modality), info)]


# -- size --------------------------------------------------------------------------------------------------

MEASURED = """
import sys
import reben_cloud as rc
report = rc.open(sys.argv[1]).search().export_lmdb(sys.argv[2])
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_many_patches_value_by_value(tmp_path, shared):
    """20,000 of them with REBEN_TEST_EXPORT_PATCHES=20000; fewer by default, so that the checks stay short."""
    count = int(os.environ.get("REBEN_TEST_EXPORT_PATCHES", "1000"))
    if shutil.disk_usage(tmp_path).free < count * 1_200_000:
        pytest.skip("too little disk")
    pipeline = shared / "data" / "bigearthnet_pipeline"
    source, official = open_source(f"synthetic:{count}", metadata_paths=[pipeline / "metadata.parquet"])
    build(make_plan(source, official, open_store(tmp_path / "root")))

    run = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "root", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(run.stdout) < 500_000, "kB of memory"
    wrong = 0
    with py_lmdb.open(str(tmp_path / "out"), readonly=True, lock=False) as env, env.begin() as txn:
        assert env.stat()["entries"] == 3 * count
        for info in patch_infos(official):
            for modality, payload in source.read(info, ("s2", "s1", "map")).payloads.items():
                wrong += txn.get(key_of(REBEN.modality(modality), info).encode()) != payload
        key = key_of(REBEN.modality("s2"), info)
        assert load(txn.get(key.encode()))["B8A"].shape == (60, 60)
    assert wrong == 0


def test_the_command(built, tmp_path):
    runner = CliRunner()
    out = str(tmp_path / "out")

    first = runner.invoke(app, ["export", str(built), out, "--split", "test", "--modality", "map", "--json"])
    again = runner.invoke(app, ["export", str(built), out, "--split", "test", "--modality", "map"])
    parts = runner.invoke(
        app, ["export", str(built), f"{out}-parts", "--country", "Ireland", "--format", "safetensors"]
    )
    other = runner.invoke(app, ["export", str(built), out, "--country", "Ireland"])

    assert json.loads(first.stdout)["num_fetched"] == len(rc.open(built).search(split="test"))
    assert again.stdout.endswith("nothing to copy\n")
    assert parts.exit_code == 0
    assert (tmp_path / "out-parts" / "part-00000.safetensors").exists()
    assert isinstance(other.exception, ConflictError)
