"""An LMDB on a hub, opened by its URL: searched before any index, looked up as it is used, with a hub at its worst."""

import pickle
import shutil
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.build.request import open_plan
from reben_cloud.checks.verify import verify
from reben_cloud.cli import app
from reben_cloud.errors import ChangedError, NotFoundError, SourceError, StorageError
from reben_cloud.hosted import places
from reben_cloud.hosted.finder import LmdbFinder
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.layers.maps import write_map_layer
from reben_cloud.sources.recognise import OFFICIAL_METADATA
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import batches, hub, official
from tests.batches import assert_same

pytest.importorskip("huggingface_hub")

NUM_PATCHES = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosted") / "root"
    build(make_plan(SyntheticSource(NUM_PATCHES), official.table_of(NUM_PATCHES), open_store(folder)))
    return rc.open(folder)


@pytest.fixture(scope="module")
def lmdb(root, tmp_path_factory):
    """As the hub has it: no maps."""
    folder = tmp_path_factory.mktemp("hosted") / "BENv2.lmdb"
    root.search().export_lmdb(folder, modalities=["s2", "s1"])
    return folder


@pytest.fixture
def files(lmdb):
    found = {"BENv2.lmdb/data.mdb": lmdb / "data.mdb", "BENv2.lmdb/lock.mdb": b""}
    return found | {name: lmdb / name for name in OFFICIAL_METADATA}


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    monkeypatch.setenv("REBEN_CACHE", str(tmp_path / "cache"))
    with hub.serve(hub.Hub()) as served:
        served.commit(files)
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


URL = "hf://datasets/owner/name"


samples = partial(batches.samples, modalities=["s2", "s1"])


def test_one_line_opens_searches_and_streams_it(server, root):
    dataset = rc.open(URL)

    assert dataset.modalities == ("s2", "s1")
    assert len(dataset) == NUM_PATCHES
    train = dataset.search(split="train")
    assert set(train.patch_ids) == set(root.search(split="train").patch_ids)
    assert_same(samples(dataset.search()), samples(root.search()))
    patch_id = train.patch_ids[0]
    np.testing.assert_array_equal(
        dataset.open_patch(patch_id)["s1"].values, root.open_patch(patch_id)["s1"].values
    )


def test_maps_are_a_layer_of_it_before_any_index(server, root, tmp_path):
    official.write_archives(tmp_path / "zst", official.table_of(NUM_PATCHES), ["map"])

    layer = write_map_layer(tmp_path / "maps", rc.open(URL), tmp_path / "zst", scratch=tmp_path / "scratch")

    assert layer.manifest.coverage == NUM_PATCHES
    found = batches.samples(rc.open(URL, layers=[layer.url]).search())
    assert_same(batches.samples(root.search()), found)


def test_a_search_reads_no_pixels(server):
    len(rc.open(URL).search(country="Austria"))

    read = sum(one.nbytes for one in server.asked if one.server == "cdn" and "data.mdb" in one.path)
    assert read < 200_000


def test_what_was_looked_up_is_not_asked_for_again(server):
    selection = rc.open(URL).search(limit=10)
    samples(selection)
    before = server.count("cdn")
    samples(selection)
    again = server.count("cdn") - before

    before = server.count("cdn")
    samples(rc.open(URL).search(limit=10))
    reopened = server.count("cdn") - before

    assert again <= 20
    assert reopened <= again + 9  # the metadata, and a question or two


@pytest.mark.parametrize(
    "trouble",
    [
        {"expire_after": 3},
        {"throttle": {"cdn": 5}},
        {"cut": [1000, 100_000, 0, 50_000]},
        {"linked": False},
        {"redirects": False},
        {"answers_head": False},
    ],
    ids=str,
)
def test_a_whole_epoch_survives(server, root, trouble):
    for name, value in trouble.items():
        if name == "throttle":
            server.throttled.update(value)
        elif name == "cut":
            server.cut_after.extend(value)
        else:
            setattr(server, name, value)

    assert_same(samples(rc.open(URL).search()), samples(root.search()))


def test_a_commit_is_pinned_and_a_file_that_changed_is_refused(server, files, tmp_path):
    dataset = rc.open(URL)
    index_hosted(URL, tmp_path / "ref")
    reference = rc.open(tmp_path / "ref")
    assert "@" in reference.manifest["references"][0]["url"]
    shutil.copy(files["BENv2.lmdb/data.mdb"], tmp_path / "other.mdb")
    with open(tmp_path / "other.mdb", "ab") as file:
        file.write(bytes(4096))

    server.commit(files | {"BENv2.lmdb/data.mdb": tmp_path / "other.mdb"})

    # The commit of then is still there, and so is what it holds.
    assert len(samples(dataset.search(limit=5))) == 5
    assert len(samples(reference.search(limit=5))) == 5


def test_an_object_without_commits_that_changes_is_refused(server, files, tmp_path):
    url = f"{server.url}/datasets/owner/name/resolve/main/BENv2.lmdb"
    index_hosted(url, tmp_path / "ref", metadata_paths=[files[name] for name in OFFICIAL_METADATA])
    reference = rc.open(tmp_path / "ref")
    assert len(samples(reference.search(limit=5))) == 5
    shutil.copy(files["BENv2.lmdb/data.mdb"], tmp_path / "other.mdb")
    with open(tmp_path / "other.mdb", "ab") as file:
        file.write(bytes(4096))

    server.commit(files | {"BENv2.lmdb/data.mdb": tmp_path / "other.mdb"})

    with pytest.raises(ChangedError, match="has changed since it was indexed"):
        samples(reference.search())


@pytest.mark.slow
def test_a_part_becomes_a_root_an_export_and_an_index(server, root, tmp_path):
    dataset = rc.open(URL)
    wanted = dataset.search(split="train", limit=12)

    wanted.export_lmdb(tmp_path / "export")
    assert_same(samples(rc.open(tmp_path / "export").search()), samples(wanted))

    plan, _ = open_plan(URL, tmp_path / "part", only=wanted)
    build(plan)
    part = rc.open(tmp_path / "part")
    assert verify(part, deep=True).problems == ()
    assert_same(samples(part.search()), samples(wanted))

    index_hosted(URL, tmp_path / "ref")
    reference = rc.open(tmp_path / "ref")
    assert reference.manifest["fingerprint"] == dataset.manifest["fingerprint"]
    assert_same(samples(reference.search()), samples(root.search()))
    assert verify(reference).problems == ()
    assert verify(dataset, quick=True).problems == ()


def test_what_is_wrong_is_told(server, files, lmdb):
    server.commit({name: data for name, data in files.items() if "metadata" not in name})
    with pytest.raises(SourceError, match="no metadata"):
        rc.open(URL)
    server.commit({"README.md": b"nothing"})
    with pytest.raises(NotFoundError, match="no dataset is published there"):
        rc.open(URL)
    server.commit(
        {name: data for name, data in files.items() if "data.mdb" not in name}
        | {"BENv2.lmdb/data.mdb": b"x" * 9000}
    )
    with pytest.raises(SourceError, match=r"data\.mdb"):
        rc.open(URL).search()


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_take_the_url(server, tmp_path):
    assert f"{NUM_PATCHES} patches" in run("info", URL)
    run("export", URL, tmp_path / "export", "--limit", "4")
    run("build", URL, tmp_path / "part", "--limit", "4")
    assert len(rc.open(tmp_path / "part")) == len(rc.open(tmp_path / "export")) == 4
    run("index", URL, tmp_path / "ref")
    assert "4 samples" in run("stream", tmp_path / "ref", "--limit", "4", "--batch-size", "4")
    assert "compared with rico-hdl LMDB hf://" in run("verify", tmp_path / "part", "--against", URL)
    assert f"is a hosted LMDB of {NUM_PATCHES} patches (s2, s1)" in run("doctor", URL)


def test_another_process_opens_the_commit_that_this_one_opened(server, files):
    selection = rc.open(URL).search(split="train")
    before = selection.patch_ids
    sent = pickle.dumps(selection)
    server.commit({name: data for name, data in files.items() if name != OFFICIAL_METADATA[1]})

    received = pickle.loads(sent)

    assert received.patch_ids == before
    assert len(samples(received)) == len(before)


def test_metadata_are_not_looked_for_where_they_are_named(server, files, tmp_path):
    """As of a bucket that answers 403 to whoever asks for what is not there."""
    server.commit({"BENv2.lmdb/data.mdb": files["BENv2.lmdb/data.mdb"]})
    url = f"{server.url}/datasets/owner/name/resolve/main/BENv2.lmdb/data.mdb"

    index_hosted(url, tmp_path / "ref", metadata_paths=[files[name] for name in OFFICIAL_METADATA])

    assert len(rc.open(tmp_path / "ref")) == NUM_PATCHES
    assert not [one.path for one in server.asked if "metadata" in one.path]
    with pytest.raises(SourceError, match="reben-cloud index URL ROOT --metadata FILE"):
        rc.open(URL)


def test_a_password_in_the_url_opens_pixels_too_and_is_shown_nowhere(server, tmp_path):
    server.token = "sesame"
    url = f"{server.url}/datasets/owner/name/resolve/main/BENv2.lmdb"
    secret = url.replace("http://", "http://user:sesame@")

    dataset = rc.open(secret)

    assert len(samples(pickle.loads(pickle.dumps(dataset.search(limit=5))))) == 5
    dataset.search(limit=2).export_lmdb(tmp_path / "export")
    assert verify(dataset).problems == ()
    said = repr((dataset, dataset.store, dataset.backing))
    assert "sesame" not in said + (tmp_path / "export" / "export.json").read_text()
    # An index would have to keep it.
    with pytest.raises(StorageError, match="an index keeps no user, password or query") as caught:
        index_hosted(secret, tmp_path / "ref")
    assert "sesame" not in str(caught.value)


def test_other_metadata_than_those_beside_it_are_not_passed_over(server, files, tmp_path):
    with pytest.raises(ValueError, match="to take others, index it with them"):
        open_plan(
            URL, tmp_path / "part", only=rc.open(URL).search(), metadata_paths=[files[OFFICIAL_METADATA[0]]]
        )


def test_lookups_write_their_own_rows_and_are_found_by_the_next_process(server, monkeypatch):
    dataset = rc.open(URL)
    finder = dataset.backing.finder
    keys = [str(key) for key in dataset.search().patch_ids]
    monkeypatch.setattr(places, "SETTLED_ROWS", 3)

    one_by_one = [int(finder.find([key]).start[0]) for key in keys]

    assert len(sorted(finder.cache_folder.glob("*.parquet"))) > 16
    before = server.count("cdn")
    reopened = LmdbFinder(finder.hosted, finder.remote)
    assert reopened.find(keys).start.tolist() == one_by_one
    assert server.count("cdn") == before
    (only,) = finder.cache_folder.glob("*.parquet")
    only.write_bytes(b"damaged")
    assert LmdbFinder(finder.hosted, finder.remote).find(keys).start.tolist() == one_by_one


def test_opening_lists_folders_and_never_all_that_lies_below(server, files):
    server.commit(files | {f"other{n}/deep/x.bin": b"" for n in range(30)})
    server.asked.clear()

    rc.open(URL)

    trees = [one.path for one in server.asked if "/tree/" in one.path]
    assert 0 < len(trees) <= 5
    assert all("recursive=True" not in path for path in trees)


def without(files, tmp_path, *keys):
    """The files of the hub with an LMDB that lacks these records."""
    py_lmdb = pytest.importorskip("lmdb")
    (tmp_path / "part").mkdir()
    shutil.copy(files["BENv2.lmdb/data.mdb"], tmp_path / "part" / "data.mdb")
    with py_lmdb.open(str(tmp_path / "part"), map_size=2**30) as env, env.begin(write=True) as txn:
        for key in keys:
            assert txn.delete(key.encode())
    return files | {"BENv2.lmdb/data.mdb": tmp_path / "part" / "data.mdb"}


def test_metadata_of_more_patches_than_it_holds_are_a_selection(server, root, files, tmp_path, caplog):
    everything = root.search().to_pandas().sort_values("patch_id")
    first, gone, last = (
        everything.iloc[n] for n in (0, 7, -1)
    )  # the first one is looked for to see what it has
    lacking = [row[column] for row in (first, gone) for column in ("patch_id", "s1_name")]
    server.commit(without(files, tmp_path, *lacking, last["s1_name"]))

    dataset = rc.open(URL)

    assert dataset.modalities == ("s2", "s1")
    kept = sorted(set(everything["patch_id"]) - {first["patch_id"], gone["patch_id"], last["patch_id"]})
    assert sorted(dataset.search().patch_ids) == kept
    assert f"2 of {NUM_PATCHES} rows of the metadata have no patch in the source" in caplog.text
    assert "1 incomplete patch is left out" in caplog.text
    assert_same(samples(dataset.search()), samples(root.search(ids=kept)))
    again = pickle.loads(pickle.dumps(dataset))
    assert sorted(again.search().patch_ids) == kept


def test_incomplete_patches_of_what_is_hosted_are_refused_or_skipped_and_listed(
    server, root, files, tmp_path, run
):
    row = root.search().to_pandas().sort_values("patch_id").iloc[5]
    server.commit(without(files, tmp_path, row["s1_name"]))

    refused, skipped = {}, {}
    for command in ("build", "index"):
        refused[command] = run(command, URL, tmp_path / command)
        skipped[command] = run(command, URL, tmp_path / command, "--incomplete", "skip")

    for command in ("build", "index"):
        assert refused[command][0] == 1
        assert row["patch_id"] in refused[command][2]
        assert "--incomplete skip" in refused[command][2]
        assert skipped[command][0] == 0, skipped[command][2]
        made = rc.open(tmp_path / command)
        assert len(made) == NUM_PATCHES - 1
        assert made.manifest.incomplete.first == (row["patch_id"],)
        assert (
            tmp_path / command / "incomplete.csv"
        ).read_text() == f"patch_id,lacks\n{row['patch_id']},s1\n"
        assert verify(made).problems == ()
