"""Run a study: what is not finished is done, here or elsewhere, and what is becomes tables, plots and a page."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reben_cloud.build import Executor, Progress, executors, silent
from reben_cloud.errors import ConflictError, NotFoundError
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import write_whole
from reben_cloud.root.dataset import Dataset
from reben_cloud.schema import Schema
from reben_cloud.training.checksums import read_json
from reben_cloud.training.compute import compute_context
from reben_cloud.training.config import config_from
from reben_cloud.training.log import StepInfo
from reben_cloud.training.study.grid import Run, Study
from reben_cloud.training.study.jobs import Job, JobRun, Outcome, do_job, do_job_beside_others, read_outcome
from reben_cloud.training.study.page import write_results
from reben_cloud.training.study.plan import plan_study

DRAWS = 1000
"""Draws of squares for the confidence interval of each run."""

_FILE, _RUNS, _RESULTS = "study.json", "runs", "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What came of a study."""

    study: str
    """Its name."""
    page: str
    """Path of the page with tables and plots; empty where no run is finished."""
    num_runs: int
    """Runs in all."""
    num_finished: int
    """Runs that are finished, also by earlier calls."""
    num_skipped: int
    """Those that were finished before."""
    failed: dict[str, str]
    """Run -> why it failed; the next call tries it again."""

    def to_text(self) -> str:
        """A few lines for people."""
        before = f", {self.num_skipped} of them before" if self.num_skipped else ""
        lines = [f"{self.study}: {self.num_finished} of {self.num_runs} runs are finished{before}"]
        lines += [f"  failed: {run}: {why}" for run, why in self.failed.items()]
        if self.page:
            lines.append(f"  tables and plots: {self.page}")
        return "\n".join(lines)


def run_study(
    study: Study,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    executor: Executor | None = None,
    workers: int = 1,
    draws: int = DRAWS,
    cache_dir: str | os.PathLike[str] | None = None,
    on_step: Callable[[StepInfo], None] | None = None,
    progress: Progress = silent,
) -> StudyResult:
    """Run a study, or go on where that was interrupted, and write what it found.

    Each run has a folder of its own, ``runs/NAME``, and goes on bit for bit where it was; a finished one is left as it
    is. Runs that differ in nothing but what they are tested on learn once. Under torchrun all processes do one run
    after the other together; else each run is one process. A run that fails does not stop the others.

    Args:
        study: What to run.
        dataset: An open dataset, with the layers that it needs.
        folder: Of the study; where other machines do the work, they must reach it by the same path.
        executor: Where runs are done, such as `build.dask`; by default in `workers` processes of this machine.
        workers: Runs at a time on this machine. With several GPUs each process takes one of its own.
        draws: Draws of squares for the confidence intervals of each run; 0: none.
        cache_dir: Folder for shards of a remote root.
        on_step: Called every `TrainConfig.log_steps` steps of a run in this process.
        progress: Wraps the runs as they are finished.

    Raises:
        ConflictError: If the folder holds another study, or this one of another dataset; it says what differs.
        NotFoundError: If a run has no patch to learn from.
        ValueError: If a run cannot work as it is asked for.
    """
    place = local_path(folder, "the folder of a study")
    plan_study(study, dataset)  # refuses what cannot work before the first run
    with compute_context() as compute:
        # Under torchrun: one group of processes for all runs.
        if compute.world_size > 1 and (executor is not None or workers > 1):
            raise ValueError(
                "under torchrun all processes do one run after the other; leave out the workers or the cluster, or "
                "torchrun"
            )
        compute.once(partial(_claim, study, dataset, place, draws))
        outcomes = _outcomes(study, place)
        compute.wait()
        todo = {run.name for run in study.runs} - outcomes.keys()
        jobs = [
            _job(runs, dataset, place, draws, cache_dir, workers)
            for runs in study.trainings()
            if not todo.isdisjoint(run.name for run in runs)
        ]
        if executor is None and workers == 1:
            found: Iterator[list[Outcome]] = (do_job(job, on_step) for job in jobs)
        else:
            found = (executor or executors.local(workers))(do_job_beside_others, jobs)
        new = (outcome for outcomes_ in found for outcome in outcomes_ if outcome.run in todo)
        for outcome in progress(new, len(todo), study.name):
            outcomes[outcome.run] = outcome
        return compute.once(partial(_result, study, dataset, place, outcomes, len(study.runs) - len(todo)))


def write_finished(
    study: Study, dataset: Dataset, folder: str | os.PathLike[str], *, draws: int = DRAWS
) -> StudyResult:
    """Write tables, plots and the page of the runs that are finished, while others may still be under way.

    Args:
        study: What is run.
        dataset: As for `run_study`.
        folder: Of the study.
        draws: As for `run_study`.

    Raises:
        ConflictError: As `run_study`.
        NotFoundError: If the folder holds no study.
    """
    place = local_path(folder, "the folder of a study")
    if not (place / _FILE).is_file():
        raise NotFoundError(
            f"{place} holds no study, so no run is finished there; name its folder, or run it"
        )
    _claim(study, dataset, place, draws)
    outcomes = _outcomes(study, place)
    return _result(study, dataset, place, outcomes, len(outcomes))


def _outcomes(study: Study, place: Path) -> dict[str, Outcome]:
    """What the finished runs found, by name."""
    found = (read_outcome(place / _RUNS / run.name, run.name) for run in study.runs)
    return {one.run: one for one in found if one is not None}


def _result(
    study: Study, dataset: Dataset, place: Path, outcomes: Mapping[str, Outcome], num_skipped: int
) -> StudyResult:
    """Write the results of the runs that are finished, and say what came of all."""
    known = [outcomes[run.name] for run in study.runs if run.name in outcomes]
    results = {one.run: one.result for one in known if one.result is not None}
    page = write_results(place / _RESULTS, study, results, dataset, runs=f"../{_RUNS}") if results else ""
    return StudyResult(
        study=study.name,
        page=str(page),
        num_runs=len(study.runs),
        num_finished=len(results),
        num_skipped=num_skipped,
        failed={one.run: one.error for one in known if one.result is None},
    )


def _job(
    runs: Sequence[Run],
    dataset: Dataset,
    place: Path,
    draws: int,
    cache_dir: str | os.PathLike[str] | None,
    workers: int,
) -> Job:
    return Job(
        runs=tuple(
            JobRun(
                name=run.name, folder=str((place / _RUNS / run.name).resolve()), config=run.config.to_json()
            )
            for run in runs
        ),
        dataset=dataset,
        draws=draws,
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        threads=0 if workers == 1 else max(1, (os.cpu_count() or 1) // workers),
    )


def _claim(study: Study, dataset: Dataset, place: Path, draws: int) -> None:
    """Make a study's folder, or see that it is of the same runs on the same data."""
    wanted = {
        "version": 1,
        "draws": draws,
        "dataset": dataset.manifest.fingerprint,
        "layers": {name: layer.manifest.digest for name, layer in dataset.layers.items()},
        "runs": study.to_plain(),
    }
    path = place / _FILE
    if path.is_file():
        there = _as_read_now(read_json(path), path, dataset.schema)
        if there != wanted:
            raise ConflictError(
                f"{place} holds another study: {_difference(there, wanted)}; choose another folder, or delete this one"
            )
        return
    place.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _as_read_now(document: dict[str, Any], path: Path, schema: Schema) -> dict[str, Any]:
    """What another release may have written, with the keys that recipes have got since at their defaults."""
    try:
        runs = {
            name: json.loads(config_from(values, schema=schema).to_json())
            for name, values in document["runs"].items()
        }
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConflictError(
            f"{path} is not of a study of this release, or damaged ({error!r}); put a copy of it back, or choose "
            "another folder"
        ) from error
    return {**document, "runs": runs}


def _difference(there: object, wanted: object, where: str = "") -> str:
    """The first thing that differs between two documents, in words."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in [*wanted, *there]:
            name = f"{where}.{key}" if where else str(key)
            if key not in there:
                return f"{name} is new"
            if key not in wanted:
                return f"it has {name}, which is no longer asked for"
            if there[key] != wanted[key]:
                return _difference(there[key], wanted[key], name)
    return f"{where} is {there!r} there, not {wanted!r}"
