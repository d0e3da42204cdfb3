"""Weights of another model to begin with: fitted to other bands and classes, frozen, slower towards the input."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.schema import Classes
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import load_recipe
from reben_cloud.training.depth import freeze, layers_of, parameter_groups
from reben_cloud.training.learner import Learner
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.objective import Objective
from reben_cloud.training.start import Weights, head_names, read_weights, start_from
from reben_cloud.training.train import model_spec, train
from tests.test_training_schema import FIELDS, batch_of, recipe

SPEC = ModelSpec(architecture="test_resnet", bands=("B04", "B03", "B02", "B08"))


def model_of(spec, seed=0):
    torch.manual_seed(seed)
    return create_model(spec)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of four bands and 19 classes."""
    path = tmp_path_factory.mktemp("start") / "model"
    save_model(path, model_of(SPEC), SPEC)
    return path


def test_the_same_bands_and_classes_give_the_same_model(folder):
    model = model_of(SPEC, seed=1)

    assert start_from(model, SPEC, read_weights(str(folder))) == []

    theirs = load_pretrained(folder)[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_a_band_keeps_its_filters_and_another_gets_the_mean(folder):
    spec = replace(SPEC, bands=("VV", "B02", "B04"), classes=Classes(names=("wheat", "rye")))
    model = model_of(spec, seed=1)
    made = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    left = start_from(model, spec, read_weights(str(folder)))

    theirs, own = load_pretrained(folder)[0].state_dict(), model.state_dict()
    first = next(name for name, tensor in own.items() if tensor.ndim == 4)
    mean = theirs[first].mean(1)
    assert torch.equal(own[first], torch.stack([mean, theirs[first][:, 2], theirs[first][:, 0]], 1))
    assert left == list(head_names(model)) == ["fc.weight", "fc.bias"]
    assert all(torch.equal(own[name], made[name]) for name in left)
    assert all(torch.equal(own[n], theirs[n]) for n in own if n not in {first, *left})


def test_files_of_safetensors_and_of_a_state_dict_are_read(folder, tmp_path):
    state = model_of(SPEC).state_dict()
    save_file(
        {f"model.vision_encoder.{n}": t.contiguous() for n, t in state.items()}, tmp_path / "a.safetensors"
    )
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}, tmp_path / "b.pth")

    for name in ("a.safetensors", "b.pth"):
        model = model_of(SPEC, seed=1)
        left = start_from(model, SPEC, read_weights(str(tmp_path / name)))
        assert left == ["fc.weight", "fc.bias"]  # nothing says which classes they are of
        assert torch.equal(model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_a_unet_begins_with_a_classifier(tmp_path):
    spec = ModelSpec(architecture="resnet10t", bands=SPEC.bands)
    save_model(tmp_path, model_of(spec), spec)
    unet_spec = replace(spec, task="map")
    unet = model_of(unet_spec, seed=1)

    left = start_from(unet, unet_spec, read_weights(str(tmp_path)))

    theirs = load_pretrained(tmp_path)[0].state_dict()
    own = unet.encoder.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
    assert left
    assert not any(name.startswith("encoder.") for name in left)


def test_what_does_not_fit_is_said(folder, tmp_path):
    other = replace(SPEC, architecture="test_byobnet")
    with pytest.raises(
        ValueError, match=r"those of .*model do not fit test_byobnet \(labels\): they have no"
    ):
        start_from(model_of(other), other, read_weights(str(folder)))
    five = replace(SPEC, bands=(*SPEC.bands, "B05"))
    save_file({n: t.contiguous() for n, t in model_of(SPEC).state_dict().items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="their input has 4 bands, and nothing says which"):
        start_from(model_of(five), five, read_weights(str(tmp_path / "a.safetensors")))
    (tmp_path / "broken.pt").write_bytes(b"no tensors")
    with pytest.raises(ChecksumError, match="is damaged, or not of tensors alone"):
        read_weights(str(tmp_path / "broken.pt"))
    with pytest.raises(NotFoundError, match="there is no file"):
        read_weights(str(tmp_path / "none.safetensors"))
    with pytest.raises(NotFoundError, match="timm has no model 'resnet49'"):
        read_weights("timm:resnet49")


@pytest.mark.parametrize("architecture", ["test_resnet", "test_byobnet", "test_vit", "test_convnext"])
def test_layers_hold_every_weight_once_and_the_head_is_the_last(architecture):
    model = model_of(ModelSpec(architecture=architecture, bands=SPEC.bands, image_px=128))

    layers = layers_of(model)

    named = dict(model.named_parameters())
    assert sorted(name for layer in layers for name in layer) == sorted(named)
    assert layers[-1] == [name for name in named if name in set(head_names(model))] != []
    groups = parameter_groups(model, 0.5)
    assert [group["scale"] for group in groups] == [0.5 ** (len(layers) - 1 - n) for n in range(len(layers))]
    freeze(model, 2)
    assert {name for name, weights in named.items() if not weights.requires_grad} == {*layers[0], *layers[1]}
    assert len(parameter_groups(model, 0.5)) == len(layers) - 2
    with pytest.raises(ValueError, match=f"freeze must be less than the model's {len(layers)} layers"):
        freeze(model, len(layers))


def learner_of(config, compute):
    spec = model_spec(config, FIELDS)
    return Learner(config, spec, Objective(config, spec, FIELDS, None), compute, num_steps=40)


def test_a_model_is_fine_tuned_on_another_dataset(folder):
    """Other bands, other sizes, other classes: begun with those weights, the head alone learns, and it learns."""
    config = recipe("architecture=test_resnet", "freeze=backbone", "lr=0.05", "drop_rate=0.0", "flips=false")
    with compute_context() as compute:
        learner = learner_of(config, compute)
        start_from(learner.model, learner.spec, read_weights(str(folder)))
        before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
        learner.start_epoch()
        losses = [learner.step(batch_of(32), number=n, epoch=0).loss.item() for n in range(12)]

    after = learner.model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}  # running statistics stand still as well
    assert losses[-1] < losses[0]


def test_a_step_in_parts_is_the_same_step():
    same = ["architecture=test_convnext", "drop_rate=0.0", "flips=false"]  # without statistics of batches
    found = []
    for parts in (1, 3):
        with compute_context() as compute:
            learner = learner_of(recipe(*same, f"accumulate={parts}"), compute)
            step = learner.step(batch_of(8), number=5, epoch=0)
            found.append((step.loss, step.logits, learner.model.state_dict()))
    (loss, logits, whole), (other_loss, other_logits, other) = found
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(logits, other_logits)
    for name in whole:
        torch.testing.assert_close(whole[name], other[name], rtol=1e-3, atol=1e-4)


def test_a_run_begins_with_weights_and_tells_its_log_to_a_hook(folder, tmp_path):
    source, official = open_source("synthetic:40")
    build(make_plan(source, official, open_store(tmp_path / "root")))
    rows = []
    config = load_recipe(
        "linear_probe",
        overrides=[
            *(
                "architecture=test_resnet",
                "bands=B04,B03,B02,B08",
                f"weights='{folder}'",
                "logger=tensorboard",
            ),
            *("epochs=1", "batch_size=4", "log_steps=1", "train.recommended=any", "test.recommended=any"),
        ],
    )

    train(config, rc.open(str(tmp_path / "root")), tmp_path / "run", on_log=rows.append)

    theirs, own = (load_pretrained(one)[0].state_dict() for one in (folder, tmp_path / "run" / "best"))
    assert {name for name in own if not torch.equal(own[name], theirs[name])} == {"fc.weight", "fc.bias"}
    assert {"loss", "lr"} <= rows[0].keys()
    assert {"validation_loss", "validation_score"} <= rows[-1].keys()
    assert (tmp_path / "run" / "log.csv").read_text().count("\n") == len(rows) + 1
    assert list((tmp_path / "run").glob("events.*"))


@pytest.mark.parametrize("architecture", ["test_convnext", "mobilevit_xxs", "test_vit", "densenet121"])
def test_a_unet_begins_with_a_classifier_that_timm_takes_apart_or_wraps(architecture):
    spec = ModelSpec(architecture=architecture, bands=SPEC.bands, image_px=128)
    classifier, unet_spec = model_of(spec), replace(spec, task="map")
    unet = model_of(unet_spec, seed=1)
    weights = Weights(
        source="there", tensors=classifier.state_dict(), bands=spec.bands, classes=spec.classes.names
    )

    left = start_from(unet, unet_spec, weights)

    assert left
    assert not any(name.startswith("encoder.") for name in left)
    theirs = [tensor for tensor in classifier.state_dict().values() if tensor.ndim > 1]
    for name, tensor in unet.encoder.state_dict().items():
        if tensor.ndim > 1:
            assert any(torch.equal(tensor, one) for one in theirs), name


@pytest.mark.parametrize("task", ["labels", "map"])
@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        pytest.param("resnet18", "resnet34", id="layers"),
        pytest.param("resnet10t", "seresnet18", id="other-parts"),
        pytest.param("convnext_atto", "convnext_femto", id="other-widths"),
    ],
)
def test_a_larger_model_is_not_cut_short(task, smaller, larger):
    theirs = ModelSpec(architecture=larger, bands=SPEC.bands)
    tensors = model_of(theirs).state_dict()
    spec = replace(theirs, architecture=smaller, task=task)
    weights = Weights(source="there", tensors=tensors, bands=spec.bands, classes=spec.classes.names)

    with pytest.raises(ValueError, match=f"those of there do not fit {smaller}"):
        start_from(model_of(spec), spec, weights)


def test_a_deeper_convnext_is_not_cut_short():
    spec = ModelSpec(architecture="test_convnext", bands=SPEC.bands, task="map")
    tensors = dict(model_of(replace(spec, task="labels")).state_dict())
    block = {name: tensor for name, tensor in tensors.items() if name.startswith("stages.2.blocks.0.")}
    tensors |= {name.replace("blocks.0", "blocks.9"): tensor for name, tensor in block.items()}
    weights = Weights(source="there", tensors=tensors, bands=spec.bands, classes=None)

    with pytest.raises(ValueError, match=r"they have encoder\.stages_2\.blocks\.9\..* it lacks"):
        start_from(model_of(spec), spec, weights)


@pytest.mark.parametrize(
    "before", ["module.", "_orig_mod.", "module._orig_mod.", "model._orig_mod.", "model.vision_encoder."]
)
def test_names_of_wrapped_models_are_read(folder, tmp_path, before):
    state = load_pretrained(folder)[0].state_dict()
    torch.save({"state_dict": {before + name: tensor for name, tensor in state.items()}}, tmp_path / "a.ckpt")

    found = read_weights(str(tmp_path / "a.ckpt")).tensors

    assert found.keys() == state.keys()


def test_pixels_of_a_map_weigh_alike_in_whichever_part_of_a_step_they_are():
    same = [
        "task=map", "architecture=test_convnext", "decoder=transformer", "flips=false", "drop_rate=0.0",
        "drop_path_rate=0.0",
    ]  # fmt: skip
    batch = batch_of(6)
    batch["cover"][:3] = -1  # the first part has hardly a pixel that counts
    batch["cover"][0, 0, 0] = 10
    found = []
    for parts in (1, 2):
        with compute_context() as compute:
            learner = learner_of(recipe(*same, f"accumulate={parts}"), compute)
            step = learner.step(batch, number=5, epoch=0)
            found.append((step.loss, learner.model.state_dict()))
    (loss, whole), (other_loss, other) = found
    torch.testing.assert_close(loss, other_loss)
    for name in whole:
        torch.testing.assert_close(whole[name], other[name], rtol=1e-3, atol=1e-4)
