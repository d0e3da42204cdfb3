"""The server behind a proxy, as a process, and what it says of itself."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import pytest

import reben_cloud as rc
from reben_cloud.errors import AddressError
from reben_cloud.serve import create_app, serve
from tests.conftest import PATIENT_S, wait_for
from tests.roots import synthetic_root
from tests.serving import serving, unread_bytes

PUBLIC = "https://data.example.org/stac"
PATHS = [
    *("/", "/collections", "/search?limit=1", "/queryables", "/conformance", "/api", "/_mgmt/metrics"),
    *("/search?filter=height=3", "/search?sortby=height", "/collections/bigearthnet-v2/items/none"),
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a-secret-folder") / "root"
    synthetic_root(folder, 60)
    return rc.open(folder)


@pytest.fixture(scope="module")
def public(dataset):
    with serving(dataset, public_url=PUBLIC) as url:
        yield url


def hrefs(document):
    """All links and assets in a document, at any depth."""
    if isinstance(document, dict):
        found = [document["href"]] if isinstance(document.get("href"), str) else []
        return found + [href for value in document.values() for href in hrefs(value)]
    return [href for value in document for href in hrefs(value)] if isinstance(document, list) else []


@pytest.mark.parametrize("prefix", ["", "/stac"], ids=["taken off", "left"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/collections",
        "/collections/bigearthnet-v2",
        "/collections/bigearthnet-v2/items?limit=2",
        "/search?limit=2",
        "/search?limit=2&token=2",
    ],
)
def test_links_have_the_public_url_whether_the_proxy_takes_its_path_off_or_not(public, prefix, path):
    document = httpx.get(f"{public}{prefix}{path}", timeout=PATIENT_S).raise_for_status().json()

    found = [href for href in hrefs(document) if "example.org" in href or not href.startswith("https://")]
    assert len(found) > 3
    assert [href for href in found if not href.startswith(PUBLIC)] == []
    assert document["links"]
    for href in found:  # each of them is there, asked for as the proxy does
        inner = f"{public}{href.removeprefix('https://data.example.org')}"
        if not href.endswith(".zarr"):  # a folder
            assert httpx.head(inner, timeout=PATIENT_S).status_code == 200, href


def test_pages_are_followed_under_a_prefix(public, dataset):
    seen, page = [], httpx.post(f"{public}/stac/search", json={"limit": 25}, timeout=PATIENT_S).json()
    while True:
        seen += [item["id"] for item in page["features"]]
        link = next((one for one in page["links"] if one["rel"] == "next"), None)
        if link is None:
            break
        inner = public + link["href"].removeprefix("https://data.example.org")
        page = httpx.request(link["method"], inner, json=link["body"], timeout=PATIENT_S).json()

    assert seen == dataset.search().patch_ids


def test_no_answer_tells_where_the_files_are(public, dataset):
    with serving(dataset) as plain:
        for url in (public, plain):
            for path in (
                "/",
                "/collections",
                "/search?limit=1",
                "/queryables",
                "/api",
                "/search?filter=height=3",
                "/_mgmt/metrics",
            ):
                assert "a-secret-folder" not in httpx.get(f"{url}{path}", timeout=PATIENT_S).text


def test_the_documentation_of_the_api_works_under_a_prefix(public):
    page = httpx.get(f"{public}/stac/api.html", timeout=PATIENT_S).text

    assert "/stac/api" in page
    assert httpx.get(f"{public}/stac/api", timeout=PATIENT_S).json()["openapi"]


@pytest.mark.parametrize(
    "wrong", [{"public_url": "data.example.org"}, {"public_url": "https://x/?a=b"}, {"root_path": "stac"}]
)
def test_a_public_url_that_is_none_is_refused_at_the_start(dataset, wrong):
    with pytest.raises(ValueError, match="must"):
        create_app(dataset, **wrong)


def test_a_taken_port_is_an_error_that_names_it_and_no_url_is_told(dataset):
    told = []
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=f"127.0.0.1 port {port}.*--port"):
            serve(dataset, port=port, ready=told.append)

    assert told == []


@pytest.mark.slow
def test_the_process_tells_its_url_when_it_answers_logs_and_stops_gracefully(dataset, tmp_path):
    command = [
        sys.executable,
        "-m",
        "reben_cloud.cli",
        "serve",
        str(dataset.store.local_path()),
        "--port",
        "0",
    ]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--access-log", "--forwarded-allow-ips", "127.0.0.1"], stderr=stderr
        )
    while "patches of" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    url = log.read_text().split()[0]

    # No wait and no second try: it answers from the moment on that it says so.
    https = httpx.get(
        url, headers={"X-Forwarded-Proto": "https", "Accept": "application/json"}, timeout=PATIENT_S
    ).json()
    assert https["links"][0]["href"].startswith("https://")
    # Half of a request, which it waits for before it stops.
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENT_S) as half:
        head = "POST /search HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json"
        half.sendall("\r\n".join([*head, "Content-Length: 12", "", "{"]).encode())
        wait_for(lambda: unread_bytes(parts.port) == 0)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        half.sendall(b'"limit": 1}'.ljust(11))
        said = b""
        while part := half.recv(1 << 16):
            said += part
    assert said.startswith(b"HTTP/1.1 200")
    assert process.wait(PATIENT_S) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/", 200),
        ("POST", "/search", 200),
    ]
    assert all(line["ms"] > 0 and line["bytes"] > 0 for line in lines)


def test_probes_and_metrics(public):
    before = httpx.get(f"{public}/_mgmt/metrics", timeout=PATIENT_S)
    httpx.get(f"{public}/search?limit=1", timeout=PATIENT_S)
    httpx.get(f"{public}/search?bbox=1", timeout=PATIENT_S)
    httpx.get(f"{public}/no/such/page", timeout=PATIENT_S)
    httpx.get(f"{public}/patches/none/B04.tif", timeout=PATIENT_S)
    after = httpx.get(f"{public}/_mgmt/metrics", timeout=PATIENT_S).text

    def number(text, name):
        return float(
            next((line for line in text.splitlines() if line.startswith(f"{name} ")), f"{name} 0").split()[-1]
        )

    assert before.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        'reben_requests_total{route="/search",method="GET",status="200"}',
        'reben_requests_total{route="/search",method="GET",status="400"}',
        'reben_requests_total{route="/patches",method="GET",status="404"}',
        'reben_requests_total{route="other",method="GET",status="404"}',
    ):
        assert number(after, name) == number(before.text, name) + 1
    assert (
        number(after, "reben_request_seconds_count") == number(before.text, "reben_request_seconds_count") + 5
    )
    assert number(after, 'reben_request_seconds_bucket{le="+Inf"}') == number(
        after, "reben_request_seconds_count"
    )
    assert number(after, "reben_resident_memory_bytes") > 1e7
    assert (
        httpx.get(f"{public}/_mgmt/ping", timeout=PATIENT_S).status_code
        == httpx.get(f"{public}/_mgmt/health", timeout=PATIENT_S).status_code
        == 200
    )
