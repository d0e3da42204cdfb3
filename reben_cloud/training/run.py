"""A run's folder: whose it is, where it is, its best weights.

It holds ``config.json`` (resolved), ``data.json`` (which dataset and layers), ``last.pt`` (to go on), ``best/`` (the
model, by its validation score), the log (`reben_cloud.training.log`), and at the end ``report/``.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reben_cloud.errors import ConflictError, NotFiniteError, StorageError, missing_extra
from reben_cloud.files.whole import Locked, locked, write_whole
from reben_cloud.root.dataset import Dataset
from reben_cloud.stream import Delivered
from reben_cloud.torch import StreamLoader
from reben_cloud.training.checkpoint import load_checkpoint, save_checkpoint
from reben_cloud.training.checksums import read_json
from reben_cloud.training.compute import Compute
from reben_cloud.training.config import TrainConfig, config_from
from reben_cloud.training.learner import Learner
from reben_cloud.training.models import save_model

try:
    import torch
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

logger = logging.getLogger(__name__)

BEST = "best"
"""Folder of the model with the best weights, in that of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run is; saved with the weights."""

    epoch: int = 0
    """Number of the epoch that runs or comes next."""
    step: int = 0
    """Steps done."""
    best_score: float = -1.0
    """Best validation score so far."""
    best_epoch: int = -1
    """Epoch of that score; -1 before the first."""
    delivered: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    """Epoch -> samples that all processes delivered, and their digest (`stream.Delivered`)."""


def refuse_other_run(folder: Path, config: TrainConfig, dataset: Dataset) -> None:
    """See that a folder holds no other run; nothing is written.

    Raises:
        ConflictError: If it holds a run of another configuration, dataset or layer, or of one that cannot be read.
    """
    nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        raise ConflictError(f"{folder}: a run has a folder, and {nearest} is a file; choose another place")
    path = folder / _CONFIG
    if path.is_file():
        try:
            there = dataclasses.asdict(config_from(read_json(path), schema=dataset.schema))
        except ValueError as error:
            raise ConflictError(
                f"{path}: not a configuration of this release, or damaged: {error}; put a copy of it back, or "
                "choose another folder"
            ) from error
        wanted = dataclasses.asdict(config)
        if there != wanted:
            name, one, other = _difference(there, wanted)
            raise ConflictError(f"{folder} holds a run with {name}={one!r}, not {other!r}; {_WAY_OUT}")
    _layers_with(folder, dataset)


def claim(folder: Path, config: TrainConfig, dataset: Dataset) -> None:
    """Make a run's folder, unless it is there already. Raises as `refuse_other_run`."""
    refuse_other_run(folder, config, dataset)
    data = {"dataset": dataset.manifest.fingerprint, "layers": _layers_with(folder, dataset)}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _DATA, (json.dumps(data, indent=1) + "\n").encode())
    if not (folder / _CONFIG).is_file():
        write_whole(folder / _CONFIG, (config.to_json() + "\n").encode())


@contextmanager
def held(folder: Path, compute: Compute) -> Iterator[None]:
    """Keep other processes from going on with a run while this one does, where the disk of its folder has locks.

    All processes of the group must call it.

    Raises:
        ConflictError: If another process is at it.
    """
    with ExitStack() as stack:
        compute.once(partial(_lock, stack, folder))
        yield


def _lock(stack: ExitStack, folder: Path) -> None:
    try:
        stack.enter_context(locked(folder / _LOCK))
    except Locked as error:
        raise ConflictError(
            f"{folder}: another process trains there; wait until it has ended, or choose another folder"
        ) from error
    except StorageError as error:  # no locks on this system
        logger.info("%s", error)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.info("%s has no locks: nothing keeps two processes from one run there", folder)


_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_CONFIG, _DATA, _LAST, _LOCK = "config.json", "data.json", "last.pt", ".run.lock"
_WAY_OUT = "choose another folder, or delete this one"


def _layers_with(folder: Path, dataset: Dataset) -> dict[str, str]:
    """Layer -> digest, of those that a run has had and of these, which must not be others of the same name.

    A layer that comes or goes changes nothing that the configuration does not name; another one of the same name may.
    """
    fingerprint = dataset.manifest.fingerprint
    layers = {name: layer.manifest.digest for name, layer in dataset.layers.items()}
    path = folder / _DATA
    if not path.is_file():
        return layers
    document = read_json(path)
    try:
        known, there = document["dataset"], dict(document["layers"])
    except (KeyError, ValueError, TypeError) as error:
        raise ConflictError(f"{path} is damaged ({error!r}); put a copy of it back, or {_WAY_OUT}") from error
    if known != fingerprint:
        raise ConflictError(
            f"{folder} holds a run on the dataset {known}, and {dataset.url} is {fingerprint}; {_WAY_OUT}"
        )
    for name, digest in layers.items():
        if there.get(name, digest) != digest:
            raise ConflictError(
                f"{folder} holds a run with another layer {name} than {dataset.layers[name].url}, which has other "
                f"data; go on with that one, {_WAY_OUT}"
            )
    return {**there, **layers}


def _difference(there: Mapping[str, object], wanted: Mapping[str, object]) -> tuple[str, object, object]:
    """The first key whose values differ, as a recipe writes it, and both values; None where it is not given."""
    keys = (key for key in {**wanted, **there} if there.get(key) != wanted.get(key))
    name = next(keys)
    one, other = there.get(name), wanted.get(name)
    if isinstance(one, dict) and isinstance(other, dict):
        inner, one, other = _difference(one, other)
        name = f"{name}.{inner}"
    return name, one, other


def is_begun(folder: Path) -> bool:
    """Whether a run's folder has a state to go on from."""
    return (folder / _LAST).is_file()


class Run:
    """What a run's folder keeps, read when it is there already.

    Args:
        folder: Of the run, claimed.
        compute: Where it runs; the first process writes.
        learner: What learns; it goes on from ``last.pt``.
        loader: Its batches; likewise.

    Raises:
        ChecksumError: If ``last.pt`` is not what was written.
    """

    def __init__(self, folder: Path, compute: Compute, learner: Learner, loader: StreamLoader) -> None:
        self.progress = Progress()
        """Where the run is."""
        self._compute, self._learner, self._loader = compute, learner, loader
        self.best = folder / BEST
        """Folder of the best weights so far."""
        self._last = folder / _LAST
        if is_begun(folder):
            state = load_checkpoint(self._last, compute.device)
            learner.load_state_dict(state)
            loader.load_state_dict(state["loader"])
            self.progress = Progress(**state["progress"])
            logger.info("going on at step %d of epoch %d", self.progress.step, self.progress.epoch)

    def is_finished(self, config: TrainConfig) -> bool:
        """Whether all epochs are done, or validation has not got better for long enough."""
        done = self.progress.epoch
        return done >= config.epochs or done - 1 - self.progress.best_epoch >= config.patience

    def end_step(self) -> int:
        """Count a step; returns how many are done."""
        self.progress = dataclasses.replace(self.progress, step=self.progress.step + 1)
        return self.progress.step

    def save(self) -> None:
        """Write ``last.pt``, all of it or nothing; weights that are not finite are never written.

        Raises:
            NotFiniteError: If weights are infinite or not a number.
        """
        name = self._learner.first_not_finite()
        if name is not None:
            raise NotFiniteError(
                f"training stops at step {self.progress.step:,}: the weights {name} are infinite or not a number; "
                f"{self._last} is from before; take a lower lr, clip_norm or precision fp32"
            )
        state = (
            self._loader.state_dict()
            | self._delivered(Delivered.of_state(self._loader.state_dict())).to_state()
        )
        total = self._delivered(self._loader.stats().delivered)
        if total.num_samples:
            said = {**self.progress.delivered, total.epoch: (total.num_samples, total.digest)}
            self.progress = dataclasses.replace(self.progress, delivered=said)
        if self._compute.rank == 0:
            state = self._learner.state_dict() | {"loader": state}
            save_checkpoint(self._last, {**state, "progress": dataclasses.asdict(self.progress)})

    def _delivered(self, mine: Delivered) -> Delivered:
        """What all processes delivered, given what this one did."""
        state = mine.to_state()
        # As signed numbers of 64 bits, sums wrap as they should.
        total = torch.tensor([state["delivered"], state["digest"]], device=self._compute.device)
        self._compute.add_up(total)
        num_samples, value = total.tolist()
        return Delivered.of_state({"epoch": mine.epoch, "delivered": num_samples, "digest": value})

    def end_epoch(self, score: float) -> None:
        """Keep the weights if they are the best so far, then the state at the start of the next epoch."""
        progress = self.progress
        if score > progress.best_score:
            progress = dataclasses.replace(progress, best_score=score, best_epoch=progress.epoch)
            if self._compute.rank == 0:
                # Killed in here, the run goes on from an older `last.pt` and writes these files again.
                save_model(self.best, self._learner.measured, self._learner.spec)
        self.progress = dataclasses.replace(progress, epoch=progress.epoch + 1)
        self._loader.set_epoch(self.progress.epoch)
        self.save()
