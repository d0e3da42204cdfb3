"""Training on synthetic roots and on the real pairs: what a recipe does, resumption, several processes."""

import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import psutil
import pyarrow as pa
import pytest
import timm
import torch

import reben_cloud as rc
from reben_cloud.bigearthnet.bands import ARRAYS, BANDS, STATISTICS_MEAN, STATISTICS_STD
from reben_cloud.bigearthnet.inputs import choose_bands
from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL, encode_many
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.errors import ConflictError, NotFoundError
from reben_cloud.files.whole import locked
from reben_cloud.root.patch import Patch
from reben_cloud.sources.recognise import open_source
from reben_cloud.sources.synthetic import SyntheticSource, synthetic_metadata
from reben_cloud.store import open_store
from reben_cloud.stream import expected_delivery
from reben_cloud.torch import MapTargets
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import load_recipe
from reben_cloud.training.evaluate import evaluate, evaluate_folder
from reben_cloud.training.learner import learning_rate
from reben_cloud.training.log import RunLog
from reben_cloud.training.metrics import label_metrics
from reben_cloud.training.models import ARCHITECTURES, ModelSpec, create_model, load_pretrained
from reben_cloud.training.objective import Objective, keyed_random, positive_weights
from reben_cloud.training.run import Progress, claim
from reben_cloud.training.train import train
from tests.commands import check_command
from tests.conftest import PATIENT_S, free_port


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The URL of 72 synthetic patches of all splits."""
    return make_root(tmp_path_factory, *open_source("synthetic:72"))


def make_root(tmp_path_factory, source, metadata, **options):
    folder = tmp_path_factory.mktemp("root")
    build(make_plan(source, metadata, open_store(folder / "root"), **options))
    return str(folder / "root")


@pytest.fixture(scope="module")
def dataset(root):
    return rc.open(root)


def recipe(*overrides, base="resnet50", architecture="test_byobnet"):
    short = ["epochs=2", "batch_size=8", "log_steps=1", "checkpoint_steps=2", f"architecture={architecture}"]
    return load_recipe(base, overrides=[*short, *overrides])


def weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["model"]


def log(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


LEFT_OUT = "train patches of each epoch (other ones each time), which do not fill a batch"


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """A run with everything random in it, and what it returned."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(recipe("modality_dropout=0.3"), dataset, folder)


@pytest.mark.slow
def test_a_run_leaves_a_model_a_log_and_a_report(finished, dataset):
    folder, result = finished

    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        ".run.lock",
        "config.json",
        "data.json",
        "last.pt",
        "log.csv",
        *(
            f"best/{name}"
            for name in (
                "config.json",
                "model.safetensors",
                "reben_cloud.json",
                "README.md",
                "item.json",
                "SHA256SUMS",
            )
        ),
        *(
            f"report/{name}"
            for name in (
                *("metrics.json", "per_class.png", "curves.png", "calibration.png"),
                *("examples.png", "run.png"),
            )
        ),
    }
    assert json.loads((folder / "report" / "metrics.json").read_text()) == result
    assert result["subset"] == "test"
    assert result["num_patches"] == len(dataset.search(split="test", recommended=True))
    assert set(result["by"]) == {"country", "season", "split"}
    dropped = len(dataset.search(split="train", recommended=True)) % 8
    assert result["left_out"] == {LEFT_OUT: dropped}
    occur = [name for name, values in result["per_class"].items() if values["num_positives"]]
    assert result["num_classes"] == len(occur) < 19
    assert sum(group["num_patches"] for group in result["by"]["country"].values()) == result["num_patches"]
    rows = log(folder)
    assert [row["validation_score"] != "" for row in rows].count(True) == 2
    assert [row["validation_loss"] != "" for row in rows].count(True) == 2
    assert all(0 <= float(row["wait_share"]) <= 1 for row in rows if row["wait_share"])


def test_a_run_proves_what_it_was_trained_on(finished, dataset):
    folder, result = finished
    train_on = dataset.search(split="train", recommended=True)
    num_samples = len(train_on) // 8 * 8

    expected = {}
    for epoch in range(2):
        one = expected_delivery(train_on, epoch=epoch, seed=42, num_samples=num_samples)
        expected[str(epoch)] = {"samples": num_samples, "digest": one.digest}

    assert result["delivered"] == expected
    item = json.loads((folder / "best" / "item.json").read_text())
    assert item["properties"]["reben:delivered"] == expected
    best = result["best_epoch"]
    card = (folder / "best" / "README.md").read_text()
    (command,) = [part for part in card.split("`") if part.startswith("reben-cloud verify-epoch")]
    assert f"delivered {num_samples} samples with the digest `{expected[str(best)]['digest']}`" in card
    check_command(shlex.split(command)[1:])


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(finished, dataset):
    folder, result = finished
    before = (folder / "last.pt").stat().st_mtime_ns

    again = train(recipe("modality_dropout=0.3"), dataset, folder, on_step=pytest.fail)

    assert again == result
    assert (folder / "last.pt").stat().st_mtime_ns == before


def test_two_processes_do_not_go_on_with_one_run(dataset, tmp_path):
    config = recipe("train.sample=8", "epochs=1")
    claim(tmp_path, config, dataset)

    with locked(tmp_path / ".run.lock"), pytest.raises(ConflictError, match="another process trains there"):
        train(config, dataset, tmp_path)

    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize(
    ("base", "key"), [("linear_probe", "freeze"), ("knn", "neighbours"), ("finetune", "layer_decay")]
)
def test_a_recipe_about_weights_without_any_is_told(dataset, tmp_path, caplog, base, key):
    with pytest.raises(ValueError, match="no column 'v1:labels'"):
        train(recipe("test_labels=v1:labels", base=base), dataset, tmp_path / "run")
    assert f"{key} is for weights that were learned before" in caplog.text


def test_an_epoch_is_logged_once_wherever_its_run_was_killed(tmp_path):
    """Its row comes before the state that says that it is over, so it may be there already, or not yet."""
    config = recipe()
    with compute_context() as compute:
        for begin in (Progress(), Progress(step=4, epoch=0), Progress(step=4, epoch=1)):
            with RunLog(tmp_path, config, compute, begin=begin, num_steps=8) as kept:
                if begin.epoch == 0:
                    kept.epoch(Progress(step=4, epoch=0), 0.5, None)
            assert [row["validation_score"] for row in log(tmp_path)] == ["0.5"]


@pytest.mark.slow
def test_a_folder_of_another_configuration_is_refused(finished, dataset):
    with pytest.raises(ConflictError, match=r"holds a run with lr=0\.001, not 0\.5"):
        train(recipe("modality_dropout=0.3", "lr=0.5"), dataset, finished[0])


def test_what_differs_from_a_run_that_is_there_is_named_alone(dataset, tmp_path):
    claim(tmp_path, recipe("train.sample=9"), dataset)
    with pytest.raises(ConflictError, match=r"holds a run with train\.sample=9, not 8; choose"):
        train(recipe("train.sample=8"), dataset, tmp_path)
    with pytest.raises(ConflictError, match=r"holds a run with train\.sample=9, not None"):
        train(recipe(), dataset, tmp_path)
    for place in ("file", "file/below"):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ConflictError, match=r"a run has a folder, and \S+/file is a file"):
            train(recipe(), dataset, tmp_path / place)


@pytest.mark.slow
def test_the_folder_of_a_run_is_told_from_that_of_its_model(finished):
    folder, _ = finished
    with pytest.raises(
        NotFoundError, match=r"is not the folder of a model itself, but has one in it: \S+/best"
    ):
        load_pretrained(folder)


def labels_layer(folder, dataset, number):
    """A layer of labels: the same class for every patch."""
    lists = pa.array([[int(c == number) for c in range(19)]] * len(dataset), pa.list_(pa.uint8(), 19))
    table = pa.table({"patch_id": dataset.selection.patch_ids, "labels": lists})
    return rc.write_table(folder, dataset, name="v1", table=table)


def test_a_run_is_not_gone_on_with_on_other_data(dataset, tmp_path):
    config = recipe("labels=v1:labels")
    first, other = (labels_layer(tmp_path / f"layer{number}", dataset, number) for number in (3, 4))
    another = rc.write_table(
        tmp_path / "more", dataset, name="more", table=pa.table({"patch_id": dataset.selection.patch_ids[:1], "y": [1]})
    )  # fmt: skip
    claim(tmp_path / "run", config, dataset)
    with pytest.raises(ValueError, match="has no column 'v1:labels'"):
        train(config, dataset, tmp_path / "run")
    claim(tmp_path / "run", config, dataset.with_layers(first))

    with pytest.raises(
        ConflictError, match=r"holds a run with another layer v1 than .*layer4, which has other data"
    ):
        train(config, dataset.with_layers(other), tmp_path / "run")
    build(make_plan(*open_source("synthetic:24"), open_store(tmp_path / "small")))
    with pytest.raises(ConflictError, match=r"holds a run on the dataset [0-9a-f]{16}, and .*small is"):
        train(config, rc.open(tmp_path / "small"), tmp_path / "run")

    for same in (dataset.with_layers(first, another), dataset, dataset.with_layers(another, first)):
        claim(tmp_path / "run", config, same)
    with pytest.raises(ConflictError, match="another layer v1"):
        claim(tmp_path / "run", config, dataset.with_layers(other))


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        pytest.param(
            "resnet50", "batch_size=1000", "not one step; take a smaller one", id="too large a batch"
        ),
        pytest.param("knn", "train.country=Atlantis", "Atlantis", id="nobody votes"),
        pytest.param("resnet50", "weights=none.pt", "none.pt", id="no weights"),
        pytest.param("resnet50", "test_labels=v1:labels", "no column 'v1:labels'", id="no labels to test by"),
        pytest.param("resnet50", "architecture=levit_128s", "does not take images of 120", id="another size"),
        pytest.param("knn", "test_labels=v1:labels", "no column 'v1:labels'", id="no labels for a vote"),
    ],
)
def test_a_run_that_is_refused_leaves_nothing_that_refuses_the_next_try(
    base, change, message, dataset, tmp_path
):
    with pytest.raises((NotFoundError, ValueError), match=message):
        train(recipe(change, base=base), dataset, tmp_path / "run")

    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_evaluating_the_saved_model_gives_what_the_run_reported(finished, dataset):
    folder, result = finished

    _, spec, evaluation = evaluate_folder(
        folder / "best", dataset.search(split="test", recommended=True), batch_size=7
    )

    assert spec.architecture == "test_byobnet"
    assert evaluation.metrics["macro"] == pytest.approx(result["macro"], abs=1e-5)
    assert evaluation.metrics["per_class"].keys() == result["per_class"].keys()


SCRIPT = """
import json, os, signal, sys
import reben_cloud as rc
import reben_cloud.training.train
from reben_cloud.training.config import config_from
from reben_cloud.training.train import train

url, folder, config, last_step = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def stop(info):
    if info.step == int(last_step):
        die()

if last_step == "evaluate":
    reben_cloud.training.train.evaluate = die
train(config_from(json.loads(config)), rc.open(url), folder, on_step=stop if last_step.isdigit() else None)
"""


def run_python(*arguments, ranks=0, check=True):
    """Run the script, with `ranks` under torchrun; a run that hangs is ended with all its processes."""
    launcher = []
    if ranks:
        ports = ["--nproc-per-node", str(ranks), "--master-port", str(free_port())]
        launcher = ["-m", "torch.distributed.run", *ports]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, *launcher, *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=2 * PATIENT_S)
        except BaseException:
            # Ranks have sessions of their own: killing the launcher's group would leave them holding the pipes.
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def whole(root, script, tmp_path_factory):
    """A run that nothing disturbed, in a process of its own as well: the number of threads is part of the bits."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    run_python(script, root, folder, recipe("modality_dropout=0.3").to_json(), -1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["second epoch", "evaluate"])
def test_killed_and_started_again_a_run_ends_with_the_same_bits(root, script, whole, tmp_path, moment):
    """Killed a step after a checkpoint, or between an epoch and its evaluation: all must come again, and once."""
    config = recipe("modality_dropout=0.3", f"checkpoint_steps={1 if moment == 'evaluate' else 2}")
    steps = max(int(row["step"]) for row in log(whole))
    killed_at = moment if moment == "evaluate" else steps // 2 + 1 + (steps // 2) % 2

    died = run_python(script, root, tmp_path, config.to_json(), killed_at, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    saved = torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["step"]
    assert saved == steps // 2 if moment == "evaluate" else 0 < saved < killed_at
    done = run_python(script, root, tmp_path, config.to_json(), -1)

    assert done.returncode == 0
    expected, found = weights(whole), weights(tmp_path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[row["loss"] for row in log(folder)] for folder in (whole, tmp_path)]
    assert losses[0] == losses[1]
    results = [json.loads((one / "report" / "metrics.json").read_text()) for one in (whole, tmp_path)]
    assert results[0]["delivered"] == results[1]["delivered"]


@dataclass(frozen=True)
class SparseSource(SyntheticSource):
    """Patches of which some have hardly a pixel with a class."""

    def read(self, info, modalities):
        patch = super().read(info, modalities)
        if "map" in modalities and int(info.patch_id[-1]) % 3:
            tensors = REBEN.modality("map").decode(patch.payloads["map"])
            (name,) = tensors
            few = np.full_like(tensors[name], 999)  # CORINE's for no data
            codes, first = np.unique(tensors[name], return_index=True)
            few.flat[first] = codes
            patch = replace(
                patch, payloads={**patch.payloads, "map": REBEN.modality("map").encode({name: few})}
            )
        return patch


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """The URL of a root of such patches."""
    metadata = synthetic_metadata(72)
    return make_root(tmp_path_factory, SparseSource(72, ("s2", "s1", "map")), metadata)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["labels", "map"])
def test_two_processes_do_what_one_does(root, sparse, script, tmp_path, task):
    """A model without batch statistics and dropout: only the order of a few sums differs."""
    base = [
        "sync_batchnorm=false",
        "drop_rate=0.0",
        "drop_path_rate=0.0",
        "lr=1e-4",
        "matmul_precision=highest",
    ]
    # The U-Net has batch statistics, the transformer none.
    decoder = "transformer" if task == "map" else "unet"
    config = recipe(f"task={task}", f"decoder={decoder}", *base, "epochs=1", architecture="test_convnext")
    url = sparse if task == "map" else root
    one = train(config, rc.open(url), tmp_path / "one")

    run_python(script, url, tmp_path / "two", config.to_json(), -1, ranks=2)

    two = json.loads((tmp_path / "two" / "report" / "metrics.json").read_text())
    if task == "map":
        assert two["num_pixels"] == one["num_pixels"] < one["num_patches"] * 120 * 120 / 2
    assert two["macro"] == pytest.approx(one["macro"], abs=2e-3)
    assert two["delivered"] == one["delivered"]
    assert two["num_patches"] == one["num_patches"]
    losses = [[float(row["loss"]) for row in log(tmp_path / name) if row["loss"]] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5 + 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_published_recipe_takes_two_steps(dataset, tmp_path, architecture):
    few = ["batch_size=2", "train.country=['Serbia', 'Portugal', 'Lithuania']", "epochs=1"]
    config = load_recipe(architecture, overrides=[*few, "log_steps=1", "validation.split=test"])
    ids = dataset.select(config.train).patch_ids
    steps = []

    class EnoughError(Exception):
        pass

    def stop(info):
        steps.append(info)
        if info.step == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        train(config, dataset, tmp_path, on_step=stop)

    assert len(ids) >= 4
    assert all(math.isfinite(info.loss) for info in steps)


@pytest.mark.slow
def test_maps_are_learned_where_they_are_labelled(dataset, tmp_path):
    config = recipe("epochs=3", "lr=3e-3", "bands=10m_20m", base="unet_resnet34")

    result = train(config, dataset, tmp_path)

    losses = [float(row["loss"]) for row in log(tmp_path) if row["loss"]]
    assert losses[-1] < 0.95 * losses[0]
    assert result["macro"]["iou"] > 0.01
    assert (tmp_path / "report" / "confusion.png").stat().st_size > 10_000
    assert sum(group["num_pixels"] for group in result["by"]["season"].values()) == result["num_pixels"]
    pixels = result["num_patches"] * 120 * 120 - result["num_pixels"]
    dropped = len(dataset.search(split="train", recommended=True)) % 8
    assert result["left_out"] == {"pixels without one of the 19 classes": pixels, LEFT_OUT: dropped}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_the_board_is_written(dataset, tmp_path, precision):
    config = recipe(f"precision={precision}", "epochs=1", "clip_norm=1.0", "logger=tensorboard")
    losses = []

    train(config, dataset, tmp_path, on_step=lambda info: losses.append(info.loss))

    assert all(math.isfinite(loss) for loss in losses)
    assert list(tmp_path.glob("events.out.tfevents*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside the compiler
def test_a_compiled_model_trains_to_the_same_weights(dataset, tmp_path):
    config = recipe("epochs=1", "lr=1e-5", "drop_path_rate=0.0", "drop_rate=0.0")

    train(config, dataset, tmp_path / "plain")
    train(replace(config, compile=True), dataset, tmp_path / "compiled")

    plain, compiled = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name].float(), tensor.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_runs_stop_when_validation_stops_getting_better(dataset, tmp_path):
    config = recipe("epochs=9", "patience=1", "lr=1e-12", "batch_size=16", "drop_path_rate=0.0")
    rows = []

    train(config, dataset, tmp_path, on_step=rows.append)

    assert max(info.epoch for info in rows) < 8


def test_what_cannot_be_trained_on_is_said(dataset, tmp_path):
    with pytest.raises(NotFoundError, match=r"train: no patch of .* fits"):
        train(recipe("train.bbox=[0, 0, 1, 1]"), dataset, tmp_path / "a")
    with pytest.raises(NotFoundError, match=r"batch_size is 4096, and there are .* not one step"):
        train(recipe("batch_size=4096"), dataset, tmp_path / "b")


@pytest.mark.parametrize("given", ["train.split=any", "train.split=validation"])
def test_patches_that_are_learned_from_and_measured_on_are_told(dataset, tmp_path, caplog, given):
    with pytest.raises(NotFoundError, match="not one step"):
        train(recipe(given, "batch_size=4096"), dataset, tmp_path / "shared")
    told = [record.getMessage() for record in caplog.records if "also learned from" in record.getMessage()]

    wanted = {"any": ("validation", "test"), "validation": ("validation",)}[given.partition("=")[2]]
    counts = [len(dataset.select(getattr(recipe(), name))) for name in wanted]
    assert [text.split(" patches")[0] for text in told] == [
        f"{count:,} of the {name} subset's" for count, name in zip(counts, wanted, strict=True)
    ]

    caplog.clear()
    with pytest.raises(NotFoundError, match="not one step"):
        train(recipe("batch_size=4096"), dataset, tmp_path / "apart")
    assert not [record for record in caplog.records if "also learned from" in record.getMessage()]


def test_the_learning_rate_warms_up_and_falls_as_published():
    rates = [learning_rate(step, 1e-3, 1000, 46_500) for step in range(46_500)]

    assert rates[0] == pytest.approx(1e-4)
    assert rates[500] == pytest.approx(5.5e-4)
    assert rates[1000] == max(rates) == pytest.approx(1e-3)
    assert rates[(46_500 + 1000) // 2] == pytest.approx(5.5e-4, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)
    assert learning_rate(2, 1e-3, 1000, 20) == max(learning_rate(s, 1e-3, 1000, 20) for s in range(20))


@pytest.mark.slow
def test_keyed_random_numbers_are_uniform_and_depend_on_the_key_alone():
    index = torch.arange(100_000)

    first, second = keyed_random(index, 42, 0, 0), keyed_random(index, 42, 0, 1)

    assert first.min() >= 0
    assert first.max() < 1
    assert first.mean().item() == pytest.approx(0.5, abs=0.005)
    assert first.var().item() == pytest.approx(1 / 12, rel=0.02)
    for other in (second, keyed_random(index, 42, 1, 0), keyed_random(index, 43, 0, 0), first.roll(1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.015
    assert torch.equal(keyed_random(index[77:99], 42, 0, 0), first[77:99])


def raw_batch(count=8):
    generator = np.random.default_rng(0)
    batch = {
        name: torch.from_numpy(generator.integers(0, 5000, (count, len(bands), size, size)).astype(np.uint16))
        for name, bands, size in (("s2_10m", ARRAYS["s2_10m"], 120), ("s2_20m", ARRAYS["s2_20m"], 60))
    }
    batch["s1"] = torch.randn(count, 2, 120, 120)
    codes = np.array([111, 311, 999, 142], np.uint16)
    batch["map"] = torch.from_numpy(codes[generator.integers(0, 4, (count, 120, 120))])
    batch["index"] = torch.arange(count)
    batch["labels"] = torch.from_numpy(generator.integers(0, 2, (count, 19)).astype(np.float32))
    return batch


def objective(*overrides, task="labels", bands="S1_10m_20m"):
    config = recipe(f"task={task}", f"bands={bands}", *overrides)
    spec = ModelSpec(architecture="test_resnet", bands=choose_bands(bands), task=task)
    return Objective(config, spec, REBEN, None)


@pytest.mark.slow
def test_an_image_and_its_map_are_flipped_together():
    batch = raw_batch(64)

    plain, codes = objective("flips=false", task="map").prepare(batch, 0)
    image, target = objective(task="map").prepare(batch, 0)

    seen = set()
    for n in range(64):
        axes = [a for a in ([], [-1], [-2], [-1, -2]) if torch.equal(image[n], plain[n].flip(a))]
        assert len(axes) == 1
        assert torch.equal(target[n], codes[n].flip(axes[0]))
        seen.add(tuple(axes[0]))
    assert len(seen) == 4
    again, _ = objective(task="map").prepare({k: v[10:20] for k, v in batch.items()}, 0)
    assert torch.equal(again, image[10:20])


def test_map_targets_ignore_what_has_no_class():
    codes = torch.tensor([[[111, 999], [142, 523]]], dtype=torch.uint16)

    found = MapTargets(REBEN.classes)(codes)

    assert found.tolist() == [[[18, -1], [-1, CLASSES_ALPHABETICAL.index("Marine waters")]]]
    logits = torch.randn(1, 19, 2, 2)
    loss = objective(task="map").loss(logits, found)
    expected = torch.nn.functional.cross_entropy(logits[0, :, [0, 1], [0, 1]].T, torch.tensor([18, 11]))
    torch.testing.assert_close(loss, expected)
    assert objective(task="map").loss(logits, torch.full_like(found, MapTargets.IGNORED)) == 0


@pytest.mark.slow
def test_a_lost_modality_is_zero_and_the_other_one_stays():
    batch = raw_batch(400)

    image, _ = objective("modality_dropout=0.5", "flips=false").prepare(batch, 3)

    lost_s1 = (image[:, :2] == 0).flatten(1).all(1)
    lost_s2 = (image[:, 2:] == 0).flatten(1).all(1)
    assert not (lost_s1 & lost_s2).any()
    assert lost_s1.float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert lost_s2.float().mean().item() == pytest.approx(0.25, abs=0.06)


def test_label_smoothing_and_positive_weights_enter_the_loss(dataset):
    logits, labels = torch.randn(4, 19), (torch.rand(4, 19) < 0.3).float()

    smooth = objective("label_smoothing=0.2").loss(logits, labels)
    selection = dataset.search(split="train", recommended=True)
    counts = encode_many(selection.column("reben:labels"))
    found = positive_weights(recipe("positive_weights=true"), selection)

    probability = logits.sigmoid()
    target = labels * 0.8 + 0.1
    by_hand = -(target * probability.log() + (1 - target) * (1 - probability).log()).mean()
    torch.testing.assert_close(smooth, by_hand)
    assert positive_weights(recipe(), selection) is None
    common = int(counts.sum(0).argmax())
    assert found[common].item() == pytest.approx(
        (counts[:, common] == 0).sum() / (counts[:, common] == 1).sum()
    )
    assert found.max() <= 100


@pytest.mark.slow
def test_evaluation_puts_every_patch_in_its_place(dataset):
    """Predictions in the selection's order, whatever the order of the stream: compared patch by patch."""
    selection = dataset.search(split=["validation", "test"])
    spec = ModelSpec(architecture="test_resnet", bands=("VV", "VH"))
    torch.manual_seed(0)
    model = create_model(spec)

    with compute_context() as compute:
        found = evaluate(model, spec, selection, compute, batch_size=5, by=("split",))
        few = dataset.search(ids=selection.patch_ids[3:5])
        alone = evaluate(model, spec, few, compute)

    assert np.array_equal(found.labels.numpy(), encode_many(selection.column("reben:labels")))
    where = [selection.patch_ids.index(i) for i in few.patch_ids]
    torch.testing.assert_close(found.probabilities[where], alone.probabilities, rtol=1e-4, atol=1e-5)
    assert model.training
    tests = np.array(selection.column("reben:split").to_pylist()) == "test"
    assert found.metrics["by"]["split"]["test"] == label_metrics(
        found.probabilities[tests], found.labels[tests]
    )
    with compute_context() as compute, pytest.raises(NotFoundError, match="nothing to evaluate"):
        evaluate(model, spec, dataset.search(bbox=(0, 0, 1, 1)), compute)


@dataclass(frozen=True)
class SignalSource(SyntheticSource):
    """Patches that show 19 signals, each the brightness or the contrast of a channel; labels are noisy signals."""

    signals: dict = field(default_factory=dict)

    CHANNELS = (*ARRAYS["s1"], *ARRAYS["s2_10m"], *ARRAYS["s2_20m"])

    def read(self, info, modalities):
        signal = self.signals[info.patch_id]
        payloads = {}
        for modality in modalities:
            bands = [band for band in BANDS.values() if band.sensor == modality]
            pixels = {b.name: self.band(signal, b) for b in bands}
            payloads[modality] = REBEN.modality(modality).encode(pixels)
        return Patch(info=info, payloads=payloads)

    def band(self, signal, band):
        y, x = np.mgrid[: band.size_px, : band.size_px]
        height = np.zeros(band.size_px)
        if band.name in self.CHANNELS:
            number = self.CHANNELS.index(band.name)
            height = (signal[number] - 0.5) * 1.0 + np.zeros((band.size_px,) * 2)
            if number + 12 < 19:
                height = height + (signal[number + 12] - 0.5) * 1.5 * np.where((x // 2 + y // 2) % 2, 1, -1)
        values = STATISTICS_MEAN[band.name] + STATISTICS_STD[band.name] * 0.5 * (
            height + np.zeros((band.size_px,) * 2)
        )
        return values.astype(band.dtype)


def probe(pretrained=False, *, in_chans, num_classes, **options):
    """One convolution and a mean: all that these signals need, and quick enough to learn them well."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(in_chans, 96, 4, stride=4),
        torch.nn.BatchNorm2d(96),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(96, num_classes),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_known_optimum_is_reached(tmp_path_factory, tmp_path):
    """Labels are signals turned over with a chance of 0.05; whoever knows the signals has the best AP there is."""
    metadata = synthetic_metadata(1000)
    generator = np.random.default_rng(5)
    signals = generator.random((metadata.num_rows, 19)) < 0.3
    labels = signals ^ (generator.random(signals.shape) < 0.05)
    labels[~labels.any(1), 0] = True
    names = np.array(CLASSES_ALPHABETICAL)
    column = pa.array([names[row].tolist() for row in labels], pa.list_(pa.string()))
    field = metadata.schema.get_field_index("labels")
    metadata = metadata.set_column(field, "labels", column.cast(metadata.schema.field("labels").type))
    known = dict(zip(metadata.column("patch_id").to_pylist(), signals.astype(float), strict=True))
    dataset = rc.open(
        make_root(tmp_path_factory, SignalSource(metadata.num_rows, ("s2", "s1"), known), metadata)
    )
    test = dataset.search(split="test", recommended=True)
    truth = torch.from_numpy(encode_many(test.column("reben:labels")))
    best = label_metrics(
        torch.tensor(np.array([known[i] for i in test.patch_ids])).float() * 0.9 + 0.05, truth
    )

    # Recommended or not makes no difference here, and more patches learn more.
    timm.models.register_model(probe)
    short = ["epochs=15", "batch_size=16", "lr=1e-2", "warmup_steps=20", "flips=false", "log_steps=50"]
    config = recipe(*short, "patience=15", "train.recommended=any", architecture="probe")
    result = train(config, dataset, tmp_path)

    assert result["macro"]["ap"] == pytest.approx(best["macro"]["ap"], abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_real_pairs_can_be_learned_by_heart(shared, tmp_path_factory, tmp_path):
    """A sanity check and no result: 24 real patches, trained on and measured on."""
    source, metadata = open_source(shared / "data" / "configilm_benv2_mock")
    dataset = rc.open(make_root(tmp_path_factory, source, metadata))
    everything = [
        f"{name}.{key}"
        for name in ("train", "validation", "test")
        for key in ("split=any", "recommended=any")
    ]
    gentle = [
        "flips=false",
        "drop_rate=0.0",
        "drop_path_rate=0.0",
    ]  # nothing that keeps from learning by heart
    short = ["epochs=60", "patience=60", "batch_size=8", "lr=3e-3", "warmup_steps=10"]
    config = recipe(*short, *gentle, *everything)

    result = train(config, dataset, tmp_path)

    assert result["num_patches"] == 24
    assert result["macro"]["ap"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_the_commands_train_and_evaluate(root, run, tmp_path):
    sets = [
        part
        for name in ("architecture=test_byobnet", "epochs=1", "batch_size=7", "bands=S1")
        for part in ("--set", name)
    ]

    trained = run_python(
        "-m",
        "reben_cloud.cli",
        "train",
        "resnet50",
        "--root",
        root,
        "--out",
        tmp_path / "run",
        *sets,
        "--json",
    )  # once from its start
    search = ["--split", "test", "--recommended"]
    best = tmp_path / "run" / "best"
    code, out, err = run("evaluate", best, "--root", root, *search, "--report", tmp_path / "report", "--json")

    assert trained.returncode == 0, trained.stderr
    assert code == 0, err
    first, second = json.loads(trained.stdout), json.loads(out)
    assert second["macro"] == pytest.approx(first["macro"], abs=1e-5)
    assert (tmp_path / "report" / "curves.png").is_file()
    assert (
        json.loads((tmp_path / "report" / "metrics.json").read_text())["num_classes"] == second["num_classes"]
    )
    _, out, _ = run("train", "resnet50", "--root", root, "--out", tmp_path / "run", *sets)
    lines = out.splitlines()
    assert lines[0].endswith(f", {first['num_classes']} of 19 classes occur")
    assert first["left_out"][LEFT_OUT] > 0
    assert lines[-1] == f"  left out: {first['left_out'][LEFT_OUT]} {LEFT_OUT}"
    code, _, err = run("train", "resnet50", "--root", root, "--set", "learning_rate=1")
    assert code == 2
    assert err.startswith("reben-cloud: unknown key 'learning_rate'")
    assert run("evaluate", best, "--root", root, "--bbox", "a,b")[0] == 2
