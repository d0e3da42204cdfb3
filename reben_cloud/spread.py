"""A seeded choice of a few among many: at random, evenly over groups, apart from each other.

Pure arithmetic on hashes and whole numbers, so that a choice is the same on every machine and for good; nothing
here reads data. Whatever is asked for, a choice of fewer is the beginning of a choice of more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice, product

import numpy as np
import xxhash
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_EQUATOR_M, _FLATTENING = 6_378_137.0, 1 / 298.257223563
"""WGS 84 (EPSG:7030)."""

_POINTS_PER_M = 100
"""Points are whole centimetres: the last bits of a sine, in which libraries differ, then make no difference."""

MARGIN_M = 0.5
"""Added to a distance that is to be kept, metres: `earth_points` of the middles of boxes in degrees lie within 0.16 m
of the centres of BigEarthNet's 1,200 m squares (all 549,488 measured), and within a centimetre of themselves."""


def seeded_keys(names: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """A random number for each name, which depends on the seed and the name alone.

    Args:
        names: Names (n,), such as patch ids.
        seed: Seed of the choice, at least 0.

    Returns:
        uint64 (n,).
    """
    start = f"sample\0{seed}\0".encode()
    return np.fromiter((xxhash.xxh3_64_intdigest(start + name.encode()) for name in names), np.uint64)


def earth_points(longitude: NDArray[np.float64], latitude: NDArray[np.float64]) -> Ints:
    """Places on the ellipsoid as points in space, which know no zones and no poles.

    Args:
        longitude: Degrees, shape (n,).
        latitude: Degrees, shape (n,).

    Returns:
        Centimetres from the middle of the Earth, int64 (n, 3).
    """
    lon, lat = np.radians(longitude), np.radians(latitude)
    squared = _FLATTENING * (2 - _FLATTENING)  # of the eccentricity
    radius = _EQUATOR_M / np.sqrt(1 - squared * np.sin(lat) ** 2)
    metres = np.stack(
        [
            radius * np.cos(lat) * np.cos(lon),
            radius * np.cos(lat) * np.sin(lon),
            radius * (1 - squared) * np.sin(lat),
        ],
        axis=1,
    )
    return np.rint(metres * _POINTS_PER_M).astype(np.int64)


def nearest_m(points: Ints, others: Ints) -> NDArray[np.float64]:
    """How far each point is from the nearest of some others, exactly.

    Args:
        points: `earth_points`, shape (n, 3).
        others: Likewise, shape (m, 3), m at least 1.

    Returns:
        Metres in a straight line, (n,).

    Raises:
        ValueError: If there is no other point.
    """
    if not len(others):
        raise ValueError("nothing is nearest where there is nothing")
    # Several dates of one place are one point.
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    squared = np.zeros(len(unique), np.int64)
    _measure_nearest(unique, np.unique(others, axis=0), np.arange(len(unique)), _LARGEST_CELL, squared)
    distances: NDArray[np.float64] = np.sqrt(squared.astype(np.float64))[inverse.reshape(-1)] / _POINTS_PER_M
    return distances


_LARGEST_CELL, _SMALLEST_CELL = 1 << 26, 1 << 16
"""Sides of cells, centimetres: 671 km and 655 m."""

_PAIRS_AT_ONCE = 100_000


def _measure_nearest(points: Ints, others: Ints, which: Ints, size: int, squared: Ints) -> None:
    """Write the least squared distance of some of the points, `which`, to all of the others.

    Where these are many pairs, both are cut into cells; for the points of one, those cells of others are left out that
    are farther as a whole than another one at its farthest.
    """
    if len(which) * len(others) <= _PAIRS_AT_ONCE or size < _SMALLEST_CELL:
        for some in np.array_split(which, -(-len(which) * len(others) // _PAIRS_AT_ONCE) or 1):
            apart = points[some][:, None] - others
            squared[some] = (apart * apart).sum(2).min(1, initial=np.iinfo(np.int64).max)
        return
    mine, low, high = _cells(points[which], size)
    theirs, others_low, others_high = _cells(others, size)
    for number, rows in enumerate(mine):
        gap = np.maximum(0, np.maximum(others_low - high[number], low[number] - others_high))
        span = np.maximum(others_high - low[number], high[number] - others_low)
        near = np.flatnonzero((gap * gap).sum(1) <= (span * span).sum(1).min())
        candidates = others[np.concatenate([theirs[cell] for cell in near])]
        _measure_nearest(points, candidates, which[rows], size // 4, squared)


def _cells(points: Ints, size: int) -> tuple[list[Ints], Ints, Ints]:
    """Which points are in each cell of a size, and the corners of the box of these, (num_cells, 3) each."""
    _, cell = np.unique(points // size, axis=0, return_inverse=True)
    order = np.argsort(cell.reshape(-1), kind="stable")
    starts = np.flatnonzero(np.diff(cell.reshape(-1)[order], prepend=-1))
    corners = np.minimum.reduceat(points[order], starts), np.maximum.reduceat(points[order], starts)
    return np.split(order, starts[1:]), *corners


def draw(
    keys: NDArray[np.uint64],
    num: int,
    *,
    members: NDArray[np.bool_] | None = None,
    points: Ints | None = None,
    min_distance_m: float = 0.0,
) -> Ints:
    """Choose up to `num` of n candidates.

    Candidates come in the order of their keys. Where there are groups, the group that has the fewest chosen so far gets
    the next one (of several the first in `members`); of its candidates those come first that are in the fewest
    groups with more than the mean of what the groups have. A group without candidates is out, and the mean is over
    the others. For groups without common members that is equal shares; what a small group lacks goes to the others.

    Args:
        keys: A random number of each candidate, uint64 (n,).
        num: How many to choose.
        members: Which groups each candidate is in, shape (n, num_groups); one in none is not chosen. None: no groups.
        points: Where each is (`earth_points`), shape (n, 3); needed for a distance.
        min_distance_m: A candidate that is less than this and `MARGIN_M` from a chosen one, metres in a straight line
            (which is never longer than over the ground), is passed over.

    Returns:
        Positions of the candidates in the order in which they were chosen, int64 (at most num,): fewer where no
        candidate is left.
    """
    order = np.argsort(keys, kind="stable")
    spacing = None if points is None else _Spacing(points, min_distance_m + MARGIN_M)
    if members is not None:
        chosen = islice(_even(order, members, spacing), num)
    elif spacing is not None:
        chosen = islice(filter(spacing.take, order.tolist()), num)
    else:
        return order[:num]
    return np.fromiter(chosen, np.int64)


def _even(order: Ints, members: NDArray[np.bool_], spacing: _Spacing | None) -> Iterator[int]:
    """Candidates in the order in which groups get them; see `draw`."""
    # Candidates of the same groups stand in one queue, by key; what is decided is decided between queues.
    kinds, kind_of = _distinct(members)
    kind_of = kind_of[order]
    place = np.argsort(kind_of, kind="stable")  # in `order`: what heads of queues are compared by
    queued, end = order[place].tolist(), len(order)
    stops = np.cumsum(np.bincount(kind_of, minlength=len(kinds)))
    nexts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    heads = place[nexts] if end else nexts
    weights = kinds.astype(np.float32)
    counts = np.zeros(members.shape[1], np.int64)
    has_some = kinds.any(axis=0)
    while has_some.any():
        poorest = np.flatnonzero(has_some)[np.argmin(counts[has_some])]
        rich = has_some & (counts * has_some.sum() > counts[has_some].sum())
        may = np.flatnonzero(kinds[:, poorest] & (heads < end))
        num_rich = weights[may] @ rich.astype(np.float32)  # whole numbers, so exact
        may = may[num_rich == num_rich.min()]
        emptied = False
        while heads[kind := may[np.argmin(heads[may])]] < end:
            candidate = queued[nexts[kind]]
            nexts[kind] += 1
            heads[kind] = place[nexts[kind]] if nexts[kind] < stops[kind] else end
            emptied |= bool(heads[kind] == end)
            if spacing is None or spacing.take(candidate):
                counts += kinds[kind]
                yield candidate
                break
        if emptied:
            has_some = kinds[heads < end].any(axis=0)


def _distinct(members: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Ints]:
    """The rows that occur, each once, and which of them each row is; sorted as numbers, eight times faster."""
    packed = np.packbits(members, axis=1)
    words = np.zeros((len(packed), max(1, -(-packed.shape[1] // 8)) * 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    _, first, kind_of = np.unique(words.view(np.uint64), axis=0, return_index=True, return_inverse=True)
    return members[first], kind_of.reshape(-1)


class _Spacing:
    """Chosen points of which none is nearer than a distance to another; they lie in cells of that size."""

    def __init__(self, points: Ints, distance_m: float) -> None:
        least = math.ceil(distance_m * _POINTS_PER_M)
        self._points = points.tolist()
        self._cells = (points // least).tolist() if len(points) else []
        self._squared = least * least
        self._taken: dict[tuple[int, int, int], list[list[int]]] = {}

    def take(self, number: int) -> bool:
        """Take a point if it is far enough from all that were taken."""
        x, y, z = self._points[number]
        i, j, k = self._cells[number]
        for di, dj, dk in _AROUND:
            for a, b, c in self._taken.get((i + di, j + dj, k + dk), ()):
                if (a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2 < self._squared:
                    return False
        self._taken.setdefault((i, j, k), []).append(self._points[number])
        return True


_AROUND = sorted(product((-1, 0, 1), repeat=3), key=lambda step: sum(map(abs, step)))
"""A cell and those that touch it, the likeliest to hold something near first."""
