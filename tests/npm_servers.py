"""Servers that npm brings (infra/test-packages.sh): Azure's emulator, and an S3 server that ignores conditions."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.conftest import PATIENT_S, S3Server, free_port, wait_for

PROGRAMS = Path(__file__).parents[1] / ".cache" / "npm" / "node_modules" / ".bin"

# The account of every emulator, as Microsoft documents it.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True, kw_only=True, slots=True)
class Azure:
    """Where an emulator of Azure Blob Storage is."""

    endpoint: str

    @property
    def storage_options(self) -> dict[str, object]:
        """For `reben_cloud`."""
        return {"azure_storage_endpoint": self.endpoint, "account_name": ACCOUNT, "account_key": KEY}

    @property
    def environment(self) -> dict[str, str]:
        """For a command."""
        return {
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        }

    def make_container(self, name: str) -> None:
        """By a request signed as "Authorize with Shared Key" of the REST API says; obstore makes no containers."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03", "Content-Length": "0"}
        signed = "".join(f"{h}:{headers[h]}\n" for h in ("x-ms-date", "x-ms-version"))
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        text = "PUT" + 12 * "\n" + signed + resource
        digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        request = urllib.request.Request(
            f"{self.endpoint}/{name}?restype=container", method="PUT", headers=headers
        )
        urllib.request.urlopen(request).close()


@contextmanager
def azure(folder: Path) -> Iterator[Azure]:
    """Azurite, with its data in `folder`."""
    port = free_port()
    options = ["--blobPort", str(port), "--blobHost", "127.0.0.1", "--location", str(folder)]
    with _server("azurite-blob", [*options, "--skipApiVersionCheck", "--disableTelemetry"], port):
        yield Azure(endpoint=f"http://127.0.0.1:{port}/{ACCOUNT}")


@contextmanager
def careless_s3(folder: Path, bucket: str) -> Iterator[S3Server]:
    """s3rver, which overwrites whatever it is told, with a bucket."""
    port = free_port()
    options = ["-d", str(folder), "-a", "127.0.0.1", "-p", str(port), "--configure-bucket", bucket]
    with _server("s3rver", options, port):
        yield S3Server(
            endpoint=f"http://127.0.0.1:{port}",
            key="S3RVER",
            secret="S3RVER",
            region="us-east-1",
            folder=None,
        )


@contextmanager
def _server(program: str, options: Sequence[str], port: int) -> Iterator[None]:
    # Not a failure with CI=true either: npm is not among what a machine must have.
    if shutil.which("node") is None or not (PROGRAMS / program).exists():
        pytest.skip(f"no {program}: run infra/test-packages.sh where there is npm")
    process = subprocess.Popen(
        [PROGRAMS / program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: _is_open(port) or process.poll() is not None)
        if process.poll() is not None:
            pytest.fail(f"{program} ended with {process.returncode}")
        yield
    finally:
        process.terminate()
        process.wait(PATIENT_S)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
