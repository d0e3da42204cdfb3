"""An evaluation as a folder: ``metrics.json`` and plots to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL, CLC, representative_code
from reben_cloud.errors import missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.root.selection import Selection
from reben_cloud.torch import StreamLoader
from reben_cloud.training.evaluate import Evaluation, MapTargets, modalities_for, model_input
from reben_cloud.training.models import ModelSpec

try:
    import torch
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from torch import Tensor, nn
    from torchmetrics.functional.classification import binary_precision_recall_curve
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("matplotlib", "train") from error

NUM_EXAMPLES = 6
"""Patches shown."""

_WHITE_AT = 2800
"""Digital number shown as white: most land is below a reflectance of 0.28."""

_METRIC_NAMES = {"ap": "AP", "iou": "IoU", "f1": "F1"}
_SHORT = tuple(name if len(name) <= 28 else name[:26].rstrip() + " …" for name in CLASSES_ALPHABETICAL)
_COLORS = tuple(CLC[representative_code(name)].color for name in CLASSES_ALPHABETICAL)


def write_report(
    folder: str | os.PathLike[str],
    metrics: Mapping[str, Any],
    evaluation: Evaluation,
    *,
    spec: ModelSpec,
    model: nn.Module,
    selection: Selection,
) -> None:
    """Write ``metrics.json``, ``per_class.png``, ``examples.png``, and ``curves.png`` or ``confusion.png``.

    Args:
        folder: Where to; made if need be.
        metrics: What ``metrics.json`` is to say.
        evaluation: What `evaluate.evaluate` found.
        spec: Facts of the model.
        model: The model, for the examples.
        selection: What it was evaluated on.
    """
    folder = local_path(folder, "the folder of a report")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    per_class_bars(evaluation.metrics).savefig(folder / "per_class.png")
    if evaluation.confusion is not None:
        confusion_plot(evaluation.confusion).savefig(folder / "confusion.png")
    if evaluation.probabilities is not None and evaluation.labels is not None:
        precision_recall_plot(evaluation.probabilities, evaluation.labels).savefig(folder / "curves.png")
    example_patches(model, spec, selection).savefig(folder / "examples.png")


def _figure(width: float, height: float) -> Figure:
    # No pyplot: it keeps every figure and a window system of its own.
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def per_class_bars(metrics: Mapping[str, Any]) -> Figure:
    """AP and F1, or IoU and F1, of each class; those that do not occur are named without a bar."""
    first = "ap" if "ap" in metrics["macro"] else "iou"
    figure = _figure(9, 6)
    axes = figure.subplots()
    rows = np.arange(len(CLASSES_ALPHABETICAL))
    for offset, name, color in ((-0.2, first, "#2b6a99"), (0.2, "f1", "#e08214")):
        values = [metrics["per_class"][label][name] or 0.0 for label in CLASSES_ALPHABETICAL]
        axes.barh(
            rows + offset,
            values,
            0.38,
            color=color,
            label=f"{_METRIC_NAMES[name]} (macro {metrics['macro'][name] or 0:.3f}, {metrics['num_classes']} classes)",
        )
    count = "num_positives" if first == "ap" else "num_pixels"
    numbers = [metrics["per_class"][label][count] for label in CLASSES_ALPHABETICAL]
    axes.set_yticks(rows, [f"{short}  ({n:,})" for short, n in zip(_SHORT, numbers, strict=True)])
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1), xlabel="value", title=f"Each class, and its {'patches' if first == 'ap' else 'pixels'}"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def precision_recall_plot(probabilities: Tensor, labels: Tensor) -> Figure:
    """Precision over recall of each class that occurs."""
    figure = _figure(10, 6.5)
    axes = figure.subplots()
    for c, name in enumerate(_SHORT):
        if labels[:, c].sum() == 0:
            continue
        precision, recall, _ = binary_precision_recall_curve(probabilities[:, c], labels[:, c].int())
        # A curve has as many points as patches; a picture has not.
        every = max(1, len(recall) // 500)
        dashed = "--" if c % 2 else "-"
        axes.plot(recall[::every], precision[::every], dashed, color=_color(c), label=name, linewidth=1.3)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="Precision and recall")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _color(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](number)


def confusion_plot(confusion: Tensor) -> Figure:
    """Where the pixels of each true class went, as shares of the true class."""
    shares = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    figure = _figure(10, 9)
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
    ticks = np.arange(len(_SHORT))
    axes.set_xticks(ticks, _SHORT, rotation=90, fontsize=8)
    axes.set_yticks(ticks, _SHORT, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Pixels: share of the true class")
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def example_patches(model: nn.Module, spec: ModelSpec, selection: Selection) -> Figure:
    """A few patches of a selection, spread over it, with what is true and what the model says."""
    chosen = np.unique(np.linspace(0, len(selection) - 1, min(NUM_EXAMPLES, len(selection))).astype(int))
    ids = [selection.patch_ids[i] for i in chosen]
    few = selection.dataset.search(ids=ids)
    has_s2 = "s2" in selection.dataset.modalities
    modalities = {*modalities_for(spec), *(["s2"] if has_s2 else [])}
    batch = next(
        iter(
            StreamLoader(
                few, modalities=tuple(modalities), batch_size=len(few), shuffle=False, pin_memory=False
            )
        )
    )
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = (
            model.eval()(model_input(spec).to(device)({k: v.to(device) for k, v in batch.items()}))
            .float()
            .cpu()
        )
    pictures = _pictures(batch, has_s2)
    if spec.task == "map":
        return _map_examples(pictures, MapTargets()(batch["map"]).numpy(), logits.argmax(1).numpy())
    figure = _figure(13, 8.5)
    for axes, picture, truth, row in zip(
        figure.subplots(2, 3, squeeze=False).flat, pictures, batch["labels"], logits.sigmoid(), strict=False
    ):
        axes.imshow(picture)
        likely = sorted(range(len(row)), key=lambda c: -float(row[c]))[:5]
        said = "\n".join(f"{'✓' if truth[c] else '–'} {_SHORT[c]} {float(row[c]):.2f}" for c in likely)
        missed = sum(bool(truth[c]) for c in range(len(row)) if c not in likely)
        axes.set_title(said + (f"\n✓ and {missed} less likely" if missed else ""), fontsize=8, loc="left")
    for axes in figure.axes:
        axes.set_axis_off()
    figure.suptitle("Most likely classes, ✓ where true")
    return figure


def _pictures(batch: Mapping[str, Tensor], has_s2: bool) -> list[NDArray[np.float32]]:
    """Something to look at of each patch, (120, 120, 3) in [0, 1]: true colour, or VV and VH."""
    if has_s2:
        color = batch["s2_10m"][:, [2, 1, 0]].float() / _WHITE_AT
    else:
        vv, vh = ((batch["s1"][:, c] + 25) / 25 for c in (0, 1))
        color = torch.stack([vv, vh, (vv + vh) / 2], dim=1)
    return list(color.clamp(0, 1).permute(0, 2, 3, 1).numpy())


def _map_examples(pictures: list[Any], truth: NDArray[Any], predicted: NDArray[Any]) -> Figure:
    figure = _figure(2.4 * len(pictures), 8)
    black = len(_COLORS)
    colors = ListedColormap([*_COLORS, "#0a0a0a"])
    norm = BoundaryNorm(np.arange(black + 2) - 0.5, black + 1)
    grid = figure.subplots(3, len(pictures), squeeze=False)
    for column, picture in enumerate(pictures):
        unknown = truth[column] >= black
        grid[0, column].imshow(picture)
        grid[1, column].imshow(
            np.where(unknown, black, truth[column]), cmap=colors, norm=norm, interpolation="nearest"
        )
        grid[2, column].imshow(
            np.where(unknown, black, predicted[column]), cmap=colors, norm=norm, interpolation="nearest"
        )
    for row, name in enumerate(("patch", "reference map", "predicted")):
        grid[row, 0].set_ylabel(name)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    shown = [c for c in range(black) if (truth == c).any() or (predicted == c).any()]
    handles = [grid[0, 0].scatter([], [], color=_COLORS[c], marker="s", label=_SHORT[c]) for c in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
