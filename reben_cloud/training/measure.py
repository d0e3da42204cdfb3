"""Measure a model that lies in a folder or on the hub, and write the report of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from reben_cloud.training.compute import Precision
from reben_cloud.training.evaluate import Evaluation, evaluate_folder
from reben_cloud.training.report import write_report

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection


def measure(
    checkpoint: str | os.PathLike[str],
    selection: Selection,
    *,
    report: str | os.PathLike[str] | None = None,
    precision: Precision = "fp32",
    batch_size: int = 256,
) -> Evaluation:
    """Evaluate a model on a selection, each patch once, as a whole and by country, season and split.

    All processes that torchrun started must call it, and get the same answer; the first one writes the report.

    Args:
        checkpoint: Folder of a model, or ``owner/name`` on the hub.
        selection: What to predict.
        report: Folder for ``metrics.json`` and plots; none are written by default.
        precision: Of the forward pass.
        batch_size: Patches in a step, over all processes.

    Raises:
        NotFoundError: If the selection is empty, or there is no such model.
        NotFiniteError: If an output is infinite or not a number.
    """
    model, spec, found = evaluate_folder(checkpoint, selection, precision=precision, batch_size=batch_size)
    if report and os.environ.get("RANK", "0") == "0":
        write_report(report, found.metrics, found, spec=spec, model=model, selection=selection)
    return found
