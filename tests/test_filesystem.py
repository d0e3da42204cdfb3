"""A root through fsspec: what pandas, xarray, zarr and pyarrow read is what the root holds."""

import errno
import pickle

import fsspec
import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import xarray as xr
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem

import reben_cloud as rc
from reben_cloud.errors import ChangedError
from reben_cloud.store import open_store
from tests import webserver
from tests.hub import Hub, serve
from tests.roots import synthetic_root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsspec") / "root"
    synthetic_root(folder, 24)
    return folder


@pytest.fixture(params=["folder", "http", pytest.param("s3", marks=pytest.mark.s3)])
def published(request, folder):
    """URL and options of the same root in several places."""
    if request.param == "folder":
        yield str(folder), None
    elif request.param == "http":
        with webserver.serve(folder) as url:
            yield url, None
    else:
        bucket = request.getfixturevalue("s3_bucket")
        store = open_store(f"{bucket.url}/reben", bucket.storage_options)
        for path, _ in open_store(folder).list():
            if not path.startswith("_build"):
                store.put(path, (folder / path).read_bytes())
        yield store.url, bucket.storage_options


@pytest.fixture
def ds(published):
    return rc.open(*published)


@pytest.fixture
def fs(ds):
    return ds.store.filesystem()


def test_pandas_reads_the_table(ds, fs):
    expected = ds.search().to_pandas()["patch_id"].tolist()

    for name in ("patches.parquet", f"{ds.url}/patches.parquet"):
        frame = pd.read_parquet(name, filesystem=fs, columns=["id"])
        assert frame["id"].tolist() == expected


@pytest.mark.s3
def test_fsspec_takes_the_same_options(folder, s3_bucket):
    """One dictionary serves `rc.open`, and pandas and xarray, which find s3fs by the URL."""
    store = open_store(f"{s3_bucket.url}/reben", s3_bucket.storage_options)
    for path, _ in open_store(folder).list():
        store.put(path, (folder / path).read_bytes())
    ds = rc.open(store.url, store.storage_options)

    frame = pd.read_parquet(f"{ds.url}/patches.parquet", storage_options=store.storage_options)
    with xr.open_zarr(
        f"{ds.url}/zarr/{ds.products[0]}.zarr",
        storage_options=store.storage_options,
        zarr_format=3,
        chunks=None,
    ) as stack:
        pixels = stack.s2_10m.values

    assert frame["id"].tolist() == ds.search().to_pandas()["patch_id"].tolist()
    np.testing.assert_array_equal(pixels, ds.open_zarr(ds.products[0]).s2_10m.values)


def test_pyarrow_counts_the_rows(ds, fs):
    table = pyarrow.dataset.dataset("patches.parquet", filesystem=fs)

    assert table.count_rows() == len(ds)


def test_xarray_and_zarr_read_the_pixels(ds, fs):
    path = f"zarr/{ds.products[0]}.zarr"
    expected = ds.open_zarr(ds.products[0]).s2_10m.values

    with xr.open_zarr(fs.get_mapper(path), zarr_format=3, chunks=None) as stack:
        np.testing.assert_array_equal(stack.s2_10m.values, expected)
    with xr.open_zarr(
        zarr.storage.FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=path, read_only=True)
    ) as lazy:
        np.testing.assert_array_equal(lazy.s2_10m.compute().values, expected)
    group = zarr.open_group(
        zarr.storage.FsspecStore.from_mapper(fs.get_mapper(path), read_only=True), mode="r"
    )
    np.testing.assert_array_equal(group["s2_10m"][0], expected[0])


def test_any_part_of_a_file_is_what_was_written(fs, folder):
    path = "patches.parquet"
    data = (folder / path).read_bytes()
    bounds = [(None, None), (0, 10), (7, 100), (-8, None), (5, None), (None, -20), (-30, -10), (9, 9), (9, 3)]

    assert fs.cat(path) == data
    for start, end in bounds:
        assert fs.cat_file(path, start, end) == data[start:end], (start, end)
    with fs.open(path, block_size=1000) as file:
        file.seek(len(data) // 2)
        assert file.read(5000) == data[len(data) // 2 :][:5000]
    with fs.open("manifest.json", "r", encoding="utf-8") as text:
        assert text.read() == (folder / "manifest.json").read_text(encoding="utf-8")


def test_a_missing_file_is_file_not_found(fs):
    assert not fs.exists("nope.json")
    for call in (fs.info, fs.cat_file, fs.open):
        with pytest.raises(FileNotFoundError, match=r"nope\.json"):
            call("nope.json")


def test_it_goes_to_other_processes(fs):
    twin = pickle.loads(pickle.dumps(fs))

    assert twin.cat_file("manifest.json") == fs.cat_file("manifest.json")
    assert twin.info("manifest.json") == fs.info("manifest.json")


def test_folders_are_listed(folder):
    check_listing(open_store(folder).filesystem(), folder)


@pytest.mark.s3
def test_folders_of_a_bucket_are_listed(folder, s3_bucket):
    store = open_store(s3_bucket.url, s3_bucket.storage_options)
    for path, _ in open_store(folder).list():
        store.put(path, (folder / path).read_bytes())

    check_listing(store.filesystem(), folder)


def test_folders_of_a_hub_are_listed(folder):
    files = {path: (folder / path).read_bytes() for path, _ in open_store(folder).list()}
    with serve(Hub()) as hub:
        hub.commit(files)
        store = open_store(f"hf://datasets/{hub.repo}", {"endpoint": hub.url})
        check_listing(store.filesystem(), folder)


def check_listing(fs, folder):
    """`fs` says of the files below `folder` what the local filesystem says."""
    local = DirFileSystem(str(folder), fsspec.filesystem("file"))

    assert sorted(fs.ls("", detail=False)) == sorted(local.ls("", detail=False))
    assert fs.ls("shards") == fs.ls("/shards/")
    for path in ("shards", "manifest.json"):
        ours, theirs = ({e["name"]: e for e in one.ls(path, detail=True)} for one in (fs, local))
        assert ours.keys() == theirs.keys()
        for name, entry in ours.items():
            assert entry["type"] == theirs[name]["type"]
            assert entry["type"] == "directory" or entry["size"] == theirs[name]["size"]
    assert sorted(fs.find("")) == sorted(local.find(""))
    assert fs.glob("*.parquet") == sorted(local.glob("*.parquet"))
    assert fs.isdir("shards")
    assert fs.isfile("manifest.json")
    assert not fs.exists("nope")
    with pytest.raises(FileNotFoundError, match="nope"):
        fs.ls("nope")


def test_a_file_that_is_written_again_is_refused(tmp_path):
    store = open_store(tmp_path)
    store.put("a", b"first" * 1000)
    fs = store.filesystem()
    key = fs.ukey("a")

    with fs.open("a", block_size=100, cache_type="none") as file:
        assert file.read(5) == b"first"
        store.put("a", b"other!" * 1000)
        with pytest.raises(ChangedError, match="/a"):
            file.read(5)
    assert fs.ukey("a") != key


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda fs: fs.open("a", "wb"), id="open"),
        pytest.param(lambda fs: fs.open("a", "ab"), id="append"),
        pytest.param(lambda fs: fs.pipe("a", b""), id="pipe"),
        pytest.param(lambda fs: fs.rm("a"), id="rm"),
        pytest.param(lambda fs: fs.rm("b", recursive=True), id="rm-folder"),
        pytest.param(lambda fs: fs.mkdir("c"), id="mkdir"),
        pytest.param(lambda fs: fs.makedirs("c/d"), id="makedirs"),
        pytest.param(lambda fs: fs.copy("a", "d"), id="copy"),
        pytest.param(lambda fs: fs.mv("a", "d"), id="mv"),
        pytest.param(lambda fs: fs.touch("a"), id="touch"),
        pytest.param(lambda fs: fs.put(__file__, "d"), id="put"),
        pytest.param(lambda fs: fs.get_mapper("").__setitem__("d", b""), id="mapper"),
    ],
)
def test_nothing_is_written(tmp_path, write):
    store = open_store(tmp_path)
    store.put("a", b"first")
    store.put("b/c", b"second")

    with pytest.raises(OSError, match="read-only") as raised:
        write(store.filesystem())

    assert raised.value.errno == errno.EROFS
    assert dict(store.list()) == {"a": 5, "b/c": 6}


def test_two_accounts_have_two_filesystems():
    """fsspec keeps instances by their arguments, in which credentials are not told apart."""
    one, other = (open_store("s3://bucket/root", {"key": key, "secret": "s"}).filesystem() for key in "ab")

    assert one is not other
    assert (one.store.storage_options["key"], other.store.storage_options["key"]) == ("a", "b")
    assert "secret" not in repr(one)
