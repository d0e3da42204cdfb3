"""A Level-2A product behind a STAC Item: its bands are windows of cloud-optimised GeoTIFFs, read over the network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError
from reben_cloud.scenes.area import Bounds, window_of
from reben_cloud.scenes.items.cog import Cog, Grid
from reben_cloud.scenes.items.item import OFFSET_APPLIED, Facts, datastrip_of, name_of, read_item
from reben_cloud.scenes.items.reading import Reading
from reben_cloud.scenes.product import ProductFacts
from reben_cloud.scenes.quality import MASK_M
from reben_cloud.scenes.safe import shifted
from reben_cloud.store import public_url

_THREADS = 8
"""Items whose metadata are read at a time."""

_PIXELS_M = (10, 20, 60)
"""Sizes of the pixels of a product, metres."""

_DARK = 500
"""Digital number below which hardly any pixel lies that still carries the offset: a reflectance of -0.05."""

_MOST_DARK = 0.05
"""Share of such pixels from which on the offset is taken for applied."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemProduct(ProductFacts):
    """One Level-2A product whose images lie at URLs; see `scenes.product.Product`."""

    item: str
    """Id of its Item."""
    hrefs: Mapping[str, str]
    """Band, ``SCL`` or ``CLD`` -> URL of its COG."""
    reading: Reading
    """How its images are read."""

    @property
    def where(self) -> str:
        """What to call it in messages."""
        return f"Item {self.item}"

    @property
    def is_checked(self) -> bool:
        """Answers are compared with what was announced, and deflate has checksums of what it holds."""
        return True

    def inputs(self, *, masks: bool) -> dict[str, str]:
        """Its generation, and the URL of each image with what is added to it; no image is asked for."""
        found = {"generation time": self.generation}
        for name, href in self.hrefs.items():
            if masks or name in BANDS:
                found[f"Sentinel-2 {name}"] = f"{public_url(href)}, offset {self.offsets.get(name, 0)}"
        return found

    def read_band(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint16]:
        """The pixels of a band that are needed, the product's offset applied; others are 0.

        Returns:
            uint16 (height, width) of the whole tile at the band's native resolution.

        Raises:
            SourceError: If the image is not readable, not of the size or at the place of the tile, has no data, or
                seems to have the offset already that is to be applied.
            StorageError: If it cannot be fetched.
        """
        pixels: NDArray[np.uint16] = self._read(name, BANDS[name].resolution_m, np.dtype(np.uint16), within)
        if within is None and not pixels.any():
            raise SourceError(
                f"{self._called(name)}: every pixel is 0, which means nodata; leave the Item out"
            )
        offset = self.offsets.get(name, 0)
        if offset < 0:
            self._check_offset(name, pixels)
        return shifted(pixels, offset)

    def read_mask(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint8] | None:
        """The pixels of a mask that are needed, None if the Item has no such.

        Returns:
            uint8 (height, width) of the whole tile, 20 m pixels.

        Raises:
            SourceError, StorageError: As `read_band`.
        """
        if name not in self.hrefs:
            return None
        pixels: NDArray[np.uint8] = self._read(name, MASK_M, np.dtype(np.uint8), within)
        return pixels

    def _read(self, name: str, pixel_m: int, dtype: np.dtype[Any], within: Bounds | None) -> NDArray[Any]:
        shape = self.shapes[pixel_m]
        if within is not None and within[0] == within[2]:
            return np.zeros(shape, dtype)
        image = Cog(self.hrefs[name], self.reading)
        self._check_place(name, image, pixel_m, dtype)
        if name in BANDS and image.nodata not in (None, 0):
            raise SourceError(
                f"{self._called(name)}: its nodata value is {image.nodata:g}, only 0 is supported"
            )
        rows, columns = window_of(
            within or self.bounds, left=self.left, top=self.top, pixel_m=pixel_m, shape=shape
        )
        window = image.read(rows, columns)
        if window.shape == shape:
            return window
        pixels = np.zeros(shape, dtype)
        pixels[rows, columns] = window
        return pixels

    def _check_place(self, name: str, image: Cog, pixel_m: int, dtype: np.dtype[Any]) -> None:
        place = image.grid
        want = Grid(
            epsg=self.epsg, left=self.left, top=self.top, pixel=(pixel_m, pixel_m), shape=self.shapes[pixel_m]
        )
        if (place.shape, image.dtype) != (want.shape, dtype):
            raise SourceError(
                f"{self._called(name)}: {place.shape[0]} x {place.shape[1]} {image.dtype}, must be {want.shape[0]} x "
                f"{want.shape[1]} {dtype}, the tile in pixels of {pixel_m} m"
            )
        if place not in (want, replace(want, epsg=None)):
            raise SourceError(
                f"{self._called(name)}: lies at ({place.left:g}, {place.top:g}) m in EPSG:{place.epsg}, pixels of "
                f"{place.pixel[0]:g} m; tile T{self.square} lies at ({self.left}, {self.top}) m in EPSG:{self.epsg}, "
                f"pixels of {pixel_m} m; is the asset of another product?"
            )

    def _check_offset(self, name: str, pixels: NDArray[np.uint16]) -> None:
        """Some Items say that the offset was not applied, and it was: their pixels would become darker than black."""
        num_valid = np.count_nonzero(pixels)
        num_dark = np.count_nonzero(pixels < _DARK) - (pixels.size - num_valid)
        if num_dark > _MOST_DARK * num_valid:
            raise SourceError(
                f"{self._called(name)}: {num_dark / num_valid:.0%} of the pixels are below "
                f"{_DARK}, so the offset of baseline 04.00 ({self.offsets[name]}) seems to be in them already, though "
                f"the Item does not say so ({OFFSET_APPLIED}); take another collection, or leave the Item out by "
                "--datetime"
            )

    def _called(self, name: str) -> str:
        return f"Item {self.item}, {name} ({public_url(self.hrefs[name])})"


def products_of(items: Sequence[pystac.Item], bands: Iterable[str], reading: Reading) -> list[ItemProduct]:
    """The products behind some Items; of one that was processed several times, the latest of each of its datastrips.

    Of an acquisition only what is of its latest processing baseline is taken.

    Args:
        items: The Items.
        bands: Which bands are needed; other images are not looked at.
        reading: How images are read.

    Raises:
        SourceError: If an Item lacks what is needed, or contradicts itself.
        StorageError: If a product's metadata cannot be read.
    """
    acquisitions: dict[tuple[str, ...], list[pystac.Item]] = {}
    for item in sorted(items, key=lambda item: (name_of(item).baseline, name_of(item).generation, item.id)):
        name = name_of(item)
        acquisitions.setdefault((name.satellite, name.start, name.orbit, name.square), []).append(item)
    chosen = [item for group in acquisitions.values() for item in _latest(group)]
    wanted = tuple(bands)
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(lambda item: read_item(item, wanted, reading), chosen))
    return [_product(item, facts, wanted, reading) for item, facts in zip(chosen, read, strict=True)]


def _latest(items: Sequence[pystac.Item]) -> list[pystac.Item]:
    """Of the Items of one acquisition, from the earliest on, those to take: one of each datastrip."""
    baseline = name_of(items[-1]).baseline
    taken = {datastrip_of(item): item for item in items if name_of(item).baseline == baseline}
    for item in items:
        instead = taken.get(datastrip_of(item))
        if instead is None:
            logger.warning(
                "Item %s: left out, and with it a part of the tile: of baseline %s there is another datastrip alone",
                item.id, baseline,
            )  # fmt: skip
        elif instead is not item:
            logger.warning("Item %s: left out, the same was processed later (%s)", item.id, instead.id)
    return list(taken.values())


def _product(item: pystac.Item, facts: Facts, bands: Sequence[str], reading: Reading) -> ItemProduct:
    epsg, left, top = grid.tile_corner(facts.safe.square)
    rows, columns = facts.shape
    if rows % 6 or columns % 6 or max(rows, columns) * 10 > grid.TILE_M:
        raise SourceError(
            f"Item {item.id}: its proj:shape {facts.shape} is not that of a tile in 10 m pixels"
        )
    if not facts.knows_checks:
        logger.warning(
            "Item %s: names no metadata of the product (product_metadata), so quality checks are not known",
            item.id,
        )
    return ItemProduct(
        item=item.id,
        name=facts.safe.product,
        generation=facts.safe.generation,
        square=facts.safe.square,
        time=facts.time,
        datastrip=facts.datastrip,
        epsg=epsg,
        left=left,
        top=top,
        shapes={pixel_m: (rows * 10 // pixel_m, columns * 10 // pixel_m) for pixel_m in _PIXELS_M},
        hrefs={name: href for name, href in facts.hrefs.items() if name in bands or name not in BANDS},
        offsets=facts.offsets,
        failed_checks=facts.failed_checks,
        reading=reading,
    )
