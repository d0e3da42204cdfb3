"""A store that stalls, fails or refuses: told in bounded time, with a cause, and without anybody's secrets."""

from __future__ import annotations

import http.server
import math
import re
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import reben_cloud as rc
from reben_cloud.checks.doctor import diagnose
from reben_cloud.checks.verify import verify
from reben_cloud.errors import StorageError, UnreachableError
from reben_cloud.export import export_lmdb
from reben_cloud.store import Budget, Store, mask, open_store, public_url
from reben_cloud.store import objects as store_module
from reben_cloud.stream import RawLoader
from tests.roots import synthetic_root
from tests.webserver import _Ranged

SHORT = Budget(attempts=3, seconds=2.5, silence_s=1.5, request_s=2.0)
MOST_S = Budget().seconds / 2
"""What a call may take with `SHORT` on a machine however busy: less than any wait by the defaults. That nobody below or
above tries again is told by the number of requests."""

SECRET = "sEcr3t"


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder until told to do otherwise with paths that contain `match`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, folder):
        self.mode, self.match, self.asked, self.folder = "serve", "", [], str(folder)
        self.ended, self.taken, self.stalls_since = threading.Event(), 0, math.inf
        super().__init__(("127.0.0.1", 0), Stalling)

    def stall(self, mode, match=""):
        self.mode, self.match = mode, match
        self.asked.clear()

    @property
    def address(self):
        return f"127.0.0.1:{self.server_port}"


class Stalling(_Ranged):
    def __init__(self, request, client_address, server):
        super().__init__(request, client_address, server, directory=server.folder)

    def answer(self):
        server = self.server
        server.asked.append((self.command, self.path, self.headers))
        if server.mode == "serve" or server.match not in self.path:
            return False
        server.stalls_since = min(server.stalls_since, time.monotonic())
        mode = server.mode
        file = Path(self.translate_path(self.path))
        size = file.stat().st_size if file.is_file() else 2**21
        if mode == "accept":
            server.ended.wait()
        elif mode == "slow":
            data = file.read_bytes()
            for start in range(self.begin_part(len(data)), len(data), 40_000):
                self.wfile.write(data[start : start + 40_000])
                time.sleep(0.1)
        elif mode == "body":
            start = self.begin_part(size)
            self.wfile.write(b"x" * max(0, size // 4 - start))
            server.ended.wait()
        elif mode == "trickle":
            self.begin_part(size)
            while not server.ended.wait(0.1):
                self.wfile.write(b"x")
        else:
            status, _, code = mode.partition(" ")
            body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.begin(int(status), len(body))
            self.wfile.write(b"" if self.command == "HEAD" else body)
        self.close_connection = True
        return True

    def begin_part(self, size):
        """Begin to answer with an object of this size, or the range asked for; its first byte."""
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), min(int(last or size), size - 1) + 1
        if not first and last:
            start, stop = size - int(last), size
        self.send_response(206 if first or last else 200)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        return start

    def begin(self, status, length):
        self.send_response(status)
        self.send_header("ETag", '"1"')  # which S3's clients want of a write
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def guarded(self, otherwise):
        try:
            if not self.answer():
                otherwise()
        except OSError:
            self.close_connection = True  # the client has gone

    def do_GET(self):
        self.guarded(super().do_GET)

    def do_HEAD(self):
        self.guarded(super().do_HEAD)

    def do_PUT(self):
        left = int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 100_000))
            if not piece:
                return  # the client has gone
            left -= len(piece)
            if self.server.mode == "slow":
                time.sleep(0.05)
                self.server.taken += 100_000
        if self.server.mode == "slow":
            self.server.mode = "serve"
        self.guarded(lambda: self.begin(200, 0))

    def do_POST(self):  # which is how obstore deletes
        self.do_PUT()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget") / "root"
    synthetic_root(folder, 24, shard_samples=8)
    return folder


@contextmanager
def serving(folder):
    with Server(folder) as server:
        # The end is noticed within 0.02 s, not the half second that is the default.
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.fixture
def server(root):
    with serving(root.parent) as server:
        yield server


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(store_module, "BUDGET", SHORT)


def s3_store(server, **options):
    """A store of a bucket at the server, which knows nothing of S3 but how to refuse."""
    options = {"endpoint_url": f"http://{server.address}", "key": "k", "secret": SECRET, **options}
    return Store("s3://bucket/root", options, budget=SHORT)


def failure_of(call):
    """The error that a call raises in time."""
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        call()
    assert time.monotonic() - start < MOST_S
    return caught.value


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call to a store ended."""

    error: Exception | None
    seconds: float
    """From the first request that is not answered as it should be to the end."""
    num_asked: int
    """Requests that reached the server."""
    shown: str
    """All that a user or a log would see."""


def all_at_once(folder, calls):
    """The outcome of each call, which is given a server of its own: they wait together, not in turn."""

    def outcome(run, server):
        error = None
        try:
            run()
        except StorageError as caught:
            error = caught
        seconds = time.monotonic() - server.stalls_since
        shown = "".join(traceback.format_exception(error)) + str(error.__context__) if error else ""
        return Outcome(error=error, seconds=seconds, num_asked=len(server.asked), shown=shown)

    with ExitStack() as stack, ThreadPoolExecutor(len(calls)) as pool:
        servers = [stack.enter_context(serving(folder)) for _ in calls]
        runs = [call(server) for call, server in zip(calls.values(), servers, strict=True)]
        return dict(zip(calls, pool.map(outcome, runs, servers), strict=True))


CALLS = {
    "get": lambda s: s.get("x"),
    "get_into": lambda s: s.get_into("x", memoryview(bytearray(2**21))),
    "get_range": lambda s: s.get_range("x", 5, 2**20),
    "get_end": lambda s: s.get_end("x", 100),
    "get_ranges": lambda s: s.get_ranges("x", [0, 2**20], [2**20, 2**20]),
    "head": lambda s: s.head("x"),
    "exists": lambda s: s.exists("x"),
    "list": lambda s: list(s.list()),
    "put": lambda s: s.put("x", b"1"),
    "create": lambda s: s.put("x", b"1", create=True),
    "delete": lambda s: s.delete("x"),
}


READS = ["get", "get_into", "get_range", "get_ranges"]


@pytest.fixture(scope="module")
def stalled_calls(root):
    def call(mode, name):
        def prepare(server):
            store = s3_store(server)
            assert not store.exists("x")  # makes the client, which takes longer than the call
            server.stall(mode)
            return lambda: CALLS[name](store)

        return prepare

    cases = [("accept", name) for name in CALLS]
    cases += [(mode, name) for mode in ("body", "trickle") for name in READS]
    return all_at_once(root.parent, {case: call(*case) for case in cases})


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_never_answers_is_told_in_time(stalled_calls, call):
    outcome = stalled_calls["accept", call]

    assert isinstance(outcome.error, UnreachableError)
    assert outcome.seconds < MOST_S
    assert "no answer" in str(outcome.error)
    assert "given up after 2 attempts in " in str(outcome.error)
    # Nothing below or above tried again; two ranges are asked for at once.
    assert outcome.num_asked <= (3 if call == "get_ranges" else 2)


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("mode", ["body", "trickle"])
def test_an_answer_that_stops_or_trickles_is_told_in_time(stalled_calls, mode, call):
    outcome = stalled_calls[mode, call]

    assert outcome.seconds < MOST_S
    assert "s without progress" in str(outcome.error)
    assert outcome.num_asked <= 6


def test_a_store_that_throttles_gets_all_attempts_and_no_more(server):
    server.stall("503 SlowDown")

    error = failure_of(lambda: s3_store(server).get("x"))

    assert "SlowDown" in str(error)
    assert "given up after 3 attempts" in str(error)
    assert not isinstance(error, UnreachableError)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("403 InvalidAccessKeyId", "permission denied.*check the credentials"),
        ("403 SignatureDoesNotMatch", "permission denied.*check the credentials"),
        ("400 ExpiredToken", "credentials have expired|check the credentials"),
        ("400 InvalidToken", "check the credentials"),
        ("403 RequestTimeTooSkewed", "set the clock|check the credentials"),
        ("403 AccessDenied", "permission denied"),
    ],
)
def test_refusals_are_told_at_once(server, call, answer, message):
    server.stall(answer)

    with pytest.raises(StorageError, match=message) as caught:
        CALLS[call](s3_store(server))

    assert len(server.asked) <= 2  # of get_ranges: one a range
    assert SECRET not in str(caught.value)
    if call not in ("head", "exists"):  # whose answers have no text
        assert answer.split()[1] in str(caught.value)


@pytest.mark.slow
def test_a_slow_download_goes_on_for_as_long_as_it_takes(tmp_path):
    data = np.random.default_rng(5).bytes(2_000_000)  # at 0.4 MB/s
    (tmp_path / "x").write_bytes(data)

    with serving(tmp_path) as server:
        server.stall("slow")
        store = Store(f"http://{server.address}", {}, budget=SHORT)
        start = time.monotonic()

        found = store.get("x")

        assert time.monotonic() - start > SHORT.seconds + SHORT.request_s  # more than a stall is granted
        assert bytes(found) == data
        assert len(server.asked) > 2  # it went on where a request ended
        assert all(headers["Range"] for _, _, headers in server.asked[1:])


@pytest.mark.slow
def test_a_large_object_has_the_time_that_its_size_takes_to_be_written(server):
    data = bytes(10_000_000)
    store = s3_store(server)
    store.budget = replace(SHORT, write_bytes_per_s=1e6)
    server.stall("slow")  # 2 MB/s
    start = time.monotonic()

    store.put("x", data)

    assert time.monotonic() - start > SHORT.seconds + SHORT.request_s  # more than a small object is granted
    assert server.taken >= len(data)
    assert [method for method, *_ in server.asked] == ["PUT"]


@pytest.mark.slow
def test_a_large_object_that_stalls_is_told_in_the_time_of_its_size(server):
    store = s3_store(server)
    store.budget = replace(SHORT, write_bytes_per_s=4e6)
    server.stall("accept")

    error = failure_of(lambda: store.put("x", bytes(6_000_000)))

    assert isinstance(error, UnreachableError)


def test_small_objects_have_the_budget_itself_and_others_a_second_a_quarter_megabyte():
    whole = Budget()

    assert whole.for_write(0) == whole.for_write(2_000_000) == whole
    large = whole.for_write(100_000_000)
    assert large.silence_s == whole.silence_s + 400
    assert large.request_s == whole.request_s + 400
    assert large.seconds == whole.seconds + 400
    assert large == whole.for_write(100_500_000)  # and so a client


ACCESSES = {
    "open": lambda ds, url, tmp: rc.open(url),
    "search": lambda ds, url, tmp: ds.search(country="Finland"),
    "stream": lambda ds, url, tmp: next(iter(RawLoader(ds.search(), batch_size=4))),
    "stream few": lambda ds, url, tmp: next(iter(RawLoader(ds.search(limit=1), batch_size=1))),
    "stream with a cache": lambda ds, url, tmp: next(
        iter(RawLoader(ds.search(), batch_size=4, cache_dir=tmp / "cache"))
    ),
    "stream from Zarr": lambda ds, url, tmp: next(iter(RawLoader(ds.search(), batch_size=4, form="zarr"))),
    "zarr": lambda ds, url, tmp: ds.open_zarr(ds.products[0]).B02.values,
    "export": lambda ds, url, tmp: export_lmdb(ds.search(), tmp / "out"),
}
PARTS = {
    "open": "manifest.json",
    "search": "patches.parquet",
    "stream": ".tar",
    "stream few": ".tar",
    "stream with a cache": ".tar",
    "stream from Zarr": "/c/",
    "zarr": "/zarr/",
    "export": ".tar",
}


@pytest.fixture(scope="module")
def stalled_accesses(root, tmp_path_factory):
    def access(mode, name):
        folder = tmp_path_factory.mktemp("access")

        def prepare(server):
            url = f"http://user:{SECRET}@{server.address}/root?sig={SECRET}"
            dataset = rc.open(url)
            assert SECRET not in repr(dataset.store)
            server.stall(mode, PARTS[name])
            return lambda: ACCESSES[name](dataset, url, folder)

        return prepare

    cases = [(mode, name) for mode in ("accept", "trickle") for name in ACCESSES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BUDGET", SHORT)
        return all_at_once(root.parent, {case: access(*case) for case in cases})


@pytest.mark.slow
@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("mode", ["accept", "trickle"])
def test_every_access_to_a_stalled_store_ends_in_time(stalled_accesses, access, mode):
    outcome = stalled_accesses[mode, access]

    assert outcome.seconds < MOST_S
    assert "without progress" in str(outcome.error)
    assert SECRET not in outcome.shown


def test_doctor_of_a_stalled_store_ends_in_time(short, server):
    list(diagnose())  # which imports whatever is installed
    server.stall("accept")
    start = time.monotonic()

    findings = list(diagnose(f"http://user:{SECRET}@{server.address}/root?token={SECRET}"))

    assert time.monotonic() - start < MOST_S
    assert findings[-1].level == "problem"
    assert SECRET not in repr(findings)


@pytest.mark.s3
def test_verify_and_build_of_a_store_that_stalls_on_the_way_end_in_time(short, root, s3_bucket, fault_proxy):
    direct = open_store(f"{s3_bucket.url}/root", s3_bucket.storage_options)
    for file in root.rglob("*"):
        if file.is_file():
            direct.put(file.relative_to(root).as_posix(), file.read_bytes())
    behind = s3_bucket.through(fault_proxy.endpoint)
    dataset = rc.open(f"{s3_bucket.url}/root", behind.storage_options)
    fault_proxy.add(".tar", "delay", times=10**6, seconds=1000)

    failure_of(lambda: verify(dataset))

    fault_proxy.rules.clear()
    fault_proxy.add("PUT", "delay", times=10**6, seconds=1000)
    options = {"storage_options": behind.storage_options}
    failure_of(lambda: synthetic_root(f"{s3_bucket.url}/other", 4, **options))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["accept", "body", "trickle"])
def test_the_defaults_end_within_ninety_seconds(a_tenth_of_the_defaults, mode):
    tenth, outcomes = a_tenth_of_the_defaults
    outcome = outcomes[mode]

    assert tenth.seconds + tenth.request_s < 9  # when the last attempt ends
    # On a machine however busy; if a layer tried again, three times as long.
    assert outcome.seconds < 18
    assert outcome.num_asked == 3  # which nobody tries again
    assert re.search(r"given up after 3 attempts in \d+ s", str(outcome.error))


@pytest.fixture(scope="module")
def a_tenth_of_the_defaults(root):
    """Nobody waits for 90 s here; the pauses between attempts are those of the defaults, and so do not help."""
    whole = store_module.BUDGET
    tenth = replace(
        whole, seconds=whole.seconds / 10, silence_s=whole.silence_s / 10, request_s=whole.request_s / 10
    )

    def call(mode):
        def prepare(server):
            store = Store(f"http://{server.address}", {}, budget=tenth)
            assert not store.exists("x")
            server.stall(mode)
            return lambda: store.get("x")

        return prepare

    return tenth, all_at_once(root.parent, {mode: call(mode) for mode in ("accept", "body", "trickle")})


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("http://user:pass@host:1/b/x", "http://***@host:1/b/x"),
        ("http://user@host/x", "http://***@host/x"),
        ("GET https://us%40er:p@ss@host/x?a=1 failed", "GET https://***@host/x?*** failed"),
        ("'http://KEY:abc/def+g@host:9000/x'", "'http://***@host:9000/x'"),
        ("https://h/x?X-Amz-Signature=abc&X-Amz-Date=1)", "https://h/x?***)"),
        ("https://h/x?sv=1&sig=a%2Bb: gone", "https://h/x?*** gone"),
        ("/x?token=abc&y=1", "/x?token=***&y=1"),
        ("x-amz-security-token=abc", "x-amz-security-token=***"),
        # What is no secret stays.
        ("http://host:8080/path@v1/x", "http://host:8080/path@v1/x"),
        ("s3://bucket/a@b/c?d", "s3://bucket/a@b/c?d"),
        ("an ordinary = text: a@b.c", "an ordinary = text: a@b.c"),
    ],
)
def test_what_is_masked(text, want):
    assert mask(text) == want


def test_a_store_shows_where_it_is_and_not_how_one_gets_in(server):
    store = Store(f"http://user:{SECRET}@{server.address}/root?sig={SECRET}", {})

    assert store.url == public_url(store.url) == f"http://{server.address}/root"
    assert store.child("shards").url == f"http://{server.address}/root/shards"
    bytes(store.get("manifest.json"))
    store.child("shards").exists("x")
    assert all(f"sig={SECRET}" in path for _, path, _ in server.asked)
    assert "/root/shards/x" in server.asked[-1][1]


def test_secrets_in_the_endpoint_are_in_no_error(server):
    server.stall("503 SlowDown")
    store = s3_store(server, endpoint_url=f"http://user:{SECRET}@{server.address}")

    error = failure_of(lambda: store.get("x"))

    assert SECRET not in "".join(traceback.format_exception(error)) + repr(store)
    assert "127.0.0.1" in str(error)
