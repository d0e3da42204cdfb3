"""Exports of a dataset with layers: LMDB, safetensors, GeoTIFF, changed later, opened, checked, built from."""

from __future__ import annotations

import json
import shutil

import lmdb
import numpy as np
import pytest
import rasterio
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import load_file

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.root.digest import sealed
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.batches import assert_same, samples
from tests.layers.data import ELEVATION, elevation_of, elevations


def expected_of(patch_id, covered):
    return elevation_of(patch_id) if patch_id in covered else np.full((120, 120), -9999, np.int16)


@pytest.fixture(scope="module")
def exported(attached, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "lmdb"
    attached.search().export_lmdb(folder)
    return folder


def test_an_lmdb_has_a_record_of_the_layer_for_every_patch(exported, attached, covered):
    with lmdb.open(str(exported), readonly=True, lock=False) as env, env.begin() as txn:
        assert txn.stat()["entries"] == 4 * len(attached)
        for patch_id in attached.selection.patch_ids:
            record = txn.get(f"{patch_id}_elevation".encode())
            np.testing.assert_array_equal(load_safetensors(record)["dem"], expected_of(patch_id, covered))


def test_an_export_opened_again_streams_the_layer_as_its_own(exported, attached, covered):
    ds = rc.open(exported)

    assert ds.modalities == attached.modalities
    assert not ds.layers
    assert f"layer        elevation: {len(covered)} of 60 patches, Elevation, in the export" in ds.summary()
    assert_same(samples(ds.search()), samples(attached.search()))
    assert ds.search().column("elevation:present") == attached.search().column("elevation:present")


def test_an_export_of_an_export_keeps_the_layer(exported, covered, tmp_path):
    some = covered[:5]
    rc.open(exported).search(ids=some).export_lmdb(tmp_path / "again", modalities=["elevation"])

    again = rc.open(tmp_path / "again")

    assert again.modalities == ("elevation",)
    assert again.manifest.layers["elevation"].coverage == 5
    assert verify(again).ok
    for patch_id, arrays in samples(again.search()).items():
        np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))


def test_an_export_without_the_layer_says_nothing_of_it(attached, ds, elevation, tmp_path):
    attached.search().export_lmdb(tmp_path / "a", modalities=["s1"])
    ds.search().export_lmdb(tmp_path / "b", modalities=["s1"])

    assert (tmp_path / "a" / "export.json").read_bytes() == (tmp_path / "b" / "export.json").read_bytes()
    assert "elevation:present" not in rc.open(tmp_path / "a").search().table.names
    # So the layer can be attached to it.
    assert rc.open(tmp_path / "a", layers=[elevation]).modalities == ("s1", "elevation")


def test_a_layer_that_is_in_an_export_is_not_attached_to_it(exported, elevation):
    with pytest.raises(ValueError, match="two things named 'elevation'"):
        rc.open(exported, layers=[elevation])


def test_safetensors_files_hold_the_layer(attached, covered, tmp_path):
    attached.search().export_safetensors(tmp_path / "st", patches_per_file=25)

    ids = attached.selection.patch_ids
    for number in range(3):
        arrays = load_file(tmp_path / "st" / f"part-{number:05d}.safetensors")
        for row, patch_id in enumerate(ids[25 * number : 25 * number + 25]):
            np.testing.assert_array_equal(arrays["elevation"][row], expected_of(patch_id, covered))


def test_geotiffs_of_the_layer_lie_on_the_grid_of_the_patch(attached, covered, tmp_path):
    attached.search(limit=3).export_geotiff(tmp_path / "tif")

    for patch_id in attached.search(limit=3).patch_ids:
        (file,) = (tmp_path / "tif").glob(f"*/{patch_id}_elevation.tif")
        (other,) = (tmp_path / "tif").glob(f"*/{patch_id}_s2_10m.tif")
        with rasterio.open(file) as raster, rasterio.open(other) as pixels:
            np.testing.assert_array_equal(raster.read(1), expected_of(patch_id, covered))
            assert (raster.transform, raster.crs, raster.shape) == (
                pixels.transform,
                pixels.crs,
                pixels.shape,
            )
            assert (raster.nodata, raster.units, raster.descriptions) == (-9999, ("m",), ("dem",))


# -- changed -----------------------------------------------------------------------------------------


def test_an_export_is_updated_and_pruned_with_its_layer(attached, covered, tmp_path):
    attached.search(ids=covered[:8]).export_lmdb(tmp_path / "a", modalities=["s1", "elevation"])

    report = attached.search(ids=covered[4:12]).export_lmdb(
        tmp_path / "a", modalities=["s1", "elevation"], update=True
    )
    pruned = attached.search(ids=covered[:6]).export_lmdb(
        tmp_path / "a", modalities=["s1", "elevation"], prune=True
    )

    assert (report.num_added, report.num_fetched, pruned.num_dropped) == (4, 8, 6)
    found = samples(rc.open(tmp_path / "a").search(), modalities=["elevation"])
    assert set(found) == set(covered[:6])
    for patch_id, arrays in found.items():
        np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))


def test_a_layer_is_added_to_an_export(ds, attached, exported, tmp_path):
    ds.search().export_lmdb(tmp_path / "a")

    report = attached.search().export_lmdb(tmp_path / "a", update=True)

    assert report.num_fetched == len(attached)
    for name in ("data.mdb", "patches.parquet", "export.json"):
        assert (tmp_path / "a" / name).read_bytes() == (exported / name).read_bytes()


def test_an_update_without_the_layer_is_refused(ds, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "a")

    with pytest.raises(ConflictError, match="has the layer elevation, which does not stand beside"):
        ds.search().export_lmdb(tmp_path / "a", update=True)


def test_another_layer_of_that_name_makes_another_export(ds, covered, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "a")
    other = rc.write_layer(
        tmp_path / "e", ds, name="elevation", tensors=ELEVATION, patches=elevations(covered[:3])
    )
    attached = ds.with_layers(other)

    with pytest.raises(ConflictError, match="another export of this root"):
        attached.search().export_lmdb(tmp_path / "a")
    with pytest.raises(ConflictError, match="another layer elevation"):
        attached.search().export_lmdb(tmp_path / "a", update=True)
    attached.search().export_lmdb(tmp_path / "a", update=True, prune=True)

    assert rc.open(tmp_path / "a").manifest.layers["elevation"].coverage == 3


# -- checked -----------------------------------------------------------------------------------------


def test_an_export_with_a_layer_is_verified(exported):
    report = verify(rc.open(exported), deep=True)

    assert report.ok, report.to_text()


def test_a_flipped_bit_in_a_record_of_the_layer_is_found(exported, covered, tmp_path):
    shutil.copytree(exported, tmp_path / "a")
    path = tmp_path / "a" / "data.mdb"
    data = bytearray(path.read_bytes())
    place = data.index(elevation_of(covered[7]).tobytes()[:400]) + 100
    data[place] ^= 1
    path.write_bytes(data)

    report = verify(rc.open(tmp_path / "a"))

    assert any("elevation of" in problem for problem in report.problems), report.to_text()


@pytest.mark.parametrize(
    "layers",
    [
        {"elevation": {"kind": "array", "title": "", "digest": "x", "coverage": 61}},
        {"elevation": {"kind": "other", "title": "", "digest": "x", "coverage": 1}},
        {"Elevation": {"kind": "array", "title": "", "digest": "x", "coverage": 1}},
        {"elevation": {"kind": "array"}},
        ["elevation"],
    ],
)
def test_what_an_export_says_of_its_layers_is_read_with_distrust(exported, tmp_path, layers):
    shutil.copytree(exported, tmp_path / "a")
    path = tmp_path / "a" / "export.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), "layers": layers})))

    with pytest.raises(SourceError, match="its layers cannot be"):
        rc.open(tmp_path / "a")


# -- built from --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lmdb", "safetensors"])
def test_a_root_of_an_export_has_a_layer_that_all_patches_have_as_a_modality(
    attached, covered, tmp_path, form
):
    attached.search(ids=covered[:10]).export_lmdb(tmp_path / "a") if form == "lmdb" else attached.search(
        ids=covered[:10]
    ).export_safetensors(tmp_path / "a")

    build(make_plan(*open_source(tmp_path / "a"), open_store(tmp_path / "root")))

    made = rc.open(tmp_path / "root")
    assert made.modalities == ("s2", "s1", "map", "elevation")
    assert verify(made, deep=True).ok
    for patch_id, arrays in samples(made.search()).items():
        np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))


def test_a_root_cannot_have_a_layer_that_some_patches_lack(exported, attached, tmp_path):
    with pytest.raises(SourceError, match="a layer of that name for 40 of 60 patches, which is not taken"):
        make_plan(*open_source(exported), open_store(tmp_path / "root"))

    names = ["s2", "s1", "map"]
    source, official = open_source(exported, modalities=names)
    build(make_plan(source, official, open_store(tmp_path / "root"), modalities=names))
    made = rc.open(tmp_path / "root")
    assert made.modalities == ("s2", "s1", "map")
    assert_same(samples(made.search()), samples(attached.search(), modalities=["s2", "s1", "map"]))
