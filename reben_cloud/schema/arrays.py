"""The arrays of a batch and of a Zarr store that tensors fill, and how bytes of a payload get there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
"""A name that is part of paths: of a modality, an array, an axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One array of a batch, and of a Zarr store: some tensors of a modality, stacked, or one as it is."""

    name: str
    """Name in a batch, e.g. ``s2_10m``."""
    tensors: tuple[str, ...]
    """Names of the tensors, in the order in which they are stacked."""
    stacked: bool
    """Whether the tensors lie along an axis of their own, the first; otherwise there is one tensor."""
    dims: tuple[str, ...]
    """Names of the axes of one patch, e.g. ``band``, ``y``, ``x``."""
    zarr_name: str
    """Name of the array in a Zarr store; most often that of the batch."""

    def __post_init__(self) -> None:
        for name in ("tensors", "dims"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for text in (self.name, self.zarr_name, *self.dims):
            if not NAME.fullmatch(text):
                raise ValueError(
                    f"array {self.name!r}: {text!r} must be small letters, digits and underscores, 32 at most"
                )
        if not self.tensors or (not self.stacked and len(self.tensors) != 1):
            raise ValueError(f"array {self.name} must have one tensor, or several that are stacked")
        if len(set(self.dims)) != len(self.dims) or "patch" in self.dims:
            raise ValueError(f"array {self.name}: its axes need names of their own, and not 'patch'")


class SampleArray(NamedTuple):
    """Shape of one sample in a batch array, and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize


class Copy(NamedTuple):
    """One contiguous piece of a payload, and where it goes in a sample of a batch array."""

    source: int
    """Bytes from the start of the payload."""
    nbytes: int
    """Length."""
    array: str
    """Name of the batch array."""
    target: int
    """Bytes from the start of the sample in that array."""
