"""Layers in the API and on the page: listed, filtered by, and shown with a patch."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import io
import json
import threading
from functools import partial

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import reben_cloud as rc
from reben_cloud.root.selection import Selection
from reben_cloud.schema import TensorSpec
from reben_cloud.views.picture import grey, relief
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root
from tests.serving import PATIENT_MS, answered_while_one_works, browser, client, serving, url  # noqa: F401

HEIGHTS = TensorSpec(name="dem", shape=(120, 120), dtype="int16", units="m", fill=-9999, pixel_m=10)
RAIN = TensorSpec(name="rain", shape=(6, 6), dtype="float32", units="mm", fill=float("nan"), pixel_m=200)


def heights(number):
    """Hills, different for each patch, with a hole."""
    y, x = np.mgrid[:120, :120] / 12
    found = (300 + 90 * np.sin(x + number) * np.cos(y) + 40 * x).astype(np.int16)
    found[:3, :3] = -9999
    return found


PICTURES_CAME = "[...document.querySelectorAll('#patch img')].every((i) => i.complete && i.naturalWidth > 1)"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two of three patches have heights and a climate, all have an embedding, and most have texts."""
    folder = tmp_path_factory.mktemp("serve")
    synthetic_root(folder / "root", 60)
    ds = rc.open(folder / "root")
    ids = ds.selection.patch_ids
    some = [patch_id for number, patch_id in enumerate(ids) if number % 3]
    vectors = np.random.default_rng(1).normal(size=(60, 16)).astype(np.float16)
    counts = [0, 2, 30]
    tables = {
        "climate": {
            "patch_id": some,
            "zone": [f"zone {number % 4}" for number in range(len(some))],
            "temperature": [float("nan"), *(float(number) for number in range(1, len(some)))],
        },
        "emb": {"patch_id": ids, "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 16)},
        "txt": {
            "patch_id": [i for number, i in enumerate(ids) for _ in range(counts[number % 3])],
            "input": [f"text {at} of {i}" for n, i in enumerate(ids) for at in range(counts[n % 3])],
        },
    }
    layers = [
        rc.write_table(folder / name, ds, name=name, table=pa.table(table), many=name == "txt")
        for name, table in tables.items()
    ]
    pixels = ((i, heights(number)) for number, i in enumerate(ids) if number % 3)
    layers.append(
        rc.write_layer(
            folder / "elevation", ds, name="elevation", tensors=HEIGHTS, patches=pixels, title="Elevation"
        )
    )
    wet = ((i, np.full((6, 6), np.nan, np.float32)) for i in some)
    layers.append(rc.write_layer(folder / "rain", ds, name="rain", tensors=RAIN, patches=wet))
    return rc.open(folder / "root", layers=[layer.url for layer in layers])


@pytest.fixture(scope="module")
def ids(dataset):
    return dataset.selection.patch_ids


def test_the_collection_lists_layers_and_the_queryables_their_fields(client):
    collection = client.get("/collections/bigearthnet-v2").json()
    named = client.get("/queryables").json()["properties"]

    found = {one["name"]: one for one in collection["reben:layers"]}
    assert {name: one["num_patches"] for name, one in found.items()} == {
        "climate": 40,
        "emb": 60,
        "txt": 40,
        "elevation": 40,
        "rain": 40,
    }
    assert found["climate"]["fields"] == ["climate:present", "climate:zone", "climate:temperature"]
    # Those of single rows are there as well: a filter finds the patches that have such a row.
    of_rows = {name for name in named if name.startswith("txt:")} - {"txt:present"}
    assert of_rows >= {"txt:input"}
    assert {
        name: kind["type"]
        for name, kind in named.items()
        if name.split(":")[0] in found and name not in of_rows
    } == {
        "climate:present": "boolean",
        "climate:zone": "string",
        "climate:temperature": "number",
        "emb:present": "boolean",
        "txt:present": "boolean",
        "elevation:present": "boolean",
        "rain:present": "boolean",
    }


@pytest.mark.parametrize(
    "cql2",
    ['"climate:temperature" > 20', "\"climate:zone\" = 'zone 1'", '"elevation:present" = false'],
)
def test_fields_of_layers_filter_and_are_properties(client, dataset, cql2):
    page = client.get("/search", params={"filter": cql2, "filter-lang": "cql2-text", "limit": 100}).json()

    want = dataset.search(cql2=cql2)
    assert 0 < page["numberMatched"] == len(want) < 60
    assert [item["id"] for item in page["features"]] == want.patch_ids
    columns = want.columns(["climate:zone", "elevation:present"]).to_pylist()
    assert [item["properties"].get("climate:zone") for item in page["features"]] == [
        row["climate:zone"] for row in columns
    ]
    assert {name for item in page["features"] for name in item["properties"] if "vector" in name} == set()
    bits = np.frombuffer(client.post("/explore/matches.bin", json={"cql2": cql2}).content, np.uint8)
    np.testing.assert_array_equal(np.flatnonzero(np.unpackbits(bits, bitorder="little")), want.rows)


def test_what_a_filter_cannot_name_is_said(client):
    answer = client.post("/explore/matches.bin", json={"cql2": '"climate:zones" = 1'})

    assert answer.status_code == 400
    assert "climate:zone" in answer.text


def test_a_patch_has_what_layers_say_of_it(client, ids):
    nothing, few, many = (client.get(f"/explore/rows/{row}").json() for row in (0, 4, 5))

    assert {one["name"] for one in nothing["layers"]} == {"emb"}
    shown = {one["name"]: one for one in few["layers"]}
    assert shown["climate"]["values"] == [["zone", "zone 2"], ["temperature", 2.0]]
    assert shown["emb"]["values"] == [["vector", "16 numbers"]]
    assert shown["txt"]["texts"] == [f"text {at} of {ids[4]}" for at in (0, 1)]
    known = heights(4)[heights(4) != -9999]
    assert shown["elevation"]["pictures"] == [["dem", f"elevation, {known.min()} to {known.max()} m"]]
    assert shown["rain"]["pictures"] == [["rain", "rain, no data"]]
    (texts,) = (one for one in many["layers"] if one["name"] == "txt")
    assert texts["num_texts"] == 30
    assert texts["texts"] == [f"text {at} of {ids[5]}" for at in range(20)]
    assert few["embeddings"] == ["emb:vector"]


def test_the_picture_of_heights_is_their_relief(client, ids):
    answer = client.get(f"/explore/patches/{ids[7]}/layers/elevation/dem.png")

    pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(pixels, relief(heights(7), pixel_m=10, nodata=-9999))
    for path in ("elevation/wrong", "climate/zone", "nothing/dem"):
        assert client.get(f"/explore/patches/{ids[7]}/layers/{path}.png").status_code == 404
    assert client.get(f"/explore/patches/{ids[0]}/layers/elevation/dem.png").status_code == 404


def test_patches_that_are_alike(client, dataset, ids):
    found = client.get(f"/explore/patches/{ids[3]}/nearest", params={"column": "emb:vector"}).json()

    want = dataset.selection.nearest(ids[3], column="emb:vector", k=8)
    assert [one["id"] for one in found] == want.selection.patch_ids
    assert [one["row"] for one in found] == want.selection.rows.tolist()
    for path, column, status in (("wrong", "emb:vector", 404), (ids[3], "emb:vectors", 400)):
        answer = client.get(f"/explore/patches/{path}/nearest", params={"column": column})
        assert answer.status_code == status


def test_items_that_are_alike(client, dataset, ids):
    path = f"/collections/bigearthnet-v2/items/{ids[3]}/nearest"

    found = client.get(path, params={"limit": 4}).json()

    want = dataset.selection.nearest(ids[3], k=4)
    assert [item["id"] for item in found["features"]] == want.selection.patch_ids
    assert [item["properties"]["reben:score"] for item in found["features"]] == want.scores.tolist()
    assert client.get(path, params={"limit": 0}).status_code == 400
    assert client.get(path.replace(ids[3], "nothing")).status_code == 404
    assert client.get(path.replace("bigearthnet-v2", "nothing")).status_code == 404


@pytest.mark.slow
def test_looks_through_embeddings_are_one_by_one_and_keep_nobody_else_waiting(dataset, ids, monkeypatch):
    begun, go_on, nearest = [], threading.Event(), Selection.nearest

    def slow(selection, *args, **options):
        begun.append(args)
        assert go_on.wait(PATIENT_S)
        return nearest(selection, *args, **options)

    monkeypatch.setattr(Selection, "nearest", slow)
    paths = [f"/collections/bigearthnet-v2/items/{one}/nearest" for one in ids[:30]]
    paths += [f"/explore/patches/{one}/nearest?column=emb:vector" for one in ids[:30]]
    with serving(dataset) as url:
        asks = [partial(httpx.get, f"{url}{path}", timeout=PATIENT_S) for path in paths]
        answers = answered_while_one_works(url, asks, begun, go_on)
    assert [one.status_code for one in answers] == [200] * 60


def test_the_server_keeps_no_vectors(client, dataset):
    client.get("/search", params={"limit": 1})

    tables = [dataset.patch_table, *(layer.rows for layer in dataset.layers.values())]
    assert "climate:zone" in {name for _, name in dataset.patch_table._columns}
    assert not {name for one in tables for _, name in one._columns if name.endswith("vector")}


@pytest.mark.parametrize(
    ("east", "north", "shade"),
    [
        pytest.param(0, 0, np.sqrt(0.5), id="flat"),
        pytest.param(np.sqrt(0.5), -np.sqrt(0.5), 1, id="faces the light"),
        pytest.param(-np.sqrt(0.5), np.sqrt(0.5), 0, id="faces away"),
        pytest.param(1, 1, np.sqrt(0.5) / np.sqrt(3), id="along the light"),
    ],
)
def test_a_plane_is_as_light_as_its_angle_to_the_sun(east, north, shade):
    y, x = np.mgrid[:8, :9] * 30.0

    pixels = relief(1000 + east * x - north * y, pixel_m=30, nodata=-9999)

    np.testing.assert_allclose(pixels, 255 * shade, atol=0.6)


def test_what_has_no_height_is_black():
    values = np.full((6, 6), 5.0, np.float32)
    values[0, 0], values[5, 5] = np.nan, -1

    pixels = relief(values, pixel_m=10, nodata=-1)[..., 0]

    black = np.zeros((6, 6), bool)
    black[[0, 0, 1, 5, 5, 4], [0, 1, 0, 5, 4, 5]] = True
    np.testing.assert_array_equal(pixels == 0, black)
    assert set(pixels[~black]) == {180}
    values[2, 2] = 9
    shades = grey(values, nodata=-1)[..., 0]
    assert (shades[0, 0], shades[5, 5], shades[2, 2], shades[3, 3]) == (0, 0, 255, 0)


@pytest.mark.browser
def test_the_page_filters_by_layers_and_shows_them(url, dataset, ids, tmp_path):
    with browser() as started:
        page = started.new_page(viewport={"width": 1300, "height": 1100})
        page.set_default_timeout(PATIENT_MS)
        problems: list[str] = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(url)
        page.wait_for_selector("body[data-ready]")

        def wait_for(count):
            page.wait_for_selector(f'#count[data-matched="{count}"]')

        page.click("#layers >> text=Elevation")
        wait_for(40)
        page.fill("#cql2", '"climate:zone" = \'zone 1\' OR "climate:temperature" > 30')
        page.press("#cql2", "Enter")
        page.evaluate("document.activeElement.blur()")
        want = dataset.search(
            has="elevation", cql2='"climate:zone" = \'zone 1\' OR "climate:temperature" > 30'
        )
        wait_for(len(want))
        page.click("[data-tab=stream]")
        found = {}
        exec(page.inner_text("#snippet").split("\n\nfrom")[0], found)
        assert found["sel"].patch_ids == want.patch_ids
        page.fill("#cql2", "\"climate:zones\" = 'zone 1'")
        page.evaluate("document.activeElement.blur()")
        page.wait_for_function("document.getElementById('cql2-error').textContent.includes('climate:zone')")
        page.click("text=reset all")
        wait_for(60)

        page.goto(f"{url}#patch={ids[5]}")
        page.wait_for_selector("#patch:not([hidden]) #like button")
        page.wait_for_function(PICTURES_CAME)
        assert "elevation, " in page.inner_text("#pictures")
        assert page.locator("#patch-layers li").count() == 20
        assert "txt (20 of 30)" in page.inner_text("#patch-layers")
        assert "zone 3" in page.inner_text("#patch-layers")
        page.click("text=more like this")
        page.wait_for_selector("#alike button img")
        page.wait_for_function(PICTURES_CAME)
        page.screenshot(path=tmp_path / "page.png")
        alike = dataset.selection.nearest(ids[5], column="emb:vector", k=8).selection.patch_ids
        buttons = page.locator("#alike button")
        assert [buttons.nth(n).get_attribute("title") for n in range(buttons.count())] == alike
        buttons.nth(1).click()
        page.wait_for_function(f"document.getElementById('patch-id').textContent === {json.dumps(alike[1])}")
    assert problems == []
