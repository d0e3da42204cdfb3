"""What the recipe asks of a Sentinel-2 Level-2A product, wherever its pixels are: the border of the inputs.

`safe.SafeProduct` is one in a folder, `items.product.ItemProduct` one behind a STAC Item. Another form of product is
another class that has these; nothing else of `scenes` need know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from reben_cloud.scenes.area import Bounds


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductFacts:
    """What is known of one product before any pixel is read; what its forms have in common."""

    name: str
    """Product name without generation time and suffix: what patch ids begin with."""
    generation: str
    """When it was processed, as its full name ends: one acquisition may be processed again."""
    square: str
    """MGRS square, e.g. ``33UUP``."""
    time: datetime
    """Start of the acquisition, UTC."""
    datastrip: datetime | None
    """Start of its datastrip, UTC; None if it is not named."""
    epsg: int
    """CRS of the tile."""
    left: int
    """West edge of the tile, metres."""
    top: int
    """North edge of the tile, metres."""
    shapes: Mapping[int, tuple[int, int]]
    """Resolution in metres -> height and width of the tile in pixels."""
    offsets: Mapping[str, int]
    """Band -> digital number to add; empty where there is none, or it is in the pixels already."""
    failed_checks: tuple[str, ...]
    """Quality checks that are present and not PASSED; any excludes the product."""

    @property
    def bounds(self) -> Bounds:
        """West, south, east and north of the tile, metres."""
        ((pixel_m, (rows, columns)), *_) = self.shapes.items()
        return self.left, self.top - rows * pixel_m, self.left + columns * pixel_m, self.top


@runtime_checkable
class Product(Protocol):
    """One Level-2A product of one tile. It is small and picklable: it travels to the process that cuts it."""

    @property
    def name(self) -> str:
        """Product name without generation time: what patch ids begin with, e.g. ``S2A_MSIL2A_..._T33UUP``."""
        ...

    @property
    def where(self) -> str:
        """What to call it in messages: the name of its folder, or its URL."""
        ...

    @property
    def square(self) -> str:
        """MGRS square, e.g. ``33UUP``."""
        ...

    @property
    def time(self) -> datetime:
        """Start of the acquisition, UTC."""
        ...

    @property
    def datastrip(self) -> datetime | None:
        """Start of the datastrip that its pixels are of, UTC; None if it does not say (`datastrips`)."""
        ...

    @property
    def epsg(self) -> int:
        """CRS of the tile, a UTM zone."""
        ...

    @property
    def left(self) -> int:
        """West edge of the tile, metres."""
        ...

    @property
    def top(self) -> int:
        """North edge of the tile, metres."""
        ...

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """West, south, east and north of the tile, metres."""
        ...

    @property
    def shapes(self) -> Mapping[int, tuple[int, int]]:
        """Resolution in metres (10, 20, 60) -> height and width of the tile in pixels."""
        ...

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Quality checks that exclude the whole product."""
        ...

    @property
    def is_checked(self) -> bool:
        """Whether damage within its images is told, by checksums or the like."""
        ...

    def inputs(self, *, masks: bool) -> dict[str, str]:
        """What it is known by: role and name of each thing that is read of it -> its state (`provenance.identify`).

        Args:
            masks: Whether its masks are read as well.
        """
        ...

    def read_band(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint16]:
        """All pixels of a band at its own resolution, reflectance x 10,000; 0 is nodata. The array is the caller's.

        Args:
            name: The band.
            within: What is needed of it: pixels outside of this rectangle may be left 0.

        Raises:
            SourceError: If it cannot be read, or is not of this tile.
        """
        ...

    def read_mask(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint8] | None:
        """All 20 m pixels of ``SCL`` or ``CLD``, None if it has no such.

        Args:
            name: The mask.
            within: As for `read_band`.

        Raises:
            SourceError: If it cannot be read, or is not of this tile.
        """
        ...
