"""Coarse outlines of land, for maps on which patches are dots: of plots, and of the explorer page."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np
import shapely


def land_json() -> bytes:
    """The outlines as they are kept: ``countries`` of ``name``, ``at`` and ``rings``, longitude and latitude."""
    return files("reben_cloud.views").joinpath("land.json").read_bytes()


@cache
def _outlines() -> tuple[shapely.Polygon, ...]:
    rings = [ring for country in json.loads(land_json())["countries"] for ring in country["rings"]]
    return tuple(shapely.make_valid(shapely.polygons(np.array(ring))) for ring in rings)


def land_within(west: float, south: float, east: float, north: float) -> list[shapely.Polygon]:
    """The land of each country in a box of degrees, cut at its edges.

    Returns:
        Polygons, longitude and latitude; from Natural Earth's map of 1:110m (public domain), so good to some km.
    """
    found = shapely.clip_by_rect(np.array(_outlines()), west, south, east, north)
    parts = shapely.get_parts(found[~shapely.is_empty(found)])
    return [part for part in parts if isinstance(part, shapely.Polygon)]
