"""Measure a model that lies in a folder or on the hub, write the report of it, and choose its thresholds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

import numpy as np

from reben_cloud.files.paths import local_path
from reben_cloud.torch import ReadOptions
from reben_cloud.training.compute import Precision
from reben_cloud.training.evaluate import Evaluation, evaluate_folder
from reben_cloud.training.measures import Per, best_thresholds
from reben_cloud.training.models import check_owned, save_facts
from reben_cloud.training.ranks import is_first_rank
from reben_cloud.training.report import make_folder, write_report

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection


def measure(
    checkpoint: str | os.PathLike[str],
    selection: Selection,
    *,
    report: str | os.PathLike[str] | None = None,
    precision: Precision = "fp32",
    batch_size: int = 256,
    draws: int = 1000,
    bands: str | Sequence[str] | None = None,
    at_half: bool = False,
    **options: Unpack[ReadOptions],
) -> Evaluation:
    """Evaluate a model on a selection, each patch once, as a whole and by country, season and split.

    All processes that torchrun started must call it, and get the same answer; the first one writes the report.

    Args:
        checkpoint: Folder of a model, or ``owner/name`` on the hub.
        selection: What to predict.
        report: Folder for ``metrics.json`` and plots; none are written by default.
        precision: Of the forward pass.
        batch_size: Patches in a step, over all processes.
        draws: Draws of squares for confidence intervals of the means; 0: none.
        bands: Order of the model's input, where neither its files nor its name tell.
        at_half: Decide at one half, also where the model has thresholds of its own.
        **options: For `StreamLoader`, such as ``cache_dir``.

    Raises:
        ConflictError: If `report` is a file.
        NotFoundError: If the selection is empty, or there is no such model.
        NotFiniteError: If an output is infinite or not a number.
    """
    if report and is_first_rank():
        make_folder(report)  # before the work, which may take hours
    model, spec, found = evaluate_folder(
        checkpoint,
        selection,
        precision=precision,
        batch_size=batch_size,
        draws=draws,
        bands=bands,
        at_half=at_half,
        **options,
    )
    if report and is_first_rank():
        write_report(report, found.metrics, found, spec=spec, model=model, selection=selection)
    return found


def choose_thresholds(
    checkpoint: str | os.PathLike[str],
    validation: Selection,
    *,
    per: Per = "class",
    beta: float = 1.0,
    precision: Precision = "fp32",
    batch_size: int = 256,
    bands: str | Sequence[str] | None = None,
    **options: Unpack[ReadOptions],
) -> tuple[float, ...]:
    """Choose the probabilities above which a model says that a class is there, and keep them in its folder.

    `evaluate` and `predict` decide at them from then on. Choose them on patches that measure nothing else.

    Args:
        checkpoint: Folder of a model, written by this package.
        validation: What chooses.
        per: ``class``: each class has its best F-beta; ``global``: one threshold, best over all decisions (micro).
        beta: How many times as much recall counts as precision, above 0.
        precision: Of the forward pass.
        batch_size: Patches in a step, over all processes.
        bands: As for `measure`.
        **options: For `StreamLoader`.

    Returns:
        The threshold of each class.

    Raises:
        NotFoundError: If the selection is empty, or there is no such folder.
        ValueError: If the model is of maps, or its folder is not one of ours.
    """
    folder = local_path(checkpoint, "the folder of a model")
    check_owned(folder)
    _, spec, found = evaluate_folder(
        folder,
        validation,
        precision=precision,
        batch_size=batch_size,
        by=(),
        bands=bands,
        at_half=True,
        **options,
    )
    if found.probabilities is None or found.labels is None:
        raise ValueError(f"{folder}: a model of maps takes the likeliest class, and has no thresholds")
    chosen = best_thresholds(
        found.probabilities.numpy(), found.labels.numpy().astype(np.bool_), per=per, beta=beta
    )
    if is_first_rank():
        save_facts(folder, replace(spec, thresholds=chosen))
    return chosen
