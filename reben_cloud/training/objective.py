"""What is minimised: from a raw batch on the device to augmented input, target and loss.

Nothing here is drawn from a running random stream: augmentation depends on the patch, the seed and the
epoch alone, so it is the same on any number of processes and after any interruption.
"""

from __future__ import annotations

import numpy as np

from reben_cloud.errors import missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Schema
from reben_cloud.torch import Batch
from reben_cloud.torch.map_targets import MapTargets, map_array_of
from reben_cloud.training.config import TrainConfig
from reben_cloud.training.feed import model_input
from reben_cloud.training.models import ModelSpec
from reben_cloud.training.truth import labels_of

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

MOST_WEIGHT = 100.0
"""Largest weight of a rare class's positives."""


class Objective(nn.Module):
    """From a raw batch on the device to a loss: input, augmentation, targets.

    Args:
        config: Augmentation and loss.
        spec: Facts of the model.
        schema: What the batches hold.
        weights: Of the positives of each class, float32 (num_classes,); None weighs all alike.
        labels: What is learned of the patches of the selection, uint8 (num_patches, num_classes); None for the labels
            of the batches.
    """

    def __init__(
        self,
        config: TrainConfig,
        spec: ModelSpec,
        schema: Schema,
        weights: Tensor | None,
        labels: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._config = config
        self._input = model_input(spec, schema)
        self._maps = MapTargets(spec.classes, size=spec.image_px) if spec.task == "map" else None
        self._map_array = map_array_of(schema) if spec.task == "map" else ""
        self.register_buffer("_weights", weights)
        self.register_buffer("_labels", labels)
        of_channel = [schema.bands[band].modality for band in spec.bands]
        self._modalities = sorted(set(of_channel))
        for name in self._modalities:
            mine = torch.tensor([other == name for other in of_channel]).view(-1, 1, 1)
            self.register_buffer(f"_of_{name}", mine)

    def prepare(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented input and its target.

        Returns:
            float32 (batch, band, y, x), and float32 (batch, num_classes) for labels or int64 (batch, y, x)
            for maps.
        """
        config = self._config
        image: Tensor = self._input(batch)
        target = self._target(batch)

        def chance(stream: int) -> Tensor:
            return keyed_random(batch["index"], config.seed, epoch, stream)

        if config.flips:
            for stream, axis in enumerate((-1, -2)):
                chosen = (chance(stream) < 0.5).view(-1, 1, 1)
                image = torch.where(chosen.unsqueeze(-1), image.flip(axis), image)
                if self._maps is not None:
                    target = torch.where(chosen, target.flip(axis), target)
        if config.modality_dropout:
            image = self._lose_modality(image, chance(2))
        if config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return image, target

    def _target(self, batch: Batch) -> Tensor:
        if self._maps is not None:
            codes: Tensor = self._maps(batch[self._map_array])
            return codes
        others: Tensor | None = self._labels  # type: ignore[assignment]
        return batch["labels"] if others is None else others[batch["index"]].float()

    def _lose_modality(self, image: Tensor, draw: Tensor) -> Tensor:
        share = self._config.modality_dropout / len(self._modalities)
        for number, name in enumerate(self._modalities):
            lost = (draw >= number * share) & (draw < number * share + share)
            image = image.masked_fill(lost.view(-1, 1, 1, 1) & self.get_buffer(f"_of_{name}"), 0.0)
        return image

    def counted(self, target: Tensor) -> Tensor | None:
        """How many pixels of a target have a class, an int64 scalar; None for labels, which all count."""
        return None if self._maps is None else (target != MapTargets.IGNORED).sum()

    def loss(self, logits: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
        """Mean loss of a batch, a scalar.

        Args:
            logits: Of the model.
            target: As `prepare` gives it.
            counted: Number of pixels to divide by, where the batch is a part of a step whose pixels are to weigh alike
                in whichever part they are; by default those of the batch. Nothing for labels.
        """
        smoothing = self._config.label_smoothing
        if self._maps is not None:
            # The sum over the pixels that count, by their number: cross_entropy's own mean is NaN if none does.
            found = self.counted(target) if counted is None else counted
            assert found is not None
            total = functional.cross_entropy(
                logits, target, ignore_index=MapTargets.IGNORED, label_smoothing=smoothing, reduction="sum"
            )
            return total / found.clamp(min=1)
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


def positive_weights(config: TrainConfig, selection: Selection) -> Tensor | None:
    """Negatives over positives of each class in a selection, float32 (num_classes,), if the recipe asks for it."""
    if not config.positive_weights:
        return None
    positives = labels_of(selection, config.labels).sum(0, dtype=np.int64)
    weights = (len(selection) - positives) / np.maximum(positives, 1)
    return torch.from_numpy(np.minimum(weights, MOST_WEIGHT).astype(np.float32))
