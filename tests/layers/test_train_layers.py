"""Models that take a band of a layer: trained and measured by the commands, with statistics from ``layer.json``."""

from __future__ import annotations

import json

import pytest

from tests.commands import invoke as run

RECIPE = """
architecture = "test_byobnet"
bands = "B02,B03,B04,dem"
epochs = 1
batch_size = 8
drop_path_rate = 0.0
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "terrain.toml").write_text(RECIPE)
    return tmp_path / "terrain.toml"


@pytest.mark.slow
def test_a_recipe_takes_a_band_of_a_layer(root, elevation, recipe, tmp_path):
    folder = tmp_path / "run"
    trained = run("train", recipe, "--root", root, "--layer", elevation.url, "--out", folder, "--json")
    assert trained.exit_code == 0, trained.output
    asked = ("--root", root, "--layer", elevation.url, "--split", "validation", "--json")

    measured = run("evaluate", folder / "best", *asked)

    assert measured.exit_code == 0, measured.output
    facts = json.loads((folder / "best" / "reben_cloud.json").read_text())
    said = elevation.manifest.statistics["dem"]
    assert facts["bands"] == ["B02", "B03", "B04", "dem"]
    assert facts["statistics"]["dem"] == {"mean": said["mean"], "std": said["std"]}
    assert json.loads(measured.stdout)["num_classes"] > 0


def test_a_band_of_a_layer_that_is_not_there_is_named(root, recipe, tmp_path):
    found = run("train", recipe, "--root", root, "--out", tmp_path / "run")

    assert found.exit_code != 0
    assert "'dem' is neither a band set" in f"{found.output}{found.exception}"
    assert not (tmp_path / "run").exists()
