"""Rasters on the grids of patches: beside rasterio's WarpedVRT, patch by patch, and beside the function they show."""

from __future__ import annotations

import math
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import Affine, from_origin

from reben_cloud.errors import SourceError
from reben_cloud.layers.raster import RESAMPLINGS, open_raster
from reben_cloud.layers.squares import CELL, Squares
from tests.layers.rasters import warped, write_tif

PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
HERE = Squares.of_patches([f"{PRODUCT}_{x:02d}_{y:02d}" for y in range(30, 34) for x in range(40, 44)])
EPSG, LEFT, TOP = HERE[0]
LON, LAT = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True).transform(LEFT, TOP)


def height(lon, lat):
    """Metres, smooth: a pixel of half a minute shows it to less than a centimetre."""
    return 500 + 300 * np.sin(0.5 * lon) + 200 * np.cos(0.4 * lat)


OVER_HERE = from_origin(LON - 0.1, LAT + 0.1, 1 / 1200, 1 / 1200)
"""Transform of a raster of 300 x 300 pixels over all patches here."""


def write(path, pixels, transform=OVER_HERE, **options):
    return write_tif(path, pixels, transform, **options)


def noise(dtype="float32", *, seed=0, size=300):
    return np.random.default_rng(seed).integers(1, 100, (size, size)).astype(dtype)


# -- squares --------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from([32632, 32633]), st.integers(0, 30), st.integers(-3, 30))),
    st.integers(1, 40),
)
def test_blocks_have_every_row_once_and_a_square_in_one_block(places, size):
    epsg, x, y = np.array(places, np.int64).reshape(-1, 3).T
    squares = Squares(epsg=epsg, left=1200.0 * x, top=1200.0 * y, side_m=1200)

    blocks = squares.blocks(size)

    assert sorted(row for block in blocks for row in block) == list(range(len(places)))
    of_blocks = [{squares[row] for row in block} for block in blocks]
    assert len(set().union(*of_blocks)) == sum(map(len, of_blocks))
    assert all(len(block) <= size or len(found) == 1 for block, found in zip(blocks, of_blocks, strict=True))
    for block in blocks:
        once, which = squares.unique(block)
        assert len(once) == len({squares[row] for row in block})
        assert [squares[row] for row in once[which]] == [squares[row] for row in block]
        cells = squares.cells(once)
        assert [row for cell in cells for row in cell] == list(once)
        for cell in cells:
            assert np.ptp(squares.left[cell]) < CELL * 1200
            assert np.ptp(squares.top[cell]) < CELL * 1200


@pytest.mark.slow
def test_blocks_of_the_whole_collection_are_neighbours(official_files):
    ids = [i for path in official_files for i in pq.read_table(path, columns=["patch_id"])[0].to_pylist()]
    squares = Squares.of_patches(ids)

    blocks = squares.blocks()

    assert sum(map(len, blocks)) == len(squares) == 549_488
    assert sum(len(squares.unique(block)[0]) for block in blocks) == 253_957
    extent = [max(np.ptp(squares.left[b]), np.ptp(squares.top[b])) for b in blocks]
    assert np.median(extent) < 30_000


def test_squares_are_three_columns_of_one_length():
    with pytest.raises(
        ValueError, match=r"three columns of one length, got shapes \(2,\), \(1,\) and \(2,\)"
    ):
        Squares(epsg=[1, 2], left=[1], top=[1, 2], side_m=1200)
    with pytest.raises(ValueError, match="must be above 0 m, got 0"):
        Squares(epsg=[1], left=[1], top=[1], side_m=0)
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        HERE.blocks(0)


# -- a mosaic of a continent ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def continent(official_files):
    """The square of a patch of each of the 115 products."""
    ids = pq.read_table(official_files[0], columns=["patch_id"]).column(0)
    products = pc.utf8_slice_codeunits(ids, 0, -6).combine_chunks().dictionary_encode()
    code = products.indices.to_numpy()
    names = ids.to_pylist()
    rows = [np.flatnonzero(code == n) for n in range(len(products.dictionary))]
    assert len(rows) == 115
    return Squares.of_patches([names[mine[len(mine) // 3]] for mine in rows])


def tile_width(lat):
    """Pixels along a tile of one degree, as the Copernicus model of 30 m has them, a thirtieth of them."""
    return round(120 / (1 if lat < 50 else 1.5 if lat < 60 else 2))


@pytest.fixture(scope="module")
def mosaic(continent, tmp_path_factory):
    """Tiles of one degree, whose pixels are wider in the north, under every square; and VRTs of them."""
    folder = tmp_path_factory.mktemp("mosaic")
    degrees = set()
    for square in (continent[row] for row in range(len(continent))):
        to_lonlat = pyproj.Transformer.from_crs(square.epsg, 4326, always_xy=True)
        for dx in (-3000, 4200):
            for dy in (3000, -4200):
                lon, lat = to_lonlat.transform(square.left + dx, square.top + dy)
                degrees.add((math.floor(lon), math.floor(lat)))
    for lon, lat in degrees:
        width = tile_width(lat)
        x, y = lon + (np.arange(width) + 0.5) / width, lat + 1 - (np.arange(120) + 0.5) / 120
        pixels = height(x[None], y[:, None]).astype(np.float32)
        write(folder / f"{lon}_{lat}.tif", pixels, from_origin(lon, lat + 1, 1 / width, 1 / 120), tiled=True,
              blockxsize=64, blockysize=64)  # fmt: skip
    for resampling in ("nearest", "bilinear"):
        (folder / f"{resampling}.vrt").write_text(vrt(degrees, resampling))
    return folder


def vrt(degrees, resampling):
    """What ``gdalbuildvrt -resolution highest -r RESAMPLING`` writes."""
    west, north = min(d[0] for d in degrees), max(d[1] for d in degrees) + 1
    east, south = max(d[0] for d in degrees) + 1, min(d[1] for d in degrees)
    how = f' resampling="{resampling}"' if resampling != "nearest" else ""
    sources = [
        f'<ComplexSource{how}><SourceFilename relativeToVRT="1">{lon}_{lat}.tif</SourceFilename>'
        f'<SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="{tile_width(lat)}" ySize="120"/>'
        f'<DstRect xOff="{(lon - west) * 120}" yOff="{(north - lat - 1) * 120}" xSize="120" ySize="120"/>'
        "</ComplexSource>"
        for lon, lat in sorted(degrees)
    ]
    return (
        f'<VRTDataset rasterXSize="{(east - west) * 120}" rasterYSize="{(north - south) * 120}"><SRS>EPSG:4326</SRS>'
        f"<GeoTransform>{west}, {1 / 120!r}, 0, {north}, 0, {-1 / 120!r}</GeoTransform>"
        f'<VRTRasterBand dataType="Float32" band="1"><NoDataValue>-32768</NoDataValue>'
        f"{''.join(sources)}</VRTRasterBand></VRTDataset>"
    )


@pytest.mark.parametrize(
    ("resampling", "pixel_m"),
    [("nearest", 10), ("bilinear", 10), ("cubic", 10), ("average", 60), ("cubic", 400)],
)
def test_a_mosaic_over_all_products_is_what_rasterio_makes_of_it_patch_by_patch(
    mosaic, continent, resampling, pixel_m
):
    path = mosaic / "bilinear.vrt"

    found = open_raster(path, resampling=resampling, pixel_m=pixel_m).sample(continent)

    assert found.present.all()
    for row in found.rows:
        np.testing.assert_array_equal(
            found.pixels[row], warped(path, continent[row], resampling=resampling, pixel_m=pixel_m)
        )


def test_a_mosaic_shows_what_its_tiles_were_made_of(mosaic, continent):
    found = open_raster(mosaic / "bilinear.vrt", resampling="bilinear", pixel_m=20).sample(continent)

    errors = np.stack(
        [pixels[0] - expected(continent[n], 20, height) for n, pixels in enumerate(found.pixels)]
    )
    assert np.median(np.abs(errors)) < 0.01
    # GDAL brings each tile to the mosaic's pixels by itself: at its east and west edges half a wide pixel is repeated.
    assert np.abs(errors).max() < 1.0
    assert np.ptp(found.pixels) > 100


def expected(square, pixel_m, function):
    """A function of longitude and latitude at the centres of a square's pixels, by PROJ."""
    centres = (np.arange(round(1200 / pixel_m)) + 0.5) * pixel_m
    x, y = np.meshgrid(square.left + centres, square.top - centres)
    return function(*pyproj.Transformer.from_crs(square.epsg, 4326, always_xy=True).transform(x, y))


def test_a_mosaic_that_takes_the_nearest_pixel_of_wider_ones_is_not_interpolated(mosaic, continent):
    path = mosaic / "nearest.vrt"

    with pytest.raises(SourceError, match=r"nearest.vrt: this VRT brings \d+ of its tiles .* -r bilinear"):
        open_raster(path, resampling="bilinear", pixel_m=10)

    assert open_raster(path, resampling="nearest", pixel_m=10).sample(continent).present.all()


def test_places_are_right_to_five_centimetres(tmp_path):
    """Rasters whose values are their own longitude and latitude, in large pixels, which GDAL is less careful with."""
    step = 1 / 100
    transform = from_origin(LON - 1, LAT + 1, step, step)
    lon = LON - 1 + step * (np.arange(200) + 0.5) + np.zeros((200, 1))
    lat = LAT + 1 - step * (np.arange(200) + 0.5)[:, None] + np.zeros(200)
    path = write(tmp_path / "lonlat.tif", np.stack([lon, lat]), transform)

    found = open_raster(path, resampling="bilinear", pixel_m=10).sample(HERE)

    for n, (east, north) in enumerate(found.pixels):
        x, y = expected(HERE[n], 10, lambda *lonlat: lonlat)
        assert np.abs(east - x).max() * 111_000 * math.cos(math.radians(LAT)) < 0.05
        assert np.abs(north - y).max() * 111_000 < 0.05


# -- beside rasterio, other CRS ------------------------------------------------------------------------


def around(crs, pixel_m):
    """300 pixels of a CRS in metres, with `HERE` in the middle."""
    x, y = pyproj.Transformer.from_crs(EPSG, crs, always_xy=True).transform(LEFT + 2400, TOP - 2400)
    return from_origin(round(x) - 150 * pixel_m, round(y) + 150 * pixel_m, pixel_m, pixel_m)


GRIDS = {
    "degrees": ("EPSG:4326", from_origin(LON - 0.1, LAT + 0.1, 1 / 1200, 1 / 1200)),
    "its own zone, other pixels": ("EPSG:32633", from_origin(LEFT - 3007, TOP + 3003, 30, 30)),
    "its own zone, fine pixels": ("EPSG:32633", from_origin(LEFT - 200, TOP + 300, 20, 20)),
    "the next zone": ("EPSG:32632", around("EPSG:32632", 50)),
    "equal area": ("EPSG:3035", around("EPSG:3035", 50)),
    "south up": ("EPSG:4326", Affine(1 / 1200, 0, LON - 0.1, 0, 1 / 1200, LAT - 0.15)),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_every_grid_and_resampling_is_what_rasterio_makes_of_it(tmp_path, name, dtype):
    crs, transform = GRIDS[name]
    path = write(tmp_path / "noise.tif", noise(dtype), transform, crs=crs)

    some = Squares(epsg=HERE.epsg[[0, 7]], left=HERE.left[[0, 7]], top=HERE.top[[0, 7]], side_m=1200)

    for resampling in RESAMPLINGS:
        for pixel_m in (10, 120):
            found = open_raster(path, resampling=resampling, pixel_m=pixel_m).sample(some)
            assert found.present.all()
            assert found.pixels.dtype == dtype
            for row in range(2):
                want = warped(path, some[row], resampling=resampling, pixel_m=pixel_m)
                np.testing.assert_array_equal(found.pixels[row], want, err_msg=f"{resampling} {pixel_m}")


def test_small_pixels_are_what_rasterio_makes_of_them(tmp_path):
    """A patch of more than one of GDAL's blocks."""
    path = write(tmp_path / "noise.tif", noise())

    found = open_raster(path, resampling="cubic", pixel_m=2.5).sample(HERE)

    assert found.pixels.shape == (16, 1, 480, 480)
    np.testing.assert_array_equal(found.pixels[3], warped(path, HERE[3], resampling="cubic", pixel_m=2.5))


def test_blocks_in_any_order_give_the_same(tmp_path):
    twice = Squares(
        epsg=np.tile(HERE.epsg, 2), left=np.tile(HERE.left, 2), top=np.tile(HERE.top, 2), side_m=1200
    )
    source = open_raster(write(tmp_path / "noise.tif", noise()), resampling="cubic", pixel_m=20)
    alone = source.sample(HERE)
    order = np.random.default_rng(1).permutation(len(twice))

    for blocks in (twice.blocks(5), twice.blocks(1000), np.split(order, [3, 4, 20])):
        found = list(source.sample_blocks(twice, blocks))

        assert [list(part.rows) for part in found] == [list(block) for block in blocks]
        for part in found:
            np.testing.assert_array_equal(part.pixels, alone.pixels[part.rows % len(HERE)])
    assert not list(source.sample_blocks(twice, []))


def sums(source, blocks):
    return [part.pixels.sum(axis=(1, 2, 3)).tolist() for part in source.sample_blocks(HERE, blocks)]


@pytest.mark.slow
def test_threads_and_processes_have_a_raster_of_their_own(tmp_path):
    source = open_raster(write(tmp_path / "noise.tif", noise()), resampling="bilinear", pixel_m=20)
    blocks = HERE.blocks(4)
    want = [sums(source, [block]) for block in blocks]

    with ThreadPoolExecutor(4) as pool:
        by_thread = list(pool.map(sums, [source] * len(blocks), [[block] for block in blocks]))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        by_process = pool.submit(sums, source, blocks).result()

    assert by_thread == want
    assert by_process == [one for part in want for one in part]
    assert pickle.loads(pickle.dumps(source)) == source
    assert len(pickle.dumps(source)) < 1000


@pytest.mark.parametrize("pixel_m", [10, 60, 400])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "average"])
def test_overviews_are_not_used(tmp_path, pixel_m, resampling):
    path = write(tmp_path / "noise.tif", noise(), tiled=True, blockxsize=64, blockysize=64)
    source = open_raster(path, resampling=resampling, pixel_m=pixel_m)
    want = source.sample(HERE).pixels
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16], Resampling.average)
        file.update_tags(ns="rio_overview", resampling="average")

    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4, 8, 16]
    np.testing.assert_array_equal(source.sample(HERE).pixels, want)


# -- what a raster does not cover ------------------------------------------------------------------------

FAR = Squares.of_patches(
    [
        f"{PRODUCT}_42_31",
        "S2A_MSIL2A_20170617T113321_N9999_R080_T29UPU_04_55",
        "S2B_MSIL2A_20170808T094029_N9999_R036_T35VLH_10_10",
    ]
)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633", "EPSG:3035"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_squares_beside_the_raster_are_absent(tmp_path, crs, nodata):
    name = {"EPSG:4326": "degrees", "EPSG:3035": "equal area"}.get(crs, "its own zone, other pixels")
    path = write(tmp_path / "noise.tif", noise("int16"), GRIDS[name][1], crs=crs, nodata=nodata)

    found = open_raster(path, resampling="bilinear", pixel_m=10).sample(FAR)

    assert found.present.tolist() == [True, False, False]
    assert not found.pixels[1:].any()
    assert found.pixels[0].all()


GAPS = {
    "none declared": ({}, None, 0),
    "NaN": ({"nodata": math.nan}, math.nan, math.nan),
    "a value": ({"nodata": -9999.0}, -9999.0, -9999.0),
}


@pytest.mark.parametrize("gap", GAPS)
def test_a_square_counts_where_all_of_it_has_values_or_any_with_partial(tmp_path, gap):
    options, nodata, _ = GAPS[gap]
    fill = math.nan if nodata is None else nodata
    # The raster ends in the middle of the second column of squares.
    lon, _ = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True).transform(LEFT + 1800, TOP)
    transform = from_origin(lon - 300 / 1200, LAT + 0.1, 1 / 1200, 1 / 1200)
    path = write(tmp_path / "half.tif", noise(), transform, **options)
    columns = (HERE.left - LEFT) / 1200

    whole = open_raster(path, resampling="bilinear", pixel_m=10).sample(HERE)
    partial = open_raster(path, resampling="bilinear", pixel_m=10, partial=True).sample(HERE)

    assert whole.present.tolist() == (columns == 0).tolist()
    assert partial.present.tolist() == (columns <= 1).tolist()
    np.testing.assert_array_equal(whole.pixels[~whole.present], np.float32(fill))
    half = partial.pixels[columns == 1]
    empty = np.isnan(half) if math.isnan(fill) else half == fill
    assert 0.4 < empty.mean() < 0.6
    assert half[~empty].min() > 0
    np.testing.assert_array_equal(partial.pixels[columns == 0], whole.pixels[columns == 0])


def with_hole(path, kind):
    """A raster with a hole over the first square, said in one of the ways there are."""
    lon, lat = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True).transform(LEFT + 600, TOP - 600)
    row, column = int((LAT + 0.1 - lat) * 1200), int((lon - LON + 0.1) * 1200)
    hole = (slice(row - 2, row + 2), slice(column - 2, column + 2))
    pixels = noise("float32" if kind in ("NaN", "undeclared NaN") else "uint8")
    options = {}
    if kind in ("nodata", "NaN", "undeclared NaN", "given"):
        pixels[hole] = 255 if kind in ("nodata", "given") else np.nan
        options = {"nodata": {"nodata": 255, "NaN": np.nan}.get(kind)}
    mask = np.full(pixels.shape, 255, np.uint8)
    mask[hole] = 0
    if kind == "alpha":
        write(path, np.stack([pixels, mask]))
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
        return path
    write(path, pixels, **options)
    if kind == "mask":
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    return path


@pytest.mark.parametrize("kind", ["nodata", "given", "NaN", "undeclared NaN", "mask", "alpha"])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "average"])
def test_a_hole_is_seen_however_it_is_said(tmp_path, kind, resampling):
    path = with_hole(tmp_path / "hole.tif", kind)

    source = open_raster(path, resampling=resampling, pixel_m=10, nodata=255 if kind == "given" else None)
    found = source.sample(HERE)

    assert source.bands == ("1",)
    assert found.present.tolist() == [False] + [True] * 15
    assert (found.pixels[1:] > 0).all()


def test_a_raster_that_has_nothing_is_refused(tmp_path):
    empty = open_raster(
        write(tmp_path / "empty.tif", np.full((300, 300), -1, np.int16), nodata=-1),
        resampling="nearest",
        pixel_m=10,
    )
    found = empty.sample(HERE)

    assert not found.present.any()
    message = r"empty.tif: has no values for any of the 16 patches: .* all of it there is nodata \(-1\)"
    with pytest.raises(SourceError, match=message):
        empty.require_some(int(found.present.sum()), len(HERE))
    empty.require_some(1, len(HERE))


# -- bands and refusals ---------------------------------------------------------------------------------


def test_bands_are_taken_by_name_in_the_order_asked_for(tmp_path):
    path = write(tmp_path / "many.tif", np.stack([noise(seed=n) for n in range(3)]))
    numbered = open_raster(path, resampling="bilinear", pixel_m=10)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("slope", "aspect", "height")

    found = open_raster(path, resampling="bilinear", pixel_m=10, bands=["height", "slope"])

    assert numbered.bands == ("1", "2", "3")
    assert open_raster(path, resampling="bilinear", pixel_m=10).bands == ("slope", "aspect", "height")
    want = numbered.sample(HERE).pixels
    np.testing.assert_array_equal(found.sample(HERE).pixels, want[:, [2, 0]])
    np.testing.assert_array_equal(want[5], warped(path, HERE[5], resampling="bilinear", pixel_m=10))


REFUSED = {
    "no CRS": ({"crs": None}, {}, SourceError, "says no CRS; give it one"),
    "no place": ({"crs": "EPSG:4326", "transform": Affine.identity()}, {}, SourceError, "does not say where"),
    "neither": ({"crs": None, "transform": None}, {}, SourceError, "says no CRS"),
    "rotated": ({"transform": Affine.translation(13, 49) @ Affine.rotation(3) @ Affine.scale(0.001, -0.001)}, {},
                SourceError, "its grid is rotated"),
    "wrong band": ({}, {"bands": ["hight"]}, ValueError, "unknown band of .* 'hight'"),
    "band twice": ({}, {"bands": ["1", "1"]}, ValueError, "different names, at least one, got 1, 1"),
    "no band": ({}, {"bands": []}, ValueError, "different names, at least one, got none"),
    "complex": ({"pixels": noise("complex64")}, {}, SourceError, "values are complex64, must be one of"),
    "other resampling": ({}, {"resampling": "linear"}, ValueError, "must be one of nearest, .* got 'linear'"),
    "pixels that do not fit": ({}, {"pixel_m": 7}, ValueError, "7 m does not divide the side of a patch, 1200 m"),
    "no pixels": ({}, {"pixel_m": 0}, ValueError, "0 m does not divide"),
    "pixels too large": ({}, {"pixel_m": 2400}, ValueError, "2400 m does not divide"),
    "nodata out of range": ({"pixels": noise("uint8")}, {"nodata": -1}, ValueError, "nodata -1 is no value of uint8"),
    "partial integers": ({"pixels": noise("uint8")}, {"partial": True}, ValueError, "need one that says so"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sampled_is_refused_in_one_line(tmp_path, case, recwarn):
    made, asked, error, message = REFUSED[case]
    with rasterio.Env(), pytest.warns(rasterio.errors.NotGeoreferencedWarning) if case in (
        "no place", "neither") else rasterio.Env():  # fmt: skip
        path = write(tmp_path / "bad.tif", **{"pixels": noise(), **made})

    with pytest.raises(error, match=message) as caught:
        open_raster(path, **{"resampling": "bilinear", "pixel_m": 10, **asked})

    assert "\n" not in str(caught.value)


def test_scaled_values_are_refused(tmp_path):
    path = write(tmp_path / "scaled.tif", noise("int16"))
    with rasterio.open(path, "r+") as file:
        file.scales = (0.1,)

    with pytest.raises(SourceError, match=r"band 1 has a scale or an offset.* -unscale"):
        open_raster(path, resampling="bilinear", pixel_m=10)


def test_what_is_no_raster_is_refused(tmp_path):
    (tmp_path / "text.tif").write_text("no")

    with pytest.raises(SourceError, match=r"text.tif: cannot be read \(.*not recognized"):
        open_raster(tmp_path / "text.tif", resampling="bilinear", pixel_m=10)
    with pytest.raises(FileNotFoundError, match=r"none.tif: no such raster"):
        open_raster(tmp_path / "none.tif", resampling="bilinear", pixel_m=10)


def test_a_damaged_raster_is_an_error_and_not_fill(mosaic, tmp_path):
    path = write(tmp_path / "cut.tif", noise(), tiled=True, blockxsize=64, blockysize=64)
    source = open_raster(path, resampling="bilinear", pixel_m=10)
    path.write_bytes(path.read_bytes()[:60_000])

    with pytest.raises(SourceError, match=r"cut.tif: cannot be read \("):
        source.sample(HERE)


def test_a_mosaic_that_lacks_a_tile_is_an_error_and_not_fill(tmp_path):
    (tmp_path / "lacks.vrt").write_text(vrt({(13, 48)}, "nearest"))
    source = open_raster(tmp_path / "lacks.vrt", resampling="bilinear", pixel_m=10)

    with pytest.raises(SourceError, match=r"lacks.vrt: cannot be read \("):
        source.sample(HERE)


def test_squares_of_another_size_are_refused(tmp_path):
    source = open_raster(write(tmp_path / "noise.tif", noise()), resampling="nearest", pixel_m=10, side_m=600)

    with pytest.raises(ValueError, match="opened for squares of 600 m, these have 1200 m"):
        source.sample(HERE)


# -- Zarr ---------------------------------------------------------------------------------------------


def zarr_of(path, tiff, *, form="CF", dtype=None, encoding=None, **attrs):
    """The raster of a GeoTIFF as a Zarr store, its place said in one of the ways there are."""
    with rasterio.open(tiff) as file:
        pixels, transform, crs, names = (
            file.read(),
            file.transform,
            pyproj.CRS(file.crs.to_wkt()),
            file.descriptions,
        )
    pixels = pixels if dtype is None else pixels.astype(dtype)
    y = transform.f + transform.e * (np.arange(pixels.shape[1]) + 0.5)
    x = transform.c + transform.a * (np.arange(pixels.shape[2]) + 0.5)
    reference = {"spatial_ref": ((), 0, crs.to_cf())}
    options = {}
    match form:
        case "CF":
            stack = xr.Dataset({"height": (("y", "x"), pixels[0], attrs)}, {"y": y, "x": x, **reference})
            stack["height"].attrs["grid_mapping"] = "spatial_ref"
        case "CF without WKT":
            said = {key: value for key, value in crs.to_cf().items() if key != "crs_wkt"}
            stack = xr.Dataset(
                {"height": (("lat", "lon"), pixels[0], attrs)}, {"lat": y, "lon": x, "crs": ((), 0, said)}
            )
            stack["height"].attrs["grid_mapping"] = "crs"
        case "south up, Zarr 2":
            stack = xr.Dataset(
                {"height": (("latitude", "longitude"), pixels[0, ::-1], attrs)},
                {"latitude": y[::-1], "longitude": x, **reference},
            )
            options = {"zarr_format": 2}
        case "proj and spatial":
            place = {
                "proj:code": f"EPSG:{crs.to_epsg()}",
                "spatial:transform": list(transform)[:6],
                "spatial:dimensions": ["v", "u"],
            }
            stack = xr.Dataset({"height": (("v", "u"), pixels[0], attrs)}, attrs=place)
        case "GeoTransform":
            said = {"spatial_ref": crs.to_wkt(), "GeoTransform": " ".join(map(repr, transform.to_gdal()))}
            stack = xr.Dataset({"height": (("y", "x"), pixels[0], attrs)}, {"spatial_ref": ((), 0, said)})
        case "variables":
            stack = xr.Dataset(
                {name: (("y", "x"), plane, attrs) for name, plane in zip(names, pixels, strict=True)},
                {"y": y, "x": x, **reference},
            )
        case "planes":
            stack = xr.Dataset(
                {"all": (("band", "y", "x"), pixels, attrs)},
                {"y": y, "x": x, "band": np.array(names, object), **reference},
            )
    stack.to_zarr(path, encoding=encoding, **options)
    return path


FORMS = ("CF", "CF without WKT", "south up, Zarr 2", "proj and spatial", "GeoTransform")


@pytest.mark.parametrize("form", FORMS)
def test_a_zarr_store_gives_what_the_same_geotiff_gives(tmp_path, form):
    tiff = write(tmp_path / "noise.tif", noise())
    path = zarr_of(tmp_path / "noise.zarr", tiff, form=form)

    for resampling, pixel_m in [
        ("nearest", 10),
        ("bilinear", 10),
        ("average", 10),
        ("cubic", 400),
        ("lanczos", 400),
    ]:
        options = {"resampling": resampling, "pixel_m": pixel_m}
        source, want = open_raster(path, **options), open_raster(tiff, **options).sample(HERE)

        assert source.bands == ("height",)
        found = source.sample(HERE)

        np.testing.assert_array_equal(found.present, want.present)
        # A window's place is a sum, which rounds otherwise than the raster's own.
        np.testing.assert_allclose(found.pixels, want.pixels, rtol=2e-5, err_msg=f"{resampling} {pixel_m}")


@pytest.mark.parametrize("form", ["variables", "planes"])
def test_bands_of_a_zarr_store_are_variables_or_planes(tmp_path, form):
    tiff = write(tmp_path / "many.tif", np.stack([noise("int16", seed=n) for n in range(3)]))
    with rasterio.open(tiff, "r+") as file:
        file.descriptions = ("slope", "aspect", "height")
    path = zarr_of(tmp_path / "many.zarr", tiff, form=form)
    options = {"resampling": "nearest", "pixel_m": 10}

    found = open_raster(path, bands=["height", "slope"], **options).sample(HERE)

    assert sorted(open_raster(path, **options).bands) == ["aspect", "height", "slope"]
    want = open_raster(tiff, bands=["height", "slope"], **options).sample(HERE)
    np.testing.assert_array_equal(found.pixels, want.pixels)


def test_a_zarr_store_covers_what_it_covers(tmp_path):
    lon, _ = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True).transform(LEFT + 1800, TOP)
    tiff = write(
        tmp_path / "half.tif", noise("int16"), from_origin(lon - 0.25, LAT + 0.1, 1 / 1200, 1 / 1200)
    )
    hole = with_hole(tmp_path / "hole.tif", "nodata")
    options = {"resampling": "bilinear", "pixel_m": 10}

    half = open_raster(zarr_of(tmp_path / "half.zarr", tiff), **options)
    holed = open_raster(zarr_of(tmp_path / "hole.zarr", hole, _FillValue=np.uint8(255)), **options)

    assert half.sample(HERE).present.tolist() == (HERE.left == LEFT).tolist()
    assert half.sample(FAR).present.tolist() == [False, False, False]
    assert (holed.nodata, holed.sample(HERE).present.tolist()) == (255, [False] + [True] * 15)


def test_a_store_of_other_byte_order_is_read(tmp_path):
    tiff = write(tmp_path / "noise.tif", noise("int16"))
    path = zarr_of(tmp_path / "big.zarr", tiff, dtype=">i2", form="south up, Zarr 2")
    options = {"resampling": "nearest", "pixel_m": 10}

    np.testing.assert_array_equal(
        open_raster(path, **options).sample(HERE).pixels, open_raster(tiff, **options).sample(HERE).pixels
    )


def uneven(stack):
    x = stack.x.to_numpy().copy()
    x[100:] += 0.0001
    return stack.assign_coords(x=x)


BAD_STORES = {
    "no CRS": (lambda s: s.drop_vars("spatial_ref"), "says no CRS"),
    "a CRS of nobody": (
        lambda s: s.assign_coords(spatial_ref=((), 0, {"crs_wkt": "EPSG:1"})),
        "none that PROJ knows",
    ),
    "no place": (lambda s: s.drop_vars(["x", "y"]), "does not say where its pixels are"),
    "uneven": (uneven, "the coordinates along x are not evenly spaced"),
    "one column": (lambda s: s.isel(x=[0]), "x has 1 coordinate"),
    "no image": (lambda s: s.rename(y="time"), "none of its dimensions .* are those of an image"),
    "four dimensions": (lambda s: s.expand_dims(["a", "b"]), "must have images"),
    "scaled": (lambda s: s.assign(height=s.height.assign_attrs(scale_factor=0.1)), "band height has a scale"),
    "a flag": (lambda s: s.assign(height=s.height > 3), "values are bool"),
}


@pytest.mark.parametrize("case", BAD_STORES)
def test_a_zarr_store_without_a_clear_place_or_value_is_refused(tmp_path, case):
    change, message = BAD_STORES[case]
    good = zarr_of(tmp_path / "good.zarr", write(tmp_path / "noise.tif", noise()))
    with xr.open_zarr(good) as stack:
        changed = change(stack.load())
    for variable in changed.variables.values():
        variable.encoding.clear()
    changed.drop_encoding().to_zarr(tmp_path / "bad.zarr")

    with pytest.raises(SourceError, match=message) as caught:
        open_raster(tmp_path / "bad.zarr", resampling="nearest", pixel_m=10)

    assert "\n" not in str(caught.value)


def test_what_is_no_zarr_store_is_refused(tmp_path):
    (tmp_path / "empty.zarr").mkdir()

    with pytest.raises(SourceError, match=r"empty.zarr: not a Zarr store that xarray reads"):
        open_raster(tmp_path / "empty.zarr", resampling="nearest", pixel_m=10)


def test_a_file_url_is_a_path(tmp_path):
    path = write(tmp_path / "noise.tif", noise())

    source = open_raster(f"file://{path}", resampling="nearest", pixel_m=10)

    assert Path(source.path) == path
