"""Outputs, losses and weights that are not finite end an evaluation or a run, with the step and the patch."""

import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

import reben_cloud as rc  # noqa: E402
from reben_cloud.bigearthnet.reben import REBEN  # noqa: E402
from reben_cloud.errors import NotFiniteError  # noqa: E402
from reben_cloud.torch import StreamLoader  # noqa: E402
from reben_cloud.training.compute import compute_context  # noqa: E402
from reben_cloud.training.config import load_recipe  # noqa: E402
from reben_cloud.training.evaluate import evaluate  # noqa: E402
from reben_cloud.training.feed import modalities_for, model_input  # noqa: E402
from reben_cloud.training.finite import FiniteCheck  # noqa: E402
from reben_cloud.training.models import ModelSpec  # noqa: E402
from reben_cloud.training.train import train  # noqa: E402
from tests.conftest import PATIENT_S, free_port  # noqa: E402
from tests.roots import synthetic_root  # noqa: E402


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finite") / "root"
    synthetic_root(folder, 48)
    return rc.open(folder)


class Spoiled(torch.nn.Module):
    """Finite outputs, but for the one image whose mean is given."""

    def __init__(self, task, mean, value):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.task, self.mean, self.value = task, mean, value

    def forward(self, image):
        count = len(image)
        outputs = image.new_zeros((count, 19) if self.task == "labels" else (count, 19, *image.shape[2:]))
        outputs[(image.mean((1, 2, 3)) - self.mean).abs() < 1e-6, 3] = self.value
        return outputs


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("task", ["labels", "map"])
def test_an_evaluation_stops_with_the_step_and_the_patch(dataset, task, value):
    spec = ModelSpec(architecture="none", bands=("B02", "B03"), task=task)
    selection = dataset.search()
    inputs = model_input(spec, REBEN)
    means = {}
    for batch in StreamLoader(selection, modalities=modalities_for(spec, REBEN), batch_size=8):
        means |= zip(batch["index"].tolist(), inputs(batch).mean((1, 2, 3)).tolist(), strict=True)
    steps = [b["index"].tolist() for b in StreamLoader(selection, modalities=["s2"], batch_size=8)]
    bad = steps[2][5]

    with compute_context() as compute:
        fine = evaluate(Spoiled(task, 1e9, value), spec, selection, compute, batch_size=8)
        with pytest.raises(
            NotFiniteError, match=rf"stops at step 3: the output for {selection.patch_ids[bad]} is"
        ):
            evaluate(Spoiled(task, means[bad], value), spec, selection, compute, batch_size=8)

    assert fine.metrics["num_patches"] == 48


def test_the_first_step_counts_and_padding_does_not(dataset):
    selection = dataset.search()
    with compute_context() as compute:
        check = FiniteCheck(selection, compute, "training")
        outputs = torch.zeros(3, 19)
        bad = outputs.clone()
        bad[1:] = float("nan")
        check.see(1, torch.tensor([4, -1, -1]), bad, torch.tensor(1.0))
        check.check()
        check.see(2, torch.tensor([4, 9, 7]), bad, torch.tensor(float("nan")))
        check.see(3, torch.tensor([1, 2, 3]), bad)

        with pytest.raises(
            NotFiniteError, match=f"training stops at step 2: the output for {selection.patch_ids[7]}"
        ):
            check.check()

        check = FiniteCheck(selection, compute, "training")
        check.see(5, torch.tensor([4, 9, 7]), outputs, torch.tensor(float("inf")))
        with pytest.raises(NotFiniteError, match="training stops at step 5: its loss is"):
            check.check()


def recipe(*overrides):
    short = [
        "epochs=3",
        "batch_size=8",
        "checkpoint_steps=1",
        "architecture=test_byobnet",
        "bands=S1",
        *overrides,
    ]
    return load_recipe("resnet50", overrides=[*short, "train.split=any", "train.recommended=any"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(
            ["lr=1e30", "warmup_steps=0", "log_steps=1"],
            "training stops at step [12]",
            id="each step is logged",
        ),
        pytest.param(
            ["lr=1e30", "warmup_steps=0", "log_steps=900"], "training stops at step [12]", id="none is"
        ),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_its_last_good_checkpoint(dataset, tmp_path, overrides, message):
    with pytest.raises(NotFiniteError, match=message):
        train(recipe(*overrides), dataset, tmp_path)

    if (tmp_path / "last.pt").exists():
        kept = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in kept.values())
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved(dataset, tmp_path):
    """A learning rate that float32 cannot hold makes every weight infinite while the loss was finite."""
    with pytest.raises(NotFiniteError, match=r"stops at step 1: the weights .* are infinite"):
        train(recipe("lr=1e37", "weight_decay=30.0", "warmup_steps=0"), dataset, tmp_path)

    assert not (tmp_path / "last.pt").exists()


RANKS = """
import sys
import torch
import reben_cloud as rc
from reben_cloud.errors import NotFiniteError
from reben_cloud.training.compute import compute_context
from reben_cloud.training.finite import FiniteCheck

selection = rc.open(sys.argv[1]).search()
fine = torch.zeros(3, 19)
bad = fine.clone()
bad[1] = float("inf")
with compute_context() as compute:
    check = FiniteCheck(selection, compute, "training")
    first = 7 if compute.rank == 0 else 5
    for step in range(1, 10):
        index = torch.arange(3) + 10 * compute.rank
        check.see(step, index, bad if step >= first else fine, torch.tensor(0.0))
        if step == 4:
            check.check()
    try:
        check.check()
    except NotFiniteError as error:
        # One write: two processes share the pipe.
        sys.stdout.write(f"rank {compute.rank}: {error}\\n")
        sys.stdout.flush()
"""


@pytest.mark.slow
def test_every_process_stops_at_the_first_step_that_any_of_them_saw(dataset, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]

    done = subprocess.run(
        [sys.executable, *launcher, str(script), dataset.url],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENT_S,
    )

    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    expected = f"training stops at step 5: the output for {dataset.search().patch_ids[11]} is infinite"
    assert [line.partition(";")[0] for line in lines] == [
        f"rank {rank}: {expected} or not a number" for rank in (0, 1)
    ]
