"""Plots of what was measured: matplotlib figures, made without a window system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra
from reben_cloud.schema import Classes
from reben_cloud.training.measures import NUM_BINS, Calibration, Ranking
from reben_cloud.training.metrics import Metrics

try:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("matplotlib", "train") from error

_METRIC_NAMES = {"ap": "AP", "iou": "IoU", "f1": "F1"}


def short_names(classes: Classes) -> list[str]:
    """Names of classes that fit beside a plot."""
    return [name if len(name) <= 28 else name[:26].rstrip() + " …" for name in classes.names]


def colors_of(classes: Classes) -> list[str]:
    """A colour of each class: the one stated, otherwise one of twenty in turn."""
    return list(classes.colors) or [to_hex(_color(number)) for number in range(len(classes))]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    # No pyplot: it keeps every figure and a window system of its own.
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def per_class_bars(metrics: Metrics, classes: Classes) -> Figure:
    """AP and F1, or IoU and F1, of each class; those that do not occur are named without a bar."""
    first = "ap" if "ap" in metrics["macro"] else "iou"
    figure = new_figure(9, max(3.0, 0.32 * len(classes)))
    axes = figure.subplots()
    rows = np.arange(len(classes))
    for offset, name, color in ((-0.2, first, "#2b6a99"), (0.2, "f1", "#e08214")):
        values = [metrics["per_class"][label][name] or 0.0 for label in classes.names]
        axes.barh(
            rows + offset,
            values,
            0.38,
            color=color,
            label=f"{_METRIC_NAMES[name]} (macro {metrics['macro'][name] or 0:.3f}, {metrics['num_classes']} classes)",
        )
    count = "num_positives" if first == "ap" else "num_pixels"
    numbers = [metrics["per_class"][label][count] for label in classes.names]
    axes.set_yticks(
        rows, [f"{short}  ({n:,})" for short, n in zip(short_names(classes), numbers, strict=True)]
    )
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1), xlabel="value", title=f"Each class, and its {'patches' if first == 'ap' else 'pixels'}"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def precision_recall_plot(probabilities: Tensor, labels: Tensor, classes: Classes) -> Figure:
    """Precision over recall of each class that occurs."""
    figure = new_figure(10, 6.5)
    axes = figure.subplots()
    for c, name in enumerate(short_names(classes)):
        if labels[:, c].sum() == 0:
            continue
        ranking = Ranking.of(probabilities[:, c].numpy(), labels[:, c].numpy() > 0)
        recall, precision = ranking.hits / ranking.num_positives, ranking.hits / ranking.taken
        # A curve has as many points as patches; a picture has not.
        every = max(1, len(recall) // 500)
        dashed = "--" if c % 2 else "-"
        axes.plot(recall[::every], precision[::every], dashed, color=_color(c), label=name, linewidth=1.3)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall")
    axes.grid(alpha=0.3)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def calibration_plot(probabilities: Tensor, labels: Tensor, classes: Classes) -> Figure:
    """How often a class was there beside how probable it was said to be, of all classes and of each; and how many."""
    figure = new_figure(10, 8)
    axes, counts = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    for c, name in enumerate(short_names(classes)):
        if labels[:, c].sum() == 0:
            continue
        one = Calibration.of(probabilities[:, c].numpy(), labels[:, c].numpy() > 0)
        dashed = "--" if c % 2 else "-"
        label = f"{name} ({one.error:.3f})"
        axes.plot(*_filled(one), dashed, color=_color(c), linewidth=0.9, alpha=0.8, label=label)
    every = Calibration.of(probabilities.numpy(), labels.numpy() > 0)
    axes.plot(*_filled(every), "o-", color="black", linewidth=2, label=f"all classes ({every.error:.3f})")
    axes.plot([0, 1], [0, 1], ":", color="grey")
    axes.set(
        xlim=(0, 1), ylim=(0, 1), ylabel="share that is there", title="Calibration, and its expected error"
    )
    axes.grid(alpha=0.3)
    counts.bar((np.arange(NUM_BINS) + 0.5) / NUM_BINS, every.count, 0.9 / NUM_BINS, color="#2b6a99")
    counts.set(yscale="log", xlabel="probability", ylabel="how many")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _filled(one: Calibration) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    there = one.count > 0
    return one.mean[there], one.share[there]


def _color(number: int) -> tuple[float, float, float, float]:
    red, green, blue, alpha = colormaps["tab20"](number % 20)
    return red, green, blue, alpha


def confusion_plot(confusion: Tensor, classes: Classes) -> Figure:
    """Where the pixels of each true class went, as shares of the true class."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    figure = new_figure(10, 9)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(shares.numpy() >= 0.05):
        value = float(shares[row, column])
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if value > 0.5 else "black",
        )
    names = short_names(classes)
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Pixels: share of the true class")
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def run_curves(rows: Sequence[Mapping[str, str]]) -> Figure:
    """How a run went, by steps: losses, validation score, learning rate, share of the time waited for data.

    Args:
        rows: Of its log.
    """
    figure = new_figure(9, 9)
    panels = (
        ("loss", (("loss", "#2b6a99"), ("validation_loss", "#e08214"))),
        ("validation score", (("validation_score", "#e08214"),)),
        ("learning rate", (("lr", "#4a4a4a"),)),
        ("share waited for data", (("wait_share", "#b2182b"),)),
    )
    every = figure.subplots(len(panels), 1, sharex=True)
    for axes, (title, lines) in zip(every, panels, strict=True):
        for name, color in lines:
            points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                axes.plot(*zip(*points, strict=True), ".-", color=color, label=name, linewidth=1)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    if every[0].lines:
        every[0].legend(frameon=False)
    every[-1].set(xlabel="step", ylim=(0, 1))
    return figure
