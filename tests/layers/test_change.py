"""Layers made for other roots, and removed; bands of layers as model input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import NotFoundError
from reben_cloud.layers import rebase_layer, remove_layer
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.torch import ModelInput, StreamLoader
from tests.batches import samples
from tests.layers.data import ELEVATION, elevation_of, elevations
from tests.roots import synthetic_root


@pytest.fixture(scope="module")
def ds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("change") / "root"
    synthetic_root(folder, 40)
    return rc.open(folder)


def root_of(ds, split, folder):
    """A root of its own of the patches of a split."""
    ds.search(split=split).export_lmdb(folder / "lmdb", modalities=["s1"])
    build(make_plan(*open_source(str(folder / "lmdb")), open_store(folder / "root")))
    return rc.open(folder / "root")


@pytest.fixture(scope="module")
def part(ds, tmp_path_factory):
    return root_of(ds, "train", tmp_path_factory.mktemp("part"))


@pytest.fixture(scope="module")
def elevation(ds, tmp_path_factory):
    ids = ds.selection.patch_ids[::2]
    dest = tmp_path_factory.mktemp("layer") / "e"
    return rc.write_layer(
        dest, ds, name="elevation", tensors=ELEVATION, patches=elevations(ids), title="Heights"
    )


def test_a_layer_rebased_has_the_same_for_the_same_patches(ds, part, elevation, tmp_path):
    layer = rebase_layer(tmp_path / "r", part, elevation)

    assert layer.manifest.fingerprint == part.manifest.fingerprint
    assert layer.manifest.title == "Heights"
    assert layer.manifest.provenance["rebased_from"] == ds.manifest.fingerprint
    covered = set(ds.selection.patch_ids[::2])
    for patch_id, arrays in samples(part.with_layers(layer).search(), modalities=["elevation"]).items():
        assert arrays["elevation_present"] == (patch_id in covered)
        if patch_id in covered:
            np.testing.assert_array_equal(arrays["elevation"], elevation_of(patch_id))


def test_a_layer_with_none_of_a_roots_patches_is_refused(ds, part, tmp_path):
    layer = rc.write_layer(
        tmp_path / "e",
        part,
        name="elevation",
        tensors=ELEVATION,
        patches=elevations(part.selection.patch_ids),
    )

    with pytest.raises(NotFoundError, match="none of the patches"):
        rebase_layer(tmp_path / "r", root_of(ds, "test", tmp_path), layer)


def test_a_removed_layer_leaves_nothing_of_its_own_and_all_else(ds, tmp_path):
    layer = rc.write_layer(tmp_path / "e", ds, name="elevation", tensors=ELEVATION, patches=[])
    (tmp_path / "e" / "notes.txt").write_text("mine")

    removed = remove_layer(layer.store)

    assert removed > 3
    assert [p.name for p in (tmp_path / "e").rglob("*") if p.is_file()] == ["notes.txt"]
    with pytest.raises(NotFoundError, match="holds no layer"):
        remove_layer(layer.store)


def test_a_root_is_not_removed(ds):
    with pytest.raises(NotFoundError, match="holds no layer"):
        remove_layer(ds.store)


def test_a_band_of_a_layer_is_model_input_with_its_own_statistics(ds, elevation):
    both = ds.with_layers(elevation)
    bands = ["B04", "dem"]
    ids = ds.selection.patch_ids[::2]

    image = ModelInput(bands, schema=both.schema, statistics=both.band_statistics)
    batch = next(iter(StreamLoader(both.search(ids=ids), batch_size=4, shuffle=False)))
    found = image(batch)

    stats = elevation.manifest.statistics["dem"]
    expected = (np.stack([elevation_of(i) for i in ids[:4]]).astype(np.float64) - stats["mean"]) / stats[
        "std"
    ]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[:, 1].numpy(), expected, rtol=1e-4, atol=1e-4)
