"""The training loop: a recipe, a dataset, a folder; killed and started again, it goes on bit for bit.

A visible loop and no framework. The order is the loader's arithmetic, a step is the learner's
(`reben_cloud.training.learner`), the folder is the run's (`reben_cloud.training.run`).
`datamodule` has the same data for Lightning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np

from reben_cloud.bigearthnet.inputs import choose_bands
from reben_cloud.errors import NotFoundError, missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Schema
from reben_cloud.torch import ReadOptions, StreamLoader
from reben_cloud.torch.map_targets import map_array_of
from reben_cloud.torch.model_input import finest_px
from reben_cloud.training.compute import Compute, compute_context
from reben_cloud.training.config import Subset, TrainConfig
from reben_cloud.training.encoders import is_entry
from reben_cloud.training.evaluate import Evaluation, evaluate, validation_loss
from reben_cloud.training.feed import modalities_for
from reben_cloud.training.finite import FiniteCheck
from reben_cloud.training.groups import GROUPINGS
from reben_cloud.training.learner import Learner
from reben_cloud.training.log import Hook, RunLog, StepInfo
from reben_cloud.training.metrics import TrainResult, early_stopping_score
from reben_cloud.training.modelcard import write_card
from reben_cloud.training.models import ModelSpec, create_model, load_pretrained
from reben_cloud.training.neighbours import remember
from reben_cloud.training.objective import Objective, positive_weights
from reben_cloud.training.report import write_curves, write_report
from reben_cloud.training.run import BEST, Run, claim, held, is_begun, refuse_other_run
from reben_cloud.training.start import read_weights, start_from
from reben_cloud.training.truth import labels_of

try:
    import torch
    from torch import nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    on_step: Callable[[StepInfo], None] | None = None,
    on_log: Hook | None = None,
    draws: int = 0,
    **options: Unpack[ReadOptions],
) -> TrainResult:
    """Train a model, or go on where this folder's run was interrupted.

    Start it with ``torchrun`` to use several processes; batches do not depend on how many.

    Args:
        config: What to do.
        dataset: An open dataset.
        folder: Of the run.
        on_step: Called on the first process every `TrainConfig.log_steps` steps.
        on_log: Called on the first process with each row of the log, for loggers of others, such as ``wandb.log``.
        draws: Draws of squares for confidence intervals of what is measured (`bootstrap.intervals`); 0: none.
        **options: For `StreamLoader`, such as ``cache_dir``; they change the speed and nothing else.

    Returns:
        Metrics of the best weights on the test subset, and where that is empty on validation; in ``left_out``
        what was not learned from or measured, and how much of it.

    Raises:
        ConflictError: If the folder holds a run of another configuration, dataset or layer, or another process trains
            there.
        NotFoundError: If no patch is left to train on or to validate with, or there are fewer than a batch.
        NotFiniteError: If an output, the loss or a weight is infinite or not a number; ``last.pt`` is from before.
        ValueError: If the batch size or the lanes cannot be split over the processes, or the dataset lacks
            what the recipe asks for.
    """
    folder = local_path(folder, "the folder of a run")
    schema = dataset.schema
    config = config.with_statistics(dataset.band_statistics, schema)
    config.check(schema)
    spec = model_spec(config, schema)
    with compute_context(config.precision) as compute:
        refuse_other_run(folder, config, dataset)
        train_on = _subset(dataset, config.train, "train")
        if compute.rank == 0:
            _tell_shared(train_on, dataset, config)
            _tell_random(config)
        _require_labels(dataset, config)
        if config.neighbours:
            return _vote(folder, config, dataset, train_on, compute, draws, **options)
        if config.balanced:
            train_on = train_on.balanced(config.balanced)
        elif len(train_on) < config.batch_size:
            raise NotFoundError(
                f"batch_size is {config.batch_size}, and there are {len(train_on):,} patches to train on: not one "
                f"step; take a smaller one, such as --set batch_size={max(1, len(train_on) // 8)}"
            )
        loader = StreamLoader(
            train_on,
            modalities=modalities_for(spec, schema),
            batch_size=compute.share_of(config.batch_size),
            seed=config.seed,
            drop_last=True,
            rank=compute.rank,
            world_size=compute.world_size,
            lanes=config.lanes,
            **options,
        )
        validation = _subset(dataset, config.validation, "validation")
        num_steps = len(loader) * config.epochs
        learned = torch.from_numpy(labels_of(train_on, config.labels)) if config.labels else None
        objective = Objective(config, spec, schema, positive_weights(config, train_on), learned)
        learner = Learner(config, spec, objective, compute, num_steps=num_steps)
        if config.weights and not is_begun(folder):
            start_from(learner.model, spec, read_weights(config.weights))
        claim(folder, config, dataset)  # only now: what is refused leaves nothing that stands in the way
        with held(folder, compute):
            run = Run(folder, compute, learner, loader)
            finite = FiniteCheck(train_on, compute, "training")
            with RunLog(folder, config, compute, begin=run.progress, num_steps=num_steps, hook=on_log) as log:
                while not run.is_finished(config):
                    _learn_epoch(
                        config, learner, loader, run, finite, log, on_step if compute.rank == 0 else None
                    )
                    scores = evaluate(
                        learner.measured,
                        spec,
                        validation,
                        compute,
                        batch_size=config.batch_size,
                        labels=config.labels,
                        **options,
                    )
                    score = early_stopping_score(scores.metrics)
                    # Before the state that says so: killed in between, the run logs it again, and not never.
                    log.epoch(run.progress, score, validation_loss(scores))
                    run.end_epoch(score)
            compute.wait()  # the first process has written the weights
            dropped = loader.num_samples - len(loader) * config.batch_size
            return _measure_best(folder, config, dataset, compute, run, dropped, draws, **options)


def model_spec(config: TrainConfig, schema: Schema) -> ModelSpec:
    """Facts of the model that a recipe makes for a schema."""
    sizes = [finest_px(schema)]
    if config.task == "map":
        target = map_array_of(schema)
        sizes += [m.samples[target].shape[-1] for m in schema.modalities if target in m.samples]
    return ModelSpec(
        architecture=config.architecture,
        bands=choose_bands(config.bands, schema=schema),
        task=config.task,
        decoder=config.decoder,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        classes=schema.classes,
        image_px=max(sizes),
        statistics=config.statistics,
    )


def _learn_epoch(
    config: TrainConfig,
    learner: Learner,
    loader: StreamLoader,
    run: Run,
    finite: FiniteCheck,
    log: RunLog,
    on_step: Callable[[StepInfo], None] | None,
) -> None:
    """The steps of an epoch, or those that are left of it."""
    learner.start_epoch()
    # Stopped after its last batch, an epoch has only its evaluation left.
    for raw in loader if loader.epoch == run.progress.epoch else ():
        done = learner.step(raw, number=run.progress.step, epoch=run.progress.epoch)
        step = run.end_step()
        finite.see(step, done.index, done.logits, done.loss)
        if step % config.log_steps == 0:
            finite.check()
            info = log.step(run.progress, done.loss.detach(), done.lr, loader)
            if on_step is not None:
                on_step(info)
        if step % config.checkpoint_steps == 0:
            finite.check()
            run.save()
    finite.check()
    learner.share_buffers()


def _subset(dataset: Dataset, subset: Subset, name: str) -> Selection:
    selection = dataset.select(subset)
    selection.require_patches(name)
    return selection


def _tell_shared(train_on: Selection, dataset: Dataset, config: TrainConfig) -> None:
    """Warn of patches that are learned from and measured on."""
    for name, subset in (("validation", config.validation), ("test", config.test)):
        shared = np.intersect1d(train_on.rows, dataset.select(subset).rows)
        if len(shared):
            logger.warning(
                "%s of the %s subset's patches are also learned from, so what is measured there says little of others; "
                "give train and %s another split or share",
                f"{len(shared):,}",
                name,
                name,
            )


def _tell_random(config: TrainConfig) -> None:
    """Warn of a recipe that is about another model's weights, and names none: it would learn from noise."""
    keys = {
        "neighbours": config.neighbours > 0,
        "freeze": bool(config.freeze),
        "layer_decay": config.layer_decay < 1,
    }
    key = next((name for name, is_given in keys.items() if is_given), None)
    # An encoder of others may bring weights of its own.
    if key is not None and not config.weights and not is_entry(config.architecture):
        logger.warning(
            "%s is for weights that were learned before, and those of %s begin at random here; name some: "
            "--set weights=FOLDER, owner/name, timm:TAG or a file",
            key,
            config.architecture,
        )


def _require_labels(dataset: Dataset, config: TrainConfig) -> None:
    """Refuse labels of layers that patches to be measured lack, which else would show once all is learned."""
    for subset, labels in ((config.validation, config.labels), (config.test, config.test_labels)):
        if labels:
            labels_of(dataset.select(subset), labels)


NOT_LEARNED = "train patches of each epoch (other ones each time), which do not fill a batch"
"""Key of what was left out in learning."""


def measure_again(
    config: TrainConfig,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    trained: str | os.PathLike[str],
    result: TrainResult,
    draws: int = 0,
    **options: Unpack[ReadOptions],
) -> TrainResult:
    """Measure the best weights of a finished run on another test subset, or by other labels, and write the report.

    Args:
        config: Of the other run: that of the finished one but for `test` and `test_labels`.
        dataset: As for `train`.
        folder: Of the other run; its model and log are in `trained`.
        trained: Folder of the finished run.
        result: What `train` returned for that.
        draws: As for `train`.
        **options: As for `train`.

    Returns:
        What `train` would have returned for `config`.

    Raises:
        ConflictError: As `train`.
        NotFoundError: If the model is gone.
    """
    folder = local_path(folder, "the folder of a run")
    config = config.with_statistics(dataset.band_statistics, dataset.schema)
    with compute_context(config.precision) as compute:
        claim(folder, config, dataset)
        model, spec = load_pretrained(local_path(trained, "the folder of a run") / BEST)
        model.to(compute.device)
        name, selection, evaluation = _test(config, dataset, compute, model, spec, draws, **options)
        again: TrainResult = {
            **evaluation.metrics,
            "subset": name,
            "best_epoch": result["best_epoch"],
            "validation_score": result["validation_score"],
            "left_out": {
                **evaluation.metrics.get("left_out", {}),
                NOT_LEARNED: result["left_out"][NOT_LEARNED],
            },
            "delivered": result["delivered"],
        }
        if compute.rank == 0:
            write_report(folder / "report", again, evaluation, spec=spec, model=model, selection=selection)
        return again


def _measure_best(
    folder: Path,
    config: TrainConfig,
    dataset: Dataset,
    compute: Compute,
    run: Run,
    dropped: int,
    draws: int,
    **options: Unpack[ReadOptions],
) -> TrainResult:
    """Measure the best weights on the test subset, once, and write the report and the model card."""
    model, spec = load_pretrained(run.best)
    model.to(compute.device)
    name, selection, evaluation = _test(config, dataset, compute, model, spec, draws, **options)
    left_out = {**evaluation.metrics.get("left_out", {}), NOT_LEARNED: dropped}
    result: TrainResult = {
        **evaluation.metrics,
        "subset": name,
        "best_epoch": run.progress.best_epoch,
        "validation_score": run.progress.best_score,
        "left_out": left_out,
        "delivered": {
            str(epoch): {"samples": samples, "digest": digest}
            for epoch, (samples, digest) in sorted(run.progress.delivered.items())
        },
    }
    if compute.rank == 0:
        write_curves(folder / "report", folder / "log.csv")
        write_report(folder / "report", result, evaluation, spec=spec, model=model, selection=selection)
        write_card(run.best, spec, result, config, schema=dataset.schema)
    return result


def _test(
    config: TrainConfig,
    dataset: Dataset,
    compute: Compute,
    model: nn.Module,
    spec: ModelSpec,
    draws: int,
    **options: Unpack[ReadOptions],
) -> tuple[str, Selection, Evaluation]:
    """Measure a finished model on the test subset, or where that is empty on validation: which, and what was found."""
    name, selection, labels = "test", dataset.select(config.test), config.test_labels
    if not len(selection):
        name, selection, labels = "validation", dataset.select(config.validation), config.labels
    found = evaluate(
        model,
        spec,
        selection,
        compute,
        batch_size=config.batch_size,
        by=GROUPINGS,
        draws=draws,
        labels=labels,
        **options,
    )
    return name, selection, found


def _vote(
    folder: Path,
    config: TrainConfig,
    dataset: Dataset,
    train_on: Selection,
    compute: Compute,
    draws: int,
    **options: Unpack[ReadOptions],
) -> TrainResult:
    """Measure what the nearest patches of training say, by the features of a model that learns nothing."""
    spec = model_spec(config, dataset.schema)
    torch.manual_seed(config.seed)
    model = create_model(spec).to(compute.device)
    if config.weights:
        start_from(model, spec, read_weights(config.weights))
    voters = remember(
        model,
        spec,
        train_on,
        labels_of(train_on, config.labels),
        compute,
        k=config.neighbours,
        batch_size=config.batch_size,
        **options,
    )
    validation = _subset(dataset, config.validation, "validation")
    scores = evaluate(
        voters, spec, validation, compute, batch_size=config.batch_size, labels=config.labels, **options
    )
    name, selection, evaluation = _test(config, dataset, compute, voters, spec, draws, **options)
    claim(folder, config, dataset)
    result: TrainResult = {
        **evaluation.metrics,
        "subset": name,
        "best_epoch": -1,
        "validation_score": early_stopping_score(scores.metrics),
        "delivered": {},  # nothing was learned from
    }
    if compute.rank == 0:
        write_report(folder / "report", result, evaluation, spec=spec, model=voters, selection=selection)
    return result
