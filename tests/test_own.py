"""Datasets of one's own: Kenya and Chile, a raster of land cover, thirteen classes, patches of 2400 m.

The scenes are made; squares, zones and hemispheres are real.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from rasterio.enums import ColorInterp

import reben_cloud as rc
from reben_cloud import grid
from reben_cloud.bigearthnet.bands import ARRAYS, BANDS
from reben_cloud.bigearthnet.own import own_schema
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.checks.verify import verify
from reben_cloud.errors import SourceError
from reben_cloud.layers import write_label_layer
from reben_cloud.scenes.class_table import load_class_table
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import open_store
from reben_cloud.stream import RawLoader
from reben_cloud.training.models import ModelSpec, create_model, save_model
from tests.commands import invoke as command
from tests.scenes import ABROAD_M, CHILE, KENYA, band_pixels, make_abroad, make_clc, make_safe
from tests.stac import stac_errors

PRODUCTS = (KENYA, CHILE)
PATCH_M = 2_400
BANDS_USED = tuple(band for band in (*ARRAYS["s2_10m"], *ARRAYS["s2_20m"]))
CLASSES = """
title = "ESA WorldCover 2021 with two classes more"
labels = "any"
min_share = 0.05
nodata = [0]

[classes]
"Tree cover" = {codes = [10], color = "#006400"}
"Shrubland" = {codes = [20], color = "#ffbb22"}
"Grassland" = {codes = [30], color = "#ffff4c"}
"Cropland" = {codes = [40], color = "#f096ff"}
"Tea" = {codes = [41], color = "#90c030"}
"Built-up" = {codes = [50], color = "#fa0000"}
"Greenhouses" = {codes = [51], color = "#ff9090"}
"Bare / sparse vegetation" = {codes = [60], color = "#b4b4b4"}
"Snow and ice" = {codes = [70], color = "#f0f0f0"}
"Permanent water bodies" = {codes = [80], color = "#0064c8"}
"Herbaceous wetland" = {codes = [90], color = "#0096a0"}
"Mangroves" = {codes = [95], color = "#00cf75"}
"Moss and lichen" = {codes = [100], color = "#fae6a0"}
"""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Two products, a scene for each, two maps of land cover, a table of classes, and two countries."""
    folder = tmp_path_factory.mktemp("abroad")
    (folder / "classes.toml").write_text(CLASSES)
    return make_abroad(folder, codes=list(load_class_table(folder / "classes.toml").labels))


def options(inputs):
    return [
        "--s2", inputs / "products", "--s1", inputs / "radar", "--land-cover", inputs / "cover", "--classes",
        inputs / "classes.toml", "--countries", inputs / "countries.geojson", "--any-country", "--name", "Two Souths",
        "--bands", "10m_20m", "--patch-size", PATCH_M, "--split-rule", "blocks", "--block-size", 4_800,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def made(inputs, tmp_path_factory):
    """The folder ``out`` and the root ``root``, and what the command said."""
    folder = tmp_path_factory.mktemp("own")
    done = command("prepare", *options(inputs), "--out", folder / "out", "--root", folder / "root")
    assert done.exit_code == 0, done.output
    return folder, done.stdout


@pytest.fixture(scope="session")
def dataset(made):
    return rc.open(made[0] / "root")


def test_the_root_has_the_schema_of_the_recipe(dataset, inputs):
    table = load_class_table(inputs / "classes.toml")

    schema = own_schema(
        name="Two Souths", patch_m=PATCH_M, bands=BANDS_USED, classes=table.classes, land_cover=table.title
    )

    assert dataset.schema == schema
    assert len(dataset.schema.classes) == 13
    assert dataset.schema.classes.min_share == 0.05
    assert {name: sample.shape for m in schema.modalities for name, sample in m.samples.items()} == {
        "s2_10m": (4, 240, 240), "s2_20m": (6, 120, 120), "s1": (2, 240, 240), "map": (240, 240),
    }  # fmt: skip
    assert dataset.manifest.countries == ("Chile", "Kenya")
    assert verify(dataset, deep=True).problems == ()


def test_patches_lie_where_their_pixels_were_cut(dataset):
    for product in PRODUCTS:
        epsg, left, top = grid.tile_corner(product[39:44])
        found = dataset.search(product=product).to_pandas()

        assert len(found) == 16
        for row in found.itertuples():
            x, y = map(int, row.patch_id.split("_")[-2:])
            assert grid.footprint(row.patch_id, patch_m=PATCH_M) == (
                epsg, left + PATCH_M * x, top - PATCH_M * (y + 1), left + PATCH_M * (x + 1), top - PATCH_M * y,
            )  # fmt: skip
        stack = dataset.open_zarr(product)
        assert stack.attrs["proj:code"] == f"EPSG:{epsg}"
        for row, patch_id in enumerate(stack.patch_id.values.tolist()):
            x, y = map(int, patch_id.split("_")[-2:])
            for array in ("s2_10m", "s2_20m"):
                side = PATCH_M // BANDS[ARRAYS[array][0]].resolution_m
                part = np.s_[side * y : side * (y + 1), side * x : side * (x + 1)]
                tile = (ABROAD_M * side // PATCH_M,) * 2
                want = np.stack([band_pixels(band, tile)[part] for band in ARRAYS[array]])
                np.testing.assert_array_equal(stack[array].values[row], want)


def test_labels_are_the_classes_that_have_their_share_of_the_map(dataset, inputs):
    table = load_class_table(inputs / "classes.toml")
    names = dict(zip(dataset.search().patch_ids, dataset.search().to_pandas().labels, strict=True))

    for batch in RawLoader(dataset.search(), modalities=("map",), batch_size=8):
        for position in np.flatnonzero(batch["valid"]).tolist():
            patch_id = dataset.search().patch_ids[batch["index"][position]]
            values, counts = np.unique(batch["map"][position], return_counts=True)
            shares = dict(zip(values.tolist(), (counts / 240**2).tolist(), strict=True))
            assert sorted(names[patch_id]) == sorted(
                label for code, label in table.labels.items() if shares.get(code, 0) >= 0.05
            )
            # The map was cut from a raster with more classes than are labels.
            assert len(names[patch_id]) < len(shares)


def test_places_are_in_the_south(dataset):
    kenya, chile = (dataset.search(country=name) for name in ("Kenya", "Chile"))

    assert {len(kenya), len(chile)} == {16}
    assert sorted(dataset.search(bbox=(33, -5, 42, 0)).patch_ids) == sorted(kenya.patch_ids)
    assert sorted(dataset.search(bbox=(-76, -56, -66, -17)).patch_ids) == sorted(chile.patch_ids)


def test_blocks_decide_on_splits_and_their_distance_is_said(dataset, made):
    rows = dataset.search().to_pandas()
    half = PATCH_M / 2
    blocks = {}
    for row in rows.itertuples():
        epsg, west, _, _, north = grid.footprint(row.patch_id, patch_m=PATCH_M)
        blocks.setdefault((epsg, (west + half) // 4_800, (north - half) // 4_800), set()).add(row.split)

    assert all(len(splits) == 1 for splits in blocks.values())
    assert {*rows.split} == {"train", "validation", "test"}
    assert "nearest patches of different splits: train and validation 0 m" in made[1]
    assert "overlap" not in made[1]


def test_it_is_streamed_once_and_whole(dataset):
    seen = []
    for batch in RawLoader(dataset.search(), batch_size=5, seed=3):
        seen += batch["index"][batch["valid"]].tolist()
        assert batch["s2_20m"].shape[1:] == (6, 120, 120)
        assert batch["labels"].shape[1:] == (13,)
    assert sorted(seen) == list(range(32))


def test_the_server_answers_and_draws(dataset, shared):
    from fastapi.testclient import TestClient

    from reben_cloud.serve import create_app

    with TestClient(create_app(dataset)) as client:
        page = client.get("/").text
        found = client.get("/search", params={"limit": 40, "bbox": "33,-5,42,0"}).json()
        item = found["features"][0]
        queryables = client.get("/queryables").json()
        shown = client.get(f"/explore/patches/{item['id']}").json()
        pictures = {
            picture["name"]: client.get(f"/explore/patches/{item['id']}/{picture['name']}.png")
            for picture in shown["pictures"]
        }

    assert "Two Souths" in page
    assert found["numberMatched"] == 16
    assert stac_errors(item, shared / "stac_schemas") == []
    assert queryables["properties"]["reben:labels"]["items"]["enum"] == list(dataset.schema.classes.names)
    assert [*pictures] == ["true-color", "reference-map", "radar"]
    assert all(picture.content[:8] == b"\x89PNG\r\n\x1a\n" for picture in pictures.values())
    table = dict(zip(dataset.schema.classes.names, dataset.schema.classes.colors, strict=True))
    assert {entry["label"]: entry["color"] for entry in shown["legend"]}.items() <= table.items()


@pytest.mark.parametrize("form", ["lmdb", "safetensors"])
def test_an_export_makes_the_same_root_again(dataset, tmp_path, form):
    selection = dataset.search(country="Kenya")
    getattr(selection, f"export_{form}")(tmp_path / "out")

    build(make_plan(*open_source(tmp_path / "out"), open_store(tmp_path / "root")))

    again = rc.open(tmp_path / "root")
    assert again.schema == dataset.schema
    assert sorted(again.search().patch_ids) == sorted(selection.patch_ids)
    assert verify(again, deep=True).problems == ()


def test_an_export_to_geotiffs_lies_in_its_zone(dataset, tmp_path):
    dataset.search(country="Kenya").export_geotiff(tmp_path / "out")

    files = sorted((tmp_path / "out").rglob("*.tif"))
    assert files
    for path in files:
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 32737
            assert file.width * file.res[0] == PATCH_M


@pytest.mark.parametrize("cog", [False, True])
def test_predicted_masks_have_the_colours_of_the_classes(dataset, made, tmp_path, cog):
    classes, kenya = dataset.schema.classes, dataset.search(country="Kenya", limit=3)
    spec = ModelSpec(
        architecture="test_resnet", bands=("B04", "B03"), task="map", classes=classes, image_px=PATCH_M // 10
    )
    save_model(tmp_path / "model", create_model(spec), spec)
    rc.predict(tmp_path / "model", kenya, tmp_path / "layer", what="mask", batch_size=2)
    both = rc.open(made[0] / "root", layers=[tmp_path / "layer"]).search(has="mask")

    both.export_geotiff(tmp_path / "masks", modalities=["mask", "map"], cog=cog)

    wanted = {
        code: (*bytes.fromhex(color[1:]), 255)
        for codes, color in zip(classes.codes, classes.colors, strict=True)
        for code in codes
    }
    masks, maps = (sorted((tmp_path / "masks").rglob(f"*_{name}.tif")) for name in ("mask", "map"))
    assert len(masks) == len(maps) == 3
    for path in masks:
        with rasterio.open(path) as file:
            found = file.colormap(1)
            assert file.colorinterp == (ColorInterp.palette,)
            assert {code: found[code] for code in wanted} == wanted
            assert set(np.unique(file.read(1)).tolist()) <= wanted.keys()
    for path in maps:  # of uint16, with which a colour table would be larger than the pixels
        with rasterio.open(path) as file, pytest.raises(ValueError, match="NULL color table"):
            file.colormap(1)


def test_a_root_of_two_bands_without_sentinel_1_of_small_patches(inputs, tmp_path):
    """240 m are no multiple of 60 m pixels' patches of 300: without B01 and B09 they need not be."""
    done = command(
        "prepare", "--s2", inputs / "products" / f"{KENYA}_20240101T000000.SAFE", "--land-cover", inputs / "cover",
        "--classes", inputs / "classes.toml", "--bands", "B8A,B04", "--patch-size", 860, "--root", tmp_path / "root",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    dataset = rc.open(tmp_path / "root")

    first = dataset.open_patch(f"{KENYA}_003_002")

    assert dataset.modalities == ("s2", "map")
    assert tuple(dataset.schema.bands) == ("B04", "B8A")
    assert len(dataset) == 11**2
    want = band_pixels("B8A", (ABROAD_M // 20,) * 2)[2 * 43 : 3 * 43, 3 * 43 : 4 * 43]
    np.testing.assert_array_equal(first.s2_20m.values[0], want)
    assert verify(dataset, deep=True).problems == ()


def test_small_patches_with_sentinel_1_are_built_and_built_again(inputs, tmp_path):
    """860 m are 86 pixels, which thumbnails of 8 pixels do not divide, and more than 100 patches along a tile."""
    done = command(
        "prepare", "--s2", inputs / "products" / f"{KENYA}_20240101T000000.SAFE", "--s1", inputs / "radar",
        "--land-cover", inputs / "cover", "--classes", inputs / "classes.toml", "--bands", "10m",
        "--patch-size", 860, "--out", tmp_path / "out", "--root", tmp_path / "root",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert command("build", tmp_path / "out", tmp_path / "again").exit_code == 0

    one, other = rc.open(tmp_path / "root"), rc.open(tmp_path / "again")

    assert one.modalities == ("s2", "s1", "map")
    assert one.manifest.fingerprint == other.manifest.fingerprint
    assert verify(one, deep=True).problems == ()


def test_the_command_run_again_says_that_it_is_there(inputs, made):
    again = command("prepare", *options(inputs), "--root", made[0] / "root")
    other = command("prepare", *options(inputs), "--root", made[0] / "root", "--bands", "10m")

    assert "published already: 32 patches" in again.stdout
    assert "--bands" in str(other.exception)


def test_metadata_of_ones_own_have_no_empty_columns(made, inputs, tmp_path):
    out = made[0] / "out"
    assert pq.read_schema(out / "metadata.parquet").names[:5] == [
        "patch_id",
        "labels",
        "split",
        "country",
        "s1_name",
    ]
    assert "s2v1_name" not in pq.read_schema(out / "metadata.parquet").names


@pytest.mark.slow
def test_a_model_is_trained_on_it(dataset, tmp_path):
    from reben_cloud.training.config import load_recipe
    from reben_cloud.training.models import load_pretrained
    from reben_cloud.training.train import train

    for task in ("labels", "map"):
        overrides = [
            "epochs=1", "batch_size=4", "architecture=test_resnet", "bands=S1_10m_20m", "warmup_steps=0",
            f"task={task}",
        ]  # fmt: skip
        config = load_recipe("resnet50", overrides=overrides, schema=dataset.schema)

        result = train(config, dataset, tmp_path / task)

        _, spec = load_pretrained(tmp_path / task / "best")
        assert spec.classes.names == dataset.schema.classes.names
        assert spec.image_px == 240
        assert result["num_patches"] == len(dataset.search(split="test", recommended=True)) > 0
        assert set(result["by"]["country"]) <= {"Kenya", "Chile"}
        assert "Two Souths" in (tmp_path / task / "best" / "README.md").read_text()


def test_the_official_maps_of_all_codes_make_a_root(tmp_path):
    """Codes without a class, and places that CORINE does not cover, are in real maps up to a quarter."""
    product = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    epsg, left, top = grid.tile_corner("33UUP")
    boxes = [
        shapely.box(left, top - 1200, left + 1000, top),
        shapely.box(left + 1000, top - 1200, left + 1100, top),
    ]
    make_safe(tmp_path / "s2", name=product, side_m=1200)
    make_clc(tmp_path / "clc.gpkg", boxes, [312, 332], epsg=epsg)

    done = command(
        "prepare", "--s2", tmp_path / "s2", "--land-cover", tmp_path / "clc.gpkg", "--root", tmp_path / "root"
    )

    assert done.exit_code == 0, done.output
    dataset = rc.open(tmp_path / "root")
    codes = dataset.open_patch(f"{product}_00_00").reference_map.values
    assert {332, 999} <= {*np.unique(codes)}
    assert dataset.search(labels="Coniferous forest").patch_ids == [f"{product}_00_00"]
    assert dataset.schema.classes == REBEN.classes


def test_patches_about_the_antimeridian_in_no_country(tmp_path):
    """Square 01XDA, in the Arctic Ocean: its second column of patches of 1200 m is across 180 degrees."""
    product = "S2A_MSIL2A_20240705T000611_N0510_R030_T01XDA"
    epsg, left, top = grid.tile_corner("01XDA")
    make_safe(tmp_path / "s2", name=product, side_m=4800)
    box = shapely.box(left - 100, top - 4900, left + 4900, top + 100)
    make_clc(tmp_path / "clc.gpkg", [box], [523], epsg=epsg, crs=f"EPSG:{epsg}")

    done = command(
        "prepare", "--s2", tmp_path / "s2", "--land-cover", tmp_path / "clc.gpkg", "--root", tmp_path / "root"
    )

    assert done.exit_code == 0, done.output
    dataset = rc.open(tmp_path / "root")
    assert dataset.manifest.countries == ()
    assert verify(dataset, deep=True).problems == ()
    west, east = (dataset.search(bbox=box) for box in ((179, 70, 180, 75), (-180, 70, -179, 75)))
    assert len(west) + len(east) == len(dataset) == 16
    assert {patch_id[-5:-3] for patch_id in west.patch_ids} == {"00", "01"}
    # Of a map of the world, nothing between its ends.
    assert len(dataset.search(bbox=(-178, 70, 178, 75))) == 0
    from fastapi.testclient import TestClient

    from reben_cloud.serve import create_app

    with TestClient(create_app(dataset)) as client:
        found = client.get("/search", params={"bbox": "-180,70,-179,75"}).json()
        assert found["numberMatched"] == len(east)
        assert client.get("/explore/footprints.bin").status_code == 200


def test_land_cover_may_be_added_with_further_products(inputs, tmp_path):
    first, second = (inputs / "products" / f"{product}_20240101T000000.SAFE" for product in PRODUCTS)
    cover = tmp_path / "cover"
    cover.mkdir()
    given = ["--land-cover", cover, "--classes", inputs / "classes.toml", "--out", tmp_path / "out"]
    (cover / "kenya.tif").write_bytes((inputs / "cover" / "T37MBU.tif").read_bytes())
    assert command("prepare", "--s2", first, *given).exit_code == 0

    (cover / "chile.tif").write_bytes((inputs / "cover" / "T19HCC.tif").read_bytes())
    done = command("prepare", "--s2", first, "--s2", second, *given)
    (cover / "more.tif").write_bytes((inputs / "cover" / "T37MBU.tif").read_bytes())
    failed = command("prepare", "--s2", first, "--s2", second, *given)

    assert "written now: 64 patches of 1 product; already there: 64 patches of 1 product" in done.stdout
    assert "land cover more.tif is new" in str(failed.exception)


def test_a_raster_becomes_a_layer_beside_it(dataset, made, inputs, tmp_path):
    """Layers take the size of a patch from the schema."""
    done = command(
        "layer", "raster", inputs / "cover" / "T37MBU.tif", made[0] / "root", tmp_path / "again", "--name", "again",
        "--resampling", "nearest", "--pixel", "10",
    )  # fmt: skip
    assert done.exit_code == 0, done.output

    joined = rc.open(made[0] / "root", layers=[str(tmp_path / "again")])
    found = joined.search(has=["again"])

    assert sorted(found.patch_ids) == sorted(dataset.search(country="Kenya").patch_ids)
    for batch in RawLoader(found, modalities=("map", "again"), batch_size=16):
        valid = batch["valid"]
        # The map has nodata as 999; GDAL's approximation is coarser for a layer than for a map.
        assert (batch["map"][valid] == batch["again"][valid].reshape(-1, 240, 240)).mean() > 0.99


def test_labels_that_the_root_has_no_class_for_are_refused(dataset, tmp_path):
    """Left out without a word, a layer of the 19 classes would be all zeros here."""
    table = pa.table({"patch_id": dataset.selection.patch_ids[:1], "labels": [["Pastures"]]})
    pq.write_table(table, tmp_path / "labels.parquet")

    with pytest.raises(SourceError, match=r"'Pastures' is neither a class .* the root has Bare / sparse"):
        write_label_layer(tmp_path / "layer", dataset, tmp_path / "labels.parquet", name="mine")


def test_its_documents_are_valid_and_name_its_bands(made, dataset, shared):
    documents = {}
    for path in sorted((made[0] / "root").rglob("*.json")):
        document = json.loads(path.read_text())
        if isinstance(document, dict) and document.get("type") in ("Catalog", "Collection", "Feature"):
            documents[str(path.relative_to(made[0] / "root"))] = document

    assert len(documents) >= 4
    for path, document in documents.items():
        assert stac_errors(document, shared / "stac_schemas") == [], path
        assert "BigEarthNet v2.0" not in json.dumps(document), path
    collections = [d for d in documents.values() if d.get("type") == "Collection" and "item_assets" in d]
    bands = {
        band["name"]: band
        for c in collections
        for a in c["item_assets"].values()
        for band in a.get("bands", [])
    }
    assert bands["s2_10m[band=B04]"]["eo:common_name"] == "red"
    assert not any("B01" in name for name in bands)
