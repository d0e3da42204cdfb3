"""How far patches of different splits are from each other: what may leak from training into the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyproj
import shapely
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import SPLITS

_TOUCHING_M = 1.0
"""Squares that overlap by less, as neighbours of two zones may by rounding, count as touching."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Separation:
    """Two splits, and their nearest patches."""

    splits: tuple[str, str]
    """The two."""
    distance_m: float
    """Smallest distance of a patch of one from a patch of the other, metres, edge to edge; 0 where they touch."""
    num_overlaps: int
    """Pairs of patches that share ground."""

    def __str__(self) -> str:
        said = f"{self.splits[0]} and {self.splits[1]} {self.distance_m:,.0f} m"
        pairs = "pair overlaps" if self.num_overlaps == 1 else "pairs overlap"
        return said + (f" ({self.num_overlaps:,} {pairs})" if self.num_overlaps else "")


def describe(separations: Sequence[Separation]) -> str:
    """One line for people; empty where there is one split at most."""
    return f"nearest patches of different splits: {', '.join(map(str, separations))}" if separations else ""


def separations(metadata: pa.Table, *, patch_m: int) -> list[Separation]:
    """Distances between the splits of a dataset, each pair of splits that it has.

    Distances are planar, in the UTM zone of one of the two patches; a zone's neighbours are projected into it.

    Args:
        metadata: Columns ``patch_id`` and ``split``.
        patch_m: Side of a patch, metres.
    """
    epsg, west, south, east, north = grid.footprints(metadata.column("patch_id").to_pylist(), patch_m=patch_m)
    split = np.array([SPLITS.index(name) for name in metadata.column("split").to_pylist()], np.int64)
    # A place counts once, whatever its dates.
    places = np.unique(np.stack([epsg, west, south, east, north, split], axis=1), axis=0)
    found = []
    for one, other in combinations(range(len(SPLITS)), 2):
        nearest, overlaps = np.inf, 0
        of_one, of_other = places[places[:, 5] == one], places[places[:, 5] == other]
        for zone in np.unique(of_one[:, 0]).tolist():
            mine = shapely.box(*of_one[of_one[:, 0] == zone, 1:5].T)
            theirs = _projected(of_other, zone)
            if not len(theirs):
                continue
            tree = shapely.STRtree(theirs)
            (_, distances) = tree.query_nearest(mine, return_distance=True, all_matches=False)
            nearest = min(nearest, float(distances.min()))
            inside = shapely.buffer(mine, -_TOUCHING_M, join_style="mitre")
            overlaps += len(tree.query(inside, predicate="intersects")[0])
        if np.isfinite(nearest):
            pair = SPLITS[one], SPLITS[other]
            found.append(Separation(splits=pair, distance_m=round(nearest, 1), num_overlaps=overlaps))
    return found


def _projected(places: NDArray[np.int64], epsg: int) -> NDArray[np.object_]:
    """Squares of all zones in one of them; of others only those of zones beside it, which are all that can be near."""
    found = []
    for zone in np.unique(places[:, 0]).tolist():
        apart = abs(zone % 100 - epsg % 100)
        if min(apart, 60 - apart) > 1:
            continue
        squares = shapely.box(*places[places[:, 0] == zone, 1:5].T)
        if zone != epsg:
            project = pyproj.Transformer.from_crs(zone, epsg, always_xy=True).transform
            squares = shapely.transform(squares, project, interleaved=False)
        found.append(squares)
    return np.concatenate(found) if found else np.empty(0, np.object_)
