"""Layers in STAC Items, Collections and the Croissant card, all valid by the published schemas."""

from __future__ import annotations

import hashlib
import json

import mlcroissant
import pyarrow as pa
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import reben_cloud as rc
from reben_cloud import cli
from reben_cloud.catalog import dataset_card
from reben_cloud.checks.verify import verify_layer
from reben_cloud.serve import create_app
from tests.layers.data import write_table_layer
from tests.stac import stac_errors


@pytest.fixture(scope="module")
def both(attached, ds, tmp_path_factory):
    """Beside the elevation a table with a temperature for every second patch."""
    return attached.with_layers(write_table_layer(tmp_path_factory.mktemp("table") / "one", ds, kind="one"))


def test_items_have_assets_and_properties_of_layers(both, elevation, covered, shared):
    for item in both.search().items():
        document = item.to_dict()

        assert stac_errors(document, shared / "stac_schemas") == []
        assert len(document["properties"]["elevation:xxh3"]) == 16
        assert document["properties"]["elevation:present"] == (item.id in covered)
        assert ("elevation" in document["assets"]) == (item.id in covered)
        assert ("climate:temperature" in document["properties"]) == document["properties"]["climate:present"]
        if item.id in covered:
            asset = document["assets"]["elevation"]
            assert rc.open_layer(elevation.url).store.exists(asset["href"].removeprefix(f"{elevation.url}/"))
            assert asset["type"] == "application/x-tar"


def test_the_collection_of_a_layer_is_valid(elevation, shared):
    document = json.loads(bytes(elevation.store.get("collection.json")))

    assert stac_errors(document, shared / "stac_schemas") == []
    assert document["bands"][0]["nodata"] == -9999
    assert document["bands"][0]["statistics"]["count"] > 0
    paths = {asset["href"].removeprefix("./") for asset in document["assets"].values()}
    assert paths >= set(elevation.read_objects()) - {"collection.json"}
    assert all(elevation.store.exists(path) for path in paths)


@pytest.mark.parametrize("rows", [1, 2], ids=["one row per patch", "two rows per patch"])
def test_a_table_lists_its_objects_and_has_a_collection(ds, root, shared, tmp_path, rows):
    table = pa.table({"patch_id": [i for i in ds.selection.patch_ids[:9] for _ in range(rows)]})
    layer = rc.write_table(
        tmp_path / "t", ds, name="t", table=table.append_column("x", pa.array(range(9 * rows)))
    )

    document = json.loads(bytes(layer.store.get("collection.json")))
    listed = layer.read_objects()

    assert stac_errors(document, shared / "stac_schemas") == []
    assert document["assets"]["rows"]["table:columns"][1] == {"name": "x", "type": "int64"}
    assert set(listed) == {"collection.json", "rows.parquet"} | ({"index.parquet"} if rows == 2 else set())
    files = {path: hashlib.sha256((tmp_path / "t" / path).read_bytes()).hexdigest() for path in listed}
    assert {path: one.sha256 for path, one in listed.items()} == files
    card = dataset_card(rc.open(root, layers=[layer.url]))
    (file,) = [one for one in card["distribution"] if one["@id"] == "t/rows.parquet"]
    assert file["sha256"] == files["rows.parquet"]
    assert not verify_layer(layer, root=ds).problems


def test_the_collection_of_a_dataset_names_its_layers(both, shared, root, elevation):
    before = (root / "bigearthnet-v2" / "collection.json").read_bytes()
    arguments = ["info", str(root), "--layer", elevation.url, "--format", "stac"]
    document = json.loads(CliRunner().invoke(cli.app, arguments).stdout)

    assert stac_errors(document, shared / "stac_schemas") == []
    assert document["item_assets"]["elevation"]["bands"][0]["unit"] == "m"
    assert document["assets"]["elevation"]["href"] == f"{elevation.url}/rows.parquet"
    assert document["assets"]["elevation"]["table:row_count"] == 60
    assert (root / "bigearthnet-v2" / "collection.json").read_bytes() == before


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated", "ignore:The inplace keyword")
def test_the_card_names_layers_and_their_rows_can_be_read(root, elevation, covered):
    arguments = ["info", str(root), "--layer", elevation.url, "--format", "croissant"]
    card = json.loads(CliRunner().invoke(cli.app, arguments).stdout)
    # It downloads https:// and s3:// itself; where a file:// lies, it is told.
    here = {file["@id"]: file["contentUrl"].removeprefix("file://") for file in card["distribution"]}

    dataset = mlcroissant.Dataset(card, mapping=here)

    rows = list(dataset.records("elevation"))
    present = {row["elevation/patch_id"].decode() for row in rows if row["elevation/present"]}
    assert present == set(covered)


def test_the_api_has_layers_and_serves_local_ones(both, covered, shared):
    client = TestClient(create_app(both))
    (collection,) = client.get("/collections").json()["collections"]
    item = client.get(f"/collections/{collection['id']}/items/{covered[0]}").json()

    assert stac_errors(collection, shared / "stac_schemas") == []
    assert stac_errors(item, shared / "stac_schemas") == []
    assert {"elevation", "climate"} <= collection["assets"].keys()
    assert collection["assets"]["climate"]["table:columns"][1] == {"name": "temperature", "type": "double"}
    shard = client.get(item["assets"]["elevation"]["href"])
    assert shard.status_code == 200
    assert covered[0].encode() in shard.content


@pytest.mark.s3
def test_a_layer_in_a_bucket_says_which(ds, elevation, s3_bucket, shared):
    options = s3_bucket.storage_options
    store = rc.store.open_store(f"{s3_bucket.url}/elevation", options)
    for path, _ in elevation.store.list():
        store.put(path, bytes(elevation.store.get(path)))

    attached = ds.with_layers(rc.open_layer(store.url, options))
    item = list(attached.search(limit=2).items())[1].to_dict()

    assert stac_errors(item, shared / "stac_schemas") == []
    assert list(item["properties"]["storage:schemes"]) == ["elevation"]
    assert item["assets"]["elevation"]["storage:refs"] == ["elevation"]
    assert "storage:refs" not in item["assets"]["zarr"]
