"""Rasters given to `prepare` become the layers that `layer raster` makes of the finished root, byte for byte."""

import json

import numpy as np
import pyproj
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.errors import ConflictError
from reben_cloud.scenes.further import FurtherRaster, layer_url, parse_rasters
from reben_cloud.store import open_store
from tests.commands import invoke as command
from tests.scenes import PRODUCT, make_landscape

PATCHES = 3


@pytest.fixture(scope="module")
def landscape(tmp_path_factory):
    """Sentinel's, and beside it heights in degrees, an image of four bands in another zone, and water or not."""
    folder = make_landscape(tmp_path_factory.mktemp("landscape"), patches=PATCHES)
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])
    side = PATCHES * 1200
    west, north = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform(left, top)
    y, x = np.indices((200, 300), dtype=np.float32)
    write(folder / "dem.tif", (400 + 3 * y + np.sin(x))[None], "EPSG:4326", west - 0.01, north + 0.01, 0.0003)
    to_other = pyproj.Transformer.from_crs(epsg, 32632, always_xy=True).transform
    east, up = to_other(left, top)
    y, x = np.indices((240, 240))
    image = np.stack([7_000 + 100 * band + y + x for band in range(4)]).astype(np.uint16)
    write(folder / "landsat.tif", image, "EPSG:32632", east - 1500, up + 1500, 30, ("B2", "B3", "B4", "B5"))
    y, x = np.indices((side // 20, side // 40))
    # The western half alone.
    write(
        folder / "water.tif",
        ((y // 30 + x // 30) % 2 + 1).astype(np.uint8)[None],
        f"EPSG:{epsg}",
        left,
        top,
        20,
    )
    return folder


def write(path, pixels, crs, left, top, pixel, names=()):
    with rasterio.open(
        path, "w", driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2], crs=crs,
        dtype=pixels.dtype, transform=from_origin(left, top, pixel, pixel), nodata=0,
    ) as file:  # fmt: skip
        file.write(pixels)
        if names:
            file.descriptions = names


def prepare(landscape, *more):
    given = ["--s2", landscape / "s2", "--s1", landscape / "s1", "--clc", landscape / "clc.gpkg"]
    return command("prepare", *given, *more)


def layers_of(landscape):
    return [
        "--layer", f"dem={landscape / 'dem.tif'}", "--layer", f"landsat={landscape / 'landsat.tif'}",
        "--layer", f"water={landscape / 'water.tif'}", "--layer-resampling", "water=nearest",
        "--layer-pixel", "water=20", "--layer-pixel", "landsat=30", "--layer-resampling", "landsat=cubic",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(landscape, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return folder, prepare(landscape, "--root", folder / "root", *layers_of(landscape))


def objects(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "_build" not in path.parts
    }


@pytest.mark.slow
def test_each_is_the_layer_that_the_finished_root_would_get(landscape, made, tmp_path):
    folder, done = made
    assert done.exit_code == 0, done.exception
    alone = prepare(landscape, "--root", tmp_path / "root")
    for name, *options in (
        ("dem",),
        ("landsat", "--pixel", 30, "--resampling", "cubic"),
        ("water", "--resampling", "nearest", "--pixel", 20),
    ):
        command(
            "layer", "raster", landscape / f"{name}.tif", tmp_path / "root", tmp_path / name, "--name", name, *options
        )  # fmt: skip

    assert alone.exit_code == 0
    assert objects(folder / "root") == objects(tmp_path / "root")
    assert sorted(path.name for path in folder.iterdir()) == ["root", "root.layers"]
    for name in ("dem", "landsat", "water"):
        ours, theirs = objects(folder / "root.layers" / name), objects(tmp_path / name)
        assert len(ours) > 3
        assert ours == theirs


def test_the_pixels_are_those_of_the_raster_where_patches_lie(landscape, made):
    ds = rc.open(made[0] / "root", layers=[made[0] / "root.layers" / name for name in ("dem", "landsat")])
    epsg, left, top = grid.tile_corner(PRODUCT[39:44])

    with rasterio.open(landscape / "dem.tif") as file:
        for patch_id in ds.selection.patch_ids:
            patch = ds.open_patch(patch_id)
            x, y = int(patch_id[-5:-3]), int(patch_id[-2:])
            place = from_origin(left + 1200 * x, top - 1200 * y, 10, 10)
            with WarpedVRT(
                file, crs=f"EPSG:{epsg}", transform=place, height=120, width=120,
                resampling=rasterio.enums.Resampling.bilinear,
            ) as view:  # fmt: skip
                np.testing.assert_array_equal(patch["dem"].values, view.read(1))
            assert patch["landsat"].shape == (4, 40, 40)
            assert patch["landsat"].values.min() >= 7_000


def test_what_became_of_them_is_told(made, landscape):
    folder, done = made

    lines = done.stdout.splitlines()[-3:]
    url = open_store(folder / "root").url
    assert lines[0] == f"layer dem: 9 of 9 patches, in {url}.layers/dem"
    # The water's raster ends within the middle column.
    assert lines[2] == f"layer water: 3 of 9 patches, in {url}.layers/water"
    again = prepare(landscape, "--root", folder / "root", *layers_of(landscape), "--json")
    told = json.loads(again.stdout)
    assert told["published_already"]
    assert told["layers"]["dem"] == f"{url}.layers/dem"


@pytest.mark.slow
def test_a_layer_may_be_added_to_a_root_that_is_there(landscape, tmp_path):
    first = prepare(landscape, "--root", tmp_path / "root")
    before = objects(tmp_path / "root")

    then = prepare(landscape, "--root", tmp_path / "root", "--layer", f"dem={landscape / 'dem.tif'}")

    assert (first.exit_code, then.exit_code) == (0, 0)
    assert then.stdout.startswith("published already: 9 patches")
    assert objects(tmp_path / "root") == before
    assert rc.open(tmp_path / "root", layers=[tmp_path / "root.layers" / "dem"]).modalities[-1] == "dem"
    with pytest.raises(ConflictError, match="dem"):
        raise prepare(
            landscape, "--root", tmp_path / "root", "--layer", f"dem={landscape / 'water.tif'}"
        ).exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--layer", "dem"], "--layer is NAME=RASTER, got 'dem'", id="no raster"),
        pytest.param(["--layer", "Dem=x.tif"], "a layer cannot be named 'Dem'", id="name"),
        pytest.param(["--layer", "a=x", "--layer", "a=y"], "a is given twice", id="twice"),
        pytest.param(
            ["--layer", "a=x", "--layer-pixel", "b=20"], "no --layer is called b; there are a", id="unknown"
        ),
    ],
)
def test_wrong_use_is_explained_before_anything_is_made(landscape, tmp_path, arguments, message):
    done = prepare(landscape, "--root", tmp_path / "root", *arguments)

    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "root").exists()


def test_a_raster_that_cannot_be_a_layer_is_refused_before_hours_go_into_patches(landscape, tmp_path):
    root = ["--root", tmp_path / "root"]
    missing = prepare(landscape, *root, "--layer", f"dem={tmp_path / 'none.tif'}")
    taken = prepare(landscape, *root, "--layer", f"map={landscape / 'dem.tif'}")
    odd = prepare(landscape, *root, "--layer", f"dem={landscape / 'dem.tif'}", "--layer-pixel", "dem=7")
    without = prepare(landscape, "--out", tmp_path / "out", "--layer", f"dem={landscape / 'dem.tif'}")

    assert isinstance(missing.exception, FileNotFoundError)
    for done, message in (
        (taken, "patches have something of that name"),
        (odd, "a pixel of 7 m does not divide the side of a patch"),
        (without, "give --root with --layer"),
    ):
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not any(tmp_path.iterdir())


def test_a_layer_stands_beside_its_root_wherever_that_is():
    assert layer_url(open_store("s3://bucket/a/mine"), "dem") == "s3://bucket/a/mine.layers/dem"
    assert parse_rasters(["dem=/d/x=1.tif"]) == (FurtherRaster(name="dem", raster="/d/x=1.tif"),)
