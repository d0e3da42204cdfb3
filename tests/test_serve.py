"""The STAC API as clients see it, and what the page is made of; `test_explorer` has the page itself."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import threading
from functools import partial

import httpx
import numpy as np
import pyarrow.parquet as pq
import pystac_client
import pytest
from pystac.validation import RegisteredValidator
from pystac.validation.stac_validator import JsonSchemaSTACValidator

import reben_cloud as rc
from reben_cloud.serve import body_limit, lanes
from tests.conftest import PATIENT_S
from tests.roots import synthetic_root
from tests.serving import answered_while_one_works, client, serving, url  # noqa: F401
from tests.stac import schemas, stac_errors

POLYGON = {"type": "Polygon", "coordinates": [[[-10, 36], [33, 36], [33, 69], [-10, 69], [-10, 36]]]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "root"
    synthetic_root(folder, 150, num_products=5)
    return rc.open(folder)


def test_an_item_has_one_id_whatever_other_names_its_patch_has(client, dataset):
    row = dataset.search(limit=1).to_pandas().iloc[0]

    for name, expected in ((row.patch_id, [row.patch_id]), (row.s1_name, []), (row.s2v1_name, [])):
        found = client.get("/search", params={"ids": name}).json()
        assert [item["id"] for item in found["features"]] == expected
        status = client.get(f"/collections/bigearthnet-v2/items/{name}").status_code
        assert status == (200 if expected else 404)


def test_pystac_client_finds_what_search_finds(url, dataset):
    catalog = pystac_client.Client.open(url)
    # pystac-client spells both days out, from their first to their last second.
    query = {"bbox": (-10, 36, 40, 69), "datetime": "2017-06-01/2018-02-28"}

    found = catalog.search(**query, limit=20)
    filtered = catalog.search(filter="\"reben:split\" = 'train'", filter_lang="cql2-text", method="GET")
    newest = catalog.search(sortby="-properties.datetime", max_items=5)

    want = dataset.search(**query)
    assert found.matched() == len(want)
    assert [item.id for item in found.items()] == want.patch_ids
    assert filtered.matched() == len(dataset.search(split="train"))
    times = [item.datetime for item in newest.items()]
    assert times == sorted(dataset.search().to_pandas().datetime, reverse=True)[:5]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_hold_every_item_once_in_order(client, dataset, method):
    request = {"limit": 40, "sortby": "-datetime"} if method == "GET" else {"limit": 40}
    page = client.request(method, "/search", **{"params" if method == "GET" else "json": request}).json()
    seen = []
    while True:
        seen += [item["id"] for item in page["features"]]
        assert page["numberMatched"] == len(dataset)
        following = [link for link in page["links"] if link["rel"] == "next"]
        if not following:
            break
        link = following[0]
        page = client.request(link["method"], link["href"], json=link.get("body")).json()

    want = dataset.search(sortby="-datetime" if method == "GET" else None).patch_ids
    assert seen == want


def test_filters_sort_and_fields_together_by_post(client, dataset):
    body = {
        "collections": ["bigearthnet-v2"],
        "intersects": POLYGON,
        "filter-lang": "cql2-json",
        "filter": {"op": "in", "args": [{"property": "reben:split"}, ["test", "train"]]},
        "sortby": [
            {"field": "properties.reben:country", "direction": "asc"},
            {"field": "id", "direction": "desc"},
        ],
        "fields": {"include": ["id", "properties.reben:country"]},
        "limit": 1000,
    }

    page = client.post("/search", json=body).json()

    want = dataset.search(split=["test", "train"], sortby=["country", "-id"])
    assert [item["id"] for item in page["features"]] == want.patch_ids
    assert page["features"][0] == {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": want.patch_ids[0],
        "collection": "bigearthnet-v2",
        "properties": {"reben:country": want.column("reben:country")[0].as_py()},
    }


DEFAULT = {"type", "stac_version", "id", "collection", "geometry", "bbox", "links", "assets"}


@pytest.mark.parametrize(
    ("fields", "names", "properties"),
    [
        pytest.param({}, DEFAULT, {"datetime"}, id="empty"),
        pytest.param({"include": [], "exclude": []}, DEFAULT, {"datetime"}, id="empty lists"),
        pytest.param({"include": ["bbox"]}, {"bbox"}, None, id="one"),
        pytest.param({"exclude": ["geometry"]}, DEFAULT - {"geometry"}, "all", id="all but one"),
        pytest.param(
            {"include": [], "exclude": ["geometry"]},
            DEFAULT - {"geometry"},
            {"datetime"},
            id="default but one",
        ),
        pytest.param(
            {"include": ["properties"], "exclude": ["properties.platform"]},
            set(),
            "all but one",
            id="properties",
        ),
        pytest.param(
            {"include": ["properties.platform"], "exclude": ["properties"]},
            set(),
            {"platform"},
            id="one property",
        ),
        pytest.param({"include": ["bbox"], "exclude": ["bbox", "id"]}, {"bbox"}, None, id="in both"),
    ],
)
def test_fields_are_those_that_the_extension_says(client, fields, names, properties):
    parameter = ",".join([*fields.get("include", []), *(f"-{name}" for name in fields.get("exclude", []))])
    whole = client.get("/search", params={"limit": 1}).json()["features"][0]

    found = [client.post("/search", json={"limit": 1, "fields": fields}).json()["features"][0]]
    if fields != {"include": [], "exclude": ["geometry"]}:  # GET has no word for an empty list
        found.append(client.get("/search", params={"limit": 1, "fields": parameter}).json()["features"][0])

    every = set(whole["properties"])
    named = {"all": every, "all but one": every - {"platform"}}
    wanted = named[properties] if isinstance(properties, str) else properties
    top = names | {"type", "stac_version", "id", "collection"} | ({"properties"} if wanted else set())
    for item in found:
        assert set(item) - {"stac_extensions"} == top
        assert ("stac_extensions" in item) == (properties == "all")
        assert item.get("properties") == (wanted and {name: whole["properties"][name] for name in wanted})


def test_fields_hold_on_every_page(client):
    fields = {"include": [], "exclude": ["geometry"]}
    page = client.post("/search", json={"limit": 1, "fields": fields}).json()

    link = next(link for link in page["links"] if link["rel"] == "next")
    following = client.post(link["href"], json=link["body"]).json()

    assert set(following["features"][0]) == set(page["features"][0])


def test_items_have_a_thumbnail(client):
    (item,) = client.get("/search?limit=1").json()["features"]
    asset = item["assets"]["thumbnail"]

    assert asset["roles"] == ["thumbnail"]
    picture = client.get(asset["href"])
    assert picture.headers["content-type"] == asset["type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")


def test_queryables_say_the_type_of_all_but_shapes(client):
    known = client.get("/queryables").json()["properties"]

    assert {name for name, kind in known.items() if "type" not in kind} == {"geometry"}
    assert known["reben:labels"]["items"]["type"] == known["reben:split"]["type"] == "string"


def test_queryables_name_every_country_of_the_dataset(client, dataset):
    known = client.get("/queryables").json()["properties"]["reben:country"]["enum"]

    assert known == dataset.countries
    assert {*dataset.search().to_pandas().country} <= set(known)


def test_a_search_that_takes_too_long_is_given_up_and_others_go_on(client, monkeypatch):
    monkeypatch.setattr(lanes, "MAX_SEARCH_S", 0.0)
    slow = client.get("/search", params={"bbox": "1,2,3,4.5"})
    monkeypatch.undo()

    assert slow.status_code == 503
    assert "simpler filter" in slow.json()["description"]
    assert int(slow.headers["retry-after"]) > 0
    assert client.get("/search", params={"bbox": "1,2,3,4.5"}).status_code == 200


def test_items_are_valid_and_their_assets_open(client, shared):
    page = client.get("/collections/bigearthnet-v2/items", params={"limit": 5}).json()

    for item in page["features"]:
        assert stac_errors(item, shared / "stac_schemas") == []
        alone = client.get(next(link["href"] for link in item["links"] if link["rel"] == "self")).json()
        assert alone == item
        metadata = httpx.get(f"{item['assets']['zarr']['href']}/zarr.json", timeout=PATIENT_S).json()
        assert metadata["node_type"] == "group"
    collection = client.get("/collections/bigearthnet-v2").json()
    assert stac_errors(collection, shared / "stac_schemas") == []
    assert httpx.head(collection["assets"]["patches"]["href"], timeout=PATIENT_S).status_code == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(("GET", "/search?bbox=1,2,3"), 400, id="three numbers"),
        pytest.param(("GET", "/search?bbox=a,b,c,d"), 400, id="no numbers"),
        pytest.param(("GET", "/search?bbox=5,50,1,51"), 200, id="antimeridian"),
        pytest.param(("GET", "/search?datetime=June"), 400, id="no time"),
        pytest.param(("GET", "/search?datetime=../.."), 400, id="open"),
        pytest.param(("GET", "/search?limit=0"), 400, id="limit 0"),
        pytest.param(("GET", "/search?limit=-1"), 400, id="limit -1"),
        pytest.param(("GET", "/search?filter=id%20="), 400, id="broken filter"),
        pytest.param(("GET", f"/search?filter={'(' * 9000}id='a'{')' * 9000}"), 400, id="nested filter"),
        pytest.param(("GET", "/search?filter=height%20%3E%203"), 400, id="unknown property"),
        pytest.param(("GET", "/search?sortby=height"), 400, id="unknown sort"),
        pytest.param(("GET", "/search?token=next:3"), 400, id="foreign token"),
        pytest.param(("GET", "/search?token=9999999"), 400, id="token beyond the end"),
        pytest.param(("GET", "/search?intersects={"), 400, id="broken geometry"),
        pytest.param(("GET", "/search?intersects=[5]"), 400, id="a list for a geometry"),
        pytest.param(("GET", "/search?ids=none"), 200, id="no such ids"),
        pytest.param(("GET", "/search?limit=100000"), 200, id="huge limit"),
        pytest.param(("GET", "/collections/none"), 404, id="no collection"),
        pytest.param(("GET", "/collections/bigearthnet-v2/items/none"), 404, id="no item"),
        pytest.param(("GET", "/search?collections=none"), 200, id="foreign collection"),
        pytest.param(("GET", "/explore/patches/none"), 404, id="no patch"),
        pytest.param(("GET", "/explore/none.js"), 404, id="no page"),
        pytest.param(("GET", "/root/../../etc/passwd"), 404, id="out of the root"),
        pytest.param(("DELETE", "/collections/bigearthnet-v2"), 405, id="read-only"),
    ],
)
def test_bad_requests_get_the_status_that_the_specification_asks_for(client, request_, status):
    answer = client.request(*request_)

    assert answer.status_code == status
    if status == 400:
        assert answer.json()


@pytest.mark.parametrize(
    ("datetime", "status"),
    [
        ("2017-06-13T10:10:31Z", 200),
        ("2017-06-13t10:10:31.5+02:00", 200),
        ("2017-06-01T00:00:00Z/..", 200),
        ("/2017-06-01T00:00:00Z", 200),
        ("2017-06", 400),
        ("2017-06-13", 400),
        ("2017-06-13T10:10:31", 400),
        ("2018-01-01T00:00:00Z/2017-01-01T00:00:00Z", 400),
        ("../..", 400),
        ("2017-13-01T00:00:00Z", 400),
    ],
)
def test_times_have_one_grammar_in_all_requests(client, datetime, status):
    items = client.get("/collections/bigearthnet-v2/items", params={"datetime": datetime})
    found = (
        client.get("/search", params={"datetime": datetime}),
        client.post("/search", json={"datetime": datetime}),
    )

    assert [one.status_code for one in (items, *found)] == [status] * 3
    if status == 200:
        counts = {one.json()["numberMatched"] for one in (items, *found)}
        assert len(counts) == 1


BOX = {"bbox": [20, 30, -20, 75]}


def test_boxes_over_the_antimeridian_are_taken_in_all_requests(client, dataset):
    text = ",".join(map(str, BOX["bbox"]))
    want = len(dataset.search(**BOX))
    filter_ = {"op": "s_intersects", "args": [{"property": "geometry"}, BOX]}
    answers = [
        client.get("/search", params={"bbox": text}),
        client.get("/collections/bigearthnet-v2/items", params={"bbox": text}),
        client.post("/search", json=BOX),
        client.post("/search", json={"bbox": [20, 30, 0, -20, 75, 100]}),
        client.post("/search", json={"filter": filter_}),
    ]

    assert 0 < want < len(dataset)
    assert [one.json()["numberMatched"] for one in answers] == [want] * len(answers)


FILTERS = {
    "case": (
        "\"reben:split\" = 'train' AND CASEI(\"reben:country\") = CASEI('FINLAND')",
        {"split": "train", "country": "Finland"},
    ),
    "spatial": ("S_WITHIN(geometry, BBOX(5, 40, 30, 66)) OR S_DISJOINT(geometry, BBOX(5, 40, 30, 66))", None),
    "array": (
        "A_OVERLAPS(\"reben:labels\", ('Pastures', 'Arable land'))",
        {"labels": ["Pastures", "Arable land"]},
    ),
    "temporal": (
        "T_AFTER(datetime, TIMESTAMP('2017-09-01T00:00:00Z'))",
        {"datetime": "2017-09-01T00:00:01Z/.."},
    ),
    "accents": ("ACCENTI(\"reben:country\") = ACCENTI('Fínlånd')", {"country": "Finland"}),
    "arithmetic": ('1 + 1 = 2 AND "reben:zarr_row" * 2 > 1e9', {"ids": []}),
    "property beside property": ('id = id AND "reben:split" <> "reben:country"', {}),
    "like, between, in": (
        "id LIKE 'S2%' AND \"reben:zarr_row\" BETWEEN 0 AND 1e9 AND \"reben:split\" IN ('test')",
        {"split": "test"},
    ),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_in_text_is_the_same_by_get_and_post_and_of_items(client, dataset, name):
    text, query = FILTERS[name]
    by_text = {"filter": text, "filter-lang": "cql2-text", "limit": 1000}
    answers = [
        client.get("/search", params=by_text),
        client.post("/search", json=by_text),
        client.post("/search", json={"filter": text, "limit": 1000}),
        client.get("/collections/bigearthnet-v2/items", params={"filter": text, "limit": 1000}),
    ]

    want = dataset.search(**({"cql2": text} if query is None else query)).patch_ids
    for one in answers:
        assert [item["id"] for item in one.raise_for_status().json()["features"]] == want


def test_what_is_declared_of_filters_is_what_works(client):
    declared = client.get("/conformance").json()["conformsTo"]
    classes = {one.rpartition("/")[2] for one in declared if "/cql2/" in one}

    assert classes == {
        *(
            "cql2-text",
            "cql2-json",
            "basic-cql2",
            "advanced-comparison-operators",
            "case-insensitive-comparison",
        ),
        *("accent-insensitive-comparison", "basic-spatial-functions", "basic-spatial-functions-plus"),
        *("spatial-functions", "temporal-functions", "array-functions", "property-property", "arithmetic"),
    }


def test_pystac_client_merges_the_queryables_of_the_collection(url, client):
    catalog = pystac_client.Client.open(url)

    merged = catalog.get_merged_queryables(["bigearthnet-v2"])
    of_collection = catalog.get_collection("bigearthnet-v2").get_queryables()

    assert (
        merged["properties"] == of_collection["properties"] == client.get("/queryables").json()["properties"]
    )
    assert of_collection["$id"] == f"{url}/collections/bigearthnet-v2/queryables"
    assert client.get("/collections/other/queryables").status_code == 404


def test_rustac_finds_what_search_finds(url, dataset):
    rustac = pytest.importorskip("rustac")
    query = {"bbox": [-10, 36, 40, 69], "datetime": "2017-06-01T00:00:00Z/2018-02-28T23:59:59Z"}

    async def search(**options):
        return await rustac.search(url, limit=30, **options)

    found = asyncio.run(search(**query))
    filtered = asyncio.run(search(filter="\"reben:split\" = 'train'"))

    assert [item["id"] for item in found] == dataset.search(**query).patch_ids
    assert [item["id"] for item in filtered] == dataset.search(split="train").patch_ids


def test_bbox_and_intersects_together_are_refused(client):
    both = {"bbox": [0, 50, 1, 51], "intersects": POLYGON}

    assert client.post("/search", json=both).status_code == 400
    parameters = {"bbox": "0,50,1,51", "intersects": json.dumps(POLYGON)}
    assert client.get("/search", params=parameters).status_code == 400


def test_a_huge_body_is_refused_and_any_page_may_ask(client):
    points = [[0.001 * i, 0] for i in range(100_000)]

    assert (
        client.post("/search", json={"intersects": {"type": "LineString", "coordinates": points}}).status_code
        == 413
    )
    answer = client.get("/search", headers={"Origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_browsers_get_the_page_and_clients_the_catalog(client):
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.text.startswith("<!doctype html>")
    assert "Accept" in page.headers["vary"].split(", ")
    head = client.head("/", headers={"Accept": "text/html"})
    assert (head.content, head.headers["content-length"]) == (b"", page.headers["content-length"])
    assert client.get("/", headers={"Accept": "application/json"}).json()["type"] == "Catalog"
    assert client.get("/").json()["stac_version"] == "1.1.0"


def test_footprints_hold_what_the_table_holds(client, dataset):
    index = client.get("/explore/index.json").json()
    assert "file:" not in json.dumps(index)
    assert index["url"] == f"{client.base_url}/root"
    data = client.get("/explore/footprints.bin").content
    n = len(dataset)

    assert len(data) == n * (4 * 4 + 4 + 2 + 3)
    west = np.frombuffer(data, "<i4", n)
    frame = dataset.search().to_pandas()
    np.testing.assert_array_equal(west, np.round(dataset.search().to_geopandas().bounds.minx * 1e7))
    labels = np.frombuffer(data, "<u4", n, 16 * n)
    for bit, label in enumerate(index["labels"]):
        np.testing.assert_array_equal(labels >> bit & 1, [label["name"] in row for row in frame.labels])
    products = np.frombuffer(data, "<u2", n, 20 * n)
    codes = [products, *np.frombuffer(data, "u1", 2 * n, 22 * n).reshape(2, n)]
    names = [[p["name"] for p in index["products"]], index["splits"], index["countries"]]
    for code, known, column in zip(codes, names, ("product", "split", "country"), strict=True):
        assert [known[c] for c in code] == frame[column].tolist()
    assert [p["square"] for p in index["products"]] == [name[-5:] for name in names[0]]  # ..._T33UUP


def bits_of(rows, count):
    mask = np.zeros(count, bool)
    mask[rows] = True
    return np.packbits(mask, bitorder="little").tobytes()


@pytest.mark.parametrize(
    "conditions",
    [
        {"s1_datetime": "2017-07-01/.."},
        {"cql2": "country = 'Finland'"},
        {"has": []},
        {"s1_datetime": "../2018-01-01", "cql2": "split = 'test'"},
    ],
)
def test_the_server_judges_what_the_page_cannot(client, dataset, conditions):
    want = dataset.search(**{name: value for name, value in conditions.items() if value})

    answer = client.post("/explore/matches.bin", json=conditions)

    assert answer.content == bits_of(want.rows, len(dataset))


def test_patches_found_are_listed_and_written(client, dataset):
    rows = dataset.search(split="test").rows
    ids = dataset.search(split="test").patch_ids
    bits = bits_of(rows, len(dataset))

    listed = client.get("/explore/list", params={"rows": ",".join(map(str, rows[:3]))}).json()

    assert [(one["row"], one["id"]) for one in listed] == list(zip(rows[:3].tolist(), ids[:3], strict=True))
    assert client.post("/explore/found.ids", content=bits).text.split() == ids
    table = pq.read_table(io.BytesIO(client.post("/explore/found.parquet", content=bits).content))
    assert table.column("id").to_pylist() == ids


def test_bits_are_not_taken_for_lists(client, dataset, monkeypatch):
    bits = b"[" * (len(dataset) // 8) + bytes(1)
    monkeypatch.setattr(body_limit, "MAX_LISTS", 10)

    as_bits, as_json = ({"Content-Type": f"application/{kind}"} for kind in ("octet-stream", "json"))
    written = client.post("/explore/found.ids", content=bits, headers=as_bits)
    refused = client.post("/search", content=bits, headers=as_json)

    assert len(written.text.split()) == 5 * (len(bits) - 1)
    assert "lists" in refused.json()["description"]


@pytest.mark.slow
def test_files_are_written_one_by_one_and_keep_nobody_else_waiting(dataset, monkeypatch):
    begun, go_on = [], threading.Event()

    def slow(selection, form):
        begun.append(form)
        assert go_on.wait(PATIENT_S)
        yield b"done"

    monkeypatch.setattr("reben_cloud.serve.found.render", slow)
    bits = bits_of(np.arange(3), len(dataset))
    with serving(dataset) as url:
        ask = partial(httpx.post, f"{url}/explore/found.ids", content=bits, timeout=PATIENT_S)
        answers = answered_while_one_works(url, [ask] * 60, begun, go_on)
    assert [one.content for one in answers] == [b"done"] * 60


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/explore/matches.bin", b"null"),
        ("/explore/matches.bin", b'{"ids": 3}'),
        ("/explore/matches.bin", b'{"labels": ["x"]}'),
        ("/explore/matches.bin", b'{"s1_datetime": "yesterday"}'),
        ("/explore/found.ids", b""),
        ("/explore/found.ids", bytes(19)),
        ("/explore/found.parquet", bytes(20)),
        ("/explore/found.zip", bytes(19)),
    ],
)
def test_what_the_page_never_asks_is_refused(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code in (400, 422)


@pytest.mark.parametrize("rows", ["", "x", "1,x", "150", "-1", "9" * 5_000, ",".join("1" * 101)])
def test_rows_that_are_not_there_are_not_listed(client, rows):
    assert client.get("/explore/list", params={"rows": rows}).status_code == 400


def test_files_of_the_page_are_asked_for_again_and_not_sent_again(client):
    page = client.get("/", headers={"Accept": "text/html"}).text
    named = ["explore/explore.css", "explore/main.js", "explore/land.json", "explore/explore.html"]

    for name in named:
        answer = client.get(name)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
        again = client.get(name, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert all(name in page for name in named[:2])
    assert client.get("/explore/nothing.js").status_code == 404


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_pictures_are_pngs_of_the_patch(client, dataset, tmp_path):
    import rasterio

    patch_id = dataset.search().patch_ids[7]
    (tmp_path / "map.png").write_bytes(client.get(f"/explore/patches/{patch_id}/reference-map.png").content)

    with rasterio.open(tmp_path / "map.png") as image:
        pixels = image.read()
    described = client.get(f"/explore/patches/{patch_id}").json()
    assert pixels.shape == (3, 120, 120)
    colors, counts = np.unique(pixels.reshape(3, -1), axis=1, return_counts=True)
    found = {f"#{r:02x}{g:02x}{b:02x}": c / 14_400 for (r, g, b), c in zip(colors.T, counts, strict=True)}
    assert found == {e["color"]: pytest.approx(e["share"], abs=1e-4) for e in described["legend"]}
    assert sorted({e["label"] for e in described["legend"]}) == sorted(described["labels"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_stac_api_validator_has_no_finding(url, shared, monkeypatch):
    validations = pytest.importorskip("stac_api_validator.validations")
    answers = schemas(shared / "stac_schemas")

    def offline(url, *args, **kwargs):
        known = answers.get(str(url).rstrip("#"))
        if known is None:
            raise AssertionError(f"the validator asks for {url}, which is not in the stored schemas")
        return known

    # The validator's only way to a schema, wherever it was imported to.
    for module in [m for name, m in sys.modules.items() if name.startswith(("stac_valid", "stac_check"))]:
        for name in ("fetch_and_parse_schema", "fetch_schema_with_override"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, offline)
    # pystac's own, which fetches what it does not have.
    validator = JsonSchemaSTACValidator()
    validator.schema_cache = {**validator.schema_cache, **answers}
    monkeypatch.setattr(RegisteredValidator, "_validator", validator)
    classes = [
        "core",
        "collections",
        "features",
        "item-search",
        "filter",
        "item-search#sort",
        "item-search#fields",
    ]

    _, errors = validations.validate_api(
        root_url=url,
        ccs_to_validate=classes,
        collection="bigearthnet-v2",
        geometry=json.dumps(POLYGON),
        auth_bearer_token=None,
        auth_query_parameter=None,
        fields_nested_property="properties.platform",
        validate_pagination=True,
        query_config=validations.QueryConfig(*[None] * 13),
        transaction_collection=None,
        headers=None,
        open_assets_urls=False,
    )

    # It filters by properties that no Item has without asking for the queryables, which allow no other than theirs;
    # such filters are refused.
    foreign = [
        text
        for text in map(str, errors)
        if re.search(r"eo:cloud_cover|\bmission\b", text) and "status code 400" in text
    ]
    rest = [text for text in map(str, errors) if text not in foreign]
    assert rest == []
    assert len(foreign) == 26
