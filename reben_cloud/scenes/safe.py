"""A Sentinel-2 Level-2A product in its SAFE folder: what its metadata says, and its twelve bands.

Everything foreign (XML names, file names, offsets) is parsed and checked here, once; nothing else
sees it. Facts come from the product, never from its name or baseline: products that sen2cor made
outside the ground segment are called ``N9999`` and carry no offset.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.files.paths import local_path

S2_BANDS = tuple(name for name, band in BANDS.items() if band.sensor == "s2")
"""The twelve bands of a Level-2A product."""

QUALITY_CHECKS = ("GEOMETRIC_QUALITY", "GENERAL_QUALITY", "RADIOMETRIC_QUALITY", "SENSOR_QUALITY")
"""Checks that exclude a product unless absent or PASSED (bigearthnet-pipeline)."""

_QUANTIFICATION = 10_000
"""Digital numbers per reflectance, which patches are raw counts of."""

_LONGEST_DATATAKE = timedelta(hours=1)
"""A tile is sensed within its datatake, which begins at the time in the name; real ones take half of it."""

logger = logging.getLogger(__name__)

# The metadata numbers the bands by wavelength, B10 included (PSD, physical bands).
_BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")

_PRODUCT = re.compile(
    r"(S2[A-D]_MSIL2A_(\d{8}T\d{6})_N(\d{4})_R\d{3}_T(\d{2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V]))_(\d{8}T\d{6})(?:\.SAFE)?"
)
_IMAGE = re.compile(
    r"(?:L2A_)?T(?P<square>\w{5})_(?P<time>\d{8}T\d{6})_(?P<band>B\w{2})_(?P<resolution>\d{2})m"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SafeProduct:
    """One Level-2A product; its pixels stay in their files until they are read."""

    path: Path
    """The ``.SAFE`` folder."""
    name: str
    """Product name without generation time and suffix: what patch ids begin with."""
    generation: str
    """When it was processed, as its full name ends: one acquisition may be processed again."""
    square: str
    """MGRS square, e.g. ``33UUP``."""
    time: datetime
    """Start of the acquisition, UTC."""
    epsg: int
    """CRS of the tile."""
    left: int
    """West edge of the tile, metres."""
    top: int
    """North edge of the tile, metres."""
    shapes: Mapping[int, tuple[int, int]]
    """Resolution in metres -> height and width of the tile in pixels."""
    images: Mapping[str, Path]
    """Band -> JP2 file, at its native resolution."""
    offsets: Mapping[str, int]
    """Band -> digital number to add; empty for products that carry none."""
    metadata: tuple[Path, ...]
    """Files that all this was read from."""
    checksums: Mapping[Path, tuple[str, str]]
    """File -> algorithm and hexadecimal digest, from ``manifest.safe``; empty without one."""
    failed_checks: tuple[str, ...]
    """Quality checks that are present and not PASSED; any excludes the product."""

    def read_band(self, name: str) -> NDArray[np.uint16]:
        """All pixels of a band, raw digital numbers with the product's offset applied.

        Where an offset applies, valid pixels stay above 0, which means nodata.

        Returns:
            uint16 (height, width) at the band's native resolution.

        Raises:
            SourceError: If the image is not readable, not of the size or at the place that the metadata states,
                or has no data.
        """
        try:
            import rasterio
            from rasterio.transform import from_origin
        except ImportError as error:
            raise missing_extra("rasterio", "geo") from error
        path, shape = self.images[name], self.shapes[BANDS[name].resolution_m]
        _check_bytes(path, self.checksums.get(path))
        try:
            with rasterio.open(path) as image:
                if (image.height, image.width, image.count) != (*shape, 1) or image.dtypes[0] != "uint16":
                    raise SourceError(
                        f"{path.name}: {image.count} band(s) of {image.height} x {image.width} {image.dtypes[0]}, "
                        f"the product's metadata says 1 of {shape[0]} x {shape[1]} uint16; is it of another product, "
                        "or was it resampled? fetch the product again"
                    )
                pixel_m = BANDS[name].resolution_m
                place = f"EPSG:{self.epsg}", from_origin(self.left, self.top, pixel_m, pixel_m)
                if image.crs is None and image.transform.is_identity:
                    logger.warning("%s: does not say where it lies; its place is the metadata's", path.name)
                elif image.crs != place[0] or not image.transform.almost_equals(place[1], 1e-3):
                    raise SourceError(
                        f"{path.name}: lies at ({image.transform.c:g}, {image.transform.f:g}) m in {image.crs}, pixels "
                        f"of {image.transform.a:g} m; the product's metadata says ({self.left}, {self.top}) m in "
                        f"{place[0]}, {pixel_m} m; is it of another product? fetch the product again"
                    )
                pixels: NDArray[np.uint16] = np.empty(shape, np.uint16)
                # Block by block: of a larger window GDAL decodes the blocks in threads of its own, which
                # fill a damaged one with zeros and raise nothing (GDAL 3.10); it is no faster either.
                for _, window in image.block_windows(1):
                    pixels[window.toslices()] = image.read(1, window=window)
        except rasterio.errors.RasterioError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise SourceError(
                f"{path.name}: cannot be decoded ({reason}); the file is damaged, fetch the product again"
            ) from error
        if not pixels.any():
            raise SourceError(
                f"{path.name}: every pixel is 0, which means nodata; band {name} is empty, fetch the product again or "
                "leave it out"
            )
        offset = self.offsets.get(name, 0)
        if offset:
            valid = pixels != 0
            shifted = np.clip(pixels.astype(np.int32) + offset, 1, 65_535)
            pixels = np.where(valid, shifted, 0).astype(np.uint16)
        return pixels


def open_safe(path: str | os.PathLike[str]) -> SafeProduct:
    """What a product's metadata says; every named image is looked for, none is read.

    Args:
        path: The ``.SAFE`` folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        SourceError: If it is no Level-2A product, lacks a band, a size or a CRS, or mixes tiles.
    """
    folder = local_path(path, "a Sentinel product")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such product folder")
    main = folder / "MTD_MSIL2A.xml"
    if not main.exists():
        level1 = (folder / "MTD_MSIL1C.xml").exists()
        hint = "it is Level-1C, give it as --l1c" if level1 else "is it a Sentinel-2 L2A .SAFE folder?"
        raise SourceError(f"{folder.name}: no MTD_MSIL2A.xml; {hint}")
    product = _parse(main)
    uri = _text(product, "PRODUCT_URI", main)
    match = _PRODUCT.fullmatch(uri)
    if match is None:
        raise SourceError(f"{folder.name}: PRODUCT_URI {uri!r} is no Level-2A product name")
    name, time, baseline, square, generation = match.group(1, 2, 3, 4, 5)
    _check_names(folder, uri, baseline, product)
    started = _text(product, "PRODUCT_START_TIME", main)
    begin = datetime.fromisoformat(started.replace("Z", "+00:00"))
    if abs((begin - grid.sensing_time(name)).total_seconds()) >= 1:
        raise SourceError(
            f"{folder.name}: starts at {started}, its name says {time}; are two products mixed?"
        )
    tiles = sorted(folder.glob("GRANULE/*/MTD_TL.xml"))
    if len(tiles) != 1:
        raise SourceError(
            f"{folder.name}: {len(tiles)} GRANULE/*/MTD_TL.xml, must be one; the product is "
            f"{'mixed with another' if tiles else 'incomplete'}, fetch it again"
        )
    epsg, left, top, shapes = _geocoding(tiles[0], folder.name, square)
    _check_tile(tiles[0], folder.name, square, begin)
    for entry in _all(product, "Special_Values"):
        if _text(entry, "SPECIAL_VALUE_TEXT", main) == "NODATA":
            nodata = _text(entry, "SPECIAL_VALUE_INDEX", main)
            if nodata != "0":
                raise SourceError(f"{folder.name}: its nodata value is {nodata}, only 0 is supported")
    manifest = folder / "manifest.safe"
    return SafeProduct(
        path=folder,
        name=name,
        generation=generation,
        square=square,
        time=begin,
        epsg=epsg,
        left=left,
        top=top,
        shapes=shapes,
        images=_images(product, folder, square, time, tiles[0].parent.name),
        offsets=_offsets(product, folder.name),
        metadata=(main, tiles[0], *([manifest] if manifest.exists() else [])),
        checksums=_checksums(folder),
        failed_checks=_failed_checks(product),
    )


# End of the codestream. OpenJPEG fills what a damaged file lacks with a warning only.
_END_OF_CODESTREAM = b"\xff\xd9"

_ALGORITHMS = {"MD5": "md5", "SHA3-256": "sha3_256"}


def _checksums(folder: Path) -> dict[Path, tuple[str, str]]:
    """Checksums of the product's files, where it brings its manifest."""
    manifest = folder / "manifest.safe"
    if not manifest.exists():
        return {}
    found = {}
    for entry in _all(_parse(manifest), "byteStream"):
        places, sums = _all(entry, "fileLocation"), _all(entry, "checksum")
        algorithm = _ALGORITHMS.get(sums[0].attrib.get("checksumName", "")) if sums else None
        if places and algorithm:
            found[folder / places[0].attrib["href"].removeprefix("./")] = (
                algorithm,
                (sums[0].text or "").strip().lower(),
            )
    return found


def _check_bytes(path: Path, checksum: tuple[str, str] | None) -> None:
    advice = "the file is damaged, fetch the product again"
    with path.open("rb") as file:
        if checksum is not None:
            algorithm, expected = checksum
            got = hashlib.file_digest(file, algorithm).hexdigest()
            if got != expected:
                raise SourceError(
                    f"{path.name}: its {algorithm} is {got}, manifest.safe says {expected}; {advice}"
                )
        file.seek(-min(2, path.stat().st_size), os.SEEK_END)
        if file.read() != _END_OF_CODESTREAM:
            raise SourceError(f"{path.name}: no complete JPEG 2000 file; {advice}")


def _geocoding(path: Path, name: str, square: str) -> tuple[int, int, int, dict[int, tuple[int, int]]]:
    """CRS, corner and sizes of the tile, checked against the place its square has."""
    root = _parse(path)
    code = next((e.text or "" for e in _all(root, "HORIZONTAL_CS_CODE")), "")
    if not re.fullmatch(r"EPSG:\d+", code):
        raise SourceError(f"{name}: no CRS, {path.name} has no HORIZONTAL_CS_CODE like EPSG:32633")
    epsg = int(code.removeprefix("EPSG:"))
    corners = {(int(_text(e, "ULX", path)), int(_text(e, "ULY", path))) for e in _all(root, "Geoposition")}
    shapes = {
        int(e.attrib["resolution"]): (int(_text(e, "NROWS", path)), int(_text(e, "NCOLS", path)))
        for e in _all(root, "Size")
    }
    if len(corners) != 1 or not {10, 20, 60} <= shapes.keys():
        raise SourceError(f"{name}: {path.name} lacks the size or the corner of the tile at 10, 20 and 60 m")
    ((left, top),) = corners
    if (epsg, left, top) != grid.tile_corner(square):
        raise SourceError(
            f"{name}: its tile lies at ({left}, {top}) m in EPSG:{epsg}, square {square} at "
            "({1}, {2}) m in EPSG:{0}; are two products mixed?".format(*grid.tile_corner(square))
        )
    sizes = {(rows * resolution, columns * resolution) for resolution, (rows, columns) in shapes.items()}
    if len(sizes) != 1 or max(sizes.pop()) > grid.TILE_M:
        raise SourceError(f"{name}: sizes {shapes} are not one tile of at most {grid.TILE_M:,} m")
    return epsg, left, top, shapes


def _check_names(folder: Path, uri: str, baseline: str, product: ET.Element) -> None:
    """That the folder, the product's name and its baseline are of one product."""
    uri, called = uri.removesuffix(".SAFE"), folder.name.removesuffix(".SAFE")
    if called != uri and _PRODUCT.fullmatch(called):
        raise SourceError(
            f"{folder.name}: its metadata calls it {uri}; is it of another product, or was the folder renamed?"
        )
    for entry in _all(product, "PROCESSING_BASELINE"):
        if (entry.text or "").strip().replace(".", "") != baseline:
            raise SourceError(
                f"{folder.name}: PROCESSING_BASELINE is {entry.text}, its name says N{baseline}; are two products "
                "mixed?"
            )
    for entry in _all(product, "BOA_QUANTIFICATION_VALUE"):
        if float(entry.text or "nan") != _QUANTIFICATION:
            raise SourceError(
                f"{folder.name}: a reflectance of 1 is {entry.text} in it, only {_QUANTIFICATION} is supported"
            )


def _check_tile(path: Path, name: str, square: str, begin: datetime) -> None:
    """That the granule's metadata is of this square and acquisition, where it says."""
    root = _parse(path)
    for entry in _all(root, "TILE_ID"):
        found = re.search(r"_T(\d{2}[A-Z]{3})(?:_|$)", (entry.text or "").strip())
        if found and found[1] != square:
            raise SourceError(
                f"{name}: its {path.name} is of T{found[1]}, not T{square}; are two products mixed?"
            )
    for entry in _all(root, "SENSING_TIME"):
        sensed = datetime.fromisoformat((entry.text or "").strip().replace("Z", "+00:00"))
        sensed = sensed if sensed.tzinfo else sensed.replace(tzinfo=UTC)
        if abs(sensed - begin) > _LONGEST_DATATAKE:
            raise SourceError(
                f"{name}: its {path.name} was sensed at {entry.text}, the product starts at {begin.isoformat()}; are "
                "two products mixed?"
            )


def _offsets(product: ET.Element, name: str) -> dict[str, int]:
    """Band -> digital number to add; for all bands or, in early products, for none."""
    offsets = {
        _BAND_IDS[int(entry.attrib["band_id"])]: int(entry.text or 0)
        for entry in _all(product, "BOA_ADD_OFFSET")
    }
    lacking = [band for band in S2_BANDS if offsets and band not in offsets]
    if lacking:
        raise SourceError(f"{name}: BOA_ADD_OFFSET is given for some bands and not for {', '.join(lacking)}")
    return offsets


def _images(product: ET.Element, folder: Path, square: str, time: str, granule: str) -> dict[str, Path]:
    """Every band's file at its native resolution, from the list in the metadata."""
    images: dict[str, Path] = {}
    for entry in _all(product, "IMAGE_FILE"):
        image = (entry.text or "").strip()
        match = _IMAGE.fullmatch(image.rpartition("/")[2])
        if match is None:
            continue  # SCL, AOT, WVP, TCI
        if (match["square"], match["time"]) != (square, time):
            raise SourceError(
                f"{folder.name}: lists {image.rpartition('/')[2]}, an image of another product "
                f"(this is T{square} at {time}); are two products mixed?"
            )
        parts = image.split("/")
        if "GRANULE" in parts and granule not in parts:
            raise SourceError(
                f"{folder.name}: lists {parts[-1]} in another granule than {granule}; are two products mixed?"
            )
        band = BANDS.get(match["band"])
        if band is not None and int(match["resolution"]) == band.resolution_m:
            images[band.name] = folder / f"{image}.jp2"
    for name in S2_BANDS:
        if name not in images:
            raise SourceError(
                f"{folder.name}: its metadata lists no {BANDS[name].resolution_m} m image of {name}"
            )
        if not images[name].exists():
            raise SourceError(
                f"{folder.name}: band {name} is missing, there is no {images[name].name}; "
                "the product is incomplete, fetch it again"
            )
    return images


def _failed_checks(product: ET.Element) -> tuple[str, ...]:
    """Quality checks that do not say PASSED, in any spelling of the schema; said twice, the worse counts."""
    failed = set()
    for element in product.iter():
        written = (
            element.attrib.get("checkType", "") if _local(element) == "quality_check" else _local(element)
        )
        if (element.text or "").strip() != "PASSED":
            failed.add(_check_name(written))
    return tuple(check for check in QUALITY_CHECKS if check in failed)


def _check_name(written: str) -> str:
    """GEOMETRIC_QUALITY for GEOMETRIC_QUALITY_FLAG (to version 13 of the schema), geometricQuality and the like."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", written.strip()).upper().replace("-", "_")
    return words.removesuffix("_FLAG").removesuffix("_CHECK")


def _parse(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()  # noqa: S314  expat since 2.4.1 bounds entity expansion itself
    except ET.ParseError as error:
        raise SourceError(f"{path}: damaged XML ({error}); fetch the product again") from error


def _local(element: ET.Element) -> str:
    """The name without its namespace, which differs between versions of the format."""
    return str(element.tag).rpartition("}")[2]


def _all(root: ET.Element, name: str) -> list[ET.Element]:
    """The elements of a name, which products of 2017 and early 2018 mark as Level-2A's."""
    names = (name, f"{name}_2A", f"L2A_{name}")
    return [element for element in root.iter() if _local(element) in names]


def _text(root: ET.Element, name: str, path: Path) -> str:
    found = _all(root, name)
    if not found or not (found[0].text or "").strip():
        raise SourceError(f"{path.parent.name}/{path.name}: no {name}")
    return str(found[0].text).strip()
