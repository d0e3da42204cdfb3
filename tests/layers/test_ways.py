"""Layers made of rasters and folders, as they are read back: beside rasterio, patch by patch, and what is refused."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.shutil
import rioxarray
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT

import reben_cloud as rc
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify_layer
from reben_cloud.errors import ConflictError, InvalidPatchError, SourceError
from reben_cloud.layers import remove_layer
from reben_cloud.layers.squares import Squares
from reben_cloud.layers.ways import squares_of, write_folder_layer, write_raster_layer
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.store import open_store
from tests import benge
from tests.batches import samples
from tests.layers.data import NUM_PATCHES
from tests.layers.rasters import warped, write_tif
from tests.test_invented_root import Surveys, metadata_of

STEP = 0.02
"""Degrees along a pixel of the raster over all patches."""


def over_europe(path, *, east=32.0, count=1, dtype="int16", **options):
    """Noise from Portugal to `east`."""
    shape = (count, round(32 / STEP), round((east + 10) / STEP))
    pixels = np.random.default_rng(5).integers(1, 2000, shape).astype(dtype)
    return write_tif(path, pixels, from_origin(-10, 68.5, STEP, STEP), **options)


def contents(folder):
    """Path -> bytes of all that makes a layer, not what its making has left."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {path: data for path, data in found.items() if not path.startswith("_build/")}


def assert_not_published(folder):
    assert not (folder / "layer.json").exists()
    with pytest.raises(rc.NotFoundError):
        rc.open_layer(folder)


# -- rasters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resampling", "pixel_m"), [("bilinear", 10), ("nearest", 60), ("mode", 400)])
def test_a_raster_is_in_batches_what_rasterio_makes_of_it(root, ds, tmp_path, resampling, pixel_m):
    path = over_europe(tmp_path / "dem.tif")

    layer = write_raster_layer(
        tmp_path / "layer", ds, path, name="height", resampling=resampling, pixel_m=pixel_m, units="m",
        scratch=tmp_path,
    )  # fmt: skip

    assert layer.manifest.coverage == NUM_PATCHES
    assert layer.modality.tensors[0].units == "m"
    ids = ds.selection.patch_ids
    squares = Squares.of_patches(ids)
    found = samples(rc.open(root, layers=[layer.url]).search(), modalities=["height"])
    for row, patch_id in enumerate(ids):
        want = warped(path, squares[row], resampling=resampling, pixel_m=pixel_m)[0]
        np.testing.assert_array_equal(found[patch_id]["height"], want)
        assert found[patch_id]["height_present"]
    assert verify_layer(layer, root=ds, deep=True).problems == ()


def test_patches_that_a_raster_does_not_cover_are_absent(root, ds, tmp_path):
    path = over_europe(tmp_path / "dem.tif", east=20.0, nodata=-1)
    squares = squares_of(ds)

    layer = write_raster_layer(
        tmp_path / "layer", ds, path, name="height", resampling="nearest", pixel_m=60, scratch=tmp_path
    )

    found = samples(rc.open(root, layers=[layer]).search(), modalities=["height"])
    there = 0
    for row, patch_id in enumerate(ds.selection.patch_ids):
        want = warped(path, squares[row], resampling="nearest", pixel_m=60, src_nodata=-1, nodata=-1)[0]
        is_there = bool((want != -1).all())
        there += is_there
        assert found[patch_id]["height_present"] == is_there
        np.testing.assert_array_equal(found[patch_id]["height"], want if is_there else np.full_like(want, -1))
    assert layer.manifest.coverage == there
    assert 0 < there < NUM_PATCHES


def test_patches_in_part_are_kept_where_that_is_asked_for(root, ds, tmp_path):
    square = squares_of(ds)[0]
    pixels = np.full((60, 60), 7, np.uint8)  # the west half of the first patch, and what is north-west of it
    path = write_tif(
        tmp_path / "half.tif", pixels, from_origin(square.left, square.top, 10, 20), crs=f"EPSG:{square.epsg}",
        nodata=255,
    )  # fmt: skip
    options = {"name": "half", "resampling": "nearest", "pixel_m": 20, "scratch": tmp_path}

    with pytest.raises(SourceError, match=r"has no values for any of the 60 patches.*or any, with partial"):
        write_raster_layer(tmp_path / "none", ds, path, **options)
    layer = write_raster_layer(tmp_path / "layer", ds, path, partial=True, **options)

    assert_not_published(tmp_path / "none")
    found = samples(rc.open(root, layers=[layer]).search(), modalities=["half"])[ds.selection.patch_ids[0]]
    assert (found["half"][:, :30] == 7).all()
    assert (found["half"][:, 30:] == 255).all()
    assert layer.manifest.coverage == 1


def test_bands_are_tensors_of_one_array(root, ds, tmp_path):
    path = over_europe(tmp_path / "climate.tif", count=3, dtype="float32")
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("temperature", "2 m wind", "rain")

    layer = write_raster_layer(
        tmp_path / "layer", ds, path, name="era", resampling="bilinear", pixel_m=120, bands=["rain", "2 m wind"],
        scratch=tmp_path,
    )  # fmt: skip

    assert [tensor.name for tensor in layer.modality.tensors] == ["rain", "era_2_m_wind"]
    squares = squares_of(ds)
    found = samples(rc.open(root, layers=[layer]).search(), modalities=["era"])
    for row, patch_id in enumerate(ds.selection.patch_ids):
        want = warped(path, squares[row], resampling="bilinear", pixel_m=120)
        np.testing.assert_array_equal(found[patch_id]["era"], want[[2, 1]])


@pytest.mark.slow
def test_processes_make_the_same_layer(ds, tmp_path):
    path = over_europe(tmp_path / "dem.tif")
    options = {"name": "height", "resampling": "cubic", "pixel_m": 60, "scratch": tmp_path}

    write_raster_layer(tmp_path / "one", ds, path, workers=1, **options)
    write_raster_layer(tmp_path / "two", ds, path, workers=2, **options)

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def stopping_after(count, what):
    """A progress that ends the run after so many things of a kind; and the numbers of things it was told of."""
    told = []

    def progress(items, total, kind):
        told.append((kind, total))
        for number, item in enumerate(items):
            if kind == what and number == count:
                raise KeyboardInterrupt
            yield item

    return progress, told


@pytest.mark.parametrize(("what", "count"), [("patches", 25), ("shards", 2)])
def test_a_raster_that_was_interrupted_goes_on_where_it_was(ds, tmp_path, what, count):
    path = over_europe(tmp_path / "dem.tif")
    options = {"name": "height", "resampling": "bilinear", "pixel_m": 60, "scratch": tmp_path / "scratch"}
    write_raster_layer(tmp_path / "whole", ds, path, **options)

    with pytest.raises(KeyboardInterrupt):
        write_raster_layer(tmp_path / "layer", ds, path, progress=stopping_after(count, what)[0], **options)
    assert_not_published(tmp_path / "layer")
    progress, told = stopping_after(None, None)
    write_raster_layer(tmp_path / "layer", ds, path, progress=progress, **options)

    assert contents(tmp_path / "layer") == contents(tmp_path / "whole")
    asked = dict(told)
    assert asked.get("patches", 0) == (NUM_PATCHES - 25 if what == "patches" else 0)
    assert asked.get("shards", 0) <= (7 if what == "patches" else 5)
    assert not any((tmp_path / "scratch").iterdir())


def test_a_raster_that_was_written_again_is_another_layer(ds, tmp_path):
    path = over_europe(tmp_path / "dem.tif")
    options = {"name": "height", "resampling": "bilinear", "pixel_m": 120, "scratch": tmp_path / "scratch"}
    layer = write_raster_layer(tmp_path / "layer", ds, path, **options)

    assert write_raster_layer(tmp_path / "layer", ds, path, **options).manifest == layer.manifest
    with pytest.raises(ConflictError, match=r"with another schema; .*reben-cloud layer remove"):
        write_raster_layer(tmp_path / "layer", ds, path, **(options | {"pixel_m": 60}))
    over_europe(path, dtype="int16", nodata=0)
    with pytest.raises(ConflictError, match="with another provenance"):
        write_raster_layer(tmp_path / "layer", ds, path, **options)


def written_back(path, change):
    """Write other bytes of the same number to a file, and give it the time it had."""
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(change(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == len(data)


def last_flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("form", ["tif", "vrt", "zarr", "folder"])
def test_inputs_with_size_and_time_set_again_are_other_inputs(ds, dem, official, tmp_path, form):
    options = {"name": "height", "scratch": tmp_path / "scratch"}
    path = changed = over_europe(tmp_path / "dem.tif")
    if form == "vrt":
        path = tmp_path / "dem.vrt"
        with rasterio.open(changed) as file, WarpedVRT(file) as view:
            rasterio.shutil.copy(view, path, driver="VRT")
    elif form == "zarr":
        path = tmp_path / "dem.zarr"
        with rioxarray.open_rasterio(changed) as raster:
            raster.attrs.clear()
            raster.rename("dem").to_dataset().to_zarr(path, zarr_format=2)
        changed = path / "dem" / ".zarray"
    elif form == "folder":
        path, changed = dem, dem / tif_of(official, 0)

    def make():
        if form == "folder":
            return write_folder_layer(tmp_path / "layer", ds, path, allow_missing=3, **options)
        return write_raster_layer(tmp_path / "layer", ds, path, resampling="nearest", pixel_m=60, **options)

    layer = make()
    assert make().manifest == layer.manifest
    data = changed.read_bytes()
    if form == "zarr":  # which must stay JSON
        written_back(changed, lambda old: old.replace(b"{\n", b"{ ", 1))
    else:
        written_back(changed, last_flipped)
    assert changed.read_bytes() != data

    with pytest.raises(ConflictError, match="with another provenance"):
        make()


@pytest.mark.parametrize("form", ["raster", "folder"])
def test_inputs_that_change_while_a_layer_is_made_of_them_are_told(ds, dem, official, tmp_path, form):
    path = over_europe(tmp_path / "dem.tif") if form == "raster" else dem
    options = {"name": "height", "scratch": tmp_path / "scratch"}

    def progress(items, total, what):
        for number, item in enumerate(items):
            if what == "patches" and number == 30:
                written_back(path if form == "raster" else dem / tif_of(official, 0), last_flipped)
            yield item

    options |= {"progress": progress}
    options |= {"allow_missing": 3} if form == "folder" else {"resampling": "nearest", "pixel_m": 60}
    make = write_folder_layer if form == "folder" else write_raster_layer

    with pytest.raises(SourceError, match=r"changed while a layer was made of it; remove what was begun"):
        make(tmp_path / "layer", ds, path, **options)
    assert_not_published(tmp_path / "layer")


def test_a_table_that_changes_while_a_layer_is_made_of_it_is_told(ds, tmp_path):
    path = tmp_path / "climate.parquet"
    ids = ds.selection.patch_ids
    pq.write_table(pa.table({"patch_id": ids, "zone": list(range(len(ids)))}), path)

    def progress(items, total, what):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
        yield from items

    with pytest.raises(SourceError, match=r"climate.parquet changed while a layer was made of it"):
        rc.write_table(tmp_path / "layer", ds, table=path, name="climate", progress=progress)
    assert_not_published(tmp_path / "layer")


def test_rasters_that_cannot_be_placed_are_refused(ds, tmp_path):
    pixels = np.ones((50, 50), np.int16)
    elsewhere = write_tif(tmp_path / "elsewhere.tif", pixels, from_origin(-70, -20, 0.01, 0.01))
    without = write_tif(tmp_path / "without.tif", pixels, from_origin(5, 50, 0.1, 0.1), crs=None)
    (tmp_path / "broken.tif").write_bytes(b"no raster")
    options = {"name": "height", "resampling": "bilinear", "pixel_m": 10, "scratch": tmp_path / "scratch"}

    for path, message in (
        (without, "without.tif: says no CRS; give it one"),
        (elsewhere, "elsewhere.tif: has no values for any of the 60 patches: it lies elsewhere"),
        (tmp_path / "broken.tif", "broken.tif: cannot be read"),
    ):
        with pytest.raises(SourceError, match=message) as caught:
            write_raster_layer(tmp_path / path.stem, ds, path, **options)
        assert "\n" not in str(caught.value)
        assert_not_published(tmp_path / path.stem)
    with pytest.raises(FileNotFoundError, match=r"none.tif: no such raster"):
        write_raster_layer(tmp_path / "none", ds, tmp_path / "none.tif", **options)
    assert not (tmp_path / "none").exists()


# -- folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(ds):
    """The names of the patches as official metadata have them, in the order of the root."""
    columns = {"patch_id": "id", "s1_name": "reben:s1_name", "s2v1_name": "reben:s2v1_name"}
    return ds.selection.columns(list(columns.values())).rename_columns(list(columns))


@pytest.fixture(scope="module")
def ben_ge(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benge") / "ben-ge"
    benge.write_benge(folder, official, foreign=3)
    return folder


@pytest.fixture
def dem(ben_ge, tmp_path):
    return shutil.copytree(ben_ge / "dem", tmp_path / "dem")


def tif_of(official, row):
    return f"{official.column('s2v1_name')[row]}_dem.tif"


@pytest.mark.parametrize(
    ("kind", "dtype", "make"),
    [("dem", "int16", benge.dem), ("esaworldcover", "uint8", benge.worldcover)],
)
def test_folders_of_ben_ge_are_layers_by_the_names_of_version_1(
    root, ds, ben_ge, tmp_path, kind, dtype, make
):
    options = {"name": "x", "scratch": tmp_path / "scratch"}

    with pytest.raises(SourceError, match=r"3 of its 63 files are no s2v1_name of a patch .*allow_missing=3"):
        write_folder_layer(tmp_path / "layer", ds, ben_ge / kind, allow_missing=2, **options)
    assert not (tmp_path / "layer").exists()
    layer = write_folder_layer(tmp_path / "layer", ds, ben_ge / kind, allow_missing=3, **options)

    assert layer.manifest.coverage == NUM_PATCHES
    assert layer.manifest.provenance["key"] == "s2v1_name"
    found = samples(rc.open(root, layers=[layer]).search(), modalities=["x"])
    for row, patch_id in enumerate(ds.selection.patch_ids):
        assert found[patch_id]["x"].dtype == dtype
        np.testing.assert_array_equal(found[patch_id]["x"], make(row))


def test_patches_without_a_file_are_absent(root, ds, dem, official, tmp_path):
    gone = [0, 17, 59]
    for row in gone:
        (dem / tif_of(official, row)).unlink()

    layer = write_folder_layer(tmp_path / "layer", ds, dem, name="x", allow_missing=3, scratch=tmp_path / "s")

    ids = ds.selection.patch_ids
    found = samples(rc.open(root, layers=[layer]).search(), modalities=["x"])
    assert [row for row, i in enumerate(ids) if not found[i]["x_present"]] == gone
    assert all((found[ids[row]]["x"] == 0).all() for row in gone)


def test_a_folder_that_was_interrupted_goes_on_where_it_was(ds, dem, tmp_path):
    options = {"name": "x", "allow_missing": 3, "scratch": tmp_path / "scratch"}
    write_folder_layer(tmp_path / "whole", ds, dem, **options)

    with pytest.raises(KeyboardInterrupt):
        write_folder_layer(tmp_path / "layer", ds, dem, progress=stopping_after(40, "patches")[0], **options)
    assert_not_published(tmp_path / "layer")
    progress, told = stopping_after(None, None)
    write_folder_layer(tmp_path / "layer", ds, dem, progress=progress, **options)

    assert contents(tmp_path / "layer") == contents(tmp_path / "whole")
    assert dict(told)["patches"] == NUM_PATCHES - 40


def test_a_wrong_file_in_the_middle_publishes_nothing(ds, dem, official, tmp_path):
    square = squares_of(ds)[31]
    path = dem / tif_of(official, 31)
    right = path.read_bytes()
    place = from_origin(square.left, square.top, 10, 10)
    cases = {
        "dtype": (np.ones((120, 120), np.uint16), place, InvalidPatchError, r"must be int16 .* got uint16"),
        "place": (
            np.ones((120, 120), np.int16),
            from_origin(square.left + 1200, square.top, 10, 10),
            SourceError,
            "is it the file of another patch",
        ),
    }
    options = {"name": "x", "allow_missing": 3, "scratch": tmp_path / "scratch"}

    for case, (pixels, transform, kind, message) in cases.items():
        write_tif(path, pixels, transform, crs=f"EPSG:{square.epsg}")
        with pytest.raises(kind, match=message) as caught:
            write_folder_layer(tmp_path / case, ds, dem, **options)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert_not_published(tmp_path / case)
    path.write_bytes(right)
    with pytest.raises(ConflictError, match=r"another layer was begun there.*reben-cloud layer remove"):
        write_folder_layer(tmp_path / "dtype", ds, dem, **options)
    remove_layer(open_store(tmp_path / "dtype"))
    assert write_folder_layer(tmp_path / "dtype", ds, dem, **options).manifest.coverage == NUM_PATCHES


# -- another dataset --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reefs(tmp_path_factory):
    """A root of an invented dataset: patches of 600 m in two zones, one in the south."""
    folder = tmp_path_factory.mktemp("reefs") / "root"
    build(make_plan(Surveys(), metadata_of(), open_store(folder), options=PlacementOptions(shard_samples=8)))
    return rc.open(folder)


def test_squares_of_any_dataset_are_those_of_its_metadata(reefs):
    table = metadata_of().to_pandas().set_index("patch_id")

    squares = squares_of(reefs)

    assert squares.side_m == 600
    assert len(squares) == len(reefs)
    for row, patch_id in enumerate(reefs.selection.patch_ids):
        # x0 and y0 are the upper left corner, as in all tables of places
        assert tuple(squares[row]) == tuple(table.loc[patch_id, ["epsg", "x0", "y0"]])


def test_squares_of_bigearthnet_are_those_of_its_ids(ds):
    squares, theirs = squares_of(ds), Squares.of_patches(ds.selection.patch_ids)

    for row in range(len(squares)):
        assert squares[row] == theirs[row]


def test_a_raster_is_sampled_onto_the_patches_of_any_dataset(reefs, tmp_path):
    squares = squares_of(reefs)
    north = squares.epsg == 32633
    left, top = squares.left[north].min() - 500, squares.top[north].max() + 500
    pixels = np.random.default_rng(2).random((80, 1300)).astype(np.float32)
    path = write_tif(tmp_path / "waves.tif", pixels, from_origin(left, top, 25, 25), crs="EPSG:32633")

    layer = write_raster_layer(
        tmp_path / "layer", reefs, path, name="waves", resampling="bilinear", pixel_m=20, scratch=tmp_path
    )

    assert layer.manifest.coverage == north.sum() > 10
    found = samples(reefs.with_layers(layer).search(), modalities=["waves"])
    for row, patch_id in enumerate(reefs.selection.patch_ids):
        assert found[patch_id]["waves_present"] == north[row]
        if north[row]:
            want = warped(path, squares[row], resampling="bilinear", pixel_m=20, side_m=600)[0]
            np.testing.assert_array_equal(found[patch_id]["waves"], want)
        else:
            assert np.isnan(found[patch_id]["waves"]).all()


def test_a_folder_is_read_by_the_ids_of_any_dataset(reefs, tmp_path):
    squares, ids = squares_of(reefs), reefs.selection.patch_ids
    (tmp_path / "bed").mkdir()
    for row, patch_id in enumerate(ids):
        place = from_origin(squares[row].left, squares[row].top, 20, 20)
        pixels = np.full((2, 30, 30), row, np.uint8)
        write_tif(tmp_path / f"bed/{patch_id}.tif", pixels, place, crs=f"EPSG:{squares[row].epsg}")

    layer = write_folder_layer(
        tmp_path / "layer", reefs, tmp_path / "bed", name="sonar", scratch=tmp_path / "s"
    )

    found = samples(reefs.with_layers(layer).search(), modalities=["sonar"])
    assert [int(found[i]["sonar"].max()) for i in ids] == list(range(len(ids)))
    assert {found[i]["sonar"].shape for i in ids} == {(2, 30, 30)}
