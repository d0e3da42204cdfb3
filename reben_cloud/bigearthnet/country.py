"""The country of a patch: the nearest polygon of Natural Earth's 110 m map, as the pipeline has it.

Only the countries in the table take part, so a patch at sea or across a border still gets one of
them: a region tag, not geography.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path

# Where a patch touches two countries the first in this order wins. Alphabetical but for Kosovo: all
# 170 such patches of the dataset are Serbian or Belgian (an accident of the original's index).
REBEN_COUNTRIES = (
    "Austria",
    "Belgium",
    "Finland",
    "Ireland",
    "Lithuania",
    "Luxembourg",
    "Portugal",
    "Serbia",
    "Switzerland",
    "Kosovo",
)
"""The ten countries of the dataset, by priority."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Countries:
    """Country polygons in longitude and latitude, by priority."""

    polygons: Mapping[str, shapely.Geometry]
    """Name -> polygon, EPSG:4326; the first of equally near ones wins."""

    def nearest(
        self, *, epsg: int, left: NDArray[np.int64], top: NDArray[np.int64], side_m: int
    ) -> NDArray[np.str_]:
        """The country of each square, by planar distance in its CRS.

        Args:
            epsg: UTM zone of the squares.
            left: West edges (n,), metres.
            top: North edges (n,), metres.
            side_m: Side of the squares, metres.

        Returns:
            Names, (n,).
        """
        transformer = pyproj.Transformer.from_crs(4326, epsg, always_xy=True)
        squares = shapely.box(left, top - side_m, left + side_m, top)
        # Vertices only, as PostGIS transforms.
        distances = [
            shapely.distance(squares, shapely.transform(polygon, transformer.transform, interleaved=False))
            for polygon in self.polygons.values()
        ]
        names: NDArray[np.str_] = np.array(list(self.polygons))
        index: NDArray[np.intp] = np.argmin(distances, axis=0)
        return np.take(names, index)


def load_countries(
    path: str | os.PathLike[str] | None = None, *, names: Sequence[str] | None = REBEN_COUNTRIES
) -> Countries:
    """Country polygons from Natural Earth's GeoJSON.

    Args:
        path: ``ne_110m_admin_0_countries.geojson``; by default the ten polygons that come with the
            package (public domain; with them the rule gives the official country of every patch).
        names: Countries that take part, by priority; None for all of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        SourceError: If it is not GeoJSON with NAME_LONG, or lacks a country.
    """
    shipped = files("reben_cloud.bigearthnet").joinpath("data", "ne_110m_ten_countries.geojson")
    source = shipped if path is None else local_path(path, "a file of countries")
    try:
        found = {
            str(_property(feature["properties"], "NAME_LONG")): shapely.geometry.shape(feature["geometry"])
            for feature in json.loads(source.read_text(encoding="utf-8"))["features"]
        }
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source}: no such file of countries") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SourceError(f"{source}: no GeoJSON of countries with NAME_LONG ({error!r})") from error
    wanted = sorted(found) if names is None else names
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SourceError(f"{source}: has no {', '.join(missing)}; take ne_110m_admin_0_countries.geojson")
    return Countries(polygons={name: found[name] for name in wanted})


def _property(properties: Mapping[str, object], name: str) -> object:
    return {key.upper(): value for key, value in properties.items()}[name]
