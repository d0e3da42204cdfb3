"""The squares of patches on the ground, as columns, and blocks of neighbours among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid

CELL = 8
"""Squares along the side of a cell: those of one cell are neighbours, and are read together."""


class Square(NamedTuple):
    """The square of one patch, north up."""

    epsg: int
    """CRS, whose units are metres."""
    left: float
    """West edge, metres."""
    top: float
    """North edge, metres."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Squares:
    """The squares of n patches, all of one size. Patches of several times may share one."""

    epsg: NDArray[np.int64]
    """CRS, (n,); their units are metres."""
    left: NDArray[np.float64]
    """West edge, (n,), metres."""
    top: NDArray[np.float64]
    """North edge, (n,), metres."""
    side_m: float
    """Side of a square, metres."""

    def __post_init__(self) -> None:
        for name, kind in (("epsg", np.int64), ("left", np.float64), ("top", np.float64)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
        if not self.epsg.shape == self.left.shape == self.top.shape == (len(self),):
            raise ValueError(
                "epsg, left and top must be three columns of one length, got shapes "
                f"{self.epsg.shape}, {self.left.shape} and {self.top.shape}"
            )
        if not self.side_m > 0:
            raise ValueError(f"the side of a square must be above 0 m, got {self.side_m}")

    @classmethod
    def of_patches(cls, patch_ids: Sequence[str]) -> Squares:
        """The squares of BigEarthNet's patches, which follow from their ids.

        Raises:
            ValueError: If an id is none.
        """
        epsg, left, _, _, top = grid.footprints(patch_ids)
        return cls(epsg=epsg, left=left.astype(np.float64), top=top.astype(np.float64), side_m=grid.PATCH_M)

    def __len__(self) -> int:
        return self.epsg.size

    def __getitem__(self, row: int) -> Square:
        return Square(int(self.epsg[row]), float(self.left[row]), float(self.top[row]))

    def by_place(self) -> NDArray[np.int64]:
        """An order of the rows that keeps neighbours together: by cell of 8 x 8 squares, then by square."""
        cell_y, cell_x = (np.floor(edge / (CELL * self.side_m)) for edge in (-self.top, self.left))
        return np.lexsort((self.left, -self.top, cell_x, cell_y, self.epsg))

    def blocks(self, size: int = 256) -> list[NDArray[np.int64]]:
        """All rows in blocks of neighbours, to be sampled one after the other or by several workers.

        Rows that share a square are in one block, so that no square is sampled twice.

        Args:
            size: Rows of a block; more only where a single square has more.
        """
        if size < 1:
            raise ValueError(f"a block must have at least 1 row, got {size}")
        order = self.by_place()
        starts = np.flatnonzero(self._differs(order))
        cuts, begin = [], 0
        ends = np.append(starts[1:], len(order))
        while begin < len(order):
            # The last square that still fits, or the one that is too large for any block.
            at = max(np.searchsorted(ends, begin + size, side="right") - 1, np.searchsorted(starts, begin))
            cuts.append(order[begin : ends[at]])
            begin = int(ends[at])
        return cuts

    def unique(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One row of each square among `rows`, neighbours together, and for each of `rows` which of those it is."""
        part = Squares(epsg=self.epsg[rows], left=self.left[rows], top=self.top[rows], side_m=self.side_m)
        order = part.by_place()
        first = part._differs(order)
        which = np.empty(len(rows), np.int64)
        which[order] = np.cumsum(first) - 1
        return rows[order[first]], which

    def cells(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """`rows`, which are in the order of `by_place`, cut where the cell changes."""
        keys = [np.floor(edge[rows] / (CELL * self.side_m)) for edge in (-self.top, self.left)]
        keys.append(self.epsg[rows].astype(np.float64))
        changes = np.any([key[1:] != key[:-1] for key in keys], axis=0)
        return np.split(rows, np.flatnonzero(changes) + 1) if len(rows) else []

    def _differs(self, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each row in `order` has another square than the one before."""
        first = np.ones(len(order), np.bool_)
        first[1:] = np.any([c[order][1:] != c[order][:-1] for c in (self.epsg, self.left, self.top)], axis=0)
        return first
