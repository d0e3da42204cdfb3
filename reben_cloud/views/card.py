"""Datasets and selections as notebooks show them: a small map, and counts by split, label and country."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.selection import Selection
from reben_cloud.views.land import land_within
from reben_cloud.wording import counted

_SIDE_PX = 260
_CELLS = 130  # along the longer side of the map: a dot of two pixels for all patches in a cell
_MARGIN = 0.08
_LEAST_DEG = 2.0  # extent of the map, so that a single patch still shows where in the world it is
_SHOWN = 8  # rows of a table of counts, the others are summed up

_STYLE = "display:flex;gap:1.5em;align-items:flex-start;flex-wrap:wrap"
_TABLE = (
    "<table style='font-size:90%;margin:0'><thead><tr><th colspan=2 style='text-align:left'>{}</th></tr></thead>"
    "{}</table>"
)
_CELL = "text-align:left;max-width:22em"


def selection_html(selection: Selection) -> str:
    """The HTML of a selection; it reads the columns of the table that it counts."""
    of = f"<b>{counted(len(selection), 'patch', 'patches')}</b> of {len(selection.dataset):,} in "
    head = of + html.escape(selection.dataset.url)
    return head + (_body(selection) if len(selection) else "")


def dataset_html(dataset: Dataset) -> str:
    """The HTML of a dataset; it reads the columns of the table of patches that it counts."""
    patches, products = counted(len(dataset), "patch", "patches"), counted(len(dataset.products), "product")
    head = f"<b>{patches}</b> of {products} in {html.escape(dataset.url)}<br>"
    head += html.escape(", ".join(dataset.modalities) or "metadata alone")
    return head + _body(dataset.selection)


def _body(selection: Selection) -> str:
    counts = selection.statistics
    tables = "".join(
        _table(title, counts[title]) for title in ("splits", "countries", "labels") if title in counts
    )
    return f"<div style='{_STYLE}'>{_map(selection)}{tables}</div>"


def _table(title: str, counts: Mapping[str, int]) -> str:
    rows = list(counts.items())
    if len(rows) > _SHOWN + 1:
        rows = [*rows[:_SHOWN], (f"{len(rows) - _SHOWN} more", sum(count for _, count in rows[_SHOWN:]))]
    cells = "".join(
        f"<tr><td style='{_CELL}'>{html.escape(name)}</td><td>{count:,}</td></tr>" for name, count in rows
    )
    return _TABLE.format(title, cells)


def _map(selection: Selection) -> str:
    """Where the patches are, over the outlines of land, as SVG."""
    bbox: Any = selection.column(layout.BBOX).combine_chunks()
    west, south, east, north = (bbox.field(s).to_numpy() for s in ("xmin", "ymin", "xmax", "ymax"))
    x, y = (west + east) / 2, (south + north) / 2
    shrink = float(np.cos(np.deg2rad(y.mean())))  # of a degree of longitude, so that distances look alike
    left, right = _widened(x.min(), x.max(), _LEAST_DEG / shrink)
    bottom, top = _widened(y.min(), y.max(), _LEAST_DEG)
    scale = _SIDE_PX / max((right - left) * shrink, top - bottom)

    def place(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([(lon - left) * shrink * scale, (top - lat) * scale], axis=-1)

    width, height = (float(value) for value in place(np.array(right), np.array(bottom)))
    rings = (shapely.get_exterior_ring(part) for part in land_within(left, bottom, right, top))
    land = "".join(f"<path d='{_path(place(*shapely.get_coordinates(ring).T))}'/>" for ring in rings)
    cell = _SIDE_PX / _CELLS
    cells, numbers = np.unique(np.floor(place(x, y) / cell).astype(np.int64), axis=0, return_counts=True)
    dots = "".join(
        f"<rect x='{column * cell:g}' y='{row * cell:g}' width='{cell:g}' height='{cell:g}' "
        f"opacity='{0.45 + 0.55 * min(1.0, number / 20):.2f}'/>"
        for (column, row), number in zip(cells.tolist(), numbers.tolist(), strict=True)
    )
    return (
        f"<svg width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.1f} {height:.1f}' role='img' "
        f"aria-label='map of the patches' style='background:#eef3f7;flex:none'>"
        f"<g fill='#dfe3dc' stroke='#a8ada5' stroke-width='0.7'>{land}</g><g fill='#b2182b'>{dots}</g></svg>"
    )


def _widened(least: float, most: float, at_least: float) -> tuple[float, float]:
    half = max((most - least) * (0.5 + _MARGIN), at_least / 2)
    middle = (least + most) / 2
    return middle - half, middle + half


def _path(points: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points.tolist()) + "Z"
