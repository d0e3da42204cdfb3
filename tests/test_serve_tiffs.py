"""Bands of patches as GeoTIFFs from the server: what Items say of them, over HTTP, and in libraries that load Items."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pystac_client
import pytest
import rasterio
from rasterio.io import MemoryFile

import reben_cloud as rc
from reben_cloud.schema import TensorSpec
from tests.roots import synthetic_root
from tests.serving import client, serving_apart, url  # noqa: F401
from tests.stac import stac_errors

S2 = ["B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"]
BANDS = [*S2, "VV", "VH", "reference_map"]
HEIGHTS = TensorSpec(name="dem", shape=(60, 60), dtype="int16", units="m", fill=-9999, pixel_m=20)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Patches of one product, every other with a height."""
    folder = tmp_path_factory.mktemp("tiffs")
    synthetic_root(folder / "root", 24, num_products=1)
    ds = rc.open(folder / "root")
    heights = ((i, np.full((60, 60), n, np.int16)) for n, i in enumerate(ds.selection.patch_ids) if n % 2)
    layer = rc.write_layer(folder / "elevation", ds, name="elevation", tensors=HEIGHTS, patches=heights)
    return rc.open(folder / "root", layers=[layer.url])


@pytest.fixture(scope="module")
def items(client):
    return client.get("/search", params={"limit": 100}).json()["features"]


@cache
def opened(dataset, patch_id):
    return dataset.open_patch(patch_id)


def pixels_of(dataset, patch_id, name):
    """A band as its product's Zarr store has it."""
    patch = opened(dataset, patch_id)
    if name in patch:
        return patch[name]
    (array,) = [a for a in patch.data_vars.values() if a.ndim == 3 and name in a[a.dims[0]].values]
    return array.sel({array.dims[0]: name})


@pytest.mark.parametrize("number", [3, 16])
def test_each_asset_is_the_band_with_its_place(dataset, client, items, number):
    item = items[number]
    tiffs = {name: asset for name, asset in item["assets"].items() if asset["href"].endswith(".tif")}

    assert list(tiffs) == BANDS + ["elevation-dem"] * (number % 2)
    for name, asset in tiffs.items():
        want = pixels_of(dataset, item["id"], name.removesuffix("-dem"))
        with MemoryFile(client.get(asset["href"]).content) as memory, memory.open() as file:
            np.testing.assert_array_equal(file.read(1), want.values)
            assert file.crs.to_string() == item["properties"]["proj:code"]
            assert list(file.bounds) == item["properties"]["proj:bbox"]
            assert list(file.shape) == asset["proj:shape"]
            assert list(file.transform)[:6] == asset["proj:transform"]
            assert file.dtypes == (asset["data_type"],)
            said = float(asset["nodata"])
            assert file.nodata == said or (math.isnan(file.nodata) and math.isnan(said))
            assert file.descriptions == (name,)
            x, y = want[want.dims[1]].values, want[want.dims[0]].values
            assert file.xy(0, 0) == (x[0], y[0])


def test_items_and_the_collection_are_what_the_schemas_ask_for(client, items, shared):
    collection = client.get("/collections/bigearthnet-v2").json()

    assert stac_errors(collection, shared / "stac_schemas") == []
    for item in items[:4]:
        assert stac_errors(item, shared / "stac_schemas") == []
        for name, said in collection["item_assets"].items():
            if said["type"].startswith("image/tiff") and name in item["assets"]:
                assert said.items() <= item["assets"][name].items()
    red = items[0]["assets"]["B04"]
    assert red["bands"][0]["eo:common_name"] == "red"
    assert (red["raster:scale"], red["gsd"], red["nodata"]) == (1e-4, 10, 0)


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [
        pytest.param({}, 200, (0, None), id="whole"),
        pytest.param({"Range": "bytes=0-15"}, 206, (0, 16), id="first bytes"),
        pytest.param({"Range": "bytes=100-"}, 206, (100, None), id="from"),
        pytest.param({"Range": "bytes=-10"}, 206, (-10, None), id="last bytes"),
        pytest.param({"Range": "bytes=5-99999999"}, 206, (5, None), id="beyond the end"),
        pytest.param({"Range": "bytes=9-5"}, 200, (0, None), id="backwards"),
        pytest.param({"Range": "bytes=-"}, 200, (0, None), id="nothing"),
        pytest.param({"Range": "bytes=0-1,4-5"}, 200, (0, None), id="several"),
        pytest.param({"Range": "lines=0-15"}, 200, (0, None), id="other units"),
        pytest.param({"Range": "bytes=0-15", "If-Range": '"old"'}, 200, (0, None), id="of another file"),
        pytest.param({"Range": "bytes=99999999-"}, 416, (0, 0), id="after the end"),
        pytest.param({"Range": "bytes=-0"}, 416, (0, 0), id="no bytes"),
    ],
)
def test_a_file_is_had_in_ranges(client, items, asked, status, span):
    place = items[0]["assets"]["B04"]["href"]
    whole = client.get(place).content

    answer = client.get(place, headers={**asked, "Accept-Encoding": "gzip"})
    head = client.head(place, headers=asked)

    want = whole[span[0] : span[1]]
    assert (answer.status_code, answer.content) == (status, want)
    assert "content-encoding" not in answer.headers
    assert (head.status_code, head.content) == (status, b"")
    kept = ("content-length", "content-type", "content-range", "etag", "accept-ranges")
    assert {n: head.headers.get(n) for n in kept} == {n: answer.headers.get(n) for n in kept}
    if status == 206:
        start = span[0] % len(whole)
        span_said = f"bytes {start}-{start + len(want) - 1}/{len(whole)}"
        assert answer.headers["content-range"] == span_said
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(whole)}"


def test_a_file_that_the_client_has_is_not_sent_again(client, items):
    place = items[0]["assets"]["VV"]["href"]
    tag = client.get(place).headers["etag"]

    for known in (tag, f'"x", W/{tag}', "*"):
        answer = client.get(place, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert client.get(place, headers={"If-None-Match": '"x"'}).status_code == 200
    assert client.get(items[1]["assets"]["VV"]["href"]).headers["etag"] != tag


def test_other_answers_are_compressed_and_ranges_of_them_are_not(client):
    assert client.get("/search").headers["content-encoding"] == "gzip"
    assert client.get("/root/patches.parquet", headers={"Range": "bytes=0-3"}).content == b"PAR1"


def test_what_is_not_there_is_not_found(client, items):
    there, other = items[0]["id"], items[1]["id"]

    assert client.get(f"/patches/{there}/B99.tif").status_code == 404
    assert client.get("/patches/nothing/B04.tif").status_code == 404
    assert client.get(f"/patches/{there}/elevation-dem.tif").status_code == 404
    assert client.get(f"/patches/{other}/elevation-dem.tif").status_code == 200


def test_the_file_is_cloud_optimised_and_without_loss(client, items):
    with MemoryFile(client.get(items[0]["assets"]["VH"]["href"]).content) as memory, memory.open() as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.compression.name == "deflate"
        assert file.units == ("dB",)


@pytest.fixture(scope="module")
def found(dataset):
    with serving_apart(dataset) as url:
        yield list(pystac_client.Client.open(url).search(limit=100).items())


@pytest.mark.slow
def test_gdal_opens_an_asset_by_its_address(dataset, found):
    with rasterio.open(found[0].assets["B8A"].href) as file:
        np.testing.assert_array_equal(file.read(1), pixels_of(dataset, found[0].id, "B8A").values)


def spread(dataset, items, name, pixel_m):
    """The patches of one product side by side, from their Zarr values: values, and where there are any."""
    boxes = np.array([item.properties["proj:bbox"] for item in items])
    west, north = boxes[:, 0].min(), boxes[:, 3].max()
    shape = (np.array([north - boxes[:, 1].min(), boxes[:, 2].max() - west]) / pixel_m).astype(int)
    values, known = np.zeros(shape, np.float64), np.zeros(shape, bool)
    for item, box in zip(items, boxes, strict=True):
        pixels = pixels_of(dataset, item.id, name).values
        top, left = int((north - box[3]) / pixel_m), int((box[0] - west) / pixel_m)
        place = (slice(top, top + len(pixels)), slice(left, left + len(pixels)))
        values[place], known[place] = pixels, True
    return values, known


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_odc_stac_loads_items_as_the_zarr_store_has_them(dataset, found):
    stac = pytest.importorskip("odc.stac", reason="no odc-stac: pip install odc-stac")

    for bands, pixel_m in (
        (["B04", "B03"], 10),
        (["B8A"], 20),
        (["B01"], 60),
        (["VV"], 10),
        (["reference_map"], 10),
    ):
        loaded = stac.load(found, bands=bands, groupby="solar_day")

        assert loaded.odc.crs.epsg == int(found[0].properties["proj:code"].removeprefix("EPSG:"))
        assert abs(loaded.odc.geobox.resolution.x) == pixel_m
        for band in bands:
            values, known = spread(dataset, found, band, pixel_m)
            got = loaded[band].values[0]
            assert loaded[band].dtype == pixels_of(dataset, found[0].id, band).dtype
            np.testing.assert_array_equal(got[known], values[known])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stackstac_stacks_items_as_the_zarr_store_has_them(dataset, found):
    # `make test` installs it against its own requirements, which refuse pandas 3.
    stackstac = pytest.importorskip("stackstac", reason="no stackstac: pip install stackstac")
    few = found[:6]
    for item in few:
        # It knows the first version of the projection extension only.
        item.properties["proj:epsg"] = int(item.properties["proj:code"].removeprefix("EPSG:"))

    stack = stackstac.stack(few, assets=["B04", "VV"], snap_bounds=False).compute()

    assert int(stack.epsg) == found[0].properties["proj:epsg"]
    for item, image in zip(few, stack, strict=True):
        west, south, east, north = item.properties["proj:bbox"]
        # Coordinates are corners, the upper left of each pixel.
        here = image.sel(x=slice(west, east - 1), y=slice(north, south + 1))
        for band in ("B04", "VV"):
            want = pixels_of(dataset, item.id, band).values.astype(float)
            want[want == 0] = np.nan if band == "B04" else 0
            np.testing.assert_array_equal(here.sel(band=band).values, want)
