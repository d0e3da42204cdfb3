"""Neighbours that vote instead of learning, and weights that are averaged over steps."""

import copy
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud.cli import app
from reben_cloud.errors import NotFiniteError
from reben_cloud.torch import StreamLoader
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import load_recipe
from reben_cloud.training.evaluate import evaluate
from reben_cloud.training.feed import model_input
from reben_cloud.training.learner import Learner
from reben_cloud.training.metrics import label_metrics
from reben_cloud.training.models import ModelSpec, create_model, save_model
from reben_cloud.training.neighbours import TEMPERATURE, Neighbours, remember
from reben_cloud.training.objective import Objective
from reben_cloud.training.outputs import embed
from reben_cloud.training.study.jobs import Outcome
from reben_cloud.training.train import model_spec, train
from reben_cloud.training.truth import labels_of
from tests.roots import synthetic_root
from tests.test_training_schema import FIELDS, batch_of, recipe

SPEC = ModelSpec(architecture="test_resnet", bands=("B04", "B03", "B02", "B08"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "root"
    synthetic_root(folder, 113)
    return rc.open(folder)


class AsItIs(torch.nn.Module):
    """A model whose features are its input's channels."""

    def forward_features(self, image):
        return image

    def forward_head(self, features, pre_logits):
        assert pre_logits
        return features.mean((2, 3))


def test_the_nearest_vote_by_their_similarity():
    random = np.random.Generator(np.random.Philox(3))
    known, asked = random.normal(size=(50, 6)), random.normal(size=(9, 6))
    labels = (random.random((50, 4)) < 0.3).astype(np.uint8)
    labels[:, 3] = 0
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    voters = Neighbours(AsItIs(), torch.from_numpy(unit).float(), torch.from_numpy(labels), k=7)

    found = voters(torch.from_numpy(asked).float()[:, :, None, None]).sigmoid().numpy()

    similar = asked / np.linalg.norm(asked, axis=1, keepdims=True) @ unit.T
    for row, values in zip(found, similar, strict=True):
        nearest = np.argsort(-values)[:7]
        weights = np.exp(values[nearest] / TEMPERATURE)
        np.testing.assert_allclose(row, weights @ labels[nearest] / weights.sum(), atol=2e-5)
    assert found[:, 3].max() < 1e-5
    assert Neighbours(AsItIs(), torch.eye(3), torch.ones(3, 2), k=20).k == 3


@pytest.mark.slow
def test_a_run_of_neighbours_is_what_a_plain_loop_gives(dataset, tmp_path):
    torch.manual_seed(0)
    model = create_model(SPEC).eval()
    save_model(tmp_path / "model", model, SPEC)
    bands = ",".join(SPEC.bands)
    few = [f"weights='{tmp_path / 'model'}'", "architecture=test_resnet", f"bands={bands}", "neighbours=5"]

    result = train(load_recipe("knn", overrides=few), dataset, tmp_path / "run")

    inputs = model_input(SPEC, dataset.schema)

    def features(selection):
        batch = next(
            iter(StreamLoader(selection, modalities=("s2",), batch_size=len(selection), shuffle=False))
        )
        with torch.inference_mode():
            return torch.nn.functional.normalize(embed(model, inputs(batch)), dim=1)[batch["index"].argsort()]

    known, asked = (dataset.search(split=split, recommended=True) for split in ("train", "test"))
    similar, nearest = (features(asked) @ features(known).T).topk(5)
    weights = (similar / TEMPERATURE).softmax(1)
    votes = (weights[:, :, None] * torch.from_numpy(labels_of(known))[nearest].float()).sum(1)
    with compute_context() as compute:
        voters = remember(model, SPEC, known, labels_of(known), compute, k=5, batch_size=16)
        found = evaluate(voters, SPEC, asked, compute, batch_size=16).probabilities
    torch.testing.assert_close(found, votes, rtol=0, atol=1e-4)
    expected = label_metrics(found, torch.from_numpy(labels_of(asked)).float())
    assert result["macro"]["ap"] == pytest.approx(expected["macro"]["ap"], abs=1e-4)
    assert result["macro"]["f1"] == pytest.approx(expected["macro"]["f1"], abs=1e-6)
    assert result["best_epoch"] == -1
    assert result["num_patches"] == len(asked)
    assert json.loads((tmp_path / "run" / "report" / "metrics.json").read_text()) == result
    assert not (tmp_path / "run" / "best").exists()
    said = Outcome(run="a", result=result).to_text()
    assert said.startswith(f"validation score {result['validation_score']:.4f}; test, macro: ap ")


def test_the_command_says_that_neighbours_voted(dataset, tmp_path):
    few = ["architecture=test_resnet", "bands=B04,B03", "neighbours=3"]
    changes = [part for one in few for part in ("--set", one)]

    done = CliRunner().invoke(
        app, ["train", "knn", "--root", dataset.url, "--out", str(tmp_path / "run"), *changes]
    )

    assert done.exit_code == 0, done.output
    assert f"test, the vote of neighbours, report in {tmp_path / 'run' / 'report'}" in done.stdout


@pytest.mark.slow
def test_a_feature_that_is_not_finite_is_named(dataset):
    torch.manual_seed(0)
    model = create_model(SPEC)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    some = dataset.search(split="train")

    with compute_context() as compute, pytest.raises(NotFiniteError, match="features stops at step 1"):
        remember(model, SPEC, some, labels_of(some), compute, k=3, batch_size=16)


# -- averaged weights ----------------------------------------------------------------------------------


def learner_of(config, compute):
    spec = model_spec(config, FIELDS)
    return Learner(config, spec, Objective(config, spec, FIELDS, None), compute, num_steps=20)


def test_weights_are_averaged_as_stated():
    with compute_context() as compute:
        learner = learner_of(recipe("ema=0.6", "lr=0.01"), compute)
        expected = None
        for number in range(12):
            learner.step(batch_of(8, seed=number), number=number, epoch=0)
            now = {name: weights.detach().clone() for name, weights in learner.model.named_parameters()}
            kept = min(0.6, number / (number + 9))
            expected = now if expected is None else {n: kept * expected[n] + (1 - kept) * now[n] for n in now}

    found = dict(learner.measured.named_parameters())
    assert learner.measured is not learner.model
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=1e-4, atol=1e-6)
        assert not found[name].requires_grad
    assert any(not torch.equal(found[name], now[name]) for name in now)
    for mine, theirs in zip(learner.measured.buffers(), learner.model.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_an_average_goes_on_from_a_state_bit_for_bit():
    config = recipe("ema=0.9")
    with compute_context() as compute:
        whole, begun, continued = (learner_of(config, compute) for _ in range(3))
        for number in range(6):
            whole.step(batch_of(8, seed=number), number=number, epoch=0)
            if number < 3:
                begun.step(batch_of(8, seed=number), number=number, epoch=0)
        continued.load_state_dict(copy.deepcopy(begun.state_dict()))
        for number in range(3, 6):
            continued.step(batch_of(8, seed=number), number=number, epoch=0)

    expected, found = whole.measured.state_dict(), continued.measured.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_without_an_average_the_state_is_as_it_was():
    with compute_context() as compute:
        learner = learner_of(recipe(), compute)

    assert learner.measured is learner.model
    assert learner.state_dict().keys() == {"model", "optimizer", "scaler"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("ema=1.0", r"ema must be in \[0, 1\)", id="ema"),
        pytest.param("neighbours=-1", "neighbours must be not negative", id="number"),
    ],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("resnet50", overrides=[change])
    with pytest.raises(ValueError, match="neighbours must be 0 for maps"):
        load_recipe("unet_resnet34", overrides=["neighbours=3"])
