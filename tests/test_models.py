"""Models: the seven architectures, the published layout both ways, the card and the item."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reben_cloud.bigearthnet.bands import BAND_SETS, BAND_SETS_V011
from reben_cloud.errors import NotFoundError
from reben_cloud.training.config import load_recipe
from reben_cloud.training.modelcard import write_card
from reben_cloud.training.models import (
    ARCHITECTURES,
    ModelSpec,
    create_model,
    ilm_configuration,
    load_pretrained,
    published_bands,
    save_model,
)

# Millions of parameters with 19 classes and 10 channels, as measured on the published classes.
PARAMETERS = dict(zip(ARCHITECTURES, (23.57, 42.56, 20.62, 87.73, 59.15, 4.95, 85.74), strict=True))

SMALL = ModelSpec(architecture="test_resnet", bands=BAND_SETS["S1_10m_20m"])


def image_for(spec, count=2):
    return torch.randn(count, len(spec.bands), 120, 120, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_published_architectures_have_the_published_size(architecture):
    spec = ModelSpec(
        architecture=architecture, bands=BAND_SETS["10m_20m"], drop_rate=0.15, drop_path_rate=0.15
    )

    with torch.device("meta"):
        model = create_model(spec)

    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[architecture], abs=0.006)


@pytest.mark.slow
def test_a_unet_predicts_every_pixel_and_learns():
    spec = replace(SMALL, task="map", architecture="resnet18")

    model = create_model(spec)
    logits = model(image_for(spec))
    logits.mean().backward()

    assert logits.shape == (2, 19, 120, 120)
    assert all(parameter.grad is not None for name, parameter in model.named_parameters())


def test_unknown_architectures_and_bands_are_refused():
    with pytest.raises(ValueError, match="timm has no model 'resnet51'"):
        create_model(replace(SMALL, architecture="resnet51"))
    with pytest.raises(ValueError, match="'B13' is none of"):
        replace(SMALL, bands=("B13",))


@pytest.mark.parametrize("task", ["labels", "map"])
def test_a_saved_model_comes_back(tmp_path, task):
    spec = replace(SMALL, task=task, drop_rate=0.1)
    model = create_model(spec).eval()

    save_model(tmp_path, model, spec)
    again, found = load_pretrained(tmp_path)

    assert found == spec
    assert not again.training
    torch.testing.assert_close(again(image_for(spec)), model(image_for(spec)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "bands"),
    [
        ("resnet50-s1-v0.2.0", ("VV", "VH")),
        ("resnet50-s1-v0.1.1", ("VH", "VV")),
        ("resnet50-all-v0.2.0", BAND_SETS["S1_10m_20m"]),
        ("BIFOLD-BigEarthNetv2-0/vit_base_patch8_224-all-v0.1.1", BAND_SETS_V011["S1_10m_20m"]),
    ],
)
def test_the_name_of_a_published_model_tells_the_order_of_its_bands(name, bands):
    assert published_bands(name) == bands


@pytest.mark.parametrize("version", ["v0.1.1", "v0.2.0"])
def test_a_folder_in_the_published_layout_is_read_into_bare_timm(tmp_path, version):
    folder = tmp_path / f"test_resnet-all-{version}"
    model = create_model(SMALL).eval()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(ilm_configuration(SMALL)))
    save_file(
        {f"model.vision_encoder.{k}": v for k, v in model.state_dict().items()}, folder / "model.safetensors"
    )

    again, spec = load_pretrained(folder)

    assert spec.bands == published_bands(folder.name)
    assert again.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(again(image_for(spec)), model(image_for(spec)), rtol=0, atol=0)


def test_what_is_no_model_is_refused_with_the_reason(tmp_path):
    with pytest.raises(NotFoundError, match=r"neither reben_cloud\.json nor config\.json"):
        load_pretrained(tmp_path)
    with pytest.raises(NotFoundError, match="no such folder, and not a name on the Hugging Face hub"):
        load_pretrained(tmp_path / "nowhere" / "at" / "all")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 768}))
    with pytest.raises(ValueError, match="has no timm_model_name, so it is not of a model of reBEN's"):
        load_pretrained(tmp_path, bands=BAND_SETS["S1"])
    (tmp_path / "config.json").write_text(json.dumps(ilm_configuration(SMALL)))
    with pytest.raises(ValueError, match="tell the order of the bands"):
        load_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 12 channels, and 2 bands are named"):
        load_pretrained(tmp_path, bands=BAND_SETS["S1"])
    with pytest.raises(NotFoundError, match=r"no model\.safetensors"):
        load_pretrained(tmp_path, bands=BAND_SETS["S1_10m_20m"])
    save_file({"model.vision_encoder.x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the weights do not fit test_resnet"):
        load_pretrained(tmp_path, bands=BAND_SETS["S1_10m_20m"])


def test_a_model_that_cannot_be_had_from_the_hub_is_said_so(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError, match="neither from the Hugging Face hub nor from its cache"):
        load_pretrained("BIFOLD-BigEarthNetv2-0/resnet50-s2-v0.2.0")


@pytest.fixture(scope="module")
def original():
    """The published class in small: a hub mixin around the real ConfigILM, as in the training scripts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not ours
        configilm = pytest.importorskip("configilm.ConfigILM", exc_type=ImportError)
    from huggingface_hub import PyTorchModelHubMixin

    class Classifier(nn.Module, PyTorchModelHubMixin):
        def __init__(self, config: configilm.ILMConfiguration, lr: float = 1e-3):
            super().__init__()
            self.lr = lr
            self.model = configilm.ConfigILM(config)

        def forward(self, x):
            return self.model(x)

    return Classifier, configilm.ILMConfiguration


@pytest.mark.filterwarnings("ignore:Keyword 'img_size' unknown")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_original_class_loads_what_is_saved_here(original, tmp_path):
    classifier, _ = original
    model = create_model(SMALL).eval()
    save_model(tmp_path, model, SMALL)

    theirs = classifier.from_pretrained(str(tmp_path)).eval()

    torch.testing.assert_close(theirs(image_for(SMALL)), model(image_for(SMALL)), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Keyword 'img_size' unknown")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_the_original_class_saves_is_loaded_here(original, tmp_path):
    classifier, configuration = original
    folder = tmp_path / "test_resnet-s2-v0.2.0"
    theirs = classifier(configuration(timm_model_name="test_resnet", channels=10, classes=19)).eval()
    theirs.save_pretrained(folder)

    model, spec = load_pretrained(folder)

    assert spec.bands == BAND_SETS["10m_20m"]
    torch.testing.assert_close(model(image_for(spec)), theirs(image_for(spec)), rtol=0, atol=0)


def test_the_published_files_have_the_published_names_and_size(tmp_path):
    spec = ModelSpec(architecture="resnet50", bands=BAND_SETS["10m_20m"])

    save_model(tmp_path, create_model(spec), spec)

    weights = load_file(tmp_path / "model.safetensors")
    assert len(weights) == 320
    assert weights["model.vision_encoder.conv1.weight"].shape == (64, 10, 7, 7)
    assert weights["model.vision_encoder.fc.weight"].shape == (19, 2048)
    assert os.path.getsize(tmp_path / "model.safetensors") == 94_523_860


METRICS = {
    "subset": "test",
    "num_patches": 3,
    "num_classes": 17,
    "best_epoch": 1,
    "validation_score": 0.5,
    "macro": {"ap": 0.5, "f1": 0.25, "precision": 0.2, "recall": 0.1, "accuracy": 0.9},
    "micro": {"ap": 0.5, "f1": 0.25, "precision": 0.2, "recall": 0.1, "accuracy": 0.9},
}


@pytest.mark.parametrize("task", ["labels", "map"])
def test_the_item_of_a_model_is_valid_and_the_card_is_complete(tmp_path, shared, task):
    spec = replace(SMALL, task=task)
    metrics = METRICS if task == "labels" else {**METRICS, "macro": {"iou": 0.4, "f1": None}}
    if task == "map":
        metrics.pop("micro", None)
    save_model(tmp_path, create_model(spec), spec)

    write_card(tmp_path, spec, metrics, load_recipe("resnet50"))

    item = json.loads((tmp_path / "item.json").read_text())
    for url in (
        "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json",
        *item["stac_extensions"],
    ):
        validator(shared / "stac_schemas", url).validate(item)
    assert item["properties"]["mlm:input"][0]["bands"] == list(spec.bands)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\ntags:\n- test_resnet")
    assert ("stopped and chosen on validation (average" in card) == (task == "labels")
    assert "macro is the mean over the 17 classes that occur" in card


def validator(folder: Path, url: str):
    """A validator that finds every schema in the shared folder."""
    import jsonschema
    import referencing

    paths = json.loads((folder / "index.json").read_text())

    def retrieve(uri):
        text = (folder / paths[uri]).read_text()
        return referencing.Resource.from_contents(
            json.loads(text), default_specification=referencing.jsonschema.DRAFT7
        )

    registry = referencing.Registry(retrieve=retrieve)
    return jsonschema.Draft7Validator(retrieve(url).contents, registry=registry)


@pytest.mark.slow
def test_models_load_beside_a_torchvision_whose_operators_do_not():
    """Where torch is a CPU build and torchvision the ordinary wheel, as on most test machines; anywhere else too."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ours = "reben_cloud.training.models, reben_cloud.training.metrics"
    program = f"import {ours}, timm, torchvision; print(torchvision.__name__)"

    result = subprocess.run(
        [sys.executable, "-c", program], env=alone, capture_output=True, text=True, check=False
    )

    assert result.stdout == "torchvision\n", result.stderr


@pytest.mark.parametrize(
    ("architecture", "task", "message"),
    [
        pytest.param("test_vit", "labels", "does not take images of 120 x 120", id="patches"),
        pytest.param("levit_128s", "labels", "does not take images of 120 x 120", id="tables"),
        pytest.param("hrnet_w18_small", "map", "does not take images of 120 x 120", id="strides"),
        pytest.param("swin_tiny_patch4_window7_224", "map", "does not take images of 120 x 120", id="axes"),
    ],
)
def test_what_cannot_take_the_images_is_told_when_it_is_made(architecture, task, message):
    spec = ModelSpec(architecture=architecture, bands=BAND_SETS["RGB"], task=task)
    with pytest.raises(ValueError, match=f"architecture: {architecture} {message}"):
        create_model(spec)


def test_transformers_make_maps_of_the_images_of_the_dataset():
    spec = ModelSpec(architecture="vit_tiny_patch16_224", bands=BAND_SETS["RGB"], task="map")
    assert create_model(spec)(image_for(spec)).shape == (len(image_for(spec)), 19, 120, 120)
