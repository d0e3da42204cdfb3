"""Which squares of a tile become patches, and their labels: pure functions of arrays.

A square is kept if it lies within the box that is wanted (where one was given), no band has a zero pixel in it, v1
has it (where v1's lists were given), less than a quarter of it has no class, one of its classes is a label, and a
Sentinel-1 scene covers it (where there is Sentinel-1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.schema import Classes

MAX_UNLABELLED = 0.25
"""A patch is kept if the share of its pixels without a class is strictly below this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Squares:
    """What is known of every whole square of a tile; bool (rows, columns) each."""

    inside: NDArray[np.bool_]
    """It lies within the box, or none was given; of the others nothing else is known."""
    filled: NDArray[np.bool_]
    """No band has a zero pixel, which means nodata."""
    in_v1: NDArray[np.bool_]
    """v1 has it, or was not asked."""
    labelled: NDArray[np.bool_]
    """Less than a quarter has no class, and there is a label."""
    with_s1: NDArray[np.bool_]
    """Sentinel-1 covers it, or was not asked for."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Squares that become patches."""
        return self.inside & self.filled & self.in_v1 & self.labelled & self.with_s1


def mark(places: Iterable[tuple[int, int]], *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The squares among `places`, (y, x) each, that a tile of `shape` (rows, columns) has."""
    marked = np.zeros(shape, bool)
    for y, x in places:
        if y < shape[0] and x < shape[1]:
            marked[y, x] = True
    return marked


def without_nodata(pixels: NDArray[np.uint16], *, side_px: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Squares without a zero pixel in a band.

    Args:
        pixels: (height, width) of the tile; a rest beyond the last whole square does not count.
        side_px: Pixels along a side of a square, at the band's resolution.
        shape: Rows and columns of squares.

    Returns:
        bool (rows, columns).
    """
    rows, columns = shape
    filled = np.empty(shape, bool)
    for row in range(rows):
        strip = pixels[row * side_px : (row + 1) * side_px, : columns * side_px]
        filled[row] = strip.all(axis=0).reshape(columns, side_px).all(axis=1)
    return filled


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchLabels:
    """What the reference maps of all patches of a tile say."""

    classes: Classes
    """The classes, and which of a map's are labels."""
    counts: NDArray[np.int64]
    """Pixels of each class, and last of those without one: (rows, columns, classes + 1)."""
    chosen: NDArray[np.bool_]
    """Whether a class is a label of a patch: (rows, columns, classes)."""

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Patches with strictly less than a quarter unlabelled, and a label, (rows, columns)."""
        few = self.counts[..., -1] < MAX_UNLABELLED * self.counts.sum(axis=-1)
        kept: NDArray[np.bool_] = few & self.chosen.any(axis=-1)
        return kept

    def of(self, y: int, x: int) -> tuple[str, ...]:
        """The labels of one patch, sorted."""
        return tuple(sorted(self.classes.names[number] for number in np.flatnonzero(self.chosen[y, x])))


def label_patches(
    codes: NDArray[np.uint16], *, patch_px: int, classes: Classes = REBEN.classes
) -> PatchLabels:
    """Labels and cover of every whole patch of a tile's map.

    Args:
        codes: (height, width) codes of the classes, or without a class.
        patch_px: Pixels along a side of a patch.
        classes: Whose codes they are.
    """
    num_bins = len(classes) + 1
    rows, columns = codes.shape[0] // patch_px, codes.shape[1] // patch_px
    index = np.full(2**16, len(classes), np.int64)
    for number, of_class in enumerate(classes.codes):
        index[list(of_class)] = number
    counts = np.empty((rows, columns, num_bins), np.int64)
    of_column = np.repeat(np.arange(columns) * num_bins, patch_px)
    for row in range(rows):
        strip = codes[row * patch_px : (row + 1) * patch_px, : columns * patch_px]
        bins = np.bincount((index[strip] + of_column).ravel(), minlength=counts[row].size)
        counts[row] = bins.reshape(columns, -1)
    chosen = classes.chosen(counts[..., :-1], num_pixels=patch_px**2)
    return PatchLabels(classes=classes, counts=counts, chosen=chosen)
