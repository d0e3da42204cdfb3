"""A root of 60 synthetic patches, and an elevation for two of three of them, for all tests of layers."""

from __future__ import annotations

import pytest

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.layers.data import ELEVATION, NUM_PATCHES, elevations


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    """A root of 60 synthetic patches in shards of 16."""
    folder = tmp_path_factory.mktemp("layers") / "root"
    source, official = open_source(f"synthetic:{NUM_PATCHES}")
    build(make_plan(source, official, open_store(folder), options=PlacementOptions(shard_samples=16)))
    return folder


@pytest.fixture(scope="package")
def ds(root):
    return rc.open(root)


@pytest.fixture(scope="package")
def covered(ds):
    """Patches that the elevation has: two of three."""
    return [patch_id for number, patch_id in enumerate(ds.selection.patch_ids) if number % 3]


@pytest.fixture(scope="package")
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


@pytest.fixture(scope="package")
def attached(root, elevation):
    return rc.open(root, layers=[elevation.url])
