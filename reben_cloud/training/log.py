"""The log of a run: a row every few steps and every epoch, as CSV, and as TensorBoard events or to a hook besides."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reben_cloud.errors import ChecksumError, missing_extra
from reben_cloud.files.whole import write_whole
from reben_cloud.torch import StreamLoader
from reben_cloud.training.compute import Compute
from reben_cloud.training.config import TrainConfig
from reben_cloud.training.run import Progress

try:
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error


Hook = Callable[[Mapping[str, float]], object]
"""What takes the rows of a log to where others are kept: wandb, MLflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInfo:
    """How a run is getting on."""

    step: int
    """Steps done."""
    num_steps: int
    """Steps of all epochs, if nothing stops the run early."""
    epoch: int
    """Number of the epoch, from 0."""
    loss: float
    """Of the step, mean over the processes."""
    lr: float
    """Learning rate of the step."""
    samples_per_s: float
    """Over all processes, since the last line."""
    wait_share: float
    """Share of that time that this process waited for data, in [0, 1]."""


class RunLog:
    """The log of a run, on its first process; going on, what was written after the checkpoint is cut off.

    Args:
        folder: Of the run.
        config: Form of the log, and the size of a batch.
        compute: Where it runs.
        begin: Where it goes on.
        num_steps: Steps of all epochs.
        hook: Called with each row: ``step`` and what is known of it by name, such as ``loss``.
    """

    FIELDS = (
        "step",
        "epoch",
        "loss",
        "lr",
        "samples_per_s",
        "wait_share",
        "validation_loss",
        "validation_score",
    )

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        compute: Compute,
        *,
        begin: Progress,
        num_steps: int,
        hook: Hook | None = None,
    ) -> None:
        self._compute, self._config, self._num_steps = compute, config, num_steps
        self._last = (begin.step, 0.0, 0.0)
        self._file = self._board = None
        self._hook = hook if compute.rank == 0 else None
        if compute.rank == 0 and config.logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=begin.step + 1)
        if compute.rank == 0:
            path = folder / "log.csv"
            self._keep_until(path, begin)
            self._file = path.open("a", newline="")
            self._writer = csv.DictWriter(self._file, self.FIELDS)

    def _keep_until(self, path: Path, begin: Progress) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.FIELDS)
        writer.writeheader()
        if path.is_file():
            try:
                with path.open(newline="") as file:
                    writer.writerows(row for row in csv.DictReader(file) if _is_before(row, begin))
            except (csv.Error, KeyError, ValueError) as error:
                raise ChecksumError(
                    f"{path} is damaged ({error}); move it away: the run goes on and begins another"
                ) from error
        write_whole(path, text.getvalue().encode())

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def step(self, progress: Progress, loss: Tensor, lr: float, loader: StreamLoader) -> StepInfo:
        """Log a step; every process must call it."""
        self._compute.add_up(loss)
        loss /= self._compute.world_size
        value = loss.item()  # waits for the device, so the clock below is the step's too
        stats = loader.stats()
        steps, elapsed = progress.step - self._last[0], stats.elapsed_s - self._last[1]
        info = StepInfo(
            step=progress.step,
            num_steps=self._num_steps,
            epoch=progress.epoch,
            loss=value,
            lr=lr,
            samples_per_s=steps * self._config.batch_size / elapsed if elapsed else 0.0,
            wait_share=(stats.wait_s - self._last[2]) / elapsed if elapsed else 0.0,
        )
        self._last = (progress.step, stats.elapsed_s, stats.wait_s)
        values = dataclasses.asdict(info)
        self._write({name: values[name] for name in self.FIELDS if name in values})
        return info

    def epoch(self, progress: Progress, score: float, loss: float | None) -> None:
        """Log what validation says of the epoch of `progress`; its loss where there is one."""
        known = {} if loss is None else {"validation_loss": loss}
        self._write({"step": progress.step, "epoch": progress.epoch, **known, "validation_score": score})

    def _write(self, values: Mapping[str, float]) -> None:
        if self._file:
            self._writer.writerow(values)
            self._file.flush()
        if self._hook:
            self._hook(values)
        if self._board:
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(name, value, values["step"])


def _is_before(row: Mapping[str, str], begin: Progress) -> bool:
    """Whether a row of the log is of what a run that goes on does not do again."""
    of_validation = bool(row["validation_score"])
    return int(row["step"]) <= begin.step and not (of_validation and int(row["epoch"]) >= begin.epoch)
