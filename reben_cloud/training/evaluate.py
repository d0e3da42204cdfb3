"""Predict a selection and measure it, on one process or many, each patch counted once."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import numpy as np

from reben_cloud.bigearthnet.labels import class_of_code
from reben_cloud.errors import NotFiniteError
from reben_cloud.root.selection import Selection
from reben_cloud.torch import Batch, ModelInput, ReadOptions, StreamLoader
from reben_cloud.training.metrics import (
    GROUPINGS,
    NUM_CLASSES,
    confusion_of,
    group_numbers,
    label_metrics,
    map_metrics,
)
from reben_cloud.training.models import IMAGE_PX, ModelSpec, load_pretrained

try:
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    from reben_cloud.errors import missing_extra

    raise missing_extra("torch", "train") from error

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """Where and how this process computes."""

    device: torch.device
    """This process's device."""
    precision: Precision = "fp32"
    """Of a forward pass."""
    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the device; from pinned memory the copy overlaps with what is computed."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(
            self.device.type, dtype=_DTYPES[self.precision], enabled=self.precision != "fp32"
        )

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other; all must have the same shape."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)


@contextlib.contextmanager
def compute_context(precision: Precision = "fp32") -> Iterator[Compute]:
    """This process's share of the computing: its GPU if there is one, its rank if torchrun started it.

    A process group that this starts (NCCL with GPUs, gloo without) ends with the context.
    """
    cuda = torch.cuda.is_available()
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if started:
        dist.init_process_group("nccl" if cuda else "gloo")
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    try:
        yield Compute(device=device, precision=precision, rank=ranks[0], world_size=ranks[1])
        if started:
            # Gloo's threads need the GIL to let go of the last tensors, and whoever drops the group's last
            # reference joins them with the GIL held: for ever, if it comes first. Waiting gives them the GIL.
            dist.barrier()
    finally:
        if started:
            dist.destroy_process_group()


class FiniteCheck:
    """Finds the first step whose numbers are not finite, without waiting for the device at every step.

    Args:
        selection: What the steps' ``index`` counts in.
        compute: This process's part; `check` is for all processes together.
        what: The work, for the message.
    """

    EVERY_STEPS = 64
    """Steps after which it is worth a wait to know."""

    _NONE = 2**63 - 1
    _NOBODY = 2**32 - 1

    def __init__(self, selection: Selection, compute: Compute, what: str) -> None:
        self._selection, self._compute, self._what = selection, compute, what
        # The first step and the patch in one number, so that the smallest of all is the first.
        self._first = torch.tensor(self._NONE, device=compute.device)

    def see(self, step: int, index: Tensor, outputs: Tensor, loss: Tensor | None = None) -> None:
        """Look at a step.

        Args:
            step: Its number, in [0, 2**31).
            index: int64 (batch,), positions in the selection; -1 is padding.
            outputs: Floating (batch, ...).
            loss: Floating scalar.
        """
        bad = ~outputs.detach().isfinite().flatten(1).all(1) & (index >= 0)
        found = torch.where(bad, step << 32 | index, self._NONE).amin()
        if loss is not None:
            found = torch.where(loss.detach().isfinite(), found, found.clamp(max=step << 32 | self._NOBODY))
        self._first = torch.minimum(self._first, found)

    def check(self) -> None:
        """Wait for the device and stop if a step was not finite; every process must call it.

        Raises:
            NotFiniteError: Names the step, and the patch if it was an output.
        """
        if self._compute.world_size > 1:
            dist.all_reduce(self._first, dist.ReduceOp.MIN)
        first = int(self._first)
        if first == self._NONE:
            return
        step, index = first >> 32, first & self._NOBODY
        where = "its loss" if index == self._NOBODY else f"the output for {self._selection.patch_ids[index]}"
        raise NotFiniteError(
            f"{self._what} stops at step {step:,}: {where} is infinite or not a number; look at the patch and the "
            "weights, or take precision fp32 (in training also a lower lr, or clip_norm)"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model made of a selection."""

    metrics: dict[str, Any]
    """As `metrics.label_metrics` or `metrics.map_metrics`, with ``by``: grouping -> group -> the same.

    For maps also ``left_out``: what was not measured -> how much of it.
    """
    probabilities: Tensor | None = None
    """float32 (patch, 19) in the selection's order, for labels."""
    labels: Tensor | None = None
    """float32 (patch, 19), for labels."""
    confusion: Tensor | None = None
    """int64 (19, 19), true and predicted class of pixels, for maps."""


def model_input(spec: ModelSpec) -> ModelInput:
    """The module that turns a raw batch into a model's input."""
    return ModelInput(bands=spec.bands, size=IMAGE_PX)


def modalities_for(spec: ModelSpec) -> tuple[str, ...]:
    """What must be streamed for a model: its inputs, and the map if that is what it predicts."""
    return (*spec.modalities, "map") if spec.task == "map" else spec.modalities


class MapTargets(nn.Module):
    """CLC codes -> class indices, `IGNORED` where a pixel has none of the 19 classes; on the device."""

    IGNORED = 255

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.from_numpy(class_of_code().astype(np.int64)), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Class indices, int64 (batch, y, x).

        Args:
            codes: uint16 (batch, y, x).
        """
        found: Tensor = self.table[codes.long()]  # type: ignore[index]
        return found


def evaluate(
    model: nn.Module,
    spec: ModelSpec,
    selection: Selection,
    compute: Compute,
    *,
    batch_size: int = 256,
    by: Sequence[str] = (),
    **options: Unpack[ReadOptions],
) -> Evaluation:
    """Predict every patch of a selection once and measure.

    All processes of the group must call it, and get the same answer.

    Args:
        model: On the device of `compute`.
        spec: Its facts.
        selection: What to predict.
        compute: This process's part.
        batch_size: Samples a step over all processes.
        by: Of ``country``, ``season``, ``split``: measure each group of patches too.
        **options: For `StreamLoader`, such as ``cache_dir``.

    Raises:
        NotFoundError: If the selection is empty.
        NotFiniteError: If an output is infinite or not a number; it names the step, from 1, and the patch.
    """
    selection.require_patches("nothing to evaluate")
    loader = StreamLoader(
        selection,
        modalities=modalities_for(spec),
        batch_size=max(1, math.ceil(batch_size / compute.world_size)),
        rank=compute.rank,
        world_size=compute.world_size,
        lanes=math.lcm(8, compute.world_size),
        **options,
    )
    inputs = model_input(spec).to(compute.device)
    groups = {grouping: group_numbers(selection, grouping) for grouping in by}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            measure = _evaluate_maps if spec.task == "map" else _evaluate_labels
            return measure(
                model, inputs, loader, compute, groups, FiniteCheck(selection, compute, "evaluation")
            )
    finally:
        model.train(was_training)


def _evaluate_labels(
    model: nn.Module,
    inputs: nn.Module,
    loader: StreamLoader,
    compute: Compute,
    groups: Any,
    finite: FiniteCheck,
) -> Evaluation:
    parts = []
    for step, raw in enumerate(loader, 1):
        batch = compute.to_device(raw)
        with compute.autocast():
            logits = model(inputs(batch))
        finite.see(step, batch["index"], logits)
        if step % finite.EVERY_STEPS == 0:
            finite.check()
        parts.append((batch["index"].clone(), logits.float().sigmoid(), batch["labels"].clone()))
    finite.check()
    index, probabilities, labels = (
        compute.gather(torch.cat(column)).cpu() for column in zip(*parts, strict=True)
    )
    # Padding has index -1, and the rest comes in the order of the stream; sorted, both are gone.
    order = index.argsort()[int((index < 0).sum()) :]
    assert len(order) == loader.num_samples
    probabilities, labels = probabilities[order], labels[order]
    metrics = label_metrics(probabilities, labels)
    metrics["by"] = {
        grouping: {
            name: label_metrics(probabilities[numbers == n], labels[numbers == n])
            for n, name in enumerate(names)
        }
        for grouping, (names, numbers) in groups.items()
    }
    return Evaluation(metrics=metrics, probabilities=probabilities, labels=labels)


def _evaluate_maps(
    model: nn.Module,
    inputs: nn.Module,
    loader: StreamLoader,
    compute: Compute,
    groups: Any,
    finite: FiniteCheck,
) -> Evaluation:
    targets = MapTargets().to(compute.device)
    # Every grouping is counted in the same pass; the first one has a single group.
    groups = {"": (["all"], np.zeros(loader.num_samples, np.int64)), **groups}
    counts = {
        grouping: torch.zeros(len(names), NUM_CLASSES, NUM_CLASSES, dtype=torch.int64, device=compute.device)
        for grouping, (names, _) in groups.items()
    }
    for step, raw in enumerate(loader, 1):
        batch = compute.to_device(raw)
        with compute.autocast():
            logits = model(inputs(batch))
        finite.see(step, batch["index"], logits)
        if step % finite.EVERY_STEPS == 0:
            finite.check()
        predicted = logits.argmax(1)  # of a row that is not finite it is a class like another
        valid = batch["valid"]
        index = raw["index"][raw["valid"]].numpy()
        for grouping, (names, numbers) in groups.items():
            group = torch.from_numpy(numbers[index]).to(compute.device)
            counts[grouping] += confusion_of(
                predicted[valid], targets(batch["map"][valid]), group, len(names)
            )
    finite.check()
    if compute.world_size > 1:
        for count in counts.values():
            dist.all_reduce(count)
    total = counts.pop("")[0].cpu()
    metrics = {"num_patches": loader.num_samples, **map_metrics(total)}
    pixels = loader.num_samples * IMAGE_PX**2
    metrics["left_out"] = {"pixels without one of the 19 classes": pixels - metrics["num_pixels"]}
    metrics["by"] = {
        grouping: {name: map_metrics(count[n].cpu()) for n, name in enumerate(groups[grouping][0])}
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
) -> tuple[nn.Module, ModelSpec, Evaluation]:
    """Load a model (see `models.load_pretrained`) and evaluate it on a selection."""
    with compute_context(precision) as compute:
        model, spec = load_pretrained(checkpoint)
        model.to(compute.device)
        return model, spec, evaluate(model, spec, selection, compute, batch_size=batch_size, by=by)
