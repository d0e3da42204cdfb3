"""Tables of a study, and the forms that they are written in: CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
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

_DIGITS = 3


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
    rows: list[tuple[Value, ...]] = []
    for cell in study.cells:
        runs = results_of(study, results, cell)
        rows.append((*cell, *(spread(runs, one.of) for one in measures), len(runs)))
    return Table(
        name="scores",
        title=f"Scores, mean and standard deviation{_seeds(study)}" if len(study.seeds) > 1 else "Scores",
        keys=tuple(study.axes),
        heads=(*(one.name for one in measures), "seeds"),
        columns=(*(one.column for one in measures), "num_seeds"),
        rows=tuple(rows),
        holds="scores",
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
    )


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
    ordered = sorted(one.metres.tolist())
    return ordered[len(ordered) // 2], ordered[0], ordered[-1]


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


# -- forms ---------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """A table as CSV: a column ``NAME_std`` beside each that has deviations; empty where there is no number."""
    spreads = [
        any(isinstance(row[len(table.keys) + n], Spread) for row in table.rows)
        for n in range(len(table.heads))
    ]
    head = list(table.keys)
    for name, has_deviation in zip(table.columns, spreads, strict=True):
        head += [name, f"{name}_std"] if has_deviation else [name]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        cells: list[object] = list(row[: len(table.keys)])
        for value, has_deviation in zip(row[len(table.keys) :], spreads, strict=True):
            if isinstance(value, Spread):
                cells += [_number(value.mean), _number(value.deviation)]
            else:
                cells += [_number(value), ""] if has_deviation else [_number(value)]
        writer.writerow(cells)
    return text.getvalue()


def _number(value: str | int | float | None) -> str:
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return "" if value is None else str(value)


_TEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def to_latex(table: Table) -> str:
    """A table for the packages booktabs and amsmath: means with deviations, the best of a column in bold."""
    best = _best(table)
    keys = len(table.keys)
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * keys}{'r' * len(table.heads)}}}",
        r"\toprule",
        " & ".join(_tex(head) for head in (*table.keys, *table.heads)) + r" \\",
        r"\midrule",
    ]
    for number, (_, rows) in enumerate(
        groupby(enumerate(table.rows), key=lambda one: one[1][0] if keys > 1 else 0)
    ):
        if number:
            lines.append(r"\midrule")
        for n, (at, row) in enumerate(rows):
            cells = [_tex(str(one)) if m or not n or keys == 1 else "" for m, one in enumerate(row[:keys])]
            for column, value in enumerate(row[keys:]):
                text = _tex_value(value, table.holds == "differences")
                cells.append(rf"\textbf{{{text}}}" if text and at in best.get(column, ()) else text)
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def _tex_value(value: Value, is_signed: bool) -> str:
    return shown(value, is_signed).replace("−", "$-$").replace(" ± ", r" $\pm$ ").replace("–", "--")


def _best(table: Table) -> dict[int, set[int]]:
    """Column -> the rows with the largest mean, for columns of means; none where all have the same."""
    best = {}
    for column in range(len(table.heads)) if len(table.rows) > 1 and table.holds == "scores" else ():
        values = [row[len(table.keys) + column] for row in table.rows]
        means = {n: one.mean for n, one in enumerate(values) if isinstance(one, Spread) and one.values}
        largest = {n for n, mean in means.items() if mean == max(means.values())}
        if len(largest) < len(means):
            best[column] = largest
    return best


def shown(value: Value, is_signed: bool = False) -> str:
    """A value for people: three digits, the deviation after it, a dash where there is none."""
    if isinstance(value, Spread):
        deviation = value.deviation
        return shown(value.mean, is_signed) + (
            f" ± {deviation:.{_DIGITS}f}" if math.isfinite(deviation) else ""
        )
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        if abs(value) > 10:
            return f"{value:,.0f}"
        return f"{value:+.{_DIGITS}f}".replace("-", "−").removeprefix("" if is_signed else "+")
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else value


def to_html(table: Table) -> str:
    """A table as a piece of a page."""
    best = _best(table)
    keys = len(table.keys)
    head = "".join(f"<th>{html.escape(one)}</th>" for one in table.keys)
    head += "".join(f'<th class="value">{html.escape(one)}</th>' for one in table.heads)
    rows = []
    for at, row in enumerate(table.rows):
        cells = [f"<th>{html.escape(str(one))}</th>" for one in row[:keys]]
        for column, value in enumerate(row[keys:]):
            marked = ' class="best"' if at in best.get(column, ()) else ""
            text = html.escape(shown(value, table.holds == "differences"))
            cells.append(f"<td{marked}>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
