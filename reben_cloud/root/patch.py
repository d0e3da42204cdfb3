"""A patch and its payloads: the one value that every source yields and every format stores.

A payload is the safetensors record of one modality, byte for byte what rico-hdl writes to LMDB
(tensors sorted by dtype size, then name; header padded to 8 bytes). Its header is the same for
every patch, so a payload is checked by comparing bytes and read by slicing, without parsing.
This module knows nothing of files, stores or metadata tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import ARRAYS, BANDS, MODALITIES
from reben_cloud.errors import InvalidPatchError

Array = NDArray[np.generic]
Buffer = bytes | bytearray | memoryview

MAP_TENSOR = "Data"
"""rico-hdl's name for the only tensor of a reference-map record."""

MAP_SHAPE = (120, 120)
"""Height and width of a reference map, 10 m pixels."""

_SAFETENSORS_DTYPE = {"uint16": "U16", "float32": "F32"}


class Tensor(NamedTuple):
    """Where one tensor lies in a payload."""

    offset: int
    """Bytes from the start of the payload, header included."""
    shape: tuple[int, int]
    """Height and width in pixels."""
    dtype: np.dtype[np.generic]
    """Little-endian dtype of the pixels."""


def _layout(tensors: Mapping[str, tuple[tuple[int, int], str]]) -> tuple[bytes, dict[str, Tensor]]:
    """Header bytes and tensor positions of a safetensors record whose tensors are sorted by name."""
    header: dict[str, object] = {}
    position = 0
    for name, (shape, dtype) in sorted(tensors.items()):
        end = position + shape[0] * shape[1] * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _SAFETENSORS_DTYPE[dtype],
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    places = {
        name: Tensor(
            start + entry["data_offsets"][0],  # type: ignore[index]
            tensors[name][0],
            np.dtype(tensors[name][1]).newbyteorder("<"),
        )
        for name, entry in header.items()
    }
    return len(text).to_bytes(8, "little") + text, places


def _modality_tensors(modality: str) -> dict[str, tuple[tuple[int, int], str]]:
    if modality == "map":
        return {MAP_TENSOR: (MAP_SHAPE, "uint16")}
    names = [band for array in MODALITIES[modality] for band in ARRAYS[array]]
    return {name: ((BANDS[name].size_px, BANDS[name].size_px), BANDS[name].dtype) for name in names}


_LAYOUTS = {modality: _layout(_modality_tensors(modality)) for modality in MODALITIES}

PAYLOAD_HEADER: Mapping[str, bytes] = MappingProxyType({m: h for m, (h, _) in _LAYOUTS.items()})
"""First bytes of every payload of a modality: header length and safetensors header."""

TENSORS: Mapping[str, Mapping[str, Tensor]] = MappingProxyType(
    {m: MappingProxyType(t) for m, (_, t) in _LAYOUTS.items()}
)
"""Modality -> tensor name -> place in the payload. Bands by name, the map as ``Data``."""

PAYLOAD_BYTES: Mapping[str, int] = MappingProxyType(
    {
        m: max(t.offset + t.shape[0] * t.shape[1] * t.dtype.itemsize for t in tensors.values())
        for m, tensors in TENSORS.items()
    }
)
"""Size of a payload of each modality: s2 160,832, s1 115,344, map 28,880 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchInfo:
    """What the official metadata says of one patch."""

    patch_id: str
    """Name of the patch: 50 characters, indices padded with zeros."""
    labels: tuple[str, ...]
    """Class names, sorted, 1 to 19 of them."""
    split: str
    """``train``, ``validation`` or ``test``."""
    country: str
    """English name of the nearest of the ten countries."""
    s1_name: str
    """Name of the Sentinel-1 patch that belongs to it; indices not padded."""
    s2v1_name: str
    """Name of the same patch in BigEarthNet v1."""
    contains_seasonal_snow: bool
    """Listed by the authors as covered by seasonal snow."""
    contains_cloud_or_shadow: bool
    """Listed by the authors as covered by cloud or cloud shadow."""

    @property
    def recommended(self) -> bool:
        """Whether training recipes use the patch: no snow, no cloud, no shadow."""
        return not (self.contains_seasonal_snow or self.contains_cloud_or_shadow)


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """One patch: its metadata, and the payload of every modality that is there."""

    info: PatchInfo
    """The metadata of the patch."""
    payloads: Mapping[str, bytes]
    """Modality (``s2``, ``s1``, ``map``) -> payload; a modality may be missing."""

    def __post_init__(self) -> None:
        for modality, payload in self.payloads.items():
            check_payload(modality, payload, name=self.info.patch_id)

    def arrays(self) -> dict[str, Array]:
        """All arrays of the patch, as in `decode_payload`."""
        return {
            name: array
            for modality, payload in self.payloads.items()
            for name, array in decode_payload(modality, payload).items()
        }


def lmdb_key(modality: str, info: PatchInfo) -> str:
    """Key of a payload in a rico-hdl LMDB: S1 by its own name, a map with a suffix."""
    if modality == "s1":
        return info.s1_name
    return f"{info.patch_id}_reference_map" if modality == "map" else info.patch_id


def check_payload(modality: str, payload: Buffer, *, name: str) -> None:
    """Refuse bytes that are not a payload of `modality`; costs one comparison of the header.

    Args:
        modality: ``s2``, ``s1`` or ``map``.
        payload: The bytes to check.
        name: What to call the payload in the message.

    Raises:
        InvalidPatchError: If the size or the header is not the modality's.
    """
    header = PAYLOAD_HEADER[modality]
    size = memoryview(payload).nbytes
    if size != PAYLOAD_BYTES[modality]:
        raise InvalidPatchError(
            f"{name}: the {modality} payload must have {PAYLOAD_BYTES[modality]:,} bytes, got {size:,}; "
            f"{_difference(modality, payload)}"
        )
    if bytes(memoryview(payload)[: len(header)]) != header:
        raise InvalidPatchError(
            f"{name}: the {modality} payload has another safetensors header than the one expected; "
            f"{_difference(modality, payload)}"
        )


def _difference(modality: str, payload: Buffer) -> str:
    """In what a record is not a payload of `modality`, in words."""
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
    wrong = [f"lacks {name}" for name in TENSORS[modality] if name not in found]
    wrong += [
        f"has {name}, which is not a tensor of {modality}" for name in found if name not in TENSORS[modality]
    ]
    for name, tensor in TENSORS[modality].items():
        if name not in found:
            continue
        dtype, shape, _ = found[name]
        expected = _SAFETENSORS_DTYPE[tensor.dtype.name]
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
            "its tensors are right, but written in another order or with other padding than rico-hdl's"
        )
    return "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} differences more" if len(wrong) > 4 else "")


def encode_payload(modality: str, arrays: Mapping[str, Array], *, name: str = "patch") -> bytes:
    """Encode one array a band (or the map) as the payload that rico-hdl would store.

    Args:
        modality: ``s2``, ``s1`` or ``map``.
        arrays: Band name -> array (y, x) in native resolution and dtype; the map as ``Data``.
        name: What to call the patch in a message.

    Returns:
        `PAYLOAD_BYTES` of the modality.

    Raises:
        InvalidPatchError: If a band is missing, unknown, or of another shape or dtype.
    """
    tensors = TENSORS[modality]
    if arrays.keys() != tensors.keys():
        raise InvalidPatchError(
            f"{name}: {modality} must have the bands {', '.join(tensors)}, got {', '.join(sorted(arrays))}"
        )
    parts = [PAYLOAD_HEADER[modality]]
    for band, tensor in tensors.items():
        array = arrays[band]
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            raise InvalidPatchError(
                f"{name}: band {band} must be {tensor.dtype.name} of shape {tensor.shape}, "
                f"got {array.dtype.name} of shape {array.shape}"
            )
        parts.append(array.tobytes())
    return b"".join(parts)


def decode_tensors(modality: str, payload: Buffer) -> dict[str, Array]:
    """One view (y, x) into `payload` a tensor, by the tensor's own name; nothing is copied."""
    return {
        name: np.frombuffer(payload, t.dtype, t.shape[0] * t.shape[1], t.offset).reshape(t.shape)
        for name, t in TENSORS[modality].items()
    }


def decode_payload(modality: str, payload: Buffer) -> dict[str, Array]:
    """The stacked arrays of a payload.

    Returns:
        ``s2`` -> ``s2_10m`` (4, 120, 120), ``s2_20m`` (6, 60, 60), ``s2_60m`` (2, 20, 20) uint16;
        ``s1`` -> ``s1`` (2, 120, 120) float32, dB; ``map`` -> ``map`` (120, 120) uint16 CLC codes.
    """
    tensors = decode_tensors(modality, payload)
    if modality == "map":
        return {"map": tensors[MAP_TENSOR]}
    return {array: np.stack([tensors[band] for band in ARRAYS[array]]) for array in MODALITIES[modality]}
