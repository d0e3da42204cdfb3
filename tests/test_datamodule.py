"""The examples run as they are, and Lightning resumes in the middle of an epoch."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

import reben_cloud as rc
from tests.conftest import REPOSITORY
from tests.roots import synthetic_root

EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root")
    synthetic_root(folder, 120, num_products=4)
    return folder


def example(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    ).stdout


@pytest.mark.slow
def test_the_plain_loop_runs(root):
    assert example(EXAMPLES / "plain_loop.py", root, 3).startswith("3 steps, loss 0.")


@pytest.mark.slow
def test_the_lightning_example_runs(root, tmp_path):
    assert "validation AP 0." in example(EXAMPLES / "lightning_fit.py", root, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own advice
def test_lightning_goes_on_in_the_middle_of_an_epoch(root, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from lightning.pytorch.callbacks import ModelCheckpoint

        from reben_cloud.training.datamodule import RebenDataModule

    class Recorder(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(19))
            self.seen = []

        def training_step(self, batch, _):
            self.seen.append(batch["index"].tolist())
            return ((self.weight - batch["labels"]) ** 2).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fit(folder, resume=None, **limits):
        model = Recorder()
        keep = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer = lightning.Trainer(
            **limits,
            accelerator="cpu",
            callbacks=[keep],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(model, RebenDataModule(root, modalities=("s1",), batch_size=8, seed=1), ckpt_path=resume)
        return model

    whole = fit(tmp_path / "whole", max_epochs=3)
    steps = len(whole.seen) // 3
    num_samples = len(rc.open(root).search(split="train", recommended=True))
    assert steps == num_samples // 8 >= 3
    epochs = [whole.seen[e * steps : (e + 1) * steps] for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2], "every epoch has an order of its own"

    for stopped in (steps - 1, steps, steps + 2):
        again = fit(tmp_path / "b", resume=tmp_path / "whole" / f"step={stopped}.ckpt", max_epochs=3)

        assert again.seen == whole.seen[stopped:], f"stopped after {stopped} steps"
        assert torch.equal(again.weight, whole.weight)
