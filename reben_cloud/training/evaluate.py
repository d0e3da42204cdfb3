"""Predict a selection and measure it, on one process or many, each patch counted once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.inputs import choose_bands
from reben_cloud.errors import missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Schema
from reben_cloud.torch import Batch, ReadOptions, StreamLoader
from reben_cloud.torch.map_targets import MapTargets, map_array_of
from reben_cloud.training.bootstrap import intervals, squares_of
from reben_cloud.training.compute import Compute, Precision, compute_context
from reben_cloud.training.feed import modalities_for, model_input
from reben_cloud.training.finite import FiniteCheck
from reben_cloud.training.groups import GROUPINGS, Groups, group_numbers
from reben_cloud.training.metrics import Metrics, confusion_of, label_metrics, map_metrics
from reben_cloud.training.models import ModelSpec, load_pretrained
from reben_cloud.training.truth import labels_of

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model made of a selection."""

    metrics: Metrics
    """As `metrics.label_metrics` or `metrics.map_metrics`, with ``by``; for maps also ``left_out``."""
    probabilities: Tensor | None = None
    """float32 (patch, num_classes) in the selection's order, for labels."""
    labels: Tensor | None = None
    """float32 (patch, num_classes), for labels."""
    confusion: Tensor | None = None
    """int64 (num_classes, num_classes), true and predicted class of pixels, for maps."""


def evaluate(
    model: nn.Module,
    spec: ModelSpec,
    selection: Selection,
    compute: Compute,
    *,
    batch_size: int = 256,
    by: Sequence[str] = (),
    draws: int = 0,
    labels: str = "",
    **options: Unpack[ReadOptions],
) -> Evaluation:
    """Predict every patch of a selection once and measure.

    All processes of the group must call it, and get the same answer.

    Args:
        model: On the device of `compute`.
        spec: Its facts.
        selection: What to predict; the classes of its schema must be the model's.
        compute: This process's share.
        batch_size: Patches a step over all processes.
        by: Groupings of `metrics.GROUPINGS` to measure as well.
        draws: Draws of squares for confidence intervals of the means (`bootstrap.intervals`), for labels; 0: none.
        labels: Labels to measure by that a table layer has (`truth.labels_of`); empty: the dataset's.
        **options: For `StreamLoader`, such as ``cache_dir``.

    Raises:
        NotFoundError: If the selection is empty.
        NotFiniteError: If an output is infinite or not a number; it names the step, from 1, and the patch.
        ValueError: If the model's classes or bands are not those of the dataset.
    """
    selection.require_patches("nothing to evaluate")
    selection.refuse_repeats("an evaluation")
    schema = selection.dataset.schema
    loader = compute.stream_once(selection, modalities_for(spec, schema), batch_size, **options)
    outputs = _Outputs(
        model,
        model_input(spec, schema).to(compute.device),
        loader,
        compute,
        FiniteCheck(selection, compute, "evaluation"),
    )
    groups = {grouping: group_numbers(selection, grouping) for grouping in by}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if spec.task == "map":
                return _measure_maps(outputs, spec, schema, groups)
            squares = squares_of(selection) if draws else None
            given = torch.from_numpy(labels_of(selection, labels)).float() if labels else None
            return _measure_labels(outputs, spec, groups, squares, draws, given)
    finally:
        model.train(was_training)


def validation_loss(evaluation: Evaluation) -> float | None:
    """Mean binary cross entropy of what was predicted, without smoothing or weights; None for maps."""
    if evaluation.probabilities is None or evaluation.labels is None:
        return None
    return float(nn.functional.binary_cross_entropy(evaluation.probabilities, evaluation.labels))


@dataclass(frozen=True, slots=True)
class _Outputs:
    """The batches of an epoch, and what the model says of them; stops at what is not finite."""

    model: nn.Module
    inputs: nn.Module
    loader: StreamLoader
    compute: Compute
    finite: FiniteCheck

    def __iter__(self) -> Iterator[tuple[Batch, Tensor]]:
        """Batches on the device, and logits."""
        for step, raw in enumerate(self.loader, 1):
            batch = self.compute.to_device(raw)
            with self.compute.autocast():
                logits = self.model(self.inputs(batch))
            self.finite.see(step, batch["index"], logits)
            if step % FiniteCheck.EVERY_STEPS == 0:
                self.finite.check()
            yield batch, logits
        self.finite.check()


def _measure_labels(
    outputs: _Outputs,
    spec: ModelSpec,
    groups: Mapping[str, Groups],
    squares: NDArray[np.int64] | None,
    draws: int,
    given: Tensor | None,
) -> Evaluation:
    parts = [
        (batch["index"].clone(), logits.float().sigmoid(), batch["labels"].clone())
        for batch, logits in outputs
    ]
    index, probabilities, labels = (
        outputs.compute.gather(torch.cat(column)).cpu() for column in zip(*parts, strict=True)
    )
    # Padding has index -1, and the rest comes in the order of the stream; sorted, both are gone.
    order = index.argsort()[int((index < 0).sum()) :]
    assert len(order) == outputs.loader.num_samples
    probabilities, labels = probabilities[order], labels[order] if given is None else given

    def measured(rows: Tensor | slice) -> Metrics:
        return label_metrics(
            probabilities[rows], labels[rows], classes=spec.classes, thresholds=spec.decision_thresholds
        )

    def all_metrics() -> Metrics:
        metrics = measured(slice(None))
        metrics["by"] = {
            grouping: {name: measured(torch.from_numpy(numbers == n)) for n, name in enumerate(names)}
            for grouping, (names, numbers) in groups.items()
        }
        if squares is not None:
            cuts = np.asarray(spec.decision_thresholds, np.float32)
            found = intervals(
                probabilities.numpy(), labels.numpy().astype(np.bool_), squares, cuts, num_draws=draws
            )
            if found is not None:
                metrics["intervals"] = found
        return metrics

    return Evaluation(metrics=outputs.compute.once(all_metrics), probabilities=probabilities, labels=labels)


def _measure_maps(
    outputs: _Outputs, spec: ModelSpec, schema: Schema, groups: Mapping[str, Groups]
) -> Evaluation:
    compute, num_patches, num_classes = outputs.compute, outputs.loader.num_samples, len(spec.classes)
    targets = MapTargets(spec.classes, size=spec.image_px).to(compute.device)
    map_array = map_array_of(schema)
    # Every grouping is counted in the same pass; the first one has a single group.
    groups = {"": Groups(["all"], np.zeros(num_patches, np.int64)), **groups}
    counts = {
        grouping: torch.zeros(len(names), num_classes, num_classes, dtype=torch.int64, device=compute.device)
        for grouping, (names, _) in groups.items()
    }
    for batch, logits in outputs:
        predicted = logits.argmax(1)  # of a row that is not finite it is a class like another
        valid = batch["valid"]
        index = batch["index"][valid].cpu().numpy()
        for grouping, (names, numbers) in groups.items():
            group = torch.from_numpy(numbers[index]).to(compute.device)
            counts[grouping] += confusion_of(
                predicted[valid],
                targets(batch[map_array][valid]),
                group,
                len(names),
                num_classes=num_classes,
            )
    for count in counts.values():
        compute.add_up(count)
    total = counts.pop("")[0].cpu()
    metrics: Metrics = {"num_patches": num_patches, **map_metrics(total, classes=spec.classes)}
    num_pixels = num_patches * spec.image_px**2
    metrics["left_out"] = {
        f"pixels without one of the {num_classes} classes": num_pixels - metrics["num_pixels"]
    }
    metrics["by"] = {
        grouping: {
            name: map_metrics(count[n].cpu(), classes=spec.classes)
            for n, name in enumerate(groups[grouping].names)
        }
        for grouping, count in counts.items()
    }
    return Evaluation(metrics=metrics, confusion=total)


def evaluate_folder(
    checkpoint: str | os.PathLike[str],
    selection: Selection,
    *,
    precision: Precision = "fp32",
    batch_size: int = 256,
    by: Sequence[str] = GROUPINGS,
    draws: int = 0,
    bands: str | Sequence[str] | None = None,
    at_half: bool = False,
    **options: Unpack[ReadOptions],
) -> tuple[nn.Module, ModelSpec, Evaluation]:
    """Load a model (see `models.load_pretrained`) and evaluate it on a selection.

    Args:
        checkpoint: Folder of a model, or ``owner/name`` on the hub.
        selection: What to predict.
        precision: Of the forward pass.
        batch_size: Patches a step over all processes.
        by: As for `evaluate`.
        draws: As for `evaluate`.
        bands: Order of the model's input, where neither its files nor its name tell.
        at_half: Decide at one half, also where the model has thresholds of its own.
        **options: For `StreamLoader`.
    """
    with compute_context(precision) as compute:
        named = None if bands is None else choose_bands(bands, schema=selection.dataset.schema)
        model, spec = load_pretrained(checkpoint, bands=named)
        if at_half:
            spec = replace(spec, thresholds=())
        model.to(compute.device)
        found = evaluate(
            model, spec, selection, compute, batch_size=batch_size, by=by, draws=draws, **options
        )
        return model, spec, found
