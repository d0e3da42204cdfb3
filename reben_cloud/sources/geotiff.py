"""The pixels of one official GeoTIFF: a single band, its dtype, its size, its place on the ground.

The official profile (classic TIFF, uncompressed strips, one after the other) is sliced out of the
file, three times quicker than libtiff through imagecodecs; whatever else is a TIFF, such as the
deflated reference maps, goes through imagecodecs. This module knows nothing of folders or archives.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reben_cloud.errors import InvalidPatchError, SourceError, missing_extra
from reben_cloud.patch import Tensor

Footprint = tuple[int, int, int, int, int]
"""(epsg, minx, miny, maxx, maxy), metres, as `grid.footprint` gives it."""

# TIFF 6.0 tags, and those of OGC GeoTIFF 1.1.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _STRIP_OFFSETS = 256, 257, 258, 259, 273
_SAMPLES, _STRIP_BYTES, _SAMPLE_FORMAT = 277, 279, 339
_PIXEL_SCALE, _TIE_POINT, _GEO_KEYS = 33550, 33922, 34735
_GEO_TAGS = (_PIXEL_SCALE, _TIE_POINT, _GEO_KEYS)
_PROJECTED_CRS = 3072

_TYPE_CODES = {3: "H", 4: "I", 12: "d"}
_DTYPES: Mapping[tuple[int, int], np.dtype[Any]] = {(16, 1): np.dtype("<u2"), (32, 3): np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things lie in every file that starts with the same bytes."""

    prefix: bytes
    """Everything before the georeferencing: the tags and the places of the strips."""
    dtype: np.dtype[Any] | None
    """None: not the official profile, imagecodecs decides."""
    shape: tuple[int, int]
    """Height and width, pixels."""
    start: int
    """Of the pixels, bytes from the start of the file."""
    nbytes: int
    """Of the pixels."""
    scale_at: int | None
    """Of the pixel size, bytes from the start of the file; None when there is none."""
    tie_at: int | None
    """Of the tie point."""
    epsg_at: int | None
    """Of the key that holds the projected CRS."""


_layouts: dict[int, _Layout] = {}  # by file size: the official files have four


def read_pixels(data: bytes, tensor: Tensor, footprint: Footprint, *, name: str) -> bytes | memoryview:
    """The pixels of one band, row by row, little-endian: as they lie in a payload.

    Args:
        data: The whole file.
        tensor: What the band must be.
        footprint: Where its patch lies; a file that says something else is another patch's.
        name: What to call the file in messages.

    Raises:
        SourceError: If the file is no TIFF, is truncated, or lies elsewhere.
        InvalidPatchError: If its dtype or shape is not the band's.
    """
    layout = _layouts.get(len(data))
    if layout is None or not data.startswith(layout.prefix):
        layout = _parse(data, name)
        _layouts[len(data)] = layout
    if layout.dtype is None:
        pixels: bytes | memoryview = _decode(data, tensor, name)
    elif layout.dtype != tensor.dtype or layout.shape != tensor.shape:
        raise _wrong(name, tensor, layout.dtype, layout.shape)
    elif layout.start + layout.nbytes > len(data):
        raise SourceError(
            f"{name}: truncated, its pixels end at byte {layout.start + layout.nbytes:,} "
            f"and the file at {len(data):,}"
        )
    else:
        pixels = memoryview(data)[layout.start : layout.start + layout.nbytes]
    _check_place(data, layout, tensor, footprint, name)
    return pixels


def _wrong(name: str, tensor: Tensor, dtype: np.dtype[Any], shape: tuple[int, ...]) -> InvalidPatchError:
    return InvalidPatchError(
        f"{name}: must be {tensor.dtype.name} of shape {tensor.shape}, got {dtype.name} of shape {shape}"
    )


def _check_place(data: bytes, layout: _Layout, tensor: Tensor, footprint: Footprint, name: str) -> None:
    epsg, minx, _, maxx, maxy = footprint
    if layout.tie_at is not None:
        column, row, _, x, y, _ = struct.unpack_from("<6d", data, layout.tie_at)
        if (column, row, x, y) != (0, 0, minx, maxy):
            raise SourceError(
                f"{name}: its upper left corner is ({x:.1f}, {y:.1f}) m, the patch's is ({minx}, {maxy}); "
                "is it the file of another patch?"
            )
    if layout.scale_at is not None:
        width, height = struct.unpack_from("<2d", data, layout.scale_at)
        size = (maxx - minx) / tensor.shape[1]
        if (width, height) != (size, size):
            raise SourceError(f"{name}: a pixel is {width:g} x {height:g} m, must be {size:g} x {size:g}")
    if layout.epsg_at is not None:
        key, _, _, code = struct.unpack_from("<4H", data, layout.epsg_at)
        if key == _PROJECTED_CRS and code != epsg:
            raise SourceError(f"{name}: is in EPSG:{code}, the patch lies in EPSG:{epsg}")


def _parse(data: bytes, name: str) -> _Layout:
    """The layout of a file, from its first image directory."""
    if data[:4] != b"II*\0":
        if data[:4] in (b"MM\0*", b"II+\0", b"MM\0+"):
            return _unknown(data)
        raise SourceError(f"{name}: not a TIFF, it starts with {data[:4]!r}")
    try:
        tags = _read_tags(data)
        shape = (tags[_HEIGHT][0], tags[_WIDTH][0])
        strips, sizes = tags[_STRIP_OFFSETS], tags[_STRIP_BYTES]
        dtype = _DTYPES.get((tags[_BITS][0], tags.get(_SAMPLE_FORMAT, (1,))[0]))
        plain = (
            tags.get(_COMPRESSION, (1,))[0] == 1
            and tags.get(_SAMPLES, (1,))[0] == 1
            and all(a + n == b for a, n, b in zip(strips, sizes, strips[1:], strict=False))
        )
    except (KeyError, IndexError):
        # No strips (tiles), or none that we understand.
        return _unknown(data)
    except struct.error as error:
        raise SourceError(f"{name}: a truncated TIFF, it ends at byte {len(data):,}") from error
    if plain and dtype is not None and sum(sizes) != shape[0] * shape[1] * dtype.itemsize:
        plain = False
    geo = min((tags[tag + _AT][0] for tag in _GEO_TAGS if tag in tags), default=len(data))
    structure = max(tags[tag + _AT][1] for tag in (_HEIGHT, _STRIP_OFFSETS, _STRIP_BYTES, _END))
    return _Layout(
        # A compressed file has its own strip sizes, and other writers other places for their tags.
        prefix=data[:geo] if plain and structure <= geo else data,
        dtype=dtype if plain else None,
        shape=shape,
        start=strips[0],
        nbytes=sum(sizes),
        scale_at=tags[_PIXEL_SCALE + _AT][0] if _PIXEL_SCALE in tags else None,
        tie_at=tags[_TIE_POINT + _AT][0] if _TIE_POINT in tags else None,
        epsg_at=_crs_key(tags),
    )


def _unknown(data: bytes) -> _Layout:
    """A file that imagecodecs may understand; its bytes say nothing of other files."""
    return _Layout(data, None, (0, 0), 0, 0, None, None, None)


_AT = 1 << 16  # added to a tag's number: where its values begin and end
_END = 0  # no tag's number: the directory itself


def _read_tags(data: bytes) -> Mapping[int, tuple[int, ...]]:
    """Values of the known tags of the first image directory, and where they lie."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    tags: dict[int, tuple[int, ...]] = {_END + _AT: (start, start + 2 + 12 * count)}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from("<HHI", data, entry)
        code = _TYPE_CODES.get(kind)
        if code is None:
            continue
        where = entry + 8
        nbytes = struct.calcsize(f"<{length}{code}")
        if nbytes > 4:
            (where,) = struct.unpack_from("<I", data, where)
        tags[tag] = struct.unpack_from(f"<{length}{code}", data, where)
        tags[tag + _AT] = (where, where + nbytes)
    return tags


def _crs_key(tags: Mapping[int, tuple[int, ...]]) -> int | None:
    """Where the entry of the projected CRS lies in the directory of geo keys."""
    keys = tags.get(_GEO_KEYS, ())
    for position in range(4, len(keys) - 3, 4):
        if keys[position] == _PROJECTED_CRS:
            return tags[_GEO_KEYS + _AT][0] + 2 * position
    return None


def _decode(data: bytes, tensor: Tensor, name: str) -> bytes:
    try:
        import imagecodecs
    except ImportError as error:
        raise missing_extra("imagecodecs", "geo") from error
    try:
        array = np.asarray(imagecodecs.tiff_decode(data))
    except (imagecodecs.TiffError, ValueError, IndexError, RuntimeError) as error:
        raise SourceError(f"{name}: not a readable TIFF ({error}); is the file truncated?") from error
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise _wrong(name, tensor, array.dtype, array.shape)
    return array.astype(tensor.dtype, copy=False).tobytes()
