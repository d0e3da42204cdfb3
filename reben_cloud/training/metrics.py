"""What a model is worth: label metrics and map metrics, class by class and in the mean.

Pure functions of predictions; the arithmetic of labels is in `measures`. What collects the predictions, over
however many processes, is `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.schema import Classes
from reben_cloud.training.bootstrap import Intervals
from reben_cloud.training.measures import Calibration, Counts, Ranking

try:
    import torch
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

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
    samples: NotRequired[Means]
    """Mean over the patches of what is measured in each, for labels."""
    thresholds: NotRequired[list[float]]
    """Probability above which each class was said to be there, for labels."""
    intervals: NotRequired[Intervals]
    """Confidence intervals of the means, where they were asked for."""
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
    """Number of the epoch that they are of, from 0; -1 where nothing was learned (`TrainConfig.neighbours`)."""
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


def label_metrics(
    probabilities: Tensor,
    labels: Tensor,
    *,
    classes: Classes = REBEN.classes,
    thresholds: Sequence[float] | None = None,
) -> Metrics:
    """What predicted probabilities of labels are worth: by rank, by their size, and at thresholds.

    ``ap`` (average precision) and ``auroc`` compare ranks; ``ece`` is the expected calibration error, of 15 bins, and
    better the smaller; ``f1``, ``f2``, ``precision``, ``recall``, ``specificity`` and ``accuracy`` are of what is above
    the thresholds.

    Macro means are over the classes that have a positive patch, for every metric the same ones; a class
    without one has None for each metric. Micro values count every class. Where all classes occur, and over
    those that do, the values are torchmetrics' and scikit-learn's.

    Args:
        probabilities: Floating (patch, num_classes) in [0, 1], in the order of the classes.
        labels: (patch, num_classes), 0 or 1.
        classes: What the columns are.
        thresholds: Probability above which a class is said to be there, of each class; one half by default.

    Returns:
        ``num_patches``; ``num_classes``, over which the macro means are; ``macro`` and ``micro`` with a
        value of each metric, None if no class occurs (micro accuracy and specificity have one), and for an AUROC
        without a negative; ``samples``, the mean over patches of all that is measured at thresholds; ``per_class``
        with a value of each metric and ``num_positives`` for each class name; ``thresholds``.

    Raises:
        ValueError: If there is no patch, the shapes differ, a probability is not finite or outside [0, 1],
            or a label is neither 0 nor 1.
    """
    _check_predictions(probabilities, labels, classes)
    cuts = list(thresholds) if thresholds is not None else [0.5] * len(classes)
    if len(cuts) != len(classes):
        raise ValueError(f"thresholds must be one for each of {len(classes)} classes, got {len(cuts)}")
    # Half precision is compared as float32, which holds it.
    floats = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    found, truth = floats.cpu().numpy(), labels.cpu().numpy().astype(np.bool_)
    said = found > np.asarray(cuts, found.dtype)
    positives: NDArray[np.int64] = truth.sum(0)
    there = positives > 0
    ranked: dict[str, list[float]] = {"ap": [], "auroc": [], "ece": []}
    for c in range(len(classes)):
        column = np.ascontiguousarray(found[:, c])
        for name, value in _ranked(column, truth[:, c]).items():
            ranked[name].append(value)
    each = {**ranked, **{name: list(v) for name, v in Counts.of(said, truth, 0).ratios().items()}}
    at_once = Counts.of(said, truth, (0, 1)).ratios()
    pooled = {**_ranked(found, truth), **{name: float(value) for name, value in at_once.items()}}
    always = ("accuracy", "specificity", "ece")
    return {
        "num_patches": len(truth),
        "num_classes": int(there.sum()),
        "macro": {name: _mean(np.asarray(values)[there]) for name, values in each.items()},
        "micro": {
            name: _or_none(value) if there.any() or name in always else None for name, value in pooled.items()
        },
        "samples": {name: float(v.mean()) for name, v in Counts.of(said, truth, 1).ratios().items()},
        "per_class": {
            label: {
                **{name: _or_none(values[c]) if there[c] else None for name, values in each.items()},
                "num_positives": int(positives[c]),
            }
            for c, label in enumerate(classes.names)
        },
        "thresholds": [float(cut) for cut in cuts],
    }


def _ranked(probabilities: NDArray[np.floating], labels: NDArray[np.bool_]) -> dict[str, float]:
    """What needs no threshold."""
    ranking = Ranking.of(probabilities.ravel(), labels.ravel())
    return {
        "ap": ranking.average_precision(),
        "auroc": ranking.auroc(),
        "ece": Calibration.of(probabilities, labels).error,
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


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
