"""Two products as SAFE folders and behind an API, and what a command makes of either."""

from __future__ import annotations

import pytest

from tests.commands import invoke, told
from tests.items import serve_api
from tests.scenes import CHILE, KENYA, make_abroad, make_safe


@pytest.fixture(scope="session")
def abroad(tmp_path_factory):
    """Products of Kenya and Chile as SAFE folders, and land cover and countries for them."""
    return make_abroad(tmp_path_factory.mktemp("abroad"))


@pytest.fixture(scope="session")
def others(abroad):
    """Options that a product needs beside itself."""
    return [
        "--land-cover", abroad / "cover", "--classes", "worldcover2021", "--countries", abroad / "countries.geojson",
        "--any-country",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def usual(abroad, others, tmp_path_factory):
    """What is made of the SAFE folders."""
    out = tmp_path_factory.mktemp("usual") / "out"
    assert invoke("prepare", "--s2", abroad / "products", *others, "--out", out).exit_code == 0
    return contents(out)


@pytest.fixture(scope="session")
def images(abroad, tmp_path_factory):
    """The same products behind an API, of two kinds; never changed."""
    with serve_api(tmp_path_factory.mktemp("images")) as api:
        for kind in (api.earth_search, api.planetary):
            for safe in sorted((abroad / "products").glob("*.SAFE")):
                kind(safe)
            if kind == api.earth_search:
                api.items["earth-search"] = [
                    item | {"collection": "earth-search"} for item in api.items.pop("sentinel-2-l2a")
                ]
        yield api


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """Products of one square behind an API, of Kenya and of Chile; never changed."""
    folder = tmp_path_factory.mktemp("tiny")
    with serve_api(folder / "images") as api:
        for name in (KENYA, CHILE):
            api.earth_search(make_safe(folder / "safe", name=name, side_m=1_260))
        yield api


@pytest.fixture
def tiny(tiny_images):
    tiny_images.reset()
    return tiny_images


@pytest.fixture
def api(images):
    images.reset()
    return images


@pytest.fixture
def own(tmp_path):
    """An API of a test's own."""
    (tmp_path / "images").mkdir()
    with serve_api(tmp_path / "images") as api:
        yield api


def contents(folder):
    """Path -> bytes of what was made, but for the receipts, which say from what."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
        and ".prepared" not in file.parts
        and "S1" not in file.relative_to(folder).parts[0:1]
    }


def prepare(url, *options, collection="sentinel-2-l2a"):
    return told("prepare", "--stac", url, "--collection", collection, *options)
