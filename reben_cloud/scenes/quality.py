"""How much of each patch is cloud, shadow, snow, nodata or saturated, by the masks that a Level-2A product brings.

The scene classification (SCL) is sen2cor's, 20 m; its clouds are a rule's, not a person's, unlike the lists that came
with BigEarthNet v1. The two flags of the metadata follow from the shares where there are no such lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.scenes.area import Bounds
from reben_cloud.scenes.product import Product

MASK_M = 20
"""Size of a pixel of the masks, metres."""

SHARES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "cloud_share": (8, 9, 10),
        "shadow_share": (3,),
        "snow_share": (11,),
        "nodata_share": (0,),
        "saturated_share": (1,),
    }
)
"""Column -> the values of SCL that count: clouds of medium and high probability and thin cirrus, shadows of clouds,
snow and ice, no data, saturated or defective (Sentinel-2 Products Specification Document)."""

CLOUD_PROBABILITY = "cloud_probability"
"""Column with the mean of the cloud probability (CLD) over a patch, in [0, 1]."""

COLUMNS = (*SHARES, CLOUD_PROBABILITY)
"""The columns of the metadata, float32, in [0, 1]; null where a product has no such mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagRule:
    """From which share on a patch gets a flag."""

    cloud_or_shadow: float = 0.2
    """Share of cloud and shadow together."""
    snow: float = 0.2
    """Share of snow and ice."""

    def __post_init__(self) -> None:
        for value in (self.cloud_or_shadow, self.snow):
            if not 0 < value <= 1:
                raise ValueError(f"a share that sets a flag must be in (0, 1], got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What the masks say of every whole patch of a tile."""

    shares: Mapping[str, NDArray[np.float32]]
    """Column -> share, (rows, columns); only the columns whose mask there is."""

    def flags(self, rule: FlagRule, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Snow, and cloud or shadow, (rows, columns) each; none where there is no scene classification."""
        if not SHARES.keys() <= self.shares.keys():
            return np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        hidden = self.shares["cloud_share"] + self.shares["shadow_share"]
        return self.shares["snow_share"] >= rule.snow, hidden >= rule.cloud_or_shadow


def measure_quality(
    product: Product, *, patch_m: int, shape: tuple[int, int], within: Bounds | None = None
) -> Quality:
    """Measure the masks of a product.

    Args:
        product: Whose masks.
        patch_m: Side of a patch, metres, a multiple of 10.
        shape: Rows and columns of patches.
        within: Where the patches are that matter; of others the shares may be wrong.

    Raises:
        SourceError: If a mask is damaged, or not of the tile.
    """
    shares: dict[str, NDArray[np.float32]] = {}
    if (classes := product.read_mask("SCL", within=within)) is not None:
        for column, values in SHARES.items():
            counted = np.isin(classes, values)
            shares[column] = _means(counted, patch_m=patch_m, shape=shape)
    if (probability := product.read_mask("CLD", within=within)) is not None:
        shares[CLOUD_PROBABILITY] = _means(probability, patch_m=patch_m, shape=shape) / np.float32(100)
    return Quality(shares=shares)


def _means(mask: NDArray[Any], *, patch_m: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Mean over each patch, (rows, columns)."""
    pixel_m = MASK_M
    if patch_m % pixel_m:  # patches of 10 m pixels alone may end within one of the mask
        mask, pixel_m = mask.repeat(2, axis=0).repeat(2, axis=1), pixel_m // 2
    side, (rows, columns) = patch_m // pixel_m, shape
    found = np.empty(shape, np.float32)
    for row in range(rows):
        strip = mask[row * side : (row + 1) * side, : columns * side]
        found[row] = strip.reshape(side, columns, side).sum(axis=(0, 2), dtype=np.int64) / side**2
    return found
