"""Array layers in xarray: a patch, a stack, a product, a mosaic; of a root, and of an export that has the layer."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import rioxarray  # noqa: F401 - the accessor
import xarray as xr

import reben_cloud as rc
from reben_cloud.errors import ChecksumError
from reben_cloud.schema import TensorSpec
from tests.layers.data import EMBEDDING, elevation_of, embedding_of
from tests.layers.test_export_layers import expected_of


@pytest.fixture(scope="module")
def both(attached, ds, tmp_path_factory):
    """Beside the elevation two bands of 20 m for all patches, stacked, and a vector."""
    folder, ids = tmp_path_factory.mktemp("views"), ds.selection.patch_ids
    tensors = [
        TensorSpec(name=n, shape=(60, 60), dtype="uint8", fill=255, pixel_m=20) for n in ("slope", "aspect")
    ]
    rough = rc.write_layer(
        folder / "t",
        ds,
        name="terrain",
        tensors=tensors,
        patches=((i, {n: terrain_of(i, n) for n in ("slope", "aspect")}) for i in ids),
    )
    vectors = rc.write_layer(
        folder / "v", ds, name="vectors", tensors=EMBEDDING, patches=((i, embedding_of(i)) for i in ids)
    )
    return attached.with_layers(rough, vectors)


def terrain_of(patch_id, band):
    return (elevation_of(patch_id)[::2, ::2] % (200 if band == "slope" else 190)).astype(np.uint8)


def test_a_patch_has_the_layer_on_the_pixels_of_the_root(both, ds, covered):
    patch = both.open_patch(covered[0])

    np.testing.assert_array_equal(patch.elevation, elevation_of(covered[0]))
    assert patch.elevation_present
    assert patch.elevation.dims == ("y", "x")
    assert patch.elevation.attrs == {
        "long_name": "Elevation",
        "units": "m",
        "grid_mapping": "spatial_ref",
        "_FillValue": -9999,
    }
    assert patch.terrain.dims == ("terrain__band", "y20", "x20")
    np.testing.assert_array_equal(patch.terrain.sel(terrain__band="aspect"), terrain_of(covered[0], "aspect"))
    np.testing.assert_array_equal(patch.vectors, embedding_of(covered[0]))
    assert "grid_mapping" not in patch.vectors.attrs
    others = ds.open_patch(covered[0])
    xr.testing.assert_identical(
        patch[list(others.data_vars)].drop_vars("terrain__band", errors="ignore"), others
    )
    assert patch.elevation.rio.transform() == patch.s2_10m.rio.transform()
    assert patch.elevation.rio.nodata == -9999


def test_a_patch_that_the_layer_lacks_is_filled(attached, covered):
    (lacking, *_) = set(attached.selection.patch_ids) - set(covered)

    patch = attached.open_patch(lacking)

    assert not patch.elevation_present
    assert (patch.elevation == -9999).all()


def test_a_product_has_the_layer_beside_its_own_variables(attached, covered):
    for product in attached.products[:2]:
        stack = attached.open_zarr(product)

        assert stack.elevation.shape == (stack.sizes["patch"], 120, 120)
        assert stack.elevation.chunks is not None  # as lazy as the store's
        for row, patch_id in enumerate(stack.patch_id.values.tolist()):
            assert bool(stack.elevation_present[row]) == (patch_id in covered)
            np.testing.assert_array_equal(stack.elevation[row], expected_of(patch_id, covered))


def test_the_lazy_array_of_a_layer_is_indexed_as_one_in_memory(attached):
    product = attached.products[0]
    lazy = pickle.loads(pickle.dumps(attached.open_zarr(product).elevation))
    whole = lazy.compute()

    for key in (
        {"patch": 0, "y": slice(3, 90, 4)},
        {"x": 7},
        {"patch": [0, 0], "y": [5, 2], "x": slice(None, None, -1)},
    ):
        np.testing.assert_array_equal(lazy.isel(key).values, whole.isel(key).values)


def test_a_stack_of_patches_has_the_layer(both, covered, tmp_path):
    selection = both.search(limit=12)

    stack = selection.to_xarray(["elevation", "slope"])

    assert set(stack.data_vars) == {"elevation", "elevation_present", "terrain", "terrain_present", "labels"}
    assert stack.terrain.terrain__band.values.tolist() == ["slope"]
    for row, patch_id in enumerate(selection.patch_ids):
        np.testing.assert_array_equal(stack.elevation[row], expected_of(patch_id, covered))
        assert bool(stack.elevation_present[row]) == (patch_id in covered)
        np.testing.assert_array_equal(stack.terrain[row, 0], terrain_of(patch_id, "slope"))
    assert "elevation" not in selection.to_xarray("B02")
    assert "elevation_present" not in selection.to_xarray("B02")


def test_a_mosaic_of_a_layer_lies_where_that_of_a_band_lies(both, covered):
    products = both.search().column("reben:product").to_pylist()
    product = max(both.products, key=products.count)
    mosaic, pixels = both.mosaic(product, bands="elevation"), both.mosaic(product, bands="B02")
    coarse = both.mosaic(product, bands=["aspect", "slope"])

    assert mosaic.rio.bounds() == pixels.rio.bounds() == coarse.rio.bounds()
    assert mosaic.attrs["_FillValue"] == -9999
    stack = both.open_zarr(product)
    for row, patch_id in enumerate(stack.patch_id.values.tolist()):
        x0, y0 = float(stack.x0[row]), float(stack.y0[row])
        part = mosaic.sel(x=slice(x0, x0 + 1200), y=slice(y0, y0 - 1200))
        np.testing.assert_array_equal(part[0], expected_of(patch_id, covered))
        part = coarse.sel(x=slice(x0, x0 + 1200), y=slice(y0, y0 - 1200))
        np.testing.assert_array_equal(part[0], terrain_of(patch_id, "aspect"))


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_patch_of_an_export_has_the_layer(attached, elevation, covered, tmp_path, where):
    ids = attached.selection.patch_ids[:2]
    names = ["s1", "elevation"] if where == "inside" else ["s1"]
    attached.search(ids=ids).export_lmdb(tmp_path / "a", modalities=names)
    exported = rc.open(tmp_path / "a", layers=[] if where == "inside" else [elevation])

    for patch_id in ids:
        patch, expected = exported.open_patch(patch_id), attached.open_patch(patch_id)

        xr.testing.assert_equal(patch.elevation, expected.elevation.drop_vars(["s2_time"], errors="ignore"))
        assert patch.elevation.attrs == expected.elevation.attrs
        assert bool(patch.elevation_present) == (patch_id in covered)


def test_a_damaged_record_is_an_error_when_it_is_looked_at(ds, covered, elevation, tmp_path):
    shutil.copytree(elevation.url.removeprefix("file://"), tmp_path / "e")
    shard = next((tmp_path / "e").glob("shards/*/*/*.tar"))
    data = bytearray(shard.read_bytes())
    for start in range(512 + 1000, len(data), len(data) // 16):
        data[start] ^= 1
    shard.write_bytes(data)
    attached = rc.open(ds.url, layers=[tmp_path / "e"])

    stack = xr.concat([attached.open_zarr(p)[["elevation"]] for p in attached.products], "patch")
    with pytest.raises(ChecksumError):
        stack.elevation.compute()
