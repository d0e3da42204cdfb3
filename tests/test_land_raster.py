"""Reference maps from rasters of land cover, against each pixel's centre projected by PROJ and looked up by hand."""

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.errors import SourceError
from reben_cloud.scenes.class_table import ClassTable, load_class_table
from reben_cloud.scenes.land_cover import read_land_cover
from reben_cloud.scenes.land_raster import raster_files, read_land_raster
from tests.scenes import CHILE, KENYA, WORLD_DEGREES, make_world_raster

FIJI = "S2A_MSIL2A_20240105T222551_N0510_R029_T60KXF"
WORLD = load_class_table("worldcover2021")
SIDE = 330  # pixels along the side of the made grids


def place_of(product):
    epsg, left, top = grid.tile_corner(product[39:44])
    return {"epsg": epsg, "left": left, "top": top, "shape": (SIDE, SIDE)}


def read(path, product=KENYA, table=WORLD):
    return read_land_raster(raster_files(path), table=table, **place_of(product))


def expected(path, product, *, outside=999):
    """The pixel that each centre lies in, and how far from an edge of that pixel it is, in its pixels."""
    place = place_of(product)
    y, x = np.indices((SIDE, SIDE))
    with rasterio.open(path) as file:
        project = pyproj.Transformer.from_crs(place["epsg"], file.crs.to_epsg(), always_xy=True).transform
        columns, rows = ~file.transform @ project(place["left"] + 10 * x + 5, place["top"] - 10 * y - 5)
        pixels = file.read(1)
    inside = (rows >= 0) & (columns >= 0) & (rows < file.height) & (columns < file.width)
    found = np.full((SIDE, SIDE), outside, np.int64)
    found[inside] = pixels[rows[inside].astype(int), columns[inside].astype(int)]
    margin = np.minimum(*(np.abs(n - np.rint(n)) for n in (rows, columns)))
    return found, margin


def assert_is(codes, path, product):
    found, margin = expected(path, product)
    assert codes.dtype == np.uint16
    # GDAL may be a hundredth of a pixel off.
    sure = margin > 0.011
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(codes[sure], found[sure])


@pytest.mark.parametrize("product", [KENYA, CHILE], ids=["Kenya", "Chile"])
def test_each_pixel_has_the_code_of_the_nearest_pixel(tmp_path, product):
    path = make_world_raster(
        tmp_path / "w.tif", product=product, side_m=SIDE * 10, codes=list(WORLD.labels), cell_px=1
    )

    codes = read(path, product)

    assert_is(codes, path, product)
    assert {*np.unique(codes)} == {*WORLD.labels}


@settings(max_examples=8, deadline=None)
@given(row=st.integers(0, 9), column=st.integers(0, 9), epsg=st.sampled_from([3857, 32636, 32737, 102022]))
def test_rasters_of_any_crs_and_phase(row, column, epsg, tmp_path_factory):
    path = tmp_path_factory.mktemp("w") / "w.tif"
    place, crs = place_of(KENYA), "ESRI:102022" if epsg == 102022 else f"EPSG:{epsg}"
    box = shapely.box(place["left"], place["top"] - 10 * SIDE, place["left"] + 10 * SIDE, place["top"])
    project = pyproj.Transformer.from_crs(place["epsg"], crs, always_xy=True).transform
    west, south, east, north = shapely.bounds(shapely.transform(box, project, interleaved=False))
    pixel = 10.7
    shape = round((north - south) / pixel) - 20, round((east - west) / pixel) - 20
    codes = np.random.default_rng(row * 10 + column).choice(list(WORLD.labels), shape).astype(np.uint8)
    transform = from_origin(west + column, north - row, pixel, pixel)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=shape[0],
        width=shape[1],
        count=1,
        dtype="uint8",
        crs=crs,
        transform=transform,
    ) as file:
        file.write(codes, 1)

    found = read(path)

    y, x = np.indices((SIDE, SIDE))
    columns, rows = ~transform @ project(place["left"] + 10 * x + 5, place["top"] - 10 * y - 5)
    inside = (rows >= 0) & (columns >= 0) & (rows < shape[0]) & (columns < shape[1])
    want = np.full((SIDE, SIDE), 999)
    want[inside] = codes[rows[inside].astype(int), columns[inside].astype(int)]
    sure = np.minimum(*(np.abs(n - np.rint(n)) for n in (rows, columns))) > 0.011
    np.testing.assert_array_equal(found[sure], want[sure])
    assert (found == 999).any()


def test_where_no_raster_is_nothing_is_known(tmp_path):
    path = make_world_raster(
        tmp_path / "w.tif", product=KENYA, side_m=1500, codes=[10, 0], cell_px=7, margin_px=0, nodata=None
    )

    codes = read(path)

    found, margin = expected(path, KENYA)
    want = np.where(found == 0, 999, found)  # the table says that 0 is nodata
    np.testing.assert_array_equal(codes[margin > 0.011], want[margin > 0.011])
    assert {*np.unique(codes)} == {10, 999}
    assert (codes[200:] == 999).all()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64"])
def test_codes_of_any_dtype_are_the_same_codes(tmp_path, dtype):
    few = {"side_m": SIDE * 10, "codes": [10, 50, 100], "product": KENYA}
    plain = make_world_raster(tmp_path / "plain.tif", **few)
    other = make_world_raster(tmp_path / "other.tif", dtype=dtype, nodata=-1 if dtype[0] != "u" else 9, **few)

    np.testing.assert_array_equal(read(other), read(plain))


def test_vrt_zarr_and_a_folder_of_tiles_give_the_same(tmp_path):
    whole = make_world_raster(
        tmp_path / "whole.tif", product=KENYA, side_m=SIDE * 10, codes=list(WORLD.labels)
    )
    want = read(whole)
    with rasterio.open(whole) as file:
        pixels, transform, profile = file.read(1), file.transform, file.profile
    half = pixels.shape[1] // 2
    (tmp_path / "tiles").mkdir()
    for name, part, first in (("a", pixels[:, :half], 0), ("b", pixels[:, half:], half)):
        moved = transform @ rasterio.Affine.translation(first, 0)
        profile |= {"width": part.shape[1], "transform": moved}
        with rasterio.open(tmp_path / "tiles" / f"{name}.tif", "w", **profile) as file:
            file.write(part, 1)
    (tmp_path / "w.vrt").write_text(
        f'<VRTDataset rasterXSize="{pixels.shape[1]}" rasterYSize="{pixels.shape[0]}"><SRS>EPSG:4326</SRS>'
        f"<GeoTransform>{', '.join(map(str, transform.to_gdal()))}</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue><SimpleSource>'
        '<SourceFilename relativeToVRT="1">whole.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    lon = transform.c + (np.arange(pixels.shape[1]) + 0.5) * WORLD_DEGREES
    lat = transform.f - (np.arange(pixels.shape[0]) + 0.5) * WORLD_DEGREES
    stack = xr.Dataset(
        {"map": (("lat", "lon"), pixels)}, {"lat": lat, "lon": lon}, {"proj:code": "EPSG:4326"}
    )
    stack.to_zarr(tmp_path / "w.zarr", zarr_format=3)

    for path in (tmp_path / "w.vrt", tmp_path / "w.zarr", tmp_path / "tiles"):
        codes = read(path)
        same = codes == want
        assert same.mean() > 0.999, path  # a hundredth of a pixel is on either side of an edge
    assert len(raster_files(tmp_path / "tiles")) == 2
    assert raster_files(tmp_path / "clc.gpkg") == []


def test_a_tile_across_the_antimeridian_gets_both_sides(tmp_path):
    """Square 60KXF reaches over 180 degrees; maps of the world end there."""
    place = place_of(FIJI) | {"left": 817_600}  # its last kilometres
    project = pyproj.Transformer.from_crs(place["epsg"], 4326, always_xy=True).transform
    y, x = np.indices((SIDE, SIDE))
    lon, lat = project(place["left"] + 10 * x + 5, place["top"] - 10 * y - 5)
    assert lon.max() > 179.98
    assert lon.min() < -179.98
    north = np.ceil(lat.max() * 100) / 100
    files = []
    for west, code in ((179.5, 20), (-180.0, 80)):
        files.append(tmp_path / f"{code}.tif")
        with rasterio.open(
            files[-1], "w", driver="GTiff", height=900, width=6000, count=1, dtype="uint8", crs="EPSG:4326", nodata=0,
            transform=from_origin(west, north, WORLD_DEGREES, WORLD_DEGREES),
        ) as file:  # fmt: skip
            file.write(np.full((900, 6000), code, np.uint8), 1)

    codes = read_land_raster(files, table=WORLD, **place)

    edge = np.abs(np.abs(lon) - 180) > WORLD_DEGREES
    np.testing.assert_array_equal(codes[edge], np.where(lon > 0, 20, 80)[edge])


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        pytest.param(
            {"codes": [10, 33]}, {}, "code 33 is none of class table worldcover2021; is the table", id="code"
        ),
        pytest.param(
            {"codes": [10, 10.5], "dtype": "float32"},
            {},
            "code 10.5 is none of class table",
            id="no whole number",
        ),
        pytest.param({"codes": [10, 70_000], "dtype": "int32"}, {}, "code 70000 is none of", id="large"),
        pytest.param({"codes": [10, -3], "dtype": "int16"}, {}, "code -3 is none of", id="negative"),
        pytest.param(
            {"codes": [10]}, {"count": 2}, r"has 2 bands \(1, 2\); land cover is one band", id="bands"
        ),
        pytest.param({"codes": [10]}, {"crs": None}, "does not say where it is", id="no CRS"),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_that_is_no_land_cover_is_refused_by_name(tmp_path, options, change, message):
    path = make_world_raster(tmp_path / "w.tif", product=KENYA, side_m=SIDE * 10, **options)
    if change:
        with rasterio.open(path) as file:
            pixels, profile = file.read(1), file.profile
        with rasterio.open(path, "w", **{**profile, **change}) as file:
            for band in range(1, file.count + 1):
                file.write(pixels, band)

    with pytest.raises(SourceError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "values", [[311.0, 211.0], ["311.0", "211"], [311, 211]], ids=["floats", "text", "integers"]
)
def test_codes_of_polygons_may_be_whole_floats(tmp_path, values):
    boxes = [shapely.box(300_000 + 500 * n, 5_399_500, 300_500 + 500 * n, 5_400_000) for n in range(2)]
    column = np.array(values, object if isinstance(values[0], str) else None)
    pyogrio.raw.write(
        tmp_path / "clc.gpkg", shapely.to_wkb(boxes), [column], ["code_18"], layer="clc", driver="GPKG",
        crs="EPSG:32633", geometry_type="Polygon",
    )  # fmt: skip

    found = read_land_cover(
        tmp_path / "clc.gpkg", epsg=32633, bounds=(300_000, 5_399_000, 301_000, 5_400_000)
    )

    assert found.codes.tolist() == [311, 211]


def test_a_code_that_is_no_whole_number_is_refused(tmp_path):
    box = shapely.box(300_000, 5_399_500, 300_500, 5_400_000)
    pyogrio.raw.write(
        tmp_path / "clc.gpkg", shapely.to_wkb([box]), [np.array([311.5])], ["code_18"], layer="clc", driver="GPKG",
        crs="EPSG:32633", geometry_type="Polygon",
    )  # fmt: skip

    with pytest.raises(SourceError, match=r"code '311\.5' is none of class table reben19"):
        read_land_cover(tmp_path / "clc.gpkg", epsg=32633, bounds=(300_000, 5_399_000, 301_000, 5_400_000))


def test_codes_up_to_16_bits_and_several_nodata():
    table = ClassTable.of("t", {1: "a", 998: "b", 1000: None, 65_535: "c"}, nodata=(0, 7))
    codes = np.array([1, 998, 1000, 65_535, 0, 7, 999])

    assert table.recoded(codes, name="x").tolist() == [1, 998, 1000, 65_535, 999, 999, 999]
    with pytest.raises(SourceError, match="x: code nan is none of class table t"):
        table.recoded(np.array([1.0, np.nan]), name="x")
