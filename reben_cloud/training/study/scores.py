"""Numbers of a study: means and deviations over seeds, and differences along its axes. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from reben_cloud.search.arguments import SEASONS
from reben_cloud.training.metrics import Metrics, TrainResult
from reben_cloud.training.study.grid import Study

Results = Mapping[str, TrainResult]
"""Name of a run -> what it found, of those that are finished."""

_SEASONS = tuple(SEASONS)

Cell = tuple[str, ...]
"""A combination of variants."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Values of one thing over seeds."""

    values: tuple[float, ...]
    """The value of each seed that has one."""

    @property
    def mean(self) -> float:
        """Their mean; NaN for none."""
        return fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Their standard deviation as of a sample (divided by n - 1); NaN for less than two."""
        return stdev(self.values) if len(self.values) > 1 else math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of what a run found."""

    name: str
    """For people, such as ``AP macro``."""
    column: str
    """For machines, such as ``ap_macro``."""
    of: Callable[[Metrics], float | None]
    """The number; None where there is nothing to be measured."""


def measures_of(results: Results) -> list[Measure]:
    """The numbers that a study compares: AP and F1, macro and micro; for maps IoU, F1 and accuracy."""
    first = next(iter(results.values()))
    if "ap" in first["macro"]:
        return [
            Measure(name=f"{title} {mean}", column=f"{name}_{mean}", of=_mean_of(mean, name))
            for name, title in (("ap", "AP"), ("f1", "F1"))
            for mean in ("macro", "micro")
        ]
    return [
        Measure(name="IoU macro", column="iou_macro", of=_mean_of("macro", "iou")),
        Measure(name="F1 macro", column="f1_macro", of=_mean_of("macro", "f1")),
        Measure(name="accuracy", column="accuracy", of=lambda metrics: metrics.get("accuracy")),
    ]


def _mean_of(mean: str, name: str) -> Callable[[Metrics], float | None]:
    def of(metrics: Metrics) -> float | None:
        means: Any = metrics.get(mean, {})
        value: float | None = means.get(name)
        return value

    return of


def results_of(study: Study, results: Results, cell: Cell) -> list[TrainResult]:
    """What the finished runs of a combination found, one for each seed."""
    return [results[run.name] for run in study.runs_of(cell) if run.name in results]


def spread(found: Sequence[Metrics], measure: Callable[[Metrics], float | None]) -> Spread:
    """A number over the seeds that have it."""
    values = [measure(one) for one in found]
    return Spread(tuple(float(one) for one in values if one is not None))


def of_class(name: str, metric: str) -> Callable[[Metrics], float | None]:
    """A metric of one class."""

    def of(metrics: Metrics) -> float | None:
        value = metrics["per_class"].get(name, {}).get(metric)
        return None if value is None else float(value)

    return of


def of_group(grouping: str, group: str, measure: Measure) -> Callable[[Metrics], float | None]:
    """A number of the patches of one group, such as a country."""

    def of(metrics: Metrics) -> float | None:
        groups = metrics.get("by", {}).get(grouping, {})
        return measure.of(groups[group]) if group in groups else None

    return of


def groups_of(results: Results, grouping: str) -> list[str]:
    """The groups that any run was measured on: by name, seasons as the year has them."""
    found = {group for one in results.values() for group in one.get("by", {}).get(grouping, {})}
    return sorted(found, key=lambda group: (_SEASONS.index(group) if group in _SEASONS else -1, group))


def sizes_of(results: Results, grouping: str, group: str) -> set[int]:
    """How many patches of a group runs were measured on; several numbers where they have other test patches."""
    groups = (one.get("by", {}).get(grouping, {}) for one in results.values())
    return {one[group]["num_patches"] for one in groups if group in one}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What a variant changes, beside the first one of its axis, with all else the same."""

    axis: str
    """The axis."""
    first: str
    """The variant that it is compared with."""
    variant: str
    """The variant."""
    others: Cell
    """Variants on the other axes."""
    changes: tuple[Spread, ...]
    """Of each measure: value of the variant less that of the first, seed by seed."""


def differences(study: Study, results: Results, measures: Sequence[Measure]) -> Iterator[Difference]:
    """What each variant changes beside the first one of its axis; a seed counts where both runs are finished."""
    known = {(run.variants, run.config.seed): results.get(run.name) for run in study.runs}
    for number, (axis, variants) in enumerate(study.axes.items()):
        for cell in study.cells:
            if cell[number] == variants[0]:
                continue
            base = (*cell[:number], variants[0], *cell[number + 1 :])
            pairs = [(known.get((cell, seed)), known.get((base, seed))) for seed in study.seeds]
            yield Difference(
                axis=axis,
                first=variants[0],
                variant=cell[number],
                others=(*cell[:number], *cell[number + 1 :]),
                changes=tuple(Spread(tuple(_changes(pairs, one))) for one in measures),
            )


def _changes(
    pairs: Sequence[tuple[TrainResult | None, TrainResult | None]], measure: Measure
) -> Iterator[float]:
    for one, base in pairs:
        if one is not None and base is not None:
            value, beside = measure.of(one), measure.of(base)
            if value is not None and beside is not None:
                yield value - beside
