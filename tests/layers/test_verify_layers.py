"""Layers checked by themselves and beside their root; flips in every object; info, doctor and the shared option."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

import reben_cloud as rc
from reben_cloud.checks.doctor import diagnose
from reben_cloud.checks.verify import verify, verify_layer
from reben_cloud.formats import tar
from reben_cloud.layers.describe import fill_payload
from reben_cloud.root import layout
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.root.objects import Objects, WrittenObject
from tests.commands import invoke as run
from tests.layers.data import ELEVATION, elevations, write_table_layer
from tests.roots import synthetic_root


@pytest.fixture
def copied(elevation, tmp_path):
    """A copy of the elevation that may be damaged, without what its making left."""
    folder = tmp_path / "copy"
    source = elevation.url.removeprefix("file://")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("_build"))
    return folder


@pytest.fixture(params=["array", "one", "many"])
def layer_folder(request, copied, ds, tmp_path):
    """A layer of each kind."""
    if request.param == "array":
        return copied
    write_table_layer(tmp_path / request.param, ds, kind=request.param)
    return tmp_path / request.param


@pytest.mark.parametrize("level", [{"quick": True}, {}, {"deep": True}])
def test_a_layer_that_is_as_it_was_written_is_all_right(layer_folder, ds, level):
    layer = rc.open_layer(layer_folder)

    alone, beside = verify_layer(layer, **level), verify_layer(layer, root=ds, **level)

    assert alone.ok, alone.to_text()
    assert beside.ok, beside.to_text()
    assert beside.against == f"root {ds.url}"
    assert alone.num_patches == layer.manifest.coverage


def test_rows_in_the_order_of_shards_with_an_index_in_that_of_the_table_are_all_right(ds, tmp_path):
    ids = [patch_id for patch_id in ds.selection.patch_ids for _ in range(3)]
    table = pa.table({"patch_id": ids, "input": [f"text {number}" for number in range(len(ids))]})

    layer = rc.write_table(tmp_path / "texts", ds, table=table, name="txt", many=True)

    first = layer.by_patch.read([0], ["first"]).column(0).to_pylist()
    assert first != sorted(first)
    assert verify_layer(layer, root=ds, deep=True).problems == ()


@pytest.mark.parametrize("level", [{"quick": True}, {}, {"deep": True}])
def test_a_root_is_verified_with_its_layers(attached, ds, level):
    with_layer, without = verify(attached, **level), verify(ds, **level)

    assert with_layer.ok, with_layer.to_text()
    assert with_layer.num_objects > without.num_objects


def test_a_flip_in_any_object_of_a_layer_is_found(layer_folder):
    rng = np.random.default_rng(1)
    layer = rc.open_layer(layer_folder)
    for path in sorted(p for p in layer_folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        places = {0, len(data) - 1, *rng.integers(len(data), size=6).tolist()}
        for place in sorted(places):
            changed = bytearray(data)
            changed[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)

            report = verify_layer(layer)

            name = path.relative_to(layer_folder).as_posix()
            assert any(name in problem for problem in report.problems), (name, place, report.to_text())
        path.write_bytes(data)
    assert verify_layer(layer).ok


def test_what_is_missing_cut_short_or_foreign_is_told_at_a_glance(layer_folder):
    layer = rc.open_layer(layer_folder)
    (layer_folder / "stranger.txt").write_text("?")
    rows = layer_folder / "rows.parquet"
    rows.write_bytes(rows.read_bytes()[:-1])
    shard = next(layer_folder.glob("shards/*/*/*.tar"), None)
    if shard is not None:
        shard.unlink()

    text = verify_layer(layer, quick=True).to_text()

    assert "stranger.txt: not part of the dataset" in text
    assert "rows.parquet: " in text
    assert shard is None or f"{shard.relative_to(layer_folder).as_posix()}: missing" in text


def resealed(folder, **changes):
    """Give a layer that was changed the checksums that it would have had, and other words."""
    document = json.loads((folder / "layer.json").read_text())
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("layer.json", "objects.parquet")]
    written = [
        WrittenObject.of(p.relative_to(folder).as_posix(), p.read_bytes(), is_shard=p.suffix == ".tar")
        for p in sorted(paths)
    ]
    objects = Objects.of(written).encode()
    (folder / "objects.parquet").write_bytes(objects)
    document |= {"objects_sha256": hashlib.sha256(objects).hexdigest(), **changes}
    (folder / "layer.json").write_bytes(LayerManifest(document).to_bytes())
    return rc.open_layer(folder)


def test_records_that_changed_places_are_found_by_decoding_them(copied, elevation):
    shard = next(copied.glob("shards/*/*/*.tar"))
    modality = elevation.modality
    data = bytearray(shard.read_bytes())
    size, payload = tar.record_bytes(modality), modality.payload_bytes
    one, other = 512 + 1 * size, 512 + 2 * size
    data[one : one + payload], data[other : other + payload] = (
        data[other : other + payload],
        data[one : one + payload],
    )
    shard.write_bytes(data)

    layer = resealed(copied)

    assert verify_layer(layer).ok
    assert "is not the one that rows.parquet names" in verify_layer(layer, deep=True).to_text()


def test_a_lacking_patch_that_has_something_is_found(copied, elevation, covered, tmp_path, ds):
    # Written as if nothing were lacking, then said to lack what is there.
    every = ds.selection.patch_ids
    rc.write_layer(
        tmp_path / "whole",
        ds,
        name="elevation",
        tensors=ELEVATION,
        patches=elevations(every),
        title="Elevation",
    )
    shard = next((tmp_path / "whole").glob("shards/*/*/*.tar"))
    shutil.copy(shard, copied / shard.relative_to(tmp_path / "whole"))

    text = verify_layer(resealed(copied), deep=True).to_text()

    assert "what is said of" in text
    assert len(fill_payload(elevation.modality)) == elevation.modality.payload_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 41}, "coverage is 41, and 40 by the tables"),
        ({"groups": {"train": 60}}, "groups is {'train': 60}"),
        ({"shard_samples": 15}, "does not have one patch for each row of"),
        ({"num_patches": 61, "num_rows": 61}, "has 60 rows and layer.json says 61"),
        ({"statistics": {}}, "statistics is []"),
        (
            {"statistics": {"dem": {"mean": 1, "std": 2, "min": 3, "max": 4, "count": 5}}},
            "mean of dem is 1, and ",
        ),
    ],
)
def test_what_a_layer_says_is_derived_again(copied, ds, changes, message):
    report = verify_layer(resealed(copied, **changes), root=ds, deep=True)

    assert message in report.to_text()


def test_a_layer_of_another_root_is_told(elevation, tmp_path):
    synthetic_root(tmp_path / "other", 20)

    text = verify_layer(elevation, root=rc.open(tmp_path / "other")).to_text()

    assert f"was made for the root {elevation.manifest.fingerprint}" in text


def test_rows_of_another_root_with_the_fingerprint_of_this_one_are_found(copied, ds, tmp_path):
    synthetic_root(tmp_path / "other", 60)
    other = rc.open(tmp_path / "other")  # in shards of another size

    layer = resealed(copied, fingerprint=other.manifest.fingerprint)

    assert "patches in other rows than" in verify_layer(layer, root=other).to_text()


# -- commands ----------------------------------------------------------------------------------------


def test_verify_recognises_a_layer(copied, root):
    url = str(copied)
    assert "all right" in run("verify", url).stdout
    beside = run("verify", url, "--root", root, "--deep", "--json")
    assert json.loads(beside.stdout)["ok"]

    rows = copied / "rows.parquet"
    rows.write_bytes(rows.read_bytes().replace(b"PAR1", b"PAR2", 1))

    alone, together = run("verify", url), run("verify", root, "--layer", url)
    assert (alone.exit_code, together.exit_code) == (1, 1)
    assert "rows.parquet: damaged" in alone.stdout
    assert "layer elevation: rows.parquet: damaged" in together.stdout


def test_root_is_for_layers_alone(root):
    assert "is not a layer" in run("verify", root, "--root", root).stderr


def test_info_describes_a_layer(elevation, root):
    text = run("info", elevation.url).stdout
    beside = run("info", root, "--layer", elevation.url).stdout

    assert "elevation: 40 of 60 patches, Elevation" in text
    assert "tensor       dem: int16 120 x 120, m, pixels of 10 m, no data -9999" in text
    assert f"made for     root {elevation.manifest.fingerprint}" in text
    assert "provenance   source: a formula" in text
    assert "layer        elevation: 40 of 60 patches, Elevation" in beside
    assert json.loads(run("info", elevation.url, "--json").stdout)["name"] == "elevation"


@pytest.mark.slow
def test_layers_are_searched_streamed_and_exported_by_the_commands(elevation, root, tmp_path):
    found = run("search", root, "--layer", elevation.url, "--format", "geojson", "--limit", 3).stdout
    run("stream", root, "--layer", elevation.url, "--modality", "elevation", "--batch-size", 8)
    run("export", root, tmp_path / "a", "--layer", elevation.url, "--modality", "elevation", "--limit", 3)

    properties = [one["properties"] for one in json.loads(found)["features"]]
    assert [one["elevation:present"] for one in properties] == [False, True, True]
    assert rc.open(tmp_path / "a").modalities == ("elevation",)


@pytest.mark.slow
def test_the_doctor_looks_at_a_layer(copied):
    found = [f for f in diagnose(str(copied)) if f.subject == "layer"]
    assert [f.level for f in found] == ["ok"]
    assert "the layer elevation, made for the root" in found[0].detail

    path = copied / layout.LAYER_MANIFEST
    path.write_bytes(path.read_bytes().replace(b"Elevation", b"Elevetion"))

    assert [f.level for f in diagnose(str(copied)) if f.subject == "layer"] == ["problem"]
