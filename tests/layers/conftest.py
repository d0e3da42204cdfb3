"""A root of 60 synthetic patches, and an elevation for two of three of them, for all tests of layers."""

from __future__ import annotations

import pytest

import reben_cloud as rc
from tests.layers.data import ELEVATION, NUM_PATCHES, elevations
from tests.roots import synthetic_root


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A root of 60 synthetic patches in shards of 16."""
    folder = tmp_path_factory.mktemp("layers") / "root"
    synthetic_root(folder, NUM_PATCHES, shard_samples=16)
    return folder


@pytest.fixture(scope="session")
def ds(root):
    return rc.open(root)


@pytest.fixture(scope="session")
def covered(ds):
    """Patches that the elevation has: two of three."""
    return [patch_id for number, patch_id in enumerate(ds.selection.patch_ids) if number % 3]


@pytest.fixture(scope="session")
def elevation(ds, covered, tmp_path_factory):
    return rc.write_layer(
        tmp_path_factory.mktemp("layer") / "elevation",
        ds,
        name="elevation",
        tensors=ELEVATION,
        patches=elevations(reversed(covered)),
        title="Elevation",
        provenance={"source": "a formula"},
    )


@pytest.fixture(scope="session")
def attached(root, elevation):
    return rc.open(root, layers=[elevation.url])
