"""Exports beside a root that was made again, of the same metadata and with other pixels: both have one fingerprint."""

import hashlib
import shutil

import pytest

import reben_cloud as rc
from reben_cloud import export
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError, ConflictError
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.roots import synthetic_root

NUM_PATCHES = 8
KINDS = {
    "lmdb": export.export_lmdb,
    "safetensors": export.export_safetensors,
    "geotiff": export.export_geotiff,
    "png": export.export_png,
}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    folder = tmp_path_factory.mktemp("before") / "root"
    synthetic_root(folder, NUM_PATCHES, num_products=1)
    return rc.open(folder)


@pytest.fixture(scope="module")
def after(before, tmp_path_factory):
    folder = tmp_path_factory.mktemp("after") / "root"
    synthetic_root(folder, NUM_PATCHES, num_products=1, turned=True)
    found = rc.open(folder)
    assert found.manifest.fingerprint == before.manifest.fingerprint
    return found


def contents(folder):
    """Name -> sha256 of the files of an export, but for LMDB's lock."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "lock.mdb"
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_other_pixels_is_not_complete_already(before, after, tmp_path, kind):
    KINDS[kind](before.selection, tmp_path / "export")
    there = contents(tmp_path / "export")
    KINDS[kind](after.selection, tmp_path / "expected")
    assert contents(tmp_path / "expected") != there

    with pytest.raises(ConflictError, match=r"export of the same patches with other pixels: .*--prune"):
        KINDS[kind](after.selection, tmp_path / "export")
    assert contents(tmp_path / "export") == there
    KINDS[kind](after.selection, tmp_path / "export", update=True, prune=True)

    assert contents(tmp_path / "export") == contents(tmp_path / "expected")
    assert not KINDS[kind](after.selection, tmp_path / "export").changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_unfinished_export_of_other_pixels_is_not_gone_on_with(before, after, tmp_path, kind):
    def stopped(items, _total, _what):
        for number, item in enumerate(items):
            if number == 1:
                raise InterruptedError
            yield item

    with pytest.raises(OSError):
        KINDS[kind](before.selection, tmp_path / "export", progress=stopped)
    assert list(tmp_path.glob(".export.*.partial"))
    KINDS[kind](after.selection, tmp_path / "expected")

    KINDS[kind](after.selection, tmp_path / "export")

    assert contents(tmp_path / "export") == contents(tmp_path / "expected")


@pytest.mark.parametrize("kind", ["lmdb", "safetensors"])
def test_a_build_of_an_export_compares_its_checksums(before, after, tmp_path, kind):
    KINDS[kind](before.selection, tmp_path / "export")
    KINDS[kind](after.selection, tmp_path / "other")
    for file in (tmp_path / "other").glob("data.mdb" if kind == "lmdb" else "part-*"):
        shutil.copy(file, tmp_path / "export" / file.name)
    source, table = open_source(tmp_path / "export")

    with pytest.raises(ChecksumError, match=r"the s2 of S2\w+ is not what was exported; export again"):
        build(make_plan(source, table, open_store(tmp_path / "root")))
