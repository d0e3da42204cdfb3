"""Terrain-corrected Sentinel-1 scenes in GeoTIFFs: which bands they have, when and where they were taken.

How v1's S1 patches were made is not public: sigma0 or gamma0, the resampling kernel, the version of
SNAP and the orbit files are unknown; measured on real patches, no speckle filter was used. Patches
cut from scenes follow what is known (dB, 10 m, one scene per patch) and equal the official ones only
where the scene was processed the same way.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import ARRAYS
from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.files.clutter import glob_data
from reben_cloud.files.paths import local_path

POLARIZATIONS = ARRAYS["s1"]
"""The bands of a Sentinel-1 patch: VV and VH."""

_SCENE = re.compile(grid.SCENE_PATTERN)
_NAMED = re.compile(r"(?:^|[\s_.-])(VV|VH)(?=[\s_.-]|$)")

_DIMAP_TAG = 65_000
"""TIFF tag in which SNAP keeps its description of the product, XML."""

_SAME_START_S = 5
"""Largest difference of the start in a scene's name and in its file; the next slice begins 25 s later."""

_PLAUSIBLE_DB = (-60.0, 30.0)
"""Bounds of a scene's median backscatter: noise is at about -30 dB, towns are at about 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One terrain-corrected Sentinel-1 scene in dB, of any CRS."""

    name: str
    """First 32 characters of the GRD product's name: what S1 names begin with."""
    time: datetime
    """Start of the acquisition, UTC."""
    bands: Mapping[str, tuple[Path, int]]
    """VV and VH -> file and number of the band in it, from 1."""
    extents: Mapping[Path, tuple[str, tuple[float, float, float, float]]]
    """File -> CRS (WKT) and its left, bottom, right and top in it."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Its one or two files."""
        return tuple(sorted(self.extents))

    def reaches(self, *, epsg: int, bounds: tuple[float, float, float, float]) -> bool:
        """Whether all its files touch a rectangle: left, bottom, right, top, metres in `epsg`."""
        from rasterio.warp import transform_bounds

        left, bottom, right, top = bounds
        for crs, extent in self.extents.values():
            minx, miny, maxx, maxy = transform_bounds(crs, f"EPSG:{epsg}", *extent)
            if minx > right or maxx < left or miny > top or maxy < bottom:
                return False
        return True

    def is_in(self, epsg: int) -> bool:
        """Whether all its files are in a CRS."""
        from rasterio.crs import CRS

        return all(CRS.from_wkt(crs).to_epsg() == epsg for crs, _ in self.extents.values())


def open_scenes(paths: Sequence[str | os.PathLike[str]]) -> list[Scene]:
    """The scenes behind GeoTIFF files, or folders of them; only headers are read.

    A scene is one file with a band for each polarization, or a file for each with VV or VH in its name. Which
    band is which is what the file says: in the bands' descriptions, in SNAP's description of the product, or by
    the order of VV and VH in its name. A file of two bands that says nothing is refused, and so is one that
    says two things. Names begin like the GRD product.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no GeoTIFF.
        SourceError: If a file is not a GeoTIFF, a name is not a scene's or is not of the time that SNAP wrote
            into the file, a polarization or the CRS is missing, or it comes twice.
    """
    found: dict[str, dict[str, tuple[Path, int]]] = {}
    extents: dict[Path, tuple[str, tuple[float, float, float, float]]] = {}
    for path in (file for given in paths for file in scene_files(local_path(given, "a Sentinel-1 scene"))):
        match = _SCENE.match(path.name)
        if match is None:
            raise SourceError(
                f"{path.name}: no Sentinel-1 scene; a name begins like S1A_IW_GRDH_1SDV_20170613T165043"
            )
        numbers, extents[path] = _read_header(path, _start(match[0]))
        scene = found.setdefault(match[0], {})
        for polarization, number in numbers.items():
            if polarization in scene:
                raise SourceError(
                    f"{path.name}: {polarization} of this scene is also in {scene[polarization][0].name}"
                )
            scene[polarization] = (path, number)
    for name, bands in found.items():
        lacking = [p for p in POLARIZATIONS if p not in bands]
        if lacking:
            raise SourceError(f"{name}: no {' and no '.join(lacking)}; a scene needs VV and VH")
    return [
        Scene(
            name=name,
            time=_start(name),
            bands=bands,
            extents={path: extents[path] for path, _ in bands.values()},
        )
        for name, bands in sorted(found.items())
    ]


def _start(scene: str) -> datetime:
    return grid.parse_time(scene[17:])


def _read_header(
    path: Path, time: datetime
) -> tuple[dict[str, int], tuple[str, tuple[float, float, float, float]]]:
    """Which band each polarization is, from 1; and the CRS and extent of the file."""
    try:
        import rasterio
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    try:
        with rasterio.open(path) as file:
            if file.crs is None:
                raise SourceError(f"{path.name}: has no CRS; terrain-correct the scene first")
            described = [d or "" for d in file.descriptions]
            extent = file.crs.to_wkt(), tuple(file.bounds)
    except rasterio.errors.RasterioError as error:
        raise SourceError(f"{path.name}: no readable GeoTIFF ({str(error).splitlines()[0]})") from error
    names, started = _read_dimap(path)
    if started is not None and abs((started - time).total_seconds()) > _SAME_START_S:
        raise SourceError(
            f"{path.name}: SNAP wrote into it that the scene starts at {started:%Y-%m-%dT%H:%M:%S}, its name says "
            f"{time:%Y-%m-%dT%H:%M:%S}; was it renamed?"
        )
    return _polarizations(path.name, described, names), extent


def _read_dimap(path: Path) -> tuple[list[str], datetime | None]:
    """The bands' names in their order, and the start of the scene, from SNAP's description; none without one."""
    try:
        import tifffile
    except ImportError as error:
        raise missing_extra("tifffile", "geo", error) from error
    try:
        with tifffile.TiffFile(path) as file:
            tag = file.pages.first.tags.get(_DIMAP_TAG)
            value = b"" if tag is None else tag.value
        text = value if isinstance(value, bytes) else str(value).encode()
        root = ET.fromstring(text.rstrip(b"\0 \n")) if text.strip(b"\0 \n") else ET.Element("none")  # noqa: S314
        bands = {
            int(band.findtext("BAND_INDEX", "")): band.findtext("BAND_NAME", "")
            for band in root.iter("Spectral_Band_Info")
        }
    except tifffile.TiffFileError:
        return [], None  # another format that GDAL reads
    except (ET.ParseError, ValueError) as error:
        raise SourceError(f"{path.name}: SNAP's description in it is damaged ({error})") from error
    start = root.findtext(".//PRODUCT_SCENE_RASTER_START_TIME")
    return [bands[number] for number in sorted(bands)], _snap_time(start)


def _snap_time(text: str | None) -> datetime | None:
    """13-JUN-2017 16:50:43.123456, whatever the locale calls June; None for anything else."""
    match = re.match(r"(\d{2})-([A-Z]{3})-(\d{4}) (\d{2}):(\d{2}):(\d{2})", (text or "").strip().upper())
    months = "JANFEBMARAPRMAYJUNJULAUGSEPOCTNOVDEC"
    if match is None or match[2] not in months:
        return None
    day, year, hour, minute, second = map(int, match.group(1, 3, 4, 5, 6))
    return datetime(year, months.index(match[2]) // 3 + 1, day, hour, minute, second, tzinfo=UTC)


def scene_files(path: Path) -> list[Path]:
    """The GeoTIFFs that a path names: itself, or those below a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_dir():
        found = [p for p in glob_data(path, "**/*") if p.suffix.lower() in (".tif", ".tiff")]
        if not found:
            raise FileNotFoundError(f"{path}: no Sentinel-1 scenes (.tif) and no official patches there")
        return found
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such Sentinel-1 scene")
    return [path]


def _polarizations(name: str, described: Sequence[str], snap: Sequence[str]) -> dict[str, int]:
    """Polarization -> number of its band, from all that the file says, which must agree."""
    said = {
        "the descriptions of its bands": _order(described),
        "SNAP's description": _order(snap) if len(snap) == len(described) else None,
        "its name": _order_in_name(name, len(described)),
    }
    told = {who: order for who, order in said.items() if order}
    if not told:
        if len(described) == 1:
            raise SourceError(f"{name}: is it VV or VH? the name must have one of them between _, - or .")
        raise SourceError(
            f"{name}: cannot tell VV from VH, its {len(described)} bands are described as "
            f"{', '.join(map(repr, described[:4]))} and its name does not say; put VV_VH or VH_VV into the name, in "
            "the order of the bands"
        )
    (who, order), *others = told.items()
    for other, differing in others:
        if differing != order:
            raise SourceError(
                f"{name}: {who} and {other} disagree which band is VV and which is VH ({_tell(order)}; "
                f"{_tell(differing)}); correct the wrong one"
            )
    return order


def _tell(order: Mapping[str, int]) -> str:
    return ", ".join(f"band {number} is {polarization}" for polarization, number in order.items())


def _order(texts: Sequence[str]) -> dict[str, int] | None:
    """Polarization -> band where each is named by one text; None where not all of them are."""
    found = {
        polarization: [number for number, text in enumerate(texts, 1) if polarization in text.upper()]
        for polarization in POLARIZATIONS
    }
    named = {polarization: numbers[0] for polarization, numbers in found.items() if len(numbers) == 1}
    once = len(set(named.values())) == len(named) and sum(map(len, found.values())) == len(named)
    return named if once and len(named) == min(len(texts), 2) > 0 else None


def _order_in_name(name: str, num_bands: int) -> dict[str, int] | None:
    named = _NAMED.findall(name.upper())
    if len(set(named)) != len(named) or len(named) != num_bands:
        return None
    return {
        polarization: named.index(polarization) + 1 for polarization in POLARIZATIONS if polarization in named
    }


def check_backscatter(medians: Sequence[NDArray[np.float32]], *, name: str) -> None:
    """That values are decibels, and VV above VH: over any land or water the surface returns more of VV.

    A single patch of calm water may be noise in both, so the differences of many are taken together.

    Args:
        medians: Of each patch, the medians of VV and VH (2,), dB; may be empty.
        name: What to call them in messages.

    Raises:
        SourceError: If they are not, in the median over the patches.
    """
    if not len(medians):
        return
    vv, vh = np.median(medians, axis=0).tolist()
    if np.median([first - second for first, second in medians]) <= 0:
        raise SourceError(
            f"{name}: VV is not above VH (medians {vv:.1f} and {vh:.1f} dB), which no surface returns; they are "
            "swapped or the same: correct the descriptions of the bands, or the order of VV and VH in the name"
        )
    if vh > 0:
        raise SourceError(
            f"{name}: medians of VV {vv:.3g} and VH {vh:.3g} are above 0 dB, which no land returns; it is linear "
            "power, convert it to dB (10 log10)"
        )
    low, high = _PLAUSIBLE_DB
    if not low <= vh <= vv <= high:
        raise SourceError(
            f"{name}: medians of VV {vv:.3g} and VH {vh:.3g} are outside [{low:g}, {high:g}] dB; convert it to dB"
        )
