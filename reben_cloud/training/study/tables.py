"""Tables of a study: what stands in them; the forms that they are written in are those of `forms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from reben_cloud.training.groups import GROUPINGS
from reben_cloud.training.metrics import TrainResult
from reben_cloud.training.study.grid import Study
from reben_cloud.training.study.plan import Distances
from reben_cloud.training.study.scores import (
    Measure,
    Results,
    Spread,
    differences,
    groups_of,
    measures_of,
    of_class,
    of_group,
    results_of,
    sizes_of,
    spread,
)

Value = str | int | float | Spread | None
"""What stands in a table: a mean with its deviation is a `Spread`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of values."""

    name: str
    """Name of its files."""
    title: str
    """What it shows, in a sentence."""
    keys: tuple[str, ...]
    """Headings of the first columns, which say what a row is of."""
    heads: tuple[str, ...]
    """Headings of the other columns, for people."""
    columns: tuple[str, ...]
    """The same for machines."""
    rows: tuple[tuple[Value, ...], ...]
    """What a row is of, and its values."""
    holds: Literal["scores", "differences", "facts"]
    """What its numbers are: scores have a best one in each column, differences a sign."""
    tests: tuple[str, ...] = ()
    """Of each row of scores, what its runs were tested on: the best is that of rows with the same."""


def tables_of(study: Study, results: Results, distances: Sequence[Distances]) -> list[Table]:
    """All tables of a study, of the runs that are finished (at least one)."""
    measures = measures_of(results)
    found = [_scores(study, results, measures), _per_class(study, results, measures[0])]
    several = [grouping for grouping in GROUPINGS if len(groups_of(results, grouping)) > 1]
    found += [_by(study, results, measures[0], grouping) for grouping in several]
    if any(len(variants) > 1 for variants in study.axes.values()):
        found.append(_differences(study, results, measures))
    found.append(_distances(study, distances))
    found.append(_runs(study, results, measures))
    return found


def _scores(study: Study, results: Results, measures: Sequence[Measure]) -> Table:
    num_seeds = len(study.seeds)
    rows: list[tuple[Value, ...]] = []
    for cell in study.cells:
        runs = results_of(study, results, cell)
        rows.append((*cell, *(spread(runs, one.of) for one in measures), len(runs)))
    return Table(
        name="scores",
        title="Scores" + (f", mean and standard deviation over {num_seeds} seeds" if num_seeds > 1 else ""),
        keys=tuple(study.axes),
        heads=(*(one.name for one in measures), "seeds"),
        columns=(*(one.column for one in measures), "num_seeds"),
        rows=tuple(rows),
        holds="scores",
        tests=_tests(study),
    )


def _per_class(study: Study, results: Results, measure: Measure) -> Table:
    metric = measure.column.removesuffix("_macro")
    first = next(iter(results.values()))
    found = {cell: results_of(study, results, cell) for cell in study.cells}
    heads = tuple(" ".join(cell) or measure.name for cell in study.cells)
    return Table(
        name="per_class",
        title=f"{measure.name.removesuffix(' macro')} of each class{_seeds(study)}",
        keys=("class",),
        heads=heads,
        columns=heads,
        rows=tuple(
            (label, *(spread(runs, of_class(label, metric)) for runs in found.values()))
            for label in first["per_class"]
        ),
        holds="facts",
    )


def _by(study: Study, results: Results, measure: Measure, grouping: str) -> Table:
    groups = groups_of(results, grouping)
    rows: list[tuple[Value, ...]] = []
    for cell in study.cells:
        runs = results_of(study, results, cell)
        rows.append((*cell, *(spread(runs, of_group(grouping, one, measure)) for one in groups)))
    names = tuple(one or "none" for one in groups)  # beyond the distance of any country there is none
    sizes = [sizes_of(results, grouping, one) for one in groups]
    return Table(
        name=f"by_{grouping}",
        title=f"{measure.name} of the test patches of each {grouping} (and how many){_seeds(study)}",
        keys=tuple(study.axes),
        heads=tuple(
            f"{name} ({min(size):,})" if len(size) == 1 else name
            for name, size in zip(names, sizes, strict=True)
        ),
        columns=names,
        rows=tuple(rows),
        holds="scores",
        tests=_tests(study),
    )


def _tests(study: Study) -> tuple[str, ...]:
    """What the runs of each combination are tested on."""
    configs = [study.runs_of(cell)[0].config for cell in study.cells]
    return tuple(repr((one.test, one.test_labels)) for one in configs)


def _differences(study: Study, results: Results, measures: Sequence[Measure]) -> Table:
    several = len(study.axes) > 1
    return Table(
        name="differences",
        title="What a variant changes beside the first one of its axis, seed by seed",
        keys=("axis", "variant", "beside", *(["with"] if several else [])),
        heads=tuple(one.name for one in measures),
        columns=tuple(one.column for one in measures),
        rows=tuple(
            (one.axis, one.variant, one.first, *([" ".join(one.others)] if several else []), *one.changes)
            for one in differences(study, results, measures)
        ),
        holds="differences",
    )


def _distances(study: Study, distances: Sequence[Distances]) -> Table:
    return Table(
        name="distances",
        title="Metres from the centre of a test patch to the nearest patch of training",
        keys=("runs",),
        heads=(
            "test patches",
            "same place",
            "within 1.2 km",
            "within 10 km",
            "median, m",
            "least, m",
            "largest, m",
        ),
        columns=(
            "num_test",
            "share_same_place",
            "share_1200_m",
            "share_10_km",
            "median_m",
            "least_m",
            "largest_m",
        ),
        rows=tuple(
            (
                cells_text(study, one),
                len(one.metres),
                *(one.share_within(limit) for limit in (_SAME_PLACE_M, 1_200 + _SAME_PLACE_M, 10_000)),
                *(float(round(value)) for value in _quantiles(one)),
            )
            for one in distances
        ),
        holds="facts",
    )


_SAME_PLACE_M = 1.0
"""Centres are those of boxes in degrees, within 0.16 m of the squares' (`spread.MARGIN_M`)."""


def _quantiles(one: Distances) -> tuple[float, float, float]:
    metres = one.metres.tolist()
    return median(metres), min(metres), max(metres)


def cells_text(study: Study, one: Distances) -> str:
    """Which runs these are: what their variants have in common, axis by axis."""
    parts = []
    for number, (axis, variants) in enumerate(study.axes.items()):
        mine = list(dict.fromkeys(cell[number] for cell in one.cells))
        if len(mine) < len(variants):
            parts.append(f"{axis} {' or '.join(mine)}")
    return ", ".join(parts) or "all"


def _runs(study: Study, results: Results, measures: Sequence[Measure]) -> Table:
    rows = []
    for run in study.runs:
        one = results.get(run.name)
        if one is None:
            continue
        values: list[Value] = [run.config.seed, *run.variants, one["num_patches"], one["best_epoch"]]
        values.append(one["validation_score"])
        for measure in measures:
            values += [measure.of(one), *_interval(one, measure)]
        rows.append((run.name, *values))
    ends = [text for one in measures for text in (one.column, f"{one.column}_low", f"{one.column}_high")]
    heads = ("seed", *study.axes, "num_patches", "best_epoch", "validation_score", *ends)
    return Table(
        name="runs",
        title="Every run, with 95 % intervals by a bootstrap over squares of 100 km",
        keys=("run",),
        heads=heads,
        columns=heads,
        rows=tuple(rows),
        holds="facts",
    )


def _interval(result: TrainResult, measure: Measure) -> tuple[Value, Value]:
    name, _, mean = measure.column.partition("_")
    found = result.get("intervals")
    if found is None or mean not in ("macro", "micro"):
        return None, None
    ends = (found["macro"] if mean == "macro" else found["micro"]).get(name)
    return (None, None) if ends is None else (ends[0], ends[1])


def _seeds(study: Study) -> str:
    return f", over {len(study.seeds)} seeds" if len(study.seeds) > 1 else ""
