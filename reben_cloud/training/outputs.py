"""What is kept of a model's answer for a patch: probabilities, labels, a mask, or an embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra
from reben_cloud.root.arrow import bools_array
from reben_cloud.schema import Classes
from reben_cloud.training.models import ModelSpec
from reben_cloud.training.unet import Segmenter

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

What = Literal["probabilities", "labels", "mask", "embedding"]
"""What is kept."""

_MOST_COLUMNS = 256
"""Classes that get a column of their own beside the list of all probabilities."""


class Output:
    """From a model's input to the values that are kept of each patch.

    Args:
        model: In evaluation mode.
        spec: Its facts.
        what: What is kept.
        thresholds: Probability above which a class is a label, of each class; for ``labels``.

    Raises:
        ValueError: If a model of its task has no such thing to keep.
    """

    def __init__(self, model: nn.Module, spec: ModelSpec, what: What, thresholds: Sequence[float]) -> None:
        _check(what, spec)
        self.what = what
        """What is kept."""
        self.classes = spec.classes
        """What the model tells apart."""
        self._model = model
        device = next(model.parameters()).device
        self._thresholds = torch.tensor(list(thresholds), dtype=torch.float32, device=device)
        self._codes = _codes_of(spec.classes) if what == "mask" else np.empty(0, np.uint8)
        image = torch.zeros(1, len(spec.bands), spec.image_px, spec.image_px, device=device)
        with torch.inference_mode():
            (values, _) = self(image)
        self.shape = tuple(values.shape[1:])
        """Shape of a patch's values."""
        self.dtype = self.values_of(values).dtype
        """Their type."""
        used = {int(code) for code in self._codes}
        self.fill = next(number for number in range(len(used) + 1) if number not in used)
        """Value of a mask that is no class's."""

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the model.

        Args:
            image: Floating (batch, band, y, x), on the model's device.

        Returns:
            What `values_of` takes, on the device; and whether all that the model said of a patch is finite, (batch,).
        """
        said = embed(self._model, image) if self.what == "embedding" else self._model(image)
        finite = said.isfinite().flatten(1).all(1)
        if self.what == "embedding":
            return said.float(), finite
        if self.what == "mask":
            return said.argmax(1).to(torch.uint8 if len(self.classes) <= 256 else torch.int32), finite
        probabilities = said.float().sigmoid()
        return (probabilities if self.what == "probabilities" else probabilities > self._thresholds), finite

    def values_of(self, found: Tensor) -> NDArray[np.generic]:
        """What a call found, as it is kept: float32, bool, codes of the map, or float16; (batch, *shape)."""
        values: NDArray[np.generic] = found.cpu().numpy()
        if self.what == "mask":
            values = self._codes[values]
        elif self.what == "embedding":
            with np.errstate(over="ignore"):  # what float16 cannot hold is infinite, and refused by `predict`
                values = values.astype(np.float16)
        return values

    def columns(self, values: NDArray[np.generic]) -> dict[str, pa.Array[pa.Scalar]]:
        """Values as columns of a table, one row for each patch.

        ``probabilities``: the list of all, in the order of the classes, and one column for each class. ``labels``:
        a column of booleans for each class. ``embedding``: a list, ``vector``.

        Args:
            values: (patch, *shape), as `values_of` gives them; not of masks.
        """
        names = self.classes.names
        if self.what == "embedding":
            return {"vector": _lists(values)}
        if self.what == "labels":
            return {name: bools_array(values[:, c].astype(np.bool_)) for c, name in enumerate(names)}
        each = {name: pa.array(values[:, c]) for c, name in enumerate(names)}
        return {"probabilities": _lists(values), **(each if len(names) <= _MOST_COLUMNS else {})}


def embed(model: nn.Module, image: Tensor) -> Tensor:
    """What a model makes of patches before it decides: (batch, features).

    For timm's classifiers it is what goes into the last layer; for maps the mean over the coarsest features.
    """
    if isinstance(model, Segmenter):
        return model.coarsest(image).mean((-2, -1))
    found: Tensor = model.forward_head(model.forward_features(image), pre_logits=True)  # type: ignore[operator]
    return found.flatten(1)


def _lists(values: NDArray[np.generic]) -> pa.Array[pa.Scalar]:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _check(what: What, spec: ModelSpec) -> None:
    if what not in get_args(What):
        raise ValueError(f"what must be one of {', '.join(get_args(What))}, got {what!r}")
    possible = ("mask", "embedding") if spec.task == "map" else ("probabilities", "labels", "embedding")
    if what not in possible:
        kind = "pixels" if spec.task == "map" else "whole patches"
        raise ValueError(
            f"{spec.architecture} classifies {kind}, so it has no {what} to write; it has {' and '.join(possible)}"
        )
    if what == "mask" and not spec.classes.codes:
        raise ValueError(
            f"{spec.architecture}: its classes have no codes, so a mask cannot be written as a map"
        )


def _codes_of(classes: Classes) -> NDArray[np.generic]:
    """The code that stands for each class in a mask: its first one."""
    codes = np.array([codes[0] for codes in classes.codes])
    return codes.astype(np.min_scalar_type(int(codes.max()) + 1))  # a value more, to fill with
