"""Roots whose payloads lie in other people's objects: an LMDB, tars, opened where they are or indexed."""

import io
import json
import os
import shutil
import tarfile
import time

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.build.request import open_plan
from reben_cloud.checks.verify import verify
from reben_cloud.cli import app
from reben_cloud.errors import (
    ChangedError,
    ChecksumError,
    ConflictError,
    NotFoundError,
    SourceError,
    StorageError,
)
from reben_cloud.hosted import checksums, publish
from reben_cloud.hosted import tars as tars_module
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.hosted.tars import list_tars
from reben_cloud.root import references
from reben_cloud.root.references import RANGE_BYTES, plan_spans
from reben_cloud.sources.recognise import OFFICIAL_METADATA
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from reben_cloud.stream.readers.base import Counters
from reben_cloud.stream.readers.references import ReferenceReader
from reben_cloud.stream.select import StoredSelection, open_reader
from tests import batches, official
from tests.batches import assert_same

NUM_PATCHES = 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references") / "root"
    build(make_plan(SyntheticSource(NUM_PATCHES), official.table_of(NUM_PATCHES), open_store(folder)))
    return rc.open(folder)


@pytest.fixture(scope="module")
def lmdb(root, tmp_path_factory):
    """An LMDB as rico-hdl leaves it, its metadata beside it."""
    folder = tmp_path_factory.mktemp("references") / "BENv2.lmdb"
    root.search().export_lmdb(folder)
    for name in ("export.json", "patches.parquet"):
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def tars(root, tmp_path_factory):
    """Somebody else's tars: other names, other members between the payloads, all of a patch named by its id."""
    folder = tmp_path_factory.mktemp("references") / "tars"
    folder.mkdir()
    shards = sorted(root.store.local_path().glob("shards/*/*/*.tar"))
    for number, shard in enumerate(shards):
        with tarfile.open(shard) as old, tarfile.open(folder / f"part-{number}.tar", "w") as new:
            for member in old:
                data = old.extractfile(member).read()
                name, _, rest = member.name.partition(".")
                info = tarfile.TarInfo(f"./data/{name}.{rest}")
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return folder


def samples(dataset, **options):
    """Patch id -> its arrays, of the whole dataset."""
    return batches.samples(dataset.search(), **options)


@pytest.fixture(params=["lmdb", "lmdb with checksums", "tars"])
def reference(request, lmdb, tars, tmp_path):
    if request.param == "tars":
        index_hosted(tars, tmp_path / "ref", metadata_paths=[lmdb / name for name in OFFICIAL_METADATA])
    else:
        index_hosted(lmdb, tmp_path / "ref", checksums=request.param != "lmdb")
    return rc.open(tmp_path / "ref")


@pytest.mark.slow
def test_a_reference_root_is_read_like_the_root_itself(root, reference, tmp_path):
    assert set(reference.search().patch_ids) == set(root.search().patch_ids)
    assert_same(samples(root), samples(reference))

    patch_id = root.search().patch_ids[3]
    here, there = root.open_patch(patch_id), reference.open_patch(patch_id)
    assert set(here.data_vars) == set(there.data_vars)
    assert set(here.coords) == set(there.coords)
    for name in (*here.data_vars, *here.coords):
        np.testing.assert_array_equal(here[name].values, there[name].values)
        assert here[name].dims == there[name].dims

    for options in ({"quick": True}, {}, {"deep": True}):
        assert verify(reference, **options).problems == ()

    reference.search(limit=9).export_lmdb(tmp_path / "export")
    exported = rc.open(tmp_path / "export")
    assert_same({i: samples(root)[i] for i in exported.search().patch_ids}, samples(exported))

    plan, _ = open_plan(tmp_path / "ref", tmp_path / "part", only=reference.search(limit=5))
    build(plan)
    part = rc.open(tmp_path / "part")
    assert verify(part, deep=True).problems == ()
    assert_same({i: samples(root)[i] for i in part.search().patch_ids}, samples(part))


def test_nothing_is_copied(reference):
    store = reference.store
    assert not [path for path, _ in store.list() if path.startswith(("shards", "zarr"))]
    with pytest.raises(NotFoundError, match="refers to payloads that lie elsewhere and has no Zarr stores"):
        reference.open_zarr(reference.products[0])
    with pytest.raises(ValueError, match="refers to payloads elsewhere and has no Zarr stores"):
        RawLoader(reference.search(), form="zarr")
    with pytest.raises(NotFoundError, match="has no Zarr stores"):
        reference.search(limit=2).to_xarray()


def test_neighbours_come_in_one_request(lmdb, tmp_path):
    index_hosted(lmdb, tmp_path / "ref")
    loader = RawLoader(rc.open(tmp_path / "ref").search(), batch_size=NUM_PATCHES, modalities=["s2"], lanes=1)

    for _ in loader:
        pass

    assert loader.stats().requests == 1
    assert loader.stats().bytes_read < 1.05 * NUM_PATCHES * 160_832


def test_an_object_that_was_written_again_is_refused(lmdb, tmp_path):
    shutil.copytree(lmdb, tmp_path / "BENv2.lmdb")
    index_hosted(tmp_path / "BENv2.lmdb", tmp_path / "ref")
    reference = rc.open(tmp_path / "ref")
    os.utime(tmp_path / "BENv2.lmdb" / "data.mdb")

    with pytest.raises(ChangedError, match=r"data\.mdb has changed since it was indexed"):
        samples(reference)
    with pytest.raises(ChangedError, match="index it again"):
        reference.open_patch(reference.search().patch_ids[0])
    assert "has changed since it was indexed" in verify(reference, quick=True).to_text()


def test_a_change_in_the_middle_of_an_epoch_is_seen(lmdb, tmp_path, monkeypatch):
    shutil.copytree(lmdb, tmp_path / "BENv2.lmdb")
    index_hosted(tmp_path / "BENv2.lmdb", tmp_path / "ref")
    loader = RawLoader(rc.open(tmp_path / "ref").search(), batch_size=2, lanes=8, fetch_threads=1)
    load, loaded = ReferenceReader.load, []

    def load_and_change(self, part, stored):
        loaded.append(load(self, part, stored))
        os.utime(tmp_path / "BENv2.lmdb" / "data.mdb")  # not later: blocks are read ahead
        return loaded[-1]

    monkeypatch.setattr(ReferenceReader, "load", load_and_change)
    with pytest.raises(ChangedError, match="has changed since it was indexed"):
        for _ in loader:
            pass
    assert len(loaded) == 1


def test_a_flipped_pixel_is_found_where_checksums_were_recorded(lmdb, tmp_path):
    shutil.copytree(lmdb, tmp_path / "BENv2.lmdb")
    index_hosted(tmp_path / "BENv2.lmdb", tmp_path / "ref", checksums=True)
    file = tmp_path / "BENv2.lmdb" / "data.mdb"
    status = os.stat(file)
    start = int(rc.open(tmp_path / "ref").search().columns(["reben:s2_offset"]).column(0)[0].as_py())
    with open(file, "r+b") as handle:
        handle.seek(start + 5000)
        value = handle.read(1)[0]
        handle.seek(start + 5000)
        handle.write(bytes([value ^ 4]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    reference = rc.open(tmp_path / "ref")
    with pytest.raises(ChecksumError, match=r"is not the s2 payload of .*its xxh3 differs"):
        samples(reference)
    assert len(verify(reference).problems) == 1


@pytest.mark.parametrize("name", ["footer", "row group"])
def test_a_damaged_table_is_a_finding(lmdb, tmp_path, name):
    index_hosted(lmdb, tmp_path / "ref", checksums=True)
    table = tmp_path / "ref" / "patches.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) - 100 if name == "footer" else 1000] ^= 4
    table.write_bytes(data)

    report = verify(rc.open(tmp_path / "ref"))

    assert any(problem.startswith("patches.parquet") for problem in report.problems)
    assert not report.ok


def test_the_lack_of_checksums_is_said_once(lmdb, tmp_path, caplog):
    shutil.copytree(lmdb, tmp_path / "BENv2.lmdb")
    index_hosted(tmp_path / "BENv2.lmdb", tmp_path / "ref")

    for _ in range(2):
        samples(rc.open(tmp_path / "ref"))

    assert [
        r.message for r in caplog.records if "no checksums of its payloads were recorded" in r.message
    ] != []
    assert len([r for r in caplog.records if "no checksums" in r.message]) == 1


def test_places_outside_their_object_are_refused():
    objects = [references.RemoteObject(url="file:///x", nbytes=100, version="1")]
    zero = np.zeros(1, np.int64)

    assert references.check_places(objects, zero, np.array([90]), 10) is None
    assert "byte 91" in references.check_places(objects, zero, np.array([91]), 10)
    assert "byte -1" in references.check_places(objects, zero, np.array([-1]), 10)
    assert "object 1" in references.check_places(objects, zero + 1, np.array([0]), 10)
    assert "object -1" in references.check_places(objects, zero - 1, np.array([0]), 10)
    assert "byte" in references.check_places(objects, zero, np.array([2**63 - 5]), 10)


@given(
    st.lists(st.integers(0, 50_000_000), max_size=40, unique=True),
    st.integers(1, 200_000),
    st.integers(0, 1_000_000),
)
def test_every_payload_lies_in_one_span_and_none_costs_more_than_alone(starts, nbytes, price):
    spans = plan_spans(np.array(starts, np.int64), nbytes, request_bytes=price)

    members = np.concatenate([s.members for s in spans]) if spans else np.zeros(0, np.int64)
    assert sorted(members.tolist()) == list(range(len(starts)))
    for span in spans:
        for member in span.members:
            assert span.start <= starts[member]
            assert starts[member] + nbytes <= span.start + span.nbytes
        assert span.nbytes <= max(RANGE_BYTES, nbytes)
    cost = sum(s.nbytes + price for s in spans)
    assert cost <= len(starts) * (nbytes + price)


def test_a_second_index_is_the_same_root_and_another_is_refused(lmdb, tmp_path):
    first = index_hosted(lmdb, tmp_path / "ref")
    assert index_hosted(lmdb, tmp_path / "ref") == first

    with pytest.raises(ConflictError, match="holds another dataset"):
        index_hosted(lmdb, tmp_path / "ref", modalities=["s2"])


def test_checksums_that_are_asked_for_are_there_or_it_is_told(lmdb, tmp_path):
    index_hosted(lmdb, tmp_path / "bare")
    with pytest.raises(ConflictError, match="was indexed without checksums"):
        index_hosted(lmdb, tmp_path / "bare", checksums=True)

    first = index_hosted(lmdb, tmp_path / "summed", checksums=True)
    assert index_hosted(lmdb, tmp_path / "summed") == first


def test_what_is_in_the_way_is_told_before_anything_is_read(root, lmdb, tmp_path):
    index_hosted(lmdb, tmp_path / "ref")

    def progress(_items, _total, what):
        pytest.fail(f"{what} were read")

    with pytest.raises(ValueError, match="unknown modality 's3'"):
        index_hosted(lmdb, tmp_path / "new", modalities=["s3"], progress=progress)
    with pytest.raises(ConflictError, match="holds another dataset"):
        index_hosted(lmdb, root.store.local_path(), progress=progress)
    shutil.copytree(lmdb, tmp_path / "copy.lmdb")
    with pytest.raises(ConflictError, match="holds another dataset"):
        index_hosted(tmp_path / "copy.lmdb", tmp_path / "ref", progress=progress)


def test_an_index_that_could_not_be_published_is_kept(lmdb, tmp_path):
    others = official.table_of(NUM_PATCHES + 40)
    held = official.table_of(NUM_PATCHES)["patch_id"].combine_chunks()
    wrong = others.filter(pc.invert(pc.is_in(others["patch_id"], held)))
    pq.write_table(wrong, tmp_path / "metadata.parquet")
    kept = tmp_path / "cache" / "index"

    with pytest.raises(SourceError):
        index_hosted(lmdb, tmp_path / "ref", metadata_paths=[tmp_path / "metadata.parquet"])
    assert len(list(kept.iterdir())) == 1

    index_hosted(lmdb, tmp_path / "ref")
    assert list(kept.iterdir()) == []


def test_an_interrupted_index_reads_no_further():
    told = 0

    def work(tell):
        nonlocal told
        for told in range(1_000):
            tell(told, 1_000)
            time.sleep(0.005)

    def progress(items, _total, _what):
        yield next(items)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish._told(work, progress, 1_000, "pages")
    assert told < 900


@pytest.mark.parametrize(
    "harm", ["cut at a header", "cut in a header", "no end", "damaged header", "another behind it"]
)
def test_a_tar_that_is_not_whole_is_refused(lmdb, tars, tmp_path, harm):
    (tmp_path / "tars").mkdir()
    whole = tars / "part-0.tar"
    with tarfile.open(whole) as tar:
        members = tar.getmembers()
    data = bytearray(whole.read_bytes())
    middle = members[len(members) // 2].offset
    if harm == "cut at a header":
        del data[middle:]
    elif harm == "cut in a header":
        del data[middle + 100 :]
    elif harm == "no end":
        del data[members[-1].offset_data + -(-members[-1].size // 512) * 512 :]
    elif harm == "another behind it":
        data += whole.read_bytes()
    else:
        data[middle + 10] ^= 1
    (tmp_path / "tars" / "a.tar").write_bytes(data)

    with pytest.raises(SourceError, match=r"a\.tar: (damaged or cut short|more follows .*) at byte"):
        index_hosted(
            tmp_path / "tars", tmp_path / "ref", metadata_paths=[lmdb / name for name in OFFICIAL_METADATA]
        )


def test_a_local_index_is_read_with_the_options_of_its_objects(tmp_path):
    objects = [references.RemoteObject(url="s3://bucket/data.mdb", nbytes=1, version="1")]
    options = {"key": "k", "secret": "s"}

    assert references.options_for(open_store(tmp_path, options), objects) == options
    assert references.options_for(open_store("s3://other", options), objects) == options
    assert references.options_for(open_store("https://example.org/ref", options), objects) == {}


@pytest.mark.parametrize("name", ["a b", "50%41", "a#b?c", "ü"])
def test_names_that_a_url_escapes_are_found_again(lmdb, tars, tmp_path, name):
    metadata = [lmdb / file for file in OFFICIAL_METADATA]
    (tmp_path / "tars" / name).mkdir(parents=True)
    shutil.copy(tars / "part-0.tar", tmp_path / "tars" / name / f"{name}.tar")
    (tmp_path / "above").mkdir()
    shutil.copytree(lmdb, tmp_path / "above" / name)

    sources = tmp_path / "tars", tmp_path / "tars" / name / f"{name}.tar", tmp_path / "above"
    for number, source in enumerate(sources):
        index_hosted(source, tmp_path / f"ref{number}", metadata_paths=metadata)
        assert verify(rc.open(tmp_path / f"ref{number}")).problems == ()


def test_of_metadata_in_two_places_the_nearer_are_taken(lmdb, tmp_path):
    shutil.copytree(lmdb, tmp_path / "data" / "x.lmdb")
    for name in OFFICIAL_METADATA:
        shutil.copy(lmdb / name, tmp_path / "data" / name)

    for number, url in enumerate(["data", "data/x.lmdb", "data/x.lmdb/data.mdb"]):
        index_hosted(tmp_path / url, tmp_path / f"ref{number}")
        assert len(rc.open(tmp_path / f"ref{number}")) == NUM_PATCHES


def test_what_cannot_be_indexed_is_told(lmdb, tars, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no LMDB \(data.mdb\) and no uncompressed tars"):
        index_hosted(tmp_path / "empty", tmp_path / "ref")
    with pytest.raises(SourceError, match="name the official files"):
        index_hosted(tars, tmp_path / "ref")
    shutil.copytree(lmdb, tmp_path / "bare.lmdb", ignore=shutil.ignore_patterns("*.parquet"))
    with pytest.raises(SourceError, match="no metadata"):
        index_hosted(tmp_path / "bare.lmdb", tmp_path / "ref")
    with tarfile.open(tmp_path / "empty" / "x.tar", "w:gz") as tar:
        tar.add(lmdb / OFFICIAL_METADATA[0], "x")
    with pytest.raises(SourceError, match="not an uncompressed tar"):
        index_hosted(tmp_path / "empty", tmp_path / "ref", metadata_paths=[lmdb / OFFICIAL_METADATA[0]])


@pytest.mark.parametrize("name", ["b.tar.gz", "b.TAR", "b.tgz", "b.tar (1)", "b.tar.part"])
def test_what_only_looks_like_a_tar_is_named(name, tmp_path, caplog):
    for file in ("a.tar", name, "a.tar.md5", "tar", "a.tar.idx", "._b.tar.gz", "guitar"):
        (tmp_path / file).write_bytes(b"never read")

    assert list(list_tars(open_store(tmp_path))) == ["a.tar"]
    assert f"not taken: {name}; only uncompressed tars" in caplog.text


def test_what_holds_far_more_than_tars_is_not_listed_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tars_module, "MOST_OTHERS", 20)
    monkeypatch.setattr(tars_module, "_FIRST_PAGE", 5)
    for number in range(12):
        (tmp_path / f"{number:02}.tar").touch()
    shown = []

    def progress(items, total, what):
        for item in items:
            shown.append((total, what))
            yield item

    assert len(list_tars(open_store(tmp_path), progress)) == 12
    assert shown == [(20, "objects listed, at most")] * 7
    for number in range(21):
        (tmp_path / f"{number:02}.txt").touch()
    with pytest.raises(SourceError, match=r"more than 20 objects there are no tars .*; name the folder"):
        list_tars(open_store(tmp_path))


def test_the_command_makes_a_root_that_the_other_commands_read(lmdb, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    document = json.loads(
        CliRunner().invoke(app, ["index", str(lmdb), str(tmp_path / "ref"), "--json"]).stdout
    )
    assert document["references"][0]["nbytes"] == (lmdb / "data.mdb").stat().st_size
    made = run("index", lmdb, tmp_path / "ref")
    assert f"already there, nothing to do: {NUM_PATCHES} patches (s2, s1, map) in 1 object of" in made
    told = CliRunner().invoke(app, ["index", str(lmdb), str(tmp_path / "ref"), "--json"])
    assert json.loads(told.stdout)["num_patches"] == NUM_PATCHES
    run("info", tmp_path / "ref")
    run("verify", tmp_path / "ref")
    assert f"{NUM_PATCHES} samples" in run("stream", tmp_path / "ref", "--batch-size", "8")


def test_few_patches_of_many_are_asked_for_together(lmdb, tmp_path):
    index_hosted(lmdb, tmp_path / "ref")
    dataset = rc.open(tmp_path / "ref")
    chosen = dataset.search(sample=12)
    reader = open_reader(
        stored := StoredSelection.of(chosen, ["s2"]),
        Counters(),
        form="shards",
        cache_dir=None,
        cache_bytes=None,
        keep=1,
    )

    assert stored.places.shards == [("stored", 0)]
    assert stored.places.row.tolist() == list(range(12))
    assert sum(len(positions) for positions, _ in reader.load(("s2",), np.arange(12))["s2"]) == 12


def test_a_root_elsewhere_may_not_name_files_of_the_reader(lmdb, tmp_path):
    index_hosted(lmdb, tmp_path / "ref")
    objects = rc.open(tmp_path / "ref").manifest.references

    for url in ("s3://bucket/ref", "https://example.org/ref"):
        with pytest.raises(StorageError, match=r"refers to file:///.*data\.mdb, which lies on the machine"):
            references.options_for(open_store(url), objects)
    assert references.options_for(open_store(tmp_path / "ref"), objects) == {}


def test_keys_that_are_no_text_are_told_and_left_out(lmdb, tmp_path, caplog):
    py_lmdb = pytest.importorskip("lmdb")
    shutil.copytree(lmdb, tmp_path / "BENv2.lmdb")
    with py_lmdb.open(str(tmp_path / "BENv2.lmdb"), map_size=2**30) as env, env.begin(write=True) as txn:
        txn.put(b"\xff\xfe", b"not a patch")
        txn.put(b"\xff\xff", b"nor this")

    manifest = index_hosted(tmp_path / "BENv2.lmdb", tmp_path / "ref")

    assert manifest.num_patches == NUM_PATCHES
    assert r"key b'\xff\xfe' is not UTF-8" in caplog.text
    assert "(2 such keys)" in caplog.text


def test_checksums_go_on_after_a_kill(lmdb, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "PIECE_BYTES", 1024 * 1024)
    read, calls, dies_at = references.RemoteObjects.read, [0], [0]

    def counted(self, *args):
        calls[0] += 1
        if calls[0] == dies_at[0]:
            raise KeyboardInterrupt
        return read(self, *args)

    def num_reads(name):
        calls[0] = 0
        index_hosted(lmdb, tmp_path / name, checksums=True)
        return calls[0]

    monkeypatch.setattr(references.RemoteObjects, "read", counted)
    whole, calls[0], dies_at[0] = num_reads("whole"), 0, 5
    with pytest.raises(KeyboardInterrupt):
        index_hosted(lmdb, tmp_path / "ref", checksums=True)
    dies_at[0] = 0

    assert num_reads("ref") == whole - 4
    whole_table, table = (pq.read_table(tmp_path / name / "patches.parquet") for name in ("whole", "ref"))
    assert table.equals(whole_table)
    assert list((tmp_path / "cache" / "index").iterdir()) == []


@pytest.mark.parametrize("kind", ["lmdb", "tars"])
def test_a_dry_run_says_what_it_costs(request, tmp_path, kind):
    command = ["index", str(request.getfixturevalue(kind)), str(tmp_path / "ref"), "--dry-run"]

    cost = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)

    assert cost["kind"] == kind
    assert cost["nbytes"] > 0
    assert cost["records"] == (3 * NUM_PATCHES if kind == "lmdb" else None)
    assert f"in {cost['requests']:,} requests at most" in CliRunner().invoke(app, command).stdout
    assert not (tmp_path / "ref").exists()
