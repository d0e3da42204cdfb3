"""The server of an LMDB, which has neither the documents nor the files of a root."""

from __future__ import annotations

import shutil

import httpx
import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.schema import TensorSpec
from reben_cloud.stream import RawLoader
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root
from tests.serving import browser, looking_at, serving
from tests.stac import stac_errors

HEIGHTS = TensorSpec(name="dem", shape=(60, 60), dtype="int16", units="m", fill=-9999, pixel_m=20)
FORMS = ["export", "rico-hdl's", "rico-hdl's in a folder"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("root") / "root"
    synthetic_root(folder, 24, num_products=2)
    return rc.open(folder)


@pytest.fixture(scope="module")
def lmdbs(root, tmp_path_factory):
    """Form -> folder: an export, and the same as rico-hdl would have written it, beside and above its metadata."""
    folders = {form: tmp_path_factory.mktemp("lmdb") / "it" for form in FORMS}
    export, beside, above = folders.values()
    root.search().export_lmdb(export)
    for folder, data in ((beside, beside), (above, above / "BigEarthNet")):
        data.mkdir(parents=True)
        shutil.copy(export / "data.mdb", data)
        for file in export.glob("metadata*.parquet"):
            shutil.copy(file, folder)
    return folders


@pytest.fixture(scope="module")
def layer(root, tmp_path_factory):
    pixels = ((one, np.full((60, 60), n, np.int16)) for n, one in enumerate(root.selection.patch_ids))
    return rc.write_layer(
        tmp_path_factory.mktemp("layer") / "dem", root, name="dem", tensors=HEIGHTS, patches=pixels
    )


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def hrefs(*documents):
    return [asset["href"] for one in documents for asset in one.get("assets", {}).values()]


@pytest.mark.parametrize("form", FORMS)
def test_the_collection_is_the_roots_without_its_files(root, lmdbs, layer, form, shared):
    with serving(root) as url:
        want = httpx.get(f"{url}/collections/bigearthnet-v2", timeout=PATIENT_S).json()
    with serving(rc.open(lmdbs[form], layers=[layer])) as url:
        (found,) = httpx.get(f"{url}/collections", timeout=PATIENT_S).raise_for_status().json()["collections"]

    assert found.keys() - want.keys() == {"reben:layers"}
    for name in ("id", "title", "description", "license", "extent", "summaries", "providers", "sci:doi"):
        assert found[name] == want[name], name
    assert [link["rel"] for link in found["links"]] == [link["rel"] for link in want["links"]]
    assert list(found["assets"]) == ["dem"]
    assert found["item_assets"].keys() == want["item_assets"].keys() - {"zarr"} | {"dem", "dem-dem"}
    assert stac_errors(found, shared / "stac_schemas") == []


@pytest.mark.parametrize("form", FORMS)
def test_items_name_nothing_that_is_not_there(root, lmdbs, form):
    with serving(rc.open(lmdbs[form])) as url, httpx.Client(base_url=url, timeout=PATIENT_S) as client:
        items = client.get("/search?limit=100").json()["features"]
        some = [client.head(href).status_code for href in hrefs(*items[:3])]

    assert [item["id"] for item in items] == root.search().patch_ids
    assert set(some) == {200}
    assert {name for item in items for name in item["assets"]} >= {"B04", "VV", "reference_map"}
    assert not any(href.endswith(".zarr") for href in hrefs(*items))


@pytest.mark.parametrize("form", FORMS)
def test_the_page_names_what_opens_the_dataset(root, lmdbs, form):
    with serving(rc.open(lmdbs[form])) as url:
        named = httpx.get(f"{url}/explore/index.json", timeout=PATIENT_S).json()["url"]
        opened = rc.open(named)
        found = opened.search(split="train")
        (batch,) = RawLoader(opened.search(limit=3), modalities=["map"], batch_size=3)

    assert sorted(found.patch_ids) == sorted(root.search(split="train").patch_ids)
    assert batch["map"].shape == (3, 120, 120)


@pytest.mark.browser
def test_the_page_has_a_place_for_a_path_where_no_address_opens_the_dataset(chromium, lmdbs, layer):
    with (
        serving(rc.open(lmdbs["export"], layers=[layer])) as url,
        looking_at(chromium, f"{url}#has=dem") as page,
    ):
        page.click("[data-tab=stream]")
        code = page.inner_text("#snippet").split("\n\nfrom")[0]
        found = {}
        exec(code.replace("PATH_OF_THE_DATASET", str(lmdbs["export"])), found)
        page.click("[data-tab=export]")
        assert page.inner_text("#snippet").endswith('has=["dem"])\nsel.export_lmdb("selection.lmdb")')
        page.click("[data-tab=cli]")

        assert "reben-cloud search PATH_OF_THE_DATASET --layer=" in page.inner_text("#snippet")
    assert len(found["sel"]) == 24
