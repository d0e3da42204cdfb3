"""Land-cover polygons (CORINE) -> reference map, by the rules of the paper's pipeline.

The pipeline (rsim-tu-berlin/bigearthnet-pipeline, ``V1_2__sentinel2_tables.sql``) cuts every polygon
with every patch and rasterises the pieces. A cut moves no pixel centre into or out of a polygon, so
here a tile's polygons are rasterised once, on the whole tile, and the patches are views of it; the
tests compare this with the piecewise way. Rasters of land cover are another way (`land_raster`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from reben_cloud.bigearthnet.labels import UNLABELLED
from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.files.paths import local_path
from reben_cloud.scenes.class_table import REBEN19, ClassTable

PIXEL_M = 10
"""Size of a reference-map pixel, metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LandCover:
    """The single polygons of a land-cover layer that touch a tile, in the tile's CRS."""

    polygons: NDArray[np.object_]
    """Shapely Polygons (n,), UTM metres, in the layer's order."""
    codes: NDArray[np.uint16]
    """Code of each, (n,)."""


def read_land_cover(
    path: str | os.PathLike[str],
    *,
    epsg: int,
    bounds: tuple[float, float, float, float],
    table: ClassTable = REBEN19,
    code_column: str = "code_18",
) -> LandCover:
    """The polygons of a CORINE vector file that touch a rectangle, through the file's spatial index.

    Multipolygons are split, then transformed vertex by vertex, without densification.

    Args:
        path: GeoPackage or any vector file that GDAL reads; official is U2018_CLC2018_V2020_20u1.gpkg.
        epsg: CRS of the tile, to transform to.
        bounds: minx, miny, maxx, maxy of the tile in that CRS, metres.
        table: The codes that may occur.
        code_column: Name of the column with the code, in any case.

    Raises:
        FileNotFoundError: If there is no such file.
        SourceError: If it is not a vector file, has no such column or several layers with one, or no CRS, or a feature
            has a code outside the table, the ``id`` of a different one, or an invalid geometry.
    """
    try:
        import pyogrio
    except ImportError as error:
        raise missing_extra("pyogrio", "geo") from error
    name = os.fspath(local_path(path, "a land-cover file"))
    if not Path(name).exists():
        raise FileNotFoundError(f"{name}: no such land-cover file")
    try:
        layer, columns, crs = _find_layer(name, code_column)
        tile = shapely.transform(shapely.segmentize(shapely.box(*bounds), 1000), _transform(epsg, crs))
        _, _, geometry, values = pyogrio.raw.read(
            name, layer=layer, columns=list(columns), bbox=tuple(shapely.bounds(tile))
        )
    except pyogrio.errors.DataSourceError as error:
        raise SourceError(f"{name}: no readable vector file ({error})") from error
    # pyogrio keeps the file's order of the columns, not ours.
    fields = dict(zip(columns.values(), (values[i] for i in _places(name, layer, columns)), strict=True))
    polygons = shapely.from_wkb(geometry)
    codes = _parse_codes(fields["code"], table, name)
    if "id" in fields:
        _refuse_same_ids(name, fields["id"], codes, geometry)
    valid = shapely.is_valid(polygons)
    if not valid.all():
        worst = polygons[~valid][0]
        raise SourceError(
            f"{name}: {int((~valid).sum())} geometries are invalid, the first: "
            f"{shapely.is_valid_reason(worst)}; repair the file, e.g. ogr2ogr -makevalid"
        )
    parts, owner = shapely.get_parts(polygons, return_index=True)
    parts = shapely.transform(parts, _transform(crs, epsg))
    near = shapely.intersects(parts, shapely.box(*bounds))
    return LandCover(polygons=parts[near], codes=codes[owner[near]])


def _refuse_same_ids(
    name: str, ids: NDArray[np.object_], codes: NDArray[np.uint16], geometry: NDArray[np.object_]
) -> None:
    """Refuse an ``id`` that different features have: the paper's recipe takes the first, and would lose the others.

    The same feature again changes nothing, and features without an id are what they are.
    """
    first: dict[str, tuple[int, bytes]] = {}
    for one, code, shape in zip(ids.tolist(), codes.tolist(), geometry.tolist(), strict=True):
        text = "" if one is None or one != one else str(one).strip()
        if text and first.setdefault(text, (code, shape)) != (code, shape):
            raise SourceError(
                f"{name}: different features have the id {text!r}, of codes {first[text][0]} and {code}; is its column "
                "id one that tells features apart? Leave it out (ogr2ogr -select), or remove the wrong features"
            )


def _find_layer(name: str, code_column: str) -> tuple[str, dict[str, str], str]:
    """The layer with the code column, its columns (actual name -> ``code`` or ``id``), its CRS."""
    import pyogrio

    seen: list[str] = []
    found: list[tuple[str, dict[str, str], str]] = []
    for layer in pyogrio.list_layers(name)[:, 0].tolist():
        info = pyogrio.read_info(name, layer=layer)
        roles = {code_column.lower(): "code", "id": "id"}
        columns = {f: roles[f.lower()] for f in info["fields"].tolist() if f.lower() in roles}
        if "code" in columns.values():
            if not info["crs"]:
                raise SourceError(
                    f"{name}: layer {layer} has no CRS; CORINE 2018 is in EPSG:3035, set it with ogr2ogr -a_srs"
                )
            found.append((layer, columns, str(info["crs"])))
        seen += info["fields"].tolist()
    if len(found) > 1:
        raise SourceError(
            f"{name}: {len(found)} layers have a column {code_column!r}: {', '.join(layer for layer, _, _ in found)}; "
            "land cover is one layer: put those that are meant into a file of their own (ogr2ogr OUT.gpkg IN LAYER, "
            "and -append for more)"
        )
    if found:
        return found[0]
    raise SourceError(
        f"{name}: no layer has a column {code_column!r} with land-cover codes, it has "
        f"{', '.join(seen) or 'no columns'}; name the right one (--code-column)"
    )


def _places(name: str, layer: str, columns: Mapping[str, str]) -> list[int]:
    import pyogrio

    order = [f for f in pyogrio.read_info(name, layer=layer)["fields"].tolist() if f in columns]
    return [order.index(column) for column in columns]


def _transform(source: int | str, target: int | str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    return lambda points: np.column_stack(transformer.transform(points[:, 0], points[:, 1]))


def _parse_codes(values: NDArray[Any], table: ClassTable, name: str) -> NDArray[np.uint16]:
    """Codes as integers; whole floats are taken too, as numbers or as text, for some editions store codes so."""
    found, inverse = np.unique(values.astype(str), return_inverse=True)
    known = {str(code): code for code in (*table.labels, UNLABELLED)} | dict.fromkeys(
        map(str, table.nodata), UNLABELLED
    )
    texts = [re.sub(r"\.0*$", "", text.strip()) for text in found.tolist()]
    unknown = [text for text, whole in zip(found.tolist(), texts, strict=True) if whole not in known]
    if unknown:
        raise SourceError(
            f"{name}: code {unknown[0]!r} is none of class table {table.name}; is this the column with the codes "
            "(--code-column), and the table the one for them (--classes)?"
        )
    return np.array([known[text] for text in texts], np.uint16)[inverse]


def rasterise(
    land_cover: LandCover, *, left: float, top: float, shape: tuple[int, int]
) -> NDArray[np.uint16]:
    """Codes on a grid of 10 m pixels: a pixel has the code of the polygon its centre lies in.

    Where polygons overlap (slivers of the reprojection) the later one wins; where there is none the
    code is 999.

    Args:
        land_cover: The polygons.
        left: West edge of the grid, metres.
        top: North edge, metres.
        shape: Height and width, pixels.

    Returns:
        uint16 of that shape.
    """
    try:
        from rasterio.features import rasterize
        from rasterio.transform import from_origin
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    if not len(land_cover.polygons):
        return np.full(shape, UNLABELLED, np.uint16)
    # GeoJSON text by GEOS and back by json is ten times faster than shapely's own mapping.
    documents = map(json.loads, shapely.to_geojson(land_cover.polygons))
    burned: NDArray[np.uint16] = rasterize(
        zip(documents, land_cover.codes.tolist(), strict=True),
        out_shape=shape,
        transform=from_origin(left, top, PIXEL_M, PIXEL_M),
        fill=UNLABELLED,
        dtype="uint16",
    )
    return burned
