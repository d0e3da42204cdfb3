"""Patch ids, MGRS squares, footprints, the split rule, times. Pure functions of names.

A patch id is ``<product>_<xx>_<yy>``: x counts columns eastward, y rows southward, 0 to 90, of the
whole 1200 m squares of a Sentinel-2 tile. Footprints follow from the id alone, exact to the metre
(checked against every v1 footprint that is public). Patches of other sizes are numbered likewise, small ones
with more digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

PATCH_M = 1200
"""Side of a patch, metres."""

TILE_M = 109_800
"""Side of a Sentinel-2 tile, metres: 10,980 pixels of 10 m."""

PATCHES_PER_SIDE = 91
"""Whole patches along a tile; the last 600 m in the east and in the south are dropped."""

TIME_PATTERN = r"\d{8}T\d{6}"
"""Time in an official name, e.g. ``20170613T101031``, UTC."""

SQUARE_PATTERN = r"\d{2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V]"
"""MGRS square without ``T``."""

SCENE_PATTERN = rf"S1[A-D]_IW_GRDH_1SDV_{TIME_PATTERN}"
"""Sentinel-1 scene, with which the names of its GRD product and of its patches begin."""

_PRODUCT = rf"S2[A-D]_MSIL2A_{TIME_PATTERN}_N\d{{4}}_R\d{{3}}_T(?P<square>{SQUARE_PATTERN})"
_PATCH = re.compile(rf"(?P<product>{_PRODUCT})_(?P<x>\d{{2,5}})_(?P<y>\d{{2,5}})")
_S1 = re.compile(rf"(?P<scene>{SCENE_PATTERN})_\d{{2}}[A-Z]{{3}}_\d{{1,5}}_\d{{1,5}}")
_SAFE = re.compile(
    rf"(?P<product>(?P<satellite>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<start>{TIME_PATTERN})_N(?P<baseline>\d{{4}})"
    rf"_(?P<orbit>R\d{{3}})_T(?P<square>{SQUARE_PATTERN}))_(?P<generation>{TIME_PATTERN})(?:\.SAFE)?"
)

_TIME = "%Y%m%dT%H%M%S"


class SafeName(NamedTuple):
    """The parts of a Sentinel-2 product's full name, the one of its SAFE folder."""

    product: str
    """All but the generation time: of Level-2A, what patch ids begin with."""
    satellite: str
    """``S2A`` to ``S2D``."""
    level: str
    """``L1C`` or ``L2A``."""
    start: str
    """Start of the acquisition, as the name writes it."""
    baseline: str
    """Processing baseline, four digits."""
    orbit: str
    """Relative orbit, e.g. ``R022``."""
    square: str
    """MGRS square without ``T``, e.g. ``33UUP``."""
    generation: str
    """When the product was processed, as the name writes it."""


def parse_safe_name(name: str) -> SafeName:
    """The parts of a Sentinel-2 product's full name, with or without ``.SAFE``.

    Raises:
        ValueError: If it is not the name of a Level-1C or Level-2A product.
    """
    match = _SAFE.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!r} is not the name of a Sentinel-2 product; one looks like "
            "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_20240101T000000.SAFE"
        )
    return SafeName(**match.groupdict())


class PatchId(NamedTuple):
    """The parts of a patch id."""

    product: str
    """All but x and y, 44 characters."""
    square: str
    """MGRS square without ``T``, e.g. ``33UUP``."""
    x: int
    """Column, 0 to 90, eastward."""
    y: int
    """Row, 0 to 90, southward."""


def patches_per_side(patch_m: int = PATCH_M) -> int:
    """Whole patches along a tile."""
    return TILE_M // patch_m


def num_digits(patch_m: int = PATCH_M) -> int:
    """Digits of x and of y in a patch id: two, or more where a tile has more than 100 patches along a side."""
    return max(2, len(str(patches_per_side(patch_m) - 1)))


def parse_patch_id(patch_id: str, *, patch_m: int = PATCH_M) -> PatchId:
    """The parts of a patch id.

    Args:
        patch_id: The id.
        patch_m: Side of the patches, metres.

    Raises:
        ValueError: If the id is none, or x or y lie outside the tile.
    """
    match = _PATCH.fullmatch(patch_id)
    if match is None or not len(match["x"]) == len(match["y"]) == num_digits(patch_m):
        raise ValueError(
            f"{patch_id!r} is no patch id; one looks like "
            f"{format_patch_id('S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP', 26, 57, patch_m=patch_m)}"
        )
    x, y = int(match["x"]), int(match["y"])
    if max(x, y) >= patches_per_side(patch_m):
        raise ValueError(
            f"{patch_id!r}: x and y must be in [0, {patches_per_side(patch_m) - 1}], got {x} and {y}"
        )
    return PatchId(match["product"], match["square"], x, y)


def format_patch_id(product: str, x: int, y: int, *, patch_m: int = PATCH_M) -> str:
    """The id of a patch of a side in metres."""
    digits = num_digits(patch_m)
    return f"{product}_{x:0{digits}d}_{y:0{digits}d}"


def product_of(patch_id: str) -> str:
    """The product that a patch was cut from."""
    return parse_patch_id(patch_id).product


def sensing_time(patch_id: str) -> datetime:
    """Start of the Sentinel-2 acquisition, UTC; takes a product too."""
    return parse_time(patch_id[11:26])


def format_s1_name(scene: str, square: str, x: int, y: int) -> str:
    """The name of a Sentinel-1 patch, which has no ``T`` before its square and no zeros before x and y."""
    return f"{scene}_{square}_{x}_{y}"


def scene_of(s1_name: str) -> str:
    """The scene that a Sentinel-1 patch was cut from: the first 32 characters of its name."""
    return s1_name[:32]


def s1_sensing_time(s1_name: str) -> datetime:
    """Start of the Sentinel-1 acquisition, UTC.

    Raises:
        ValueError: If the name is none.
    """
    match = _S1.fullmatch(s1_name)
    if match is None:
        raise ValueError(
            f"{s1_name!r} is no S1 name; one looks like S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57"
        )
    return parse_time(match["scene"][17:])


def parse_time(text: str) -> datetime:
    """A time as official names write it, UTC, in either case (Sentinel-1's image files have lower).

    Raises:
        ValueError: If it is not a time.
    """
    return datetime.strptime(text.upper(), _TIME).replace(tzinfo=UTC)


def season(time: datetime) -> str:
    """``spring`` (March to May), ``summer``, ``fall`` or ``winter``, by calendar month as in the north."""
    return ("winter", "spring", "summer", "fall")[time.month % 12 // 3]


_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_ROWS = ("FGHJKLMNPQRSTUVABCDE", "ABCDEFGHJKLMNPQRSTUV")
# Northing (m, false northing included) that no tile of a latitude band lies wholly below; only the
# multiple of 2,000 km above it matters.
_BAND_NORTHING = dict(
    zip(
        "CDEFGHJKLMNPQRSTUVWX",
        (11, 20, 28, 37, 46, 55, 64, 73, 82, 91, 0, 8, 17, 26, 35, 44, 53, 62, 70, 79),
        strict=True,
    )
)
_EQUATOR_M = 10_000_000
"""Northing of the equator in the southern hemisphere."""


def tile_corner(square: str) -> tuple[int, int, int]:
    """EPSG code and upper-left corner (west edge, north edge, metres) of a Sentinel-2 tile.

    The MGRS square's corner, moved out to a whole number of 60 m pixels from the zone's origin. All
    the dataset's squares are northern; the southern rule counts pixels from the equator, and
    `sources.safe` checks either against what each product says.

    Args:
        square: MGRS square, e.g. ``33UUP``.

    Raises:
        ValueError: If there is no such square.
    """
    zone, band, column, row = int(square[:2]), square[2], square[3], square[4]
    columns = _COLUMNS[zone % 3]
    if not 1 <= zone <= 60 or band not in _BAND_NORTHING or column not in columns:
        raise ValueError(f"{square!r} is no MGRS square")
    west = (columns.index(column) + 1) * 100_000
    north = (_ROWS[zone % 2].index(row) + 1) * 100_000
    while north <= _BAND_NORTHING[band] * 100_000:
        north += 2_000_000
    southern = band < "N"
    origin = _EQUATOR_M if southern else 0
    return (32700 if southern else 32600) + zone, west // 60 * 60, origin - (origin - north) // 60 * 60


def footprint(patch_id: str, *, patch_m: int = PATCH_M) -> tuple[int, int, int, int, int]:
    """The square of a patch: (epsg, minx, miny, maxx, maxy), metres in its UTM zone.

    Args:
        patch_id: The id.
        patch_m: Side of the patches, metres.

    Raises:
        ValueError: If the id is none.
    """
    _, square, x, y = parse_patch_id(patch_id, patch_m=patch_m)
    epsg, left, top = tile_corner(square)
    minx, maxy = left + patch_m * x, top - patch_m * y
    return epsg, minx, maxy - patch_m, minx + patch_m, maxy


def footprints(patch_ids: Sequence[str], *, patch_m: int = PATCH_M) -> tuple[NDArray[np.int64], ...]:
    """The squares of many patches.

    Args:
        patch_ids: n ids.
        patch_m: Side of the patches, metres.

    Returns:
        epsg, minx, miny, maxx, maxy: int64 (n,) each, metres.

    Raises:
        ValueError: If an id is none; only the first of each product is parsed in full.
    """
    left, top, epsg = (np.empty(len(patch_ids), np.int64) for _ in range(3))
    x, y = grid_positions(patch_ids, patch_m=patch_m)
    squares = np.array([i[39:44] for i in patch_ids])
    names, first, inverse = np.unique(squares, return_index=True, return_inverse=True)
    for number, index in enumerate(first.tolist()):
        parse_patch_id(patch_ids[index], patch_m=patch_m)
        of_square = inverse == number
        epsg[of_square], left[of_square], top[of_square] = tile_corner(str(names[number]))
    minx, maxy = left + patch_m * x, top - patch_m * y
    return epsg, minx, maxy - patch_m, minx + patch_m, maxy


def grid_positions(
    patch_ids: Sequence[str], *, patch_m: int = PATCH_M
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """X and y of many ids of patches of a side in metres, int64 (n,) each."""
    n = num_digits(patch_m)
    digits = np.array([i[-2 * n - 1 : -n - 1] + i[-n:] for i in patch_ids], f"S{2 * n}").astype(np.int64)
    return digits // 10**n, digits % 10**n


@overload
def split(x: int, y: int) -> str: ...
@overload
def split(x: NDArray[np.integer], y: NDArray[np.integer]) -> NDArray[np.str_]: ...
def split(x, y):  # type: ignore[no-untyped-def]
    """The split of a patch from its position in the tile.

    A frame of half the tile's area is train, the next of a quarter validation, the middle test;
    a patch belongs to the area its centre lies in (the paper's geographic split).

    Args:
        x: Column, 0 to 90; an integer or an integer array.
        y: Row, likewise.

    Returns:
        ``train``, ``validation`` or ``test``, a string or an array of strings.

    Raises:
        ValueError: If a position is outside [0, 90].
    """
    x_, y_ = np.asarray(x), np.asarray(y)
    if x_.size and (min(x_.min(), y_.min()) < 0 or max(x_.max(), y_.max()) >= PATCHES_PER_SIDE):
        raise ValueError(f"x and y must be in [0, {PATCHES_PER_SIDE - 1}]")
    train = (x_ <= 12) | (x_ >= 78) | (y_ <= 12) | (y_ >= 78)
    test = (x_ >= 23) & (x_ <= 68) & (y_ >= 23) & (y_ <= 68)
    found = np.where(train, "train", np.where(test, "test", "validation"))
    return found if found.ndim else str(found)


def split_of_centres(east: NDArray[np.floating], south: NDArray[np.floating]) -> NDArray[np.str_]:
    """The split of squares of any size, by the centre's place in the tile; `split` for 1200 m.

    Args:
        east: Metres from the tile's west edge.
        south: Metres from its north edge.
    """
    depth = np.min([east, TILE_M - east, south, TILE_M - south], axis=0)
    # Half, a quarter and a quarter of the area: the frame is s (2 - sqrt 2) / 4 wide.
    frame = TILE_M * (2 - 2**0.5) / 4
    return np.where(depth < frame, "train", np.where(depth < TILE_M / 4, "validation", "test"))
