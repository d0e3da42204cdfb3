"""Terrain-corrected scenes behind Items: the same patches as from files in dB, chosen by the same rules."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.scenes.area import bounds_of, squares_within, window_of
from reben_cloud.scenes.items.rtc import decibels
from tests.commands import invoke, told
from tests.item_products import abroad, api, contents, images, others, own, prepare  # noqa: F401
from tests.items import degrees
from tests.scenes import ABROAD_M, KENYA, make_safe

NEAR = "S1A_IW_GRDH_1SDV_20240114T155001_20240114T155026_052113_064CAA"
FAR = "S1A_IW_GRDH_1SDV_20240117T033512_20240117T033537_052149_064DE1"
NODATA = -32768
EPSG, LEFT, TOP = grid.tile_corner("37MBU")


def linear(shape, *, seed):
    """Linear power of VV and VH, and columns of zeros."""
    rng = np.random.default_rng(seed)
    vv = rng.gamma(4, 0.03, shape).astype(np.float32)
    vv[:, 400:405] = 0
    return {"vv": vv, "vh": (vv / 5).astype(np.float32)}


def in_decibels(folder, name, power, *, epsg, left, top):
    """The same scene as a file in dB, as `--s1` takes it."""
    folder.mkdir(exist_ok=True)
    height, width = power["vv"].shape
    with rasterio.open(
        folder / f"{name}_VV_VH.tif", "w", driver="GTiff", height=height, width=width, count=2, dtype="float32",
        crs=f"EPSG:{epsg}", transform=from_origin(left, top, 10, 10), nodata=np.nan,
    ) as file:  # fmt: skip
        positive = [
            np.where(power[name] > 0, power[name], np.nan).astype(np.float64) for name in ("vv", "vh")
        ]
        file.write((10 * np.log10(np.stack(positive))).astype(np.float32))


def grid_in(epsg):
    """Corner and shape of a 10 m grid in a zone around the tile."""
    corner = LEFT, TOP - ABROAD_M, LEFT + ABROAD_M, TOP
    west, south, east, north = pyproj.Transformer.from_crs(EPSG, epsg, always_xy=True).transform_bounds(
        *corner
    )
    left, top = west // 10 * 10 - 700, north // 10 * 10 + 700
    return left, top, (int((top - south) // 10) + 70, int((east - left) // 10) + 70)


@pytest.fixture(scope="module")
def safe(tmp_path_factory):
    return make_safe(tmp_path_factory.mktemp("safe"), name=KENYA, side_m=ABROAD_M)


@pytest.mark.slow
@pytest.mark.parametrize("epsg", [32737, 32736], ids=["the tile's zone", "the zone beside it"])
def test_scenes_behind_items_give_the_patches_of_the_same_scenes_in_decibels(
    own, safe, others, tmp_path, epsg
):
    left, top, shape = grid_in(epsg)
    near, far = linear(shape, seed=1), linear(shape, seed=2)
    for pixels in near.values():
        pixels[:, shape[1] // 2 :] = NODATA  # the edge of the swath
    for name, power in ((NEAR, near), (FAR, far)):
        own.rtc(name, power, epsg=epsg, left=left, top=top)
        in_decibels(tmp_path / "files", name, power, epsg=epsg, left=left, top=top)
    own.planetary(safe)

    usual = told("prepare", "--s2", safe, "--s1", tmp_path / "files", *others, "--out", tmp_path / "usual")
    items = prepare(
        own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 6, *others, "--out", tmp_path / "items"
    )

    assert usual[0] == items[0] == 0, items
    made = contents(tmp_path / "items")
    assert made == contents(tmp_path / "usual")
    names = {name.split("/")[1][:32] for name in made if name.startswith("BigEarthNet-S1")}
    assert names == {NEAR[:32], FAR[:32]}
    assert "without S1" in items[1]
    # The columns of zeros are in no patch of either.
    assert int(items[1].split(" without S1")[0].split()[-1]) > 0


@pytest.mark.slow
def test_a_scene_is_read_around_the_squares_that_are_open_and_kept_for_the_next_run(
    own, safe, others, tmp_path
):
    left, top, shape = grid_in(EPSG)
    for name, seed in ((NEAR, 1), (FAR, 2)):
        own.rtc(name, linear(shape, seed=seed), epsg=EPSG, left=left, top=top)
    box = degrees(EPSG, (LEFT + 1_190, TOP - 2_410, LEFT + 2_410, TOP - 1_190))
    given = [
        "--s2", safe, "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 3, "--bbox", *box,
        *others, "--out", tmp_path / "out",
    ]  # fmt: skip

    first = told("prepare", *given)
    sent = own.sent_bytes
    own.reset()
    again = told("prepare", *given)

    assert first[0] == again[0] == 0
    assert "1 patch of 1 product" in first[1]
    whole = (own.folder / NEAR / "vv.rtc.tiff").stat().st_size
    assert sent < whole / 4  # both polarizations
    assert own.log == []
    (scene,) = (tmp_path / "out" / "S1").rglob("*.tif")
    assert scene.name == f"{NEAR[:32]}_T37MBU_20240115T074231_VV_VH.tif"
    with rasterio.open(scene) as file:
        assert file.descriptions == ("VV", "VH")
        assert max(file.shape) < 140


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "taken"),
    [
        pytest.param([], NEAR, id="the nearest in time"),
        pytest.param(["--s1-direction", "descending"], FAR, id="direction"),
        pytest.param(["--s1-orbit", "152"], FAR, id="relative orbit"),
        pytest.param(["--s1-orbit", "87"], NEAR, id="another relative orbit"),
    ],
)
def test_items_are_chosen_as_files_are(own, safe, others, tmp_path, options, taken):
    left, top, shape = grid_in(EPSG)
    own.rtc(NEAR, linear(shape, seed=1), epsg=EPSG, left=left, top=top, orbit=87)
    own.rtc(FAR, linear(shape, seed=2), epsg=EPSG, left=left, top=top, orbit=152)
    own.rtc(NEAR.replace("1SDV", "1SSV"), {"vv": linear(shape, seed=3)["vv"]}, epsg=EPSG, left=left, top=top)

    code, _, said = told(
        "prepare", "--s2", safe, "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 3,
        *options, "--bands", "B09", *others, "--out", tmp_path / "out",
    )  # fmt: skip

    assert code == 0, said
    names = {path.name[:32] for path in (tmp_path / "out" / "BigEarthNet-S1").iterdir()}
    assert names == {taken[:32]}


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        pytest.param(
            lambda own: own.items.update({"sentinel-1-rtc": []}), NotFoundError, "finds nothing; ", id="none"
        ),
        pytest.param(
            lambda own: own.items["sentinel-1-rtc"][0].update(id="scene-7"),
            SourceError,
            "Item scene-7: its id must begin with the name of a scene",
            id="name",
        ),
        pytest.param(
            lambda own: own.items["sentinel-1-rtc"][0]["assets"]["vh"].update(
                href=own.rtc(FAR, linear((500, 500), seed=3), epsg=EPSG, left=LEFT, top=TOP)["assets"]["vh"][
                    "href"
                ]
            ),
            SourceError,
            f"Item {NEAR}_rtc: its vv and vh must have one grid",
            id="grids",
        ),
        pytest.param(
            lambda own: own.rtc(
                NEAR.replace("T15", "T16"),
                {p: -10 * linear((966, 966), seed=3)["vv"] for p in ("vv", "vh")},
                epsg=EPSG,
                left=LEFT,
                top=TOP,
            ),
            SourceError,
            "so they are decibels already",
            id="decibels",
        ),
        pytest.param(
            lambda own: own.rtc(
                NEAR.replace("T15", "T16"),
                {p: np.ones((966, 966), np.uint16) for p in ("vv", "vh")},
                epsg=EPSG,
                left=LEFT,
                top=TOP,
            ),
            SourceError,
            "uint16, must be linear power as floats",
            id="integers",
        ),
    ],
)
def test_what_is_no_scene_is_told(own, safe, others, tmp_path, spoil, error, said):
    left, top, shape = grid_in(EPSG)
    own.rtc(NEAR, linear(shape, seed=1), epsg=EPSG, left=left, top=top)
    spoil(own)

    result = invoke(
        "prepare", "--s2", safe, "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 3,
        *others, "--out", tmp_path / "out",
    )  # fmt: skip

    assert isinstance(result.exception, error), result.exception
    assert said in str(result.exception)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            ["--s1-direction", "descending"], "none of 1 Items can be taken for S2A_", id="direction"
        ),
        pytest.param(["--s1-orbit", "88"], "none of 1 Items can be taken for S2A_", id="orbit"),
        pytest.param(["--bbox", "1", "2", "3", "4"], "no square of any product lies within --bbox", id="box"),
    ],
)
def test_where_no_scene_may_be_taken_nothing_is_made_without(own, safe, others, tmp_path, options, said):
    own.rtc(NEAR, linear((966, 966), seed=1), epsg=EPSG, left=LEFT, top=TOP)

    code, _, error = told(
        "prepare", "--s2", safe, "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 3,
        *options, *others, "--out", tmp_path / "out",
    )  # fmt: skip

    assert code == 1
    assert said in error
    assert not (tmp_path / "out" / "BigEarthNet-S2").exists()


def test_datastrips_of_one_tile_have_one_choice_of_scenes(own, others, tmp_path):
    for number in (0, 1):
        make_safe(
            tmp_path / "safe", name=KENYA, side_m=1_260, datastrip=f"20240115T07434{number}",
            generation=f"20240115T11111{number}",
        )  # fmt: skip
    own.rtc(NEAR, linear((500, 500), seed=1), epsg=EPSG, left=LEFT, top=TOP)

    code, said, _ = told(
        "prepare", "--s2", tmp_path / "safe", "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc",
        "--s1-max-days", 3, *others, "--out", tmp_path / "out",
    )  # fmt: skip

    assert code == 0
    assert "1 patch of 1 product" in said
    assert own.count("GET /search?limit=100") == 1
    assert len(list((tmp_path / "out" / "S1").rglob("*.tif"))) == 1


def test_decibels_of_linear_power():
    power = np.array([1, 0.1, 100, 0, -3, NODATA, np.nan, 7], np.float32)

    found = decibels(power, 7)

    np.testing.assert_array_equal(found, np.array([0, -10, 20, *[np.nan] * 5], np.float32))
    assert found.dtype == np.float32
    assert decibels(power, None)[-1] == np.float32(10 * np.log10(7))


# -- arithmetic of the box -----------------------------------------------------------------------------


@pytest.mark.parametrize("square", ["37MBU", "19HCC", "60KXF", "01KAB"])
def test_squares_lie_within_a_box_where_their_corners_do(square):
    epsg, left, top = grid.tile_corner(square)
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    rng = np.random.default_rng(5)
    shape, size = (7, 5), 1_200
    for _ in range(20):
        x, y = left + rng.uniform(0, 6_000, 2), top - rng.uniform(0, 8_400, 2)
        longitude, latitude = to_degrees(x, y)
        west, east = longitude if (longitude[1] - longitude[0]) % 360 < 180 else longitude[::-1]
        box = float(west), float(min(latitude)), float(east), float(max(latitude))

        found = squares_within(box, epsg=epsg, left=left, top=top, patch_m=size, shape=shape)

        for row, column in np.ndindex(shape):
            corners = [
                to_degrees(left + size * (column + a), top - size * (row + b)) for a in (0, 1) for b in (0, 1)
            ]
            inside = all(
                (lon - west) % 360 <= (east - west) % 360 and box[1] <= lat <= box[3] for lon, lat in corners
            )
            assert found[row, column] == inside


def test_the_rectangle_around_squares_and_its_window():
    squares = np.zeros((4, 6), bool)
    squares[1, 2] = squares[2, 4] = True

    bounds = bounds_of(squares, left=300_000, top=9_000_000, patch_m=1_200)

    assert bounds == (302_400, 8_996_400, 306_000, 8_998_800)
    assert window_of(bounds, left=300_000, top=9_000_000, pixel_m=60, shape=(80, 90)) == (
        slice(20, 60),
        slice(40, 90),
    )
    # A pixel that is touched in part counts.
    assert window_of((300_070, 0, 300_130, 8_999_990), left=300_000, top=9_000_000, pixel_m=60, shape=(3, 9)) == (
        slice(0, 3), slice(1, 3),
    )  # fmt: skip
    assert bounds_of(np.zeros((2, 2), bool), left=5, top=7, patch_m=10) == (5, 7, 5, 7)


def test_scenes_that_come_later_are_found_by_the_same_command(own, safe, others, tmp_path):
    own.rtc(NEAR, linear((966, 966), seed=1), epsg=EPSG, left=LEFT, top=TOP)
    scenes = own.items.pop("sentinel-1-rtc")
    own.items["sentinel-1-rtc"] = []
    command = [
        "prepare", "--s2", safe, "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 3,
        "--bands", "B09", *others, "--out", tmp_path / "out",
    ]  # fmt: skip
    assert "finds nothing" in told(*command)[2]
    own.items["sentinel-1-rtc"] = scenes

    code, _, said = told(*command)

    assert code == 0, said
    assert {path.name[:32] for path in (tmp_path / "out" / "BigEarthNet-S1").iterdir()} == {NEAR[:32]}


def test_what_lies_beyond_the_swath_may_be_any_negative_number(own, safe, others, tmp_path):
    power = linear((966, 966), seed=1)
    for pixels in power.values():
        pixels[:, 300:] = -9999  # which the file does not call nodata
    own.rtc(NEAR, power, epsg=EPSG, left=LEFT, top=TOP)

    code, _, said = told(
        "prepare", "--s2", safe, "--s1-stac", own.url, "--s1-collection", "sentinel-1-rtc", "--s1-max-days", 3,
        "--bands", "B09", *others, "--out", tmp_path / "out",
    )  # fmt: skip

    assert code == 0, said
    assert list((tmp_path / "out" / "BigEarthNet-S1").iterdir())
