"""Azure's emulator, and an S3 server that ignores conditions: what is written there, and what is said of them."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.bucket import create_bucket
from reben_cloud.checks.verify import verify
from reben_cloud.errors import RebenError, StorageError
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests.npm_servers import azure, careless_s3
from tests.roots import synthetic_root

NUM_PATCHES = 6

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    with azure(tmp_path_factory.mktemp("azure")) as server:
        server.make_container("data")
        yield server


@pytest.fixture(scope="module")
def azure_root(emulator):
    url = "az://data/roots/some"
    synthetic_root(url, NUM_PATCHES, storage_options=emulator.storage_options)
    return url


@pytest.fixture
def store(emulator, request):
    return open_store(f"az://data/{request.node.name}", emulator.storage_options)


@pytest.fixture(scope="module")
def careless(tmp_path_factory):
    with careless_s3(tmp_path_factory.mktemp("s3rver"), "data") as server:
        yield server


# -- Azure ------------------------------------------------------------------------------------------------


def test_objects_are_written_and_read_from_either_end(store, tmp_path):
    data = np.random.default_rng(0).bytes(3_000)
    store.put("a/b", data)

    assert bytes(store.get("a/b")) == data
    assert bytes(store.get_range("a/b", 10, 20)) == data[10:30]
    assert bytes(store.get_end("a/b", 100)) == data[-100:]
    assert bytes(store.get_end("a/b", 5_000)) == data
    assert bytes(store.get_end("a/b", 7, version=store.stat("a/b").version)) == data[-7:]
    assert [bytes(one) for one in store.get_ranges("a/b", [0, 2_990], [5, 20])] == [data[:5], data[2_990:]]
    assert list(store.list()) == [("a/b", 3_000)]
    store.put("empty", b"")
    assert bytes(store.get_end("empty", 10)) == b""


def test_a_large_file_is_written_in_parts(store, tmp_path):
    data = np.random.default_rng(1).bytes(12_000_000)
    (tmp_path / "large").write_bytes(data)

    store.put_file("large", tmp_path / "large")

    assert bytes(store.get("large")) == data


def test_what_is_there_is_not_overwritten_when_told_so(store):
    store.put("x", b"first", create=True)

    with pytest.raises(FileExistsError, match="exists already"):
        store.put("x", b"second", create=True)
    assert bytes(store.get("x")) == b"first"


def test_deleting_what_is_not_there_is_quiet(store):
    store.put("x", b"1")
    store.delete("x")
    store.delete("x")

    with pytest.raises(FileNotFoundError, match="no such object"):
        store.get("x")


def test_a_root_is_built_verified_and_streamed(azure_root, emulator, tmp_path):
    local = tmp_path / "same"
    synthetic_root(local, NUM_PATCHES)
    dataset = rc.open(azure_root, emulator.storage_options)

    assert verify(dataset, deep=True).ok
    assert dataset.search().patch_ids == rc.open(local).search().patch_ids
    for form in ("shards", "zarr"):
        for mine, theirs in zip(
            RawLoader(dataset.search(), batch_size=5, form=form),
            RawLoader(rc.open(local).search(), batch_size=5, form=form),
            strict=True,
        ):
            for name, values in mine.items():
                np.testing.assert_array_equal(values, theirs[name], err_msg=name)


@pytest.mark.parametrize("scheme", ["az", "abfs"])
def test_commands_take_what_they_need_from_azures_variables(azure_root, emulator, scheme):
    url = azure_root.replace("az://", f"{scheme}://")
    done = subprocess.run(
        [sys.executable, "-m", "reben_cloud.cli", "info", url],
        env={**os.environ, **emulator.environment},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert f"{azure_root}: {NUM_PATCHES} patches" in done.stdout


def test_a_container_that_is_not_there_is_named_with_the_way_out(emulator):
    with pytest.raises(RebenError, match=r"no such bucket.*az storage container create"):
        rc.open("az://nothing/root", emulator.storage_options)


def test_a_wrong_key_is_told_in_azures_words(emulator):
    wrong = {**emulator.storage_options, "account_key": "d3Jvbmc="}

    with pytest.raises(StorageError, match=r"permission denied.*AZURE_STORAGE_ACCOUNT_KEY") as caught:
        open_store("az://data/x", wrong).get("y")
    assert "d3Jvbmc" not in str(caught.value)


def test_an_account_in_the_url_is_refused_with_the_way_to_write_it():
    with pytest.raises(ValueError, match="az://CONTAINER/PREFIX, and name the account in account_name"):
        open_store("abfs://data@account.dfs.core.windows.net/x")


# -- conditions that are ignored ---------------------------------------------------------------------------


def test_a_build_says_that_the_server_overwrites(careless, caplog):
    with caplog.at_level(logging.WARNING, logger="reben_cloud"):
        synthetic_root("s3://data/root", 4, storage_options=careless.storage_options)

    assert [r.getMessage() for r in caplog.records if "told not to (If-None-Match: *)" in r.getMessage()]
    assert verify(rc.open("s3://data/root", careless.storage_options)).ok


@pytest.mark.parametrize("where", ["local", "azure"])
def test_a_build_says_nothing_of_a_store_that_does_not(where, emulator, tmp_path, caplog):
    url, options = {
        "local": (str(tmp_path / "root"), None),
        "azure": ("az://data/quiet", emulator.storage_options),
    }[where]
    with caplog.at_level(logging.WARNING, logger="reben_cloud"):
        synthetic_root(url, 4, storage_options=options)

    assert caplog.records == []


def test_a_setting_that_a_server_lacks_is_a_warning(careless):
    done = create_bucket("another", careless.storage_options)

    assert done[0] == "bucket another is there"
    assert any(
        line.startswith("warning: to remove interrupted uploads: this server refuses") for line in done
    )
    open_store("s3://another/x", careless.storage_options).put("y", b"1")
