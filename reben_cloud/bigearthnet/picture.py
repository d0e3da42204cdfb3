"""Pictures for people: true colour from reflectances, thumbnails of products, PNG bytes.

Nothing is read here and nothing depends on the machine: the same numbers give the same pixels.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.schema import ArraySpec, Schema

TRUE_COLOR = ("B04", "B03", "B02")
"""Bands shown as red, green and blue."""

BRIGHTEST = 2_500
"""Digital number (reflectance 0.25) that is white in a true-colour picture."""

GAMMA = 1.5
"""Lifts the shadows."""

THUMBNAIL_PX = 8
"""Pixels of a patch in its product's thumbnail, along each side: 728 for a whole MGRS square."""

_SHADES = np.round(255 * np.linspace(0, 1, BRIGHTEST + 1) ** (1 / GAMMA)).astype(np.uint8)


def true_color(red_green_blue: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.uint8]:
    """Digital numbers of the bands `TRUE_COLOR`, (..., 3, y, x), as pixels (..., y, x, 3)."""
    shades = _SHADES[np.minimum(red_green_blue, BRIGHTEST)]
    return np.ascontiguousarray(np.moveaxis(shades, -3, -1))


def true_color_array(schema: Schema) -> ArraySpec | None:
    """The array that has the bands of true colour, in pixels of which a thumbnail can be made; None without one."""
    for modality in schema.modalities:
        for array in modality.arrays:
            shape = modality.shape_of(array)
            if set(TRUE_COLOR) <= set(array.tensors) and len(shape) == 3 and shape[-1] % THUMBNAIL_PX == 0:
                return array
    return None


def tiny_true_color(array: ArraySpec, pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Patches in few pixels, each the mean of what it covers.

    Args:
        array: `true_color_array`.
        pixels: Of that array, (n, number of bands, y, x).

    Returns:
        (n, `THUMBNAIL_PX`, `THUMBNAIL_PX`, 3) red, green, blue.
    """
    bands = pixels[:, [array.tensors.index(name) for name in TRUE_COLOR]]
    step = bands.shape[-1] // THUMBNAIL_PX
    blocks = bands.reshape(len(bands), 3, THUMBNAIL_PX, step, THUMBNAIL_PX, step)
    return true_color(blocks.sum(axis=(3, 5), dtype=np.uint32) // step**2)


def thumbnail(
    tiny: NDArray[np.uint8], x0: NDArray[np.float64], y0: NDArray[np.float64], *, patch_m: float
) -> bytes:
    """The patches of a product on their grid as a PNG, transparent where there is none.

    Args:
        tiny: From `tiny_true_color`.
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


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of 8-bit pixels, (y, x, 3) red, green, blue, or (y, x, 4) with opacity."""
    height, width, channels = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
