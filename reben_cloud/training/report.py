"""An evaluation as a folder: ``metrics.json`` and plots to look at."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import ConflictError, missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.files.whole import replacing
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Classes, Schema
from reben_cloud.torch import Batch, ModelInput, StreamLoader
from reben_cloud.torch.map_targets import MapTargets, map_array_of
from reben_cloud.training.evaluate import Evaluation
from reben_cloud.training.feed import modalities_for, model_input
from reben_cloud.training.metrics import Metrics
from reben_cloud.training.models import ModelSpec, write_json
from reben_cloud.training.plots import (
    calibration_plot,
    colors_of,
    confusion_plot,
    new_figure,
    per_class_bars,
    precision_recall_plot,
    run_curves,
    short_names,
)

try:
    import torch
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.figure import Figure
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("matplotlib", "train") from error

NUM_EXAMPLES = 6
"""Patches shown."""

_WHITE_AT = 2800
"""Digital number shown as white: most land is below a reflectance of 0.28."""

_NO_CLASS_COLOR = "#0a0a0a"

_WRONG = "#d7301f"

_AGREEMENT = ListedColormap(["#f0f0f0", _WRONG, _NO_CLASS_COLOR])
"""Colours of pixels that are right, wrong, and not measured."""


def write_report(
    folder: str | os.PathLike[str],
    metrics: Metrics,
    evaluation: Evaluation,
    *,
    spec: ModelSpec,
    model: nn.Module,
    selection: Selection,
) -> None:
    """Write ``metrics.json`` and plots.

    These are ``per_class.png`` and ``examples.png``; of labels also ``curves.png`` and ``calibration.png``, of maps
    ``confusion.png``.

    Args:
        folder: Where to; made if need be.
        metrics: What ``metrics.json`` is to say.
        evaluation: What `evaluate.evaluate` found.
        spec: Facts of the model.
        model: The model, for the examples.
        selection: What it was evaluated on.
    """
    folder = make_folder(folder)
    write_json(folder / "metrics.json", {**metrics})
    figures = {"per_class": per_class_bars(evaluation.metrics, spec.classes)}
    if evaluation.confusion is not None:
        figures["confusion"] = confusion_plot(evaluation.confusion, spec.classes)
    if evaluation.probabilities is not None and evaluation.labels is not None:
        figures["curves"] = precision_recall_plot(evaluation.probabilities, evaluation.labels, spec.classes)
        figures["calibration"] = calibration_plot(evaluation.probabilities, evaluation.labels, spec.classes)
    figures["examples"] = example_patches(model, spec, selection, labels=evaluation.labels)
    for name, figure in figures.items():
        _save(figure, folder / f"{name}.png")


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder of a report, unless it is there.

    Raises:
        ConflictError: If something else is.
    """
    path = local_path(folder, "the folder of a report")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConflictError(
            f"{path}: a report is a folder, and a file is there; name another place"
        ) from error
    return path


def write_curves(folder: Path, log: Path) -> None:
    """Write ``run.png``: how a run went, by the rows of its log.

    Args:
        folder: Where to; made if need be.
        log: The log, CSV.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with log.open(newline="") as file:
        _save(run_curves(list(csv.DictReader(file))), folder / "run.png")


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as new:
        figure.savefig(new, format="png")


def example_patches(
    model: nn.Module, spec: ModelSpec, selection: Selection, *, labels: Tensor | None = None
) -> Figure:
    """A few patches of a selection, spread over it, with what is true and what the model says.

    Args:
        model: The model.
        spec: Its facts.
        selection: Patches.
        labels: What is true of each patch, (patch, num_classes); None for the dataset's labels.
    """
    chosen = np.unique(np.linspace(0, len(selection) - 1, min(NUM_EXAMPLES, len(selection))).astype(int))
    few = selection[chosen]
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
    truth = batch["labels"] if labels is None else labels[torch.from_numpy(chosen)]
    return _label_examples(pictures, truth, logits.sigmoid(), spec.classes)


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
    figure = new_figure(13, 8.5)
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
    figure = new_figure(2.4 * len(pictures), 10.4)
    black, class_colors = len(classes), colors_of(classes)
    colors = ListedColormap([*class_colors, _NO_CLASS_COLOR])
    norm = BoundaryNorm(np.arange(black + 2) - 0.5, black + 1)
    grid = figure.subplots(4, len(pictures), squeeze=False)
    for column, picture in enumerate(pictures):
        unknown = truth[column] == MapTargets.IGNORED
        grid[0, column].imshow(picture)
        for row, pixels in ((1, truth[column]), (2, predicted[column])):
            shown = np.where(unknown, black, pixels)
            grid[row, column].imshow(shown, cmap=colors, norm=norm, interpolation="nearest")
        wrong = np.where(unknown, 2, truth[column] != predicted[column])
        grid[3, column].imshow(wrong, cmap=_AGREEMENT, vmin=0, vmax=2, interpolation="nearest")
        counted = int((~unknown).sum())
        share = f"{int((wrong == 1).sum()) / counted:.0%} wrong" if counted else "nothing to compare"
        grid[3, column].set_xlabel(share, fontsize=8)
    for row, name in enumerate(("patch", "reference map", "predicted", "disagreement")):
        grid[row, 0].set_ylabel(name)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    names = short_names(classes)
    seen = [c for c in range(black) if (truth == c).any() or (predicted == c).any()]
    handles = [grid[0, 0].scatter([], [], color=class_colors[c], marker="s", label=names[c]) for c in seen]
    for color, text in ((_WRONG, "wrong"), (_NO_CLASS_COLOR, "no class: not measured")):
        handles.append(grid[0, 0].scatter([], [], color=color, marker="s", label=text))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure
