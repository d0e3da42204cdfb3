"""What a model's weights begin as: another model's, fitted to other bands and other classes.

Two rules. *Bands*: the first convolution takes the filters of a band that both models have, and for every other band
the mean over all filters of the other model. *Classes*: the last layer is taken if both models have the same classes in
the same order, and is left as it was made otherwise. All else must fit, tensor by tensor, with none over: a deeper
model of the same family has all that a smaller one has, and would else be cut short without a word.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reben_cloud.errors import ChecksumError, NotFoundError, missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.training.models import ModelSpec, load_pretrained, strip_prefix
from reben_cloud.training.unet import Segmenter

try:
    import timm
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import Tensor, nn
except (ImportError, RuntimeError) as error:  # pragma: no cover - tested in a clean environment
    raise missing_extra("timm", "train", error) from error

logger = logging.getLogger(__name__)

TIMM = "timm:"
"""What a timm model with pretrained weights is written with, such as ``timm:resnet50.a1_in1k``."""

_RGB = ("B04", "B03", "B02")
"""What weights for three channels of which nothing is known are taken to be of: red, green and blue."""

_ENCODER = "encoder."
_INSIDE = ("model.", "body.", "")
"""What stands before the names of an encoder's own tensors: timm's wrappers of some models, or nothing."""

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights of another model."""

    source: str
    """Where they come from, for messages."""
    tensors: Mapping[str, Tensor]
    """By name, as timm or `UNet` names them."""
    bands: tuple[str, ...] | None
    """What the channels of its input are; None where that is not known."""
    classes: tuple[str, ...] | None
    """What its outputs are; None where that is not known."""


def read_weights(source: str) -> Weights:
    """Read weights to begin with.

    Args:
        source: The folder of a model; ``owner/name`` on the Hugging Face hub; ``timm:TAG``; or a file of safetensors or
            of a state dict, whose names may begin as wrappers of models have them: ``module.``, ``model.``,
            ``_orig_mod.``, ``model.vision_encoder.``.

    Raises:
        ChecksumError: If a file is damaged, or not of tensors.
        NotFoundError: If there is no such thing.
    """
    if source.startswith(TIMM):
        return _of_timm(source.removeprefix(TIMM))
    if source.endswith(_SUFFIXES):
        tensors = _read_file(local_path(source, "a file of weights"))
        return Weights(source=source, tensors=tensors, bands=None, classes=None)
    model, spec = load_pretrained(source)
    return Weights(source=source, tensors=model.state_dict(), bands=spec.bands, classes=spec.classes.names)


def start_from(model: nn.Module, spec: ModelSpec, weights: Weights) -> list[str]:
    """Put weights into a model by the two rules.

    A U-Net also begins with the weights of a classifier of its encoder's architecture; its decoder is then left.

    Args:
        model: As `models.create_model` made it.
        spec: Its facts.
        weights: What to begin with.

    Returns:
        Names of the tensors that were left as they were made.

    Raises:
        ValueError: If the weights are not of this architecture.
    """
    own = model.state_dict()
    given = dict(weights.tensors)
    if isinstance(model, Segmenter) and not any(name.startswith(_ENCODER) for name in given):
        given = _as_encoder(given, own)
    decoder = {name for name in own if isinstance(model, Segmenter) and not name.startswith(_ENCODER)}
    head = set(head_names(model))
    # A classifier's weights have no decoder, a U-Net's have all of it.
    may_lack = head if decoder & given.keys() else head | decoder
    first = _first_convolution(own, spec)
    if first is None and weights.bands is not None and weights.bands != spec.bands:
        raise ValueError(_misfit(weights, spec, "it has no filters over bands, and theirs are other bands"))
    same_classes = weights.classes == spec.classes.names
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        theirs = given.get(name)
        if name in head and not (same_classes and theirs is not None):
            continue
        if theirs is None:
            if name in may_lack:
                continue
            raise ValueError(_misfit(weights, spec, f"they have no {name}"))
        if name == first:
            theirs = _fit_bands(theirs, weights, spec)
        if theirs.shape != tensor.shape:
            shapes = f"{name} is {tuple(theirs.shape)} there, and {tuple(tensor.shape)} here"
            raise ValueError(_misfit(weights, spec, shapes))
        found[name] = theirs
    over = _left_over(given, own, head)
    if over:
        why = f"they have {over[0]} and {len(over) - 1:,} more such tensors, which it lacks: it is another model"
        raise ValueError(_misfit(weights, spec, why))
    model.load_state_dict(found, strict=False)
    left = [name for name in own if name not in found]
    logger.info("weights of %s: %d tensors taken, %d left as made", weights.source, len(found), len(left))
    return left


def _as_encoder(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors by the names that they have in an encoder of feature maps.

    timm wraps some models, and takes others apart: ``stages.0.conv`` is ``stages_0.conv`` there.
    """

    def renamed(before: str) -> dict[str, Tensor]:
        parts = {_top(name, before) for name in own if name.startswith(before)}
        flat = {name: name.replace(".", "_", 1) for name in given}
        return {
            before + (flat[name] if _top(flat[name]) in parts and _top(name) not in parts else name): tensor
            for name, tensor in given.items()
        }

    ways = [renamed(_ENCODER + inside) for inside in _INSIDE]
    return max(ways, key=lambda one: len(one.keys() & own.keys()))


def _left_over(given: Mapping[str, Tensor], own: Mapping[str, Tensor], head: Collection[str]) -> list[str]:
    """Tensors of parts that both have, which are not in the model's; another head or decoder is no such part."""

    def part(name: str) -> str:
        inside = next((i for i in _INSIDE if name.startswith(_ENCODER + i)), None)
        before = "" if inside is None else _ENCODER + inside
        return before + _top(name, before)

    parts = {part(name) for name in own} - {part(name) for name in head}
    # Whole numbers are counters and tables that follow from the sizes; older releases keep some more of them.
    return [
        name
        for name, tensor in given.items()
        if name not in own and part(name) in parts and tensor.is_floating_point()
    ]


def _top(name: str, before: str = "") -> str:
    return name.removeprefix(before).partition(".")[0]


def head_names(model: nn.Module) -> Iterator[str]:
    """Names of the tensors of a model's last layer."""
    head = model.head if isinstance(model, Segmenter) else model.get_classifier()  # type: ignore[operator]
    ours = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    return (name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in ours)


def _first_convolution(own: Mapping[str, Tensor], spec: ModelSpec) -> str | None:
    """Name of the filters over bands; an encoder of others may have none."""
    filters = (n for n, tensor in own.items() if tensor.ndim == 4 and tensor.shape[1] == len(spec.bands))
    return next(filters, None)


def _fit_bands(filters: Tensor, weights: Weights, spec: ModelSpec) -> Tensor:
    """Filters (out, band, y, x) of other bands as those of a model's own."""
    bands = weights.bands
    if bands is None and filters.shape[1] == len(_RGB):
        bands = _RGB
    if bands is None and filters.shape[1] == len(spec.bands):
        return filters  # nothing is known of them, and they fit
    if bands is None or len(bands) != filters.shape[1]:
        raise ValueError(
            _misfit(weights, spec, f"their input has {filters.shape[1]} bands, and nothing says which")
        )
    mean = filters.mean(1)
    columns = [filters[:, bands.index(band)] if band in bands else mean for band in spec.bands]
    return torch.stack(columns, 1)


def _misfit(weights: Weights, spec: ModelSpec, why: str) -> str:
    return f"weights: those of {weights.source} do not fit {spec.architecture} ({spec.task}): {why}"


def _of_timm(tag: str) -> Weights:
    if not timm.is_model(tag.split(".")[0]):
        raise NotFoundError(f"weights: timm has no model {tag!r}")
    try:
        model = timm.create_model(tag, pretrained=True)
    except (RuntimeError, OSError) as error:
        raise NotFoundError(f"weights: those of timm's {tag!r} cannot be had: {error}") from error
    return Weights(source=f"{TIMM}{tag}", tensors=model.state_dict(), bands=None, classes=None)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise NotFoundError(f"weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            # Never a pickle of code: the file may be anybody's.
            found = torch.load(os.fspath(path), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ChecksumError(f"weights: {path} is damaged, or not of tensors alone: {error}") from error
    while isinstance(found, dict) and (inner := next((w for w in _WRAPPERS if w in found), None)):
        found = found[inner]
    tensors = {
        strip_prefix(str(name)): tensor
        for name, tensor in (found.items() if isinstance(found, dict) else ())
        if isinstance(tensor, Tensor)
    }
    if not tensors:
        raise ChecksumError(f"weights: {path} has no tensors by name; it must hold a state dict")
    return tensors
