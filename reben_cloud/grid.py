"""Patch id <-> place, time and split of BigEarthNet v2.0: the public name of `reben_cloud.bigearthnet.grid`."""

from reben_cloud.bigearthnet.grid import (
    PATCH_M as PATCH_M,
)
from reben_cloud.bigearthnet.grid import (
    PATCHES_PER_SIDE as PATCHES_PER_SIDE,
)
from reben_cloud.bigearthnet.grid import (
    SCENE_PATTERN as SCENE_PATTERN,
)
from reben_cloud.bigearthnet.grid import (
    SQUARE_PATTERN as SQUARE_PATTERN,
)
from reben_cloud.bigearthnet.grid import (
    TILE_M as TILE_M,
)
from reben_cloud.bigearthnet.grid import (
    TIME_PATTERN as TIME_PATTERN,
)
from reben_cloud.bigearthnet.grid import (
    PatchId as PatchId,
)
from reben_cloud.bigearthnet.grid import (
    SafeName as SafeName,
)
from reben_cloud.bigearthnet.grid import (
    footprint as footprint,
)
from reben_cloud.bigearthnet.grid import (
    footprints as footprints,
)
from reben_cloud.bigearthnet.grid import (
    format_patch_id as format_patch_id,
)
from reben_cloud.bigearthnet.grid import (
    format_s1_name as format_s1_name,
)
from reben_cloud.bigearthnet.grid import (
    grid_positions as grid_positions,
)
from reben_cloud.bigearthnet.grid import (
    parse_patch_id as parse_patch_id,
)
from reben_cloud.bigearthnet.grid import (
    parse_safe_name as parse_safe_name,
)
from reben_cloud.bigearthnet.grid import (
    parse_time as parse_time,
)
from reben_cloud.bigearthnet.grid import (
    product_of as product_of,
)
from reben_cloud.bigearthnet.grid import (
    s1_sensing_time as s1_sensing_time,
)
from reben_cloud.bigearthnet.grid import (
    scene_of as scene_of,
)
from reben_cloud.bigearthnet.grid import (
    season as season,
)
from reben_cloud.bigearthnet.grid import (
    sensing_time as sensing_time,
)
from reben_cloud.bigearthnet.grid import (
    split as split,
)
from reben_cloud.bigearthnet.grid import (
    split_of_centres as split_of_centres,
)
from reben_cloud.bigearthnet.grid import (
    tile_corner as tile_corner,
)
