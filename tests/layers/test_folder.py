"""Folders with a GeoTIFF per patch: whose names they have, where they lie, and what is refused."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pandas as pd
import pyarrow.csv
import pyproj
import pytest
import rasterio
from rasterio.transform import Affine, from_origin

from reben_cloud.errors import InvalidPatchError, NotFoundError, SourceError
from reben_cloud.layers.folder import TOLERANCE_M, open_folder
from reben_cloud.layers.squares import Squares
from tests import benge
from tests.official import table_of

TABLE = table_of(12)
KEYS = {column: TABLE.column(column).to_pylist() for column in ("patch_id", "s1_name", "s2v1_name")}
SQUARES = Squares.of_patches(KEYS["patch_id"])


def opened(folder, **options):
    return open_folder(folder, KEYS, SQUARES, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benge") / "ben-ge"
    benge.write_benge(folder, TABLE, foreign=3)
    return folder


@pytest.fixture
def dem(made, tmp_path):
    """A copy of ben-ge's elevations, to be changed."""
    return shutil.copytree(made / "dem", tmp_path / "dem")


def file_of(row, *, key="s2v1_name", suffix="_dem"):
    return f"{KEYS[key][row]}{suffix}.tif"


def write(path, row, pixels=None, *, dtype="int16", crs=None, transform=None, shape=(1, 120, 120), **options):
    pixels = np.full(shape, row, dtype) if pixels is None else pixels
    square = SQUARES[row]
    pixel_m = 1200 / pixels.shape[1]
    with rasterio.open(
        path, "w", driver="GTiff", count=pixels.shape[0], height=pixels.shape[1], width=pixels.shape[2],
        dtype=pixels.dtype.name, crs=crs or f"EPSG:{square.epsg}",
        transform=transform or from_origin(square.left, square.top, pixel_m, pixel_m), **options,
    ) as file:  # fmt: skip
        file.write(pixels)


# -- ben-ge as it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype", "make"),
    [("dem", "int16", benge.dem), ("esaworldcover", "uint8", benge.worldcover)],
)
def test_rasters_of_ben_ge_are_found_by_their_v1_names(made, kind, dtype, make):
    source = opened(made / kind)

    assert (source.key, source.suffix, source.dtype, source.shape, source.pixel_m) == (
        "s2v1_name", f"_{kind}", dtype, (1, 120, 120), 10,
    )  # fmt: skip
    assert (len(source), source.num_unknown, source.num_left_out) == (12, 3, 0)
    assert source.first_unknown == f"S2A_MSIL2A_20170613T94132_0_0_{kind}.tif"
    found = list(source)
    assert [row for row, _ in found] == list(range(12))
    for row, pixels in found:
        np.testing.assert_array_equal(pixels, make(row)[None])
    assert list(pickle.loads(pickle.dumps(source)).read(5).flat) == list(make(5).flat)


def test_tables_of_ben_ge_have_its_columns_and_places(made):
    table = {kind: pyarrow.csv.read_csv(made / f"ben-ge_{kind}.csv") for kind in (
        "meta", "climatezones", "era-5", "esaworldcover")}  # fmt: skip

    assert table["meta"].column_names == [
        "patch_id", "patch_id_s1", "timestamp_s2", "timestamp_s1", "season_s2", "season_s1", "lon", "lat",
    ]  # fmt: skip
    assert table["climatezones"].column_names == ["patch_id", "climatezone"]
    assert table["era-5"].column_names == [
        "patch_id", "patch_id_s1", "atmpressure_level", "temperature_s2", "temperature_s1", "wind-u_s2", "wind-u_s1",
        "wind-v_s2", "wind-v_s1", "relhumidity_s2", "relhumidity_s1",
    ]  # fmt: skip
    assert len(table["esaworldcover"].column_names) == 12
    cover = table["esaworldcover"].to_pandas().set_index("patch_id")
    np.testing.assert_allclose(cover.sum(axis=1), 1)
    np.testing.assert_allclose(cover.iloc[3, 0], (benge.worldcover(3) == 10).mean())
    meta = table["meta"].to_pandas()
    assert meta["patch_id"][:12].tolist() == KEYS["s2v1_name"]
    to_lonlat = pyproj.Transformer.from_crs(SQUARES[4].epsg, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(SQUARES[4].left + 600, SQUARES[4].top - 600)
    np.testing.assert_allclose(meta.loc[4, ["lon", "lat"]].astype(float), [lon, lat])
    splits = [pd.read_csv(path, header=None)[0] for path in sorted((made / "splits").iterdir())]
    assert sorted(pd.concat(splits)) == sorted(meta["patch_id"])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("suffix", ["", "_dem", "_land_cover"])
def test_names_may_be_of_any_column_with_any_suffix(tmp_path, key, suffix):
    for row in (7, 2, 9):
        write(tmp_path / file_of(row, key=key, suffix=suffix), row)

    source = opened(tmp_path)

    assert (source.key, source.suffix) == (key, suffix)
    assert {row: int(pixels.max()) for row, pixels in source} == {2: 2, 7: 7, 9: 9}


def test_a_name_that_begins_like_another_is_not_taken_for_it(tmp_path):
    keys = {"id": ["a_1", "a_1_1", "a_11"]}
    for row in range(3):
        write(tmp_path / f"{keys['id'][row]}_x.tif", row)
    squares = Squares(epsg=SQUARES.epsg[:3], left=SQUARES.left[:3], top=SQUARES.top[:3], side_m=1200)

    with pytest.raises(SourceError, match=r"fit in 2 ways \(3 are id and '_x'; 1 are id and '_1_x'\)"):
        open_folder(tmp_path, keys, squares)

    assert list(open_folder(tmp_path, keys, squares, suffix="_x").rows) == [0, 1, 2]


def test_clutter_is_passed_over_and_what_else_is_there_is_counted(dem):
    (dem / "._x_dem.tif").write_bytes(b"\0")
    (dem / "Thumbs.db").write_bytes(b"")
    (dem / "README.txt").write_text("")
    (dem / "old").mkdir()
    (dem / "legend.tif").write_bytes(b"")

    source = opened(dem)

    assert (len(source), source.num_left_out) == (12, 3)


def test_several_suffixes_are_refused_until_one_is_named(dem, made):
    for path in (made / "esaworldcover").glob("S2*_esaworldcover.tif"):
        shutil.copy(path, dem)
    (dem / file_of(0)).unlink()

    message = r"in 2 ways \(12 are s2v1_name and '_esaworldcover'; 11 are s2v1_name and '_dem'\); say which .*suffix"
    with pytest.raises(SourceError, match=message):
        opened(dem)

    source = opened(dem, suffix="_dem")
    assert (len(source), source.num_unknown, source.num_left_out) == (11, 3, 15)


def test_several_columns_are_refused_until_one_is_named(tmp_path):
    write(tmp_path / file_of(1), 1)
    write(tmp_path / file_of(2, key="patch_id"), 2)

    with pytest.raises(
        SourceError, match=r"1 are patch_id and '_dem'; 1 are s2v1_name and '_dem'\); say which"
    ):
        opened(tmp_path)

    source = opened(tmp_path, key="patch_id")
    assert (list(source.rows), source.num_unknown) == ([2], 1)
    with pytest.raises(ValueError, match="must be one of patch_id, s1_name, s2v1_name, got 'id'"):
        opened(tmp_path, key="id")


def test_two_files_of_one_patch_are_refused(dem):
    for row in (3, 5):
        shutil.copy(dem / file_of(row), dem / file_of(row).replace(".tif", ".TIFF"))

    with pytest.raises(
        SourceError, match=r"2 patches have several files, the first .*\.TIFF and .*\.tif; keep one"
    ):
        opened(dem)


def test_a_name_of_several_patches_is_refused(tmp_path):
    write(tmp_path / "scene_dem.tif", 0)
    write(tmp_path / "other_dem.tif", 2)
    keys = {"s1_name": ["scene", "scene", "other", *[""] * 9]}

    with pytest.raises(
        SourceError, match="1 of its names are s1_name of several patches each; the first is scene_dem"
    ):
        open_folder(tmp_path, keys, SQUARES)


def test_a_folder_without_names_of_patches_is_refused(tmp_path, made):
    for name in ("b.tif", "a_1.tif"):
        write(tmp_path / name, 0)

    with pytest.raises(
        SourceError, match=r"none of its 2 GeoTIFFs .*\(patch_id or s1_name or s2v1_name\).* a_1.tif"
    ):
        opened(tmp_path)
    with pytest.raises(SourceError, match=r"\(patch_id or s1_name or s2v1_name and '_height'\)"):
        opened(made / "dem", suffix="_height")


def test_a_folder_without_geotiffs_says_where_they_may_be(made, tmp_path):
    with pytest.raises(
        NotFoundError, match=r"no GeoTIFF.*folders in it \(dem, esaworldcover, splits\): name one"
    ):
        opened(made)
    with pytest.raises(NotFoundError, match="no such folder"):
        opened(tmp_path / "none")


# -- what is in the files --------------------------------------------------------------------------------


FORMS = {
    "dtype": ({"dtype": "uint16"}, "must be int16 of shape .* got uint16"),
    "pixels": ({"shape": (1, 60, 60)}, r"got int16 of shape \(1, 60, 60\)"),
    "bands": ({"shape": (2, 120, 120)}, r"got int16 of shape \(2, 120, 120\)"),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_file_of_another_form_is_refused(dem, case):
    change, message = FORMS[case]
    write(dem / file_of(4), 4, **change)
    source = opened(dem)

    with pytest.raises(InvalidPatchError, match=message) as caught:
        list(source)

    assert file_of(4) in str(caught.value)
    assert file_of(0) in str(caught.value)


def said(path, *, bands=None, scale=None, mask=None):
    """Say something of the values of a file that is there."""
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        if bands is not None:
            file.descriptions = bands
        if scale is not None:
            file.scales, file.offsets = [scale[0]] * file.count, [scale[1]] * file.count
        if mask is not None:
            file.write_mask(mask)


@pytest.mark.parametrize(
    ("first", "fourth"),
    [(None, -9999), (-9999, None), (-9999, -32768), (0, None)],
    ids=["only the fourth", "only the first", "two values", "zero"],
)
def test_files_with_other_nodata_values_are_refused(tmp_path, first, fourth):
    write(tmp_path / file_of(0), 0, nodata=first)
    write(tmp_path / file_of(4), 4, nodata=fourth)
    there = first if first is None else float(first)

    with pytest.raises(
        InvalidPatchError, match=rf"{file_of(4)}: must have .* nodata {there} as {file_of(0)} has"
    ):
        list(opened(tmp_path))


def test_nan_is_the_same_nodata_value_as_nan(tmp_path):
    for row in (0, 4):
        write(tmp_path / file_of(row), row, dtype="float32", nodata=np.nan)

    assert len(list(opened(tmp_path))) == 2


@pytest.mark.parametrize("bands", [("slope", "height"), ("height", "")], ids=["turned", "one without"])
def test_files_with_bands_in_another_order_are_refused(tmp_path, bands):
    for row in (0, 4):
        write(tmp_path / file_of(row), row, shape=(2, 120, 120))
    said(tmp_path / file_of(0), bands=("height", "slope"))
    said(tmp_path / file_of(4), bands=bands)

    with pytest.raises(InvalidPatchError, match=rf"must have the bands \('height', 'slope'\) .*{file_of(0)}"):
        list(opened(tmp_path))


@pytest.mark.parametrize("row", [0, 4], ids=["the first", "another"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"scale": (0.01, 0)}, "has a scale or an offset", id="scale"),
        pytest.param({"scale": (1, -273.15)}, "has a scale or an offset", id="offset"),
        pytest.param({"mask": np.eye(120, dtype=bool)}, "has a mask", id="mask"),
    ],
)
def test_what_a_layer_does_not_carry_is_refused(tmp_path, row, change, message):
    for one in (0, 4):
        write(tmp_path / file_of(one), one)
    said(tmp_path / file_of(row), **change)

    with pytest.raises(SourceError, match=rf"{file_of(row)}: {message}.*gdal_translate"):
        list(opened(tmp_path))


LEFT, TOP = SQUARES[4].left, SQUARES[4].top
ANOTHER = "is it the file of another patch"
PLACES = {
    "a neighbour's": (
        {"transform": from_origin(LEFT + 1200, TOP, 10, 10)},
        "is it the file of another patch",
    ),
    "a pixel off": ({"transform": from_origin(LEFT, TOP + 10, 10, 10)}, ANOTHER),
    "a little off": (
        {"transform": from_origin(LEFT + 2 * TOLERANCE_M, TOP, 10, 10)},
        "is it the file of another patch",
    ),
    "other pixels": ({"transform": from_origin(LEFT, TOP, 10.01, 10)}, ANOTHER),
    "south up": ({"transform": Affine(10, 0, LEFT, 0, 10, TOP - 1200)}, ANOTHER),
    "rotated": ({"transform": Affine(10, 1e-6, LEFT, 0, -10, TOP)}, ANOTHER),
    "another zone": ({"crs": "EPSG:32601"}, r"is in EPSG:32601, its patch lies in EPSG:\d+"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_file_of_another_place_is_refused(dem, case):
    change, message = PLACES[case]
    write(dem / file_of(4), 4, **change)
    source = opened(dem)

    with pytest.raises(SourceError, match=message) as caught:
        list(source)

    assert str(caught.value).startswith(str(dem / file_of(4)))


def test_a_file_within_the_tolerance_is_taken(dem):
    off = 0.9 * TOLERANCE_M
    write(dem / file_of(4), 4, transform=from_origin(LEFT - off, TOP + off, 10, 10))

    assert int(opened(dem).read(4).max()) == 4


def test_a_file_without_a_place_is_refused(dem):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write(dem / file_of(4), 4, transform=Affine.identity())
    source = opened(dem)

    with pytest.raises(SourceError, match="does not say where its pixels are"):
        source.read(4)


def test_a_damaged_file_is_refused(dem):
    source = opened(dem)
    path = dem / file_of(4)
    path.write_bytes(path.read_bytes()[:9000])

    with pytest.raises(SourceError, match=rf"{file_of(4)}: cannot be read \("):
        source.read(4)


def test_the_first_file_must_be_a_square_of_pixels(tmp_path):
    write(tmp_path / file_of(0), 0, shape=(1, 120, 60))

    with pytest.raises(SourceError, match="120 x 60 pixels, must be as many down as across"):
        opened(tmp_path)


def test_nodata_is_what_the_files_say(tmp_path, made):
    write(tmp_path / file_of(0), 0, nodata=-32768)

    assert opened(tmp_path).nodata == -32768
    assert opened(made / "dem").nodata is None
