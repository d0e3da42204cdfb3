"""Pictures in another size: nearest pixel, or bilinear, which averages where it makes them smaller.

Sums are taken element by element in a fixed order, never by a matrix product, so that the same pixels
come out on every machine.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

Resampling = Literal["bilinear", "nearest"]
"""How a picture gets another size."""


def resize(pixels: NDArray[np.uint8], size: int, resampling: Resampling) -> NDArray[np.uint8]:
    """A square picture with another number of pixels a side.

    Args:
        pixels: (n, n) or (n, n, channels).
        size: Pixels a side of the result, at least 1.
        resampling: ``nearest`` takes the pixel in which the centre of the new one falls, ``bilinear`` the mean
            of the pixels around it, weighted by a triangle that is as wide as two of the larger pixels.

    Returns:
        (size, size), with channels as before.
    """
    num = len(pixels)
    if size == num:
        return pixels
    if resampling == "nearest":
        return nearest(pixels, size)
    lines = _along_lines(pixels.astype(np.float64), size)
    found = _along_lines(lines.swapaxes(0, 1), size).swapaxes(0, 1)
    return np.floor(np.clip(found, 0, 255) + 0.5).astype(np.uint8)


def nearest(pixels: NDArray[T], size: int) -> NDArray[T]:
    """A square image (n, n, ...) with `size` pixels a side, each the one in which its centre falls."""
    at = (2 * np.arange(size) + 1) * len(pixels) // (2 * size)
    return pixels[at][:, at]


def _along_lines(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The first axis resampled to `size`."""
    at, weights = _taps(len(values), size)
    shape = (size,) + (1,) * (values.ndim - 1)
    found = np.zeros((size, *values.shape[1:]))
    for tap in range(at.shape[1]):
        found += weights[:, tap].reshape(shape) * values[at[:, tap]]
    return found


@functools.lru_cache(maxsize=32)
def _taps(num: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which of `num` pixels each of `size` is made of, and their weights; (size, taps) both."""
    scale = num / size
    reach = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale - 0.5
    first = np.floor(centre - reach).astype(np.int64) + 1
    at = first[:, None] + np.arange(math.ceil(2 * reach))
    weights = np.clip(1 - np.abs(at - centre[:, None]) / reach, 0, None)
    weights[(at < 0) | (at >= num)] = 0
    return np.clip(at, 0, num - 1), weights / weights.sum(axis=1, keepdims=True)
