"""The XML documents of a Level-2A product: what each says, checked against the others.

Everything foreign (element names, file names, offsets) is parsed here, once; nothing else sees it.
Whatever is missing, damaged or of another product is a `SourceError` that names the document.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import glob_data

S2_BANDS = tuple(name for name, band in BANDS.items() if band.sensor == "s2")
"""The twelve bands of a Level-2A product."""

QUALITY_CHECKS = ("GEOMETRIC_QUALITY", "GENERAL_QUALITY", "RADIOMETRIC_QUALITY", "SENSOR_QUALITY")
"""Checks that exclude a product unless absent or PASSED (bigearthnet-pipeline)."""

_QUANTIFICATION = 10_000
"""Digital numbers per reflectance, which patches are raw counts of."""

# The metadata numbers the bands by wavelength, B10 included (PSD, physical bands).
_BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")

IMAGE = re.compile(
    rf"(?:L2A_)?T(?P<square>\w{{5}})_(?P<time>{grid.TIME_PATTERN})_(?P<band>B\w{{2}})_(?P<resolution>\d{{2}})m"
)
"""Name of the file of a band, without its suffix."""

LONGEST_DATATAKE = timedelta(hours=1)
"""A tile is sensed within its datatake, which begins at the time in the name; real ones take half of it."""


def read_name(product: ET.Element, main: Path) -> grid.SafeName:
    """The product's name, which its folder and its baseline must agree with."""
    folder, uri = main.parent.name, _text(product, "PRODUCT_URI", main)
    name = _parse_name(uri)
    if name is None:
        raise SourceError(f"{folder}: PRODUCT_URI {uri!r} is not a Level-2A product name")
    called = _parse_name(folder)
    if called is not None and called != name:
        raise SourceError(
            f"{folder}: its metadata calls it {uri.removesuffix('.SAFE')}; is it of another product, or was the folder "
            "renamed?"
        )
    for entry in _all(product, "PROCESSING_BASELINE"):
        if (entry.text or "").strip().replace(".", "") != name.baseline:
            raise SourceError(
                f"{folder}: PROCESSING_BASELINE is {entry.text}, its name says N{name.baseline}; are two products "
                "mixed?"
            )
    return name


def _parse_name(text: str) -> grid.SafeName | None:
    """The parts of a Level-2A product's name; None of any other text."""
    try:
        name = grid.parse_safe_name(text)
    except ValueError:
        return None
    return name if name.level == "L2A" else None


def read_start(product: ET.Element, main: Path, name: grid.SafeName) -> datetime:
    """Start of the acquisition, UTC."""
    started = _text(product, "PRODUCT_START_TIME", main)
    begin = _parse_time(started)
    if abs((begin - grid.parse_time(name.start)).total_seconds()) >= 1:
        raise SourceError(
            f"{main.parent.name}: starts at {started}, its name says {name.start}; are two products mixed?"
        )
    return begin


def _parse_time(text: str) -> datetime:
    """A time of the metadata, which is UTC whether it says so or not."""
    time = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def find_tile(folder: Path) -> Path:
    """The metadata of the product's only granule."""
    tiles = glob_data(folder, "GRANULE/*/MTD_TL.xml")
    if len(tiles) != 1:
        raise SourceError(
            f"{folder.name}: {len(tiles)} GRANULE/*/MTD_TL.xml, must be one; the product is "
            f"{'mixed with another' if tiles else 'incomplete'}, fetch it again"
        )
    return tiles[0]


def check_values(product: ET.Element, main: Path) -> None:
    """That pixels are what patches hold: reflectance x 10,000, where 0 means nodata."""
    for entry in _all(product, "BOA_QUANTIFICATION_VALUE"):
        if float(entry.text or "nan") != _QUANTIFICATION:
            raise SourceError(
                f"{main.parent.name}: a reflectance of 1 is {entry.text} in it, only {_QUANTIFICATION} is supported"
            )
    for entry in _all(product, "Special_Values"):
        if _text(entry, "SPECIAL_VALUE_TEXT", main) == "NODATA":
            nodata = _text(entry, "SPECIAL_VALUE_INDEX", main)
            if nodata != "0":
                raise SourceError(f"{main.parent.name}: its nodata value is {nodata}, only 0 is supported")


_ALGORITHMS = {"MD5": "md5", "SHA3-256": "sha3_256"}


def read_checksums(folder: Path) -> dict[Path, tuple[str, str]]:
    """Checksums of the product's files, where it brings its manifest."""
    manifest = folder / "manifest.safe"
    if not manifest.exists():
        return {}
    found = {}
    for entry in _all(parse_xml(manifest), "byteStream"):
        places, sums = _all(entry, "fileLocation"), _all(entry, "checksum")
        algorithm = _ALGORITHMS.get(sums[0].attrib.get("checksumName", "")) if sums else None
        if places and algorithm:
            found[folder / places[0].attrib["href"].removeprefix("./")] = (
                algorithm,
                (sums[0].text or "").strip().lower(),
            )
    return found


def read_place(path: Path, name: str, square: str) -> tuple[int, int, int, dict[int, tuple[int, int]]]:
    """CRS, corner and sizes of the tile, checked against the place its square has."""
    root = parse_xml(path)
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


def check_tile(path: Path, name: str, square: str, begin: datetime) -> None:
    """That the granule's metadata is of this square and acquisition, where it says."""
    root = parse_xml(path)
    for entry in _all(root, "TILE_ID"):
        found = re.search(r"_T(\d{2}[A-Z]{3})(?:_|$)", (entry.text or "").strip())
        if found and found[1] != square:
            raise SourceError(
                f"{name}: its {path.name} is of T{found[1]}, not T{square}; are two products mixed?"
            )
    for entry in _all(root, "SENSING_TIME"):
        if abs(_parse_time(entry.text or "") - begin) > LONGEST_DATATAKE:
            raise SourceError(
                f"{name}: its {path.name} was sensed at {entry.text}, the product starts at {begin.isoformat()}; are "
                "two products mixed?"
            )


_DATASTRIP = re.compile(rf"_S(?P<start>{grid.TIME_PATTERN})(?:_|$)")


def read_datastrip(product: ET.Element, tile: Path, name: str) -> datetime | None:
    """Start of the sensing of the datastrip, from its identifier; None if there is none.

    Args:
        product: The main metadata.
        tile: The granule's metadata.
        name: What to call the product in messages.
    """
    identifiers = [(entry.text or "").strip() for entry in _all(parse_xml(tile), "DATASTRIP_ID")]
    for element in product.iter():
        identifiers += [value for key, value in element.attrib.items() if key == "datastripIdentifier"]
    starts = {start for start in map(datastrip_start, identifiers) if start is not None}
    if len(starts) > 1:
        said = " and ".join(f"{start:%Y%m%dT%H%M%S}" for start in sorted(starts))
        raise SourceError(f"{name}: names datastrips of {said}; are two products mixed?")
    return starts.pop() if starts else None


def datastrip_start(identifier: str) -> datetime | None:
    """Start of the sensing of a datastrip, UTC; None of another text."""
    match = _DATASTRIP.search(identifier)
    return None if match is None else grid.parse_time(match["start"])


_FIRST_WITH_OFFSET, _OUTSIDE = "0400", "9999"
# Processing baselines: from which on pixels carry an offset (Sentinel-2 Products Specification Document 14.8), and
# that of what was made outside the ground segment, which may carry none.


def has_offset(baseline: str) -> bool:
    """Whether pixels of a processing baseline, four digits, always carry an offset."""
    return _FIRST_WITH_OFFSET <= baseline < _OUTSIDE


def read_offsets(product: ET.Element, name: str, *, baseline: str) -> dict[str, int]:
    """Band -> digital number to add; for all bands or, in early products, for none.

    Args:
        product: The main metadata.
        name: What to call the product in messages.
        baseline: Its processing baseline, four digits.

    Raises:
        SourceError: If it is given for some bands, or for none in a baseline that has it always.
    """
    offsets = {
        _BAND_IDS[int(entry.attrib["band_id"])]: int(entry.text or 0)
        for entry in _all(product, "BOA_ADD_OFFSET")
    }
    lacking = [band for band in S2_BANDS if offsets and band not in offsets]
    if not offsets and has_offset(baseline):
        raise SourceError(
            f"{name}: its metadata have no BOA_ADD_OFFSET, which every product of baseline N{baseline} has (-1000): "
            "without it pixels are 1000 too high, and if somebody has applied it already the name is wrong; fetch the "
            "product again"
        )
    if lacking:
        raise SourceError(f"{name}: BOA_ADD_OFFSET is given for some bands and not for {', '.join(lacking)}")
    return offsets


def find_images(product: ET.Element, folder: Path, name: grid.SafeName, granule: str) -> dict[str, Path]:
    """Every band's file at its native resolution, from the list in the metadata."""
    images: dict[str, Path] = {}
    for entry in _all(product, "IMAGE_FILE"):
        image = (entry.text or "").strip()
        match = IMAGE.fullmatch(image.rpartition("/")[2])
        if match is None:
            continue  # SCL, AOT, WVP, TCI
        if (match["square"], match["time"]) != (name.square, name.start):
            raise SourceError(
                f"{folder.name}: lists {image.rpartition('/')[2]}, an image of another product "
                f"(this is T{name.square} at {name.start}); are two products mixed?"
            )
        parts = image.split("/")
        if "GRANULE" in parts and granule not in parts:
            raise SourceError(
                f"{folder.name}: lists {parts[-1]} in another granule than {granule}; are two products mixed?"
            )
        band = BANDS.get(match["band"])
        if band is not None and int(match["resolution"]) == band.resolution_m:
            images[band.name] = folder / f"{image}.jp2"
    for band_name in S2_BANDS:
        if band_name not in images:
            raise SourceError(
                f"{folder.name}: its metadata lists no {BANDS[band_name].resolution_m} m image of {band_name}"
            )
        if not images[band_name].exists():
            raise SourceError(
                f"{folder.name}: band {band_name} is missing, there is no {images[band_name].name}; "
                "the product is incomplete, fetch it again"
            )
    return images


_CLOUD_MASKS = ("MSK_CLDPRB_20m.jp2", "*_CLD_20m.jp2")
"""Names of the cloud probability among a granule's quality data, the newer first."""


def find_masks(product: ET.Element, folder: Path, tile: Path) -> dict[str, Path]:
    """``SCL`` and ``CLD``, of those that the product has: quality masks at 20 m, which no patch needs."""
    found = {}
    for entry in _all(product, "IMAGE_FILE"):
        image = (entry.text or "").strip()
        if image.endswith("_SCL_20m") and (path := folder / f"{image}.jp2").exists():
            found["SCL"] = path
    for pattern in _CLOUD_MASKS:
        if (masks := glob_data(tile.parent / "QI_DATA", pattern)) and "CLD" not in found:
            found["CLD"] = masks[0]
    return found


def read_failed_checks(product: ET.Element) -> tuple[str, ...]:
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


def parse_xml(path: Path) -> ET.Element:
    """The root of a document.

    Raises:
        SourceError: If it is damaged.
    """
    try:
        return ET.parse(path).getroot()  # noqa: S314  expat since 2.4.1 bounds entity expansion itself
    except ET.ParseError as error:
        raise SourceError(f"{path}: damaged XML ({error}); fetch the product again") from error


def parse_text(text: bytes, name: str) -> ET.Element:
    """The root of a document that is not a file; `name` is what to call it. Raises as `parse_xml`."""
    try:
        return ET.fromstring(text)  # noqa: S314  as above
    except ET.ParseError as error:
        raise SourceError(f"{name}: damaged XML ({error})") from error


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
