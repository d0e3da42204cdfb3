"""Encoders of others: any module that can be made for a list of bands, named by ``package.module:function``.

The function says that it is such a one (`takes_bands`), since a model's folder names it too, and whoever loads a folder
of somebody else must not run a function of that one's choice.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from reben_cloud.errors import missing_extra

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MARK = "reben_cloud_takes_bands"


class MakesEncoder(Protocol):
    """Makes an encoder."""

    def __call__(self, bands: Sequence[str], *, image_px: int) -> nn.Module:
        """A module that takes normalised images and gives features.

        Args:
            bands: Names of the bands, in the order of the channels.
            image_px: Height and width of the images, pixels.

        Returns:
            A module from float32 (batch, band, y, x) to float32 (batch, features).
        """
        ...


M = TypeVar("M", bound=Callable[..., nn.Module])


@runtime_checkable
class HasLayers(Protocol):
    """An encoder that says which layers it has, for `freeze` and `layer_decay`."""

    def layers(self) -> Sequence[str]:
        r"""Regular expressions of the names of parameters, from the input to the output.

        A group in one, such as ``blocks\.(\d+)``, makes a layer of each number.
        """
        ...


def takes_bands(make: M) -> M:
    """Mark a function as one that makes encoders (`MakesEncoder`): only such a one can be an ``architecture``."""
    setattr(make, _MARK, True)
    return make


def is_entry(architecture: str) -> bool:
    """Whether the name of an architecture is ``package.module:function``."""
    return _ENTRY.fullmatch(architecture) is not None


class Encoded(nn.Module):
    """A classifier: an encoder of others, dropout, and a linear layer.

    Args:
        encoder: From (batch, band, y, x) to (batch, features).
        num_features: How many these are.
        num_classes: Logits.
        drop_rate: Dropout before the last layer.
    """

    def __init__(self, encoder: nn.Module, *, num_features: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(num_features)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits, (batch, num_classes)."""
        logits: Tensor = self.head(
            self.drop(self.forward_head(self.forward_features(image), pre_logits=True))
        )
        return logits

    # What follows is named as timm names it, so that one code asks either.

    def forward_features(self, image: Tensor) -> Tensor:
        """What the encoder gives, (batch, features)."""
        found: Tensor = self.encoder(image)
        return found

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """What goes into the last layer, or its logits."""
        normed: Tensor = self.norm(features)
        return normed if pre_logits else self.head(self.drop(normed))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:  # noqa: ARG002 - timm's
        """Layers from the input to the output: those that the encoder's `layers` names, or all of it as one."""
        named = self.encoder.layers() if isinstance(self.encoder, HasLayers) else [""]
        return {str(number): rf"^encoder\.{pattern}" for number, pattern in enumerate(named)}


def make_encoded(
    entry: str, bands: Sequence[str], *, image_px: int, num_classes: int, drop_rate: float
) -> Encoded:
    """A classifier over the encoder that an entry point makes.

    Raises:
        ValueError: If there is no such function, it is not marked by `takes_bands`, or what it makes does not give
            (batch, features).
    """
    encoder = _function(entry)(bands, image_px=image_px)
    if not isinstance(encoder, nn.Module):
        raise ValueError(f"architecture: {entry} made {type(encoder).__name__}, not a torch.nn.Module")
    with torch.no_grad():
        was_training = encoder.training
        found = encoder.eval()(torch.zeros(2, len(bands), image_px, image_px))
        encoder.train(was_training)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"architecture: the encoder of {entry} must give (batch, features), got {what} for 2 images"
        )
    return Encoded(encoder, num_features=found.shape[1], num_classes=num_classes, drop_rate=drop_rate)


def _function(entry: str) -> MakesEncoder:
    module, _, name = entry.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(
            f"architecture: {module} of {entry!r} cannot be imported: {error}; is its folder in PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ValueError(f"architecture: {module} has no function {name}")
    if not getattr(found, _MARK, False):
        raise ValueError(
            f"architecture: {entry} is not marked as one that makes encoders; write "
            "@reben_cloud.training.encoders.takes_bands before it"
        )
    make: MakesEncoder = found
    return make
