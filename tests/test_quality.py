"""Shares of cloud, shadow, snow and the like, and the flags that follow, against loops over each patch's pixels."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import reben_cloud as rc
from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.country import load_countries
from reben_cloud.checks.verify import verify
from reben_cloud.errors import SourceError
from reben_cloud.scenes.prepare import CutOptions, build_root, prepare
from reben_cloud.scenes.quality import SHARES, FlagRule, Quality, measure_quality
from reben_cloud.scenes.safe import open_safe
from reben_cloud.store import open_store
from tests.scenes import PRODUCT, make_clc, make_safe

SIDE_M = 3_660
VALUES = {
    "cloud_share": {8, 9, 10},
    "shadow_share": {3},
    "snow_share": {11},
    "nodata_share": {0},
    "saturated_share": {1},
}


def masks(seed):
    rng = np.random.default_rng(seed)
    shape = (SIDE_M // 20,) * 2
    coarse = rng.integers(0, 12, (8, 8)).repeat(23, 0).repeat(23, 1)[: shape[0], : shape[1]]
    return np.where(rng.random(shape) < 0.8, coarse, rng.integers(0, 12, shape)), rng.integers(0, 101, shape)


@pytest.fixture(scope="module")
def safe(tmp_path_factory):
    scl, cld = masks(5)
    return make_safe(tmp_path_factory.mktemp("s2"), side_m=SIDE_M, scl=scl, cld=cld)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    epsg, left, top = grid.tile_corner("33UUP")
    box = shapely.box(left, top - SIDE_M, left + SIDE_M, top)
    clc = make_clc(tmp_path_factory.mktemp("clc") / "clc.gpkg", [box], [312], epsg=epsg)
    return {"land_cover": clc, "countries": load_countries()}


@pytest.mark.parametrize("patch_m", [60, 600, 1200, 1210])
def test_shares_are_those_of_the_pixels(safe, patch_m):
    scl, cld = masks(5)
    rows = SIDE_M // patch_m
    found = measure_quality(open_safe(safe), patch_m=patch_m, shape=(rows, rows))

    fine = scl.repeat(2, 0).repeat(2, 1), cld.repeat(2, 0).repeat(2, 1)
    side = patch_m // 10
    for y in range(rows):
        for x in range(rows):
            classes, probability = (m[side * y : side * (y + 1), side * x : side * (x + 1)] for m in fine)
            for column, values in VALUES.items():
                want = sum((classes == value).sum() for value in values) / side**2
                assert found.shares[column][y, x] == pytest.approx(want, abs=1e-6)
            assert found.shares["cloud_probability"][y, x] == pytest.approx(
                probability.mean() / 100, abs=1e-6
            )
    assert {column: {*values} for column, values in SHARES.items()} == VALUES


@settings(max_examples=30)
@given(cloud=st.floats(0, 1), shadow=st.floats(0, 1), snow=st.floats(0, 1), at=st.floats(0.01, 1))
def test_flags_begin_at_their_share(cloud, shadow, snow, at):
    given_shares = dict.fromkeys(SHARES, 0.0) | {
        "cloud_share": cloud,
        "shadow_share": shadow,
        "snow_share": snow,
    }
    quality = Quality(
        shares={name: np.full((1, 1), value, np.float32) for name, value in given_shares.items()}
    )

    snowy, cloudy = quality.flags(FlagRule(cloud_or_shadow=at, snow=at), (1, 1))

    assert snowy.item() == (np.float32(snow) >= at)
    assert cloudy.item() == (np.float32(cloud) + np.float32(shadow) >= at)


def test_metadata_have_them_and_flagged_patches_are_apart(safe, options, tmp_path):
    made = CutOptions(**options, flags=FlagRule(cloud_or_shadow=0.3, snow=0.1))
    prepare([safe], tmp_path / "out", made)
    build_root(tmp_path / "out", open_store(tmp_path / "root"))
    dataset = rc.open(tmp_path / "root")
    scl, _ = masks(5)

    rows = dataset.search().official().to_pylist()
    assert len(rows) == 9
    for row in rows:
        y, x = int(row["patch_id"][-2:]), int(row["patch_id"][-5:-3])
        classes = scl[60 * y : 60 * (y + 1), 60 * x : 60 * (x + 1)]
        for column, values in VALUES.items():
            assert row[column] == pytest.approx(np.isin(classes, [*values]).mean(), abs=1e-6)
        assert row["contains_cloud_or_shadow"] == (row["cloud_share"] + row["shadow_share"] >= 0.3)
        assert row["contains_seasonal_snow"] == (row["snow_share"] >= 0.1)
    flagged = [r for r in rows if r["contains_cloud_or_shadow"] or r["contains_seasonal_snow"]]
    assert 0 < len(flagged) < 9
    assert len(dataset.search(recommended=False)) == len(flagged)
    assert len(dataset.search(cloud=True)) == sum(r["contains_cloud_or_shadow"] for r in rows)
    assert sorted(dataset.search(cql2="cloud_share < 0.2").patch_ids) == sorted(
        r["patch_id"] for r in rows if r["cloud_share"] < 0.2
    )
    extra = pq.read_table(tmp_path / "out" / "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    assert extra.num_rows == len(flagged)
    assert verify(dataset, deep=True).problems == ()


def test_without_masks_nothing_is_known_and_said_so(options, tmp_path, caplog):
    safe = make_safe(tmp_path / "s2", side_m=1260)
    prepare([safe], tmp_path / "out", CutOptions(**options))
    build_root(tmp_path / "out", open_store(tmp_path / "root"))
    dataset = rc.open(tmp_path / "root")

    (row,) = dataset.search().official().to_pylist()

    assert [row[column] for column in VALUES] == [None] * 5
    assert not row["contains_cloud_or_shadow"]
    assert "no scene classification (SCL), so nothing is known of clouds and snow" in caplog.text
    assert verify(dataset, deep=True).problems == ()
    assert len(dataset.search(cql2="cloud_share < 2")) == 0


def test_the_papers_recipe_asks_no_mask(safe, options, tmp_path, shared):
    made = CutOptions(**options, v1=shared / "data" / "bigearthnet_pipeline")

    assert made.is_official
    assert not [name for name in made.inputs_of(open_safe(safe), {}) if "SCL" in name or "CLDPRB" in name]
    assert [name for name in CutOptions(**options).inputs_of(open_safe(safe), None) if "SCL" in name]


def test_a_mask_of_another_size_is_refused(options, tmp_path):
    safe = make_safe(tmp_path / "s2", side_m=1260, scl=np.full((60, 60), 4))

    with pytest.raises(
        SourceError, match=r"SCL_20m\.jp2: 1 band\(s\) of 60 x 60 uint8, .* says 1 of 63 x 63 uint8"
    ):
        prepare([safe], tmp_path / "out", CutOptions(**options))


def test_another_rule_is_another_dataset(safe, options, tmp_path):
    prepare([safe], tmp_path / "out", CutOptions(**options))

    with pytest.raises(
        rc.ConflictError, match=r"flags: was cloud or shadow from 0\.2, snow from 0\.2, is cloud"
    ):
        prepare([safe], tmp_path / "out", CutOptions(**options, flags=FlagRule(snow=0.5)))
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], got 0"):
        FlagRule(snow=0)


def test_a_mask_made_again_is_told(safe, options, tmp_path):
    again = make_safe(tmp_path / "s2", side_m=SIDE_M, scl=masks(5)[0])
    prepare([again], tmp_path / "out", CutOptions(**options))
    mask = next(again.rglob("*_SCL_20m.jp2"))
    name = mask.relative_to(again)
    mask.unlink()
    make_safe(tmp_path / "other", side_m=SIDE_M, scl=masks(6)[0])
    (tmp_path / "other" / again.name / name).rename(mask)

    with pytest.raises(rc.ConflictError, match=r"Sentinel-2 \S+_SCL_20m\.jp2: was "):
        prepare([again], tmp_path / "out", CutOptions(**options))
    assert PRODUCT in str(again)
