"""One modality of every patch: its tensors, the arrays they fill, and the payloads that hold them.

A payload is the safetensors record of one modality of one patch. Its header is the same for every
patch, so that a payload is checked by comparing bytes, read by slicing, and copied into batches by
arithmetic; all of that follows from the values here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np

from reben_cloud.errors import InvalidPatchError
from reben_cloud.schema.arrays import NAME, ArraySpec, Copy, SampleArray
from reben_cloud.schema.pickling import PickledAsMade
from reben_cloud.schema.tensors import DTYPES, Array, Buffer, Place, TensorSpec, safetensors_layout

_COLUMN = re.compile(r"[a-z][a-z0-9_]*")

MAX_PAYLOAD_BYTES = 2**33 - 512
"""Largest payload: the size of a member that a ustar header can say (eleven octal digits)."""


@dataclass(frozen=True, kw_only=True)
class Modality(PickledAsMade):
    """One modality of every patch: its tensors, and what its payloads become."""

    name: str
    """Small letters, digits and underscores: part of paths and column names."""
    tensors: tuple[TensorSpec, ...]
    """The tensors, in the order in which people name them; in a payload safetensors' order rules."""
    arrays: tuple[ArraySpec, ...] = ()
    """The batch arrays that the tensors fill, each tensor exactly one; by default one array a tensor."""
    key_column: str = "patch_id"
    """Column of the metadata from which the key in an LMDB is made."""
    key_suffix: str = ".{name}"
    """What follows the column's value in that key, different for each modality; ``{name}`` is the modality's name."""
    title: str = ""
    """What it is, for people."""
    complete: bool = False
    """Whether a build refuses a payload that has the fill value of a tensor somewhere."""
    falling: tuple[str, ...] = ()
    """Tensors whose means over many patches must fall in this order, or a build takes them for swapped."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"modality {self.name!r} must be small letters, digits and underscores, 32 at most"
            )
        if not _COLUMN.fullmatch(self.key_column):
            raise ValueError(f"modality {self.name}: {self.key_column!r} is not a valid column name")
        object.__setattr__(self, "key_suffix", self.key_suffix.replace("{name}", self.name))
        tensors = tuple(self.tensors)
        object.__setattr__(self, "falling", tuple(self.falling))
        names = [tensor.name for tensor in tensors]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"modality {self.name} needs tensors with different names, got {names}")
        if unknown := [name for name in self.falling if name not in names]:
            raise ValueError(f"modality {self.name} has no tensor {unknown[0]!r}, which is to be compared")
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "arrays", tuple(self.arrays) or self._default_arrays())
        self._check_arrays()
        if self.payload_bytes > MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"modality {self.name}: a payload of {self.payload_bytes:,} bytes is larger than a tar member may be"
            )

    def _default_arrays(self) -> tuple[ArraySpec, ...]:
        found = []
        for tensor in self.tensors:
            own = re.sub(r"[^a-z0-9]+", "_", tensor.name.lower()).strip("_")
            name = self.name if len(self.tensors) == 1 else f"{self.name}_{own}"
            axes = tuple(f"{name}__{number}" for number in range(len(tensor.shape)))
            found.append(
                ArraySpec(name=name, tensors=(tensor.name,), stacked=False, dims=axes, zarr_name=name)
            )
        return tuple(found)

    def _check_arrays(self) -> None:
        used = [name for array in self.arrays for name in array.tensors]
        if sorted(used) != sorted(self.specs):
            raise ValueError(
                f"modality {self.name}: its arrays must hold each of its tensors once, they hold {used}"
            )
        names = [array.name for array in self.arrays]
        if len(set(names)) != len(names):
            raise ValueError(f"modality {self.name}: its arrays need different names, got {names}")
        for array in self.arrays:
            kinds = {(self.specs[name].shape, self.specs[name].dtype) for name in array.tensors}
            if len(kinds) > 1:
                raise ValueError(f"array {array.name} stacks tensors of several shapes or dtypes")
            if len(array.dims) != len(self.specs[array.tensors[0]].shape) + array.stacked:
                raise ValueError(f"array {array.name} has {len(array.dims)} names for its axes: {array.dims}")

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """The tensors by name."""
        return MappingProxyType({tensor.name: tensor for tensor in self.tensors})

    @cached_property
    def _layout(self) -> tuple[bytes, Mapping[str, Place]]:
        return safetensors_layout(self.tensors)

    @property
    def payload_header(self) -> bytes:
        """First bytes of every payload: header length and safetensors header."""
        return self._layout[0]

    @property
    def places(self) -> Mapping[str, Place]:
        """Tensor -> place in the payload, in the payload's order."""
        return self._layout[1]

    @cached_property
    def payload_bytes(self) -> int:
        """Size of every payload."""
        return len(self.payload_header) + sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def samples(self) -> Mapping[str, SampleArray]:
        """Batch array -> shape and dtype of one sample."""
        return MappingProxyType(
            {
                array.name: SampleArray(self.shape_of(array), self._first(array).storage)
                for array in self.arrays
            }
        )

    def _first(self, array: ArraySpec) -> TensorSpec:
        return self.specs[array.tensors[0]]

    def means(self, payload: Buffer) -> tuple[float, ...]:
        """Mean of each tensor of `falling`."""
        tensors = self.decode(payload)
        return tuple(float(tensors[name].mean()) for name in self.falling)

    def incomplete(self, payload: Buffer) -> str | None:
        """Name of the first tensor that has its fill value somewhere in a payload; None if there is none."""
        alike = len({(t.dtype, t.fill) for t in self.tensors}) == 1 and not self.tensors[0].fill
        # All tensors in one go: the header is a multiple of eight bytes.
        if alike and np.frombuffer(payload, self.tensors[0].storage, offset=len(self.payload_header)).all():
            return None
        for name, values in self.decode(payload).items():
            fill = self.specs[name].fill
            if bool((np.isnan(values) if math.isnan(fill) else values == fill).any()):
                return name
        return None

    def shape_of(self, array: ArraySpec) -> tuple[int, ...]:
        """Shape of one patch in one of the modality's arrays."""
        return (len(array.tensors),) * array.stacked + self._first(array).shape

    def tensor_of(self, array: ArraySpec) -> TensorSpec:
        """The tensor that stands for all of an array: they have one shape, dtype, units and fill."""
        return self._first(array)

    @cached_property
    def copies(self) -> tuple[Copy, ...]:
        """How a payload becomes a sample of the batch arrays: its pieces, neighbours joined."""
        copies: list[Copy] = []
        for array in self.arrays:
            nbytes = self._first(array).nbytes
            for position, name in enumerate(array.tensors):
                new = Copy(self.places[name].offset, nbytes, array.name, position * nbytes)
                last = copies[-1] if copies else None
                if last and last.array == array.name and last.source + last.nbytes == new.source:
                    copies[-1] = last._replace(nbytes=last.nbytes + nbytes)
                else:
                    copies.append(new)
        return tuple(copies)

    def key(self, row: Mapping[str, object]) -> str:
        """Key in an LMDB of the payload of a metadata row."""
        return f"{row[self.key_column]}{self.key_suffix}"

    # -- payloads --------------------------------------------------------------------------------------

    def check(self, payload: Buffer, *, name: str) -> None:
        """Refuse bytes that are not a payload of this modality; costs one comparison of the header.

        Args:
            payload: The bytes to check.
            name: What to call the payload in the message.

        Raises:
            InvalidPatchError: If the size or the header is another one.
        """
        size = memoryview(payload).nbytes
        if size != self.payload_bytes:
            raise InvalidPatchError(
                f"{name}: the {self.name} payload must have {self.payload_bytes:,} bytes, got {size:,}; "
                f"{_difference(self, payload)}"
            )
        if bytes(memoryview(payload)[: len(self.payload_header)]) != self.payload_header:
            raise InvalidPatchError(
                f"{name}: the {self.name} payload has another safetensors header than the one expected; "
                f"{_difference(self, payload)}"
            )

    def encode(self, tensors: Mapping[str, Array], *, name: str = "patch") -> bytes:
        """The payload of one array per tensor, byte for byte what safetensors writes.

        Args:
            tensors: Tensor name -> array of its shape and dtype.
            name: What to call the patch in a message.

        Raises:
            InvalidPatchError: If a tensor is missing, unknown, or of another shape or dtype.
        """
        if tensors.keys() != self.places.keys():
            raise InvalidPatchError(
                f"{name}: {self.name} must have the tensors {', '.join(self.places)}, "
                f"got {', '.join(sorted(tensors))}"
            )
        parts = [self.payload_header]
        for tensor, place in self.places.items():
            array = tensors[tensor]
            if array.shape != place.shape or array.dtype != place.dtype:
                raise InvalidPatchError(
                    f"{name}: {tensor} must be {place.dtype.name} of shape {place.shape}, "
                    f"got {array.dtype.name} of shape {array.shape}"
                )
            parts.append(array.astype(place.dtype, copy=False).tobytes())
        return b"".join(parts)

    def decode(self, payload: Buffer) -> dict[str, Array]:
        """One view into `payload` for each tensor, by the tensor's name; nothing is copied."""
        return {
            name: np.frombuffer(payload, p.dtype, math.prod(p.shape), p.offset).reshape(p.shape)
            for name, p in self.places.items()
        }

    def stack(self, payload: Buffer) -> dict[str, Array]:
        """The batch arrays of one payload, copied: array name -> shape and dtype of `samples`."""
        tensors = self.decode(payload)
        return {
            array.name: np.stack([tensors[name] for name in array.tensors])
            if array.stacked
            else tensors[array.tensors[0]].copy()
            for array in self.arrays
        }

    def unstack(self, arrays: Mapping[str, Array], *, name: str = "patch") -> bytes:
        """The payload of one patch's batch arrays: the inverse of `stack`."""
        tensors: dict[str, Array] = {}
        for array in self.arrays:
            values = arrays[array.name]
            pieces = values if array.stacked else [values]
            tensors |= dict(zip(array.tensors, pieces, strict=True))
        return self.encode(tensors, name=name)


def _difference(modality: Modality, payload: Buffer) -> str:
    """In what a record is not a payload of a modality, in words."""
    data = memoryview(payload)
    length = int.from_bytes(data[:8], "little")
    try:
        if data.nbytes < 8 + length or length < 2:
            raise ValueError
        header = json.loads(bytes(data[8 : 8 + length]))
        found = {
            k: (v["dtype"], v["shape"], v["data_offsets"]) for k, v in header.items() if k != "__metadata__"
        }
        end = 8 + length + max((int(offsets[1]) for _, _, offsets in found.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return f"it is not a safetensors record, or it ends within its header (it starts with {bytes(data[:16])!r})"
    wrong = [f"lacks {name}" for name in modality.places if name not in found]
    wrong += [
        f"has {name}, which is not a tensor of {modality.name}"
        for name in found
        if name not in modality.places
    ]
    for name, tensor in modality.places.items():
        if name not in found:
            continue
        dtype, shape, _ = found[name]
        expected = DTYPES[modality.specs[name].dtype].code
        if dtype != expected:
            wrong.append(f"{name} is {dtype}, must be {expected}")
        if shape != list(tensor.shape):
            wrong.append(f"{name} has shape {shape}, must be {list(tensor.shape)}")
    if data.nbytes != end:
        wrong.append(f"it has {data.nbytes:,} bytes where its header says {end:,}")
    if "__metadata__" in header:
        wrong.append("has __metadata__, which rico-hdl does not write")
    if not wrong:
        wrong.append(
            "its tensors are right, but written in another order or with other padding than expected"
        )
    return "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} differences more" if len(wrong) > 4 else "")
