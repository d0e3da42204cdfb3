"""Products of one tile and acquisition that have a part of it each, taken together as one product.

A satellite's data come down in datastrips; where one ends within a tile, there are two products of that tile, with the
same name but for the last part. Each pixel of a band is that of the first datastrip, by the start of its sensing,
which has one there; the masks are those of the datastrip that the scene classification has a pixel of. A datastrip that
failed a quality check takes no part, unless all did. Two products of one datastrip are one made twice, and refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError
from reben_cloud.scenes.area import Bounds, window_of
from reben_cloud.scenes.product import Product

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedProduct:
    """Several datastrips of one tile and acquisition as one product; made by `merge_datastrips`."""

    parts: tuple[Product, ...]
    """The products, by the start of their datastrips; two at least, of one name and place."""

    @property
    def name(self) -> str:
        """The name that all have, and the ids of the patches begin with."""
        return self.parts[0].name

    @property
    def where(self) -> str:
        """What to call all of them in messages."""
        return " and ".join(part.where for part in self.parts)

    @property
    def square(self) -> str:
        """MGRS square."""
        return self.parts[0].square

    @property
    def time(self) -> datetime:
        """Start of the acquisition, UTC."""
        return self.parts[0].time

    @property
    def datastrip(self) -> datetime | None:
        """Start of the first datastrip, UTC."""
        return self.parts[0].datastrip

    @property
    def epsg(self) -> int:
        """CRS of the tile."""
        return self.parts[0].epsg

    @property
    def left(self) -> int:
        """West edge of the tile, metres."""
        return self.parts[0].left

    @property
    def top(self) -> int:
        """North edge of the tile, metres."""
        return self.parts[0].top

    @property
    def bounds(self) -> Bounds:
        """West, south, east and north of the tile, metres."""
        return self.parts[0].bounds

    @property
    def shapes(self) -> dict[int, tuple[int, int]]:
        """Resolution in metres -> height and width of the tile in pixels."""
        return dict(self.parts[0].shapes)

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Quality checks that a datastrip failed; none of those that take part, unless all failed some."""
        return tuple(dict.fromkeys(check for part in self.parts for check in part.failed_checks))

    @property
    def is_checked(self) -> bool:
        """Whether damage within the images of all is told."""
        return all(part.is_checked for part in self.parts)

    def inputs(self, *, masks: bool) -> dict[str, str]:
        """The inputs of each datastrip, with its start in their names: files of two are called the same."""
        return {
            f"{key} of datastrip {_called(part)}": state
            for part in self.parts
            for key, state in part.inputs(masks=masks).items()
        }

    def read_band(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint16]:
        """All pixels of a band: of the first datastrip that has one, 0 where none has.

        Raises:
            SourceError: If it cannot be read of one of them.
        """
        pixel_m = BANDS[name].resolution_m
        needed = window_of(
            within or self.bounds, left=self.left, top=self.top, pixel_m=pixel_m, shape=self.shapes[pixel_m]
        )
        first, *others = self.parts
        pixels = first.read_band(name, within=within)
        for part in others:
            empty = pixels[needed] == 0
            if empty.any():
                np.copyto(pixels[needed], part.read_band(name, within=within)[needed], where=empty)
        return pixels

    def read_mask(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint8] | None:
        """All pixels of a mask: of the first datastrip whose scene classification has one; None if one lacks a mask.

        Raises:
            SourceError: If it cannot be read of one of them.
        """
        masks = [part.read_mask(name, within=within) for part in self.parts]
        classes = masks if name == "SCL" else [part.read_mask("SCL", within=within) for part in self.parts]
        merged, left = None, None
        for mask, of_part in zip(masks, classes, strict=True):
            if mask is None or of_part is None:
                return None
            if merged is None or left is None:
                merged, left = mask, of_part == 0
            else:
                merged, left = np.where(left, mask, merged), left & (of_part == 0)
        return merged


def merge_datastrips(products: Sequence[Product]) -> list[Product]:
    """The products with those of one name taken together.

    Args:
        products: Products in any order.

    Returns:
        One of each name, in the order of the first of each.

    Raises:
        SourceError: If two of a name are of one datastrip, do not say which they are of, or differ in size.
    """
    by_name: dict[str, list[Product]] = {}
    for product in products:
        by_name.setdefault(product.name, []).append(product)
    return [parts[0] if len(parts) == 1 else _merge(parts) for parts in by_name.values()]


def fewer_datastrips(product: Product) -> list[tuple[Product, list[str]]]:
    """What could have been made before all datastrips of a product were there, most first.

    Returns:
        The product of some of its datastrips, and what the others are called; nothing for a product of one.
    """
    if not isinstance(product, MergedProduct):
        return []
    found: list[tuple[Product, list[str]]] = []
    for count in range(len(product.parts) - 1, 0, -1):
        for parts in combinations(product.parts, count):
            form = parts[0] if count == 1 else MergedProduct(parts=parts)
            found.append((form, [part.where for part in product.parts if part not in parts]))
    return found


def _merge(parts: Sequence[Product]) -> Product:
    by_start: dict[datetime, Product] = {}
    for part in parts:
        start = part.datastrip
        if start is None or start in by_start:
            others = " and ".join(one.where for one in parts if one is not part)
            raise SourceError(
                f"{part.name}: given twice, {part.where} and {others}, "
                f"{'which does not name its datastrip' if start is None else 'of one datastrip'}; leave out one "
                "(only products of different datastrips are taken together)"
            )
        if (part.shapes, part.bounds) != (parts[0].shapes, parts[0].bounds):
            raise SourceError(f"{part.name}: {parts[0].where} and {part.where} have tiles of different sizes")
        by_start[start] = part
    ordered = tuple(by_start[start] for start in sorted(by_start))
    sound = tuple(part for part in ordered if not part.failed_checks) or ordered
    for part in ordered:
        if part not in sound:
            logger.warning(
                "%s: %s is left out, %s not PASSED; its patches are of the other datastrips alone",
                part.name, part.where, ", ".join(part.failed_checks),
            )  # fmt: skip
    return sound[0] if len(sound) == 1 else MergedProduct(parts=sound)


def _called(part: Product) -> str:
    assert part.datastrip is not None  # `_merge` took none without
    return f"{part.datastrip:%Y%m%dT%H%M%S}"
