"""Terrain-corrected Sentinel-1 scenes behind Items (``sentinel-1-rtc``): windows in linear power become scenes in dB.

For each Sentinel-2 product the Items near it are tried in the order in which scenes are, the nearest in time first,
until every square is covered. What is read of one is the window around the squares that are still open. It becomes a
GeoTIFF on the Item's own grid, 10 log10 of gamma nought, and from there on is a scene like any other: cut as it is
where that grid is the tile's, else resampled bilinearly, in dB (`pairing`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyproj
import pystac
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.build import Progress, silent
from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.files.whole import replacing, write_whole
from reben_cloud.scenes.area import Bounds, Degrees, bounds_of, squares_within
from reben_cloud.scenes.choice import SceneChoice, direction_of
from reben_cloud.scenes.items.cog import Cog
from reben_cloud.scenes.items.reading import Reading
from reben_cloud.scenes.items.search import StacSearch, find_items
from reben_cloud.scenes.land_cover import PIXEL_M
from reben_cloud.scenes.pairing import pair
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.sentinel1 import POLARIZATIONS, Scene, open_scenes

_SCENE = re.compile(grid.SCENE_PATTERN)

_MARGIN_PX = 4
"""Pixels around a window, which resampling at its edge looks at."""

_ROWS = 1_024
"""Rows that are read and converted at a time: 90 MB of a tile's width."""

_LOWEST_DB = -100
"""No surface returns less: a number below it is no decibels, but what some put where there are no data."""

_DONE = "scenes.json"
"""File that says which scenes a product got; written last."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RtcSearch:
    """Where terrain-corrected scenes are searched for, and which are taken."""

    stac: StacSearch
    """API and collection; box and time are those of each product."""
    choice: SceneChoice
    """Which scenes may go with a product; its greatest gap bounds the search."""
    box: Degrees | None
    """Only squares within it are wanted; None wants all."""
    patch_m: int
    """Side of a square, metres."""
    reading: Reading
    """How images are read."""

    def __post_init__(self) -> None:
        if self.choice.max_gap_days is None:
            raise ValueError(
                "--s1-collection needs --s1-max-days: how far in time from a product scenes are searched for"
            )

    def wanted(self, product: Product) -> NDArray[np.bool_]:
        """Squares of a product for which Sentinel-1 is wanted, (rows, columns)."""
        rows, columns = (side * PIXEL_M // self.patch_m for side in product.shapes[PIXEL_M])
        if self.box is None:
            return np.ones((rows, columns), bool)
        return squares_within(
            self.box, epsg=product.epsg, left=product.left, top=product.top, patch_m=self.patch_m,
            shape=(rows, columns),
        )  # fmt: skip

    def of(self, product: Product) -> StacSearch:
        """The search for a product: the squares that are wanted, and its time with the gap on both sides."""
        assert self.choice.max_gap_days is not None
        bounds = bounds_of(self.wanted(product), left=product.left, top=product.top, patch_m=self.patch_m)
        to_degrees = pyproj.Transformer.from_crs(product.epsg, 4326, always_xy=True)
        gap = timedelta(days=self.choice.max_gap_days)
        times = [f"{time:%Y-%m-%dT%H:%M:%SZ}" for time in (product.time - gap, product.time + gap)]
        return replace(self.stac, box=to_degrees.transform_bounds(*bounds), datetime="/".join(times))


def fetch_scenes(
    products: Sequence[Product], search: RtcSearch, work: Path, *, progress: Progress = silent
) -> tuple[Scene, ...]:
    """Scenes in dB for all products, made of the Items near each; what a run before has made is there already.

    Args:
        products: The Sentinel-2 products.
        search: Where Items are, and which of them are taken.
        work: Where the scenes go: 0.97 GB for each that a whole tile needs.
        progress: Wraps the stream of products.

    Raises:
        NotFoundError: If there is no Item near any product, with the cause.
        SourceError: If no Item that is near may be taken, or an Item or image is not what it must be.
        StorageError: If the API or an image cannot be had.
    """
    found: list[Scene] = []
    for product in progress(iter(products), len(products), "Sentinel-1"):
        found += _scenes_of(product, search, work)
    if not found:
        _explain(products, search)
    return tuple(found)


def _explain(products: Sequence[Product], search: RtcSearch) -> NoReturn:
    """Say why there is no scene at all: without one, patches would be made as if none had been asked for."""
    inside = [product for product in products if search.wanted(product).any()]
    if not inside:
        raise SourceError("no square of any product lies within --bbox; give a larger box, or other products")
    asked = search.of(inside[0])
    items = find_items(asked)  # or why there is none
    raise SourceError(
        f"{asked}: none of {len(items):,} Items can be taken for {inside[0].name}; a scene needs assets vv and vh, "
        "must cover a square, and be of the wanted --s1-direction and --s1-orbit"
    )


def _scenes_of(product: Product, search: RtcSearch, work: Path) -> list[Scene]:
    asked = search.of(product)
    identity = f"{asked} {search.choice} {search.box} {search.patch_m} {product.time}"
    folder = work / f"{product.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if (done := folder / _DONE).exists():
        return [scene for name in json.loads(done.read_text()) for scene in open_scenes([folder / name])]
    folder.mkdir(parents=True, exist_ok=True)
    scenes: list[Scene] = []
    left, top = product.left, product.top
    wanted = search.wanted(product)
    if not wanted.any():
        return []
    for item in _ordered(find_items(asked, may_be_none=True), product, search.choice):
        if not wanted.any():
            break
        path = folder / f"{_scene_name(item)}_T{product.square}_{product.name[11:26]}_VV_VH.tif"
        bounds = bounds_of(wanted, left=left, top=top, patch_m=search.patch_m)
        if not path.exists() and not _write_scene(item, path, product.epsg, bounds, search.reading):
            continue
        (scene,) = open_scenes([path])
        scenes.append(scene)
        patch_px = search.patch_m // PIXEL_M
        for piece in pair(
            [scene],
            time=product.time,
            epsg=product.epsg,
            left=left,
            top=top,
            patch_px=patch_px,
            wanted=wanted,
        ):
            wanted[piece.y, piece.x] = False
    if not scenes:
        logger.warning("%s: no Sentinel-1 scene (%s), so it gives no patch", product.name, asked)
        return []  # and nothing is done: there may be some when it is run again
    if wanted.any():
        logger.warning("%s: %d squares are covered by no scene (%s)", product.name, wanted.sum(), asked)
    write_whole(done, json.dumps([scene.files[0].name for scene in scenes]).encode())
    return scenes


def _ordered(items: Sequence[pystac.Item], product: Product, choice: SceneChoice) -> Iterator[pystac.Item]:
    """The Items that may go with a product, in the order in which scenes are tried."""
    taken = [
        item for item in items if {"vv", "vh"} <= item.assets.keys() and _is_taken(item, product, choice)
    ]
    yield from sorted(taken, key=lambda item: (abs(_time(item) - product.time), item.id))


def _is_taken(item: pystac.Item, product: Product, choice: SceneChoice) -> bool:
    """By what the Item says of its orbit, and where it does not, by its name and time as for files."""
    gap = timedelta(days=choice.max_gap_days or 0)
    if abs(_time(item) - product.time) > gap:
        return False
    if choice.direction is not None:
        said = item.properties.get("sat:orbit_state")
        if (said or direction_of(_time(item), epsg=product.epsg, bounds=product.bounds)) != choice.direction:
            return False
    orbit = item.properties.get("sat:relative_orbit")
    if choice.relative_orbit is None or orbit is None:
        return choice.takes_orbit(item.id)
    return int(orbit) == choice.relative_orbit


def _scene_name(item: pystac.Item) -> str:
    match = _SCENE.match(item.id)
    if match is None:
        raise SourceError(
            f"Item {item.id}: its id must begin with the name of a scene, like S1A_IW_GRDH_1SDV_20170613T165043, from "
            "which the names of Sentinel-1 patches are made"
        )
    return match[0]


def _time(item: pystac.Item) -> datetime:
    return grid.parse_time(_scene_name(item)[17:]).replace(tzinfo=UTC)


def _write_scene(item: pystac.Item, path: Path, epsg: int, bounds: Bounds, reading: Reading) -> bool:
    """Write the window of an Item around a rectangle as a scene in dB; False if it has none there."""
    try:
        import rasterio
        from rasterio.transform import from_origin
        from rasterio.windows import Window
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    images = [_open(item, polarization, reading) for polarization in POLARIZATIONS]
    place = images[0].grid
    if images[1].grid != place or place.epsg is None:
        raise SourceError(
            f"Item {item.id}: its vv and vh must have one grid with a CRS, have {[i.grid for i in images]}"
        )
    rows, columns = _window(images[0], epsg, bounds)
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return False
    width, height = place.pixel
    corner = place.left + columns.start * width, place.top - rows.start * height
    with replacing(path) as new, rasterio.open(
        new, "w", driver="GTiff", height=rows.stop - rows.start, width=columns.stop - columns.start, count=2,
        dtype="float32", crs=f"EPSG:{place.epsg}", transform=from_origin(*corner, width, height), nodata=np.nan,
        interleave="band", BIGTIFF="IF_SAFER",
    ) as file:  # fmt: skip
        num_positive = num_negative = 0
        for band, (polarization, image) in enumerate(zip(POLARIZATIONS, images, strict=True), 1):
            file.set_band_description(band, polarization)
            for first in range(rows.start, rows.stop, _ROWS):
                power = image.read(slice(first, min(first + _ROWS, rows.stop)), columns)
                num_positive += int(np.count_nonzero(power > 0))
                num_negative += int(np.count_nonzero((power < 0) & (power > _LOWEST_DB)))
                strip = decibels(power, image.nodata)
                file.write(strip, band, window=Window(0, first - rows.start, strip.shape[1], strip.shape[0]))
        if num_negative > num_positive:
            raise SourceError(
                f"Item {item.id}: more values are negative than positive, so they are decibels already; "
                "--s1-collection takes linear power, and files in dB are --s1"
            )
    return True


def _open(item: pystac.Item, polarization: str, reading: Reading) -> Cog:
    href = item.assets[polarization.lower()].get_absolute_href()
    if href is None:
        raise SourceError(
            f"Item {item.id}: the URL of asset {polarization.lower()} is relative, to nothing that it says"
        )
    image = Cog(href, reading)
    if image.dtype.kind != "f":
        raise SourceError(f"{image.url}: {image.dtype}, must be linear power as floats (Item {item.id})")
    return image


def _window(image: Cog, epsg: int, bounds: Bounds) -> tuple[slice, slice]:
    """Rows and columns of an image around a rectangle in another CRS, with a margin."""
    place = image.grid
    to_image = pyproj.Transformer.from_crs(epsg, place.epsg, always_xy=True)
    west, south, east, north = to_image.transform_bounds(*bounds)
    width, height = place.pixel
    rows = slice(
        max(0, int((place.top - north) // height) - _MARGIN_PX),
        min(place.shape[0], int((place.top - south) // height) + 1 + _MARGIN_PX),
    )
    columns = slice(
        max(0, int((west - place.left) // width) - _MARGIN_PX),
        min(place.shape[1], int((east - place.left) // width) + 1 + _MARGIN_PX),
    )
    return rows, columns


def decibels(power: NDArray[np.floating], nodata: float | None) -> NDArray[np.float32]:
    """10 log10 of linear power; NaN where there is none: nodata, zero and below.

    Args:
        power: Linear power.
        nodata: Value of pixels without data; None where there is no such.

    Returns:
        float32 of the same shape, dB.
    """
    valid = power > 0  # NaN is not
    if nodata is not None:
        valid &= power != nodata
    found = np.full(power.shape, np.nan)
    np.log10(power, out=found, where=valid, dtype=np.float64)
    return (10 * found).astype(np.float32)
