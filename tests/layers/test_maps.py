"""The official maps as a layer of a hosted dataset, which has none: from an archive, a folder and an LMDB."""

from __future__ import annotations

import json
import logging
import os
import shutil

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud import cli, grid
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify_layer
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.hosted.publish import index_hosted
from reben_cloud.layers.maps import write_map_layer
from reben_cloud.sources import packed as packed_files
from reben_cloud.sources.archives import ARCHIVES
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from tests import official
from tests.batches import assert_same, samples

NUM_PATCHES = 40
TABLE = official.table_of(NUM_PATCHES)
ARCHIVE = ARCHIVES["map"]


def without_maps(root, folder):
    """An index of an LMDB of a root's images, as it lies on a hub."""
    root.search().export_lmdb(folder / "lmdb", modalities=["s2", "s1"])
    metadata = sorted((folder / "lmdb").glob("metadata*.parquet"))
    index_hosted(str(folder / "lmdb"), str(folder / "index"), metadata_paths=metadata)
    return folder / "index"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """With maps, to compare with."""
    folder = tmp_path_factory.mktemp("maps") / "root"
    build(make_plan(SyntheticSource(NUM_PATCHES), TABLE, open_store(folder)))
    return rc.open(folder)


@pytest.fixture(scope="module")
def hosted(root, tmp_path_factory):
    return without_maps(root, tmp_path_factory.mktemp("hosted"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The archives of maps and of Sentinel-2."""
    folder = tmp_path_factory.mktemp("archives")
    official.write_archives(folder, TABLE, ["map", "s2"])
    return folder


@pytest.fixture
def unpacked(tmp_path):
    official.write_folders(tmp_path / "unpacked", TABLE, ["map"])
    return tmp_path / "unpacked" / "Reference_Maps"


def write(tmp_path, hosted, maps, **options):
    return write_map_layer(tmp_path / "maps", rc.open(hosted), maps, scratch=tmp_path / "scratch", **options)


def test_a_hosted_dataset_streams_images_and_maps_of_an_archive(root, hosted, packed, tmp_path, monkeypatch):
    opened = []
    plainly = packed_files.open_stream
    monkeypatch.setattr(packed_files, "open_stream", lambda *place: opened.append(place) or plainly(*place))

    layer = write(tmp_path, hosted, packed / ARCHIVE)

    assert len(opened) == 1, "an archive is read once, from front to back"
    assert layer.manifest.coverage == NUM_PATCHES
    dataset = rc.open(hosted, layers=[layer.url])
    assert dataset.modalities == ("s2", "s1", "map")
    assert dataset.schema.map_array == "map"
    assert_same(samples(root.search()), samples(dataset.search()))
    assert verify_layer(layer, root=rc.open(hosted), deep=True).problems == ()


def test_the_command_makes_it_and_info_says_that_it_is_lacking(hosted, packed, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(cli.app, [str(one) for one in arguments])

    said = run("info", hosted).stdout
    asked = ["layer", "maps", packed, hosted, tmp_path / "maps", "--scratch", tmp_path / "scratch", "--json"]
    made = run(*asked)
    again = run(*asked)

    assert f"`reben-cloud layer maps {ARCHIVE} file://{hosted} LAYER`" in said
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout) == json.loads(again.stdout)
    assert json.loads(made.stdout)["patches"] == NUM_PATCHES
    assert "lacks" not in run("info", hosted, "--layer", tmp_path / "maps").stdout


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_part_of_the_maps_covers_a_part_of_the_patches(root, hosted, form, tmp_path):
    official.write_folders(tmp_path / "some", TABLE.slice(0, 15), ["map"])
    official.write_archives(tmp_path / "packed", TABLE.slice(0, 15), ["map"])

    layer = write(tmp_path, hosted, tmp_path / ("some" if form == "folder" else "packed"))

    assert layer.manifest.coverage == 15
    dataset = rc.open(hosted, layers=[layer])
    there = dataset.search(has="map")
    assert set(there.patch_ids) == set(TABLE.slice(0, 15).column("patch_id").to_pylist())
    whole = samples(root.search(ids=there.patch_ids), modalities=["map"])
    assert_same(whole, samples(there, modalities=["map"]))
    for batch in RawLoader(dataset.search(), modalities=["map"], batch_size=8):
        assert not batch["map"][~batch["map_present"]].any()


def test_other_files_of_maps_are_another_layer(hosted, unpacked, tmp_path):
    first = write(tmp_path, hosted, unpacked)
    assert write(tmp_path, hosted, unpacked).manifest == first.manifest

    some = min(unpacked.rglob("*.tif"))
    os.utime(some, ns=(some.stat().st_atime_ns, some.stat().st_mtime_ns + 1))

    with pytest.raises(ConflictError, match="another provenance"):
        write(tmp_path, hosted, unpacked)


def test_maps_of_other_patches_are_left_out_and_counted(packed, tmp_path, caplog):
    official_part = TABLE.slice(5, 10)
    build(make_plan(SyntheticSource(10), official_part, open_store(tmp_path / "part")))
    (tmp_path / "hosted").mkdir()
    hosted = without_maps(rc.open(tmp_path / "part"), tmp_path / "hosted")
    caplog.set_level(logging.INFO)

    layer = write(tmp_path, hosted, packed)

    assert layer.manifest.coverage == layer.manifest.num_patches == 10
    assert f"{NUM_PATCHES - 10} maps are of patches that" in caplog.text


def test_what_holds_no_maps_of_these_patches_is_refused(root, hosted, packed, unpacked, tmp_path):
    (tmp_path / "wrong").mkdir()
    shutil.copy(packed / ARCHIVES["s2"], tmp_path / "wrong" / ARCHIVE)
    others = official.table_of(100)
    mine = set(TABLE.column("patch_id").to_pylist())
    others = others.filter(np.array([one not in mine for one in others.column("patch_id").to_pylist()]))
    official.write_archives(tmp_path / "others", others.slice(0, 5), ["map"])
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / ARCHIVE).write_bytes((packed / ARCHIVE).read_bytes()[:-2000])
    first, second = TABLE.column("patch_id").to_pylist()[:2]
    (other,) = unpacked.rglob(f"{second}_reference_map.tif")
    (file,) = unpacked.rglob(f"{first}_reference_map.tif")
    pixels = root.open_patch(second)["reference_map"].values
    file.write_bytes(official.tiff(pixels, grid.footprint(first), deflate=True))
    assert set(root.search(ids=[first]).column("reben:labels")[0].as_py()) != set(
        root.search(ids=[second]).column("reben:labels")[0].as_py()
    )
    assert other.exists()

    for maps, message in (
        (packed / ARCHIVES["s2"], "has no map"),
        (tmp_path / "wrong", "none of Reference_Maps .*; is it another archive"),
        (tmp_path / "others", "none of its 5 maps is of a patch of"),
        (tmp_path / "cut", "cut short|not zstd, or damaged"),
        (unpacked, f"{first}: its map in .* shows"),
        (tmp_path / "nothing", "no such folder"),
    ):
        with pytest.raises(SourceError, match=message):
            write(tmp_path, hosted, maps)
        shutil.rmtree(tmp_path / "maps", ignore_errors=True)
        assert not (tmp_path / "maps" / "layer.json").exists()


def test_a_root_that_has_maps_needs_no_layer_and_a_layer_is_of_one_archive(root, hosted, packed, tmp_path):
    with pytest.raises(ValueError, match="has 'map' already"):
        write_map_layer(tmp_path / "maps", root, packed)
    write(tmp_path, hosted, packed)
    official.write_archives(tmp_path / "other", TABLE.slice(0, 15), ["map"])

    with pytest.raises(ConflictError, match="has a layer already, with another provenance"):
        write(tmp_path, hosted, tmp_path / "other")


def test_the_real_map_of_one_of_24_real_pairs(shared, tmp_path):
    mock, real = shared / "data" / "configilm_benv2_mock", shared / "data" / "rico_hdl_bigearthnet" / "tiffs"
    shutil.copytree(mock, tmp_path / "mock")
    (lmdb,) = (path.parent for path in (tmp_path / "mock").rglob("data.mdb"))
    index_hosted(str(lmdb), str(tmp_path / "index"), metadata_paths=sorted(mock.glob("metadata*.parquet")))
    folder = real / "BigEarthNet" / "Reference_Maps"
    (file,) = folder.rglob("*_reference_map.tif")
    patch_id = file.parent.name
    (tmp_path / "packed").mkdir()
    path = f"Reference_Maps/{file.relative_to(folder).as_posix()}"
    (tmp_path / "packed" / ARCHIVE).write_bytes(official.pack([(path, file.read_bytes())]))
    with rasterio.open(file) as opened:
        expected = opened.read(1)

    for number, maps in enumerate((real, folder, tmp_path / "packed" / ARCHIVE)):
        layer = write_map_layer(
            tmp_path / str(number), rc.open(tmp_path / "index"), maps, scratch=tmp_path / "scratch"
        )

        assert (layer.manifest.coverage, layer.manifest.num_patches) == (1, 24)
        dataset = rc.open(tmp_path / "index", layers=[layer])
        found = samples(dataset.search(has="map"))
        assert list(found) == [patch_id]
        np.testing.assert_array_equal(found[patch_id]["map"], expected)
        np.testing.assert_array_equal(dataset.open_patch(patch_id)["reference_map"].values, expected)


def test_invented_maps_that_lie_nowhere_are_not_taken_for_a_real_patch(shared, tmp_path):
    mock = shared / "data" / "configilm_benv2_mock"
    shutil.copytree(mock, tmp_path / "mock")
    (lmdb,) = (path.parent for path in (tmp_path / "mock").rglob("data.mdb"))
    index_hosted(str(lmdb), str(tmp_path / "index"), metadata_paths=sorted(mock.glob("metadata*.parquet")))

    with pytest.raises(SourceError, match=r"T33UUP_26_57_reference_map.tif: its upper left corner is"):
        write(tmp_path, tmp_path / "index", shared / "data" / "torchgeo_bigearthnet_v2")


@pytest.mark.slow
def test_segmentation_is_trained_on_a_hosted_dataset(hosted, packed, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(cli.app, [str(one) for one in arguments])

    recipe = tmp_path / "segment.toml"
    recipe.write_text(
        'architecture = "test_resnet"\ntask = "map"\nbands = "B02,B03,B04"\nepochs = 1\nbatch_size = 8\n'
    )
    without = run("train", recipe, "--root", hosted, "--out", tmp_path / "without")
    layer = write(tmp_path, hosted, packed)

    with_maps = run(
        "train", recipe, "--root", hosted, "--layer", layer.url, "--out", tmp_path / "run", "--json"
    )

    assert "reben-cloud layer maps" in f"{without.output}{without.exception}"
    assert with_maps.exit_code == 0, with_maps.output
    facts = json.loads((tmp_path / "run" / "best" / "reben_cloud.json").read_text())
    assert facts["task"] == "map"
