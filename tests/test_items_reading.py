"""Images of Items over a network that fails: retries, the folder of what was read, tokens, damage, and a kill."""
# ruff: noqa: F811 - fixtures are imported

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from reben_cloud.errors import SourceError
from reben_cloud.scenes.items.cog import Cog
from reben_cloud.scenes.items.reading import Reading, RemoteFile, Span
from reben_cloud.scenes.items.signing import signed, token_url_of
from reben_cloud.scenes.receipts import list_receipts, read_receipt
from reben_cloud.store import Budget
from reben_cloud.stream.cache import ShardCache
from tests.commands import invoke
from tests.faultproxy import FaultProxy, RandomRule
from tests.item_products import abroad, api, contents, images, others, own, prepare, usual  # noqa: F401
from tests.items import _Handler
from tests.scenes import CHILE, KENYA, make_safe


@pytest.mark.slow
def test_faults_of_the_server_change_nothing(api, others, usual, tmp_path):
    faults = ("503", "reset-before", "reset-mid", "truncate", "delay", "slow")
    with FaultProxy(api.url) as proxy:
        proxy.rules.append(RandomRule(faults=faults, rate=0.35, seed=5, seconds=0.05, bytes_per_s=200_000))

        code, _, said = prepare(proxy.endpoint, *others, "--out", tmp_path)

        assert code == 0, said
        assert contents(tmp_path) == usual
        assert proxy.num_faults() > 20
        assert {fault for _, fault in proxy.log if fault} == {*faults}


def test_a_server_that_goes_on_failing_is_given_up(api, others, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "reben_cloud.store.objects.BUDGET", Budget(attempts=2, seconds=2, silence_s=1, request_s=1)
    )
    with FaultProxy(api.url) as proxy:
        proxy.add("B04.tif", "503", times=1_000)

        code, _, said = prepare(proxy.endpoint, *others, "--bands", "B04", "--out", tmp_path)

    assert code == 1
    assert "B04.tif" in said
    assert "given up after 2 attempts" in said


@pytest.mark.slow
@pytest.mark.parametrize("bound", [None, 10_000_000])
def test_what_was_read_is_kept_and_fetched_no_second_time(api, others, usual, tmp_path, bound):
    cache = ["--cache-dir", tmp_path / "cache", *([] if bound is None else ["--cache-bytes", bound])]

    assert prepare(api.url, *others, "--out", tmp_path / "one", *cache)[0] == 0
    first = api.sent_bytes
    api.reset()
    assert prepare(api.url, *others, "--out", tmp_path / "two", *cache)[0] == 0

    assert contents(tmp_path / "one") == contents(tmp_path / "two") == usual
    assert first > 500_000
    assert api.sent_bytes == 0
    assert api.count("GET /S2") == 0
    # Whether images are still the same was asked, once each: 12 bands and SCL, and the metadata, of two products.
    assert api.count("HEAD /S2") == 2 * 14


@pytest.mark.slow
def test_the_folder_of_what_was_read_stays_below_its_bound(api, others, usual, tmp_path):
    cache = tmp_path / "cache"

    code, _, _ = prepare(
        api.url, *others, "--out", tmp_path / "out", "--cache-dir", cache, "--cache-bytes", 100_000
    )

    assert code == 0
    assert contents(tmp_path / "out") == usual
    assert 50_000 < sum(file.stat().st_size for file in cache.iterdir()) <= 100_000


@pytest.mark.slow
def test_what_is_kept_is_fetched_again_where_it_is_damaged_or_of_another_version(own, others, tmp_path):
    given = [own.url, *others, "--cache-dir", tmp_path / "cache"]
    as_large = {"compress": "none", "predictor": 1}  # whatever the pixels
    own.planetary(make_safe(tmp_path / "a", name=KENYA, side_m=1_260), **as_large)
    assert prepare(*given, "--out", tmp_path / "one")[0] == 0
    usual = contents(tmp_path / "one")

    for number, file in enumerate(sorted((tmp_path / "cache").iterdir())):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data[: -number % 3 * 9 or None])
    own.reset()
    assert prepare(*given, "--out", tmp_path / "two")[0] == 0
    assert own.sent_bytes > 0
    own.items.clear()
    safe = make_safe(
        tmp_path / "b", name=KENYA, side_m=1_260, pixels=lambda band, shape: np.full(shape, 7, np.uint16)
    )
    own.planetary(safe, **as_large)
    assert prepare(*given, "--out", tmp_path / "three")[0] == 0

    assert contents(tmp_path / "two") == usual
    (band,) = (tmp_path / "three").rglob("*_00_00_B8A.tif")
    with rasterio.open(band) as file:
        assert (file.read(1) == 7).all()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda data: data[: len(data) - 700],
            r"ends after .* bytes, and what it says of itself",
            id="cut short",
        ),
        pytest.param(
            lambda data: data[:-300] + bytes([data[-300] ^ 255]) + data[-299:],
            "block . is damaged",
            id="damaged",
        ),
        pytest.param(lambda data: b"hello" * 99, "not a readable GeoTIFF", id="text"),
        pytest.param(
            lambda data: data[:200], "not a readable GeoTIFF|does not say where", id="header cut short"
        ),
        pytest.param(lambda data: b"", "not a readable GeoTIFF", id="empty"),
    ],
)
def test_an_image_that_is_damaged_where_it_lies_is_told(own, others, tmp_path, spoil, said):
    own.planetary(make_safe(tmp_path / "safe", name=KENYA, side_m=1_260))
    image = own.folder / KENYA / "B03.tif"
    image.write_bytes(spoil(image.read_bytes()))

    result = invoke(
        "prepare", "--stac", own.url, "--collection", "sentinel-2-l2a", *others, "--out", tmp_path / "out"
    )

    assert isinstance(result.exception, SourceError)
    with pytest.raises(SourceError, match=said):
        raise result.exception
    assert "B03.tif" in str(result.exception)


@pytest.mark.slow
def test_images_that_need_a_token_get_one_and_others_are_told_so(own, others, tmp_path):
    own.planetary(make_safe(tmp_path / "safe", name=KENYA, side_m=1_260))
    own.token = "se=2999&sig=a%2Fb"

    without = prepare(own.url, *others, "--out", tmp_path / "one")
    code, said, _ = prepare(
        own.url, *others, "--stac-token", f"{own.url}/token/{{collection}}", "--out", tmp_path / "two"
    )

    assert without[0] == 1
    assert "name where a token is to be had (--stac-token)" in without[2]
    assert code == 0
    assert "1 patch of 1 product" in said
    assert own.count("GET /token/sentinel-2-l2a") == 1
    assert "sig=" not in "".join(
        read_receipt(file).inputs["Sentinel-2 B02"] for file in list_receipts(tmp_path / "two")
    )


def test_a_token_is_asked_for_again_before_it_expires(tmp_path):
    (tmp_path / "token.json").write_text(
        json.dumps({"token": "sig=1", "msft:expiry": "2999-01-01T00:00:00Z"})
    )
    url, href = (tmp_path / "token.json").as_uri(), "https://x/B02.tif"

    first = signed(href, url)
    (tmp_path / "token.json").write_text(
        json.dumps({"token": "?sig=2", "msft:expiry": "2020-01-01T00:00:00Z"})
    )
    kept = signed(href, url)
    soon = shutil.copy(tmp_path / "token.json", tmp_path / "soon.json").as_uri()
    early = signed(href, soon)
    (tmp_path / "soon.json").write_text(json.dumps({"token": "sig=3"}))

    assert first == kept == "https://x/B02.tif?sig=1"
    assert early == "https://x/B02.tif?sig=2"
    assert signed(href, soon) == signed(href, soon) == "https://x/B02.tif?sig=3"
    assert signed("https://x/B02.tif?sig=own", url) == "https://x/B02.tif?sig=own"
    assert signed("s3://x/B02.tif", url) == "s3://x/B02.tif"
    assert signed(href, None) == href
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(SourceError, match="does not answer with a token"):
        signed(href, (tmp_path / "bad.json").as_uri())


def test_the_planetary_computer_is_known_to_need_tokens():
    api = "https://planetarycomputer.microsoft.com/api/stac/v1"

    assert token_url_of(api, "sentinel-1-rtc") == (
        "https://planetarycomputer.microsoft.com/api/sas/v1/token/sentinel-1-rtc"
    )
    assert token_url_of("https://earth-search.aws.element84.com/v1", "sentinel-2-l2a") is None


@pytest.mark.slow
def test_after_a_kill_it_goes_on_and_fetches_little_again(api, others, usual, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    command = [
        sys.executable, "-m", "reben_cloud.cli", "prepare", "--stac", api.url, "--collection", "sentinel-2-l2a",
        *map(str, others), "--out", str(out), "--cache-dir", str(cache),
    ]  # fmt: skip
    api.stalls = f"{CHILE}/B09.tif"  # one of the last of the second product
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not api.count(api.stalls) and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait()
    killed, api.stalls = api.sent_bytes, ""
    api.reset()

    code, said, _ = prepare(api.url, *others, "--out", out, "--cache-dir", cache)

    assert code == 0
    assert contents(out) == usual
    assert "written now: 64 patches of 1 product; already there: 64 patches of 1 product" in said
    assert api.sent_bytes < killed / 5
    assert api.count(f"/{KENYA}/B02.tif") == api.count(f"GET /{CHILE}/B02.tif") == 0


@pytest.mark.parametrize("bound", [None, 10_000], ids=["all", "bounded"])
def test_a_piece_that_another_process_removes_is_fetched_again(own, tmp_path, monkeypatch, bound):
    (own.folder / "B02.tif").write_bytes(bytes(range(200)))
    reading = Reading(cache_dir=tmp_path / "cache", cache_bytes=bound)
    file = RemoteFile(f"{own.url}/B02.tif", reading)
    assert bytes(file.read(Span(10, 5))) == bytes(range(10, 15))
    find = ShardCache.find

    def removed(self, name, checksum):
        found = find(self, name, checksum)
        if found is not None:
            found.unlink()  # as another process does that makes room
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ShardCache, "find", removed)
        assert bytes(file.read(Span(10, 5))) == bytes(range(10, 15))
    assert bytes(file.read(Span(10, 5))) == bytes(range(10, 15))


def test_objects_that_their_query_tells_apart_are_kept_apart(own, tmp_path, monkeypatch):
    for name in ("B02", "B03"):
        (own.folder / name).write_bytes(name.encode() * 9)
        os.utime(own.folder / name, (1, 1))  # one ETag
    send = _Handler.send_file
    monkeypatch.setattr(
        _Handler, "send_file", lambda self, file: send(self, own.folder / self.path.rpartition("=")[2])
    )
    (own.folder / "get").write_bytes(b"")
    reading = Reading(cache_dir=tmp_path / "cache")

    found = [
        bytes(RemoteFile(f"{own.url}/get?file={name}", reading).read(Span(0, 3))) for name in ("B02", "B03")
    ]

    assert found == [b"B02", b"B03"]


def test_of_a_server_that_does_not_tell_versions_nothing_is_kept(own, tmp_path, monkeypatch):
    begin = _Handler.begin

    def without_etag(self, status, body, headers=None):
        begin(self, status, body, {name: value for name, value in (headers or {}).items() if name != "ETag"})

    monkeypatch.setattr(_Handler, "begin", without_etag)
    found = []
    for text in (b"one", b"two"):
        (own.folder / "B02.tif").write_bytes(text)
        file = RemoteFile(f"{own.url}/B02.tif", Reading(cache_dir=tmp_path / "cache"))
        found.append(bytes(file.read(Span(0, 3))))

    assert found == [b"one", b"two"]


@pytest.mark.parametrize("kind", ["Area", "Point"])
def test_an_image_whose_coordinates_are_of_centres_lies_where_gdal_has_it(tmp_path, kind):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path,
        "w",
        height=4,
        width=5,
        count=1,
        dtype="float32",
        crs="EPSG:32737",
        transform=from_origin(300, 900, 10, 10),
    ) as file:
        file.update_tags(AREA_OR_POINT=kind)

    place = Cog(str(path), Reading()).grid

    assert (place.left, place.top, place.pixel) == (300, 900, (10, 10))


@pytest.mark.parametrize("nbytes", [100, 4_000], ids=["small", "large"])
def test_processes_that_share_a_folder_stay_below_its_bound_and_look_at_it_seldom(
    tmp_path, monkeypatch, nbytes
):
    bound, budget = 100_000, Budget(seconds=1)
    caches = [ShardCache(tmp_path, bound) for _ in range(8)]
    looks, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(path) or scan(path))
    largest = 0

    for number in range(2_000 if nbytes == 100 else 100):
        # The first ones look while there is room, and write when others have filled it.
        cache = caches[number % 8 if number < 8 or number % 50 > 40 else 0]
        cache.add("piece", number, nbytes, lambda _: memoryview(bytes(nbytes)), budget)
        if number % 19 == 0 or nbytes > 100:
            largest = max(largest, sum(file.stat().st_size for file in tmp_path.iterdir()))

    assert bound * 0.9 < largest <= bound
    assert len(looks) < (500 if nbytes == 100 else 101)
    assert caches[0].find("piece", number) is not None
