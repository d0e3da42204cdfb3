"""Black and brightest of a channel by percentiles: of the values of one patch, or of those of many, counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.about import Channel, Render

_BINS = 3_000
"""Steps in which values that are not short integers are counted, from a span below the recipe's range to one above."""


def with_ranges(render: Render, ranges: Sequence[Sequence[float]]) -> Render:
    """A recipe with another black and brightest for each channel."""
    red, green, blue = (
        replace(channel, low=low, high=high)
        for channel, (low, high) in zip(render.channels, ranges, strict=True)
    )
    return replace(render, channels=(red, green, blue))


def range_of(values: NDArray[Any], channel: Channel, percentiles: tuple[float, float]) -> list[float]:
    """Black and brightest by the percentiles of values, (n,); those of the recipe where there are none."""
    if not values.size:
        return [channel.low, channel.high]
    low, high = np.percentile(values.astype(np.float64), percentiles).tolist()
    return [low, high if high > low else low + 1]


class Counts:
    """How often each value of a channel is there: short integers exactly, others in steps."""

    def __init__(self, dtype: np.dtype[Any], channel: Channel) -> None:
        self._channel = channel
        self._exact = dtype.kind in "iu" and dtype.itemsize <= 2
        span = channel.high - channel.low
        self._first = -(2**16) if self._exact else channel.low - span
        self._step = 1.0 if self._exact else 3 * span / _BINS
        self._num = 2**17 if self._exact else _BINS
        self._total = np.zeros(self._num, np.int64)
        self._lock = threading.Lock()

    def add(self, values: NDArray[Any]) -> None:
        """Count some values; what is beyond the bins is counted in the first or the last. Safe for many threads."""
        at = np.floor((values.astype(np.float64) - self._first) / self._step)
        bins, counts = np.unique(np.clip(at, 0, self._num - 1).astype(np.int64), return_counts=True)
        with self._lock:
            self._total[bins] += counts

    def range(self, percentiles: tuple[float, float]) -> list[float]:
        """Black and brightest: the lower ends of the bins that the percentiles fall in."""
        rising = np.cumsum(self._total)
        if not rising[-1]:
            return [self._channel.low, self._channel.high]
        at = [int(np.searchsorted(rising, rising[-1] * share / 100)) for share in percentiles]
        low, high = (float(self._first + min(one, self._num - 1) * self._step) for one in at)
        return [low, high if high > low else low + self._step]
