"""Zarr v3 stores, one per product: arrays in, object bytes out, and back.

The metadata documents and the small coordinate arrays are written by zarr-python. The Zarr shards
of the patches' arrays are encoded here, because one Zarr shard is one object written once: it is
40 lines, its bytes equal zarr-python's (tested), and it costs what the codec costs. This module
returns bytes by path and knows nothing of stores, sources or STAC.

Inner chunk = one patch with all bands of the array; `blosc(zstd, 3, bitshuffle)` then `crc32c`,
because blosc notices no flipped bit.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.schema import ArraySpec, Modality

PATCHES_PER_ZARR_SHARD = 256
"""Patches in a Zarr shard of every array, so that one task owns one Zarr shard of each."""

_MISSING = 2**64 - 1
"""Offset and length of an absent chunk in a shard index (Zarr v3 sharding codec 1.0)."""

_CRC = struct.Struct("<I")

_BLOSC_HEADER_BYTES = 16
"""How much longer than its input what blosc makes can be (BLOSC_MAX_OVERHEAD)."""

_INDEX_ENTRY = np.dtype([("offset", "<u8"), ("nbytes", "<u8")])

INDEX_BYTES = _INDEX_ENTRY.itemsize * PATCHES_PER_ZARR_SHARD + 4
"""Size of the index at the end of a Zarr shard, checksum included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelArray:
    """One array of a product's store: all its patches, of some tensors of a modality."""

    name: str
    """Name in the store."""
    dims: tuple[str, ...]
    """Names of the dimensions, ``patch`` first."""
    shape: tuple[int, ...]
    """Shape of one patch."""
    dtype: np.dtype[Any]
    """Dtype of the values."""
    fill_value: float
    """Zarr's fill value; no patch is ever left out, so readers never see it."""
    units: str | None
    """Units, for the ``units`` attribute."""
    labels: tuple[str, ...]
    """Names along the first dimension of a patch, such as bands; empty where it has none."""

    @property
    def nbytes(self) -> int:
        """Bytes of one patch."""
        return math.prod(self.shape) * self.dtype.itemsize


def pixel_array(modality: Modality, array: ArraySpec) -> PixelArray:
    """The Zarr array that holds one of a modality's batch arrays."""
    tensor = modality.tensor_of(array)
    return PixelArray(
        name=array.zarr_name,
        dims=("patch", *array.dims),
        shape=modality.shape_of(array),
        dtype=tensor.storage,
        fill_value=tensor.fill,
        units=tensor.units,
        labels=array.tensors if array.stacked else (),
    )


def pixel_arrays(modality: Modality) -> tuple[PixelArray, ...]:
    """The Zarr arrays that hold a modality, in the order of its batch arrays."""
    return tuple(pixel_array(modality, array) for array in modality.arrays)


def num_zarr_shards(num_patches: int) -> int:
    """How many Zarr shards each array of a product has."""
    return -(-num_patches // PATCHES_PER_ZARR_SHARD)


def encode_shard(array: PixelArray, patches: NDArray[Any]) -> memoryview:
    """A Zarr shard of up to 256 patches.

    Args:
        array: Which array.
        patches: Values, shape (n, *shape of a patch), n in [1, 256]. Fewer than 256 only in the
            last Zarr shard of a product; what is beyond the array's end stays absent.

    Raises:
        ValueError: If shape or dtype are not the array's.
    """
    if patches.shape[1:] != array.shape or patches.dtype != array.dtype:
        raise ValueError(
            f"{array.name} takes {array.dtype} of shape (n, {array.shape}), got {patches.dtype} {patches.shape}"
        )
    if not 1 <= len(patches) <= PATCHES_PER_ZARR_SHARD:
        raise ValueError(f"a Zarr shard holds 1 to {PATCHES_PER_ZARR_SHARD} patches, got {len(patches)}")
    codec = _blosc()
    index = np.full(PATCHES_PER_ZARR_SHARD, _MISSING, _INDEX_ENTRY)
    # Room for patches that do not shrink at all; memory that is not written to is never taken.
    most = patches.nbytes + len(patches) * (_BLOSC_HEADER_BYTES + _CRC.size) + INDEX_BYTES
    shard, position = np.empty(most, np.uint8).data, 0

    def append(data: bytes) -> int:
        shard[position : position + len(data)] = data
        end = position + len(data)
        _CRC.pack_into(shard, end, google_crc32c.value(data))
        return end + _CRC.size

    for row, patch in enumerate(np.ascontiguousarray(patches)):
        start, position = position, append(codec.encode(patch))
        index[row] = (start, position - start)
    return shard[: append(index.tobytes())]


def decode_shard(
    array: PixelArray, shard: bytes | memoryview, *, rows: NDArray[np.int64] | None = None, name: str = ""
) -> NDArray[Any]:
    """The patches of a Zarr shard, checksums verified.

    Args:
        array: Which array.
        shard: The whole object.
        rows: Which patches, in this order; all that are there by default.
        name: What to call the object in messages.

    Returns:
        Values, shape (len(rows), *shape of a patch).

    Raises:
        ChecksumError: If the index or a chunk is damaged.
    """
    data = memoryview(shard)
    index = decode_index(data[-INDEX_BYTES:], name=name or array.name)
    if rows is None:
        rows = np.flatnonzero(index["offset"] != _MISSING)
    out = np.empty((len(rows), *array.shape), array.dtype)
    for position, row in enumerate(rows.tolist()):
        start, size = chunk_range(index, row, name=name or array.name)
        # With "...", a patch that is a single value is a view too.
        decode_chunk(
            data[start : start + size], out[position, ...], name=f"{name or array.name}: patch {row}"
        )
    return out


def decode_index(tail: memoryview, *, name: str) -> NDArray[Any]:
    """Where the chunks of a Zarr shard lie, from its last `INDEX_BYTES` bytes.

    Raises:
        ChecksumError: If the index is damaged.
    """
    if tail.nbytes != INDEX_BYTES:
        raise ChecksumError(
            f"{name}: a Zarr shard of {tail.nbytes} bytes has no index, it is cut off; copy it again from where the "
            "root was made"
        )
    return np.frombuffer(_without_crc32c(tail, f"{name}: index"), _INDEX_ENTRY)


def check_chunks(part: memoryview, start: int, index: NDArray[Any], *, name: str) -> None:
    """Compare the chunks that lie whole in a part of a Zarr shard with their checksums.

    Args:
        part: Some bytes of the object.
        start: Where in it they begin.
        index: Where its chunks lie, of `decode_index`.
        name: What to call the object in messages.

    Raises:
        ChecksumError: If a chunk is damaged.
    """
    first, nbytes = index["offset"], index["nbytes"]
    inside = (first != _MISSING) & (first >= start) & (first + nbytes <= start + part.nbytes)
    for row in np.flatnonzero(inside).tolist():
        at = int(first[row]) - start
        _without_crc32c(part[at : at + int(nbytes[row])], f"{name}: patch {row}")


def chunk_range(index: NDArray[Any], row: int, *, name: str) -> tuple[int, int]:
    """(First byte, bytes) of the chunk of the patch at `row` of its Zarr shard.

    Raises:
        ChecksumError: If it is not there.
    """
    start, size = int(index["offset"][row]), int(index["nbytes"][row])
    if start == _MISSING:
        raise ChecksumError(f"{name}: patch {row} is not in the Zarr shard")
    return start, size


def decode_chunk(chunk: memoryview, out: NDArray[Any], *, name: str) -> None:
    """Decode one patch into `out`, contiguous, of its array's shape and dtype.

    Raises:
        ChecksumError: If the chunk is damaged.
    """
    _blosc().decode(_without_crc32c(chunk, name), out=out)


def read_patch_ids(get: Callable[[str], memoryview], *, name: str) -> NDArray[np.bytes_]:
    """The patch ids of a product's store, in the order of its rows.

    Args:
        get: Reads an object of the store.
        name: What to call the store in messages.

    Raises:
        ChecksumError: If they cannot be decoded.
    """
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    paths = (f"{PLACED_BY}/zarr.json", f"{PLACED_BY}/c/0")
    make = default_buffer_prototype().buffer.from_bytes
    objects = {path: make(bytes(get(path))) for path in paths}
    try:
        array: Any = zarr.open_array(MemoryStore(objects), path=PLACED_BY, mode="r", zarr_format=3)
        return np.array([text.encode() for text in array[:].tolist()])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ChecksumError(f"{name}: patch_id cannot be read, it is damaged: {error}") from error


PLACED_BY = "patch_id"
"""The coordinate that says which patch each row is; it can be read without the rest of a store."""

Coordinates = Mapping[str, tuple[tuple[str, ...], NDArray[Any], Mapping[str, Any]]]
"""Name -> (dims, values, attributes) of the small arrays of a store."""


def is_said_once(name: str, values: NDArray[Any]) -> bool:
    """Whether a coordinate has one value, which its metadata say as the fill value, and so no chunk.

    In a product of one patch that is so of places, times and the split.
    """
    return name != PLACED_BY and bool(values.size) and bool((values == values.flat[0]).all())


def num_product_objects(arrays: Sequence[PixelArray], num_coordinates: int, num_said_once: int) -> int:
    """How many objects `product_objects` gives: the group, each pixel array's metadata, and of coordinates the chunks.

    Args:
        arrays: The pixel arrays.
        num_coordinates: All small arrays.
        num_said_once: Those of them that have one value (`is_said_once`).
    """
    return 1 + len(arrays) + num_coordinates - num_said_once + 1  # and the metadata of PLACED_BY


def product_objects(
    *,
    num_patches: int,
    arrays: Sequence[PixelArray],
    coordinates: Coordinates,
    attributes: Mapping[str, Any],
) -> dict[str, bytes]:
    """Every object of a product's store but the Zarr shards, metadata consolidated.

    A small root has a product for each patch or two, so objects are few: the metadata of coordinates stand in the
    group's document alone, and one with a single value has no chunk. Pixel arrays and `PLACED_BY` keep documents of
    their own, for readers that open an array by itself.

    Args:
        num_patches: Length of the ``patch`` dimension.
        arrays: The pixel arrays of the store.
        coordinates: The small arrays.
        attributes: Attributes of the group.

    Returns:
        Path below the store -> bytes, the root ``zarr.json`` last: a store is whole once it has it.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    objects: dict[str, Any] = {}
    store = MemoryStore(objects)
    group = zarr.create_group(store, zarr_format=3, attributes=dict(attributes))
    for spec in arrays:
        units = {} if spec.units is None else {"units": spec.units}
        group.create_array(
            spec.name,
            shape=(num_patches, *spec.shape),
            chunks=(1, *spec.shape),
            shards=(PATCHES_PER_ZARR_SHARD, *spec.shape),
            dtype=spec.dtype,
            compressors=[
                BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=spec.dtype.itemsize),
                Crc32cCodec(),
            ],
            fill_value=spec.fill_value,
            dimension_names=spec.dims,
            attributes={**units, "grid_mapping": "spatial_ref"},
            config={"write_empty_chunks": True},
        )
    for name, (dims, values, attrs) in coordinates.items():
        is_text = values.dtype.kind in "OUT"
        once = is_said_once(name, values)
        fill = {"fill_value": values.flat[0]} if once else {}
        array: Any = group.create_array(
            name,
            shape=values.shape,
            chunks=tuple(max(1, n) for n in values.shape) or (),
            dtype="string" if is_text else values.dtype,
            dimension_names=dims,
            attributes=dict(attrs),
            config={"write_empty_chunks": True},
            **fill,
        )
        if not once:
            array[...] = values
    with warnings.catch_warnings():
        # zarr-python calls consolidated metadata experimental; the v3 core text describes it.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(store, zarr_format=3)
    found = {path: value.to_bytes() for path, value in sorted(objects.items())}
    for name in coordinates:
        if name != PLACED_BY:
            del found[f"{name}/zarr.json"]
    found["zarr.json"] = found.pop("zarr.json")
    return found


def label_coordinates(arrays: Sequence[PixelArray], classes: Sequence[str]) -> Coordinates:
    """The names along each array's first dimension, such as bands, and the class names along ``label``."""
    found: dict[str, tuple[tuple[str, ...], NDArray[Any], Mapping[str, Any]]] = {}
    for array in arrays:
        if array.labels:
            dim = array.dims[1]
            found[dim] = ((dim,), np.array(array.labels, dtype=object), {"long_name": "band"})
    found["label"] = (
        ("label",),
        np.array(classes, dtype=object),
        {"long_name": f"class of the {len(classes)}-class nomenclature"},
    )
    return found


def _blosc() -> Blosc:
    return Blosc("zstd", 3, Blosc.BITSHUFFLE)


def _without_crc32c(data: memoryview, name: str) -> bytes:
    body = bytes(data[:-4])
    if len(data) < 4 or _CRC.pack(google_crc32c.value(body)) != data[-4:]:
        raise ChecksumError(
            f"{name}: the crc32c checksum does not match, the bytes are damaged; copy the object again from where the "
            "root was made"
        )
    return body
