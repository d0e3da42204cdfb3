"""Every form of TIFF that is read at all is read right, and refused where it is another patch's."""

import io
import itertools

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile
from rasterio.transform import Affine, from_origin

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import InvalidPatchError, SourceError
from reben_cloud.formats.geotiff_decode import read_pixels
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from tests import official

PATCH = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
EPSG, MINX, _, MAXX, MAXY = FOOTPRINT = grid.footprint(PATCH)

FORMS = {
    "strips": {},
    "other strips": {"blockysize": 7},
    "one strip": {"blockysize": 120},
    "deflate": {"compress": "deflate"},
    "deflate, predictor": {"compress": "deflate", "predictor": 2, "blockysize": 16},
    "lzw, predictor": {"compress": "lzw", "predictor": 2},
    "packbits": {"compress": "packbits"},
    "zstd": {"compress": "zstd"},
    "lzma": {"compress": "lzma"},
    "tiles": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "one tile": {"tiled": True, "blockxsize": 128, "blockysize": 128},
    "tiles, deflate": {"tiled": True, "blockxsize": 32, "blockysize": 48, "compress": "deflate", "predictor": 2},
    "bands apart": {"interleave": "band"},
    "BigTIFF": {"BIGTIFF": "YES"},
    "BigTIFF, big-endian": {"BIGTIFF": "YES", "ENDIANNESS": "BIG"},
    "big-endian": {"ENDIANNESS": "BIG"},
    "big-endian, deflate, predictor": {"ENDIANNESS": "BIG", "compress": "deflate", "predictor": 2},
    "BigTIFF, tiles": {"BIGTIFF": "YES", "tiled": True, "blockxsize": 64, "blockysize": 64},
    "cloud-optimised": {"driver": "COG", "compress": "deflate"},
    "GeoTIFF 1.1": {"GEOTIFF_VERSION": "1.1"},
    "pixel is point": {"AREA_OR_POINT": "Point"},
    "pixel is point, tiles": {"AREA_OR_POINT": "Point", "tiled": True, "blockxsize": 64, "blockysize": 64},
}  # fmt: skip

HERE = {"crs": "EPSG:32633", "transform": from_origin(MINX, MAXY, 10, 10)}

WRONG = {
    "a neighbour": ({"transform": from_origin(MINX + 1200, MAXY, 10, 10)}, "upper left corner is .* another patch"),
    "half a pixel": ({"transform": from_origin(MINX + 5, MAXY - 5, 10, 10)}, "upper left corner"),
    "another zone": ({"crs": "EPSG:32634"}, "is in EPSG:32634, the patch lies in EPSG:32633"),
    "the other hemisphere": ({"crs": "EPSG:32733"}, "is in EPSG:32733, the patch lies in EPSG:32633"),
    "another datum": ({"crs": "EPSG:25833"}, "is in EPSG:25833"),
    "pixels of 20 m": ({"transform": from_origin(MINX, MAXY, 20, 20)}, "a pixel is 20 x 20 m, must be 10 x 10"),
    "south up": ({"transform": Affine(10, 0, MINX, 0, 10, MAXY - 1200)}, "a pixel is 10 x -10 m|must be 10 x 10"),
    "turned": ({"transform": Affine(0, 10, MINX, -10, 0, MAXY)}, "must be 10 x 10"),
    "in degrees": ({"crs": "EPSG:4326", "transform": from_origin(12, 48, 1e-4, 1e-4)}, "does not say its CRS"),
    "no CRS": ({"crs": None}, "does not say its CRS|does not say its place"),
    "no place": ({"transform": None}, "does not say its place"),
    "neither": ({"crs": None, "transform": None}, "does not say its place"),
}  # fmt: skip


# GDAL's COG driver turns such images.
PAIRS = [
    (form, wrong)
    for form, wrong in itertools.product(FORMS, WRONG)
    if not (form == "cloud-optimised" and wrong in ("south up", "turned"))
]


def tiff(array, options=None, place=None):
    """A TIFF that GDAL writes with these options at this place."""
    options = dict(options or {})
    point = options.pop("AREA_OR_POINT", None)
    given = {k: v for k, v in {**HERE, **(place or {})}.items() if v is not None}
    driver = options.pop("driver", "GTiff")
    size = {"height": array.shape[0], "width": array.shape[1], "count": 1, "dtype": array.dtype.name}
    with MemoryFile() as memory:
        with memory.open(driver=driver, **size, **given, **options) as file:
            if point:
                file.update_tags(AREA_OR_POINT=point)
            file.write(array, 1)
        return bytes(memory.read())


def pixels_of(array=None):
    rng = np.random.default_rng(3)
    return rng.integers(1, 9999, (120, 120)).astype(np.uint16) if array is None else array


def read(data, band="B02", modality="s2"):
    tensor = REBEN.modality(modality).places[band]
    return np.frombuffer(read_pixels(data, tensor, FOOTPRINT, name="file"), tensor.dtype).reshape(
        tensor.shape
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form):
    array = pixels_of()

    np.testing.assert_array_equal(read(tiff(array, FORMS[form])), array)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("form", "wrong"), PAIRS)
def test_every_form_is_refused_elsewhere(form, wrong):
    place, message = WRONG[wrong]
    data = tiff(pixels_of(), FORMS[form], place)
    # A good file of the same form first: what is remembered of it must not vouch for this one.
    read(tiff(pixels_of(), FORMS[form]))

    with pytest.raises(SourceError, match=message):
        read(data)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "ENDIANNESS": st.sampled_from(["LITTLE", "BIG"]),
            "BIGTIFF": st.sampled_from(["YES", "NO"]),
            "compress": st.sampled_from(["deflate", "lzw", "zstd", "packbits"]),
            "AREA_OR_POINT": st.sampled_from(["Area", "Point"]),
            "GEOTIFF_VERSION": st.sampled_from(["1.0", "1.1"]),
        },
    ),
    blocks=st.one_of(
        st.fixed_dictionaries({"blockysize": st.integers(1, 120)}),
        st.fixed_dictionaries(
            {
                "tiled": st.just(True),
                "blockxsize": st.sampled_from([16, 64, 128]),
                "blockysize": st.sampled_from([16, 48]),
            }
        ),
    ),
    east=st.integers(-3, 3),
    south=st.integers(-3, 3),
    zone=st.sampled_from([32633, 32633, 32632]),
    dtype=st.sampled_from(["uint16", "float32"]),
)
def test_a_file_is_taken_at_its_place_and_nowhere_else(options, blocks, east, south, zone, dtype):
    array = pixels_of().astype(dtype)
    place = {"transform": from_origin(MINX + 1200 * east, MAXY - 1200 * south, 10, 10), "crs": f"EPSG:{zone}"}
    data = tiff(array, {**options, **blocks}, place)
    band = ("B02", "s2") if dtype == "uint16" else ("VV", "s1")

    if (east, south, zone) == (0, 0, EPSG):
        np.testing.assert_array_equal(read(data, *band), array)
    else:
        with pytest.raises(SourceError):
            read(data, *band)


def matrix_tiff(matrix, keys=(1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), **options):
    """A TIFF whose place is a transformation, which GDAL writes of turned images only."""
    out = io.BytesIO()
    tags = [(34264, "d", 16, tuple(map(float, matrix)), True), (34735, "H", len(keys), keys, True)]
    tifffile.imwrite(out, pixels_of(), extratags=tags, photometric="minisblack", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    "options",
    [{}, {"tile": (64, 64)}, {"byteorder": ">"}, {"bigtiff": True}, {"compression": "zlib", "rowsperstrip": 40}],
)  # fmt: skip
def test_a_transformation_is_a_place(options):
    here = [10, 0, 0, MINX, 0, -10, 0, MAXY, 0, 0, 0, 0, 0, 0, 0, 1]
    there = [10, 0, 0, MINX, 0, -10, 0, MAXY - 1200, 0, 0, 0, 0, 0, 0, 0, 1]
    turned = [10, 1, 0, MINX, 1, -10, 0, MAXY, 0, 0, 0, 0, 0, 0, 0, 1]

    np.testing.assert_array_equal(read(matrix_tiff(here, **options)), pixels_of())
    with pytest.raises(SourceError, match="upper left corner"):
        read(matrix_tiff(there, **options))
    with pytest.raises(SourceError, match="must be 10 x 10"):
        read(matrix_tiff(turned, **options))


def test_a_tie_point_may_be_any_pixel():
    def tied(column, row, x, y):
        out = io.BytesIO()
        keys = (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)
        tags = [
            (33550, "d", 3, (10.0, 10.0, 0.0), True),
            (33922, "d", 6, (float(column), float(row), 0.0, float(x), float(y), 0.0), True),
            (34735, "H", len(keys), keys, True),
        ]
        tifffile.imwrite(out, pixels_of(), extratags=tags, photometric="minisblack")
        return out.getvalue()

    np.testing.assert_array_equal(read(tied(60, 60, MINX + 600, MAXY - 600)), pixels_of())
    with pytest.raises(SourceError, match="upper left corner"):
        read(tied(60, 60, MINX, MAXY))


def test_a_zone_may_be_named_by_its_projection():
    here = [10, 0, 0, MINX, 0, -10, 0, MAXY, 0, 0, 0, 0, 0, 0, 0, 1]

    def keys(projection, datum=4326):
        return (1, 1, 0, 4, 1024, 0, 1, 1, 2048, 0, 1, datum, 3072, 0, 1, 32767, 3074, 0, 1, projection)

    np.testing.assert_array_equal(read(matrix_tiff(here, keys(16033))), pixels_of())
    with pytest.raises(SourceError, match="is in EPSG:32733, the patch"):
        read(matrix_tiff(here, keys(16133)))
    with pytest.raises(SourceError, match="does not say its CRS"):
        read(matrix_tiff(here, keys(16033, datum=4258)))


def test_rows_that_run_another_way_are_refused():
    data = bytearray(matrix_tiff([10, 0, 0, MINX, 0, -10, 0, MAXY, 0, 0, 0, 0, 0, 0, 0, 1]))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        entry = file.pages[0].tags["SamplesPerPixel"].offset
    # The number of samples is 1 where the tag is missing: its entry can be the orientation's.
    data[entry : entry + 2] = (274).to_bytes(2, "little")
    data[entry + 8] = 4

    with pytest.raises(SourceError, match=r"first row is not the northern one \(orientation 4\)"):
        read(bytes(data))


def test_another_zone_is_noticed_where_the_keys_have_another_order():
    # As many keys as in the file before it, so that all before them is equal.
    here = [10, 0, 0, MINX, 0, -10, 0, MAXY, 0, 0, 0, 0, 0, 0, 0, 1]
    read(matrix_tiff(here))
    other = (1, 1, 0, 3, 3072, 0, 1, 32634, 1024, 0, 1, 1, 1025, 0, 1, 1)

    with pytest.raises(SourceError, match="EPSG:32634"):
        read(matrix_tiff(here, other))


@pytest.mark.parametrize("form", ["strips", "tiles", "BigTIFF", "big-endian", "deflate, predictor"])
def test_damage_to_any_form_never_ends_in_another_error(form):
    good = tiff(pixels_of(), FORMS[form])
    rng = np.random.default_rng(5)
    for _ in range(150):
        data = bytearray(good)
        for at in rng.integers(0, min(len(data), 700), 3):
            data[at] = rng.integers(0, 256)
        try:
            assert read(bytes(data[: rng.integers(1, len(data) + 1)])).shape == (120, 120)
        except (SourceError, InvalidPatchError):
            continue


@pytest.mark.parametrize("form", ["tiles", "BigTIFF", "lzw, predictor", "big-endian"])
def test_another_patchs_band_stops_the_build_and_is_found_by_verify(form, tmp_path):
    official.write_folders(tmp_path / "in", official.table_of(4))
    source, table = open_source(tmp_path / "in")
    build(make_plan(source, table, open_store(tmp_path / "good")))
    mine, other = sorted((tmp_path / "in").rglob("*_B04.tif"))[:2]
    with rasterio.open(other) as image:
        array, place = image.read(1), {"crs": image.crs, "transform": image.transform}
    mine.write_bytes(tiff(array, FORMS[form], place))

    with pytest.raises(SourceError, match=f"{mine.name}: its upper left corner .* another patch"):
        build(make_plan(source, table, open_store(tmp_path / "root")))
    (found,) = verify(rc.open(tmp_path / "good"), deep=True, against=source).problems
    assert mine.name in found
    assert "another patch" in found


# -- what a file says of its own pixels --------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nodata", [65535, 7, 10_000])
def test_pixels_that_are_nodata_by_what_the_file_says_are_refused_in_every_form(form, nodata):
    array = pixels_of()
    array[array == nodata] = 1
    np.testing.assert_array_equal(read(tiff(array, FORMS[form], {"nodata": nodata})), array)
    array[3, 4] = nodata

    with pytest.raises(InvalidPatchError, match=f"file: 1 pixel is {nodata:g}, which it says stands for"):
        read(tiff(array, FORMS[form], {"nodata": nodata}))


@pytest.mark.parametrize("nodata", [-9999, -3.4028234663852886e38, np.nan, np.inf])
def test_decibels_that_are_nodata_by_what_the_file_says_are_refused(nodata):
    array = np.full((120, 120), -12, np.float32)
    assert (read(tiff(array, place={"nodata": nodata}), "VV", "s1") == -12).all()
    array[3, 4] = nodata

    with pytest.raises(InvalidPatchError, match=r"1 pixel is .*, which it says stands for nodata"):
        read(tiff(array, place={"nodata": nodata}), "VV", "s1")


def test_one_file_that_is_like_another_may_have_another_nodata_value():
    # What is learned of a file is used for those that begin like it; this text stands behind that.
    array = pixels_of()
    array[3, 4] = 12_345
    np.testing.assert_array_equal(read(tiff(array, place={"nodata": 54_321})), array)

    with pytest.raises(InvalidPatchError, match="1 pixel is 12345"):
        read(tiff(array, place={"nodata": 12_345}))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "cloud-optimised"])
@pytest.mark.parametrize("modality", ["s2", "map"])
def test_a_file_with_a_mask_is_refused_in_every_form(form, modality):
    array = pixels_of()
    options = {name: value for name, value in FORMS[form].items() if name != "AREA_OR_POINT"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=120, width=120, count=1, dtype="uint16", **HERE, **options
        ) as file:
            file.write(array, 1)
            file.write_mask(np.eye(120, dtype=bool))
        data = bytes(memory.read())

    with pytest.raises(SourceError, match="file: has a mask, which a patch cannot have"):
        read(data, "B02" if modality == "s2" else "Data", modality)


@pytest.mark.parametrize("form", ["strips", "tiles", "BigTIFF", "big-endian"])
def test_overviews_are_no_mask(form):
    array = pixels_of()
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=120, width=120, count=1, dtype="uint16", **HERE, **FORMS[form]
        ) as file:
            file.write(array, 1)
            file.build_overviews([2, 4], rasterio.enums.Resampling.average)
        data = bytes(memory.read())

    np.testing.assert_array_equal(read(data), array)
