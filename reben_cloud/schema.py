"""What a dataset says of its patches: tensors, modalities, classes, and the bytes that follow from them.

A payload is the safetensors record of one modality of one patch. Its header is the same for every
patch, so that a payload is checked by comparing bytes, read by slicing, and copied into batches by
arithmetic; all of that follows from the values here. This module knows no sensor, file or store.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import InvalidPatchError

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

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TENSOR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_COLUMN = re.compile(r"[a-z][a-z0-9_]*")
_COLOR = re.compile(r"#[0-9a-f]{6}")

MAX_CLASSES = 65_535
"""Most classes of a schema: a class and "none" fit 16 bits."""

RESERVED = frozenset(
    {
        "labels",
        "index",
        "valid",
        "patch",
        "label",
        "patch_id",
        "split",
        "country",
        "x0",
        "y0",
        "time",
        "s1_time",
    }
    | {"s1_name", "spatial_ref", "epoch", "row"}
)
"""Names that batches and Zarr stores use themselves."""

MAX_PAYLOAD_BYTES = 2**33 - 512
"""Largest payload: the size of a member that a ustar header can say (eleven octal digits)."""


class _PickledAsMade:
    """A dataclass that is pickled as its fields, and made from them again: what it keeps by the way stays here."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(type(self), **{f.name: getattr(self, f.name) for f in fields(cast("Any", self))})
        return made, ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec(_PickledAsMade):
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
            # Always the same object: values that have it are equal then, and so are schemas.
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
            if not _NAME.fullmatch(text):
                raise ValueError(
                    f"array {self.name!r}: {text!r} must be small letters, digits and underscores, 32 at most"
                )
        if not self.tensors or (not self.stacked and len(self.tensors) != 1):
            raise ValueError(f"array {self.name} must have one tensor, or several that are stacked")
        if len(set(self.dims)) != len(self.dims) or "patch" in self.dims:
            raise ValueError(f"array {self.name}: its axes need names of their own, and not 'patch'")


class Place(NamedTuple):
    """Where one tensor lies in a payload."""

    offset: int
    """Bytes from the start of the payload, header included."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    dtype: np.dtype[Any]
    """Little-endian dtype of its values."""


class BandPlace(NamedTuple):
    """Where a band, a tensor that is a square image, lies in the batches."""

    modality: str
    """Name of its modality."""
    array: ArraySpec
    """The batch array that holds it."""
    position: int
    """Its place along the first axis of a stacked array; 0 in an array that is one image."""
    tensor: TensorSpec
    """The tensor itself."""

    @property
    def size_px(self) -> int:
        """Height and width, pixels."""
        return self.tensor.shape[-1]


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


class SampleArray(NamedTuple):
    """Shape of one sample in a batch array, and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize


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


@dataclass(frozen=True, kw_only=True)
class Modality(_PickledAsMade):
    """One modality of every patch: its tensors, and what its payloads become."""

    name: str
    """Small letters, digits and underscores: part of paths and column names."""
    tensors: tuple[TensorSpec, ...]
    """The tensors, in the order in which people name them; in a payload safetensors' order rules."""
    arrays: tuple[ArraySpec, ...] = ()
    """The batch arrays that the tensors fill, each tensor exactly one; by default one array a tensor."""
    key_column: str = "patch_id"
    """Column of the metadata from which the key in an LMDB is made."""
    key_suffix: str = cast("str", None)
    """What follows the column's value in that key; by default a dot and the modality's name."""
    title: str = ""
    """What it is, for people."""
    complete: bool = False
    """Whether a build refuses a payload that has the fill value of a tensor somewhere."""
    falling: tuple[str, ...] = ()
    """Tensors whose means over many patches must fall in this order, or a build takes them for swapped."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"modality {self.name!r} must be small letters, digits and underscores, 32 at most"
            )
        if not _COLUMN.fullmatch(self.key_column):
            raise ValueError(f"modality {self.name}: {self.key_column!r} is not a valid column name")
        if cast("str | None", self.key_suffix) is None:
            # Else all modalities of a patch would have one key.
            object.__setattr__(self, "key_suffix", f".{self.name}")
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

    def key(self, row: Mapping[str, Any]) -> str:
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


def check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Refuse names that are not among the known ones.

    Raises:
        ValueError: If one is unknown; the message has the nearest names.
    """
    for name in names:
        if name not in known:
            lower = {one.lower(): one for one in known}
            near = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(repr(lower[n]) for n in near)}?" if near else ""
            some = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
            raise ValueError(f"unknown {what} {name!r}; {hint or 'known are ' + some}")


@dataclass(frozen=True, kw_only=True)
class Classes(_PickledAsMade):
    """The classes of the multi-labels, and of the pixels of a map."""

    names: tuple[str, ...]
    """Names, in the order of the columns of ``batch["labels"]``."""
    colors: tuple[str, ...] = ()
    """Colour of each as ``#rrggbb``; empty where none is stated."""
    codes: tuple[tuple[int, ...], ...] = ()
    """Pixel values of the map that belong to each class; empty where there is no map."""
    without_class: tuple[int, ...] = ()
    """Further pixel values that a map may have, which belong to no class."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "colors", tuple(self.colors))
        object.__setattr__(self, "codes", tuple(tuple(codes) for codes in self.codes))
        object.__setattr__(self, "without_class", tuple(self.without_class))
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"a schema has 1 to {MAX_CLASSES:,} classes, got {len(self.names):,}")
        if len(set(self.names)) != len(self.names) or not all(n and n == n.strip() for n in self.names):
            raise ValueError("classes need different names, none of them empty")
        for what, values in (("colors", self.colors), ("codes", self.codes)):
            if values and len(values) != len(self.names):
                raise ValueError(f"{len(self.names)} classes have {len(values)} {what}")
        if wrong := [color for color in self.colors if not _COLOR.fullmatch(color)]:
            raise ValueError(f"a colour is written #rrggbb, got {wrong[0]!r}")
        flat = [*self.without_class, *(code for codes in self.codes for code in codes)]
        if len(set(flat)) != len(flat):
            raise ValueError("a pixel value of the map belongs to one class only")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def check(self, names: Iterable[str]) -> None:
        """Refuse names that are not classes.

        Raises:
            ValueError: If a name is unknown; the message has the nearest names.
        """
        check_names(names, self.names, "label")

    def encode(self, column: pa.ChunkedArray[Any]) -> NDArray[np.uint8]:
        """Multi-hot matrix of a column of lists of names.

        Args:
            column: list<string>, n rows, no nulls.

        Returns:
            uint8 (n, num_classes).

        Raises:
            ValueError: If a name is unknown.
        """
        lists = column.combine_chunks()
        flat = pc.list_flatten(lists)
        index = pc.index_in(flat, pa.array(self.names))
        if index.null_count:
            self.check([flat.filter(pc.is_null(index))[0].as_py()])
        out = np.zeros((len(lists), len(self)), np.uint8)
        out[pc.list_parent_indices(lists).to_numpy(), index.to_numpy()] = 1
        return out

    def labels_in(self, pixels: Array, *, name: str) -> tuple[str, ...]:
        """The classes that have at least one pixel in a map, sorted by name.

        Args:
            pixels: Values of the map, any shape, none negative.
            name: What to call the map in a message.

        Raises:
            InvalidPatchError: If a pixel has a value that the classes do not know.
        """
        found = np.flatnonzero(np.bincount(pixels.ravel())).tolist()  # seven times quicker than np.unique
        class_of = self._class_of
        unknown = [code for code in found if code not in class_of]
        if unknown:
            raise InvalidPatchError(
                f"{name}: the map has the value {unknown[0]}, which is not a code of any class "
                f"({len(class_of)} codes from {min(class_of)} to {max(class_of)})"
            )
        return tuple(sorted({label for code in found if (label := class_of[code]) is not None}))

    @cached_property
    def _class_of(self) -> Mapping[int, str | None]:
        known: dict[int, str | None] = dict.fromkeys(self.without_class)
        return known | {c: n for n, codes in zip(self.names, self.codes, strict=True) for c in codes}


@dataclass(frozen=True, kw_only=True)
class Schema(_PickledAsMade):
    """Everything that a dataset's patches have in common."""

    name: str
    """Name of the dataset, e.g. ``BigEarthNet v2.0``."""
    modalities: tuple[Modality, ...]
    """What every patch has, in the order in which it is listed."""
    classes: Classes
    """The label classes."""
    patch_m: float
    """Side of a patch on the ground, metres."""
    map_array: str | None = None
    """Batch array whose pixels have the codes of `classes`; None where there is none."""
    recommended_without: tuple[str, ...] = ()
    """Boolean columns of the metadata that exclude a patch from the recommended set."""
    description: str = ""
    """What the dataset is, in a sentence or two."""
    license: str = "other"
    """SPDX id of its licence."""

    def __post_init__(self) -> None:
        for name in ("modalities", "recommended_without"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.name.strip():
            raise ValueError("a schema needs a name")
        if not (self.patch_m > 0 and math.isfinite(self.patch_m)):
            raise ValueError(f"patch_m must be above 0, got {self.patch_m}")
        for what, names in (
            ("modalities", [m.name for m in self.modalities]),
            ("batch arrays", [a.name for a in self._arrays()]),
            ("Zarr arrays", [a.zarr_name for a in self._arrays()]),
            ("keys in an LMDB", [f"{m.key_column} + {m.key_suffix!r}" for m in self.modalities]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"the {what} of a schema need different names, got {', '.join(names)}")
        if taken := {name for a in self._arrays() for name in (a.name, a.zarr_name, *a.dims)} & RESERVED:
            raise ValueError(
                f"{sorted(taken)[0]!r} is what every batch or store holds; name the array or axis differently"
            )
        lengths: dict[str, int] = {}
        stacks: dict[str, tuple[str, ...]] = {}
        for modality in self.modalities:
            for array in modality.arrays:
                if array.stacked and stacks.setdefault(array.dims[0], array.tensors) != array.tensors:
                    # The axis has one list of names in a store.
                    raise ValueError(
                        f"axis {array.dims[0]} is {', '.join(stacks[array.dims[0]])}, and "
                        f"{', '.join(array.tensors)} in array {array.name}; name one of them differently"
                    )
                for dim, length in zip(array.dims, modality.shape_of(array), strict=True):
                    if lengths.setdefault(dim, length) != length:
                        raise ValueError(
                            f"axis {dim} has {lengths[dim]} places, and {length} in array {array.name}"
                        )
        if self.map_array is not None and self.map_array not in {a.name for a in self._arrays()}:
            raise ValueError(f"map_array {self.map_array!r} is not one of the schema's arrays")
        for tensor in (t for m in self.modalities for t in m.tensors if t.pixel_m):
            if not math.isclose(tensor.shape[-1] * tensor.pixel_m, self.patch_m):  # type: ignore[operator]
                raise ValueError(
                    f"tensor {tensor.name}: {tensor.shape[-1]} pixels of {tensor.pixel_m} m are not the "
                    f"{self.patch_m} m of a patch"
                )

    def _arrays(self) -> Iterator[ArraySpec]:
        for modality in self.modalities:
            yield from modality.arrays

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(m.name for m in self.modalities)

    def modality(self, name: str) -> Modality:
        """A modality by name.

        Raises:
            ValueError: If there is none.
        """
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise ValueError(
            f"unknown modality {name!r}; it must be one of {', '.join(self.modality_names) or 'none'}"
        )

    def owner(self, zarr_name: str) -> tuple[Modality, ArraySpec]:
        """The modality and array behind an array of a Zarr store.

        Raises:
            ValueError: If there is none.
        """
        for modality in self.modalities:
            for array in modality.arrays:
                if array.zarr_name == zarr_name:
                    return modality, array
        raise ValueError(f"{zarr_name!r} is not an array of this dataset")

    @cached_property
    def bands(self) -> Mapping[str, BandPlace]:
        """Name of a band -> its place, in order; the map is not a band.

        A band has the name of its tensor; where several modalities have one of that name,
        ``modality:tensor``, and the tensor's name alone means none of them.
        """
        found = [
            BandPlace(modality.name, array, position, modality.specs[name])
            for modality in self.modalities
            for array in modality.arrays
            for position, name in enumerate(array.tensors)
            if array.name != self.map_array and _is_band(modality.specs[name])
        ]
        names = [place.tensor.name for place in found]
        return MappingProxyType(
            {
                name if names.count(name) == 1 else f"{place.modality}:{name}": place
                for name, place in zip(names, found, strict=True)
            }
        )

    def only(self, names: Sequence[str]) -> Schema:
        """The same schema with some of its modalities, in the schema's order.

        Raises:
            ValueError: If one is unknown.
        """
        for name in names:
            self.modality(name)
        kept = tuple(m for m in self.modalities if m.name in names)
        arrays = {a.name for m in kept for a in m.arrays}
        return Schema(
            name=self.name,
            modalities=kept,
            classes=self.classes,
            patch_m=self.patch_m,
            map_array=self.map_array if self.map_array in arrays else None,
            recommended_without=self.recommended_without,
            description=self.description,
            license=self.license,
        )

    def to_json(self) -> dict[str, Any]:
        """The schema as it stands in a manifest: plain JSON, from which `from_json` makes an equal one."""
        return cast("dict[str, Any]", json.loads(json.dumps(_with_text_fills(asdict(self)))))

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """A schema that `to_json` wrote.

        Raises:
            ValueError: If a key is missing, unknown or of another type, or a value is out of bounds.
        """
        try:
            modalities = tuple(
                Modality(
                    **{
                        **one,
                        "tensors": tuple(TensorSpec(**_with_number_fill(t)) for t in one["tensors"]),
                        "arrays": tuple(ArraySpec(**a) for a in one["arrays"]),
                    }
                )
                for one in value["modalities"]
            )
            return cls(**{**value, "modalities": modalities, "classes": Classes(**value["classes"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a valid schema: {error}") from error


def _is_band(tensor: TensorSpec) -> bool:
    return tensor.pixel_m is not None and len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1]


def _with_text_fills(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    for modality in value["modalities"]:
        for tensor in modality["tensors"]:
            if isinstance(tensor["fill"], float) and not math.isfinite(tensor["fill"]):
                tensor["fill"] = str(tensor["fill"])
    return value


def _with_number_fill(tensor: Mapping[str, Any]) -> dict[str, Any]:
    fill = tensor["fill"]
    return {**tensor, "fill": float(fill) if isinstance(fill, str) else fill}
