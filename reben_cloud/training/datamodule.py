"""The dataset for PyTorch Lightning: three subsets as loaders, resumable in the middle of an epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from reben_cloud.errors import missing_extra
from reben_cloud.opening import open as open_dataset
from reben_cloud.root.selection import Selection
from reben_cloud.torch import Batch, OrderOptions, StreamLoader
from reben_cloud.training.config import Subset

try:
    from reben_cloud.training.torchvision_ops import load_torchvision

    load_torchvision()
    from lightning import LightningDataModule
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("lightning", "train") from error


class RebenDataModule(LightningDataModule):
    """Raw batches of a root's subsets; use `ModelInput` in the model, on the device.

    Ranks come from Lightning's strategy, and it needs no sampler: ``Trainer(use_distributed_sampler=...)``
    has nothing to replace. A checkpoint holds the position in the epoch.

    Args:
        url: Path or URL of a root.
        modalities: Of ``s2``, ``s1``, ``map``; all that the root has by default.
        batch_size: Samples a step of each process.
        train: What to learn from.
        validation: What to validate with.
        test: What to test on.
        predict: What ``Trainer.predict`` is for; every patch of the root by default.
        seed: Seed of the order.
        storage_options: Credentials and endpoint of the store.
        **options: For `StreamLoader`, such as ``cache_dir`` and ``lanes``.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        modalities: tuple[str, ...] | None = None,
        batch_size: int = 256,
        train: Subset | None = None,
        validation: Subset | None = None,
        test: Subset | None = None,
        predict: Subset | None = None,
        seed: int = 0,
        storage_options: Mapping[str, Any] | None = None,
        **options: Unpack[OrderOptions],
    ) -> None:
        super().__init__()
        self._where = (url, storage_options)
        self._subsets = {
            "train": Subset(split="train") if train is None else train,
            "validation": Subset(split="validation") if validation is None else validation,
            "test": Subset(split="test") if test is None else test,
            "predict": Subset(recommended=None) if predict is None else predict,
        }
        self._options: dict[str, Any] = {
            "modalities": modalities,
            "batch_size": batch_size,
            "seed": seed,
            **options,
        }
        self._train: StreamLoader | None = None
        self._state: dict[str, Any] = {}

    def train_dataloader(self) -> _Epochs:
        """Shuffled batches, all of the same size."""
        self._train = self._loader("train", drop_last=True)
        return _Epochs(self, self._train)

    def val_dataloader(self) -> StreamLoader:
        """Every validation patch once; on several processes, mind ``batch["valid"]``."""
        return self._loader("validation")

    def test_dataloader(self) -> StreamLoader:
        """Every test patch once; on several processes, mind ``batch["valid"]``."""
        return self._loader("test")

    def predict_dataloader(self) -> StreamLoader:
        """Every patch to predict once; on several processes, mind ``batch["valid"]``.

        ``batch["index"]`` counts in `predict_ids`: patches come in the order that is read fastest.
        """
        return self._loader("predict")

    def predict_ids(self) -> list[str]:
        """Ids of the patches that ``Trainer.predict`` is for."""
        return self._selection("predict").patch_ids

    def _selection(self, name: str) -> Selection:
        url, storage_options = self._where
        return open_dataset(url, storage_options).select(self._subsets[name])

    def _loader(self, name: str, *, drop_last: bool = False) -> StreamLoader:
        return StreamLoader(self._selection(name), **self._options, drop_last=drop_last)

    def state_dict(self) -> dict[str, Any]:
        """Where the training loader is."""
        return dict(self._train.state_dict()) if self._train is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, in the epoch that it was saved in."""
        self._state = state_dict


class _Epochs:
    """The training loader, told which epoch it is.

    Lightning stops asking when it has had as many batches as there are, so that a loader does not see
    its epoch end; and what has a ``state_dict`` Lightning would save and restore a second time.
    """

    def __init__(self, module: RebenDataModule, loader: StreamLoader) -> None:
        self._module, self._loader = module, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        trainer = self._module.trainer
        assert trainer is not None, "the loader of a module belongs to the trainer that asked for it"
        epoch = trainer.current_epoch
        self._loader.set_epoch(epoch)
        if self._module._state.get("epoch") == epoch:
            self._loader.load_state_dict(self._module._state)
        for batch in self._loader:
            self._module._state = {}
            yield batch
