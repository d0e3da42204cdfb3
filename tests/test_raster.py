"""Patches and mosaics in xarray, against rioxarray, rasterio and the grid's own arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.compute as pc
import pytest
import rioxarray
import xarray as xr

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.build import build, make_plan
from reben_cloud.errors import NotFoundError
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests.roots import synthetic_root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The synthetic patches of one product."""
    source, metadata = open_source("synthetic:1500")
    product = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    rows = metadata.filter(pc.starts_with(metadata.column("patch_id"), product))
    url = tmp_path_factory.mktemp("raster") / "root"
    build(make_plan(source, rows, open_store(url)))
    return rc.open(url)


def test_a_mosaic_shows_true_colour_unless_bands_are_named(root):
    product = root.products[0]

    mosaic = root.mosaic(product)

    assert mosaic.band.values.tolist() == ["B04", "B03", "B02"]


def test_a_dataset_without_the_bands_of_a_picture_must_be_told_which(tmp_path):
    source, metadata = open_source("synthetic:4", modalities=["s1"])
    build(make_plan(source, metadata, open_store(tmp_path), modalities=["s1"]))
    root = rc.open(tmp_path)
    product = root.products[0]

    with pytest.raises(
        NotFoundError, match="has no bands for a picture, which is of B04, B03, B02; say which"
    ):
        root.mosaic(product)
    assert root.mosaic(product, bands="VV").band.values.tolist() == ["VV"]


@pytest.fixture
def patch_id(root):
    return root.search().patch_ids[3]


def test_rioxarray_finds_a_patch_where_the_grid_has_it(root, patch_id):
    patch = root.open_patch(patch_id)

    epsg, *bounds = grid.footprint(patch_id)
    assert patch.rio.crs.to_epsg() == epsg
    assert list(patch.s2_10m.rio.bounds()) == bounds
    assert list(patch.s2_20m.rio.set_spatial_dims("x20", "y20").rio.bounds()) == bounds
    assert list(patch.s2_60m.rio.set_spatial_dims("x60", "y60").rio.bounds()) == bounds
    assert patch.x.attrs["units"] == "m"


@pytest.mark.slow
def test_a_mosaic_holds_every_patch_in_its_place(root):
    product = root.products[0]

    mosaic = root.mosaic(product)

    assert mosaic.rio.crs.to_epsg() == grid.footprint(f"{product}_00_00")[0]
    assert mosaic.rio.resolution() == (10, -10)
    whole = mosaic.load()
    covered = np.zeros(whole.shape[1:], bool)
    for patch_id in root.search().patch_ids:
        patch = root.open_patch(patch_id).s2_10m.sel(band=["B04", "B03", "B02"])
        window = whole.sel(x=patch.x, y=patch.y)
        np.testing.assert_array_equal(window.values, patch.values)
        covered |= np.isin(whole.y, patch.y)[:, None] & np.isin(whole.x, patch.x)
    assert (whole.values[:, ~covered] == 0).all()


@pytest.mark.parametrize(
    ("bands", "size_m"),
    [
        pytest.param(["B11"], 20, id="20 m"),
        pytest.param(["B01", "B09"], 60, id="60 m"),
        pytest.param(["VH", "VV"], 10, id="radar, in the order asked for"),
        pytest.param(["reference_map"], 10, id="map"),
    ],
)
def test_a_small_window_equals_the_patch(root, patch_id, bands, size_m):
    product = grid.product_of(patch_id)
    _, left, bottom, right, top = grid.footprint(patch_id)

    window = root.mosaic(product, bands=bands).sel(x=slice(left, right), y=slice(top, bottom))

    assert window.shape == (len(bands), 1200 // size_m, 1200 // size_m)
    assert list(window.rio.bounds()) == [left, bottom, right, top]
    patch = root.open_patch(patch_id)
    if bands == ["reference_map"]:
        np.testing.assert_array_equal(window.values[0], patch.reference_map.values)
    elif bands[0] == "VH":
        np.testing.assert_array_equal(window.values, patch.s1.sel(polarization=bands).values)
    else:
        name, dim = ("s2_20m", "band20") if size_m == 20 else ("s2_60m", "band60")
        np.testing.assert_array_equal(window.values, patch[name].sel({dim: bands}).values)


def test_indexing_is_what_it_is_in_numpy(root):
    mosaic = root.mosaic(root.products[0], bands=["B08", "B02"])
    whole = mosaic.values

    for key in [
        (0, slice(None), slice(None)),
        (slice(None), 200, slice(100, 300, 7)),
        (1, slice(500, 90, -3), 130),
        (slice(None), slice(0, 0), slice(None)),
    ]:
        np.testing.assert_array_equal(mosaic[key].values, whole[key])


def test_a_box_cuts_to_the_patches_that_touch_it(root, patch_id):
    one = root.search(ids=[patch_id]).to_geopandas().geometry.iloc[0].centroid

    mosaic = root.mosaic(
        grid.product_of(patch_id), bbox=(one.x - 1e-4, one.y - 1e-4, one.x + 1e-4, one.y + 1e-4)
    )

    assert list(mosaic.rio.bounds()) == list(grid.footprint(patch_id)[1:])
    with pytest.raises(NotFoundError, match="touches bbox"):
        root.mosaic(grid.product_of(patch_id), bbox=(0, 0, 1, 1))


def test_a_mosaic_becomes_a_geotiff_that_rasterio_reads(root, tmp_path):
    mosaic = root.mosaic(root.products[0], bands=["B04"])

    mosaic.rio.to_raster(tmp_path / "mosaic.tif")

    with rioxarray.open_rasterio(tmp_path / "mosaic.tif") as back:
        assert back.rio.bounds() == mosaic.rio.bounds()
        assert back.rio.crs == mosaic.rio.crs
        np.testing.assert_array_equal(back.values, mosaic.values)


def test_a_catalog_asset_opens_with_plain_xarray(root):
    product = root.products[0]
    path = f"bigearthnet-v2/{product}/{product}.json"
    item = json.loads(bytes(root.store.get(path)))

    href = root.store.local_path(path).parent / item["assets"]["zarr"]["href"]

    opened = xr.open_zarr(href.resolve(), zarr_format=3)
    assert opened.sizes["patch"] == item["properties"]["reben:num_patches"] == len(root)


def test_what_cannot_be_laid_out_is_said(root):
    product = root.products[0]

    with pytest.raises(ValueError, match="one sensor and pixel size, got B02 s2 10 m, B11 s2 20 m"):
        root.mosaic(product, bands=["B02", "B11"])
    with pytest.raises(ValueError, match="unknown band 'B10'"):
        root.mosaic(product, bands=["B10"])
    with pytest.raises(NotFoundError, match="no patch"):
        root.open_patch(f"{product}_90_90")


@pytest.fixture(scope="module")
def scattered(tmp_path_factory):
    """A few patches of several products and UTM zones."""
    url = tmp_path_factory.mktemp("scattered") / "root"
    synthetic_root(url, 40, num_products=10)
    return rc.open(url)


@pytest.mark.slow
def test_a_selection_stacks_what_open_patch_gives_one_by_one(scattered):
    selection = scattered.search(sortby="-id", limit=12)

    stack = selection.to_xarray()

    assert len({grid.footprint(i)[0] for i in selection.patch_ids}) > 1
    assert stack.patch_id.values.tolist() == selection.patch_ids
    for row, patch_id in enumerate(selection.patch_ids):
        mine, alone = stack.isel(patch=row), scattered.open_patch(patch_id)
        assert mine.crs.item() == f"EPSG:{grid.footprint(patch_id)[0]}"
        for name in ("s2_10m", "s2_20m", "s2_60m", "s1", "reference_map", "labels"):
            assert mine[name].dims == alone[name].dims
            np.testing.assert_array_equal(mine[name].values, alone[name].values)
        for axis, utm in (("x", "easting"), ("y60", "northing60")):
            np.testing.assert_array_equal(mine[utm].values, alone[axis].values)
        assert mine.time.values == alone.time.values
        labels = [name for name, has in zip(alone.label.values, alone.labels.values, strict=True) if has]
        assert mine.label_names.item() == "; ".join(labels)
    assert stack.s1.attrs == {"units": "dB"}


def test_a_stack_can_be_written(scattered, tmp_path):
    stack = scattered.search(limit=3).to_xarray()

    stack.to_zarr(tmp_path / "few.zarr", consolidated=False)

    assert xr.open_zarr(tmp_path / "few.zarr", consolidated=False).identical(stack)


def test_a_stack_has_the_bands_asked_for_in_their_order(scattered):
    selection = scattered.search(limit=3)

    stack = selection.to_xarray(bands=["B08", "VH", "B02", "reference_map"])

    assert {n for n in stack.data_vars if n != "labels"} == {"s2_10m", "s1", "reference_map"}
    assert stack.band.values.tolist() == ["B08", "B02"]
    assert stack.s2_10m.shape == (3, 2, 120, 120)
    assert stack.s1.shape == (3, 1, 120, 120)
    want = scattered.open_patch(selection.patch_ids[2]).s2_10m.sel(band="B08")
    np.testing.assert_array_equal(stack.s2_10m.sel(band="B08").isel(patch=2).values, want.values)
    assert list(selection.to_xarray("B11").s2_20m.dims) == ["patch", "band20", "y20", "x20"]
    # Nothing of the pixels is in memory before it is asked for.
    assert stack.s2_10m.chunks is not None


@pytest.mark.slow
def test_what_cannot_be_stacked_is_said(scattered, monkeypatch):
    selection = scattered.search()

    with pytest.raises(ValueError, match="unknown band 'B10'"):
        selection.to_xarray(["B10"])
    with pytest.raises(ValueError, match="different names, got B02, B02"):
        selection.to_xarray(["B02", "B02"])
    with pytest.raises(NotFoundError, match=r"nothing to stack: no patch of .* fits ids=\[\]"):
        scattered.search(ids=[]).to_xarray()
    monkeypatch.setattr("reben_cloud.views.raster.MAX_XARRAY", 10)
    with pytest.raises(ValueError, match="10 at most, and these are 40: search with limit="):
        selection.to_xarray()
    with pytest.raises(TypeError, match="takes one patch id"):
        scattered.open_patch(selection.patch_ids[:2])
