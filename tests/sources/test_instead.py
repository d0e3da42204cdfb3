"""What a path that is no dataset is told to be, and the next command."""

import shutil

import pandas as pd
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import NotFoundError, SourceError, StorageError
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``demo`` with a root in it, and an export of the root."""
    folder = tmp_path_factory.mktemp("place")
    store = open_store(folder / "demo" / "root")
    source, metadata = open_source("synthetic:6")
    build(make_plan(source, metadata, store))
    rc.open(folder / "demo" / "root").search(limit=2).export_lmdb(folder / "demo" / "lmdb")
    return folder


def told(path, **options):
    with pytest.raises(NotFoundError) as raised:
        rc.open(path, **options)
    return str(raised.value)


def test_the_folder_around_a_root_names_the_root(place):
    assert told(place / "demo").endswith(f"has one in it: `reben-cloud info {place}/demo/root`")
    assert told(place).endswith(f"has one in it: `reben-cloud info {place}/demo/root`")


def test_several_roots_are_counted(place, tmp_path):
    for name in "abcde":
        shutil.copytree(place / "demo" / "root", tmp_path / name)

    assert "has 5 in it" in told(tmp_path)
    assert "and 2 more" in told(tmp_path)


def test_a_part_of_a_root_names_the_root(place):
    assert told(place / "demo" / "root" / "shards").endswith(
        f"is a part of the root {place}/demo/root; name the root"
    )


@pytest.mark.parametrize("name", ["manifest.json", "patches.parquet"])
def test_a_file_of_a_root_names_its_folder(place, name):
    assert f"name its folder, {place}/demo/root" in told(place / "demo" / "root" / name)


def test_a_typo_is_told_what_is_beside_it(place):
    assert told(place / "demo" / "rot").endswith(
        "does not exist, so no dataset is published there; did you mean 'root'?"
    )
    assert told(place / "nothing" / "at all").endswith("does not exist, so no dataset is published there")


def test_a_build_that_is_not_finished_is_told_how_to_go_on(place, tmp_path):
    root = shutil.copytree(place / "demo" / "root", tmp_path / "root")
    (root / "manifest.json").unlink()
    (root / "_build").mkdir(exist_ok=True)

    assert "run the same `reben-cloud build` again" in told(root)


def test_official_folders_archives_and_scenes_have_their_next_command(tmp_path):
    patch = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    folder = tmp_path / "tree" / "BigEarthNet-S2" / patch.rsplit("_", 2)[0] / patch
    folder.mkdir(parents=True)
    (folder / f"{patch}_B02.tif").touch()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "BigEarthNet-S2.tar.zst").touch()
    (tmp_path / "scenes" / "S2A_MSIL2A_20170613T101031_N0500_R022_T33UUP_20170613T101608.SAFE").mkdir(
        parents=True
    )

    assert f"GeoTIFFs (s2): `reben-cloud build {tmp_path}/tree ROOT`" in told(tmp_path / "tree")
    other = tmp_path / "tree" / "Reference_Maps" / patch
    other.mkdir(parents=True)
    (other / f"{patch}_reference_map.tif").touch()
    assert f"GeoTIFFs (s2): `reben-cloud build {tmp_path}/tree ROOT`" in told(
        tmp_path / "tree" / "BigEarthNet-S2"
    )
    assert f"`reben-cloud build {tmp_path}/packed ROOT`" in told(tmp_path / "packed")
    assert f"`reben-cloud build {tmp_path}/packed ROOT`" in told(
        tmp_path / "packed" / "BigEarthNet-S2.tar.zst"
    )
    assert f"`reben-cloud prepare --s2 {tmp_path}/scenes ...`" in told(tmp_path / "scenes")


def test_layers_tables_and_other_files_are_told_apart(place, tmp_path):
    dataset = rc.open(place / "demo" / "root")
    table = {"patch_id": dataset.selection.patch_ids, "score": list(range(6))}
    rc.write_table(tmp_path / "layer", dataset, name="score", table=pd.DataFrame(table))
    (tmp_path / "scores.csv").write_text("patch_id,score\n")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()

    assert "is a layer: open its root" in told(tmp_path / "layer")
    assert "is a table and not a dataset" in told(tmp_path / "scores.csv")
    assert "is a file, and a dataset is a folder" in told(tmp_path / "notes.txt")
    assert "is an empty folder" in told(tmp_path / "empty")


def test_an_lmdb_without_metadata_is_told_what_it_lacks(place, tmp_path):
    (tmp_path / "bare").mkdir()
    exported = place / "demo" / "lmdb"
    shutil.copy(next(exported.rglob("data.mdb")), tmp_path / "bare")

    with pytest.raises(
        SourceError, match=r"no metadata\*\.parquet in or beside it.*put the official metadata"
    ):
        rc.open(tmp_path / "bare")


@pytest.mark.s3
def test_in_a_bucket(place, s3_bucket):
    dataset = rc.open(place / "demo" / "root")
    options = s3_bucket.storage_options
    store = open_store(f"{s3_bucket.url}/roots/one", options)
    for path in dataset.store.list():
        store.put(path[0], dataset.store.get(path[0]))

    assert f"has one in it: `reben-cloud info {s3_bucket.url}/roots/one`" in told(
        f"{s3_bucket.url}/roots", storage_options=options
    )
    assert "has nothing in it, so no dataset is published there; did you mean 'roots'?" in told(
        f"{s3_bucket.url}/rots", storage_options=options
    )
    with pytest.raises(
        StorageError, match=r"s3://no-such-bucket-here/x: there is no such bucket .*bucket create"
    ):
        rc.open("s3://no-such-bucket-here/x", storage_options=options)
