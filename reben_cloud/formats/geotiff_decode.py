"""The pixels of one official GeoTIFF: a single band, its dtype, its size, its place on the ground.

The official profiles are read here: uncompressed strips one after the other are sliced out of the
file, and the deflated strips of a reference map are inflated; that is two to three times quicker than
libtiff, which takes most of its time to open a file. Whatever else is a TIFF goes through imagecodecs.
This module knows nothing of folders or archives.
"""

from __future__ import annotations

import contextlib
import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reben_cloud.errors import InvalidPatchError, SourceError, missing_extra
from reben_cloud.schema import Place
from reben_cloud.wording import counted

Footprint = tuple[int, int, int, int, int]
"""(epsg, minx, miny, maxx, maxy), metres, as `grid.footprint` gives it."""

# TIFF 6.0 tags, and those of OGC GeoTIFF 1.1.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _FILL_ORDER, _STRIP_OFFSETS = 256, 257, 258, 259, 266, 273
_ORIENTATION, _SAMPLES, _STRIP_BYTES, _PREDICTOR, _SAMPLE_FORMAT = 274, 277, 279, 317, 339
_SUBFILE, _NODATA = 254, 42113  # the second is GDAL's: a number as text
_IS_MASK = 4  # bit of the first
_PIXEL_SCALE, _TIE_POINT, _TRANSFORMATION, _GEO_KEYS = 33550, 33922, 34264, 34735
_GEO_TAGS = (_PIXEL_SCALE, _TIE_POINT, _TRANSFORMATION, _GEO_KEYS)
_STRUCTURE_TAGS = (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _FILL_ORDER, _STRIP_OFFSETS, _ORIENTATION, _SAMPLES)
_TAGS = frozenset((*_STRUCTURE_TAGS, _STRIP_BYTES, _PREDICTOR, _SAMPLE_FORMAT, _SUBFILE, _NODATA, *_GEO_TAGS))
_MODEL_TYPE, _RASTER_TYPE, _GEOGRAPHIC_CRS, _PROJECTED_CRS, _PROJECTION = 1024, 1025, 2048, 3072, 3074
_PROJECTED, _PIXEL_IS_POINT, _USER_DEFINED, _WGS84 = 1, 2, 32767, 4326

_UNCOMPRESSED, _DEFLATE = 1, 8  # Adobe's deflate (TIFF Technical Note 3), GDAL's

_TYPE_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 12: "d", 13: "I", 16: "Q"}
_DTYPES: Mapping[tuple[int, int], np.dtype[Any]] = {(16, 1): np.dtype("<u2"), (32, 3): np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class _Directory:
    """The known tags of the first image directory, in any byte order, classic or BigTIFF."""

    order: str
    """Of the bytes, as `struct` writes it."""
    is_classic: bool
    """Not a BigTIFF."""
    end: int
    """Of the directory itself and the place of the next one, bytes from the start of the file."""
    following: int
    """Place of the next directory, of an overview or a mask; 0 without one."""
    values: Mapping[int, tuple[int | float, ...]]
    """Tag -> its values."""
    spans: Mapping[int, tuple[int, int]]
    """Tag -> where its values begin and end."""

    def number(self, tag: int, default: int | None = None) -> int:
        """The first value of a tag; KeyError if it has none and no default."""
        values = self.values.get(tag, () if default is None else (default,))
        if not values:
            raise KeyError(tag)
        return int(values[0])

    def numbers(self, tag: int) -> tuple[int, ...]:
        """All values of a tag; KeyError if it has none."""
        return tuple(int(value) for value in self.values[tag])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file says that its pixels are on the ground; bytes from the start of the file, None when it does not."""

    order: str
    """Of the bytes."""
    scale_at: int | None
    """Of the pixel size."""
    tie_at: int | None
    """Of the tie point."""
    matrix_at: int | None
    """Of the transformation that may stand for both."""
    keys: tuple[int, int] | None
    """Begin and end of the geo keys, which name the CRS."""
    nodata: tuple[int, int] | None
    """Begin and end of the value that stands for no data, as text."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in every file that starts with the same bytes."""

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
    place: _Place
    """Where the georeferencing is."""


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


def read_pixels(data: bytes, tensor: Place, footprint: Footprint, *, name: str) -> bytes | memoryview:
    """The pixels of one band, row by row, little-endian: as they lie in a payload.

    Args:
        data: The whole file.
        tensor: What the band must be.
        footprint: Where its patch lies; a file that says something else is another patch's.
        name: What to call the file in messages.

    Raises:
        SourceError: If the file is not a TIFF, is truncated, is of another place, or does not say of which; whatever
            form of TIFF it is. Also if it has a mask.
        InvalidPatchError: If its dtype or shape is not the band's, or a pixel other than 0 is what the file calls
            nodata.
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
    _check_place(data, layout.place, tensor, footprint, name)
    if layout.place.nodata is not None:
        _check_nodata(data[slice(*layout.place.nodata)], pixels, tensor, name)
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
    elif layout.dtype is not None:
        _layouts[len(data)] = layout
    return layout


def _wrong(name: str, tensor: Place, dtype: np.dtype[Any], shape: tuple[int, ...]) -> InvalidPatchError:
    return InvalidPatchError(
        f"{name}: must be {tensor.dtype.name} of shape {tensor.shape}, got {dtype.name} of shape {shape}"
    )


def _check_place(data: bytes, place: _Place, tensor: Place, footprint: Footprint, name: str) -> None:
    epsg, minx, _, maxx, maxy = footprint
    try:
        code, is_point = _crs(data[slice(*place.keys)] if place.keys else b"", place.order)
        found = _affine(data, place)
    except struct.error as error:  # the places in the file, learned from one that is longer
        raise SourceError(f"{name}: a truncated TIFF, it ends at byte {len(data):,}") from error
    if found is None or code is None:
        lacking = "its place" if found is None else "its CRS as an EPSG code of a UTM zone"
        raise SourceError(
            f"{name}: does not say {lacking}, so nothing shows that it is its patch's; it needs the georeferencing of "
            "a GeoTIFF in the file itself"
        )
    left, top, width, height = found
    if is_point:
        left, top = left - width / 2, top + height / 2
    size = (maxx - minx) / tensor.shape[1]
    if (width, height) != (size, size):
        raise SourceError(f"{name}: a pixel is {width:g} x {height:g} m, must be {size:g} x {size:g}")
    if (left, top) != (minx, maxy):
        raise SourceError(
            f"{name}: its upper left corner is ({left:.1f}, {top:.1f}) m, the patch's is ({minx}, {maxy}); "
            "is it the file of another patch?"
        )
    if code != epsg:
        raise SourceError(f"{name}: is in EPSG:{code}, the patch lies in EPSG:{epsg}")


def _check_nodata(text: bytes, pixels: bytes | memoryview, tensor: Place, name: str) -> None:
    """Refuse pixels that a file says are none, but for 0, which the official files declare and a build looks for."""
    text = text.strip(b"\0 ")
    if text in (b"", b"0"):
        return
    try:
        value = float(text)
    except ValueError as error:
        raise SourceError(f"{name}: says {text!r} of nodata, which is not a number") from error
    values = np.frombuffer(pixels, tensor.dtype)
    is_none = np.isnan(values) if math.isnan(value) else values == value
    if value and is_none.any():
        pixels_are = counted(int(is_none.sum()), "pixel is", "pixels are")
        raise InvalidPatchError(
            f"{name}: {pixels_are} {value:g}, which it says stands for nodata; a patch has a value everywhere: leave "
            "it out of the source"
        )


def _affine(data: bytes, place: _Place) -> tuple[float, float, float, float] | None:
    """(left, top, width of a pixel, height of a pixel), metres; None when the file does not say."""
    if place.tie_at is not None and place.scale_at is not None:
        column, row, _, x, y, _ = struct.unpack_from(f"{place.order}6d", data, place.tie_at)
        width, height = struct.unpack_from(f"{place.order}2d", data, place.scale_at)
        return x - column * width, y + row * height, width, height
    if place.matrix_at is not None:
        width, turn, _, left, turned, down, _, top = struct.unpack_from(
            f"{place.order}8d", data, place.matrix_at
        )
        # A turned image has no pixel size in metres along x and y: NaN equals none.
        return left, top, width if not turn else math.nan, -down if not turned else math.nan
    return None


@functools.lru_cache(maxsize=256)
def _crs(keys: bytes, order: str) -> tuple[int | None, bool]:
    """EPSG code in a directory of geo keys, None if there is none; and whether places are of pixels' centres."""
    numbers = struct.unpack(f"{order}{len(keys) // 2}H", keys[: len(keys) // 2 * 2])
    found = {
        numbers[at]: numbers[at + 3]
        for at in range(4, min(len(numbers), 4 + 4 * numbers[3]) - 3 if len(numbers) > 3 else 0, 4)
        if numbers[at + 1] == 0  # the value itself, not a place in another tag
    }
    code: int | None = found.get(_PROJECTED_CRS)
    if found.get(_MODEL_TYPE, _PROJECTED) != _PROJECTED:
        code = None
    elif code in (None, _USER_DEFINED):
        # Zone 33 north is 16033, south 16133 (EPSG's projections, GeoTIFF 1.1 annex C).
        south, zone = divmod(found.get(_PROJECTION, 0) - 16_000, 100)
        known = found.get(_GEOGRAPHIC_CRS) == _WGS84 and south in (0, 1) and 1 <= zone <= 60
        code = 32_600 + 100 * south + zone if known else None
    return code, found.get(_RASTER_TYPE) == _PIXEL_IS_POINT


def _parse(data: bytes, name: str) -> _Layout:
    """The layout of a file, from its first image directory."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        raise SourceError(f"{name}: not a TIFF, it starts with {data[:4]!r}")
    try:
        tags = _read_directory(data)
    except (struct.error, OverflowError) as error:  # a BigTIFF counts in 64 bits, an index here in 63
        raise SourceError(f"{name}: a truncated TIFF, it ends at byte {len(data):,}") from error
    if tags.number(_ORIENTATION, 1) != 1:
        raise SourceError(
            f"{name}: its first row is not the northern one (orientation {tags.number(_ORIENTATION)})"
        )
    at = {tag: tags.spans[tag][0] if tag in tags.spans else None for tag in _GEO_TAGS}
    place = _Place(
        tags.order,
        at[_PIXEL_SCALE],
        at[_TIE_POINT],
        at[_TRANSFORMATION],
        tags.spans.get(_GEO_KEYS),
        tags.spans.get(_NODATA),
    )
    if tags.following:
        _refuse_mask(data, tags, name)
    layout = None
    if tags.order == "<" and tags.is_classic and not tags.following:
        with contextlib.suppress(KeyError):  # no strips (tiles), or none that we understand
            layout = _official(data, tags, place)
    return layout or _Layout(data, None, (0, 0), 0, 0, place)


def _refuse_mask(data: bytes, tags: _Directory, name: str) -> None:
    """Refuse a file in which a mask says that some pixels are none."""
    seen = set[int]()
    while tags.following and tags.following not in seen:
        seen.add(tags.following)
        try:
            tags = _read_directory(data, at=tags.following)
        except (struct.error, OverflowError) as error:
            raise SourceError(f"{name}: a truncated TIFF, it ends at byte {len(data):,}") from error
        if tags.number(_SUBFILE, 0) & _IS_MASK:
            raise SourceError(
                f"{name}: has a mask, which a patch cannot have: it has a value everywhere; leave it out of the "
                "source, or if nothing is masked, the mask (gdal_translate -mask none)"
            )


def _official(data: bytes, tags: _Directory, place: _Place) -> _Layout | None:
    """The layout of a file in an official profile, good for every file with the same directory; else None."""
    shape = tags.number(_HEIGHT), tags.number(_WIDTH)
    strips, sizes = tags.numbers(_STRIP_OFFSETS), tags.numbers(_STRIP_BYTES)
    dtype = _DTYPES.get((tags.number(_BITS), tags.number(_SAMPLE_FORMAT, 1)))
    coding = [tags.number(tag, 1) for tag in (_COMPRESSION, _PREDICTOR, _SAMPLES, _FILL_ORDER)]
    if dtype is None or len(strips) != len(sizes) or not strips:
        return None
    if coding == [_DEFLATE, 2, 1, 1] and dtype == np.dtype("<u2") and len(strips) > 1:
        return _deflated_layout(data, tags, shape, dtype, place)
    geo = min((tags.spans[tag][0] for tag in _GEO_TAGS if tag in tags.spans), default=len(data))
    structure = max(tags.end, *(tags.spans[tag][1] for tag in (_HEIGHT, _STRIP_OFFSETS, _STRIP_BYTES)))
    if (
        coding != [_UNCOMPRESSED, 1, 1, 1]
        or any(a + n != b for a, n, b in zip(strips, sizes, strips[1:], strict=False))
        or sum(sizes) != shape[0] * shape[1] * dtype.itemsize
        or structure > geo
    ):
        return None
    return _Layout(data[:geo], dtype, shape, strips[0], sum(sizes), place)


def _deflated_layout(
    data: bytes, tags: _Directory, shape: tuple[int, int], dtype: np.dtype[Any], place: _Place
) -> _Layout | None:
    form = struct.Struct(f"<{len(tags.values[_STRIP_OFFSETS])}I")
    starts, sizes = tags.spans[_STRIP_OFFSETS], tags.spans[_STRIP_BYTES]
    if (
        starts[1] - starts[0] != form.size
        or sizes[1] - sizes[0] != form.size
        or min(starts[0], sizes[0]) < tags.end
    ):
        return None
    return _Deflated(data[: tags.end], dtype, shape, 0, 0, place, form, starts[0], sizes[0])


def _read_directory(data: bytes, *, at: int | None = None) -> _Directory:
    """An image directory of a classic TIFF or BigTIFF, by default the first; struct.error if it is cut short."""
    order = "<" if data[:1] == b"I" else ">"
    is_classic = data[2:4] in (b"*\0", b"\0*")
    # Of a classic TIFF and a BigTIFF: the directory's place, the number of entries, an entry, the room in it.
    first, number, entry, room = (4, "I", "H", 4) if is_classic else (8, "Q", "Q", 8)
    (start,) = struct.unpack_from(order + number, data, first) if at is None else (at,)
    (count,) = struct.unpack_from(order + entry, data, start)
    start += struct.calcsize(order + entry)
    step = 4 + 2 * room
    values: dict[int, tuple[int | float, ...]] = {}
    spans: dict[int, tuple[int, int]] = {}
    if start + step * count > len(data):
        raise struct.error("the directory is cut short")
    for place in range(start, start + step * count, step):
        tag, kind, length = struct.unpack_from(f"{order}HH{number}", data, place)
        code = _TYPE_CODES.get(kind)
        if tag not in _TAGS or code is None or tag in values:
            continue
        where = place + 4 + room
        nbytes = struct.calcsize(f"{order}{length}{code}")
        if nbytes > room:
            (where,) = struct.unpack_from(order + number, data, where)
        values[tag] = struct.unpack_from(f"{order}{length}{code}", data, where)
        spans[tag] = (where, where + nbytes)
    end = start + step * count
    (following,) = struct.unpack_from(order + number, data, end)
    return _Directory(order, is_classic, end + struct.calcsize(order + number), following, values, spans)


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


def _decode(data: bytes, tensor: Place, name: str) -> bytes:
    imagecodecs = _imagecodecs()
    try:
        array = np.asarray(imagecodecs.tiff_decode(data))
    except (imagecodecs.TiffError, ValueError, IndexError, RuntimeError) as error:
        raise SourceError(f"{name}: not a readable TIFF ({error}); is the file truncated?") from error
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise _wrong(name, tensor, array.dtype, array.shape)
    return array.astype(tensor.dtype, copy=False).tobytes()
