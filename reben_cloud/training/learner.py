"""A model in training: its weights, optimiser and schedule, one call a step.

What decides a weight stands in `Learner.step` in order. Dropout is seeded with the number of the step, so
exact resumption needs no state of a random stream.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reben_cloud.errors import missing_extra
from reben_cloud.torch import Batch
from reben_cloud.training.compute import Compute
from reben_cloud.training.config import TrainConfig
from reben_cloud.training.depth import SCALE, freeze, parameter_groups, stand_still
from reben_cloud.training.models import ModelSpec, create_model
from reben_cloud.training.objective import Objective

try:
    import torch
    from torch import Tensor, nn
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

LOWEST_RATE = 0.1
"""Where warm-up begins and the cosine ends, as a share of the highest rate (the published recipe)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What came of a step."""

    index: Tensor
    """int64 (batch,), positions of its patches in the selection."""
    logits: Tensor
    """Outputs of the model, before the step changed it."""
    loss: Tensor
    """Mean loss of this process's part of the batch, a scalar on the device."""
    lr: float
    """Learning rate."""


class Learner:
    """A freshly initialised model (`start.start_from` gives it other weights), and all that changes its weights.

    Args:
        config: Schedule, optimiser, seed.
        spec: Facts of the model.
        objective: What is minimised.
        compute: Where.
        num_steps: Steps of all epochs, for the schedule.
    """

    def __init__(
        self, config: TrainConfig, spec: ModelSpec, objective: Objective, compute: Compute, *, num_steps: int
    ) -> None:
        torch.set_float32_matmul_precision(config.matmul_precision)
        torch.manual_seed(config.seed)
        model = create_model(spec).to(compute.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec = spec
        """Facts of the model."""
        self.num_steps = num_steps
        """Steps of all epochs."""
        self.model = model
        """The model, its weights as they are now."""
        self._config, self._compute = config, compute
        if config.freeze:
            freeze(model, config.freeze)
        self._forward = _parallel(model, config, compute)
        self._objective = objective.to(compute.device)
        self._average = copy.deepcopy(model).requires_grad_(False) if config.ema else None
        self._optimizer = torch.optim.AdamW(
            parameter_groups(model, config.layer_decay), lr=config.lr, weight_decay=config.weight_decay
        )
        self._scaler = torch.amp.GradScaler(compute.device.type, enabled=config.precision == "fp16")

    def step(self, raw: Batch, *, number: int, epoch: int) -> Step:
        """Learn from a batch.

        Args:
            raw: A raw batch of the loader.
            number: Number of the step, from 0.
            epoch: Number of the epoch, from 0.
        """
        config = self._config
        torch.manual_seed(_step_seed(config.seed, number, self._compute.rank))
        batch = self._compute.to_device(raw)
        lr = learning_rate(number, config.lr, config.warmup_steps, self.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get(SCALE, 1.0)
        image, target = self._objective.prepare(batch, epoch)
        logits, loss = self._gradient(image, target)
        if config.clip_norm:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            # The first steps are forgotten soon: weights begin as those after the first one.
            _keep_average(self._average, self.model, min(config.ema, number / (number + 9)))
        return Step(index=batch["index"], logits=logits, loss=loss, lr=lr)

    def _gradient(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and loss of a batch, whose gradient is added to the weights'."""
        parts = self._config.accumulate
        counted = self._counted(target)
        if parts == 1:
            with self._compute.autocast():
                logits = self._forward(image)
            loss = self._objective.loss(logits.float(), target, counted)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            return logits, loss
        said: list[Tensor] = []
        total = torch.zeros((), device=image.device)
        for some, theirs in zip(image.chunk(parts), target.chunk(parts), strict=True):
            with self._compute.autocast():
                logits = self._forward(some)
            share = self._objective.loss(logits.float(), theirs, counted)
            if counted is None:
                share = share * (len(some) / len(image))
            self._scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            said.append(logits.detach())
            total += share.detach()
        return torch.cat(said), total

    def _counted(self, target: Tensor) -> Tensor | None:
        """Pixels of a step that have a class, per process: a pixel weighs the same whoever has it, and in any part."""
        counted = self._objective.counted(target)
        if counted is None:
            return None
        counted = counted.float()
        self._compute.add_up(counted)
        return counted / self._compute.world_size

    @property
    def measured(self) -> nn.Module:
        """The model that is measured and kept: that of the averaged weights, where there are, else `model`."""
        return self.model if self._average is None else self._average

    def start_epoch(self) -> None:
        """Put the model into training mode, but for what is frozen."""
        self.model.train()
        stand_still(self.model)

    def first_not_finite(self) -> str | None:
        """Name of the first weights that are infinite or not a number, the same on every process."""
        for name, weights in self.model.named_parameters():
            if not weights.isfinite().all():
                return name
        return None

    def share_buffers(self) -> None:
        """Give every process the first one's running statistics, which each kept of its own samples."""
        for model in {id(one): one for one in (self.model, self.measured)}.values():
            for buffer in model.buffers():
                self._compute.copy_from_first(buffer)

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on: of the model, the optimiser and the loss scaler."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])

    @property
    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self._optimizer, "scaler": self._scaler}
        return parts if self._average is None else {**parts, "average": self._average}


def _keep_average(average: nn.Module, model: nn.Module, kept: float) -> None:
    """Move averaged weights towards a model's; its buffers, such as running statistics, are taken as they are."""
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, 1 - kept)
        for kept_buffer, buffer in zip(average.buffers(), model.buffers(), strict=True):
            kept_buffer.copy_(buffer)


def learning_rate(step: int, highest: float, warmup_steps: int, num_steps: int) -> float:
    """Rate of a step: linear warm-up from a tenth, then a cosine over all steps down to a tenth.

    Args:
        step: Number of the step, from 0.
        highest: Rate at the end of the warm-up.
        warmup_steps: Length of the warm-up; at most a tenth of the run is spent on it.
        num_steps: Steps of all epochs.
    """
    warmup_steps = min(warmup_steps, num_steps // 10)
    if step < warmup_steps:
        return highest * (LOWEST_RATE + (1 - LOWEST_RATE) * step / warmup_steps)
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return highest * (LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)


def _parallel(model: nn.Module, config: TrainConfig, compute: Compute) -> Callable[[Tensor], Tensor]:
    """What the forward pass calls: the model, compiled, with its gradients averaged over the processes."""
    forward = model
    if compute.world_size > 1:
        cuda = compute.device.type == "cuda"
        if config.sync_batchnorm and cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        forward = DistributedDataParallel(model, device_ids=[compute.device.index] if cuda else None)
    compiled: Callable[[Tensor], Tensor] = torch.compile(forward) if config.compile else forward
    return compiled


def _step_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
