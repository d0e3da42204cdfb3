"""The server of a dataset, and a browser that looks at it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from reben_cloud.root.dataset import Dataset
from reben_cloud.serve import create_app
from reben_cloud.serve.running import ImpatientProtocol
from tests.conftest import missing


@contextmanager
def serving(dataset: Dataset, **options: Any) -> Iterator[str]:
    """The URL of a server in a thread of this process, on a free port of the loopback address.

    Args:
        dataset: What it serves.
        options: Of `create_app`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(dataset, **options), port=port, log_level="warning", http=ImpatientProtocol)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


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
