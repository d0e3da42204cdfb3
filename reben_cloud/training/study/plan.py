"""What a study takes, before any of it runs: patches, steps, and where test patches are beside those of training.

Nothing here needs PyTorch; what cannot work is refused here, before the first run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.root.arrow import values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layout import BBOX
from reben_cloud.root.repeats import epoch_length, units_of
from reben_cloud.root.selection import Selection
from reben_cloud.spread import earth_points, nearest_m
from reben_cloud.training.config import Subset, TrainConfig
from reben_cloud.training.study.grid import Run, Study
from reben_cloud.training.truth import labels_of, require_labels

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What one run takes."""

    name: str
    """Name of the run."""
    num_train: int
    """Patches that are learned from."""
    num_validation: int
    """Patches that stop the run."""
    num_test: int
    """Patches that the finished model is measured on."""
    steps_per_epoch: int
    """Steps of an epoch; 0 where nothing is learned."""
    most_steps: int
    """Steps of all epochs, if validation stops none of them."""
    most_samples: int
    """Samples that go through the model then, validation after every epoch and the test among them."""
    learned_by: str = ""
    """The run whose model this one measures, as it would learn the same; empty where it learns itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """What a study takes."""

    study: str
    """Its name."""
    runs: tuple[RunPlan, ...]
    """Its runs, in the order in which they are done."""

    def to_text(self) -> str:
        """A line for each run, and one for all."""
        width = max(len(run.name) for run in self.runs)
        lines = [
            f"  {run.name:<{width}}  train {run.num_train:>7,}  validation {run.num_validation:>7,}  "
            f"test {run.num_test:>7,}  {_work(run)}"
            for run in self.runs
        ]
        steps, samples = (
            sum(getattr(run, name) for run in self.runs) for name in ("most_steps", "most_samples")
        )
        total = f"{len(self.runs)} runs, at most {steps:,} steps, {samples:,} samples through a model"
        return "\n".join([f"{self.study}: {total}", *lines])


def _work(run: RunPlan) -> str:
    if run.learned_by:
        return f"measures the model of {run.learned_by}"
    return f"at most {run.most_steps:>9,} steps ({run.steps_per_epoch:,} per epoch)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Distances:
    """How near the patches that some runs are tested on are to those that they learn from."""

    cells: tuple[tuple[str, ...], ...]
    """Combinations of variants whose runs have these patches."""
    metres: NDArray[np.float64]
    """Of each test patch, between its centre and that of the nearest patch of training, in a straight line; 0 for
    another date of the same place."""

    def share_within(self, metres: float) -> float:
        """Share of the test patches that are at most so far."""
        return float((self.metres <= metres).mean())


def plan_study(study: Study, dataset: Dataset) -> StudyPlan:
    """What each run of a study takes.

    Raises:
        NotFoundError: If a subset that a run needs has no patch; the message names the run and the condition.
        ValueError: If the layer of its labels is not there, its batch has more samples than there are, or a patch
            of its validation or test is also learned from.
    """
    for labels in dict.fromkeys(
        one for run in study.runs for one in (run.config.labels, run.config.test_labels)
    ):
        require_labels(dataset, labels)  # before a search for those that have them
    found = _Kept(dataset)
    first = {run.name: runs[0].name for runs in study.trainings() for run in runs[1:]}
    return StudyPlan(
        study=study.name, runs=tuple(found.plan(run, first.get(run.name, "")) for run in study.runs)
    )


def distances_of(study: Study, dataset: Dataset) -> list[Distances]:
    """How near test patches are to training patches, for each choice of both that a study has.

    Raises:
        NotFoundError: If there is none of these.
    """
    found = _Kept(dataset)
    cells: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    measured: dict[tuple[str, str], NDArray[np.float64]] = {}
    for cell in study.cells:
        config = study.runs_of(cell)[0].config
        subsets = config.train, _measured_on(config, found)
        key = (repr(subsets[0]), repr(subsets[1]))
        cells.setdefault(key, []).append(cell)
        if key not in measured:
            train, test = (_points(found.selection(one)) for one in subsets)
            measured[key] = nearest_m(test, train)
    return [Distances(cells=tuple(cells[key]), metres=metres) for key, metres in measured.items()]


class _Kept:
    """Selections of a dataset, each searched once: the runs of a study share most of them."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._known: dict[tuple[str, ...], object] = {}

    def plan(self, run: Run, learned_by: str) -> RunPlan:
        config = run.config
        train = self._required(run, "train", config.train)
        validation = self._required(run, "validation", config.validation)
        test = self.selection(config.test)
        for name, subset, chosen in (
            ("validation", config.validation, validation),
            ("test", config.test, test),
        ):
            self._once("disjoint", config.train, subset, partial(_refuse_common, run, train, name, chosen))
        for subset, labels in (
            (config.train, config.labels),
            (config.validation, config.labels),
            (config.test, config.test_labels),
        ):
            if labels:
                self._once(labels, subset, None, partial(labels_of, self.selection(subset), labels))
        num_test = len(test) or len(validation)
        # Those of neighbours learn nothing: all patches go through the model once.
        num_steps, most_samples = 0, len(train) + len(validation) + num_test
        if learned_by:
            most_samples = num_test
        elif not config.neighbours:
            num_steps = self._steps(run, train)
            an_epoch = num_steps * config.batch_size + len(validation)
            most_samples = an_epoch * config.epochs + num_test
        return RunPlan(
            name=run.name,
            num_train=len(train),
            num_validation=len(validation),
            num_test=num_test,
            steps_per_epoch=num_steps,
            most_steps=num_steps * config.epochs,
            most_samples=most_samples,
            learned_by=learned_by,
        )

    def _steps(self, run: Run, train: Selection) -> int:
        """Steps of an epoch."""
        config, power = run.config, run.config.balanced
        num_samples = len(train)
        if power:
            num_samples = self._once(f"{power}", config.train, None, lambda: _num_samples(train, power))
        if num_samples < config.batch_size:
            raise ValueError(
                f"run {run.name}: batch_size is {config.batch_size}, and an epoch has {num_samples:,} samples: not one "
                "step; take a smaller batch_size"
            )
        return num_samples // config.batch_size

    def selection(self, subset: Subset) -> Selection:
        return self._once("search", subset, None, lambda: self._dataset.select(subset))

    def _required(self, run: Run, name: str, subset: Subset) -> Selection:
        selection = self.selection(subset)
        selection.require_patches(f"run {run.name}, {name}")
        return selection

    def _once(self, what: str, one: Subset, other: Subset | None, make: Callable[[], T]) -> T:
        key = (what, repr(one), repr(other))
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]  # type: ignore[return-value]


def _num_samples(selection: Selection, power: float) -> int:
    repeats = selection.balanced(power).repeats
    assert repeats is not None
    return epoch_length(units_of(repeats.weights))


def _refuse_common(run: Run, train: Selection, name: str, chosen: Selection) -> None:
    common = np.intersect1d(train.rows, chosen.rows)
    if len(common):
        raise ValueError(
            f"run {run.name}: {len(common):,} of its {len(chosen):,} {name} patches are also learned from; give the "
            f"{name} subset another split or share"
        )


def _measured_on(config: TrainConfig, found: _Kept) -> Subset:
    return config.test if len(found.selection(config.test)) else config.validation


def _points(selection: Selection) -> NDArray[np.int64]:
    selection.require_patches("distances")
    box = selection.column(BBOX)
    west, south, east, north = (
        values_of(pc.struct_field(box, side)) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return earth_points((west + east) / 2, (south + north) / 2)
