"""Products behind Items: the same patches as from SAFE folders, the same values, and no guesses.

No public API was at hand: Items are made, in the shapes that Earth Search and the Planetary Computer publish.
"""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import numpy as np
import pytest
import rasterio

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.errors import SourceError
from reben_cloud.scenes.items.product import products_of
from reben_cloud.scenes.items.reading import Reading
from reben_cloud.scenes.items.search import StacSearch, find_items
from tests.commands import invoke, told
from tests.item_products import abroad, api, contents, images, others, own, prepare, usual  # noqa: F401
from tests.items import CONFORMS, degrees
from tests.scenes import ABROAD_M, CHILE, KENYA, make_safe


@pytest.mark.slow
@pytest.mark.parametrize("collection", ["earth-search", "sentinel-2-l2a"])
def test_items_give_the_patches_maps_and_metadata_of_the_same_safe_products(
    api, others, usual, tmp_path, collection
):
    code, said, _ = prepare(
        api.url, "--datetime", "2024-01-01/2024-02", "--max-cloud", 20, *others, "--out", tmp_path,
        collection=collection,
    )  # fmt: skip

    assert code == 0
    assert "written now: 128 patches of 2 products" in said
    assert contents(tmp_path) == usual


@pytest.mark.slow
def test_a_box_leaves_the_patches_that_lie_within_from_items_as_from_safe(api, abroad, others, tmp_path):
    epsg, left, top = grid.tile_corner("37MBU")
    # Two columns and three rows of squares, and parts of those around them.
    box = degrees(epsg, (left + 2_300, top - 6_100, left + 4_900, top - 2_300))

    safe = told("prepare", "--s2", abroad / "products", "--bbox", *box, *others, "--out", tmp_path / "safe")
    items = prepare(api.url, "--bbox", *box, *others, "--out", tmp_path / "items")

    assert safe[0] == items[0] == 0
    made = contents(tmp_path / "items")
    ids = sorted({name.split("/")[2] for name in made if name.startswith("BigEarthNet-S2")})
    assert ids == [f"{KENYA}_{x:02d}_{y:02d}" for x in (2, 3) for y in (2, 3, 4)]
    assert made == contents(tmp_path / "safe")
    line = f"{KENYA}: 6 of 64 squares written; left out: 58 outside of the box, 0 with nodata"
    assert line in items[1]
    assert line in safe[1]
    assert items[1].count("of 64") == 1  # the other tile is not within the search


@pytest.mark.slow
def test_of_a_box_little_more_is_fetched_than_its_windows(own, others, tmp_path):
    rng = np.random.default_rng(3)
    product = make_safe(
        tmp_path,
        name=KENYA,
        side_m=ABROAD_M,
        pixels=lambda band, shape: rng.integers(1, 9_000, shape, np.uint16),
    )
    own.planetary(product, blocksize=128)
    epsg, left, top = grid.tile_corner("37MBU")
    box = degrees(epsg, (left + 1_190, top - 2_410, left + 2_410, top - 1_190))

    code, said, _ = prepare(own.url, "--bbox", *box, *others, "--bands", "10m", "--out", tmp_path / "out")

    assert code == 0
    assert "1 patch of 1 product" in said
    whole = sum((own.folder / KENYA / f"{band}.tif").stat().st_size for band in ("B02", "B03", "B04", "B08"))
    # Of each band the header, in one piece, and the four blocks of 128 pixels that the square touches.
    most = 4 * (16_384 + 4 * 128 * 128 * 2 * 1.01) + 20_000
    assert own.sent_bytes < most < whole / 4
    assert own.count("B05.tif") == own.count("SCL.tif") == 0
    assert own.count("GET /" + KENYA + "/B02.tif") <= 3


@pytest.mark.slow
def test_a_root_is_made_at_once_and_known_again(api, others, tmp_path):
    epsg, left, top = grid.tile_corner("19HCC")
    given = ["--bbox", *degrees(epsg, (left, top - 2_500, left + 2_500, top)), *others, tmp_path / "root"]

    first, again = prepare(api.url, *given), prepare(api.url, *given)
    other = prepare(api.url, "--max-cloud", 90, *given)

    assert first[0] == again[0] == 0
    assert "published already: " in again[1]
    ds = rc.open(tmp_path / "root")
    assert {grid.product_of(patch_id) for patch_id in ds.search().patch_ids} == {CHILE}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]
    assert other[0] == 1
    assert "was not begun with these inputs and options: --stac: was" in other[2]


def test_quality_checks_of_the_product_exclude_it_as_from_safe(own, others, tmp_path):
    safe = make_safe(tmp_path, name=KENYA, side_m=1_260, checks={"RADIOMETRIC_QUALITY": "FAILED"})
    own.planetary(safe)

    code, said, _ = prepare(own.url, *others, "--out", tmp_path / "out")

    assert code == 0
    assert f"{KENYA}: excluded, RADIOMETRIC_QUALITY not PASSED" in said


@pytest.mark.slow
def test_of_what_was_processed_twice_the_latest_is_taken(own, others, tmp_path):
    older = KENYA.replace("N0510", "N0301")
    for name in (KENYA, older):
        own.planetary(make_safe(tmp_path, name=name, side_m=1_260))

    code, said, _ = prepare(own.url, *others, "--out", tmp_path / "out")

    assert code == 0
    assert KENYA in said
    assert older not in said


def test_what_is_left_out_of_an_acquisition_is_told_by_its_cause(own, tmp_path, caplog):
    first, second = "20240115T074230", "20240115T074300"
    for name, datastrip, generation in (
        (KENYA.replace("N0510", "N0301"), first, "20240101T000000"),
        (KENYA.replace("N0510", "N0500"), second, "20240102T000000"),
        (KENYA, first, "20240103T000000"),
        (KENYA, first, "20240104T000000"),
    ):
        own.planetary(
            make_safe(tmp_path, name=name, side_m=1_260, datastrip=datastrip, generation=generation)
        )

    (product,) = products_of(
        find_items(StacSearch(api=own.url, collection="sentinel-2-l2a")), ["B02"], Reading()
    )

    assert (product.name, product.generation) == (KENYA, "20240104T000000")
    told = [message for message in caplog.messages if "left out" in message]
    assert ["the same was processed later" in message for message in told] == [True, False, True]
    assert "a part of the tile: of baseline 0510 there is another datastrip alone" in told[1]
    assert "20240102T000000" in told[1]


# -- the offset of baseline 04.00 ----------------------------------------------------------------------


def bright(band, shape):
    """Digital numbers as they are from baseline 04.00 on, some of them darker than black, and one nodata."""
    y, x = np.indices(shape)
    pixels = (940 + (y * 17 + x * 5) % 4_000).astype(np.uint16)
    pixels[-1, -1] = 0
    return pixels


def darker(band, shape):
    """What becomes of these where the offset is applied."""
    pixels = bright(band, shape)
    return np.where(pixels > 0, np.maximum(pixels, 1_001) - 1_000, 0).astype(np.uint16)


@pytest.mark.parametrize(
    ("kind", "name", "offset"),
    [
        pytest.param("metadata", KENYA, -1000, id="said by the product's metadata"),
        pytest.param(
            "metadata",
            KENYA,
            0,
            id="said by the product's metadata that there is none",
            marks=pytest.mark.slow,
        ),
        pytest.param("baseline", KENYA, -1000, id="from the baseline"),
        pytest.param(
            "baseline",
            KENYA.replace("N0510", "N0400"),
            -1000,
            id="from its first baseline",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "baseline",
            KENYA.replace("N0510", "N0301"),
            0,
            id="none of an earlier baseline",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "baseline",
            KENYA.replace("N0510", "N9999"),
            0,
            id="none outside the ground segment",
            marks=pytest.mark.slow,
        ),
        pytest.param("not applied", KENYA, -1000, id="not applied by Earth Search"),
        pytest.param("applied", KENYA, -1000, id="applied by Earth Search", marks=pytest.mark.slow),
    ],
)
def test_values_are_those_of_safe_whoever_applies_the_offset(
    own, abroad, others, tmp_path, kind, name, offset
):
    safe = make_safe(tmp_path / "safe", name=name, side_m=1_260, pixels=bright, offset=offset)
    if kind == "applied":
        there = make_safe(tmp_path / "there", name=name, side_m=1_260, pixels=darker)
        own.earth_search(there)
    elif kind == "not applied":
        own.earth_search(safe, offset_applied=False)
    else:
        item = own.planetary(safe)
        if kind == "baseline":
            del item["assets"]["product-metadata"]

    (given, made) = (
        told("prepare", "--s2", safe, *others, "--out", tmp_path / "usual"),
        prepare(own.url, *others, "--out", tmp_path / "out"),
    )

    assert given[0] == made[0] == 0, made
    assert contents(tmp_path / "out") == contents(tmp_path / "usual")
    (band,) = (tmp_path / "out").rglob("*_00_00_B02.tif")
    with rasterio.open(band) as file:
        assert file.read(1)[0, 0] == (1 if offset else 940)


def test_an_offset_that_was_applied_though_the_item_says_no_is_told(own, others, tmp_path):
    dark = make_safe(tmp_path, name=KENYA, side_m=1_260, pixels=lambda band, shape: bright(band, shape) // 10)
    own.earth_search(dark, offset_applied=False)

    code, _, said = prepare(own.url, *others, "--out", tmp_path / "out")

    assert code == 1
    assert "Item S2A_37MBU_20240115_0_L2A, B" in said
    assert (
        "seems to be in them already, though the Item does not say so (earthsearch:boa_offset_applied)"
        in said
    )


# -- Items that lack something -------------------------------------------------------------------------


@pytest.fixture
def small(own, tmp_path):
    """An Item of a small product, which a test may change, and the API that has it."""
    return own, own.earth_search(make_safe(tmp_path / "small", name=KENYA, side_m=1_260))


def change(item, **properties):
    item["properties"] |= {name.replace("__", ":"): value for name, value in properties.items()}


def swap(item, one, other):
    assets = item["assets"]
    assets[one]["href"], assets[other]["href"] = assets[other]["href"], assets[one]["href"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda item: change(item, s2__product_uri=None),
            r"its property s2:product_uri \(None\)",
            id="name",
        ),
        pytest.param(
            lambda item: change(item, s2__product_uri=f"{KENYA}_20240101T000000.SAFE".replace("L2A", "L1C")),
            "is Level-1C; give a collection of Level-2A",
            id="level",
        ),
        pytest.param(
            lambda item: item["assets"].pop("nir08"),
            r"no asset for B8A \(it would be called nir08 or B8A\)",
            id="asset",
        ),
        pytest.param(
            lambda item: change(item, grid__code="MGRS-36MZE"),
            "its grid:code is 36MZE, its product is of T37MBU",
            id="square",
        ),
        pytest.param(
            lambda item: change(item, proj__epsg=32736),
            r"its CRS \(proj:code\) is 32736, tile T37MBU lies in",
            id="CRS",
        ),
        pytest.param(
            lambda item: change(item, datetime="2024-01-16T07:43:00Z"),
            r"its datetime is 2024-01-16T07:43:00\+00:00, its product's name says 20240115T\d{6}",
            id="time",
        ),
        pytest.param(
            lambda item: swap(item, "red", "blue"),
            r"asset blue is B04\.tif, must be an image of B02",
            id="swapped",
        ),
        pytest.param(
            lambda item: swap(item, "nir08", "rededge1"),
            r"asset rededge1 is B8A\.tif, must be an image of B05",
            id="swapped at 20 m",
        ),
        pytest.param(
            lambda item: item["assets"]["red"].update(href="T37MBU_20240110T074231_B04_10m.tif"),
            r"asset red is T37MBU_20240110T074231_B04_10m.tif, must be an image of B04 .*at 20240115T",
            id="image of another time",
        ),
        pytest.param(
            lambda item: change(item, s2__processing_baseline="02.09"),
            "its s2:processing_baseline is 02.09, its",
            id="baseline",
        ),
        pytest.param(
            lambda item: change(item, earthsearch__boa_offset_applied="yes"),
            "its property earthsearch:boa_offset_applied must be true or false, is 'yes'",
            id="offset",
        ),
        pytest.param(
            lambda item: change(item, eo__cloud_cover=None), "no property eo:cloud_cover", id="clouds"
        ),
        pytest.param(
            lambda item: item["assets"]["red"].update(type="image/jp2"),
            "asset red is image/jp2, must be a GeoTIFF",
            id="JPEG 2000",
        ),
        pytest.param(
            lambda item: item["assets"]["blue"].update({"proj:shape": [1000, 10980]}),
            r"its proj:shape \(1000, 10980\)",
            id="shape",
        ),
        pytest.param(
            lambda item: item["assets"]["blue"].update({"proj:shape": [120, 120]}),
            r"B01 \(http.*126 x 126 uint16|B\d. \(http.*must be 120 x 120 uint16|must be 20 x 20 uint16",
            id="another shape",
        ),
        pytest.param(
            lambda item: item["assets"]["blue"]["raster:bands"][0].update(scale=0.00002),
            "asset coastal: its scale is 2e-05, only 0.0001 is supported",
            id="scale",
        ),
        pytest.param(
            lambda item: item["assets"]["green"].update(href="../nothing.tif"),
            "nothing.tif: no such object",
            id="image",
        ),
    ],
)
def test_an_item_that_lacks_or_contradicts_something_is_named(small, others, tmp_path, spoil, said):
    api, item = small
    api.conforms = CONFORMS  # an API that does not filter clouds itself
    spoil(item)

    result = invoke(
        "prepare", "--stac", api.url, "--collection", "sentinel-2-l2a", "--max-cloud", 50, *others, "--out",
        tmp_path / "out",
    )  # fmt: skip

    assert isinstance(result.exception, SourceError | FileNotFoundError)
    with pytest.raises(type(result.exception), match=said):
        raise result.exception
    if "nothing" not in said:
        assert "Item S2A_37MBU_20240115_0_L2A" in str(result.exception)


def test_an_image_whose_nodata_is_not_0_is_refused(own, others, tmp_path):
    own.earth_search(make_safe(tmp_path / "small", name=KENYA, side_m=1_260), nodata=65_535)

    code, _, said = prepare(own.url, *others, "--out", tmp_path / "out")

    assert code == 1
    assert "its nodata value is 65535, only 0 is supported" in said


def test_an_image_of_another_tile_is_refused(small, others, tmp_path):
    api, item = small
    other = make_safe(tmp_path / "other", name=CHILE, side_m=1_260)
    elsewhere = api.earth_search(other, collection="elsewhere")
    item["assets"]["blue"]["href"] = elsewhere["assets"]["blue"]["href"]

    code, _, said = prepare(api.url, *others, "--out", tmp_path / "out")

    assert code == 1
    assert "tile T37MBU lies at" in said
    assert "in EPSG:32719" in said
