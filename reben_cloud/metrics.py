"""What a model is worth: label metrics and map metrics, whole and by country, season and split.

Pure functions of predictions; torchmetrics does the measuring. What collects the predictions, over
however many processes, is `evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra
from reben_cloud.grid import season
from reben_cloud.labels import CLASSES_ALPHABETICAL

try:
    import torch
    from torch import Tensor

    from reben_cloud.torchvision_ops import load_torchvision

    load_torchvision()
    from torchmetrics.functional import classification
except (ImportError, RuntimeError) as error:  # pragma: no cover - tested in a clean environment
    raise missing_extra("torchmetrics", "train", error) from error

NUM_CLASSES = len(CLASSES_ALPHABETICAL)

GROUPINGS = ("country", "season", "split")
"""By what the patches of an evaluation are told apart."""

_AT_HALF = {
    "f1": classification.multilabel_f1_score,
    "precision": classification.multilabel_precision,
    "recall": classification.multilabel_recall,
    "accuracy": classification.multilabel_accuracy,
}


def label_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Average precision, and at threshold 0.5 F1, precision, recall and accuracy.

    A class without a positive patch has no average precision: None, and left out of the macro mean.

    Args:
        probabilities: float32 (patch, 19), alphabetical class order.
        labels: (patch, 19), 0 or 1.

    Returns:
        ``num_patches``; ``macro`` and ``micro`` with a value of each metric; ``per_class`` with a
        value of each metric and ``num_positives`` for each class name.

    Raises:
        ValueError: If there is no patch.
    """
    if not len(labels):
        raise ValueError("there is nothing to measure: no patch was predicted")
    targets = labels.int()
    positives = targets.sum(0)
    precisions = [
        float(classification.binary_average_precision(probabilities[:, c], targets[:, c]))
        if positives[c]
        else None
        for c in range(NUM_CLASSES)
    ]
    present = [value for value in precisions if value is not None]
    macro = {"ap": sum(present) / len(present) if present else None}
    micro = {
        "ap": float(classification.binary_average_precision(probabilities.ravel(), targets.ravel()))
        if present
        else None
    }
    per_class: dict[str, dict[str, Any]] = {
        name: {"ap": precisions[c], "num_positives": int(positives[c])}
        for c, name in enumerate(CLASSES_ALPHABETICAL)
    }
    for metric, measure in _AT_HALF.items():
        macro[metric] = float(measure(probabilities, targets, NUM_CLASSES, average="macro"))
        micro[metric] = float(measure(probabilities, targets, NUM_CLASSES, average="micro"))
        values = measure(probabilities, targets, NUM_CLASSES, average="none")
        for name, value in zip(CLASSES_ALPHABETICAL, values.tolist(), strict=True):
            per_class[name][metric] = value
    return {"num_patches": len(targets), "macro": macro, "micro": micro, "per_class": per_class}


def confusion_of(predicted: Tensor, target: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Confusion matrices of pixels, one a group of patches.

    Args:
        predicted: Class of each pixel, int64 (patch, y, x).
        target: Likewise; pixels outside [0, 19) are not counted.
        group: Number of each patch's group, int64 (patch,).
        num_groups: How many there are.

    Returns:
        int64 (num_groups, 19, 19): true class, predicted class.
    """
    counted = (target >= 0) & (target < NUM_CLASSES)
    cell = (group[:, None, None] * NUM_CLASSES + target) * NUM_CLASSES + predicted
    counts = torch.bincount(cell[counted], minlength=num_groups * NUM_CLASSES**2)
    return counts.reshape(num_groups, NUM_CLASSES, NUM_CLASSES)


def map_metrics(confusion: Tensor) -> dict[str, Any]:
    """Intersection over union, F1 and accuracy of maps.

    A class that is neither there nor predicted has no IoU: None, and left out of the macro mean.

    Args:
        confusion: int64 (19, 19): true class, predicted class.

    Returns:
        ``num_pixels``, ``accuracy``, ``macro`` and ``per_class`` with ``iou`` and ``f1``.
    """
    hits = confusion.diag().double()
    true, predicted = confusion.sum(1).double(), confusion.sum(0).double()
    union = true + predicted - hits
    iou, f1 = hits / union, 2 * hits / (true + predicted)
    there = union > 0
    total = int(confusion.sum())
    return {
        "num_pixels": total,
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
            for c, name in enumerate(CLASSES_ALPHABETICAL)
        },
    }


def group_numbers(selection: Any, by: str) -> tuple[Sequence[str], NDArray[np.int64]]:
    """The groups of a selection's patches.

    Args:
        selection: Patches.
        by: ``country``, ``season`` or ``split``.

    Returns:
        Names of the groups, and the number of each patch's group, int64 (num_patches,).

    Raises:
        ValueError: If `by` is something else.
    """
    if by == "season":
        months = pc.month(selection.column("datetime")).to_numpy()
        of_month = [season(datetime(2017, month, 1)) for month in range(1, 13)]
        values = np.array(of_month)[months - 1]
    elif by in GROUPINGS:
        values = np.asarray(selection.column(f"reben:{by}").to_pylist(), dtype=str)
    else:
        raise ValueError(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")
    names, numbers = np.unique(values, return_inverse=True)
    return [str(name) for name in names], numbers.astype(np.int64)


def early_stopping_score(metrics: Mapping[str, Any]) -> float:
    """What chooses a run's best weights: AP macro for labels, mean IoU for maps; higher is better."""
    macro = metrics["macro"]
    return float(macro.get("ap", macro.get("iou")) or 0.0)
