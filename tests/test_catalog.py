"""The static catalog: valid offline, every link and asset there, the committed one regenerated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fsspec
import mlcroissant
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import xarray as xr
from starlette.testclient import TestClient

import reben_cloud as rc
from reben_cloud.bigearthnet.labels import CLC
from reben_cloud.bigearthnet.official import describe, read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.build.publish import publish_metadata
from reben_cloud.checks.verify import verify
from reben_cloud.errors import ConflictError
from reben_cloud.serve import create_app
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests import webserver
from tests.official import table_of
from tests.stac import stac_errors

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small root with pixels."""
    folder = tmp_path_factory.mktemp("catalog") / "root"
    rows = table_of(120, num_products=4)
    build(make_plan(SyntheticSource(num_patches=120), rows, open_store(folder)))
    return folder


@pytest.fixture(scope="module")
def real(official_catalog):
    """The catalog of all real patches."""
    return official_catalog


@pytest.fixture(params=["built", pytest.param("real", marks=pytest.mark.slow)])
def folder(request):
    return request.getfixturevalue(request.param)


def documents(folder):
    return {
        path: document
        for path in sorted(folder.rglob("*.json"))
        if "zarr" not in path.parts and "_build" not in path.parts
        if (document := json.loads(path.read_text(encoding="utf-8"))).get("type")
        in ("Catalog", "Collection", "Feature")
    }


def test_every_document_is_valid(folder, shared):
    found = documents(folder)

    assert len(found) > 15
    for path, document in found.items():
        assert stac_errors(document, shared / "stac_schemas") == [], path


def test_the_schemas_do_find_faults(built, shared):
    item = next(d for d in documents(built).values() if "grid:code" in d.get("properties", {}))

    item["properties"]["proj:code"] = 32633
    item["properties"]["reben:split_counts"] = {"train": -1}

    assert len(stac_errors(item, shared / "stac_schemas")) == 2


class FsspecIO(pystac.StacIO):
    """Reads wherever fsspec reads, as pystac's own documentation has it for S3."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def read_text(self, source, *args, **kwargs):
        with fsspec.open(str(source), encoding="utf-8", **self.options) as file:
            return file.read()

    def write_text(self, dest, txt, *args, **kwargs):
        raise NotImplementedError


@pytest.fixture(params=["folder", "http", pytest.param("s3", marks=pytest.mark.s3)])
def published(request, built):
    """The root, where users find it: its URL, and fsspec's options."""
    if request.param == "folder":
        yield str(built), {}
    elif request.param == "http":
        with webserver.serve(built) as url:
            yield url, {}
    else:
        bucket = request.getfixturevalue("s3_bucket")
        store = open_store(f"{bucket.url}/reben", bucket.storage_options)
        for path in built.rglob("*"):
            if path.is_file() and "_build" not in path.parts:
                store.put(path.relative_to(built).as_posix(), path.read_bytes())
        yield store.url, bucket.storage_options


def test_every_link_and_asset_resolves(published, built):
    url, options = published
    catalog = pystac.Catalog.from_file(f"{url}/catalog.json", stac_io=FsspecIO(**options))

    num_documents, hrefs = 0, set()
    for parent, _, items in catalog.walk():
        for document in (parent, *items):
            num_documents += 1
            hrefs.update(link.get_absolute_href() for link in document.links)
            if not isinstance(document, pystac.Catalog) or isinstance(document, pystac.Collection):
                hrefs.update(asset.get_absolute_href() for asset in document.assets.values())

    assert num_documents == len(documents(built))
    inside = {href for href in hrefs if href.startswith(url)}
    assert hrefs - inside == {
        "https://cdla.dev/permissive-1-0/",
        "https://doi.org/10.5281/zenodo.10891137",
        "https://bigearth.net",
    }
    kinds = {href.rpartition(".")[2] for href in inside}
    assert kinds == {"json", "zarr", "tar", "parquet", "png"}
    for href in sorted(inside):
        # A Zarr asset is a group: over HTTP a folder is nothing that can be had.
        what = f"{href}/zarr.json" if href.endswith(".zarr") else href
        with fsspec.open(what, **options) as file:
            assert len(file.read(4)) == 4, href


def test_pystac_finds_the_products_and_xarray_opens_their_assets(published, built):
    url, options = published
    catalog = pystac.Catalog.from_file(f"{url}/catalog.json", stac_io=FsspecIO(**options))

    items = list(catalog.get_child("bigearthnet-v2").get_items())

    assert sum(item.properties["reben:num_patches"] for item in items) == 120
    assert sorted(item.id for item in items) == rc.open(built).products
    href = items[0].assets["zarr"].get_absolute_href()
    stack = xr.open_zarr(href, storage_options=options or None)
    assert stack.sizes["patch"] == items[0].properties["reben:num_patches"]


@pytest.mark.s3
def test_items_of_a_root_on_s3_say_which_server_has_them_and_nothing_secret(built, s3_bucket, shared):
    store = open_store(f"{s3_bucket.url}/reben", s3_bucket.storage_options)
    for path in built.rglob("*"):
        if path.is_file() and "_build" not in path.parts:
            store.put(path.relative_to(built).as_posix(), path.read_bytes())
    dataset = rc.open(store.url, s3_bucket.storage_options)

    item = next(dataset.search().items()).to_dict()

    assert stac_errors(item, shared / "stac_schemas") == []
    assert item["properties"]["storage:schemes"] == {
        "root": {
            "type": "custom-s3",
            "platform": s3_bucket.endpoint,
            "bucket": s3_bucket.name,
            "region": s3_bucket.region,
        }
    }
    for asset in item["assets"].values():
        assert asset["storage:refs"] == ["root"]
        assert asset["href"].startswith(f"{store.url}/")
    assert s3_bucket.secret not in json.dumps(item)
    assert s3_bucket.key not in json.dumps(item)
    with TestClient(create_app(dataset)) as client:
        for path in ("/collections/bigearthnet-v2", f"/collections/bigearthnet-v2/items/{item['id']}"):
            document = client.get(path).json()
            assert stac_errors(document, shared / "stac_schemas") == []
            assert "storage:schemes" in {**document, **document.get("properties", {})}


def test_the_server_of_a_store_is_told_without_its_password():
    def location(**options):
        return open_store("s3://images/reben", options).s3_location

    assert location(region="eu-west-3") == {"bucket": "images", "region": "eu-west-3"}
    found = location(endpoint_url="https://me:word@minio.example:9000/path?x=1", key="k", secret="s")
    assert found == {"bucket": "images", "region": "us-east-1", "endpoint": "https://minio.example:9000"}
    assert open_store("memory://x").s3_location is None


def test_shards_have_the_checksums_of_their_bytes(built):
    import hashlib

    shards = [d for d in documents(built).values() if "reben:shard_group" in d.get("properties", {})]
    assert len(shards) == 3 * len(rc.open(built).manifest["groups"])
    for item in shards[:3]:
        for asset in item["assets"].values():
            path = built / "bigearthnet-v2-shards" / item["id"] / asset["href"]
            data = path.read_bytes()
            assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()
            assert asset["file:size"] == len(data)
            assert asset["type"] == "application/x-tar"


def test_a_product_names_its_bands_dimensions_and_media_type(built):
    product = rc.open(built).products[0]
    item = json.loads((built / "bigearthnet-v2" / product / f"{product}.json").read_text())
    asset = item["assets"]["zarr"]

    assert asset["type"] == "application/vnd.zarr; version=3"
    assert [b["name"] for b in asset["bands"]][:2] == ["s2_10m[band=B02]", "s2_10m[band=B03]"]
    assert len(asset["bands"]) == 15
    stack = rc.open(built).open_zarr(product)
    for name, variable in asset["cube:variables"].items():
        assert list(stack[name].dims) == variable["dimensions"]
        for dim in variable["dimensions"]:
            size = asset["cube:dimensions"][dim]
            assert stack.sizes[dim] == (len(size["values"]) if "values" in size else size["extent"][1] + 1)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_a_product_has_a_true_colour_thumbnail_and_the_recipe_of_one(built):
    rasterio = pytest.importorskip("rasterio")
    dataset = rc.open(built)
    product = dataset.products[0]
    item = pystac.Item.from_file(built / "bigearthnet-v2" / product / f"{product}.json")
    asset, render = item.assets["thumbnail"], item.properties["renders"]["true-color"]

    with rasterio.open(asset.get_absolute_href()) as image:
        pixels = image.read()

    red, green, blue = (item.assets["zarr"].extra_fields["bands"][n - 1] for n in render["bidx"])
    assert [b["eo:common_name"] for b in (red, green, blue)] == ["red", "green", "blue"]
    raster = dataset.mosaic(product, bands=["B04", "B03", "B02"]).values
    height, width = item.properties["proj:shape"]
    assert raster.shape[1:] == (height, width)
    assert pixels.shape == (4, height // 15, width // 15)
    means = raster.reshape(3, height // 15, 15, width // 15, 15).mean(axis=(2, 4))
    (_, white), gamma = render["rescale"][0], float(render["color_formula"].removeprefix("gamma RGB "))
    want = 255 * np.clip(means / white, 0, 1) ** (1 / gamma)
    inside = pixels[3] == 255
    assert inside.sum() == item.properties["reben:num_patches"] * 8**2
    assert np.abs(pixels[:3, inside] - want[:, inside]).max() <= 1.5
    assert not pixels[:, ~inside].any()
    assert asset.roles == ["thumbnail"]
    listed = pq.read_table(built / "objects.parquet").to_pylist()
    row = next(o for o in listed if o["path"] == f"bigearthnet-v2/{product}/thumbnail.png")
    assert asset.extra_fields["file:checksum"] == f"1220{row['sha256']}"


def test_a_damaged_thumbnail_is_found(built, tmp_path):
    shutil.copytree(built, tmp_path / "root")
    path = next((tmp_path / "root").rglob("thumbnail.png"))
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)

    report = verify(rc.open(tmp_path / "root"))

    assert report.problems == (f"{path.relative_to(tmp_path / 'root')}: damaged, its sha256 differs",)


@pytest.mark.parametrize("modality", ["s2", "s1", "map"])
def test_a_root_of_one_modality_is_valid_and_has_pictures_of_sentinel_2_only(modality, tmp_path, shared):
    source = SyntheticSource(num_patches=6)
    build(make_plan(source, table_of(6), open_store(tmp_path / "root"), modalities=(modality,)))

    assert bool(list((tmp_path / "root").rglob("thumbnail.png"))) == (modality == "s2")
    for path, document in documents(tmp_path / "root").items():
        assert stac_errors(document, shared / "stac_schemas") == [], path
        assert modality == "s2" or "renders" not in document.get("properties", {})


def test_the_reference_maps_classes_have_names_and_colours(built):
    collection = json.loads((built / "bigearthnet-v2" / "collection.json").read_text())

    classes = collection["item_assets"]["zarr"]["classification:classes"]

    assert [c["value"] for c in classes] == list(CLC)
    assert len(classes) == 45
    assert next(c for c in classes if c["value"] == 312)["color_hint"] == "00A600"


@pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")
def test_mlcroissant_accepts_the_card(folder):
    card = json.loads((folder / "bigearthnet-v2" / "croissant.json").read_text(encoding="utf-8"))

    dataset = mlcroissant.Dataset(card)

    assert dataset.metadata.issues.errors == set()
    assert [r.name for r in dataset.metadata.record_sets] == ["patches"]


def test_the_committed_catalog_is_what_the_real_metadata_gives_byte_for_byte(real):
    pinned = f"pyarrow=={pa.__version__}" in (REPOSITORY / "constraints.txt").read_text().split()

    def comparable(path):
        if pinned:
            return path.read_bytes()
        # The parquet file has the release of its library in it, and compressed bytes are that library's.
        document = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "collection.json":
            for name in ("file:size", "file:checksum"):
                document["assets"]["patches"].pop(name)
        if path.name == "croissant.json":
            for name in ("contentSize", "sha256"):
                document["distribution"][0].pop(name)
        return document

    committed = REPOSITORY / "stac"
    names = ["catalog.json", *(p.relative_to(real) for p in (real / "bigearthnet-v2").rglob("*.json"))]
    assert len(names) == 1 + 1 + 1 + 115
    for name in names:
        assert comparable(real / name) == comparable(committed / name), name
    kept = {p.relative_to(committed) for p in committed.rglob("*.json")} - {Path("reben/v1.0.0/schema.json")}
    assert kept == set(map(Path, names))
    assert sum(p.stat().st_size for p in committed.rglob("*") if p.is_file()) < 2e6


def test_a_second_run_changes_nothing_and_another_dataset_is_refused(real, official_files):
    before = {p: p.read_bytes() for p in real.rglob("*") if p.is_file()}
    fewer = read_official(official_files[1:])

    with pytest.raises(ConflictError, match="another dataset"):
        publish_metadata(describe(fewer), REBEN, open_store(real), given=fewer.column_names)

    assert {p: p.read_bytes() for p in real.rglob("*") if p.is_file()} == before
