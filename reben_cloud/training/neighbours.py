"""A classifier that learns nothing: what the nearest patches of training have, of a model's features.

It is a model like another, from an image to logits, so that everything that measures models measures it.
"""

from __future__ import annotations

from typing import Unpack

import numpy as np

from reben_cloud.errors import missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.torch import ReadOptions
from reben_cloud.training.compute import Compute
from reben_cloud.training.feed import input_modalities, model_input
from reben_cloud.training.finite import FiniteCheck
from reben_cloud.training.models import ModelSpec
from reben_cloud.training.outputs import embed

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

TEMPERATURE = 0.07
"""What similarities are divided by before their exponential weighs a neighbour (Wu et al. 2018, Caron et al. 2021)."""

_STEPS = 2**16
"""Shares of the votes that are told apart."""


class Neighbours(nn.Module):
    """Labels by a vote of the patches whose features are nearest, by cosine.

    The probability of a class is the share of the votes for it, each weighed by ``exp(similarity / TEMPERATURE)``.

    Args:
        model: Whose features; in evaluation mode.
        features: Of the patches that vote, floating (num_patches, size), of length 1.
        labels: What they have, uint8 (num_patches, num_classes).
        k: How many vote, at least 1; at most all.
    """

    def __init__(self, model: nn.Module, features: Tensor, labels: Tensor, *, k: int) -> None:
        super().__init__()
        self.model = model
        """Whose features are compared."""
        self.k = min(k, len(features))
        """How many vote."""
        self.register_buffer("features", features)
        self.register_buffer("labels", labels)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, float32 (batch, num_classes).

        Args:
            image: Floating (batch, band, y, x).
        """
        mine = functional.normalize(embed(self.model, image).float(), dim=1)
        similar, nearest = (mine @ self.get_buffer("features").T).topk(self.k, dim=1)
        # Less the largest, which changes no share and overflows nowhere.
        weights = ((similar - similar[:, :1]) / TEMPERATURE).exp()
        votes = (weights.unsqueeze(2) * self.get_buffer("labels")[nearest].float()).sum(1)
        # In steps: where all vote alike, rounding would rank patches otherwise in each size of a batch.
        shares = (votes / weights.sum(1, keepdim=True) * _STEPS).round() / _STEPS
        return shares.logit(eps=0.5 / _STEPS)


def remember(
    model: nn.Module,
    spec: ModelSpec,
    selection: Selection,
    labels: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
    compute: Compute,
    *,
    k: int,
    batch_size: int,
    **options: Unpack[ReadOptions],
) -> Neighbours:
    """The classifier of a model's features of a selection; all processes must call it, and each keeps all features.

    Args:
        model: On the device of `compute`.
        spec: Its facts.
        selection: The patches that vote.
        labels: What they have, uint8 (len(selection), num_classes).
        compute: This process's share.
        k: How many vote.
        batch_size: Patches a step over all processes.
        **options: For `StreamLoader`.

    Raises:
        NotFiniteError: If a feature is infinite or not a number.
    """
    schema = selection.dataset.schema
    loader = compute.stream_once(
        selection, input_modalities(spec, schema), batch_size, shuffle=False, **options
    )
    inputs = model_input(spec, schema).to(compute.device)
    finite = FiniteCheck(selection, compute, "features")
    model.eval()
    parts = []
    with torch.inference_mode():
        for step, raw in enumerate(loader, 1):
            batch = compute.to_device(raw)
            with compute.autocast():
                found = embed(model, inputs(batch))
            finite.see(step, batch["index"], found)
            parts.append((batch["index"].clone(), functional.normalize(found.float(), dim=1)))
        finite.check()
        index, features = (compute.gather(torch.cat(column)) for column in zip(*parts, strict=True))
        order = index.argsort()[int((index < 0).sum()) :]  # padding has index -1
        assert len(order) == len(selection)
        return Neighbours(model, features[order], torch.from_numpy(labels).to(compute.device), k=k)
