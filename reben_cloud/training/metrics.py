"""What a model is worth: label metrics and map metrics, whole and by country, season and split.

Pure functions of predictions; torchmetrics does the measuring. What collects the predictions, over
however many processes, is `evaluate`.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.bigearthnet.grid import season
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.root.layout import DATETIME, column
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Classes

try:
    import torch
    from torch import Tensor

    from reben_cloud.training.torchvision_ops import load_torchvision

    load_torchvision()
    from torchmetrics.functional import classification
except (ImportError, RuntimeError) as error:  # pragma: no cover - tested in a clean environment
    raise missing_extra("torchmetrics", "train", error) from error

GROUPINGS = ("country", "season", "split")
"""By what the patches of an evaluation are told apart."""

_AT_HALF = {
    "f1": classification.multilabel_f1_score,
    "precision": classification.multilabel_precision,
    "recall": classification.multilabel_recall,
    "accuracy": classification.multilabel_accuracy,
}

Means = dict[str, float | None]
"""Metric -> value; None where there is nothing to be a mean of."""


class Metrics(TypedDict):
    """What was measured, as it stands in ``metrics.json``."""

    num_classes: int
    """Classes that occur, over which the macro means are."""
    macro: Means
    """Mean of each metric over those classes."""
    per_class: dict[str, dict[str, float | int | None]]
    """Class -> metric -> value, with ``num_positives`` or ``num_pixels``."""
    num_patches: NotRequired[int]
    """Patches measured."""
    micro: NotRequired[Means]
    """Each metric over all classes together, for labels."""
    num_pixels: NotRequired[int]
    """Pixels measured, for maps."""
    accuracy: NotRequired[float | None]
    """Share of the pixels that are right, for maps."""
    left_out: NotRequired[dict[str, int]]
    """What was not measured -> how much of it."""
    by: NotRequired[dict[str, dict[str, Metrics]]]
    """Grouping -> group -> the same of its patches."""


class TrainResult(Metrics):
    """What a finished run says of its best weights."""

    subset: str
    """What they were measured on: ``test``, or ``validation`` where that is empty."""
    best_epoch: int
    """Number of the epoch that they are of, from 0."""
    validation_score: float
    """What chose them."""
    delivered: NotRequired[dict[str, EpochDelivery]]
    """Epoch -> what was delivered of the train subset, over all processes."""


class EpochDelivery(TypedDict):
    """What a run says of an epoch; ``reben-cloud verify-epoch`` computes the same."""

    samples: int
    """How many samples were delivered."""
    digest: str
    """Sum of their hashes, 16 hex digits."""


class Groups(NamedTuple):
    """The groups of a selection's patches."""

    names: list[str]
    """Names of the groups."""
    numbers: NDArray[np.int64]
    """Number of each patch's group, int64 (num_patches,)."""


def label_metrics(probabilities: Tensor, labels: Tensor, *, classes: Classes = REBEN.classes) -> Metrics:
    """Average precision, and at threshold 0.5 F1, precision, recall and accuracy.

    Macro means are over the classes that have a positive patch, for every metric the same ones; a class
    without one has None for each metric. Micro values count every class. Where all classes occur, and over
    those that do, the values are torchmetrics' and scikit-learn's.

    Args:
        probabilities: Floating (patch, num_classes) in [0, 1], in the order of the classes.
        labels: (patch, num_classes), 0 or 1.
        classes: What the columns are.

    Returns:
        ``num_patches``; ``num_classes``, over which the macro means are; ``macro`` and ``micro`` with a
        value of each metric, None if no class occurs (micro accuracy has one); ``per_class`` with a value of
        each metric and ``num_positives`` for each class name.

    Raises:
        ValueError: If there is no patch, the shapes differ, a probability is not finite or outside [0, 1],
            or a label is neither 0 nor 1.
    """
    _check_predictions(probabilities, labels, classes)
    num_classes = len(classes)
    targets = labels.int()
    positives = targets.sum(0)
    there = positives > 0
    values: dict[str, list[float]] = {
        "ap": [
            float(classification.binary_average_precision(probabilities[:, c], targets[:, c]))
            if there[c]
            else math.nan
            for c in range(num_classes)
        ]
    }
    any_there = bool(there.any())
    micro: dict[str, float | None] = {
        "ap": float(classification.binary_average_precision(probabilities.ravel(), targets.ravel()))
        if any_there
        else None
    }
    for metric, measure in _AT_HALF.items():
        # Checked above; and torchmetrics would refuse a single class.
        values[metric] = (
            measure(probabilities, targets, num_classes, average="none", validate_args=False)
            .reshape(-1)
            .tolist()
        )
        found = float(measure(probabilities, targets, num_classes, average="micro", validate_args=False))
        micro[metric] = found if any_there or metric == "accuracy" else None
    present = there.nonzero().ravel().tolist()
    return {
        "num_patches": len(targets),
        "num_classes": len(present),
        "macro": {
            metric: sum(each[c] for c in present) / len(present) if present else None
            for metric, each in values.items()
        },
        "micro": micro,
        "per_class": {
            name: {
                **{metric: each[c] if there[c] else None for metric, each in values.items()},
                "num_positives": int(positives[c]),
            }
            for c, name in enumerate(classes.names)
        },
    }


def _check_predictions(probabilities: Tensor, labels: Tensor, classes: Classes) -> None:
    expected = (len(labels), len(classes))
    for name, tensor in (("probabilities", probabilities), ("labels", labels)):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must have the shape {expected}, got {tuple(tensor.shape)}")
    if not len(labels):
        raise ValueError("there is nothing to measure: no patch was predicted")
    if not probabilities.is_floating_point():
        raise ValueError(f"probabilities must be floating, got {probabilities.dtype}")
    # Not a number compares as False, so it is among what is not within.
    for name, tensor, right, rule in (
        ("probabilities", probabilities, (probabilities >= 0) & (probabilities <= 1), "finite, in [0, 1]"),
        ("labels", labels, (labels == 0) | (labels == 1), "0 or 1"),
    ):
        if not right.all():
            patch, c = (~right).nonzero()[0].tolist()
            raise ValueError(
                f"{name} must be {rule}, got {tensor[patch, c].item()} for patch {patch}, "
                f"class {classes.names[c]}; {int((~right).sum()):,} of {right.numel():,} are wrong"
            )


def confusion_of(
    predicted: Tensor,
    target: Tensor,
    group: Tensor,
    num_groups: int,
    *,
    num_classes: int = len(REBEN.classes),
) -> Tensor:
    """Confusion matrices of pixels, one per group of patches.

    Args:
        predicted: Class of each pixel in [0, num_classes), int64 (patch, y, x).
        target: int64, the same shape; pixels outside [0, num_classes) are not counted.
        group: Number of each patch's group in [0, num_groups), int64 (patch,).
        num_groups: How many there are.
        num_classes: How many classes there are.

    Returns:
        int64 (num_groups, num_classes, num_classes): true class, predicted class.

    Raises:
        ValueError: If a value is not a whole number, or out of its range, or the shapes differ.
    """
    if predicted.shape != target.shape or group.shape != predicted.shape[:1]:
        raise ValueError(
            f"predicted {tuple(predicted.shape)}, target {tuple(target.shape)} and group {tuple(group.shape)} differ"
        )
    for name, tensor, stop in (
        ("predicted", predicted, num_classes),
        ("target", target, None),
        ("group", group, num_groups),
    ):
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"{name} must be whole numbers, got {tensor.dtype}")
        if stop is not None and ((tensor < 0) | (tensor >= stop)).any():
            raise ValueError(f"{name} must be in [0, {stop}), got {int(tensor.min())} to {int(tensor.max())}")
    counted = (target >= 0) & (target < num_classes)
    # As int64 whatever it came as: a cell's number does not fit a byte.
    cell = (group.long()[:, None, None] * num_classes + target.long()) * num_classes + predicted.long()
    counts = torch.bincount(cell[counted], minlength=num_groups * num_classes**2)
    return counts.reshape(num_groups, num_classes, num_classes)


def map_metrics(confusion: Tensor, *, classes: Classes = REBEN.classes) -> Metrics:
    """Intersection over union, F1 and accuracy of maps.

    Macro means are over the classes that have a true pixel, as those of `label_metrics` are over the classes
    that have a positive patch; a class without one has None.

    Args:
        confusion: int64 (num_classes, num_classes): true class, predicted class; not negative.
        classes: What rows and columns are.

    Returns:
        ``num_pixels``, ``num_classes`` (over which the macro means are), ``accuracy``, ``macro`` and
        ``per_class`` with ``iou`` and ``f1``.

    Raises:
        ValueError: If it has another shape, or an entry is negative or not a whole number.
    """
    expected = (len(classes), len(classes))
    if tuple(confusion.shape) != expected:
        raise ValueError(f"confusion must have the shape {expected}, got {tuple(confusion.shape)}")
    if confusion.is_floating_point() or confusion.is_complex() or (confusion < 0).any():
        raise ValueError(f"confusion must be counts of pixels, got {confusion.dtype} from {confusion.min()}")
    hits = confusion.diag().double()
    true, predicted = confusion.sum(1).double(), confusion.sum(0).double()
    iou, f1 = hits / (true + predicted - hits), 2 * hits / (true + predicted)
    there = true > 0
    total = int(confusion.sum())
    return {
        "num_pixels": total,
        "num_classes": int(there.sum()),
        "accuracy": float(hits.sum()) / total if total else None,
        "macro": {
            "iou": float(iou[there].mean()) if there.any() else None,
            "f1": float(f1[there].mean()) if there.any() else None,
        },
        "per_class": {
            name: {
                "iou": float(iou[c]) if there[c] else None,
                "f1": float(f1[c]) if there[c] else None,
                "num_pixels": int(true[c]),
            }
            for c, name in enumerate(classes.names)
        },
    }


def group_numbers(selection: Selection, by: str) -> Groups:
    """The groups of a selection's patches.

    Args:
        selection: Patches.
        by: ``country``, ``season`` or ``split``.

    Raises:
        ValueError: If `by` is something else.
    """
    if by == "season":
        months = pc.month(selection.column(DATETIME)).to_numpy()
        of_month = [season(datetime(2017, month, 1)) for month in range(1, 13)]
        values = np.array(of_month)[months - 1]
    elif by in GROUPINGS:
        values = np.asarray(selection.column(column(by)).to_pylist(), dtype=str)
    else:
        raise ValueError(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")
    names, numbers = np.unique(values, return_inverse=True)
    return Groups([str(name) for name in names], numbers.astype(np.int64))


def early_stopping_score(metrics: Metrics) -> float:
    """What chooses a run's best weights: AP macro for labels, mean IoU for maps; higher is better.

    Raises:
        ValueError: If it is not finite: nothing is better or worse than that.
    """
    macro = metrics["macro"]
    score = float(macro.get("ap", macro.get("iou")) or 0.0)
    if not math.isfinite(score):
        raise ValueError(f"the score of an evaluation must be finite, got {score}")
    return score
