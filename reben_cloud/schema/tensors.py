"""One tensor of a payload, and where tensors lie in the payload: the layout of a safetensors record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.schema.pickling import PickledAsMade

Array = NDArray[np.generic]

Buffer = bytes | bytearray | memoryview


class Dtype(NamedTuple):
    """One dtype of safetensors, and the NumPy dtype in which its values are held."""

    code: str
    """Name in a safetensors header."""
    storage: np.dtype[Any]
    """Little-endian NumPy dtype; unsigned integers of the same size where NumPy lacks the dtype."""


_DTYPE_CODES = (
    # Name, code, storage; in the order by which safetensors sorts tensors, last ones first
    # (https://github.com/huggingface/safetensors, `Dtype` in safetensors/src/tensor.rs).
    ("bool", "BOOL", "?"),
    ("uint8", "U8", "u1"),
    ("int8", "I8", "i1"),
    ("float8_e5m2", "F8_E5M2", "u1"),
    ("float8_e4m3fn", "F8_E4M3", "u1"),
    ("int16", "I16", "<i2"),
    ("uint16", "U16", "<u2"),
    ("float16", "F16", "<f2"),
    ("bfloat16", "BF16", "<u2"),
    ("int32", "I32", "<i4"),
    ("uint32", "U32", "<u4"),
    ("float32", "F32", "<f4"),
    ("float64", "F64", "<f8"),
    ("int64", "I64", "<i8"),
    ("uint64", "U64", "<u8"),
)

DTYPES: Mapping[str, Dtype] = MappingProxyType(
    {name: Dtype(code, np.dtype(storage)) for name, code, storage in _DTYPE_CODES}
)
"""Name, as PyTorch spells it -> dtype; every dtype of a safetensors file that has whole bytes."""

_RANK = {name: rank for rank, (name, _, _) in enumerate(_DTYPE_CODES)}

_TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec(PickledAsMade):
    """One tensor of a payload: a band, a map, a vector."""

    name: str
    """Name in the safetensors header, e.g. ``B02``."""
    shape: tuple[int, ...]
    """Shape of one patch's tensor, every axis at least 1; images as (y, x). At most 8 axes."""
    dtype: str
    """One of `DTYPES`."""
    units: str | None = None
    """Units of the values, e.g. ``dB`` or ``m``."""
    fill: float = 0
    """Value that stands for no data; Zarr's fill value."""
    pixel_m: float | None = None
    """Nominal size of a pixel, metres; None for what is not an image."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if isinstance(self.fill, float) and math.isnan(self.fill):
            # Always the same object: hashes of specs that have it are equal then, and tuples of their values.
            object.__setattr__(self, "fill", math.nan)
        if not _TENSOR_NAME.fullmatch(self.name) or self.name == "__metadata__":
            raise ValueError(f"{self.name!r} is not a valid name of a tensor")
        if self.dtype not in DTYPES:
            raise ValueError(
                f"tensor {self.name}: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}"
            )
        if len(self.shape) > 8 or not all(type(n) is int and n >= 1 for n in self.shape):
            raise ValueError(
                f"tensor {self.name}: shape must be at most 8 sizes of at least 1, got {self.shape}"
            )
        with np.errstate(all="ignore"):
            kept = self.storage.type(self.fill) if self._holds_fill() else None
        if kept is None or not (kept == self.fill or (math.isnan(self.fill) and math.isnan(kept))):
            raise ValueError(f"tensor {self.name}: {self.dtype} has no value {self.fill} to fill with")
        if self.pixel_m is not None and not (self.pixel_m > 0 and math.isfinite(self.pixel_m)):
            raise ValueError(f"tensor {self.name}: pixel_m must be above 0, got {self.pixel_m}")
        if self.pixel_m is not None and len(self.shape) < 2:
            raise ValueError(f"tensor {self.name} has a pixel size, so it needs two axes, got {self.shape}")

    def __eq__(self, other: object) -> bool:
        """Whether all is the same, NaN as fill included.

        Written out because a dataclass compares tuples, which ask for identity first, up to Python 3.12 only.
        """
        if not isinstance(other, TensorSpec):
            return NotImplemented
        return self._values() == other._values()

    def _values(self) -> tuple[object, ...]:
        return self.name, self.shape, self.dtype, self.units, self.fill, self.pixel_m

    def _holds_fill(self) -> bool:
        if self.storage.kind == "f":
            return True
        # What NumPy holds as integers (bfloat16) has no other fill value than zero.
        least, most = (
            (0, 1) if self.storage.kind == "b" else (np.iinfo(self.storage).min, np.iinfo(self.storage).max)
        )
        is_float = "float" in self.dtype
        return math.isfinite(self.fill) and (self.fill == 0 if is_float else least <= self.fill <= most)

    @property
    def storage(self) -> np.dtype[Any]:
        """NumPy dtype of the values, little-endian."""
        return DTYPES[self.dtype].storage

    @property
    def nbytes(self) -> int:
        """Bytes of one patch's tensor."""
        return math.prod(self.shape) * self.storage.itemsize


class Place(NamedTuple):
    """Where one tensor lies in a payload."""

    offset: int
    """Bytes from the start of the payload, header included."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    dtype: np.dtype[Any]
    """Little-endian dtype of its values."""


def safetensors_layout(tensors: Iterable[TensorSpec]) -> tuple[bytes, Mapping[str, Place]]:
    """Header of the safetensors record of some tensors, and where each is in it: what safetensors would write."""
    # safetensors sorts by dtype, the widest first, then by name.
    order = sorted(tensors, key=lambda tensor: (-_RANK[tensor.dtype], tensor.name))
    header: dict[str, dict[str, Any]] = {}
    position = 0
    for tensor in order:
        end = position + tensor.nbytes
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype].code,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {
        tensor.name: Place(start + header[tensor.name]["data_offsets"][0], tensor.shape, tensor.storage)
        for tensor in order
    }
    return len(text).to_bytes(8, "little") + text, MappingProxyType(places)
