"""Searches of a STAC API: all pages, why there is nothing, and what is not an API."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

import reben_cloud as rc
from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.scenes.items.product import products_of
from reben_cloud.scenes.items.reading import Reading
from reben_cloud.scenes.items.search import StacSearch, find_items
from tests.commands import invoke, told
from tests.conftest import PATIENT_S
from tests.item_products import abroad, others, own, prepare, tiny, tiny_images  # noqa: F401
from tests.items import CONFORMS, Api
from tests.roots import synthetic_root
from tests.scenes import KENYA, make_safe
from tests.serving import serving


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        pytest.param(
            ["--collection", "sentinel-3"],
            NotFoundError,
            "there is no such collection; the API has sentinel-2-l2a",
            id="collection",
        ),
        pytest.param(
            ["--max-cloud", "5"],
            NotFoundError,
            "2 are there with more clouds, the clearest with 10.0 %; raise --max-cloud",
            id="clouds",
        ),
        pytest.param(
            ["--datetime", "2019"], NotFoundError, "without --datetime there would be some", id="time"
        ),
        pytest.param(
            ["--bbox", "10", "50", "11", "51"],
            NotFoundError,
            "without --bbox there would be some",
            id="place",
        ),
        pytest.param(
            ["--bbox", "10", "50", "11", "51", "--datetime", "2019"],
            NotFoundError,
            "the collection has nothing at that place and time",
            id="place and time",
        ),
        pytest.param(
            ["--max-items", "1"], SourceError, "2 Items, at most 1 are taken; narrow the search", id="many"
        ),
    ],
)
def test_a_search_that_finds_nothing_or_too_much_says_why(tiny, others, tmp_path, options, error, said):
    result = invoke(
        "prepare",
        "--stac",
        tiny.url,
        "--collection",
        "sentinel-2-l2a",
        *options,
        *others,
        "--out",
        tmp_path / "out",
    )

    assert isinstance(result.exception, error)
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_all_pages_of_a_search_are_taken(own, others, tmp_path):
    own.page = 2
    for hour in range(7):
        own.planetary(
            make_safe(tmp_path / "safe", name=KENYA.replace("T074231", f"T0{hour}4231"), side_m=1_260)
        )

    code, said, _ = prepare(own.url, "--max-items", 7, *others, "--bands", "B09", "--out", tmp_path / "out")

    assert code == 0
    assert "7 patches of 7 products" in said
    assert own.count("GET /search?") == 1 + 4  # to count them, and pages of two


@pytest.mark.parametrize(
    ("url", "said"),
    [
        pytest.param("http://127.0.0.1:9", "cannot search http://127.0.0.1:9: ", id="nobody"),
        pytest.param("{url}/nothing", "status 404", id="nothing"),
        pytest.param("{url}/token", "is not STAC", id="something else"),
        pytest.param("{url}/text", "is not STAC", id="no JSON"),
    ],
)
def test_what_is_not_an_api_is_told(tiny, others, tmp_path, monkeypatch, url, said):
    monkeypatch.setattr("reben_cloud.scenes.items.search._ATTEMPTS", 1)

    code, _, error = prepare(url.format(url=tiny.url), *others, "--out", tmp_path)

    assert code == 1
    assert said in error
    assert "--stac" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--collection", "c"], "--stac and --collection go together", id="no API"),
        pytest.param(
            ["--stac", "http://x", "--max-cloud", "3"],
            "--stac and --collection go together",
            id="no collection",
        ),
        pytest.param(
            ["--stac", "http://x", "--collection", "c", "--max-cloud", "300"],
            "a percentage in [0, 100]",
            id="clouds",
        ),
        pytest.param(
            ["--stac", "http://x", "--collection", "c", "--bbox", "1", "3", "2", "2"],
            "latitudes must rise",
            id="box",
        ),
        pytest.param(
            ["--stac", "folder", "--collection", "c"],
            "is the URL of an API (https://...), got 'folder'",
            id="path",
        ),
        pytest.param(
            ["--stac", "http://x", "--collection", "c", "--datetime", "soon"],
            "--datetime 'soon' is no",
            id="time",
        ),
        pytest.param(
            ["--stac", "http://x", "--collection", "c", "--cache-bytes", "9"],
            "cache_dir, which is not given",
            id="cache",
        ),
        pytest.param(
            ["--s2", ".", "--cache-dir", "c"],
            "--stac-token go with Items: --stac or --s1-collection",
            id="cache of nothing",
        ),
        pytest.param(
            ["--s2", ".", "--layer", "dem=x.tif", "--layer-pixel", "dem=ten"],
            "--layer-pixel is NAME=METRES, got 'dem=ten'",
            id="pixel of a layer",
        ),
        pytest.param(
            ["--s2", ".", "--s1-collection", "c"],
            "goes with an API: --s1-stac or --stac",
            id="no API of radar",
        ),
        pytest.param(
            ["--s2", ".", "--s1-collection", "c", "--s1-stac", "http://x"],
            "needs --s1-max-days",
            id="no gap of radar",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(others, tmp_path, options, said):
    code, _, error = told("prepare", *options, *others, "--out", tmp_path)

    assert code == 2
    assert said in " ".join(error.replace("│", " ").split())


def test_the_api_that_serve_makes_is_searched_and_its_items_are_told_from_products(tmp_path):
    synthetic_root(tmp_path / "root", 7)
    dataset = rc.open(tmp_path / "root")
    with serving(dataset) as url:
        (collection,) = [
            c["id"] for c in httpx.get(f"{url}/collections", timeout=PATIENT_S).json()["collections"]
        ]
        search = StacSearch(api=url, collection=collection, datetime="2017/2018", max_items=7)

        found = find_items(search)

        assert [item.id for item in found] == sorted(dataset.search().patch_ids)
        with pytest.raises(SourceError, match=r"more than 6 Items|7 Items, at most 6 are taken"):
            find_items(replace(search, max_items=6))
        with pytest.raises(
            SourceError, match=rf"Item {found[0].id}: its property s2:product_uri \(None\) is not"
        ):
            products_of(found, ["B02"], Reading())
        with pytest.raises(NotFoundError, match="without --datetime there would be some"):
            find_items(replace(search, datetime="2001"))


def test_an_api_need_not_say_how_many_there_are(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "counts", False)
    search = StacSearch(api=tiny.url, collection="sentinel-2-l2a")

    assert [item.id[:9] for item in find_items(search)] == ["S2A_37MBU", "S2B_19HCC"]
    with pytest.raises(SourceError, match="more than 1 Items, at most 1 are taken"):
        find_items(replace(search, max_items=1))


def with_links(monkeypatch, change):
    """Answers to searches with a change: (page, number of its first Item) -> None."""
    answer = Api._search

    def changed(self, query, base):
        page = answer(self, query, base)
        change(page, int(query.get("token", ["0"])[0]))
        return page

    monkeypatch.setattr(Api, "_search", changed)


def to_itself(page, first):
    for link in page["links"]:
        link["href"] = link["href"].replace("token=1", "token=0")


@pytest.mark.parametrize("options", [{}, {"max_cloud": 1.0}], ids=["all", "too cloudy"])
def test_pages_that_do_not_end_are_told(tiny, monkeypatch, options):
    monkeypatch.setattr(tiny, "conforms", CONFORMS)  # clouds are not filtered by the API
    monkeypatch.setattr(tiny, "page", 1)
    with_links(monkeypatch, to_itself)
    search = StacSearch(api=tiny.url, collection="sentinel-2-l2a", **options)

    with pytest.raises(SourceError, match="after 1 Items another page says the same again"):
        find_items(search)


def test_an_item_that_two_pages_have_is_found_once(tiny, monkeypatch):
    with_links(monkeypatch, lambda page, first: page["features"].extend(page["features"][:1]))

    found = find_items(StacSearch(api=tiny.url, collection="sentinel-2-l2a", max_items=2))

    assert [item.id[:9] for item in found] == ["S2A_37MBU", "S2B_19HCC"]


def test_pages_that_end_too_early_are_told(tiny, monkeypatch, caplog):
    monkeypatch.setattr(tiny, "page", 1)
    with_links(monkeypatch, lambda page, first: page["links"].clear())

    (item,) = find_items(StacSearch(api=tiny.url, collection="sentinel-2-l2a"))

    assert item.id.startswith("S2A_37MBU")
    assert "the API counts 2 Items and gives 1" in caplog.text
