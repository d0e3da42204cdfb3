"""Which weights learn, and how fast: frozen ones, and rates that fall from the last layer to the first."""

from __future__ import annotations

from typing import Any, Literal

from reben_cloud.errors import missing_extra
from reben_cloud.training.start import head_names
from reben_cloud.training.unet import Segmenter

try:
    from timm.models import group_parameters
    from torch import nn
except (ImportError, RuntimeError) as error:  # pragma: no cover - tested in a clean environment
    raise missing_extra("timm", "train", error) from error

Freeze = Literal["backbone"] | int
"""``backbone``: all but the last layer (for maps, the encoder); else how many of the first layers."""

SCALE = "scale"
"""Key of a parameter group's share of the learning rate."""


def layers_of(model: nn.Module) -> list[list[str]]:
    """Names of a model's parameters, in layers from the input to the output; the last layer decides.

    Layers are timm's own for its classifiers; of a U-Net, the stages of its encoder, then its decoder.
    """
    head = set(head_names(model))
    names = [name for name, _ in model.named_parameters() if name not in head]
    own = [name for name, _ in model.named_parameters() if name in head]
    groups: dict[object, list[str]] = {}
    if isinstance(model, Segmenter):
        for name in names:
            whole = name.replace("encoder.model.", "encoder.", 1)  # timm's in segmentation_models_pytorch
            parts = whole.split(".")
            groups.setdefault(parts[1] if parts[0] == "encoder" else "decoder", []).append(name)
    else:
        for number, group in sorted(group_parameters(model, model.group_matcher(coarse=False)).items()):  # type: ignore[operator]
            groups[number] = [name for name in group if name not in head]
    return [group for group in groups.values() if group] + [own]


def freeze(model: nn.Module, what: Freeze) -> None:
    """Keep weights from learning.

    Args:
        model: Its parameters are changed in place.
        what: Which.

    Raises:
        ValueError: If there are not more layers than are to be frozen.
    """
    layers = layers_of(model)
    if what != "backbone" and what >= len(layers):
        raise ValueError(f"freeze must be less than the model's {len(layers)} layers, got {what}")
    frozen = {name for layer in layers[: -1 if what == "backbone" else what] for name in layer}
    if what == "backbone" and isinstance(model, Segmenter):
        frozen = {name for name in frozen if name.startswith("encoder.")}
    for name, weights in model.named_parameters():
        if name in frozen:
            weights.requires_grad_(False)


def stand_still(model: nn.Module) -> None:
    """Put what is frozen as a whole into evaluation mode, in which statistics of batches stand still too."""
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(weights.requires_grad for weights in own):
            module.eval()


def parameter_groups(model: nn.Module, layer_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: of each layer, with its share of the rate as `SCALE`; frozen weights are left out.

    Args:
        model: Frozen already.
        layer_decay: Share of a layer's rate that the layer before it has, in (0, 1]; 1 makes one group of all.
    """
    if layer_decay == 1:
        return [{"params": [weights for weights in model.parameters() if weights.requires_grad]}]
    named, layers = dict(model.named_parameters()), layers_of(model)
    groups = []
    for number, layer in enumerate(layers):
        learning = [named[name] for name in layer if named[name].requires_grad]
        if learning:
            groups.append({"params": learning, SCALE: layer_decay ** (len(layers) - 1 - number)})
    return groups
