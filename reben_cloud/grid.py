"""Patch id <-> place, time and split of BigEarthNet v2.0: the public name of `reben_cloud.bigearthnet.grid`."""

from reben_cloud.bigearthnet.grid import (
    PATCH_M,
    PATCHES_PER_SIDE,
    TILE_M,
    PatchId,
    footprint,
    footprints,
    grid_positions,
    parse_patch_id,
    product_of,
    s1_sensing_time,
    season,
    sensing_time,
    split,
    split_of_centres,
    tile_corner,
)

__all__ = [
    "PATCHES_PER_SIDE",
    "PATCH_M",
    "TILE_M",
    "PatchId",
    "footprint",
    "footprints",
    "grid_positions",
    "parse_patch_id",
    "product_of",
    "s1_sensing_time",
    "season",
    "sensing_time",
    "split",
    "split_of_centres",
    "tile_corner",
]
