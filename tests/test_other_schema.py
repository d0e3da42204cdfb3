"""Documents, views and pictures of a dataset that is not reBEN: they follow from its schema alone."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from pyproj import CRS

from reben_cloud.about import Channel, Render
from reben_cloud.bigearthnet.about import ABOUT, about
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.catalog import root_documents
from reben_cloud.catalog.groups import band_name
from reben_cloud.root import layout
from reben_cloud.root.objects import WrittenObject
from reben_cloud.root.patches import patches_table
from reben_cloud.root.placement import PlacementOptions, group_sizes, place
from reben_cloud.schema import ArraySpec, Classes, Modality, Schema, TensorSpec
from reben_cloud.store import open_store
from reben_cloud.views.mosaic import mosaic
from reben_cloud.views.raster import patch_view, patches_view
from tests.official import table_of
from tests.stac import stac_errors

NAMES = ("Reef", "Sand", "Seagrass", "Rubble", "Rock", "Mud", "Open water")


def image(name, dtype, size, **facts):
    return TensorSpec(name=name, shape=(size, size), dtype=dtype, pixel_m=600 / size, **facts)


OPTICS = Modality(
    name="optics",
    title="Aerial pictures",
    tensors=tuple(image(name, "uint8", 60, units="0.004") for name in ("near", "far")),
    arrays=(
        ArraySpec(
            name="optics", tensors=("near", "far"), stacked=True, dims=("tone", "y", "x"), zarr_name="tones"
        ),
    ),
)
DEPTH = Modality(name="depth", tensors=(image("depth", "float32", 20, units="m", fill=float("nan")),))
CUBE = Modality(name="cube", tensors=(TensorSpec(name="cube", shape=(3, 7, 5, 5), dtype="int8"),))
VECTOR = Modality(name="vector", tensors=(TensorSpec(name="vector", shape=(6,), dtype="float16"),))
GROUND = Modality(name="ground", tensors=(image("ground", "int32", 60),))
REEFS = Schema(
    name="Reefs 1",
    modalities=(OPTICS, DEPTH, CUBE, VECTOR, GROUND),
    classes=Classes(
        names=NAMES,
        colors=tuple(f"#0000{n:02x}" for n in range(7)),
        codes=tuple((70_000 + n,) for n in range(7)),
    ),
    patch_m=600,
    map_array="ground",
)


@pytest.fixture(scope="module")
def documents():
    official = table_of(40, num_products=2)
    labels = pa.array([[NAMES[n % 7]] for n in range(40)], official.schema.field("labels").type)
    official = official.set_column(1, "labels", labels)
    described = describe(official)
    placement = place(described, PlacementOptions(), recommended_without=REEFS.recommended_without)
    groups = group_sizes(placement)
    written = [
        WrittenObject.of(layout.shard(group, modality, 0), b"x", is_shard=True)
        for group in groups
        for modality in REEFS.modality_names
    ]
    found = root_documents(
        patches_table(described, REEFS, placement),
        groups,
        [*written, WrittenObject.of(layout.PATCHES, b"p")],
        schema=REEFS,
    )
    return {path: json.loads(data) for path, data in found.items()}


def test_documents_are_valid_and_say_nothing_of_reben(documents, shared):
    for path, document in documents.items():
        if document.get("type") in ("Catalog", "Collection", "Feature"):
            assert stac_errors(document, shared / "stac_schemas") == [], path
        text = json.dumps(document)
        for word in ("BigEarthNet", "bigearthnet", "CORINE", "Copernicus", "sar:", "eo:", "true-color", "IW"):
            assert word not in text, path


def test_documents_say_what_the_schema_says(documents):
    collection = documents[layout.collection("reefs-1-patches")]
    group = collection["item_assets"]["zarr"]

    assert collection["title"] == "Reefs 1"
    assert collection["summaries"]["gsd"] == [10, 30]
    assert collection["summaries"][layout.LABELS] == list(NAMES)
    bands = {band["name"]: band for band in group["bands"]}
    assert [*bands] == ["tones[tone=near]", "tones[tone=far]", "depth", "cube", "vector", "ground"]
    assert bands["tones[tone=far]"] == {
        "name": "tones[tone=far]",
        "data_type": "uint8",
        "gsd": 10,
        "raster:scale": 0.004,
        "raster:spatial_resolution": 10,
    }
    assert bands["depth"]["unit"] == "m"
    assert bands["cube"] == {"name": "cube", "data_type": "int8"}
    assert bands["vector"] == {"name": "vector", "data_type": "float16"}
    assert [c["value"] for c in group["classification:classes"]] == list(range(70_000, 70_007))
    assert group["classification:classes"][6]["name"] == "Open_water"
    assert group["classification:classes"][6]["color_hint"] == "000006"


def test_a_product_has_the_dimensions_of_its_arrays(documents):
    item = next(d for d in documents.values() if "cube:variables" in d.get("assets", {}).get("zarr", {}))
    cube = item["assets"]["zarr"]

    for modality in REEFS.modalities:
        for array in modality.arrays:
            dims = cube["cube:variables"][array.zarr_name]["dimensions"]
            assert dims == ["patch", *array.dims]
            sizes = [cube["cube:dimensions"][dim] for dim in array.dims]
            shape = [len(s["values"]) if "values" in s else s["extent"][1] + 1 for s in sizes]
            assert tuple(shape) == modality.shape_of(array)
    assert cube["cube:dimensions"]["tone"] == {"type": "bands", "values": ["near", "far"]}
    assert item["properties"]["gsd"] == 10
    assert (
        sum(item["properties"][layout.column("label_counts")].values())
        == item["properties"][layout.column("num_patches")]
    )


def test_the_facts_are_found_by_the_schemas_name():
    assert about(REBEN.only([REBEN.modality_names[0]])) is ABOUT
    assert about(REEFS).id == "reefs-1"
    assert about(REEFS).title_of("contains_old_ice") == "Old ice"


@pytest.fixture
def stack():
    """A product's store of three patches in a row, of that schema, in memory."""
    data = {
        array.zarr_name: (
            ("patch", *array.dims),
            np.arange(3)
            .repeat(np.prod(modality.shape_of(array)))
            .reshape(3, *modality.shape_of(array))
            .astype(modality.tensor_of(array).storage),
        )
        for modality in REEFS.modalities
        for array in modality.arrays
    }
    crs = CRS.from_epsg(32633)
    coordinates = {
        "x0": ("patch", 500_000.0 + 600 * np.arange(3)),
        "y0": ("patch", np.full(3, 4_000_000.0)),
        "time": ("patch", np.zeros(3, "M8[s]")),
        "tone": ("tone", ["near", "far"]),
        "spatial_ref": ((), 0, crs.to_cf()),
    }
    return xr.Dataset(data, coordinates, {"proj:code": "EPSG:32633"})


def test_a_patch_has_the_centres_of_its_pixels(stack):
    patch = patch_view(stack, 1, schema=REEFS)

    assert patch.x.values[[0, -1]].tolist() == [500_605, 501_195]
    assert patch.y.values[[0, -1]].tolist() == [3_999_995, 3_999_405]
    y, x = DEPTH.arrays[0].dims
    assert patch[x].values[[0, -1]].tolist() == [500_615, 501_185]
    assert patch[y].values[[0, -1]].tolist() == [3_999_985, 3_999_415]
    assert not {*CUBE.arrays[0].dims} & {*patch.coords}


def test_patches_are_stacked_with_the_tensors_asked_for(stack):
    stacks = {"one": stack, "two": stack.isel(patch=[2, 1, 0])}

    found = patches_view(
        stacks, ["one", "two", "one"], np.array([2, 0, 1]), bands=["far", "cube"], schema=REEFS
    )

    assert {*found.data_vars} == {"tones", "cube"}
    assert found.tones.shape == (3, 1, 60, 60)
    assert found.cube[:, 0, 0, 0, 0].values.tolist() == [2, 2, 1]
    assert found.easting[0, 0].item() == 501_205
    with pytest.raises(ValueError, match="unknown band 'B02'"):
        patches_view(stacks, ["one"], np.array([0]), bands=["B02"], schema=REEFS)


def test_a_mosaic_is_laid_out_by_the_schemas_pixels(stack):
    store = open_store("memory://reefs")

    depth = mosaic(store, "p", {}, stack, {}, bands=["depth"], bbox=None, schema=REEFS)
    tones = mosaic(store, "p", {}, stack, {}, bands=["far", "near"], bbox=None, schema=REEFS)

    assert depth.shape == (1, 20, 60)
    assert (depth.x[1] - depth.x[0]).item() == 30
    assert np.isnan(depth.attrs["_FillValue"])
    assert tones.shape == (2, 60, 180)
    assert tones.dtype == np.uint8
    with pytest.raises(ValueError, match="got near optics 10 m, depth depth 30 m"):
        mosaic(store, "p", {}, stack, {}, bands=["near", "depth"], bbox=None, schema=REEFS)
    with pytest.raises(ValueError, match="unknown band 'cube'"):
        mosaic(store, "p", {}, stack, {}, bands=["cube"], bbox=None, schema=REEFS)


def test_a_picture_is_of_one_array_or_not_at_all():
    def render(*tensors):
        channels = tuple(Channel(tensor=name, high=1) for name in tensors)
        return Render(name="p", title="P", caption="p", channels=channels)

    assert render("near", "far", "near").array_in(REEFS) == (OPTICS, OPTICS.arrays[0])
    assert render("near", "far", "depth").array_in(REEFS) is None
    assert band_name(OPTICS.arrays[0], "far") == "tones[tone=far]"
