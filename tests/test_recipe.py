"""Recipes: what comes with the package, and every way of getting a key or a value wrong."""

import dataclasses
import json

import pytest

from reben_cloud.bigearthnet.bands import BAND_SETS
from reben_cloud.bigearthnet.inputs import choose_bands
from reben_cloud.training.config import (
    Subset,
    TrainConfig,
    config_from,
    load_recipe,
    recipe_names,
)

PUBLISHED = [
    "convmixer_768_32",
    "convnextv2_base",
    "mixer_b16_224",
    "mobilevit_s",
    "resnet101",
    "resnet50",
    "vit_base_patch8_224",
]


def test_a_recipe_for_each_published_architecture_and_one_for_maps():
    assert recipe_names() == sorted([*PUBLISHED, "finetune", "knn", "linear_probe", "unet_resnet34"])
    for name in PUBLISHED:
        assert load_recipe(name).architecture == name
    assert load_recipe("unet_resnet34").task == "map"


@pytest.mark.parametrize("bands", ["S1", "10m_20m", "S1_10m_20m"])
def test_the_published_recipe_is_what_the_facts_say(bands):
    config = load_recipe("resnet50", overrides=[f"bands={bands}"])

    assert choose_bands(config.bands) == BAND_SETS[bands]
    assert (config.epochs, config.patience, config.batch_size) == (100, 5, 512)
    assert (config.lr, config.weight_decay, config.warmup_steps) == (1e-3, 0.01, 1000)
    assert (config.drop_rate, config.drop_path_rate, config.flips) == (0.15, 0.15, True)
    assert (config.precision, config.matmul_precision) == ("fp32", "medium")
    assert config.train.given() == {"split": "train", "recommended": True}
    assert config.validation.split == "validation"


def test_one_line_trains_here_and_tests_there():
    config = load_recipe(
        "resnet50",
        overrides=[
            "train.country=Finland",
            "test.country=['Portugal']",
            "train.recommended=any",
            "lr=3e-4",
        ],
    )

    assert config.train.given() == {"split": "train", "country": "Finland"}
    assert config.test.given() == {"split": "test", "country": "Portugal", "recommended": True}
    assert config.lr == 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("learning_rate=1", "unknown key 'learning_rate'; known are architecture", id="key"),
        pytest.param("train.land=1", r"unknown key 'train\.land'; known are bbox", id="nested key"),
        pytest.param("train=3", r"train is a table such as \[train\]", id="table"),
        pytest.param("lr=fast", "lr must be a number, got 'fast'", id="number"),
        pytest.param("lr=true", "lr must be a number, got True", id="bool is no number"),
        pytest.param("epochs=1.5", "epochs must be of type int, got 1.5", id="int"),
        pytest.param("compile=1", "compile must be of type bool, got 1", id="bool"),
        pytest.param("task=scene", "task must be 'labels' or 'map'", id="literal"),
        pytest.param("decoder=segformer", "decoder must be 'unet' or 'transformer'", id="decoder"),
        pytest.param("train.bbox=[1, 'x']", r"train\.bbox must be a number, got 'x'", id="list item"),
        pytest.param("epochs=0", "epochs must be at least 1, got 0", id="range"),
        pytest.param("drop_rate=1.0", r"drop_rate must be in \[0, 1\)", id="share"),
        pytest.param("bands=B99", "'B99' is neither a band set", id="band"),
        pytest.param("lr", "write key=value", id="no value"),
        pytest.param("lr=inf", "lr must be a number that float32 holds, got inf", id="infinite"),
        pytest.param("weight_decay=1e300", "weight_decay must be a number that float32 holds", id="huge"),
        pytest.param("seed=18446744073709551616", r"seed must be below 2\*\*64", id="a seed too large"),
        pytest.param(
            "accumulate=513", "accumulate must be at most batch_size, 512", id="more parts than patches"
        ),
        pytest.param("decoder=transformer", "decoder must be left out for labels", id="a decoder of labels"),
        pytest.param("architecture.of=1", "architecture is not a table, but 'resnet50'", id="no table"),
    ],
)
def test_what_is_wrong_is_refused_by_name(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("resnet50", overrides=[override])


@pytest.mark.parametrize("subset", ["train", "validation", "test"])
def test_what_used_to_mean_something_else_in_a_recipe_is_refused_with_the_words_for_it(subset):
    """In a search ``recommended=False`` has only patches with snow, cloud or shadow; old recipes meant all."""
    with pytest.raises(ValueError, match=rf'{subset}\.recommended must be true, or "any" for .*, got False'):
        load_recipe("resnet50", overrides=[f"{subset}.recommended=false"])
    with pytest.raises(ValueError, match=rf'{subset}\.split must be "any" for'):
        config_from({subset: {"split": ""}})
    for value in (1, 0, "true", "", None):
        with pytest.raises(ValueError, match="recommended must be"):
            config_from({subset: {"recommended": value}})


def test_any_takes_a_default_back():
    config = load_recipe("resnet50", overrides=["train.split=any", "train.recommended=any"])

    assert config.train.given() == {}
    assert config_from(json.loads(config.to_json())) == config
    with pytest.raises(ValueError, match="recommended must be true"):
        Subset(recommended=False)


def test_patches_are_not_balanced_by_other_labels_than_are_learned():
    load_recipe("resnet50", overrides=["balanced=0.5", "test_labels=v1:labels"])

    with pytest.raises(ValueError, match=r"balanced must be 0 where `labels` are a layer's, .* got 0\.5"):
        load_recipe("resnet50", overrides=["balanced=0.5", "labels=v1:labels"])


def test_losing_a_modality_needs_two():
    with pytest.raises(
        ValueError, match="modality_dropout must be 0 unless the bands are of several modalities"
    ):
        load_recipe("resnet50", overrides=["modality_dropout=0.1", "bands=S1"])


def test_a_recipe_may_be_a_file_and_must_be_toml(tmp_path):
    good, bad = tmp_path / "mine.toml", tmp_path / "bad.toml"
    good.write_text('architecture = "resnet18"\nbands = "B02, VV"\n[test]\ncountry = "Ireland"\n')
    bad.write_text("architecture: resnet18\n")

    assert load_recipe(good).architecture == "resnet18"
    assert choose_bands(load_recipe(good).bands) == ("B02", "VV")
    with pytest.raises(ValueError, match=r"bad\.toml is not valid TOML"):
        load_recipe(bad)
    with pytest.raises(FileNotFoundError, match="nor one of convmixer_768_32"):
        load_recipe("resnet51")


def test_the_resolved_configuration_reads_back():
    config = load_recipe("unet_resnet34", overrides=["train.bbox=[1, 2, 3.5, 4]", "train.datetime=2017-06"])

    assert config_from(json.loads(config.to_json())) == config
    assert dataclasses.replace(config) == config
    assert TrainConfig() == config_from({})


def test_a_set_whose_order_nobody_knows_is_refused():
    for name in ("20m", "S2", "ALL"):
        with pytest.raises(ValueError, match=rf"no model v0\.1\.1 of the set {name} was published"):
            choose_bands(name, models="v0.1.1")
    assert choose_bands("S1", models="v0.1.1") == ("VH", "VV")


def test_what_is_frozen_is_a_word_or_a_number():
    assert load_recipe("linear_probe").freeze == "backbone"
    assert load_recipe("knn").neighbours == 20
    assert load_recipe("resnet50", overrides=["freeze=3"]).freeze == 3
    for value in ("all", "-1", "true", "1.5"):
        with pytest.raises(ValueError, match="freeze must be 'backbone'"):
            load_recipe("resnet50", overrides=[f"freeze={value}"])
