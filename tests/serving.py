"""The server of a dataset, and a browser that looks at it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from reben_cloud.root.dataset import Dataset
from reben_cloud.serve import create_app
from reben_cloud.serve.running import ImpatientProtocol
from tests.conftest import PATIENT_S, missing

PATIENT_MS = 1000 * PATIENT_S
"""For a browser, which counts in milliseconds."""


@pytest.fixture(scope="module")
def url(dataset: Dataset) -> Iterator[str]:
    """Of a server of the dataset that a file of tests has a fixture of."""
    with serving(dataset) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    """Of that server."""
    with httpx.Client(base_url=url, timeout=PATIENT_S) as client:
        yield client


@contextmanager
def serving_apart(dataset: Dataset) -> Iterator[str]:
    """The URL of a server in a process of its own: GDAL keeps the interpreter to itself while it reads."""
    command = [sys.executable, "-m", "reben_cloud.cli", "serve", dataset.url, "--port", "0"]
    command += [f"--layer={layer.url}" for layer in dataset.layers.values()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()  # once clients are answered
            assert said.startswith("http://"), f"the server ended: {said}"
            yield said.split()[0].rstrip("/")
        finally:
            process.terminate()


@contextmanager
def serving(dataset: Dataset, *, prefix: str = "", **options: Any) -> Iterator[str]:
    """The URL of a server in a thread of this process, on a free port of the loopback address, below a prefix.

    Args:
        dataset: What it serves.
        prefix: Path of an application that the server is mounted in.
        options: Of `create_app`.
    """
    app = create_app(dataset, **options)
    below = Starlette(routes=[Mount(prefix, app)]) if prefix else app
    server = uvicorn.Server(uvicorn.Config(below, port=0, log_level="warning", http=ImpatientProtocol))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}{prefix}"
    server.should_exit = True
    thread.join(10)


def unread_bytes(port: int) -> int:
    """Bytes that were sent to a port of this machine, and that the process which serves it has not read yet."""
    number = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, here, there, _, queues, *_ = line.split()
        sent, came = (int(one, 16) for one in queues.split(":"))
        ports = [int(one.rpartition(":")[2], 16) for one in (here, there)]
        number += came * (ports[0] == port) + sent * (ports[1] == port)
    return number


def answered_while_one_works(
    url: str, ask: Sequence[Callable[[], httpx.Response]], begun: Sized, go_on: threading.Event
) -> list[httpx.Response]:
    """Answers of requests of which one works while the others wait, and none keeps a small request from its answer.

    Args:
        url: Of the server.
        ask: What to ask, at once.
        begun: Grows with each that begins to work.
        go_on: Set when they may end.
    """
    with ThreadPoolExecutor(len(ask)) as pool:
        try:
            asked = [pool.submit(one) for one in ask]
            while not len(begun):
                time.sleep(0.01)
            time.sleep(0.3)  # for the others to have come
            assert httpx.get(f"{url}/explore/list?rows=1", timeout=PATIENT_S).status_code == 200
            assert len(begun) == 1
        finally:
            go_on.set()
        return [one.result() for one in asked]


@contextmanager
def looking_at(
    started: Any, url: str, *, width: int = 1300, height: int = 800, **context: Any
) -> Iterator[Any]:
    """The explorer in a window of a browser; in the end nothing had failed, and nobody else had been asked.

    Args:
        started: From `browser`.
        url: Of a server; what stands behind ``#`` is the state of the page.
        width: Of the window.
        height: Of the window.
        context: Further options of Playwright's ``new_context``.
    """
    opened = started.new_context(viewport={"width": width, "height": height}, **context)
    opened.set_default_timeout(PATIENT_MS)
    page, problems = opened.new_page(), []
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: problems.append(str(e)))
    server = url.partition("#")[0]
    inside = (server, "data:", f"blob:{server}")
    page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(r.url))
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    yield page
    opened.close()
    assert problems == []


@contextmanager
def browser() -> Iterator[Any]:
    """A real Chromium, which asks for nothing but what a page does."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("no Chromium: apt-get install --no-install-recommends chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()
