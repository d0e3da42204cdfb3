"""The pixels of one official GeoTIFF: a single band, its dtype, its size, its place on the ground.

The official profiles are read here: uncompressed strips one after the other are sliced out of the
file, and the deflated strips of a reference map are inflated; that is two to three times quicker than
libtiff, which takes most of its time to open a file. Whatever else is a TIFF goes through imagecodecs.
This module knows nothing of folders or archives.
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
_SAMPLES, _STRIP_BYTES, _PREDICTOR, _SAMPLE_FORMAT = 277, 279, 317, 339
_PIXEL_SCALE, _TIE_POINT, _GEO_KEYS = 33550, 33922, 34735
_GEO_TAGS = (_PIXEL_SCALE, _TIE_POINT, _GEO_KEYS)
_PROJECTED_CRS = 3072

_UNCOMPRESSED, _DEFLATE = 1, 8  # Adobe's deflate (TIFF Technical Note 3), GDAL's

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


@dataclass(frozen=True, slots=True)
class _Deflated(_Layout):
    """Strips of whole rows, deflated, each pixel less its left neighbour: the official reference maps."""

    strips: struct.Struct
    """Reads one number a strip."""
    starts_at: int
    """Of the strips' places, bytes from the start of the file."""
    sizes_at: int
    """Of the strips' sizes."""


_layouts: dict[int, _Layout] = {}  # by file size: the official files have three
_deflated: list[_Deflated] = []  # the last one met: the sizes of such files differ


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
    layout = _layout(data, name)
    if layout.dtype is None:
        pixels: bytes | memoryview = _decode(data, tensor, name)
    elif layout.dtype != tensor.dtype or layout.shape != tensor.shape:
        raise _wrong(name, tensor, layout.dtype, layout.shape)
    elif isinstance(layout, _Deflated):
        pixels = _inflate(data, layout, name)
    elif layout.start + layout.nbytes > len(data):
        raise SourceError(
            f"{name}: truncated, its pixels end at byte {layout.start + layout.nbytes:,} "
            f"and the file at {len(data):,}"
        )
    else:
        pixels = memoryview(data)[layout.start : layout.start + layout.nbytes]
    _check_place(data, layout, tensor, footprint, name)
    return pixels


def _layout(data: bytes, name: str) -> _Layout:
    """The layout of a file: that of an earlier one that starts with the same bytes, or its own."""
    layout = _layouts.get(len(data))
    if layout is not None and data.startswith(layout.prefix):
        return layout
    if _deflated and data.startswith(_deflated[0].prefix):
        return _deflated[0]
    layout = _parse(data, name)
    if isinstance(layout, _Deflated):
        _deflated[:] = [layout]
    else:
        _layouts[len(data)] = layout
    return layout


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
        coding = tags.get(_COMPRESSION, (1,))[0], tags.get(_PREDICTOR, (1,))[0], tags.get(_SAMPLES, (1,))[0]
        plain = coding == (_UNCOMPRESSED, 1, 1) and all(
            a + n == b for a, n, b in zip(strips, sizes, strips[1:], strict=False)
        )
    except (KeyError, IndexError):
        # No strips (tiles), or none that we understand.
        return _unknown(data)
    except struct.error as error:
        raise SourceError(f"{name}: a truncated TIFF, it ends at byte {len(data):,}") from error
    if plain and dtype is not None and sum(sizes) != shape[0] * shape[1] * dtype.itemsize:
        plain = False
    if coding == (_DEFLATE, 2, 1) and dtype == np.dtype("<u2") and len(strips) == len(sizes) > 1:
        return _deflated_layout(data, tags, shape, dtype)
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


def _deflated_layout(
    data: bytes, tags: Mapping[int, tuple[int, ...]], shape: tuple[int, int], dtype: np.dtype[Any]
) -> _Layout:
    """The layout of a file with deflated strips, good for every file with the same directory."""
    starts, sizes = tags[_STRIP_OFFSETS + _AT], tags[_STRIP_BYTES + _AT]
    form = struct.Struct(f"<{len(tags[_STRIP_OFFSETS])}I")
    end = tags[_END + _AT][1]
    if (
        starts[1] - starts[0] != form.size
        or sizes[1] - sizes[0] != form.size
        or min(starts[0], sizes[0]) < end
    ):
        return _unknown(data)
    return _Deflated(
        prefix=data[:end],
        dtype=dtype,
        shape=shape,
        start=0,
        nbytes=0,
        scale_at=tags[_PIXEL_SCALE + _AT][0] if _PIXEL_SCALE in tags else None,
        tie_at=tags[_TIE_POINT + _AT][0] if _TIE_POINT in tags else None,
        epsg_at=_crs_key(tags),
        strips=form,
        starts_at=starts[0],
        sizes_at=sizes[0],
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


def _inflate(data: bytes, layout: _Deflated, name: str) -> bytes:
    imagecodecs = _imagecodecs()
    height, width = layout.shape
    nbytes = 2 * height * width
    try:
        starts = layout.strips.unpack_from(data, layout.starts_at)
        sizes = layout.strips.unpack_from(data, layout.sizes_at)
        rows = b"".join(
            [
                imagecodecs.deflate_decode(data[a : a + n], out=nbytes)
                for a, n in zip(starts, sizes, strict=True)
            ]
        )
    except (imagecodecs.DeflateError, struct.error) as error:
        raise SourceError(f"{name}: not a readable TIFF ({error}); is the file truncated?") from error
    if len(rows) != nbytes:
        raise SourceError(f"{name}: its strips hold {len(rows):,} bytes of pixels, must be {nbytes:,}")
    pixels = np.frombuffer(rows, "<u2").reshape(height, width)
    return np.asarray(imagecodecs.delta_decode(pixels, axis=1)).tobytes()


def _imagecodecs() -> Any:
    try:
        import imagecodecs
    except ImportError as error:
        raise missing_extra("imagecodecs", "geo") from error
    return imagecodecs


def _decode(data: bytes, tensor: Tensor, name: str) -> bytes:
    imagecodecs = _imagecodecs()
    try:
        array = np.asarray(imagecodecs.tiff_decode(data))
    except (imagecodecs.TiffError, ValueError, IndexError, RuntimeError) as error:
        raise SourceError(f"{name}: not a readable TIFF ({error}); is the file truncated?") from error
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise _wrong(name, tensor, array.dtype, array.shape)
    return array.astype(tensor.dtype, copy=False).tobytes()
