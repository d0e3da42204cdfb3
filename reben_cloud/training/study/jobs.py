"""Runs of a study as a job: for this process, a local one, a Dask worker, or all that torchrun started.

Runs that learn the same are one job: the first learns, and its model is measured for each of them. What a run found
is in ``outcome.json`` of its folder, which is written last; a run that has one is not run again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from reben_cloud.errors import ChecksumError, NotFoundError, missing_extra
from reben_cloud.files.whole import Locked, locked, write_whole
from reben_cloud.root.dataset import Dataset
from reben_cloud.training.compute import Compute, compute_context
from reben_cloud.training.config import TrainConfig, config_from
from reben_cloud.training.log import StepInfo
from reben_cloud.training.metrics import TrainResult
from reben_cloud.training.train import measure_again, train

try:
    import torch
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

logger = logging.getLogger(__name__)

OUTCOME = "outcome.json"
"""What a run found, in its folder."""

LOCK = ".lock"
"""Held by the process that does a run, in its folder."""

_one_at_a_time = threading.Lock()
"""Runs draw from PyTorch's own random stream, which threads of a process share, as a Dask worker's are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRun:
    """One run of a job."""

    name: str
    """Its name."""
    folder: str
    """Its folder, which every process that may do it reaches."""
    config: str
    """Its configuration, JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Runs that learn the same, with all that another process needs to do them."""

    runs: tuple[JobRun, ...]
    """The first learns; the others measure its model."""
    dataset: Dataset
    """What it trains on; it pickles, and opens its store again where it arrives."""
    draws: int
    """Draws of squares for confidence intervals."""
    cache_dir: str | None
    """Folder for shards of a remote root."""
    threads: int
    """CPU threads that it may use; 0: as many as PyTorch takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a run."""

    run: str
    """Name of the run."""
    result: TrainResult | None
    """What its best weights are worth; None where it failed."""
    error: str = ""
    """Why it failed."""

    def to_text(self) -> str:
        """What came of it, in a line."""
        if self.result is None:
            return f"failed: {self.error}"
        score, epoch = f"validation score {self.result['validation_score']:.4f}", self.result["best_epoch"]
        score += f" in epoch {epoch}" if epoch >= 0 else ""
        means = "  ".join(
            f"{name} {value:.4f}" for name, value in self.result["macro"].items() if value is not None
        )
        return f"{score}; {self.result['subset']}, macro: {means}"


def read_outcome(folder: Path, name: str) -> Outcome | None:
    """What a run found, if it is finished.

    Raises:
        ChecksumError: If the file is damaged.
    """
    path = folder / OUTCOME
    if not path.is_file():
        return None
    try:
        return Outcome(run=name, result=json.loads(path.read_bytes())["result"])
    except (ValueError, KeyError, TypeError) as error:
        raise ChecksumError(
            f"{path} is damaged ({error!r}); delete it, and the run is measured again"
        ) from error


def do_job(job: Job, on_step: Callable[[StepInfo], None] | None = None) -> list[Outcome]:
    """Do runs, or go on with them; one that is finished is left as it is.

    A failure is an outcome, since the other runs of a study do not depend on it. Of several processes that torchrun
    started it is an error, which ends all of them.
    """
    for run in job.runs:
        Path(run.folder).mkdir(parents=True, exist_ok=True)
    if job.threads:
        torch.set_num_threads(job.threads)
    first, *others = job.runs
    with _one_at_a_time, compute_context() as compute, ExitStack() as held:
        if compute.rank == 0:
            # A process that was told to end may still be at it; its lock goes with it.
            held.enter_context(locked(Path(first.folder) / LOCK, wait=True))
        learned = _do(job, first, compute, partial(train, folder=first.folder, on_step=on_step))
        outcomes = [learned]
        for run in others:
            measure = partial(_measured, learned, trained=first.folder, folder=run.folder)
            outcomes.append(_do(job, run, compute, measure))
    return outcomes


class _Work(Protocol):
    """Does a run."""

    def __call__(
        self, config: TrainConfig, dataset: Dataset, *, draws: int, cache_dir: str | None
    ) -> TrainResult: ...


def _do(job: Job, run: JobRun, compute: Compute, work: _Work) -> Outcome:
    done = compute.once(lambda: read_outcome(Path(run.folder), run.name))
    if done is not None:
        return done
    try:
        config = config_from(json.loads(run.config), schema=job.dataset.schema)
        result = work(config, job.dataset, draws=job.draws, cache_dir=job.cache_dir)
    except Exception as error:
        if compute.world_size > 1:
            raise
        logger.warning("run %s failed: %s", run.name, error)
        return Outcome(run=run.name, result=None, error=f"{type(error).__name__}: {error}")
    if compute.rank == 0:
        outcome = {"run": run.name, "learned_by": job.runs[0].name, "result": result}
        write_whole(Path(run.folder) / OUTCOME, json.dumps(outcome, indent=1).encode())
    return Outcome(run=run.name, result=result)


def _measured(
    learned: Outcome,
    config: TrainConfig,
    dataset: Dataset,
    *,
    trained: str,
    folder: str,
    draws: int,
    cache_dir: str | None,
) -> TrainResult:
    if learned.result is None:
        raise NotFoundError(f"there is no model to measure, as {learned.run} failed, which learns the same")
    return measure_again(
        config, dataset, folder, trained=trained, result=learned.result, draws=draws, cache_dir=cache_dir
    )


def do_job_beside_others(job: Job) -> list[Outcome]:
    """`do_job` in one of several processes of a machine: each takes a GPU of its own, as long as there are."""
    num_gpus = torch.cuda.device_count()
    slots = Path(job.runs[0].folder).parent / ".gpus"
    with free_slot(slots, num_gpus) if num_gpus > 1 else nullcontext(0) as slot:
        os.environ["LOCAL_RANK"] = str(slot)
        return do_job(job)


class free_slot:  # noqa: N801 - a context manager, used as a function
    """Hold the first of some slots that no other process holds; where all are taken, one by the process's number.

    Args:
        folder: Where the locks are.
        count: How many slots there are, at least 1.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._held = ExitStack()

    def __enter__(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        for slot in range(self._count):
            try:
                self._held.enter_context(locked(self._folder / f"{slot}.lock"))
            except Locked:
                continue
            return slot
        return os.getpid() % self._count

    def __exit__(self, *_: object) -> None:
        self._held.close()
