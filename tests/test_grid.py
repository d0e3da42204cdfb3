"""Ids, footprints, splits and times, against the real dataset and an independent projection."""

import io
import re
import time
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

import reben_cloud.grid
from reben_cloud.bigearthnet import grid

# id -> EPSG, minx, maxy, split (real rows of every latitude band and both zone parities).
VECTORS = [
    ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", 32633, 331200, 5331600, "test"),
    ("S2A_MSIL2A_20171101T094131_N9999_R036_T35VNK_46_42", 32635, 555180, 6949620, "test"),
    ("S2B_MSIL2A_20180525T094029_N9999_R036_T35VNL_90_52", 32635, 607980, 7037640, "train"),
    ("S2A_MSIL2A_20180228T101021_N9999_R022_T34WFS_06_56", 32634, 607200, 7132800, "train"),
    ("S2B_MSIL2A_20180522T093029_N9999_R136_T35VPJ_61_23", 32635, 673200, 6872400, "test"),
    ("S2A_MSIL2A_20170803T094031_N9999_R036_T34TCR_26_19", 32634, 331200, 5077200, "validation"),
    ("S2A_MSIL2A_20171208T093351_N9999_R136_T34TEN_00_41", 32634, 499980, 4750800, "train"),
    ("S2A_MSIL2A_20180508T104031_N9999_R008_T31UGR_00_00", 32631, 699960, 5600040, "train"),
    ("S2A_MSIL2A_20180508T104031_N9999_R008_T31UGR_00_40", 32631, 699960, 5552040, "train"),
    ("S2A_MSIL2A_20170704T112111_N9999_R037_T29SND_00_00", 32629, 499980, 4400040, "train"),
]


@pytest.fixture(scope="module")
def official(shared):
    folder = shared / "data" / "bigearthnet_pipeline"
    names = ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow")
    return pa.concat_tables([pq.read_table(folder / f"{name}.parquet") for name in names])


@pytest.mark.parametrize(("patch_id", "epsg", "minx", "maxy", "split"), VECTORS)
def test_real_patches_lie_where_they_lie(patch_id, epsg, minx, maxy, split):
    assert grid.footprint(patch_id) == (epsg, minx, maxy - 1200, minx + 1200, maxy)
    parsed = grid.parse_patch_id(patch_id)
    assert grid.split(parsed.x, parsed.y) == split
    assert grid.product_of(patch_id) == patch_id[:-6]


def test_split_of_all_549488_patches_from_their_ids_within_two_seconds(official):
    ids = official["patch_id"].to_pylist()
    want = np.array(official["split"].to_pylist())

    start = time.process_time()
    split = grid.split(*grid.grid_positions(ids))
    seconds = time.process_time() - start

    assert len(ids) == 549_488
    assert np.array_equal(split, want)
    assert seconds < 2


@given(x=st.integers(0, 90), y=st.integers(0, 90))
def test_split_is_the_ring_that_the_centre_lies_in(x, y):
    side = 109_800
    inner = side * (2 - 2**0.5) / 4
    depth = min(c for v in (x, y) for c in (600 + 1200 * v, side - 600 - 1200 * v))

    want = "train" if depth < inner else "validation" if depth < side / 4 else "test"

    assert grid.split(x, y) == want


def test_the_rule_for_any_size_is_the_rule_for_1200_m():
    x, y = np.meshgrid(np.arange(91), np.arange(91))

    by_centre = grid.split_of_centres(600 + 1200.0 * x, 600 + 1200.0 * y)

    assert np.array_equal(by_centre, grid.split(x, y))
    assert dict(zip(*np.unique(by_centre, return_counts=True), strict=True)) == {
        "train": 4056, "validation": 2109, "test": 2116,
    }  # fmt: skip


@pytest.mark.parametrize(("epsg", "rows"), [(32631, 14_937), (32632, 4_888)])
def test_footprints_are_the_real_v1_squares(shared, official, epsg, rows):
    path = shared / "data" / "bigearthnet_pipeline" / f"bigearthnet_v1_spatial_{epsg}.parquet"
    ids = official.select(["patch_id", "s2v1_name"])
    joined = ids.join(pq.read_table(path), "s2v1_name", "patch_name", join_type="inner")

    found = np.stack(grid.footprints(joined["patch_id"].to_pylist()), axis=1)

    real = shapely.bounds(shapely.from_wkb(joined["geom"].to_numpy()))
    assert len(real) == rows
    assert np.array_equal(found[:, 1:], real)
    assert (found[:, 0] == epsg).all()


def test_many_footprints_equal_the_single_ones(official):
    ids = official["patch_id"].to_pylist()[:: 549_488 // 500]

    many = np.stack(grid.footprints(ids), axis=1).tolist()

    assert many == [list(grid.footprint(i)) for i in ids]


def test_every_dataset_square_has_the_corner_the_products_have(shared, official):
    # Corners of the 54 tiles, as their products state them, from the facts about the pipeline.
    text = (shared / "facts" / "pipeline.md").read_text().split("## Appendix A")[1].split("## Appendix B")[0]
    table = {
        r[1].strip(): tuple(map(int, r[2:5]))
        for r in (line.split("|") for line in io.StringIO(text))
        if len(r) > 5 and r[2].strip().isdigit()
    }
    squares = pc.unique(pc.utf8_slice_codeunits(official["patch_id"], 39, 44)).to_pylist()

    assert {s: grid.tile_corner(s) for s in squares} == table


@pytest.mark.parametrize("zone", [1, 2, 3, 30, 31, 32, 33, 58, 59, 60])
@pytest.mark.parametrize("hemisphere", [32600, 32700])
def test_squares_anywhere_lie_in_their_latitude_band(zone, hemisphere):
    to_lonlat = pyproj.Transformer.from_crs(hemisphere + zone, 4326, always_xy=True).transform
    letters = "NPQRSTUVWX" if hemisphere == 32600 else "CDEFGHJKLM"
    for number, band in enumerate(letters):
        south = (0 if hemisphere == 32600 else -80) + 8 * number
        for row in "ABCDEFGHJKLMNPQRSTUV":
            column = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3][4]
            epsg, left, top = grid.tile_corner(f"{zone:02d}{band}{column}{row}")
            _, latitude = to_lonlat(left + 54_900, top - 54_900)

            assert epsg == hemisphere + zone
            # A row letter repeats every 2,000 km (18 degrees): right is the one repeat at the band.
            assert south - 9 < latitude < south + 20 or band in "X"


@pytest.mark.parametrize(
    ("square", "corner"),
    [
        pytest.param("54HYE", (32754, 699960, 6000040), id="54HYE"),
        pytest.param("56HLH", (32756, 300000, 6300040), id="56HLH"),
    ],
)
def test_southern_tiles_count_pixels_from_the_equator(square, corner):
    assert grid.tile_corner(square) == corner


@pytest.mark.parametrize(
    ("patch_id", "message"),
    [
        pytest.param("S2A_MSIL2A_20170613T101031_26_57", "no patch id; one looks like", id="v1"),
        pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_91", r"in \[0, 90\]", id="outside"),
        pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_7", "no patch id", id="unpadded"),
        pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33IUP_26_57", "no patch id", id="band I"),
    ],
)
def test_what_is_no_patch_id_is_refused(patch_id, message):
    with pytest.raises(ValueError, match=message):
        grid.footprint(patch_id)


def test_a_square_outside_its_zones_alphabet_is_refused():
    with pytest.raises(ValueError, match="no MGRS square"):
        grid.tile_corner("33UAP")


def test_split_refuses_positions_outside_the_tile():
    with pytest.raises(ValueError, match=r"\[0, 90\]"):
        grid.split(np.array([3, 91]), np.array([3, 3]))


def test_times_are_utc():
    assert grid.sensing_time(VECTORS[0][0]) == datetime(2017, 6, 13, 10, 10, 31, tzinfo=UTC)
    assert grid.s1_sensing_time("S1B_IW_GRDH_1SDV_20170612T165809_33UUP_26_57") == datetime(
        2017, 6, 12, 16, 58, 9, tzinfo=UTC
    )
    small = grid.s1_sensing_time("S1B_IW_GRDH_1SDV_20170612T165809_33UUP_126_57")  # of patches under 1,100 m
    assert small == datetime(2017, 6, 12, 16, 58, 9, tzinfo=UTC)
    with pytest.raises(ValueError, match="no S1 name"):
        grid.s1_sensing_time(VECTORS[0][0])


def test_the_public_module_has_what_it_lists():
    public = reben_cloud.grid
    assert [name for name in public.__all__ if getattr(public, name) is not getattr(grid, name)] == []


def test_parts_of_names_make_the_names_again(official):
    rows = official.slice(0, 2000).to_pylist()
    assert rows

    for row in rows:
        _, _, x, y = parsed = grid.parse_patch_id(row["patch_id"])
        assert grid.format_patch_id(parsed.product, x, y) == row["patch_id"]
        scene = grid.scene_of(row["s1_name"])
        assert re.fullmatch(grid.SCENE_PATTERN, scene)
        of_s1, x, y = row["s1_name"].rsplit("_", 3)[1:]
        assert grid.format_s1_name(scene, of_s1, int(x), int(y)) == row["s1_name"]


@pytest.mark.parametrize("suffix", ["", ".SAFE"])
@pytest.mark.parametrize(("level", "baseline"), [("L1C", "0205"), ("L2A", "9999")])
def test_the_full_name_of_a_product_has_parts(level, baseline, suffix):
    product = f"S2A_MSI{level}_20170613T101031_N{baseline}_R022_T33UUP"

    assert grid.parse_safe_name(f"{product}_20240101T000000{suffix}") == grid.SafeName(
        product=product, satellite="S2A", level=level, start="20170613T101031", baseline=baseline, orbit="R022",
        square="33UUP", generation="20240101T000000",
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", id="no generation time"),
        pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_20240101T000000.zip", id="zip"),
        pytest.param("S2A_MSIL2A_20170613T101031_N9999_R022_T33IUP_20240101T000000.SAFE", id="band I"),
        pytest.param(
            "S2A_USER_PRD_MSIL2A_PDMC_20160101T000000_R022_V20160101T000000.SAFE", id="name of before 2016"
        ),
    ],
)
def test_what_is_not_the_name_of_a_product_is_refused(name):
    with pytest.raises(ValueError, match="is not the name of a Sentinel-2 product; one looks like"):
        grid.parse_safe_name(name)


def test_seasons_of_the_real_rows(official):
    months = pc.value_counts(pc.utf8_slice_codeunits(official["patch_id"], 15, 17)).to_pylist()
    counts = {}
    for entry in months:
        name = grid.season(datetime(2017, int(entry["values"]), 1, tzinfo=UTC))
        counts[name] = counts.get(name, 0) + entry["counts"]

    assert counts == {"spring": 177_865, "fall": 151_979, "winter": 115_253, "summer": 104_391}
