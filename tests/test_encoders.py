"""Encoders of others, named by an entry point: a small transformer, and foundation models where they are installed."""

import csv
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import reben_cloud as rc
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import load_recipe
from reben_cloud.training.depth import freeze, layers_of
from reben_cloud.training.encoders import Encoded, is_entry, takes_bands
from reben_cloud.training.evaluate import evaluate_folder
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.outputs import embed
from reben_cloud.training.start import head_names, read_weights, start_from
from reben_cloud.training.train import train
from tests.roots import synthetic_root

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SPEC = ModelSpec(architecture="small_transformer:make", bands=("VV", "B02", "B8A"))


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("small_transformer", None)


def test_an_encoder_becomes_a_classifier_that_is_kept_and_read(tmp_path):
    torch.manual_seed(0)
    model = create_model(SPEC).eval()
    image = torch.randn(2, 3, 120, 120)

    save_model(tmp_path, model, SPEC)
    again, spec = load_pretrained(tmp_path)

    assert spec == SPEC
    assert isinstance(again, Encoded)
    torch.testing.assert_close(again(image), model(image))
    assert model(image).shape == (2, 19)
    assert embed(model, image).shape == (2, 64)
    assert list(head_names(model)) == ["head.weight", "head.bias"]
    assert not (tmp_path / "config.json").exists()


def test_a_band_has_its_own_embedding_in_any_order():
    torch.manual_seed(0)
    one = create_model(SPEC).eval()
    other = create_model(replace(SPEC, bands=("B02", "B8A", "VV"))).eval()
    other.load_state_dict(one.state_dict())
    image = torch.randn(2, 3, 120, 120)

    torch.testing.assert_close(other(image[:, [1, 2, 0]]), one(image))


def test_layers_are_those_that_the_encoder_names():
    model = create_model(SPEC)

    layers = layers_of(model)

    assert {name.split(".")[1] for name in layers[0]} == {"cut", "place", "band"}
    assert [{name.split(".")[3] for name in layer} for layer in layers[1:4]] == [{"0"}, {"1"}, {"2"}]
    assert layers[-1] == ["head.weight", "head.bias"]
    freeze(model, 2)
    learning = {name for name, weights in model.named_parameters() if weights.requires_grad}
    assert "encoder.cut.weight" not in learning
    assert "encoder.blocks.layers.0.linear1.weight" not in learning
    assert "encoder.blocks.layers.1.linear1.weight" in learning


def test_weights_of_the_same_encoder_are_taken_and_of_other_bands_refused(tmp_path):
    torch.manual_seed(0)
    save_model(tmp_path, create_model(SPEC), SPEC)
    other = replace(SPEC, bands=("B02", "B03", "B04"))

    model = create_model(SPEC)
    assert start_from(model, SPEC, read_weights(str(tmp_path))) == []
    with pytest.raises(ValueError, match="no filters over bands"):
        start_from(create_model(other), other, read_weights(str(tmp_path)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        pytest.param("no_such_module:make", "no_such_module of .* cannot be imported.*PYTHONPATH", id="module"),
        pytest.param("small_transformer:made", "has no function made", id="function"),
        pytest.param("os:system", "os:system is not marked", id="not marked"),
        pytest.param(f"{__name__}:makes_a_number", "made int, not a torch", id="no module"),
        pytest.param(f"{__name__}:makes_maps", r"must give \(batch, features\), got \(2, 3, 120, 120\)", id="maps"),
    ],
)  # fmt: skip
def test_what_makes_no_encoder_is_named(entry, message):
    with pytest.raises(ValueError, match=message):
        create_model(replace(SPEC, architecture=entry))


def test_maps_need_an_encoder_of_timm():
    with pytest.raises(ValueError, match="maps need a timm encoder"):
        create_model(replace(SPEC, task="map"))
    assert not is_entry("resnet50")
    assert not is_entry("hf-hub:owner/name")


@takes_bands
def makes_a_number(bands, *, image_px):
    return 3


@takes_bands
def makes_maps(bands, *, image_px):
    return torch.nn.Identity()


@pytest.mark.slow
def test_a_recipe_trains_and_evaluates_one(tmp_path):
    synthetic_root(tmp_path / "root", 113)
    dataset = rc.open(tmp_path / "root")
    given = ["architecture=small_transformer:make", "bands=B02,B03,VV", "layer_decay=0.8"]
    config = load_recipe("resnet50", overrides=[*given, "epochs=2", "batch_size=8", "log_steps=1"])

    result = train(config, dataset, tmp_path / "run")

    test = dataset.search(split="test", recommended=True)
    _, spec, found = evaluate_folder(tmp_path / "run" / "best", test)
    assert spec.architecture == "small_transformer:make"
    assert found.metrics["macro"]["ap"] == pytest.approx(result["macro"]["ap"], abs=1e-4)
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "small_transformer:make" in card
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert len([row for row in rows if row["validation_score"]]) == 2
    json.loads((tmp_path / "run" / "best" / "item.json").read_text())
    with compute_context() as compute:
        assert compute.world_size == 1
    importlib.invalidate_caches()
