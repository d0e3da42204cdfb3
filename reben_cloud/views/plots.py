"""A selection drawn on a map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from reben_cloud.errors import missing_extra
from reben_cloud.root import layout
from reben_cloud.root.placement import SPLITS
from reben_cloud.root.selection import Selection
from reben_cloud.views.land import land_within
from reben_cloud.wording import counted

try:
    import matplotlib.pyplot as plt
    from matplotlib.collections import PolyCollection
except ImportError as error:
    raise missing_extra("matplotlib", "geo", error) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_footprints(selection: Selection, ax: Axes | None) -> Axes:
    """Draw footprints coloured by split; see `Selection.plot`."""
    if ax is None:
        ax = plt.subplots(figsize=(8, 7), layout="tight")[1]
    bbox: Any = selection.column(layout.BBOX).combine_chunks()
    west, south, east, north = (bbox.field(s).to_numpy() for s in ("xmin", "ymin", "xmax", "ymax"))
    corners = np.stack([west, south, east, south, east, north, west, north], axis=1).reshape(-1, 4, 2)
    splits = selection.column(layout.SPLIT).to_numpy()
    wide = not len(selection) or np.ptp(corners[..., 1]) > 5
    # A patch is 0.01 degrees wide: on a map of Europe only a thick edge keeps it visible.
    edge = 0.5 if not wide else 4 if len(selection) < 5_000 else 2.5
    for split, color in zip(SPLITS, ("#4477aa", "#ccaa22", "#cc3355"), strict=True):
        mine = corners[splits == split]
        if not len(mine):
            continue
        ax.add_collection(
            PolyCollection(
                mine, facecolor=color, edgecolor=color, linewidth=edge, label=f"{split} ({len(mine):,})"
            )
        )
    ax.autoscale_view()
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for part in land_within(left, bottom, right, top):
        points = shapely.get_coordinates(shapely.get_exterior_ring(part))
        ax.fill(*points.T, facecolor="#f2f2ee", edgecolor="#bbbbbb", linewidth=0.8, zorder=0)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    ax.set_aspect(1 / np.cos(np.deg2rad(np.mean(ax.get_ylim()))))
    ax.set(xlabel="longitude (°)", ylabel="latitude (°)", title=counted(len(selection), "patch", "patches"))
    if len(selection):
        # Beside the map, where it covers no patch.
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False)
    return ax
