"""The server of a dataset, and a browser that looks at it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from reben_cloud.root.dataset import Dataset
from reben_cloud.serve import create_app
from tests.conftest import missing


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving_apart(dataset: Dataset) -> Iterator[str]:
    """The URL of a server in a process of its own: GDAL keeps the interpreter to itself while it reads."""
    port = free_port()
    command = [sys.executable, "-m", "reben_cloud.cli", "serve", dataset.url, "--port", str(port)]
    command += [f"--layer={layer.url}" for layer in dataset.layers.values()]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, "the server ended"
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def serving(dataset: Dataset) -> Iterator[str]:
    """The URL of a server in a thread of this process, on a free port of the loopback address."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(dataset), port=port, log_level="warning"))
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
