"""An evaluation as a folder: ``metrics.json`` and plots to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Classes, Schema
from reben_cloud.torch import Batch, ModelInput, StreamLoader
from reben_cloud.training.evaluate import Evaluation
from reben_cloud.training.feed import MapTargets, map_array_of, modalities_for, model_input
from reben_cloud.training.metrics import Metrics
from reben_cloud.training.models import ModelSpec, write_json

try:
    import torch
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
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
_NO_CLASS_COLOR = "#0a0a0a"


def write_report(
    folder: str | os.PathLike[str],
    metrics: Metrics,
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
    write_json(folder / "metrics.json", {**metrics})
    figures = {"per_class": per_class_bars(evaluation.metrics, spec.classes)}
    if evaluation.confusion is not None:
        figures["confusion"] = confusion_plot(evaluation.confusion, spec.classes)
    if evaluation.probabilities is not None and evaluation.labels is not None:
        figures["curves"] = precision_recall_plot(evaluation.probabilities, evaluation.labels, spec.classes)
    figures["examples"] = example_patches(model, spec, selection)
    for name, figure in figures.items():
        _save(figure, folder / f"{name}.png")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as new:
        figure.savefig(new, format="png")


def short_names(classes: Classes) -> list[str]:
    """Names of classes that fit beside a plot."""
    return [name if len(name) <= 28 else name[:26].rstrip() + " …" for name in classes.names]


def colors_of(classes: Classes) -> list[str]:
    """A colour of each class: the one stated, otherwise one of twenty in turn."""
    return list(classes.colors) or [to_hex(_color(number)) for number in range(len(classes))]


def _figure(width: float, height: float) -> Figure:
    # No pyplot: it keeps every figure and a window system of its own.
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def per_class_bars(metrics: Metrics, classes: Classes) -> Figure:
    """AP and F1, or IoU and F1, of each class; those that do not occur are named without a bar."""
    first = "ap" if "ap" in metrics["macro"] else "iou"
    figure = _figure(9, max(3.0, 0.32 * len(classes)))
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
    figure = _figure(10, 6.5)
    axes = figure.subplots()
    for c, name in enumerate(short_names(classes)):
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


def _color(number: int) -> tuple[float, float, float, float]:
    red, green, blue, alpha = colormaps["tab20"](number % 20)
    return red, green, blue, alpha


def confusion_plot(confusion: Tensor, classes: Classes) -> Figure:
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
    names = short_names(classes)
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title="Pixels: share of the true class")
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def example_patches(model: nn.Module, spec: ModelSpec, selection: Selection) -> Figure:
    """A few patches of a selection, spread over it, with what is true and what the model says."""
    chosen = np.unique(np.linspace(0, len(selection) - 1, min(NUM_EXAMPLES, len(selection))).astype(int))
    few = selection.dataset.search(ids=[selection.patch_ids[i] for i in chosen])
    schema = selection.dataset.schema
    view = _view_of(spec, schema)
    needed = {*modalities_for(spec, schema), *(schema.bands[band].modality for band in view.bands)}
    batch = next(
        iter(
            StreamLoader(
                few,
                modalities=tuple(name for name in schema.modality_names if name in needed),
                batch_size=len(few),
                shuffle=False,
                pin_memory=False,
            )
        )
    )
    device = next(model.parameters()).device
    inputs = model_input(spec, schema).to(device)
    with torch.inference_mode():
        logits = model.eval()(inputs({k: v.to(device) for k, v in batch.items()})).float().cpu()
    pictures = view.pictures(batch, schema)
    if spec.task == "map":
        truth = MapTargets(spec.classes, size=spec.image_px)(batch[map_array_of(schema)])
        return _map_examples(pictures, truth.numpy(), logits.argmax(1).numpy(), spec.classes)
    return _label_examples(pictures, batch["labels"], logits.sigmoid(), spec.classes)


class _View(NamedTuple):
    """How patches are shown: red, green and blue from three bands, each with the values of black and white."""

    bands: tuple[str, ...]
    """One to three bands; the last one is shown again for what is missing."""
    black: float | None
    """Value shown as black; None for the least one of each patch and band."""
    white: float | None
    """Value shown as white; None for the largest one."""

    def pictures(self, batch: Batch, schema: Schema) -> list[NDArray[np.float32]]:
        """A picture of each patch, (y, x, 3) in [0, 1]."""
        image = ModelInput(self.bands, normalize=None, schema=schema)(batch)
        low = image.amin((2, 3), keepdim=True) if self.black is None else self.black
        high = image.amax((2, 3), keepdim=True) if self.white is None else self.white
        image = ((image - low) / (high - low)).nan_to_num()
        channels = [min(n, len(self.bands) - 1) for n in range(3)]
        if self.bands == _RADAR.bands:
            image, channels = torch.cat([image, image.mean(1, keepdim=True)], dim=1), [0, 1, 2]
        return list(image[:, channels].clamp(0, 1).permute(0, 2, 3, 1).numpy())


_TRUE_COLOR = _View(("B04", "B03", "B02"), 0.0, _WHITE_AT)
_RADAR = _View(("VV", "VH"), -25.0, 0.0)
"""Blue is the mean of both."""


def _view_of(spec: ModelSpec, schema: Schema) -> _View:
    """True colour where there is, else radar, else the first bands that the model takes, stretched."""
    for view in (_TRUE_COLOR, _RADAR):
        if all(
            name in schema.bands and schema.bands[name].tensor.units == REBEN.bands[name].tensor.units
            for name in view.bands
        ):
            return view
    return _View(spec.bands[:3], None, None)


def _label_examples(
    pictures: Sequence[NDArray[np.float32]], truths: Tensor, probabilities: Tensor, classes: Classes
) -> Figure:
    names = short_names(classes)
    figure = _figure(13, 8.5)
    for axes, picture, truth, row in zip(
        figure.subplots(2, 3, squeeze=False).flat, pictures, truths, probabilities, strict=False
    ):
        axes.imshow(picture)
        likely = sorted(range(len(row)), key=lambda c: -float(row[c]))[:5]
        said = "\n".join(f"{'✓' if truth[c] else '–'} {names[c]} {float(row[c]):.2f}" for c in likely)
        missed = sum(bool(truth[c]) for c in range(len(row)) if c not in likely)
        axes.set_title(said + (f"\n✓ and {missed} less likely" if missed else ""), fontsize=8, loc="left")
    for axes in figure.axes:
        axes.set_axis_off()
    figure.suptitle("Most likely classes, ✓ where true")
    return figure


def _map_examples(
    pictures: Sequence[NDArray[np.float32]],
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: Classes,
) -> Figure:
    figure = _figure(2.4 * len(pictures), 8)
    black, class_colors = len(classes), colors_of(classes)
    colors = ListedColormap([*class_colors, _NO_CLASS_COLOR])
    norm = BoundaryNorm(np.arange(black + 2) - 0.5, black + 1)
    grid = figure.subplots(3, len(pictures), squeeze=False)
    for column, picture in enumerate(pictures):
        unknown = truth[column] == MapTargets.IGNORED
        grid[0, column].imshow(picture)
        for row, pixels in ((1, truth[column]), (2, predicted[column])):
            shown = np.where(unknown, black, pixels)
            grid[row, column].imshow(shown, cmap=colors, norm=norm, interpolation="nearest")
    for row, name in enumerate(("patch", "reference map", "predicted")):
        grid[row, 0].set_ylabel(name)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    names = short_names(classes)
    seen = [c for c in range(black) if (truth == c).any() or (predicted == c).any()]
    handles = [grid[0, 0].scatter([], [], color=class_colors[c], marker="s", label=names[c]) for c in seen]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
