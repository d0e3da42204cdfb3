"""Plots of a study: scores beside each other, classes and groups as heat maps, distances, and how the runs went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reben_cloud.errors import missing_extra
from reben_cloud.training.plots import new_figure
from reben_cloud.training.study.grid import Study
from reben_cloud.training.study.plan import Distances
from reben_cloud.training.study.scores import Measure, Results, Spread, results_of, spread
from reben_cloud.training.study.tables import Table, cells_text

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("matplotlib", "train") from error

_COLORS = ("#2b6a99", "#e08214", "#4a8f5a", "#8c6bb1")
_LIGHT, _DARK = "white", "black"


def score_bars(study: Study, results: Results, measures: Sequence[Measure]) -> Figure:
    """Each measure of each combination: the mean as a bar, the deviation as a whisker, every seed as a dot."""
    cells = study.cells
    names = [" ".join(cell) or study.name for cell in cells]
    figure = new_figure(3 + 2.4 * len(measures), max(2.6, 0.3 * len(cells) + 1.2))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    rows = np.arange(len(cells))
    for number, (axes, measure) in enumerate(zip(panels, measures, strict=True)):
        found = [spread(results_of(study, results, cell), measure.of) for cell in cells]
        means = [one.mean if one.values else 0.0 for one in found]
        whiskers = np.nan_to_num([one.deviation for one in found])
        color = _COLORS[number % len(_COLORS)]
        axes.barh(rows, means, 0.7, xerr=whiskers, color=color, alpha=0.75, ecolor="#333333", capsize=2)
        for row, one in enumerate(found):
            axes.plot(one.values, [row] * len(one.values), "o", color="black", markersize=2.5)
        axes.set(title=measure.name, xlim=(0, 1))
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(rows, names)
    panels[0].invert_yaxis()
    return figure


def heat_map(table: Table) -> Figure:
    """The means of a table as colours, with their numbers where these fit."""
    keys = len(table.keys)
    values = np.array([[_mean(one) for one in row[keys:]] for row in table.rows])
    rows = [" ".join(str(one) for one in row[:keys]) for row in table.rows]
    rows = [name if len(name) <= 34 else name[:32].rstrip() + " …" for name in rows]
    num_rows, num_columns = values.shape
    # A cell is as wide as its number, and the headings stand slanted above.
    width, height = 3.8 + 0.55 * num_columns, 1.9 + 0.27 * num_rows
    figure = new_figure(width, height)
    axes = figure.subplots()
    low, high = _limits(values)
    image = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        color = _LIGHT if (value - low) < 0.6 * (high - low) else _DARK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(np.arange(num_columns), table.heads, rotation=40, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(np.arange(num_rows), rows, fontsize=8)
    axes.set_facecolor("#dddddd")
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    return figure


def _mean(value: object) -> float:
    return value.mean if isinstance(value, Spread) else float("nan")


def _limits(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def distance_plot(study: Study, distances: Sequence[Distances], *, patch_m: float) -> Figure:
    """Which share of the test patches has a patch of training within a distance.

    Args:
        study: The study.
        distances: Of its runs.
        patch_m: Side of a patch, metres, at which a patch has its neighbours.
    """
    figure = new_figure(9, 5)
    axes = figure.subplots()
    for number, one in enumerate(distances):
        # Another date of the same place is shown at 100 m, as a logarithm knows no 0.
        ordered = np.maximum(np.sort(one.metres), 100.0) / 1000
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        every = max(1, len(ordered) // 2000)
        axes.step(
            np.append(ordered[::every], ordered[-1]),
            np.append(share[::every], 1.0),
            where="post",
            color=colormaps["tab10"](number % 10),
            linestyle="-" if number < 10 else "--",
            label=cells_text(study, one),
        )
    axes.axvline(patch_m / 1000, color="grey", linestyle=":", linewidth=1)
    axes.text(patch_m / 1000, 1.02, "next patch", ha="center", fontsize=8, color="grey")
    axes.set(
        xscale="log",
        ylim=(0, 1),
        xlim=(0.08, None),
        xlabel="distance to the nearest patch of training, km (0.1: the same place)",
        ylabel="share of the test patches",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def validation_curves(study: Study, logs: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """The validation score of every run over its steps; the seeds of a combination have one colour.

    Args:
        study: The study.
        logs: Name of a run -> (step, score) of each epoch.
    """
    figure = new_figure(9, 5)
    axes = figure.subplots()
    for number, cell in enumerate(study.cells):
        label: str | None = " ".join(cell) or study.name
        for run in study.runs_of(cell):
            points = logs.get(run.name, ())
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=colormaps["tab20"](number % 20),
                    linestyle="-" if number < 20 else "--",
                    marker=".",
                    linewidth=1,
                    label=label,
                )
                label = None  # once for all seeds
    axes.set(xlabel="step", ylabel="validation score")
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure
