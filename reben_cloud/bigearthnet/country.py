"""The country of a patch: the nearest polygon of a map, as the paper's pipeline has it, or none beyond a distance.

Only the countries in the table take part. Without a limit a patch at sea or across a border still gets one of them:
a region tag, not geography.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyproj
import shapely
import shapely.affinity
from numpy.typing import NDArray

from reben_cloud.errors import SourceError, missing_extra
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


NAME_FIELDS = ("NAME_LONG", "NAME_EN", "NAME")
"""Attributes that Natural Earth's files call a place by: the first that a file has, in any case."""

_DEGREE_M = 110_000
"""Least length of a degree of latitude, metres, rounded down."""

_SAME_BORDER_DEGREES = 0.02
"""How far a border may be from that of the ten polygons to be the same."""

_EDGE_DEGREES = 0.05
"""Longest piece of a border that is projected as a straight line; over it the two differ by a few metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Countries:
    """Country polygons in longitude and latitude, by priority."""

    polygons: Mapping[str, shapely.Geometry]
    """Name -> polygon, EPSG:4326; the first of equally near ones wins."""
    max_distance_m: float | None = None
    """How far from a square the nearest polygon may be; beyond it there is no country. None: however far."""

    def __post_init__(self) -> None:
        if self.max_distance_m is not None and not 0 <= self.max_distance_m <= 1_000_000:
            raise ValueError(
                f"the distance of a country must be in [0, 1,000,000] m, got {self.max_distance_m}"
            )

    @property
    def are_rebens(self) -> bool:
        """Whether they give what the paper's do: its ten, in its order, as coarse as there, at any distance."""
        ten = load_countries().polygons
        return (
            self.max_distance_m is None
            and tuple(self.polygons) == tuple(ten)
            # Copies of one map differ by its releases and by digits; of a finer map, coasts by tens of kilometres.
            and all(
                shapely.hausdorff_distance(polygon, ten[name]) < _SAME_BORDER_DEGREES
                for name, polygon in self.polygons.items()
            )
        )

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
            Names, (n,); empty where none is near enough.
        """
        squares = shapely.box(left, top - side_m, left + side_m, top)
        if self.max_distance_m is not None:
            return self._within(squares, epsg, self.max_distance_m)
        transformer = pyproj.Transformer.from_crs(4326, epsg, always_xy=True)
        # Vertices only, as PostGIS transforms.
        distances = [
            shapely.distance(squares, shapely.transform(polygon, transformer.transform, interleaved=False))
            for polygon in self.polygons.values()
        ]
        names: NDArray[np.str_] = np.array(list(self.polygons))
        index: NDArray[np.intp] = np.argmin(distances, axis=0)
        return np.take(names, index)

    def _within(self, squares: NDArray[np.object_], epsg: int, max_distance_m: float) -> NDArray[np.str_]:
        """The nearest within a distance; only what of the polygons is near the squares is projected.

        A zone's projection makes nonsense of what is far from it, and a map of the world ends at the antimeridian, so
        that polygons are also looked for one turn to the west and to the east.
        """
        names: NDArray[np.str_] = np.array(["", *self.polygons])
        found = np.zeros(len(squares), np.intp)
        if not len(squares):
            return names[found]
        window = _degrees_around(squares, epsg, max_distance_m)
        project = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform
        nearest = np.full(len(squares), np.inf)
        for number, polygon in enumerate(self.polygons.values(), 1):
            near = _clipped(polygon, window)
            if near.is_empty:
                continue
            projected = shapely.transform(shapely.segmentize(near, _EDGE_DEGREES), project, interleaved=False)
            distance = shapely.distance(squares, projected)
            better = (distance <= max_distance_m) & (distance < nearest)
            nearest[better], found[better] = distance[better], number
        return np.take(names, found)


def _degrees_around(
    squares: NDArray[np.object_], epsg: int, distance_m: float
) -> tuple[float, float, float, float]:
    """West, south, east and north of what is within a distance; beyond 180 degrees across the antimeridian."""
    outline = shapely.segmentize(shapely.box(*shapely.total_bounds(squares)), 10_000)
    lon, lat = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(
        *shapely.get_coordinates(outline).T
    )
    lon = lon[0] + (lon - lon[0] + 180) % 360 - 180
    more = distance_m / _DEGREE_M + _EDGE_DEGREES
    south, north = max(lat.min() - more, -90), min(lat.max() + more, 90)
    wider = more / max(np.cos(np.deg2rad(max(abs(south), abs(north)))), 0.01)
    return float(lon.min() - wider), float(south), float(lon.max() + wider), float(north)


def _clipped(polygon: shapely.Geometry, window: tuple[float, float, float, float]) -> shapely.Geometry:
    """What of a polygon is in a window, moved by whole turns to where the window is."""
    west, south, east, north = window
    parts = []
    for turn in (-360, 0, 360):
        part = shapely.clip_by_rect(polygon, west - turn, south, east - turn, north)
        if not part.is_empty:
            parts.append(shapely.affinity.translate(part, xoff=turn))
    return shapely.union_all(parts) if len(parts) != 1 else parts[0]


def load_countries(
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] | None = REBEN_COUNTRIES,
    field: str | None = None,
    max_distance_m: float | None = None,
) -> Countries:
    """Country polygons from a file of Natural Earth, of any level and scale, or another vector file of places.

    Places of the same name are one. Places without a name are left out.

    Args:
        path: ``ne_110m_admin_0_countries.geojson`` or any other; by default the ten polygons that come with the
            package (public domain; with them the rule gives the official country of every patch).
        names: Countries that take part, by priority; None for all of the file.
        field: Attribute with the name, in any case; by default the first of `NAME_FIELDS`.
        max_distance_m: As `Countries` has it.

    Raises:
        FileNotFoundError: If there is no such file.
        SourceError: If it has no such attribute, cannot be read, or lacks a country.
    """
    shipped = files("reben_cloud.bigearthnet").joinpath("data", "ne_110m_ten_countries.geojson")
    source = shipped if path is None else local_path(path, "a file of countries")
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file of countries")
    fields = NAME_FIELDS if field is None else (field,)
    is_json = path is None or Path(path).suffix.lower() in (".json", ".geojson")
    places = (
        _read_geojson(source.read_bytes(), fields, str(source))
        if is_json
        else _read_vector(str(source), fields)
    )
    found: dict[str, list[shapely.Geometry]] = {}
    for name, polygon in places:
        found.setdefault(name, []).append(polygon)
    wanted = sorted(found) if names is None else names
    missing = [name for name in wanted if name not in found]
    if missing:
        raise SourceError(f"{source}: has no {', '.join(missing)}; take ne_110m_admin_0_countries.geojson")
    polygons = {
        name: found[name][0] if len(found[name]) == 1 else shapely.union_all(found[name]) for name in wanted
    }
    return Countries(polygons=polygons, max_distance_m=max_distance_m)


def _read_geojson(data: bytes, fields: Sequence[str], name: str) -> list[tuple[str, shapely.Geometry]]:
    try:
        features = json.loads(data)["features"]
        known = {key.upper(): key for feature in features for key in feature["properties"]}
        key = known[_field_of(fields, known)]
        return [
            (str(feature["properties"][key]), shapely.geometry.shape(feature["geometry"]))
            for feature in features
            if feature["properties"].get(key)
        ]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{name}: no GeoJSON of countries with {' or '.join(fields)} ({error!r})"
        ) from error


def _read_vector(name: str, fields: Sequence[str]) -> list[tuple[str, shapely.Geometry]]:
    """The places of a Shapefile, a GeoPackage or the like, whose CRS is in degrees of WGS 84."""
    try:
        import pyogrio
    except ImportError as error:
        raise missing_extra("pyogrio", "geo") from error
    try:
        info = pyogrio.read_info(name)
        known = {str(key).upper(): str(key) for key in info["fields"]}
        key = known[_field_of(fields, known)]
        _, _, geometry, (values,) = pyogrio.raw.read(name, columns=[key])
    except (pyogrio.errors.DataSourceError, KeyError) as error:
        raise SourceError(f"{name}: no file of countries with {' or '.join(fields)} ({error})") from error
    if info["crs"] is None or not pyproj.CRS.from_user_input(info["crs"]).is_geographic:
        raise SourceError(
            f"{name}: its CRS is {info['crs']}, must be degrees (EPSG:4326); convert it with ogr2ogr -t_srs"
        )
    return [
        (str(value), polygon)
        for value, polygon in zip(values.tolist(), shapely.from_wkb(geometry), strict=True)
        if value and polygon is not None
    ]


def _field_of(fields: Sequence[str], known: Mapping[str, str]) -> str:
    """The first of some attributes that a file has, in capitals."""
    for field in fields:
        if field.upper() in known:
            return field.upper()
    raise KeyError(fields[0])
