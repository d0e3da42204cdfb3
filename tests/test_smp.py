"""Architectures of segmentation_models_pytorch: maps of 120 px, weights to begin with, folders, masks."""

import sys
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import MissingExtraError
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.training.config import load_recipe
from reben_cloud.training.depth import freeze, layers_of, parameter_groups
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.outputs import embed
from reben_cloud.training.start import head_names, read_weights, start_from
from reben_cloud.training.train import train
from tests.conftest import missing

BANDS = ("B04", "B03", "VV")


@pytest.fixture
def installed():
    if find_spec("segmentation_models_pytorch") is None:
        missing("segmentation_models_pytorch is not installed: pip install 'reben-cloud[smp]'")


def spec_of(architecture, **facts):
    return ModelSpec(architecture=architecture, bands=BANDS, **{"task": "map", **facts})


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)

    with pytest.raises(
        MissingExtraError, match=r"segmentation_models_pytorch is not installed.*reben-cloud\[smp\]"
    ):
        create_model(spec_of("smp:FPN:resnet18"))


@pytest.mark.parametrize(
    ("architecture", "facts", "message"),
    [
        pytest.param("smp:FPM:resnet18", {}, "must be smp:DECODER:ENCODER.*decoders of .*DPT, .*FPN", id="decoder"),
        pytest.param("smp:FPN", {}, "must be smp:DECODER:ENCODER", id="no encoder"),
        pytest.param("smp:FPN:resnet19", {}, "cannot make smp:FPN:resnet19: .*resnet19.*tu-NAME", id="encoder"),
        pytest.param("smp:FPN:tu-resnet19", {}, "cannot make .*Unknown model.*resnet19", id="of timm"),
        pytest.param("smp:Linknet:mit_b0", {}, "cannot make .*not supported for Linknet", id="misfit"),
        pytest.param("smp:FPN:resnet18", {"task": "labels"}, "makes maps .*not the task labels", id="task"),
        pytest.param("smp:FPN:resnet18", {"decoder": "transformer"}, "not decoder = 'transformer'", id="two decoders"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused(installed, architecture, facts, message):
    with pytest.raises(ValueError, match=message):
        create_model(spec_of(architecture, **facts))


@pytest.mark.parametrize(
    "architecture",
    [
        "smp:FPN:tu-test_resnet",
        "smp:PAN:tu-test_resnet",
        pytest.param("smp:Segformer:mit_b0", marks=pytest.mark.slow),
        pytest.param("smp:DPT:tu-vit_tiny_patch16_224", marks=pytest.mark.slow),
    ],
)
def test_a_folder_is_read_again_and_maps_have_the_size_of_the_image(installed, architecture, tmp_path):
    torch.manual_seed(0)
    spec = spec_of(architecture)
    model = create_model(spec).eval()
    image = torch.randn(2, 3, 120, 120)
    save_model(tmp_path, model, spec)

    again, read = load_pretrained(tmp_path)

    with torch.inference_mode():
        said = model(image)
        assert read == spec
        assert said.shape == (2, 19, 120, 120)
        torch.testing.assert_close(again(image), said)
        assert embed(again, image).shape[0] == 2
        # What is beyond the edge is the image, mirrored.
        torch.testing.assert_close(
            model(functional.pad(image, (0, 8, 0, 8), mode="reflect"))[..., :120, :120], said
        )
    assert list(head_names(model)) == [name for name in model.state_dict() if name.startswith("head.")] != []


def test_images_of_less_than_half_a_stride_have_maps_too(installed):
    model = create_model(spec_of("smp:FPN:tu-test_resnet", image_px=10)).eval()

    assert model(torch.randn(2, 3, 10, 10)).shape == (2, 19, 10, 10)


@pytest.mark.parametrize(
    ("encoder", "timm_name"), [("resnet18", "resnet18"), ("tu-test_resnet", "test_resnet")]
)
def test_it_begins_with_the_weights_of_a_classifier_of_its_encoder(installed, encoder, timm_name, tmp_path):
    classifier = ModelSpec(architecture=timm_name, bands=("B04", "B8A"))
    save_model(tmp_path, create_model(classifier), classifier)
    weights = read_weights(str(tmp_path))
    spec = spec_of(f"smp:FPN:{encoder}")
    model = create_model(spec)

    left = start_from(model, spec, weights)

    first = next(tensor for tensor in model.encoder.state_dict().values() if tensor.ndim == 4)
    theirs = next(tensor for tensor in weights.tensors.values() if tensor.ndim == 4)
    torch.testing.assert_close(first[:, 0], theirs[:, 0])
    torch.testing.assert_close(first[:, 2], theirs.mean(1))
    assert {name.split(".")[0] for name in left} == {"decoder", "head"}
    assert len(layers_of(model)) >= 6
    scales = [group["scale"] for group in parameter_groups(model, 0.5)]
    assert scales == sorted(scales)
    freeze(model, "backbone")
    assert {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad} == {
        "decoder",
        "head",
    }


@pytest.mark.slow
def test_weights_that_no_map_depends_on_do_not_learn(installed):
    model = create_model(spec_of("smp:PSPNet:resnet18"))

    model(torch.randn(2, 3, 120, 120)).sum().backward()

    still = {name.split(".")[1] for name, one in model.named_parameters() if not one.requires_grad}
    assert still == {"layer3", "layer4"}
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)


@pytest.mark.slow
def test_a_recipe_trains_one_and_its_masks_are_written(installed, tmp_path):
    build(make_plan(*open_source("synthetic:40"), open_store(tmp_path / "root")))
    ds = rc.open(tmp_path / "root")
    short = ["epochs=1", "batch_size=4", "bands=B04,B03,B02", "architecture=smp:FPN:tu-test_resnet"]

    result = train(load_recipe("unet_resnet34", overrides=short), ds, tmp_path / "run")
    rc.predict(tmp_path / "run" / "best", ds.search(limit=5), tmp_path / "mask", what="mask")

    assert 0 <= result["macro"]["iou"] <= 1
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert "library_name: segmentation-models-pytorch" in card
    assert "# smp:FPN:tu-test_resnet on " in card
    masked = rc.open(tmp_path / "root", layers=[tmp_path / "mask"]).search(has="mask")
    codes = {code for codes in ds.schema.classes.codes for code in codes}
    assert len(masked) == 5
    assert set(masked[0]["mask"].to_numpy().ravel().tolist()) <= codes
