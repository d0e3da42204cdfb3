"""A root, an export and loader states that the first version wrote: read for good, to the same patches.

What is in ``data/format-1`` is told by the ``make.py`` there. It was written once, and never is again.
"""

import json
import lzma
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.build.publish import publish_metadata
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.roots import open_root
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader

DATA = Path(__file__).parent / "data" / "format-1"
SAID = json.loads((DATA / "said.json").read_text())
BATCH_SIZE = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the root, the export, and the export's LMDB with nothing but the official metadata."""
    where = tmp_path_factory.mktemp("format-1")
    for name in ("root", "export"):
        with lzma.open(DATA / f"{name}.tar.xz") as packed, tarfile.open(fileobj=packed) as tar:
            tar.extractall(where / name, filter="data")
    shutil.copytree(
        where / "export", where / "bare", ignore=shutil.ignore_patterns("export.json", "patches.parquet")
    )
    return {name: where / name for name in ("root", "export", "bare")}


def selection_of(folder, options):
    dataset = rc.open(folder)
    if options.get("modalities") == ["s2"]:
        return dataset.search(recommended=True, split="train")
    return dataset.search()


def delivered(selection, loader):
    ids = np.array(selection.patch_ids)
    return [patch_id for batch in loader for patch_id in ids[batch["index"]].tolist()]


CASES = [
    pytest.param(name, number, id=f"{name}-{number}")
    for name in ("root", "export")
    for number in range(len(SAID[name]))
]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_epochs_have_the_recorded_order(folders, name, number):
    said = SAID[name][number]
    selection = selection_of(folders[name], said["options"])
    loader = RawLoader(selection, batch_size=BATCH_SIZE, **said["options"])

    assert [delivered(selection, loader) for _ in range(2)] == said["epochs"]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_recorded_state_is_resumed(folders, name, number):
    said = SAID[name][number]
    selection = selection_of(folders[name], said["options"])
    loader = RawLoader(selection, batch_size=BATCH_SIZE, **said["options"])
    loader.load_state_dict(said["state"])

    assert delivered(selection, loader) == said["epochs"][1][said["after"] :]


def test_the_state_of_a_bare_lmdb_is_resumed_with_the_same_pyarrow_and_else_refused(folders):
    (said,) = SAID["bare"]
    selection = rc.open(folders["bare"]).search()
    loader = RawLoader(selection, batch_size=BATCH_SIZE, **said["options"])

    if selection.dataset.former_fingerprint == SAID["bare_fingerprint"]:
        loader.load_state_dict(said["state"])
        assert delivered(selection, loader) == said["epochs"][1][said["after"] :]
        assert loader.state_dict()["fingerprint"] == said["state"]["fingerprint"]
    else:
        with pytest.raises(ValueError, match="with another pyarrow"):
            loader.load_state_dict(said["state"])
    other = RawLoader(selection, batch_size=BATCH_SIZE, **said["options"])
    with pytest.raises(ValueError, match="go on with the versions that saved it, or begin the epoch again"):
        other.load_state_dict({**said["state"], "fingerprint": 1})


def test_searches_find_what_they_found(folders):
    dataset = rc.open(folders["root"])

    assert dataset.manifest["fingerprint"] == SAID["fingerprint"]
    assert dataset.search().patch_ids[:5] == SAID["search"]["first"]
    assert dataset.search(labels=["Mixed forest"]).patch_ids == SAID["search"]["forest"]


@pytest.mark.parametrize("name", ["root", "export", "bare"])
def test_it_verifies(folders, name):
    assert verify(rc.open(folders[name]), deep=True).problems == ()


def test_pixels_are_opened(folders):
    dataset = rc.open(folders["root"])
    patch = dataset.open_patch(SAID["search"]["first"][0])
    stripes = patch.s2_10m.sel(band="B03").values

    assert (stripes == stripes[:, :1]).all()
    assert np.diff(stripes[:, 0].astype(int)).tolist() == [8] * 119


def test_it_is_exported_and_an_export_of_that_version_is_known_again(folders, tmp_path):
    train = rc.open(folders["root"]).search(split=["train", "test"])
    theirs = shutil.copytree(folders["export"], tmp_path / "theirs")

    assert train.export_lmdb(tmp_path / "ours").changed
    assert not train.export_lmdb(theirs).changed
    assert (tmp_path / "ours" / "data.mdb").read_bytes() == (theirs / "data.mdb").read_bytes()
    rc.open(folders["root"]).search().export_lmdb(theirs, update=True)
    assert verify(rc.open(theirs)).problems == ()


def test_building_it_again_knows_that_it_is_there(folders):
    store = open_store(folders["root"])
    source, official = open_root(store)
    options = PlacementOptions(shard_samples=8)

    assert build(make_plan(source, official, store, options=options))["fingerprint"] == SAID["fingerprint"]
    with pytest.raises(ConflictError, match="published already, with other patches or options"):
        build(make_plan(source, official, store))
    with pytest.raises(ConflictError, match="holds another dataset"):
        publish_metadata(describe(official), REBEN, store, given=official.column_names)


def test_an_unfinished_build_of_that_version_is_refused_with_the_way_out(folders, tmp_path):
    unfinished = shutil.copytree(folders["root"], tmp_path / "root")
    (unfinished / "manifest.json").unlink()
    source, official = open_source(folders["root"])

    with pytest.raises(
        ConflictError, match=r"an earlier version of reben_cloud began it: .* remove all that is in"
    ):
        build(make_plan(source, official, open_store(unfinished), options=PlacementOptions(shard_samples=8)))


def test_the_fingerprint_of_a_plan_is_this_for_good(folders, tmp_path):
    source, official = open_source(folders["root"])
    chunked = pa.concat_tables([official.slice(0, 7), official.slice(7)])
    options = PlacementOptions(shard_samples=8)

    plans = [make_plan(source, table, open_store(tmp_path), options=options) for table in (official, chunked)]

    assert [plan.fingerprint for plan in plans] == ["b5da0c7acf609422"] * 2


def test_what_is_kept_is_small():
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 300_000
