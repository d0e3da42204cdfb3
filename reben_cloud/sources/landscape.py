"""Made-up land: what is where on a patch, and what each band sees of it.

Integer arithmetic and raw Philox words only: the same on every machine and for good. The values are invented to look
like land from above, so that people find their way in pictures; nothing was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.bigearthnet.labels import representative_code
from reben_cloud.bigearthnet.reben import MAP

Ints = NDArray[np.int32]

SIZE_PX = MAP.tensors[0].shape[0]
"""Pixels of 10 m along a side."""

_GRID = 5
"""Cells of the coarse random field along a side; interpolated, it is the terrain."""


class _Cover(NamedTuple):
    """What a class looks like: between two spectra, pixel by pixel."""

    pattern: str
    """``fields``, ``rows``, ``trees``, ``streets`` or ``open``: where it is more of one than of the other."""
    one: tuple[int, ...]
    """Digital numbers of the bands of Sentinel-2 from 443 to 2190 nm, then VV and VH in hundredths of a decibel."""
    other: tuple[int, ...]


_CROP = (330, 400, 700, 480, 1150, 2800, 3400, 3600, 3700, 3700, 2000, 1150, -1050, -1650)
_STRAW = (620, 820, 1180, 1420, 1800, 2150, 2350, 2500, 2650, 2650, 3100, 2500, -1300, -2050)
_GRASS = (280, 350, 640, 400, 1000, 2700, 3300, 3500, 3600, 3600, 1900, 1000, -1180, -1800)
_DRY = (420, 540, 820, 880, 1400, 2200, 2550, 2650, 2800, 2800, 2600, 1700, -1250, -1950)
_LEAVES = (210, 240, 430, 250, 800, 2400, 3050, 3150, 3300, 3300, 1500, 680, -880, -1430)
_NEEDLES = (170, 190, 300, 190, 540, 1450, 1750, 1850, 1950, 1950, 850, 400, -930, -1500)
_SHADE = (140, 150, 230, 140, 420, 1150, 1400, 1450, 1550, 1550, 650, 300, -1050, -1650)
_HEATH = (280, 330, 520, 460, 850, 1550, 1850, 1950, 2050, 2050, 1800, 1050, -1150, -1780)
_ROOFS = (1050, 1250, 1420, 1600, 1700, 1850, 1950, 2050, 2100, 2100, 2250, 2050, -350, -1050)
_HALLS = (1700, 2050, 2250, 2350, 2400, 2500, 2550, 2600, 2650, 2650, 2700, 2500, -150, -900)
_GARDENS = (450, 560, 800, 700, 1150, 2100, 2450, 2550, 2650, 2650, 1900, 1250, -650, -1250)
_SAND = (1700, 2100, 2600, 3000, 3200, 3350, 3450, 3550, 3650, 3650, 4000, 3500, -1550, -2400)
_MUD = (520, 640, 820, 820, 1000, 1250, 1350, 1400, 1450, 1450, 1150, 750, -1400, -2100)
_REEDS = (300, 360, 560, 460, 850, 1700, 2050, 2100, 2200, 2200, 1400, 750, -1050, -1680)
_LAKE = (330, 300, 290, 190, 170, 150, 150, 130, 120, 140, 90, 70, -1950, -2650)
_SEA = (430, 390, 300, 160, 130, 110, 110, 90, 80, 100, 60, 50, -1750, -2550)

_COVERS: Mapping[int, _Cover] = {
    representative_code(label): cover
    for label, cover in {
        "Urban fabric": _Cover("streets", _ROOFS, _GARDENS),
        "Industrial or commercial units": _Cover("streets", _HALLS, _ROOFS),
        "Arable land": _Cover("fields", _CROP, _STRAW),
        "Permanent crops": _Cover("rows", _LEAVES, _STRAW),
        "Pastures": _Cover("fields", _GRASS, _CROP),
        "Complex cultivation patterns": _Cover("fields", _GRASS, _STRAW),
        "Land principally occupied by agriculture, with significant areas of natural vegetation": _Cover(
            "trees", _CROP, _LEAVES
        ),
        "Agro-forestry areas": _Cover("trees", _DRY, _LEAVES),
        "Broad-leaved forest": _Cover("trees", _LEAVES, _SHADE),
        "Coniferous forest": _Cover("trees", _NEEDLES, _SHADE),
        "Mixed forest": _Cover("trees", _LEAVES, _NEEDLES),
        "Natural grassland and sparsely vegetated areas": _Cover("open", _GRASS, _DRY),
        "Moors, heathland and sclerophyllous vegetation": _Cover("open", _HEATH, _DRY),
        "Transitional woodland, shrub": _Cover("trees", _GRASS, _HEATH),
        "Beaches, dunes, sands": _Cover("open", _SAND, _MUD),
        "Inland wetlands": _Cover("open", _REEDS, _HEATH),
        "Coastal wetlands": _Cover("open", _MUD, _REEDS),
        "Inland waters": _Cover("open", _LAKE, _LAKE),
        "Marine waters": _Cover("open", _SEA, _SEA),
    }.items()
}
_PATTERNS = ("fields", "rows", "trees", "streets", "open")


def land_of(patch_id: str, labels: Sequence[str]) -> NDArray[np.uint16]:
    """The map of a patch: its labels as smooth regions of equal size, all present.

    Args:
        patch_id: The patch.
        labels: Its labels, one or more.

    Returns:
        (120, 120) codes of CORINE land cover.
    """
    codes = np.array([representative_code(label) for label in labels], np.uint16)
    height = _terrain(patch_id)
    ranks = np.empty(height.size, np.int64)
    ranks[np.argsort(height, axis=None, kind="stable")] = np.arange(height.size)
    return codes[(ranks * len(codes) // height.size).reshape(height.shape)]


def band_of(patch_id: str, name: str, land: NDArray[np.uint16]) -> NDArray[np.generic]:
    """What a band sees of a patch.

    Args:
        patch_id: The patch.
        name: The band.
        land: The patch's `land_of`.

    Returns:
        (size, size): uint16 digital numbers in [1, 10000], or float32 decibels in [-30, 0].
    """
    band = BANDS[name]
    number, step = _NUMBERS[name], SIZE_PX // band.size_px
    here = land[::step, ::step]
    one: Ints = _ONE[number].take(here)
    other: Ints = _OTHER[number].take(here)
    much = _mixture(patch_id, land.tobytes())[::step, ::step]
    seen: Ints = other + ((one - other) * much >> 8)
    words = _words(patch_id, stream=1 + number, count=band.size_px**2 // 4)
    grain: Ints = (words.view(np.uint16) & 63).astype(np.int32).reshape(here.shape)
    if band.dtype == "float32":  # of speckle, more than of grain; and a number of its own for each band
        return ((seen * 32 // 25 + 5 * (grain - 32) + number) / 128).astype(np.float32)
    light: Ints = 900 + (_terrain(patch_id)[::step, ::step] >> 2)  # slopes in the sun and in the shade
    return (1 + seen * light // 1024 + (grain * (8 + (seen >> 7)) >> 4) + number).astype(np.uint16)


_NUMBERS = {name: number for number, name in enumerate(BANDS)}
_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12", "VV", "VH")
_ONE, _OTHER = np.zeros((2, len(BANDS), 1000), np.int32)
_PATTERN_OF = np.zeros(1000, np.uint8)
for _code, _cover in _COVERS.items():
    _PATTERN_OF[_code] = _PATTERNS.index(_cover.pattern)
    for _name, _first, _second in zip(_ORDER, _cover.one, _cover.other, strict=True):
        _ONE[_NUMBERS[_name], _code], _OTHER[_NUMBERS[_name], _code] = _first, _second


@functools.lru_cache(maxsize=4)
def _mixture(patch_id: str, land: bytes) -> Ints:
    """How much of the first of its two spectra each pixel has, (120, 120) in [0, 256]."""
    kinds = _PATTERN_OF.take(np.frombuffer(land, np.uint16)).reshape(_X.shape)
    words = _words(patch_id, stream=2_000, count=SIZE_PX**2 // 8)
    speckle = words.view(np.uint8).reshape(_X.shape).astype(np.int32)
    tile, east, south = _place(patch_id)
    # Fields and streets of a neighbourhood go one way: along (a, b), across (-b, a).
    key = int(_hashed(np.array([east // 4]), np.array([south // 4]), tile)[0])
    a, b = ((5, 1), (5, 2), (5, 3), (5, 5), (3, 5), (2, 5), (1, 5), (0, 5))[key & 7]
    x, y = _X + SIZE_PX * east, _Y + SIZE_PX * south
    along, across = x * a + y * b, y * a - x * b
    coarse = np.abs((_terrain(patch_id) * 5 & 511) - 256)
    found = np.empty(_X.shape, np.int32)
    for kind in np.unique(kinds):
        if _PATTERNS[kind] == "open":
            much = coarse
        elif _PATTERNS[kind] == "trees":
            much = speckle * 5 // 8 + (coarse * 3 >> 3)
        elif _PATTERNS[kind] == "streets":
            is_street = (along % 48 < 8) | (across % 72 < 8)
            much = np.where(is_street, 200, _hashed(along // 24, across // 24, tile))
        else:
            strip = across // (30 + key % 50)
            much = _hashed((along + strip * 37) // (90 + key % 90), strip, tile)
            if _PATTERNS[kind] == "rows":
                much = much >> 2 * (across >> 3 & 1)
        np.copyto(found, much, where=kinds == kind)
    mixture: Ints = np.clip(found + (speckle >> 4) - 8, 0, 256)
    return mixture


_Y, _X = np.indices((SIZE_PX, SIZE_PX), dtype=np.int32)


def _place(patch_id: str) -> tuple[int, int, int]:
    """A number for the tile of a patch, and where in it the patch is: neighbours go on where others end."""
    tile, east, south = patch_id.split("_")[-3:]
    return int.from_bytes(tile.encode(), "little") % 2**32, int(east), int(south)


def _hashed(first: NDArray[np.integer], second: NDArray[np.integer], key: int) -> Ints:
    """A number in [0, 255] for each pair."""
    mixed: NDArray[np.uint32] = first.astype(np.uint32) * np.uint32(0x9E3779B1) ^ second.astype(
        np.uint32
    ) * np.uint32(0x85EBCA77)
    mixed ^= np.uint32(key)
    mixed = (mixed ^ mixed >> np.uint32(15)) * np.uint32(0xC2B2AE3D)
    return (mixed >> np.uint32(24)).astype(np.int32)


@functools.lru_cache(maxsize=4)
def _terrain(patch_id: str) -> Ints:
    """A smooth field (120, 120) of integers in [0, 1020], from random corners."""
    tile, east, south = _place(patch_id)
    corners = np.arange(_GRID + 1)
    coarse = _hashed(
        np.repeat(corners + _GRID * east, _GRID + 1), np.tile(corners + _GRID * south, _GRID + 1), tile
    )
    coarse = coarse.reshape(_GRID + 1, _GRID + 1).T.astype(np.float32)  # (y, x)
    position = (np.arange(SIZE_PX) * 2 + 1) * _GRID * 16 // SIZE_PX  # in 1/32 of a cell
    cell, part = position // 32, position % 32
    # Smoothstep in 1/32, so that no edge of a cell shows.
    part = (part * part * (96 - 2 * part)) >> 10
    weights = np.zeros((SIZE_PX, _GRID + 1), np.float32)
    weights[np.arange(SIZE_PX), cell] = 32 - part
    weights[np.arange(SIZE_PX), cell + 1] += part
    # Whole numbers below 2**24: float32 products and sums are exact, whatever the BLAS.
    field = weights @ coarse @ weights.T
    return field.astype(np.int32) >> 8


def _words(patch_id: str, *, stream: int, count: int) -> NDArray[np.uint64]:
    """Raw Philox words keyed by the patch; NumPy keeps this stream for good."""
    name = patch_id.encode()
    key = int.from_bytes(name[-16:], "little") ^ int.from_bytes(name[8:24], "little") << 1
    return np.random.Philox(key=key & (2**128 - 1), counter=[0, 0, 0, stream]).random_raw(count)
