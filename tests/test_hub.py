"""Stores on the web and on a hub: redirects that expire, versions, secrets, and servers that do as they please."""

from __future__ import annotations

import pickle
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reben_cloud.errors import ChangedError, StorageError, UnreachableError
from reben_cloud.store import BUDGET, Budget, Store, normalise_url, open_store
from tests.hub import Hub, serve

DATA = np.random.default_rng(8).bytes(1_000_000)
TOKEN = "hf_sEcr3t"
SHORT = Budget(attempts=4, seconds=4.0, silence_s=2.0, request_s=3.0)
PATH = "a folder/data#1.mdb"


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.fixture
def hub():
    with serve(Hub()) as hub:
        hub.first = hub.commit({PATH: DATA, "README.md": b"# text"})
        yield hub


def store_of(hub, url="hf://datasets/owner/name", **options):
    return Store(url, {"endpoint": hub.url, **options}, budget=SHORT)


def web_store(hub, **options):
    """The same files by their https address."""
    return Store(f"{hub.url}/datasets/owner/name/resolve/main", options, budget=SHORT)


STORES = pytest.mark.parametrize("open_it", [store_of, web_store], ids=["hf", "http"])


@STORES
@pytest.mark.parametrize("redirects", [True, False], ids=["redirects", "direct"])
@pytest.mark.parametrize("linked", [True, False], ids=["linked", "plain"])
def test_reads_are_those_of_the_object(hub, open_it, redirects, linked):
    hub.redirects, hub.linked = redirects, linked
    store = open_it(hub)

    size, version = store.stat(PATH)

    assert size == store.head(PATH) == len(DATA)
    assert bytes(store.get(PATH)) == DATA
    assert bytes(store.get_range(PATH, 10, 1000, version=version)) == DATA[10:1010]
    assert bytes(store.get_range(PATH, len(DATA) - 5, 100)) == DATA[-5:]
    assert bytes(store.get_range(PATH, 7, 0)) == b""
    assert bytes(store.get_end(PATH, 99, version=version)) == DATA[-99:]
    starts = list(range(0, 900_000, 50_000))
    found = store.get_ranges(PATH, starts, [333] * len(starts), version=version)
    assert [bytes(f) for f in found] == [DATA[s : s + 333] for s in starts]
    buffer = memoryview(bytearray(len(DATA)))
    assert store.get_into(PATH, buffer) == len(DATA)
    assert bytes(buffer) == DATA
    assert store.exists("README.md")
    assert not store.exists("missing")
    with pytest.raises(FileNotFoundError, match="missing: no such object"):
        store.get("missing")


@STORES
def test_a_redirect_is_asked_for_once_while_it_serves(hub, open_it):
    store = open_it(hub)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.get_range(PATH, n, 100), range(200)))

    assert hub.count("hub") == 1
    assert hub.count("cdn") == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_redirect_that_expires_is_asked_for_again(hub, status):
    hub.expire_after, hub.expired_status = 7, status
    store = store_of(hub)

    def read(n):
        assert bytes(store.get_range(PATH, n, 100)) == DATA[n : n + 100]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(100)))

    assert 100 / 7 <= hub.count("hub") <= 40
    assert store.head(PATH) == len(DATA)


def test_a_redirect_that_is_refused_at_once_is_told_without_end(hub):
    hub.expire_s = -1

    with pytest.raises(StorageError, match=r"permission denied.*status 403.*redirected to; check the clock"):
        store_of(hub).get_range(PATH, 0, 9)

    assert hub.count("cdn") == 1


def test_a_redirect_that_expires_within_an_object_that_is_gone(hub):
    store = store_of(hub)
    store.get_range(PATH, 0, 9)
    del hub.commits[hub.first][PATH]
    hub.expire()

    with pytest.raises(FileNotFoundError, match="no such object"):
        store.get_range(PATH, 0, 9)


@pytest.mark.parametrize("redirects", [True, False], ids=["redirects", "direct"])
def test_an_object_that_changes_is_told_in_the_middle_of_reading(hub, redirects):
    hub.redirects = redirects
    store = web_store(hub)
    version = store.stat(PATH).version
    assert bytes(store.get_range(PATH, 0, 9, version=version)) == DATA[:9]

    hub.commit({PATH: DATA[::-1]})
    hub.expire()

    for read in (
        lambda: store.get(PATH, version=version),
        lambda: store.get_range(PATH, 0, 9, version=version),
        lambda: store.get_ranges(PATH, [0], [9], version=version),
        lambda: store.get_end(PATH, 9, version=version),
    ):
        with pytest.raises(
            ChangedError, match=r"cannot read http.*/data#1\.mdb: it (was|is no longer) version"
        ):
            read()
    assert bytes(store.get_range(PATH, 0, 9)) == DATA[::-1][:9]
    assert store.stat(PATH).version != version


@pytest.mark.parametrize("redirects", [True, False], ids=["redirects", "direct"])
def test_an_object_that_changes_within_an_answer_is_not_put_together_of_two(hub, redirects):
    class Changing(list):
        """Where answers are cut. With the first one the object changes: before the rest of it is asked for."""

        def pop(self, at):
            hub.commit({PATH: DATA[::-1]})
            hub.signed.clear()  # as `expire` does, whose lock the server holds here
            return super().pop(at)

    hub.redirects, hub.cut_after = redirects, Changing([300_000])
    store = web_store(hub)

    with pytest.raises(ChangedError):
        store.get(PATH)


def test_an_object_without_an_etag_is_told_by_its_size_and_time(hub):
    hub.redirects, hub.has_etag = False, False
    hub.extra = {"Last-Modified": "Fri, 27 Nov 2026 00:00:00 GMT"}
    store = web_store(hub)
    size, version = store.stat(PATH)
    assert version == f"{size:,} bytes of Fri, 27 Nov 2026 00:00:00 GMT"
    assert bytes(store.get_range(PATH, 3, 4, version=version)) == DATA[3:7]

    hub.extra = {"Last-Modified": "Fri, 27 Nov 2026 00:00:01 GMT"}

    with pytest.raises(ChangedError):
        store.get_range(PATH, 3, 4, version=version)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_versions_of_other_stores(kind, tmp_path):
    store = open_store(tmp_path if kind == "file" else f"memory://{tmp_path.name}")
    store.put("x", b"first")
    size, version = store.stat("x")
    assert size == 5
    assert bytes(store.get_range("x", 1, 2, version=version)) == b"ir"
    assert [bytes(b) for b in store.get_ranges("x", [0, 1], [1, 2], version=version)] == [b"f", b"ir"]

    store.put("x", b"other")

    for read in (
        lambda: store.get("x", version=version),
        lambda: store.get_range("x", 1, 2, version=version),
        lambda: store.get_ranges("x", [0], [2], version=version),
    ):
        with pytest.raises(ChangedError, match="x: it"):
            read()


@pytest.mark.s3
def test_versions_on_s3(s3_bucket):
    store = open_store(f"{s3_bucket.url}/versions", s3_bucket.storage_options)
    store.put("x", b"first")
    version = store.stat("x").version
    assert bytes(store.get_range("x", 1, 2, version=version)) == b"ir"

    store.put("x", b"other")

    with pytest.raises(ChangedError, match="x: it"):
        store.get_range("x", 1, 2, version=version)


def test_a_revision_is_resolved_once_and_can_be_pinned(hub):
    store = store_of(hub)
    assert bytes(store.get_range(PATH, 0, 4)) == DATA[:4]
    pinned = store.pinned()
    assert pinned.url == f"hf://datasets/owner/name@{hub.first}"

    second = hub.commit({PATH: b"new"})

    for one in (store, pinned, pickle.loads(pickle.dumps(pinned))):
        assert bytes(one.get_range(PATH, 0, 4)) == DATA[:4]
    fresh = store_of(hub)
    assert bytes(fresh.get(PATH)) == b"new"
    assert fresh.pinned().url.endswith(second)
    assert web_store(hub).pinned().url == web_store(hub).url
    asked = len([a for a in hub.asked if "/api/" in a.path])
    assert pinned.pinned().url == pinned.url
    assert len([a for a in hub.asked if "/api/" in a.path]) == asked  # a commit needs no question


def test_revisions_and_folders_in_the_url(hub):
    commit = hub.commit({"lmdb/data.mdb": b"of the branch"}, branch="refs/pr/1")
    for revision in ("refs%2Fpr%2F1", "refs/pr/1", commit):
        store = store_of(hub, f"hf://datasets/owner/name@{revision}/lmdb")
        assert bytes(store.get("data.mdb")) == b"of the branch"
        above, name = store.parent()
        assert bytes(above.get(f"{name}/data.mdb")) == b"of the branch"
        assert bytes(above.child("lmdb").get("data.mdb")) == b"of the branch"
        assert list(store.list()) == [("data.mdb", 13)]
        assert list(above.list("lmdb")) == [("lmdb/data.mdb", 13)]
    assert sorted(store_of(hub).list()) == [("README.md", 6), (PATH, len(DATA))]
    assert list(store_of(hub).list("nothing")) == []


def test_urls_of_the_hub():
    assert normalise_url("hf://datasets/o/n@v1/x/") == "hf://datasets/o/n@v1/x"
    for wrong in ("hf://o/n/x", "hf://datasets/o", "hf://models/o/n"):
        with pytest.raises(ValueError, match="hf://datasets/OWNER/NAME"):
            store_of(Hub(url="http://127.0.0.1:9"), wrong).get("x")
    with pytest.raises(ValueError, match="unknown storage option 'tokn'"):
        Store("hf://datasets/o/n", {"tokn": "x"}).get("x")
    with pytest.raises(ValueError, match="max_connections must be"):
        Store("hf://datasets/o/n", {"max_connections": 0}).get("x")


def test_a_token_goes_to_the_hub_and_to_nobody_else(hub, monkeypatch):
    hub.token = TOKEN
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    for wrong in (None, "hf_wrong"):
        if wrong:
            monkeypatch.setenv("HF_TOKEN", wrong)
        with pytest.raises(StorageError, match=r"no the data set owner/name|is private; ") as caught:
            open_store("hf://datasets/owner/name").get(PATH)
        assert "hf_wrong" not in "".join(traceback.format_exception(caught.value))

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    store = open_store("hf://datasets/owner/name")
    for n in range(3):
        assert bytes(store.get_range(PATH, n, 10)) == DATA[n : n + 10]

    asked = [a for a in hub.asked if a.status == 206]
    assert asked
    assert {a.server for a in asked} == {"cdn"}
    assert not any("Authorization" in a.headers for a in hub.asked if a.server == "cdn")
    assert TOKEN not in repr(store) + str(store.url)
    explicit = store_of(hub, token=TOKEN)
    assert TOKEN not in repr(explicit)
    assert explicit.head(PATH) == len(DATA)
    with pytest.raises(StorageError):
        store_of(hub, token=False).head(PATH)


def test_a_gated_data_set_is_told_with_the_way_in(hub):
    hub.is_gated = True

    with pytest.raises(
        StorageError, match=r"is gated; accept its terms at http.*/datasets/owner/name.*HF_TOKEN"
    ):
        store_of(hub).get(PATH)


def test_what_is_not_there_is_told(hub):
    with pytest.raises(StorageError, match="has no revision 'v9'"):
        store_of(hub, "hf://datasets/owner/name@v9").get(PATH)
    with pytest.raises(StorageError, match="owner/other"):
        store_of(hub, "hf://datasets/owner/other").get(PATH)
    with pytest.raises(StorageError, match="read only"):
        store_of(hub).put("x", b"1")


def test_users_and_passwords_stay_at_home(hub):
    hub.redirects = True
    address = hub.url.replace("http://", "http://us%40er:p%3Ass@")
    store = Store(f"{address}/datasets/owner/name/resolve/main", {}, budget=SHORT)

    store.get_range(PATH, 0, 5)
    hub.expire_s = -1
    hub.expire()
    with pytest.raises(StorageError) as caught:
        store.get_range(PATH, 0, 5)

    sent = {a.server: a.headers.get("Authorization") for a in hub.asked}
    assert sent == {"hub": "Basic dXNAZXI6cDpzcw==", "cdn": None}
    shown = "".join(traceback.format_exception(caught.value)) + repr(store)
    assert "sEcr3t" not in shown  # which is in the signed URL
    assert "p%3Ass" not in shown


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param({"ignores_ranges": True}, r"ignores the Range header \(status 200", id="ignored"),
        pytest.param(
            {"spoil_range": lambda s: "bytes 0-9/1000000"}, "sends other bytes than", id="other bytes"
        ),
        pytest.param(
            {"spoil_range": lambda s: s.replace("/1000000", "/*")}, "does not say which", id="no size"
        ),
        pytest.param({"spoil_range": lambda s: "bytes 20-10/5"}, "sends other bytes", id="nonsense"),
        pytest.param({"spoil_range": lambda s: "lines 1-2/3"}, "does not say which bytes", id="another unit"),
        pytest.param({"extra": {"Content-Encoding": "gzip"}}, "compressed", id="compressed"),
        pytest.param({"location": lambda u: ""}, "without saying where to", id="no location"),
        pytest.param({"location": lambda u: "ftp://host/x?sig=sEcr3t"}, "not an http", id="another scheme"),
        pytest.param({"location": lambda u: "http://host:99999999/x"}, "is not a URL", id="no port"),
        pytest.param({"location": lambda u: "?again"}, "redirects more than 5 times", id="a circle"),
    ],
)
def test_a_server_that_does_not_do_as_asked_is_refused_with_the_reason(hub, spoil, message):
    for name, value in spoil.items():
        setattr(hub, name, value)

    with pytest.raises(StorageError, match=message) as caught:
        store_of(hub).get_range(PATH, 100, 200)

    assert "cannot read hf://datasets/owner/name/a folder/data#1.mdb" in str(caught.value)
    assert "sEcr3t" not in str(caught.value)
    assert hub.count("cdn") <= 1


@pytest.mark.parametrize("server", ["hub", "cdn"])
@pytest.mark.parametrize("say", [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}])
def test_a_server_that_throttles_is_waited_for(hub, server, say):
    hub.throttled, hub.throttle_headers = {server: 2}, say
    store = store_of(hub, f"hf://datasets/owner/name@{hub.first}")
    start = time.monotonic()

    assert bytes(store.get_range(PATH, 0, 9)) == DATA[:9]

    assert time.monotonic() - start > 2


def test_a_server_that_asks_for_more_patience_than_there_is(hub):
    hub.throttled, hub.throttle_headers = {"cdn": 99}, {"Retry-After": "3600"}
    start = time.monotonic()

    with pytest.raises(StorageError, match=r"status 429.*asks to wait 3600 s.*given up after 1 attempt"):
        store_of(hub).get_range(PATH, 0, 9)

    assert time.monotonic() - start < 60  # not the hour


@STORES
def test_answers_that_break_off_are_gone_on_with(hub, open_it):
    hub.cut_after = [100_000, 0, 300_000, 1]
    store = open_it(hub)

    assert bytes(store.get(PATH)) == DATA

    ranges = [a.headers["Range"] for a in hub.asked if a.nbytes]
    assert ranges == [None, "bytes=100000-999999", "bytes=400000-999999", "bytes=400001-999999"]


def test_requests_are_bounded(hub):
    hub.latency_s = 0.02
    store = store_of(hub, max_connections=3)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.get_range(PATH, n, 9), range(40)))
    store.get_ranges(PATH, list(range(20)), [5] * 20)

    assert hub.most_in_flight == 3


def test_a_hub_that_is_not_there_is_told_in_time():
    gone = Hub(url="http://127.0.0.1:9")
    start = time.monotonic()

    with pytest.raises(UnreachableError, match=r"no answer.*HF_ENDPOINT.*given up"):
        store_of(gone).get(PATH)

    assert time.monotonic() - start < BUDGET.seconds / 2


def test_connections_that_the_server_gave_up_are_no_failures(hub):
    store = store_of(hub)
    store.get_range(PATH, 0, 9)
    hub.drop_connections()

    assert bytes(store.get_range(PATH, 5, 9)) == DATA[5:14]
