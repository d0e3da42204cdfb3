"""An LMDB opened like a root: same searches, same batches bit for bit, as the root it stands for."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError, NotFoundError, RebenError, SourceError
from reben_cloud.export import export_safetensors
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader


@pytest.fixture(scope="module")
def mock(shared):
    return shared / "data" / "configilm_benv2_mock"


@pytest.fixture(scope="module")
def root(mock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "root"
    source, official = open_source(mock)
    build(make_plan(source, official, open_store(folder)))
    return rc.open(folder)


@pytest.fixture(params=["export", "lmdb-url", "rico-hdl", "rico-hdl-folder"])
def local(request, root, mock, tmp_path):
    """The same patches as `root`, from an LMDB."""
    if request.param == "rico-hdl":
        return rc.open(mock)
    if request.param == "rico-hdl-folder":
        return rc.open(mock / "BigEarthNet-V2-LMDB")
    root.search().export_lmdb(tmp_path / "out")
    return rc.open(f"lmdb://{tmp_path / 'out'}" if request.param == "lmdb-url" else tmp_path / "out")


def epochs(selection, **options):
    """Two epochs, copied."""
    loader = RawLoader(selection, batch_size=5, seed=7, **options)
    return [{k: v.copy() for k, v in batch.items()} for _ in range(2) for batch in loader]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_searches_and_batches_are_the_roots(root, local):
    query = {"split": ["train", "test"], "datetime": "2017-06-01/2017-12-31"}

    assert len(local) == len(root) == 24
    assert local.modalities == ("s2", "s1")
    assert local.products == root.products
    assert local.search().patch_ids == root.search().patch_ids
    assert local.search(**query).official() == root.search(**query).official()
    assert local.search(**query).to_pandas().equals(root.search(**query).to_pandas())
    assert_equal(epochs(local.search()), epochs(root.search()))
    assert_equal(
        epochs(local.search(**query), modalities=["s1"]), epochs(root.search(**query), modalities=["s1"])
    )


def test_a_loader_continues_on_the_other_where_it_stopped_on_the_one(root, local):
    first = RawLoader(root.search(), batch_size=4, seed=1, drop_last=True)
    taken = iter(first)
    next(taken), next(taken)
    second = RawLoader(local.search(), batch_size=4, seed=1, drop_last=True)

    second.load_state_dict(first.state_dict())

    assert_equal(
        [{k: v.copy() for k, v in b.items()} for b in second],
        [{k: v.copy() for k, v in b.items()} for b in taken],
    )


def test_several_readers_at_once_and_pickled_ones(root, local):
    loaders = [RawLoader(d.search(), batch_size=6) for d in (local, pickle.loads(pickle.dumps(local)), local)]

    for batches in zip(*loaders, strict=True):
        for other in batches[1:]:
            for name in batches[0]:
                np.testing.assert_array_equal(batches[0][name], other[name])


def test_a_part_exported_from_an_export_is_the_same_as_from_the_root(root, local, tmp_path):
    query = {"split": "validation"}
    local.search(**query).export_lmdb(tmp_path / "a", modalities=["s1"])
    root.search(**query).export_lmdb(tmp_path / "b", modalities=["s1"])

    assert (tmp_path / "a" / "data.mdb").read_bytes() == (tmp_path / "b" / "data.mdb").read_bytes()
    assert_equal(epochs(rc.open(tmp_path / "a").search()), epochs(root.search(**query), modalities=["s1"]))


def test_a_root_built_from_an_export_is_the_root(root, tmp_path):
    root.search().export_lmdb(tmp_path / "out")

    source, official = open_source(tmp_path / "out")
    manifest = build(make_plan(source, official, open_store(tmp_path / "again")))

    assert manifest["fingerprint"] == root.manifest["fingerprint"]
    again = open_store(tmp_path / "again")
    for path, _ in root.store.list():
        if path.startswith(("shards", "zarr")):
            assert again.get(path) == root.store.get(path), path


def test_a_changed_value_is_found(root, tmp_path):
    root.search().export_lmdb(tmp_path / "out")
    file = tmp_path / "out" / "data.mdb"
    data = bytearray(file.read_bytes())
    data[200_000] ^= 1
    file.write_bytes(data)

    with pytest.raises(ChecksumError, match="is not the payload that was written"):
        epochs(rc.open(tmp_path / "out").search())


def test_what_cannot_be_opened_says_why(root, mock, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no LMDB \(data\.mdb\) in that folder"):
        rc.open(f"lmdb://{tmp_path / 'empty'}")
    with pytest.raises(NotFoundError, match="is not a folder with an LMDB"):
        rc.open(f"lmdb://{root.store.local_path()}")
    with pytest.raises(NotFoundError, match="no dataset is published there"):
        rc.open(tmp_path / "empty")
    shutil.copytree(mock / "BigEarthNet-V2-LMDB", tmp_path / "bare" / "db")
    with pytest.raises(SourceError, match=r"no metadata\*\.parquet"):
        rc.open(tmp_path / "bare" / "db")
    root.search().export_lmdb(tmp_path / "out")
    with pytest.raises(NotFoundError, match="is an LMDB and has no Zarr stores"):
        rc.open(tmp_path / "out").open_zarr(root.products[0])
    manifest = tmp_path / "out" / "export.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 9'))
    with pytest.raises(RebenError, match="has format version 9"):
        rc.open(tmp_path / "out")
    export_safetensors(root.search(), tmp_path / "parts")
    with pytest.raises(NotFoundError, match="export to safetensors, which is not searched or streamed"):
        rc.open(tmp_path / "parts")
