"""The training loop: a recipe, a dataset, a folder; killed and started again, it goes on bit for bit.

A visible loop and no framework: what decides a weight stands here in order, and exact resumption is
four lines of state because nothing is drawn from a running random stream. The order is the loader's
arithmetic; dropout is seeded anew by the number of the step, and augmentation by the patch and the
epoch, so it is also the same on any number of processes. `datamodule` has the same data for Lightning.

A run's folder holds ``config.json`` (resolved), ``last.pt`` (to go on), ``best/`` (the model, by its
validation score), ``log.csv`` or TensorBoard events, and at the end ``report/`` on the test subset.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.bigearthnet.labels import encode_many
from reben_cloud.errors import ConflictError, NotFiniteError, missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.selection import Selection
from reben_cloud.torch import Batch, ReadOptions, StreamLoader
from reben_cloud.training.config import Subset, TrainConfig, band_names, config_from
from reben_cloud.training.evaluate import (
    Compute,
    FiniteCheck,
    MapTargets,
    compute_context,
    evaluate,
    modalities_for,
    model_input,
)
from reben_cloud.training.metrics import GROUPINGS, early_stopping_score
from reben_cloud.training.modelcard import write_card
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained, save_model
from reben_cloud.training.report import write_report

try:
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
    from torch.nn import functional
    from torch.nn.parallel import DistributedDataParallel
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

logger = logging.getLogger(__name__)

LOWEST_RATE = 0.1
"""Where warm-up begins and the cosine ends, as a share of the highest rate (the published recipe)."""

MOST_WEIGHT = 100.0
"""Largest weight of a rare class's positives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInfo:
    """How a run is getting on."""

    step: int
    """Steps done."""
    num_steps: int
    """Steps of all epochs, if nothing stops the run early."""
    epoch: int
    """Number of the epoch, from 0."""
    loss: float
    """Of the step, mean over the processes."""
    lr: float
    """Learning rate of the step."""
    samples_per_s: float
    """Over all processes, since the last line."""
    wait_share: float
    """Share of that time that this process waited for data, in [0, 1]."""


@dataclass(kw_only=True, slots=True)
class _Progress:
    """Where a run is; saved with the weights."""

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    best_epoch: int = -1


def train(
    config: TrainConfig,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    on_step: Callable[[StepInfo], None] | None = None,
    **options: Unpack[ReadOptions],
) -> dict[str, Any]:
    """Train a model, or go on where this folder's run was interrupted.

    Start it with ``torchrun`` to use several processes; batches do not depend on how many.

    Args:
        config: What to do.
        dataset: An open dataset.
        folder: Of the run.
        on_step: Called on the first process every `TrainConfig.log_steps` steps.
        **options: For `StreamLoader`, such as ``cache_dir``; they change the speed and nothing else.

    Returns:
        Metrics of the best weights on the test subset, and where that is empty on validation; in ``left_out``
        what was not learned from or measured, and how much of it.

    Raises:
        ConflictError: If the folder holds a run of another configuration.
        NotFoundError: If no patch is left to train on or to validate with.
        NotFiniteError: If an output, the loss or a weight is infinite or not a number; ``last.pt`` is from before.
        ValueError: If the batch size or the lanes cannot be split over the processes.
    """
    folder = local_path(folder, "the folder of a run")
    spec = ModelSpec(
        architecture=config.architecture,
        bands=band_names(config.bands),
        task=config.task,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
    )
    with compute_context(config.precision) as compute:
        _claim(folder, config)
        torch.set_float32_matmul_precision(config.matmul_precision)
        torch.manual_seed(config.seed)
        model = create_model(spec).to(compute.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        forward = _parallel(model, config, compute)
        learner = Learner(config, spec, positive_weights(config, dataset)).to(compute.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        scaler = torch.amp.GradScaler(compute.device.type, enabled=config.precision == "fp16")
        train_on = _subset(dataset, config.train, "train")
        finite = FiniteCheck(train_on, compute, "training")
        loader = StreamLoader(
            train_on,
            modalities=modalities_for(spec),
            batch_size=_share(config.batch_size, compute.world_size),
            seed=config.seed,
            drop_last=True,
            rank=compute.rank,
            world_size=compute.world_size,
            lanes=config.lanes,
            **options,
        )
        validation = _subset(dataset, config.validation, "validation")
        run = _Run(folder, compute, model, optimizer, scaler, loader)
        num_steps = len(loader) * config.epochs
        with _Log(folder, config, compute, run.progress.step) as log:
            while not _finished(run.progress, config):
                model.train()
                # Stopped after its last batch, an epoch has only its evaluation left.
                for raw in loader if loader.epoch == run.progress.epoch else ():
                    torch.manual_seed(_step_seed(config.seed, run.progress.step, compute.rank))
                    batch = compute.to_device(raw)
                    lr = learning_rate(run.progress.step, config.lr, config.warmup_steps, num_steps)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    image, target = learner.prepare(batch, run.progress.epoch)
                    with compute.autocast():
                        logits = forward(image)
                    loss = learner.loss(logits.float(), target)
                    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                    if config.clip_norm:
                        scaler.unscale_(optimizer)
                        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    run.progress.step += 1
                    finite.see(run.progress.step, batch["index"], logits, loss)
                    if run.progress.step % config.log_steps == 0:
                        finite.check()
                        info = log.step(run.progress, num_steps, loss.detach(), lr, loader)
                        if on_step is not None and compute.rank == 0:
                            on_step(info)
                    if run.progress.step % config.checkpoint_steps == 0:
                        finite.check()
                        run.save()
                finite.check()
                _same_buffers(model, compute)
                scores = evaluate(model, spec, validation, compute, batch_size=config.batch_size, **options)
                run.end_epoch(early_stopping_score(scores.metrics), spec)
                log.epoch(run.progress, scores.metrics)
        dropped = loader.num_samples - len(loader) * config.batch_size
        return _report(folder, config, dataset, compute, run.progress, dropped, **options)


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


class Learner(nn.Module):
    """From a raw batch on the device to a loss: input, augmentation, targets."""

    def __init__(self, config: TrainConfig, spec: ModelSpec, weights: Tensor | None) -> None:
        super().__init__()
        self._config = config
        self._task = spec.task
        self._input = model_input(spec)
        self._maps = MapTargets()
        self.register_buffer("_weights", weights)
        sensors = [BANDS[band].sensor for band in spec.bands]
        for sensor in ("s1", "s2"):
            self.register_buffer(f"_{sensor}", torch.tensor([s == sensor for s in sensors]).view(-1, 1, 1))

    def prepare(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented input and its target.

        Returns:
            float32 (batch, band, y, x), and float32 (batch, 19) for labels or int64 (batch, y, x) for maps.
        """
        config = self._config
        image: Tensor = self._input(batch)
        target: Tensor = self._maps(batch["map"]) if self._task == "map" else batch["labels"]

        def chance(stream: int) -> Tensor:
            return keyed_random(batch["index"], config.seed, epoch, stream)

        if config.flips:
            for stream, axis in enumerate((-1, -2)):
                chosen = (chance(stream) < 0.5).view(-1, 1, 1)
                image = torch.where(chosen.unsqueeze(-1), image.flip(axis), image)
                if self._task == "map":
                    target = torch.where(chosen, target.flip(axis), target)
        if config.modality_dropout:
            draw = chance(2)
            for sensor, lowest in (("s1", 0.0), ("s2", config.modality_dropout / 2)):
                lost = (draw >= lowest) & (draw < lowest + config.modality_dropout / 2)
                image = image.masked_fill(lost.view(-1, 1, 1, 1) & self.get_buffer(f"_{sensor}"), 0.0)
        if config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, target

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar."""
        smoothing = self._config.label_smoothing
        if self._task == "map":
            # The sum over the pixels that count, by their number: cross_entropy's own mean is NaN if none does.
            counted = (target != MapTargets.IGNORED).sum().clamp(min=1)
            total = functional.cross_entropy(
                logits, target, ignore_index=MapTargets.IGNORED, label_smoothing=smoothing, reduction="sum"
            )
            return total / counted
        smoothed = target * (1 - smoothing) + smoothing / 2
        weights: Tensor | None = self._weights  # type: ignore[assignment]
        return functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def keyed_random(index: Tensor, *key: int) -> Tensor:
    """Uniform numbers that depend on (index, key) and on nothing else.

    Args:
        index: int64 (n,), not negative.
        *key: Integers, such as seed and epoch.

    Returns:
        float32 (n,) in [0, 1), on the device of `index`.
    """
    # A multiply-xorshift hash of 32-bit words, multipliers below 2**31: no product leaves int64.
    mixed = index & 0xFFFFFFFF
    for word in (0, *key):
        mixed = mixed ^ ((word * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF)
        mixed = ((mixed ^ (mixed >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        mixed = ((mixed ^ (mixed >> 15)) * 0x68BC21EB) & 0xFFFFFFFF
        mixed = mixed ^ (mixed >> 16)
    return (mixed >> 8).float() / 2**24


def positive_weights(config: TrainConfig, dataset: Dataset) -> Tensor | None:
    """Negatives over positives of each class in the train subset, float32 (19,), if the recipe asks for it."""
    if not config.positive_weights:
        return None
    hot = encode_many(_subset(dataset, config.train, "train").column("reben:labels"))
    positives = hot.sum(0, dtype=np.int64)
    weights = (len(hot) - positives) / np.maximum(positives, 1)
    return torch.from_numpy(np.minimum(weights, MOST_WEIGHT).astype(np.float32))


def _claim(folder: Path, config: TrainConfig) -> None:
    """Make the run's folder, or see that it is of the same configuration."""
    path = folder / "config.json"
    if path.is_file():
        there = dataclasses.asdict(config_from(json.loads(path.read_text())))
        wanted = dataclasses.asdict(config)
        different = [name for name in wanted if there[name] != wanted[name]]
        if different:
            name = different[0]
            raise ConflictError(
                f"{folder} holds a run with {name}={there[name]!r}, not {wanted[name]!r}; "
                "choose another folder, or delete this one"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, (config.to_json() + "\n").encode())


def _parallel(model: nn.Module, config: TrainConfig, compute: Compute) -> Any:
    """What the forward pass calls: the model, compiled, with its gradients averaged over the processes."""
    forward: Any = model
    if compute.world_size > 1:
        cuda = compute.device.type == "cuda"
        if config.sync_batchnorm and cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        forward = DistributedDataParallel(model, device_ids=[compute.device.index] if cuda else None)
    return torch.compile(forward) if config.compile else forward


def _subset(dataset: Dataset, subset: Subset, name: str) -> Selection:
    selection = dataset.select(subset)
    selection.require_patches(name)
    return selection


def _share(batch_size: int, world_size: int) -> int:
    if batch_size % world_size:
        raise ValueError(
            f"batch_size is of all processes: {batch_size} cannot be split over {world_size} of them"
        )
    return batch_size // world_size


def _step_seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _finished(progress: _Progress, config: TrainConfig) -> bool:
    return progress.epoch >= config.epochs or progress.epoch - 1 - progress.best_epoch >= config.patience


def _same_buffers(model: nn.Module, compute: Compute) -> None:
    """Give every process the first one's running statistics, which each kept of its own samples."""
    if compute.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


class _Run:
    """What a run's folder keeps of it, read when it is there already."""

    def __init__(
        self,
        folder: Path,
        compute: Compute,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        loader: StreamLoader,
    ) -> None:
        self.progress = _Progress()
        self._folder, self._compute = folder, compute
        self._model, self._loader = model, loader
        self._parts: dict[str, Any] = {
            "model": model,
            "optimizer": optimizer,
            "scaler": scaler,
            "loader": loader,
        }
        path = folder / "last.pt"
        if path.is_file():
            state = torch.load(path, map_location=compute.device, weights_only=True)
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            self.progress = _Progress(**state["progress"])
            logger.info("going on at step %d of epoch %d", self.progress.step, self.progress.epoch)

    def save(self) -> None:
        """Write ``last.pt``, all of it or nothing; weights that are not finite are never written."""
        for name, weights in self._model.named_parameters():  # the same on every process
            if not weights.isfinite().all():
                raise NotFiniteError(
                    f"training stops at step {self.progress.step:,}: the weights {name} are infinite or not a number; "
                    f"{self._folder / 'last.pt'} is from before; take a lower lr, clip_norm or precision fp32"
                )
        if self._compute.rank == 0:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            path = self._folder / "last.pt"
            torch.save({**state, "progress": dataclasses.asdict(self.progress)}, path.with_suffix(".new"))
            os.replace(path.with_suffix(".new"), path)

    def end_epoch(self, score: float, spec: ModelSpec) -> None:
        """Keep the weights if they are the best so far, then the state at the start of the next epoch."""
        if score > self.progress.best_score:
            self.progress.best_score, self.progress.best_epoch = score, self.progress.epoch
            if self._compute.rank == 0:
                # Killed in here, the run goes on from an older `last.pt` and writes these files again.
                save_model(self._folder / "best", self._model, spec)
        self.progress.epoch += 1
        self._loader.set_epoch(self.progress.epoch)
        self.save()


class _Log:
    """The log of a run, on its first process; going on, what was written after the checkpoint is cut off."""

    FIELDS = ("step", "epoch", "loss", "lr", "samples_per_s", "wait_share", "validation_score")

    def __init__(self, folder: Path, config: TrainConfig, compute: Compute, step: int) -> None:
        self._compute, self._config = compute, config
        self._last = (step, 0.0, 0.0)
        self._file = self._board = None
        if compute.rank == 0 and config.logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=step + 1)
        elif compute.rank == 0:
            path = folder / "log.csv"
            kept = []
            if path.is_file():
                with path.open(newline="") as file:
                    kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
            self._file = path.open("w", newline="")
            self._writer = csv.DictWriter(self._file, self.FIELDS)
            self._writer.writeheader()
            self._writer.writerows(kept)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def step(
        self, progress: _Progress, num_steps: int, loss: Tensor, lr: float, loader: StreamLoader
    ) -> StepInfo:
        """Log a step; every process must call it."""
        if self._compute.world_size > 1:
            dist.all_reduce(loss)
            loss /= self._compute.world_size
        value = loss.item()  # waits for the device, so the clock below is the step's too
        stats = loader.stats()
        steps, elapsed = progress.step - self._last[0], stats.elapsed_s - self._last[1]
        info = StepInfo(
            step=progress.step,
            num_steps=num_steps,
            epoch=progress.epoch,
            loss=value,
            lr=lr,
            samples_per_s=steps * self._config.batch_size / elapsed if elapsed else 0.0,
            wait_share=(stats.wait_s - self._last[2]) / elapsed if elapsed else 0.0,
        )
        self._last = (progress.step, stats.elapsed_s, stats.wait_s)
        values = dataclasses.asdict(info)
        self._write({name: values[name] for name in self.FIELDS if name in values})
        return info

    def epoch(self, progress: _Progress, metrics: Any) -> None:
        """Log the validation score of the epoch that has just ended."""
        score = early_stopping_score(metrics)
        self._write({"step": progress.step, "epoch": progress.epoch - 1, "validation_score": score})

    def _write(self, values: dict[str, Any]) -> None:
        if self._file:
            self._writer.writerow(values)
            self._file.flush()
        if self._board:
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(name, value, values["step"])


def _report(
    folder: Path,
    config: TrainConfig,
    dataset: Dataset,
    compute: Compute,
    progress: _Progress,
    dropped: int,
    **options: Unpack[ReadOptions],
) -> dict[str, Any]:
    """Measure the best weights on the test subset, once, and write the report and the model card."""
    if compute.world_size > 1:
        dist.barrier()  # the first process has written the weights
    model, spec = load_pretrained(folder / "best")
    model.to(compute.device)
    name, subset = "test", config.test
    selection = dataset.select(subset)
    if not len(selection):
        name, selection = "validation", dataset.select(config.validation)
    evaluation = evaluate(
        model, spec, selection, compute, batch_size=config.batch_size, by=GROUPINGS, **options
    )
    result = {
        "subset": name,
        "best_epoch": progress.best_epoch,
        "validation_score": progress.best_score,
        **evaluation.metrics,
        "left_out": {
            **evaluation.metrics.get("left_out", {}),
            "train patches of each epoch (other ones each time), which do not fill a batch": dropped,
        },
    }
    if compute.rank == 0:
        write_report(folder / "report", result, evaluation, spec=spec, model=model, selection=selection)
        write_card(folder / "best", spec, result, config)
    return result


def _write(path: Path, data: bytes) -> None:
    # Ranks may write the same file at the same time: each has a name of its own until it is whole.
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_bytes(data)
    os.replace(new, path)
