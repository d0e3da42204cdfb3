"""Pictures for people: patches as a `Render` has it, maps in the colours of their classes, thumbnails, PNG bytes.

Nothing is read here and nothing depends on the machine: the same numbers give the same pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.about import Channel, MapClass, Render
from reben_cloud.bigearthnet.about import about
from reben_cloud.schema import ArraySpec, Schema

THUMBNAIL_PX = 8
"""Pixels of a patch in its product's thumbnail, along each side: 728 for a whole MGRS square."""


def shade(tensors: Mapping[str, NDArray[Any]], render: Render) -> NDArray[np.uint8]:
    """The picture of a patch, or of many.

    Args:
        tensors: Name -> values (..., y, x), of every tensor that the picture has.
        render: What becomes red, green and blue.

    Returns:
        (..., y, x, 3); what is NaN is black.
    """
    return np.stack([_shade(tensors, channel, render.gamma) for channel in render.channels], axis=-1)


def _shade(tensors: Mapping[str, NDArray[Any]], channel: Channel, gamma: float) -> NDArray[np.uint8]:
    values = tensors[channel.tensor].astype(np.float64)
    if channel.minus is not None:
        values -= tensors[channel.minus]
    share = np.clip(np.nan_to_num((values - channel.low) / (channel.high - channel.low)), 0, 1)
    shades: NDArray[np.uint8] = np.round(255 * share ** (1 / gamma)).astype(np.uint8)
    return shades


def color_map(values: NDArray[np.integer[Any]], classes: Sequence[MapClass]) -> NDArray[np.uint8]:
    """The pixels of a map, (y, x), in the colours of their classes, (y, x, 3); others are black."""
    known = sorted(classes, key=lambda entry: entry.value)
    colors = np.array([[0, 0, 0], *(list(bytes.fromhex(c.color.lstrip("#"))) for c in known)], np.uint8)
    numbers = np.array([entry.value for entry in known], np.int64)
    at = np.searchsorted(numbers, values)
    found = (
        numbers[np.minimum(at, len(numbers) - 1)] == values if len(numbers) else np.zeros(values.shape, bool)
    )
    return colors[np.where(found, at + 1, 0)]


_SUN_AZIMUTH, _SUN_ALTITUDE = np.radians(315), np.radians(45)
"""Where the light comes from in a shaded relief, as on maps: from the north-west, or hills look like hollows."""


def relief(heights: NDArray[Any], *, pixel_m: float, nodata: float) -> NDArray[np.uint8]:
    """Heights as a surface that is lit from the north-west, 45 degrees above the horizon, not exaggerated.

    Args:
        heights: Metres, (y, x), both at least 2, north up.
        pixel_m: Side of a pixel, metres.
        nodata: Value that is no height; NaN is none either.

    Returns:
        (y, x, 3), grey; 180 where it is flat; black where there is no height, or none beside it.
    """
    known = np.where(heights == nodata, np.nan, heights.astype(np.float64))
    south, east = np.gradient(known, pixel_m)
    ground = np.sin(_SUN_AZIMUTH) * east - np.cos(_SUN_AZIMUTH) * south
    lit = np.sin(_SUN_ALTITUDE) - np.cos(_SUN_ALTITUDE) * ground
    return _grey(lit / np.sqrt(1 + south**2 + east**2), 0, 1)


def grey(values: NDArray[Any], *, nodata: float) -> NDArray[np.uint8]:
    """Values (y, x) from the least, black, to the greatest, white; (y, x, 3). No data is black."""
    known = np.where(values == nodata, np.nan, values.astype(np.float64))
    if np.isnan(known).all():
        return np.zeros((*values.shape, 3), np.uint8)
    return _grey(known, float(np.nanmin(known)), float(np.nanmax(known)))


def _grey(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    share = np.clip(np.nan_to_num((values - low) / ((high - low) or 1)), 0, 1)
    return np.repeat(np.round(255 * share).astype(np.uint8)[..., None], 3, axis=2)


def tiny(tensors: Mapping[str, NDArray[Any]], render: Render) -> NDArray[np.uint8]:
    """Patches in few pixels, each the mean of what it covers, whole numbers for whole numbers.

    Args:
        tensors: Name -> values (n, y, x), of any size.
        render: What becomes red, green and blue.

    Returns:
        (n, `THUMBNAIL_PX`, `THUMBNAIL_PX`, 3).
    """
    return shade({channel.tensor: _means(tensors[channel.tensor]) for channel in render.channels}, render)


def tiny_of(stacks: Mapping[str, NDArray[Any]], schema: Schema) -> NDArray[np.uint8] | None:
    """`tiny` pictures for a product's thumbnail; None for a dataset that has none.

    Args:
        stacks: Zarr array -> values of some patches, (n, *shape of a patch).
        schema: Of the dataset.
    """
    render = about(schema).thumbnail
    found = render.array_in(schema) if render else None
    if render is None or found is None:
        return None
    _, array = found
    return tiny(tensors_of(array, stacks[array.zarr_name], axis=1), render)


def tensors_of(array: ArraySpec, values: NDArray[Any], *, axis: int = 0) -> dict[str, NDArray[Any]]:
    """The tensors of an array by name; they are stacked along `axis`, if at all."""
    if not array.stacked:
        return {array.tensors[0]: values}
    return dict(zip(array.tensors, np.moveaxis(values, axis, 0), strict=True))


def _means(values: NDArray[Any]) -> NDArray[Any]:
    side, is_whole = values.shape[-1], values.dtype.kind in "iu"
    first = [at * side // THUMBNAIL_PX for at in range(THUMBNAIL_PX)]
    # Of a smaller patch some pixels come several times.
    parts = [slice(at, max(end, at + 1)) for at, end in pairwise((*first, side))]
    means = np.empty((len(values), THUMBNAIL_PX, THUMBNAIL_PX), np.int64 if is_whole else np.float64)
    # Slices, as numpy.add.reduceat is ten times slower.
    for y, rows in enumerate(parts):
        strip = values[:, rows].sum(axis=1, dtype=means.dtype)
        for x, columns in enumerate(parts):
            sums = strip[:, columns].sum(axis=1)
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            means[:, y, x] = sums // area if is_whole else sums / area
    return means


def thumbnail(
    tiny: NDArray[np.uint8], x0: NDArray[np.float64], y0: NDArray[np.float64], *, patch_m: float
) -> bytes:
    """The patches of a product on their grid as a PNG, transparent where there is none.

    Args:
        tiny: From the function `tiny`.
        x0: West edges in metres, (n,).
        y0: North edges in metres, (n,).
        patch_m: Side of a patch, metres.
    """
    column = ((x0 - x0.min()) // patch_m).astype(np.int64)
    line = ((y0.max() - y0) // patch_m).astype(np.int64)
    cells = np.zeros((line.max() + 1, column.max() + 1, THUMBNAIL_PX, THUMBNAIL_PX, 4), np.uint8)
    cells[line, column, ..., :3] = tiny
    cells[line, column, ..., 3] = 255
    height, width = (side * THUMBNAIL_PX for side in cells.shape[:2])
    return encode_png(cells.transpose(0, 2, 1, 3, 4).reshape(height, width, 4))


def encode_png(pixels: NDArray[np.uint8], *, is_smooth: bool = False) -> bytes:
    """A PNG of 8-bit pixels.

    Args:
        pixels: (y, x, 3) red, green, blue, or (y, x, 4) with opacity.
        is_smooth: Store differences between lines: half the bytes where neighbours are alike.
    """
    return _png(pixels, {3: 2, 4: 6}[pixels.shape[2]], b"", is_smooth=is_smooth)


def encode_palette_png(numbers: NDArray[np.uint8], colors: NDArray[np.uint8]) -> bytes:
    """A PNG whose pixels are numbers of colours: people see the colours, programs read the numbers.

    Args:
        numbers: (y, x).
        colors: Red, green and blue of each number, (n, 3), n from 1 to 256.
    """
    return _png(numbers[..., None], 3, _chunk(b"PLTE", colors.tobytes()))


def _png(pixels: NDArray[np.uint8], kind: int, palette: bytes, *, is_smooth: bool = False) -> bytes:
    height, width = pixels.shape[:2]
    values = pixels.reshape(height, -1)
    if is_smooth:
        values = np.concatenate(
            [values[:1], values[1:] - values[:-1]]
        )  # modulo 256, as PNG's filter "up" has it
    lines = np.concatenate([np.full((height, 1), 2 * is_smooth, np.uint8), values], axis=1)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(lines.tobytes(), 6))
    return b"\x89PNG\r\n\x1a\n" + header + palette + body + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
