"""The real sarsen on a GRD product made for it: what it writes is cut into patches where the land is.

The image reaches beyond the tile and its margin of heights.
"""

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.scenes.inputs import find_s1
from reben_cloud.scenes.pairing import pair
from tests.conftest import missing
from tests.grd import INCIDENCE, make_grd
from tests.scenes import PRODUCT, make_safe

NAME = "S1A_IW_GRDH_1SDV_20170613T165043_20170613T165108_017015_01C54A_5C6D.SAFE"
EPSG, LEFT, TOP = grid.tile_corner(PRODUCT[39:44])
SIDE_M, HEIGHT_M = 2400, 480.0
TOWN = (600, 1000, 1300, 1900)
"""West, east, north and south edge of what is bright, metres from the corner of the tile."""
BETA = {"VV": 0.1, "VH": 0.02}
"""Beta nought of the land; the town has ten times as much."""


@pytest.fixture(scope="module")
def sarsen():
    beside = Path(sys.executable).with_name("sarsen")
    found = str(beside) if beside.exists() else shutil.which("sarsen")
    if found is None:
        missing("no sarsen: pip install sarsen")
    return found


def in_town(eastings, northings):
    west, east, north, south = TOWN
    x, y = eastings - LEFT, TOP - northings
    return (west < x) & (x < east) & (north < y) & (y < south)


def land(level):
    return lambda eastings, northings: np.where(in_town(eastings, northings), 10 * level, level)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folder of a GRD product, heights and a tile."""
    folder = tmp_path_factory.mktemp("sarsen")
    make_grd(
        folder, name=NAME, time=datetime(2017, 6, 13, 16, 50, 43, 500_000), epsg=EPSG,
        centre=(LEFT + SIDE_M / 2, TOP - SIDE_M / 2), height_m=HEIGHT_M, size=900,
        beta={name: land(level) for name, level in BETA.items()},
    )  # fmt: skip
    with rasterio.open(
        folder / "dem.tif", "w", driver="GTiff", height=120, width=120, count=1, dtype="float32", crs=f"EPSG:{EPSG}",
        transform=from_origin(LEFT - 300, TOP + 300, 30, 30),
    ) as file:  # fmt: skip
        file.write(np.full((120, 120), HEIGHT_M, np.float32), 1)
    make_safe(folder, side_m=SIDE_M)
    return folder


def pieces_of(folder, out, program):
    """(y, x) -> the pixels that patches get of it."""
    safe = next(folder.glob("S2*.SAFE"))
    _, scenes = find_s1(
        [folder / NAME],
        [safe],
        folder / out,
        sarsen=program,
        dem=str(folder / "dem.tif"),
        dem_datum="ellipsoid",
    )

    assert [scene.time for scene in scenes] == [datetime(2017, 6, 13, 16, 50, 43, tzinfo=UTC)]
    found = pair(
        scenes, time=scenes[0].time, epsg=EPSG, left=LEFT, top=TOP, patch_px=120, wanted=np.ones((2, 2), bool)
    )
    return {(piece.y, piece.x): piece.pixels for piece in found}


@pytest.fixture(scope="module")
def pieces(inputs, sarsen):
    return pieces_of(inputs, "S1", sarsen)


@pytest.mark.slow
def test_it_covers_every_patch(pieces):
    assert sorted(pieces) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.slow
def test_what_is_bright_lies_where_it_is_on_the_ground(pieces):
    """Land that is taken for 480 m lower lies 600 m away, and for one pixel of the image beside it 10 m."""
    image = np.block([[pieces[y, x][0] for x in range(2)] for y in range(2)])
    centres = 5 + 10 * np.arange(SIDE_M // 10)
    expected = in_town(LEFT + centres[None], TOP - centres[:, None])

    wrong = np.argwhere((image > -6) != expected)

    edges = {*(edge // 10 - step for edge in TOWN for step in (0, 1))}
    assert expected.sum() == 40 * 60
    assert all(x in edges or y in edges for y, x in wrong.tolist())
    assert len(wrong) < 200  # one pixel along its edge


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), list(enumerate(BETA)))
def test_values_are_gamma_nought_in_decibels(pieces, number, name):
    """Of flat land, gamma nought is beta nought times the tangent of the angle of incidence."""
    values = pieces[0, 1][number]  # no town

    expected = 10 * np.log10(BETA[name] * np.tan(INCIDENCE))

    assert values.dtype == np.float32
    assert np.median(values) == pytest.approx(expected, abs=0.2)
    assert np.abs(values - expected).max() < 1


@pytest.mark.slow
def test_a_tile_in_blocks_is_the_tile(pieces, inputs, sarsen, monkeypatch):
    monkeypatch.setattr("reben_cloud.scenes.sarsen._BLOCK_M", SIDE_M // 2)

    in_blocks = pieces_of(inputs, "blocks", sarsen)

    assert in_blocks.keys() == pieces.keys()
    for place, pixels in pieces.items():
        np.testing.assert_allclose(in_blocks[place], pixels, atol=0.01)  # dB
