"""The server and those who mean it ill, or do not know what they send: 4xx in one sentence, and the others go on."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi import HTTPException

import reben_cloud as rc
from reben_cloud.search import cql, evaluation, shapes
from reben_cloud.serve import body_limit, cost, lanes, results, running
from reben_cloud.serve.cost import MAX_CORNERS, count_corners, expected_s
from reben_cloud.serve.lanes import GivenUpError
from reben_cloud.serve.results import Results
from tests.conftest import PATIENT_S, wait_for
from tests.roots import synthetic_root
from tests.serving import serving

SECRET = "do-not-send-me-back-" * 40
ITEMS = "/collections/bigearthnet-v2/items"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "root"
    synthetic_root(folder, 60)
    return rc.open(folder)


@pytest.fixture(scope="module")
def client(dataset):
    with serving(dataset) as url, httpx.Client(base_url=url, timeout=PATIENT_S) as client:
        yield client


def nested(depth, inner):
    for _ in range(depth):
        inner = {"op": "not", "args": [inner]}
    return inner


def ring(corners):
    angle = np.linspace(0, 2 * np.pi, corners)
    points = np.stack([10 + 9 * np.cos(angle), 52 + 9 * np.sin(angle)], axis=1).tolist()
    return {"type": "Polygon", "coordinates": [[*points[:-1], points[0]]]}


EQUALS = {"op": "=", "args": [{"property": "id"}, SECRET]}
SQUARE = {"property": "geometry"}
BODIES = {
    "null": None,
    "list": [],
    "string": "x",
    "number": 5,
    "boolean": True,
    "ids a number": {"ids": 5},
    "ids of numbers": {"ids": [5]},
    "ids null in a list": {"ids": [None]},
    "bbox a string": {"bbox": "1,2,3,4"},
    "bbox of strings": {"bbox": [SECRET] * 4},
    "bbox of lists": {"bbox": [[1], 2, 3, 4]},
    "bbox of 5": {"bbox": [1, 2, 3, 4, 5]},
    "bbox of huge numbers": {"bbox": [10**400, 0, 1, 1]},
    "datetime a number": {"datetime": 2017},
    "datetime a list": {"datetime": ["2017"]},
    "datetime long": {"datetime": SECRET},
    "datetime of digits": {"datetime": "1" * 5000},
    "limit a string": {"limit": "many"},
    "limit negative": {"limit": -5},
    "limit of digits": {"limit": "9" * 5000},
    "token of digits": {"token": "9" * 5000},
    "token of other digits": {"token": "٣"},
    "token negative": {"token": "-1"},
    "token a number": {"token": 3},
    "intersects a list": {"intersects": []},
    "intersects a string": {"intersects": SECRET},
    "intersects of no type": {"intersects": {"a": SECRET}},
    "intersects of an unknown type": {"intersects": {"type": SECRET, "coordinates": [1, 2]}},
    "a point of one number": {"intersects": {"type": "Point", "coordinates": [1]}},
    "a point of strings": {"intersects": {"type": "Point", "coordinates": [SECRET, "b"]}},
    "a point of null": {"intersects": {"type": "Point", "coordinates": None}},
    "a polygon of one point": {"intersects": {"type": "Polygon", "coordinates": [[[1, 2]]]}},
    "a polygon of numbers": {"intersects": {"type": "Polygon", "coordinates": [1, 2]}},
    "a collection of nothing": {"intersects": {"type": "GeometryCollection", "geometries": 5}},
    "a feature of nothing": {"intersects": {"type": "Feature", "geometry": None}},
    "a ring of too many corners": {"intersects": ring(MAX_CORNERS + 10)},
    "a ring of far too many corners": {"intersects": ring(3 * MAX_CORNERS)},
    "a filter of a ring": {"filter": {"op": "s_within", "args": [SQUARE, ring(MAX_CORNERS + 10)]}},
    "a filter of many rings": {
        "filter": {"op": "or", "args": [{"op": "s_within", "args": [SQUARE, ring(3000)]}] * 2}
    },
    "filter a list": {"filter": []},
    "filter a number": {"filter": 5},
    "filter empty": {"filter": {}},
    "filter text": {"filter": f"id = {SECRET}", "filter-lang": "cql2-text"},
    "filter text as JSON": {"filter": "id = 'a'", "filter-lang": "cql2-json"},
    "filter JSON as text": {"filter": EQUALS, "filter-lang": "cql2-text"},
    "filter of another system": {"filter": EQUALS, "filter-crs": SECRET},
    "filter-lang unknown": {"filter": EQUALS, "filter-lang": SECRET},
    "filter nested 100 deep": {"filter": nested(100, EQUALS)},
    "filter nested 300 deep": {"filter": nested(300, EQUALS)},
    "filter of open parentheses": {"filter": "(" * 30 + "id = 'a'"},
    "filter of a long number": {"filter": "zarr_row = " + "1" * 100_000},
    "filter by an unknown property": {"filter": {"op": "=", "args": [{"property": SECRET}, 1]}},
    "filter by a property that is a number": {"filter": {"op": "=", "args": [{"property": 5}, 1]}},
    "filter without arguments": {"filter": {"op": "=", "args": []}},
    "filter of null arguments": {"filter": {"op": "and", "args": None}},
    "filter with an unknown operator": {"filter": {"op": SECRET, "args": [1, 2]}},
    "filter like a number": {"filter": {"op": "like", "args": [{"property": "id"}, 5]}},
    "filter in a number": {"filter": {"op": "in", "args": [{"property": "id"}, 5]}},
    "filter by a time that is none": {
        "filter": {"op": "t_after", "args": [{"property": "datetime"}, {"date": SECRET}]}
    },
    "filter by a shape that is none": {"filter": {"op": "s_within", "args": [SQUARE, {"type": "Point"}]}},
    "filter by a bow tie": {
        "filter": {
            "op": "s_overlaps",
            "args": [SQUARE, {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]]}],
        }
    },
    "filter by a box of strings": {"filter": {"op": "s_within", "args": [SQUARE, {"bbox": ["a", 1, 2, 3]}]}},
    "filter lists of what is none": {"filter": {"op": "a_equals", "args": [{"property": "id"}, [1, {}]]}},
    "filter divides by nothing": {"filter": "datetime / 0 = 1"},
    "sortby a string": {"sortby": "id"},
    "sortby of strings": {"sortby": ["id"]},
    "sortby without direction": {"sortby": [{"field": SECRET}]},
    "sortby unknown": {"sortby": [{"field": SECRET, "direction": "asc"}]},
    "fields a list": {"fields": ["id"]},
    "fields null": {"fields": None},
    "fields of numbers": {"fields": {"include": [5]}},
    "collections a number": {"collections": 5},
    "half a surrogate": {"datetime": "\ud800"},
}


def check_refused(answer, statuses=(400,)):
    assert answer.status_code in statuses, answer.text[:500]
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert set(said) == {"code", "description"}
    assert 5 < len(said["description"]) <= 301
    assert "\n" not in said["description"]
    assert SECRET not in answer.text


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in BODIES.items()])
def test_bodies_that_mean_nothing_are_refused_in_a_sentence(client, body):
    content = json.dumps(body)

    answer = client.post("/search", content=content, headers={"Content-Type": "application/json"})

    check_refused(answer)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(b"", "application/json", id="nothing"),
        pytest.param(b"{", "application/json", id="cut short"),
        pytest.param(b"\xff\xfe\x00", "application/json", id="no text"),
        pytest.param(b"[" * 100_000, "application/json", id="100,000 lists"),
        pytest.param(b'{"a":' * 100_000, "application/json", id="100,000 objects"),
        pytest.param(b'{"bbox": [NaN, 1, 2, 3]}', "application/json", id="not a number"),
        pytest.param(b'{"limit": ' + b"9" * 5000 + b"}", "application/json", id="5,000 digits"),
        pytest.param(b"limit=5&bbox=1,2,3,4", "application/x-www-form-urlencoded", id="form"),
        pytest.param(b"--x\r\n\r\n5\r\n--x--", "multipart/form-data; boundary=x", id="multipart"),
        pytest.param(b"<a/>", "text/xml", id="xml"),
    ],
)
def test_bodies_that_are_no_json_are_refused_in_a_sentence(client, content, kind):
    check_refused(client.post("/search", content=content, headers={"Content-Type": kind}))


@pytest.mark.parametrize(
    "path",
    [
        f"/search?token={'9' * 5000}",
        f"/search?limit={'9' * 5000}",
        f"/search?datetime={SECRET}",
        f"/search?bbox={SECRET}",
        f"/search?intersects={'[' * 5000}",
        "/search?intersects=null",
        '/search?intersects={"type":"Point"}',
        "/search?filter=5&filter-lang=cql2-json",
        f"/search?filter={'[' * 5000}&filter-lang=cql2-json",
        "/search?filter=id%3D%27a%27&filter-crs=EPSG:3857",
        f"/search?sortby={SECRET}",
        f"{ITEMS}?token={'9' * 5000}",
        f"{ITEMS}?datetime={SECRET}",
        f"{ITEMS}?filter={SECRET}",
        f"{ITEMS}?bbox=1,2",
    ],
)
def test_parameters_that_mean_nothing_are_refused_in_a_sentence(client, path):
    check_refused(client.get(path))


@pytest.mark.parametrize(
    "path",
    [
        f"/collections/{SECRET}",
        f"{ITEMS}/{SECRET}",
        f"/collections/{SECRET}/queryables",
        f"/{SECRET}",
        "/%00",
    ],
)
def test_what_is_not_there_is_404_in_a_sentence(client, path):
    check_refused(client.get(path), (404,))


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods_are_refused_in_a_sentence(client, method):
    check_refused(client.request(method, "/search"), (405,))


def test_pages_of_other_origins_may_read_errors(client):
    origin = {"Origin": "https://example.org"}
    answers = [
        client.get("/search?bbox=1", headers=origin),
        client.get("/none", headers=origin),
        client.post("/search", content=b"x" * (body_limit.MAX_BODY_BYTES + 1), headers=origin),
    ]

    assert [one.status_code for one in answers] == [400, 404, 413]
    assert [one.headers["access-control-allow-origin"] for one in answers] == ["*"] * 3


def test_an_error_that_nobody_expected_is_500_in_a_sentence_that_pages_may_read(dataset, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(results, "find_rows", broken)
    with serving(dataset) as url:
        answer = httpx.get(f"{url}/search", headers={"Origin": "https://example.org"}, timeout=PATIENT_S)

    check_refused(answer, (500,))
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "path", ["/", "/search?limit=3", ITEMS, "/queryables", "/conformance", "/root/manifest.json", "/x"]
)
def test_head_is_get_without_the_body(client, path):
    plain = {"Accept-Encoding": "identity"}  # a file is not compressed for who does not read it
    whole = client.get(path, headers=plain)

    head = client.head(path, headers=plain)

    assert (head.status_code, head.content) == (whole.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers.get(name) == whole.headers.get(name)


@pytest.mark.parametrize("corners", [4, MAX_CORNERS])
def test_shapes_up_to_the_limit_are_searched(client, dataset, corners):
    shape = ring(corners) if corners > 4 else {"type": "Point", "coordinates": [10, 52]}

    found = client.post("/search", json={"intersects": shape, "limit": 100}).json()
    filtered = client.post(
        "/search", json={"filter": {"op": "s_intersects", "args": [SQUARE, shape]}, "limit": 100}
    ).json()

    assert found["numberMatched"] == filtered["numberMatched"] == len(dataset.search(intersects=shape))


def test_corners_are_counted_wherever_they_stand():
    many = {"type": "MultiPolygon", "coordinates": [ring(10)["coordinates"], ring(7)["coordinates"]]}
    filter_ = {
        "op": "or",
        "args": [{"op": "s_within", "args": [SQUARE, many]}, {"op": "=", "args": [SQUARE, [1, 2]]}],
    }

    assert count_corners(many) == 17
    assert count_corners(filter_) == 18


class Slow:
    """Stands in for the pieces of long searches: each takes 10 ms, and there are 3,000 of them.

    On a busy machine pieces take longer and so does all else: that a search ends soon is told by their number.
    """

    def __init__(self, monkeypatch, *, is_long=lambda query: True):
        self.begun, self.ended, self.pieces = 0, 0, 0
        whole = evaluation.find_rows

        def slow(dataset, query, *, between):
            if not is_long(query):
                return whole(dataset, query, between=between)
            self.begun += 1
            try:
                for _ in range(3_000):
                    between()
                    time.sleep(0.01)
                    self.pieces += 1
                return whole(dataset, query, between=between)
            finally:
                self.ended += 1

        monkeypatch.setattr(results, "find_rows", slow)

    def ends_within(self, pieces, *, after):
        """Wait for the end of the one search, and say whether it made no more pieces than that after so many."""
        wait_for(lambda: self.ended == self.begun)
        return self.pieces - after <= pieces


@contextmanager
def asking(url, path):
    """A client that waits for an answer, and hangs up at the end of the context."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as one:
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield


@pytest.mark.slow
def test_a_search_ends_within_a_second_of_pieces_when_its_client_hangs_up(dataset, monkeypatch):
    slow = Slow(monkeypatch)
    monkeypatch.setattr(lanes, "MAX_SEARCH_S", PATIENT_S)
    with serving(dataset) as url:
        with asking(url, "/search?bbox=1,2,3,4"):
            wait_for(lambda: slow.begun)
            pieces = slow.pieces

        assert slow.ends_within(100, after=pieces)


@pytest.mark.slow
def test_equal_searches_are_one_and_end_when_the_last_client_hangs_up(dataset, monkeypatch):
    slow, searches, join = Slow(monkeypatch), [], Results._join
    monkeypatch.setattr(lanes, "MAX_SEARCH_S", PATIENT_S)

    def noted(self, query):
        searches.append(found := join(self, query))
        return found

    monkeypatch.setattr(Results, "_join", noted)
    with serving(dataset) as url:
        with asking(url, "/search?bbox=1,2,3,4"):
            with ExitStack() as others:
                for _ in range(4):
                    others.enter_context(asking(url, "/search?bbox=1,2,3,4"))
                wait_for(lambda: len(searches) == 5)
            search, *rest = searches
            assert rest == [search] * 4
            wait_for(lambda: search.waiting == 1)
            pieces = slow.pieces
            wait_for(lambda: slow.pieces > pieces + 10)
            assert (slow.begun, slow.ended) == (1, 0)
            pieces = slow.pieces

        assert slow.ends_within(100, after=pieces)
        assert slow.begun == 1


@pytest.mark.slow
def test_a_search_that_takes_too_long_ends(dataset, monkeypatch):
    slow = Slow(monkeypatch)
    monkeypatch.setattr(lanes, "MAX_SEARCH_S", 0.3)

    with serving(dataset) as url:
        answer = httpx.get(f"{url}/search", timeout=PATIENT_S)

    check_refused(answer, (503,))
    assert int(answer.headers["retry-after"]) > 0
    assert slow.ends_within(50, after=30)


def test_long_searches_wait_for_each_other_and_short_ones_do_not(dataset, monkeypatch):
    monkeypatch.setattr(results, "expected_s", lambda dataset, query: 60.0 if "intersects" in query else 0.0)
    monkeypatch.setattr(lanes, "MAX_LONG", 3)
    slow = Slow(monkeypatch, is_long=lambda query: query.intersects is not None)
    short = Results(dataset)
    points = [{"type": "Point", "coordinates": [10, 50 + one]} for one in range(5)]

    async def gone() -> bool:
        return stop.is_set()

    async def run():
        asked = [asyncio.create_task(short.found({"intersects": point}, gone)) for point in points]
        while sum(one.done() for one in asked) < 2 or not slow.begun:
            await asyncio.sleep(0.01)
        assert slow.begun == 1
        assert short.lanes.num_long == 3
        found = await asyncio.wait_for(short.found({"bbox": [0, 0, 1, 1]}, gone), PATIENT_S)
        assert (slow.begun, slow.ended) == (1, 0)
        assert len(found) == len(dataset.search(bbox=(0, 0, 1, 1)))
        stop.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    stop = threading.Event()
    ended = asyncio.run(run())

    assert sorted(error.status_code for error in ended) == [499, 499, 499, 503, 503]


def test_a_large_shape_is_not_even_made_while_there_is_no_place_for_it(dataset, monkeypatch):
    monkeypatch.setattr(lanes, "MAX_LONG", 0)

    def never(*_):
        raise AssertionError("it was made")

    monkeypatch.setattr(results, "parse_geometry", never)
    with pytest.raises(HTTPException, match="too many searches"):
        rows_of(Results(dataset), intersects=ring(1_000))


def rows_of(found, **query):
    """What a client gets that waits."""

    async def is_gone():
        return False

    return asyncio.run(found.found(query, is_gone))


def test_a_search_that_is_not_short_after_all_goes_to_the_long_ones(dataset, monkeypatch):
    runs = []

    def busy(dataset, query, *, between):
        runs.append(threading.current_thread().name)
        start = time.thread_time()
        while time.thread_time() - start < 0.2:
            between()
        return evaluation.find_rows(dataset, query, between=between)

    monkeypatch.setattr(results, "find_rows", busy)
    monkeypatch.setattr(lanes, "_SHORT_CPU_S", 0.05)
    found = rows_of(Results(dataset), bbox=[0, 0, 90, 90])

    assert len(found) == len(dataset.search(bbox=(0, 0, 90, 90)))
    assert [name.startswith("long") for name in runs] == [False, True]


def test_errors_of_a_search_reach_all_who_wait_and_are_not_kept(dataset, monkeypatch):
    kept = Results(dataset)
    monkeypatch.setattr(lanes, "MAX_SEARCH_S", -1.0)
    for _ in range(2):
        with pytest.raises(Exception, match="took more than"):
            rows_of(kept, bbox=[0, 0, 1, 1])
    monkeypatch.undo()

    assert len(rows_of(kept, bbox=[0, 0, 1, 1])) == len(dataset.search(bbox=(0, 0, 1, 1)))
    assert kept.lanes.num_short == 0
    assert issubclass(GivenUpError, Exception)


@pytest.mark.parametrize(
    ("query", "num_rows"),
    [
        pytest.param(lambda number: {"bbox": [-20, 0, 60 + number, 90]}, None, id="many rows"),
        pytest.param(
            lambda number: {"ids": [f"{number} {'x' * 3_000}"]}, 0, id="a long query that finds nothing"
        ),
    ],
)
def test_results_that_are_kept_have_a_limit(dataset, monkeypatch, query, num_rows):
    num_rows = len(dataset) if num_rows is None else num_rows
    one = len(json.dumps(query(10))) + 8 * num_rows + 500
    monkeypatch.setattr(results, "_KEPT_BYTES", 3 * one + one // 2)
    kept = Results(dataset)

    for number in range(10, 30):
        assert len(rows_of(kept, **query(number))) == num_rows

    assert len(kept._kept) == 3
    assert json.dumps(query(29)) in kept._kept
    assert not kept._running


def test_what_is_short_beside_all_patches_is_not_looked_at(dataset, monkeypatch):
    monkeypatch.setattr(cost, "_near", None)
    small = {"cql2": cql.parse("split = 'train'"), "bbox": [0, 0, 1, 1]}

    assert 0 < expected_s(dataset, small) < cost.SHORT_S
    monkeypatch.setattr(cost, "SHORT_S", 0.0)
    with pytest.raises(TypeError):
        expected_s(dataset, small)


def test_what_a_search_costs_grows_with_its_corners_and_operators(dataset, monkeypatch):
    monkeypatch.setattr(cost, "SHORT_S", 0.0)
    from reben_cloud.search.arguments import parse_geometry

    few, many = ({"intersects": parse_geometry(ring(corners))} for corners in (10, 4_000))
    one = {"cql2": cql.parse("split = 'train'")}
    several = {"cql2": cql.parse(" OR ".join("casei(id) = 'x'" for _ in range(50)))}

    assert 0 == expected_s(dataset, {}) < expected_s(dataset, few) < expected_s(dataset, many) / 10
    assert 0 < expected_s(dataset, one) < expected_s(dataset, several) / 50
    assert expected_s(dataset, {**several, "bbox": [100, 0, 101, 1]}) == 0
    # Few values are folded once each, whether they are named with or without the prefix.
    known = [
        expected_s(dataset, {"cql2": cql.parse(f"casei({name}) = 'x'")})
        for name in ('"reben:country"', "country", "id")
    ]
    assert known[0] == known[1] < known[2] / 10


@pytest.mark.parametrize("op", ["and", "or"])
def test_the_cost_of_many_shapes_is_known_without_a_look_at_each(dataset, monkeypatch, op):
    looks = []
    monkeypatch.setattr(cost, "SHORT_S", 0.0)
    monkeypatch.setattr(cost, "in_box", lambda boxes, box: looks.append(box) or shapes.in_box(boxes, box))
    few, many = (
        cql.parse(
            {"op": op, "args": [{"op": "s_intersects", "args": [SQUARE, ring(9 + i)]} for i in range(count)]}
        )
        for count in (4, 100)
    )

    cheap = expected_s(dataset, {"cql2": few})
    assert 4 <= len(looks) <= 8
    looks.clear()
    dear = expected_s(dataset, {"cql2": many})

    assert len(looks) <= 16
    assert dear > 20 * cheap > 0
    # All patches: beside each shape's box alone they take half a second.
    assert 100 * len(dataset) * 10e-9 < dear


@pytest.mark.slow
def test_slow_connections_are_hung_up_on_and_do_not_keep_others_waiting(dataset, monkeypatch):
    def slow_ones(url):
        parts = urlsplit(url)
        slow = [socket.create_connection((parts.hostname, parts.port), PATIENT_S) for _ in range(200)]
        for number, one in enumerate(slow):
            one.sendall([b"", b"GET /search HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"][number % 2])
        return slow

    with serving(dataset) as url:
        # None of them is hung up on before the answer comes.
        monkeypatch.setattr(running, "MAX_HEADER_S", 2 * PATIENT_S)
        slow = slow_ones(url)
        assert httpx.get(f"{url}/search?limit=1", timeout=PATIENT_S).status_code == 200
        for one in slow:
            one.close()

        monkeypatch.setattr(running, "MAX_HEADER_S", 1.0)
        for one in slow_ones(url):
            while one.recv(1 << 16):  # a 400 at most, then the end
                pass
            one.close()
        # Who asks at once is not hung up on, however long the answers take in all.
        monkeypatch.setattr(running, "MAX_HEADER_S", 3.0)
        with httpx.Client(base_url=url, timeout=PATIENT_S) as kept:
            for _ in range(9):
                assert kept.get("/conformance").status_code == 200
                time.sleep(0.4)


def test_bodies_that_trickle_in_are_given_up(dataset, monkeypatch):
    monkeypatch.setattr(body_limit, "MAX_BODY_S", 0.5)
    monkeypatch.setattr(body_limit.BodyLimit.__init__, "__defaults__", (1_000, 0.5))
    with serving(dataset) as url:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port), timeout=PATIENT_S) as one:
            one.sendall(b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            said = b"".join(iter(lambda: one.recv(1 << 16), b""))  # the head may come before the body

    assert said.startswith(b"HTTP/1.1 408")
    assert b"must arrive within" in said


@pytest.mark.slow
def test_no_request_that_the_openapi_document_describes_or_nearly_is_the_servers_fault(client):
    """Cases of schemathesis: examples, coverage, fuzzing, and in chains that follow the answers."""
    pytest.importorskip("schemathesis")
    program = Path(sys.executable).with_name("schemathesis")
    command = [program, "run", str(client.base_url.join("/api")), "--checks", "not_a_server_error"]
    how = ["--max-time", "40", "--max-examples", "1000", "--generation-deterministic", "--no-color"]
    quiet = ["--continue-on-failure", "--warnings", "off", "--suppress-health-check", "all"]

    done = subprocess.run(
        [*command, *how, *quiet], capture_output=True, text=True, check=False, timeout=2 * PATIENT_S
    )

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    cases = re.search(r"([\d,]+) generated, ([\d,]+) passed", done.stdout)
    assert cases is not None, done.stdout[-2000:]
    assert cases[1] == cases[2]
    assert int(cases[1].replace(",", "")) > 300
    assert "Stateful" in done.stdout
