"""What an Item of a Sentinel-2 Level-2A collection says, in the words of two public APIs, checked against itself.

Earth Search calls assets by colour (``red``, ``nir08``), the Planetary Computer by band (``B04``, ``B8A``). Both name
the product (``s2:product_uri``), from which ids of patches follow as from a SAFE folder. Everything foreign about an
Item is read here, once.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import pystac

from reben_cloud.bigearthnet import grid
from reben_cloud.errors import SourceError
from reben_cloud.scenes import safe_metadata
from reben_cloud.scenes.items.reading import Reading, RemoteFile, Span
from reben_cloud.scenes.safe_metadata import S2_BANDS

PRODUCT_URI = "s2:product_uri"
"""Property with the name of the SAFE folder."""

OFFSET_APPLIED = "earthsearch:boa_offset_applied"
"""Property of Earth Search: whether the offset of baseline 04.00 is in the pixels of the COGs already."""

_ASSETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "B01": ("coastal", "B01"),
        "B02": ("blue", "B02"),
        "B03": ("green", "B03"),
        "B04": ("red", "B04"),
        "B05": ("rededge1", "B05"),
        "B06": ("rededge2", "B06"),
        "B07": ("rededge3", "B07"),
        "B08": ("nir", "B08"),
        "B8A": ("nir08", "B8A"),
        "B09": ("nir09", "B09"),
        "B11": ("swir16", "B11"),
        "B12": ("swir22", "B12"),
        "SCL": ("scl", "SCL"),
        "CLD": ("cloud", "CLD"),
    }
)
"""Band or mask -> what its asset is called by Earth Search and by the Planetary Computer."""

_BAND = re.compile(r"(?:^|_)(B\d[\dA]|SCL)(?=[_.]|$)")
"""What the name of a file says of the band in it."""

_METADATA = ("product_metadata", "product-metadata")
"""Assets with ``MTD_MSIL2A.xml``, at Earth Search (Collection 1) and at the Planetary Computer."""

_OFFSET = -1_000
"""What that baseline adds: BOA_ADD_OFFSET, the same in all bands and products so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a product from its Item, and from the product's own metadata where the Item names them."""

    safe: grid.SafeName
    """The parts of its name."""
    time: datetime
    """Start of the acquisition, UTC."""
    datastrip: datetime | None
    """Start of its datastrip, UTC; None if the Item does not name it."""
    hrefs: Mapping[str, str]
    """Band or mask -> URL of its COG."""
    shape: tuple[int, int]
    """Height and width of the tile, 10 m pixels."""
    offsets: Mapping[str, int]
    """Band -> digital number to add to the pixels of its COG."""
    failed_checks: tuple[str, ...]
    """Quality checks that exclude the product; none where its metadata are not named."""
    knows_checks: bool
    """Whether its metadata were read."""


def name_of(item: pystac.Item) -> grid.SafeName:
    """The product's name: `PRODUCT_URI`, or the Item's id where that is one.

    Raises:
        SourceError: If the Item does not say it, or it is not Level-2A.
    """
    uri = item.properties.get(PRODUCT_URI) or item.id
    try:
        name = grid.parse_safe_name(str(uri))
    except ValueError:
        raise SourceError(
            f"Item {item.id}: its property {PRODUCT_URI} ({item.properties.get(PRODUCT_URI)!r}) is not the name of a "
            "product such as S2A_MSIL2A_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE, from which ids of "
            "patches are made; take a collection whose Items say it"
        ) from None
    if name.level != "L2A":
        raise SourceError(f"Item {item.id}: {uri} is Level-1C; give a collection of Level-2A (--collection)")
    return name


def datastrip_of(item: pystac.Item) -> datetime | None:
    """Start of the datastrip that an Item names (``s2:datastrip_id``), UTC; None if it names none."""
    return safe_metadata.datastrip_start(str(item.properties.get("s2:datastrip_id") or ""))


def read_item(item: pystac.Item, bands: Iterable[str], reading: Reading) -> Facts:
    """What an Item says of its product.

    Args:
        item: The Item.
        bands: Which bands it must have.
        reading: How the product's metadata are read, where the Item names them.

    Raises:
        SourceError: If something is missing or contradicts something else; the message names Item and property.
        StorageError: If the metadata cannot be read.
    """
    safe = name_of(item)
    _check_square(item, safe.square)
    _check_time(item, safe)
    hrefs = _hrefs(item, safe)
    lacking = [band for band in bands if band not in hrefs]
    if lacking:
        raise SourceError(
            f"Item {item.id}: no asset for {', '.join(lacking)} (it would be called "
            f"{' or '.join(_ASSETS[lacking[0]])}); it has {', '.join(sorted(item.assets))}"
        )
    document = _metadata(item, safe, reading)
    time = _start(item, safe) if document is None else safe_metadata.read_start(*document, safe)
    return Facts(
        safe=safe,
        time=time,
        datastrip=datastrip_of(item),
        hrefs=hrefs,
        shape=_shape(item, hrefs),
        offsets=_offsets(item, safe, document),
        failed_checks=() if document is None else safe_metadata.read_failed_checks(document[0]),
        knows_checks=document is not None,
    )


def _hrefs(item: pystac.Item, safe: grid.SafeName) -> dict[str, str]:
    """Band or mask -> URL, of those assets that are GeoTIFFs."""
    found = {}
    for band, names in _ASSETS.items():
        for name in names:
            asset = item.assets.get(name)
            if asset is None:
                continue
            kind = asset.media_type or ""
            if kind and "tiff" not in kind:
                raise SourceError(
                    f"Item {item.id}: asset {name} is {kind}, must be a GeoTIFF; take a collection of cloud-optimised "
                    "ones (--collection)"
                )
            found[band] = _href(item, name)
            if band in S2_BANDS:
                _check_scale(item, name)
            _check_image(item, name, found[band], band, safe)
            break
    return found


def _check_scale(item: pystac.Item, asset: str) -> None:
    """That digital numbers are reflectance x 10,000, where the asset says what they are."""
    for said in item.assets[asset].extra_fields.get("raster:bands") or ():
        scale = said.get("scale", 1) if isinstance(said, dict) else 1
        if scale not in (1, 0.0001):
            raise SourceError(
                f"Item {item.id}, asset {asset}: its scale is {scale}, only 0.0001 is supported"
            )


def _check_image(item: pystac.Item, asset: str, href: str, band: str, safe: grid.SafeName) -> None:
    """That the file is of this band, square and time, as far as its name says: its pixels cannot tell."""
    file = urlsplit(href).path.rpartition("/")[2]
    named = _BAND.findall(file)
    whole = safe_metadata.IMAGE.match(file)
    other = whole is not None and (whole["square"], whole["time"]) != (safe.square, safe.start)
    if other or (named and band not in named):
        raise SourceError(
            f"Item {item.id}: asset {asset} is {file}, must be an image of {band} of T{safe.square} at {safe.start}; "
            "are assets, or two products, mixed?"
        )


def _href(item: pystac.Item, name: str) -> str:
    href = item.assets[name].get_absolute_href()
    if href is None:
        raise SourceError(
            f"Item {item.id}: the URL of asset {name} is relative, and the Item does not say to what"
        )
    return href


def _check_square(item: pystac.Item, square: str) -> None:
    """That whatever says where the tile lies says the same."""
    corner = grid.tile_corner(square)
    code = item.properties.get("grid:code")
    said = {
        "s2:mgrs_tile": item.properties.get("s2:mgrs_tile"),
        "grid:code": code and str(code).removeprefix("MGRS-"),
    }
    for name, value in said.items():
        if value is not None and str(value).removeprefix("T").zfill(5) != square:
            raise SourceError(f"Item {item.id}: its {name} is {value}, its product is of T{square}")
    crs = item.properties.get("proj:epsg") or item.properties.get("proj:code") or ""
    epsg = str(crs).removeprefix("EPSG:")
    if epsg not in ("", str(corner[0])):
        raise SourceError(
            f"Item {item.id}: its CRS (proj:code) is {epsg}, tile T{square} lies in EPSG:{corner[0]}"
        )


def _shape(item: pystac.Item, hrefs: Mapping[str, str]) -> tuple[int, int]:
    """Height and width in 10 m pixels: ``proj:shape`` of a 10 m band, else that of a whole tile."""
    for band in ("B02", "B03", "B04", "B08"):
        if band in hrefs:
            asset = next(item.assets[name] for name in _ASSETS[band] if name in item.assets)
            shape = asset.extra_fields.get("proj:shape")
            if isinstance(shape, list) and len(shape) == 2 and all(isinstance(side, int) for side in shape):
                return shape[0], shape[1]
    return grid.TILE_M // 10, grid.TILE_M // 10


def _start(item: pystac.Item, safe: grid.SafeName) -> datetime:
    """Start of the acquisition: the Item's time if it is that of the name, which has whole seconds; else the name's.

    Earth Search gives the time at which the tile was sensed, minutes later.
    """
    named = grid.parse_time(safe.start)
    for time in (item.datetime, item.common_metadata.start_datetime):
        if time is not None and abs((_utc(time) - named).total_seconds()) < 1:
            return _utc(time)
    return named


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _check_time(item: pystac.Item, safe: grid.SafeName) -> None:
    """That the Item is of its product's datatake."""
    time = item.datetime
    if time is None or abs(_utc(time) - grid.parse_time(safe.start)) <= safe_metadata.LONGEST_DATATAKE:
        return
    raise SourceError(
        f"Item {item.id}: its datetime is {_utc(time).isoformat()}, its product's name says {safe.start}; are two "
        "products mixed?"
    )


def _metadata(item: pystac.Item, safe: grid.SafeName, reading: Reading) -> tuple[ET.Element, Path] | None:
    """The product's own metadata and what to call them, if the Item names them."""
    for name in _METADATA:
        if name in item.assets:
            file = RemoteFile(_href(item, name), reading)
            folder = f"{safe.product}_{safe.generation}.SAFE"
            document = Path(folder, file.url.rpartition("/")[2])  # of names alone: nothing is there
            root = safe_metadata.parse_text(bytes(file.read(Span(0, file.size))), file.url)
            safe_metadata.read_name(root, document)
            safe_metadata.check_values(root, document)
            return root, document
    return None


def _offsets(
    item: pystac.Item, safe: grid.SafeName, document: tuple[ET.Element, Path] | None
) -> dict[str, int]:
    """Band -> digital number to add.

    None where Earth Search says that it did so; else what the product's metadata say, and without these what follows
    from the baseline. ``raster:bands`` is not asked: Earth Search gives its offset whether it was applied or not.
    """
    applied = item.properties.get(OFFSET_APPLIED)
    if applied not in (None, True, False):
        raise SourceError(
            f"Item {item.id}: its property {OFFSET_APPLIED} must be true or false, is {applied!r}"
        )
    baseline = item.properties.get("s2:processing_baseline")
    if baseline is not None and re.sub(r"\D", "", str(baseline)).zfill(4) != safe.baseline:
        raise SourceError(
            f"Item {item.id}: its s2:processing_baseline is {baseline}, its product's name says N{safe.baseline}"
        )
    if applied:
        return {}
    if document is not None:
        return safe_metadata.read_offsets(document[0], document[1].parent.name, baseline=safe.baseline)
    return dict.fromkeys(S2_BANDS, _OFFSET) if safe_metadata.has_offset(safe.baseline) else {}
