"""The explorer in a real Chromium, on a phone, a tablet and a screen."""

# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import parse_qs, urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reben_cloud as rc
from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build.publish import publish_metadata
from reben_cloud.store import open_store
from reben_cloud.views.land import land_json
from tests.official import table_of
from tests.roots import synthetic_root
from tests.serving import PATIENT_MS, browser, looking_at, serving, url  # noqa: F401

pytestmark = pytest.mark.browser

PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True}
TABLET = {"width": 768, "height": 1024, "has_touch": True}
SCREEN = {"width": 1280, "height": 800}

AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer") / "root"
    synthetic_root(folder, 150, num_products=5)
    return rc.open(folder)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A dataset with eleven flags, as a schema of one's own may have."""
    table, rng = table_of(100), np.random.default_rng(1)
    names = [f"odd_{number}" for number in range(9)]
    for name in names:
        table = table.append_column(name, pa.array(rng.random(len(table)) < 0.2))
    schema = replace(REBEN, recommended_without=(*REBEN.recommended_without, *names))
    store = open_store(tmp_path_factory.mktemp("odd"))
    publish_metadata(describe(table), schema, store, given=table.column_names)
    return rc.open(store.url)


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


def matched(page, count=None):
    """How many patches the page says it found; waits until they are `count`."""
    if count is not None:
        page.wait_for_selector(f'#count[data-matched="{count}"]')
    return int(page.get_attribute("#count", "data-matched"))


def state(page):
    """What the address says, when it has been written."""
    # A timer of the page itself, which ends after the one that writes, however slow the page is.
    page.evaluate("new Promise((done) => setTimeout(done, 300))")
    return parse_qs(page.evaluate("location.hash").removeprefix("#"))


def tap_filters(page, size):
    if size is not SCREEN:
        page.click("#open-filters")


QUERIES = [
    pytest.param({"label": ["Pastures"]}, {"labels": "Pastures"}, id="label"),
    pytest.param(
        {"label": ["Arable land", "Mixed forest"], "all": "1"},
        {"labels_all": ["Arable land", "Mixed forest"]},
        id="all labels",
    ),
    pytest.param({"season": ["summer", "fall"]}, {"season": ["summer", "fall"]}, id="season"),
    pytest.param({"datetime": "2017-07-01/2018-04-30"}, {"datetime": "2017-07-01/2018-04-30"}, id="time"),
    pytest.param({"s1_datetime": "2017-07-01/"}, {"s1_datetime": "2017-07-01/.."}, id="Sentinel-1 time"),
    pytest.param({"split": ["test", "train"]}, {"split": ["test", "train"]}, id="split"),
    pytest.param({"reben:contains_seasonal_snow": "true"}, {"snow": True}, id="snow"),
    pytest.param({"reben:contains_cloud_or_shadow": "false"}, {"cloud": False}, id="no cloud"),
    pytest.param({"recommended": "1"}, {"recommended": True}, id="recommended"),
    pytest.param({"cql2": "country = 'Finland'"}, {"cql2": "country = 'Finland'"}, id="CQL2"),
    pytest.param({"bbox": "12,45,14,50"}, {"bbox": (12, 45, 14, 50)}, id="area"),
]


@pytest.mark.parametrize(("address", "query"), QUERIES)
def test_an_address_finds_what_the_search_finds_and_so_does_its_code(
    chromium, url, dataset, address, query, monkeypatch
):
    want = dataset.search(**query)

    with looking_at(chromium, f"{url}#{urlencode(address, doseq=True)}") as page:
        assert matched(page, len(want)) == len(want)
        assert state(page) == {name: [v] if isinstance(v, str) else v for name, v in address.items()}
        page.click("[data-tab=stream]")
        found = {}
        exec(page.inner_text("#snippet").split("\n\nfrom")[0], found)
        assert found["sel"].patch_ids == want.patch_ids
        page.click("[data-tab=stac]")
        code = page.inner_text("#snippet")

    if "season" in query:
        assert "no seasons" in code
    else:
        search = code.replace("import odc.stac, ", "import ").partition("\ncube")[0]
        exec(search.replace("max_items=100", "limit=1000"), found)
        assert [item.id for item in found["items"]] == want.patch_ids


def test_the_counts_are_the_searchs_and_the_filters_are_in_the_address(chromium, url, dataset):
    some = dataset.search().to_pandas()
    label, country = some.labels[0][0], some.country[0]
    query = {"labels": label, "country": country, "datetime": "2017-07-01/2018-04-30", "recommended": True}
    want = len(dataset.search(**query))

    with looking_at(chromium, url) as page:
        assert matched(page) == len(dataset)
        page.click(f"#labels >> text={label}")
        assert matched(page) == len(dataset.search(labels=label))
        page.click(f"#countries >> text={country}")
        page.fill("#from", "2017-07-01")
        page.fill("#to", "2018-04-30")
        page.check("#recommended")
        assert matched(page) == want
        assert page.text_content("#filter-count") == "4"
        address = page.evaluate("new Promise((r) => setTimeout(() => r(location.href), 300))")
        page.click("text=reset all")
        assert matched(page) == len(dataset)
        assert state(page) == {}

    with looking_at(chromium, address) as page:
        assert matched(page) == want
        assert page.input_value("#from") == "2017-07-01"
        assert page.is_checked(f"#labels >> text={label}")


def test_more_flags_than_a_byte_has_bits_are_told_apart(chromium, odd):
    flags = odd.schema.recommended_without
    chosen = {"reben:odd_5": "true", "reben:odd_8": "false"}  # of number 7 and 10
    with serving(odd) as url, looking_at(chromium, f"{url}#{urlencode(chosen)}") as page:
        want = len(odd.search(cql2="odd_5 = true AND odd_8 = false"))
        assert 0 < want == matched(page, want)
        page.click("text=reset all")
        assert page.locator("#flags select").count() == len(flags) == 11
        for number, name in enumerate(flags):
            select = page.locator("#flags select").nth(number)
            for value in ("true", "false"):
                select.select_option(value)
                assert matched(page) == len(odd.search(cql2=f"{name} = {value}"))
            select.select_option("")
        page.check("#recommended")
        assert 0 < matched(page) == len(odd.search(recommended=True)) < len(odd)


def test_code_for_stac_takes_more_ids_than_an_address_holds(chromium, url, dataset):
    ids = dataset.selection.patch_ids[:120]
    with looking_at(chromium, f"{url}#{urlencode({'id': ids}, doseq=True)}") as page:
        matched(page, len(ids))
        page.click("[data-tab=stac]")
        code = page.inner_text("#snippet")

    found = {}
    exec(
        code.replace("import odc.stac, ", "import ").partition("\ncube")[0].replace("max_items=100", ""),
        found,
    )
    assert len(code) > 5_000
    assert {item.id for item in found["items"]} == set(ids)


def test_the_page_works_below_a_prefix(chromium, dataset):
    with (
        serving(dataset, prefix="/data/reben") as url,
        looking_at(chromium, f"{url}/#patch={dataset.selection.patch_ids[4]}") as page,
    ):
        assert matched(page) == len(dataset)
        page.wait_for_selector("#pictures img")
        came = "(i) => i.complete && i.naturalWidth"
        page.wait_for_function(f"[...document.querySelectorAll('#patch img')].every({came})")
        page.fill("#cql2", "split = 'test'")
        page.press("#cql2", "Enter")
        assert matched(page, len(dataset.search(split="test"))) > 0
        page.click("[data-tab=stac]")
        assert f'Client.open("{url}/")' in page.inner_text("#snippet")


def test_ids_are_looked_up_and_unknown_ones_are_told(chromium, url, dataset):
    ids = dataset.selection.patch_ids[3:6]

    with looking_at(chromium, url) as page:
        page.fill("#ids", "\n".join([*ids, "S2A_nothing"]))
        page.press("#ids", "Tab")
        assert matched(page, 3) == 3
        assert "1 of these ids" in page.inner_text("#ids-error")
        page.wait_for_function("document.querySelectorAll('#list button').length === 3")
        assert [b.get_attribute("title") for b in page.locator("#list button").all()] == ids


def test_an_area_is_drawn_and_a_patch_is_shown(chromium, url, dataset):
    row = dataset.search().to_geopandas().iloc[5]
    centre = row.geometry.centroid

    with looking_at(chromium, f"{url}#map={centre.x:.5f},{centre.y:.5f},13") as page:
        box = page.query_selector("#map").bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.click("#draw")
        page.mouse.move(middle[0] - 30, middle[1] - 30)
        page.mouse.down()
        page.mouse.move(middle[0] + 30, middle[1] + 30, steps=4)
        page.mouse.up()
        area = [float(side) for side in page.input_value("#area").split(",")]
        assert matched(page) == len(dataset.search(bbox=area)) >= 1

        page.mouse.click(*middle)
        page.wait_for_selector("#patch:not([hidden]) figure img")
        page.wait_for_function(
            "[...document.querySelectorAll('#patch img')].every((i) => i.complete && i.naturalWidth === 120)"
        )
        shown = page.inner_text("#patch-id")
        assert shown == row.patch_id
        assert page.locator("#patch-labels li").all_inner_texts() == list(row.labels)
        captions = page.locator("#pictures figcaption").all_inner_texts()
        assert captions == ["true colour", "reference map", "Sentinel-1"]
        assert state(page)["patch"] == [shown]


def test_keys_go_through_the_patches_found(chromium, url, dataset):
    ids = dataset.search(split="test").patch_ids

    with looking_at(chromium, f"{url}#split=test") as page:
        page.locator("#list button").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        for want in (ids[1], ids[2], ids[1]):
            page.wait_for_function(f"document.getElementById('patch-id').textContent === {json.dumps(want)}")
            page.keyboard.press("n" if want == ids[1] else "p")
        page.wait_for_function(f"document.getElementById('patch-id').textContent === {json.dumps(ids[2])}")
        page.keyboard.press("Escape")
        assert page.is_hidden("#patch")
        page.focus("#map")
        for key in ("+", "ArrowLeft", "ArrowUp"):
            page.keyboard.press(key)
        assert "map" in state(page)
        page.keyboard.press("0")
        page.wait_for_timeout(300)


def test_what_was_found_is_saved(chromium, url, dataset, tmp_path):
    want = dataset.search(split="validation").patch_ids

    with looking_at(chromium, f"{url}#split=validation", accept_downloads=True) as page:
        for form, name in (("ids", "patches.txt"), ("parquet", "patches.parquet")):
            with page.expect_download() as download:
                page.click(f"[data-save={form}]")
            assert download.value.suggested_filename == name
            download.value.save_as(tmp_path / name)

    assert (tmp_path / "patches.txt").read_text().split() == want
    assert pq.read_table(tmp_path / "patches.parquet").column("id").to_pylist() == want


def test_links_and_code_are_copied_and_it_is_said(chromium, url):
    permissions = ["clipboard-read", "clipboard-write"]
    with looking_at(chromium, f"{url}#split=test", permissions=permissions) as page:
        page.click("#share")
        page.wait_for_function("document.getElementById('toast').textContent === 'link copied'")
        assert page.evaluate("navigator.clipboard.readText()") == f"{url}/#split=test"
        page.click("[data-tab=cli]")
        page.click("#copy")
        page.wait_for_function("document.getElementById('toast').textContent === 'code copied'")
        assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#snippet")


def test_failed_requests_are_told(chromium, url):
    opened = chromium.new_context(viewport={"width": 1300, "height": 800})
    opened.set_default_timeout(PATIENT_MS)
    page = opened.new_page()
    page.goto(f"{url}#cql2=nonsense+%3D")
    page.wait_for_selector("body[data-ready]")
    page.wait_for_function("document.getElementById('cql2-error').textContent.startsWith('not applied: ')")
    page.route("**/explore/**", lambda route: route.abort())
    page.click("#list button >> nth=0")
    page.wait_for_function("document.getElementById('patch-error').textContent.includes('cannot be reached')")
    page.click("[data-save=ids]")
    page.wait_for_function("document.getElementById('toast').textContent.includes('cannot be reached')")
    page.check("#recommended")  # what needs no server goes on
    page.goto("about:blank")
    page.route("**/footprints.bin", lambda route: route.fulfill(status=500, body="x"))
    page.unroute("**/explore/**")
    page.goto(url)
    page.wait_for_selector("#count button")
    assert "cannot load: the server answered 500" in page.inner_text("#count")
    opened.close()


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(PHONE, "light", id="390"),
        pytest.param(TABLET, "dark", id="768 dark"),
        pytest.param(SCREEN, "light", id="1280"),
    ],
)
def test_nothing_is_wider_than_the_window_and_axe_has_no_finding(chromium, url, size, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.base", reason="no axe: pip install axe-playwright-python"
    )
    script = axe.AXE_FILE_PATH.read_text(encoding="utf-8")
    found = []

    def look(page, what):
        # Half faded in, a text has less contrast than it will have.
        page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished.catch(() => {})))")
        result = page.evaluate(f"() => axe.run(document, {{runOnly: {AXE_RULES}}})")
        found.extend(
            (what, one["id"], [node["html"] for node in one["nodes"]]) for one in result["violations"]
        )
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth || scrollY > 0")
        found.extend([(what, "wider")] * wide)

    with looking_at(chromium, url, color_scheme=scheme, **size) as page:
        page.evaluate(script)
        look(page, "start")
        tap_filters(page, size)
        look(page, "filters")
        page.click("#labels label >> nth=1")
        if size is not SCREEN:
            page.click("#close-filters")
        page.click("[data-tab=list]")
        page.click("#list button >> nth=0")
        page.wait_for_selector("#pictures img")
        look(page, "patch")
        page.click("#close")
        page.click("[data-tab=stac]")
        look(page, "code")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert found == []
    assert (sum(int(v) for v in background[4:-1].split(",")) < 150) == (scheme == "dark")


def test_on_a_phone_the_map_comes_first_and_fingers_zoom_it(chromium, url):
    with looking_at(chromium, url, **PHONE) as page:
        area = page.query_selector("#map").bounding_box()
        assert area["height"] > 600
        assert area["width"] == 390
        assert not page.is_visible("#labels")
        page.click("#open-filters")
        page.wait_for_selector("#labels", state="visible")
        page.keyboard.press("Escape")
        page.wait_for_function("getComputedStyle(document.getElementById('filters')).visibility === 'hidden'")
        page.click("#zoom-in")
        before = float(state(page)["map"][0].split(",")[2])

        fingers = page.context.new_cdp_session(page)
        for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", None)):
            points = [] if apart is None else [{"x": 195 - apart, "y": 400}, {"x": 195 + apart, "y": 400}]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        after = float(state(page)["map"][0].split(",")[2])
        page.click("#zoom-out")
        out = float(state(page)["map"][0].split(",")[2])
        page.click("#zoom-all")

    assert after == pytest.approx(before + 1, abs=0.02)  # twice as far apart
    assert out < after


def test_the_first_view_has_all_patches(chromium, url, dataset):
    west, south, east, north = dataset.search().to_geopandas().total_bounds
    for size in (PHONE, TABLET, SCREEN):
        with looking_at(chromium, url, **size) as page:
            tap_filters(page, size)
            page.click("#view-area")
            area = [float(side) for side in page.input_value("#area").split(",")]
            assert area[0] < west < east < area[2]
            assert area[1] < south < north < area[3]
            # One pair of sides is near: no more is shown than fits the window.
            assert min((area[2] - area[0]) / (east - west), (area[3] - area[1]) / (north - south)) < 1.35
            assert matched(page) == len(dataset)
            drawn = page.evaluate("document.getElementById('map').toDataURL().length")
            assert drawn > 10_000


def test_land_is_where_it_is():
    """The outlines have the countries of the dataset, and its patches in them or near."""

    import shapely

    land = json.loads(land_json())
    outlines = {
        c["name"]: shapely.MultiPolygon([shapely.Polygon(r) for r in c["rings"]]) for c in land["countries"]
    }

    assert land["licence"] == "public domain"
    assert {
        "Austria",
        "Belgium",
        "Finland",
        "Ireland",
        "Lithuania",
        "Luxembourg",
        "Portugal",
        "Serbia",
    } <= outlines.keys()
    for place, country in (((13.2, 48.2), "Austria"), ((26, 63), "Finland"), ((-8, 38.5), "Portugal")):
        assert outlines[country].contains(shapely.Point(place))
    lons, lats = np.concatenate([np.array(ring) for c in land["countries"] for ring in c["rings"]]).T
    assert lons.min() >= -180
    assert lons.max() <= 180
    assert lats.min() > -60
