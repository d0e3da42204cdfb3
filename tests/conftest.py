"""What every test may ask for: the shared real data, a real S3 server, a bucket of its own, faults.

The server is, in this order: the one that ``REBEN_TEST_S3_ENDPOINT`` (with ``_KEY``, ``_SECRET``,
``_REGION``) names; Ceph's gateway, started here when ``radosgw`` is on PATH; otherwise the tests that
need one are skipped with a reason, and fail where ``CI=true``.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import pytest

from tests.faultproxy import FaultProxy

REPOSITORY = Path(__file__).resolve().parent.parent
CEPH_SCRIPT = REPOSITORY / "infra" / "s3" / "ceph-rgw.sh"

# A background job of a shell starts with Ctrl-C ignored, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Processes share the cores: PyTorch's threads that wait must not spin, which doubles the time of what they compute.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# timm, in this process and in those that tests start: see tests/support/sitecustomize.py.
SUPPORT = REPOSITORY / "tests" / "support"
runpy.run_path(str(SUPPORT / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")]))

# Two shared cores: a slow example says nothing about the code.
hypothesis.settings.register_profile(
    "reben", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("reben")


PATIENT_S = 300.0
"""Seconds that a test waits for what usually comes within one: a machine may be slow, and no clock decides a test."""


def missing(what: str) -> NoReturn:
    """Skip for lack of `what`, loudly; fail where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


# `make quick` installs neither; both are imported at the top of the files that are about them.
LEFT_OUT = [name for name in ("torch", "nbclient") if find_spec(name) is None]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the files that are about a large package which is not here; with CI=true they fail."""
    if not LEFT_OUT or collection_path.suffix != ".py" or os.environ.get("CI") == "true":
        return None
    pattern = rf"^(import|from) ({'|'.join(LEFT_OUT)})\b"
    return True if re.search(pattern, collection_path.read_text(), re.MULTILINE) else None


SLOW_TEST, TEST = 8.0, 0.1
"""Seconds that a test takes which is marked slow, and one which is not: enough to tell long files from short ones."""


@pytest.hookimpl(wrapper=True, tryfirst=True)  # begins before -m chooses, ends after
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, object, object]:
    """Mark whatever asks for the server, so that `make quick` starts none; put long files first.

    Processes that are given one file after the other end together if the last ones are short.
    """
    for item in items:
        if "s3_server" in getattr(item, "fixturenames", ()):
            item.add_marker("s3")
    result = yield
    if "PYTEST_XDIST_WORKER" in os.environ:
        seconds: Counter[Path] = Counter()
        for item in items:
            seconds[item.path] += SLOW_TEST if item.get_closest_marker("slow") else TEST
        items.sort(key=lambda item: (-seconds[item.path], item.path))
    return result


def pytest_report_header() -> str | None:
    return f"not installed, so files about them are left out: {', '.join(LEFT_OUT)}" if LEFT_OUT else None


@pytest.fixture(autouse=True, scope="session")
def _no_credentials_from_outside() -> Iterator[None]:
    """A test never reaches a store through the variables or files of whoever runs it."""
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared real data (``data/``), facts and schemas beside the repository."""
    path = Path(os.environ.get("REBEN_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "data").is_dir():
        missing(f"no shared data in {path}: set REBEN_SHARED")
    return path


@pytest.fixture(scope="session")
def official_files(shared: Path) -> list[Path]:
    """The two official metadata files, of all 549,488 patches."""
    folder = shared / "data" / "bigearthnet_pipeline"
    names = ("metadata", "metadata_for_patches_with_snow_cloud_or_shadow")
    return [folder / f"{name}.parquet" for name in names]


@pytest.fixture(scope="session")
def official_catalog(official_files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the official metadata alone give: the table and the catalog of all patches. Only to be read."""
    from reben_cloud.bigearthnet.official import describe, read_official
    from reben_cloud.bigearthnet.reben import REBEN
    from reben_cloud.build.publish import publish_metadata
    from reben_cloud.store import open_store

    folder = tmp_path_factory.mktemp("official")
    official = read_official(official_files)
    publish_metadata(describe(official), REBEN, open_store(folder), given=official.column_names)
    return folder


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command as a shell does, but in this process: (exit code, stdout, stderr)."""
    from reben_cloud import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reben-cloud", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Server:
    """Where a server is and who we are to it."""

    endpoint: str
    key: str
    secret: str = field(repr=False)
    region: str
    folder: Path | None
    """Of the Ceph store that these fixtures started; None when the server is somebody else's."""

    @property
    def storage_options(self) -> dict[str, Any]:
        """For `reben_cloud`, fsspec and s3fs."""
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": self.region},
        }

    @property
    def environment(self) -> dict[str, str]:
        """For a subprocess: the ``AWS_*`` variables."""
        return {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self) -> Any:
        """A new boto3 client."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name=self.region,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def add_user(self, name: str, key: str, secret: str) -> S3Server:
        """A second account of the server started here; its answer is the server as that user."""
        if self.folder is None:
            missing("a second user can only be made on the S3 server that the tests start themselves")
        subprocess.run([CEPH_SCRIPT, "user", self.folder, name, key, secret], check=True)
        return replace(self, key=key, secret=secret)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A bucket of one test, or of those of one file."""

    name: str
    server: S3Server

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def storage_options(self) -> dict[str, Any]:
        return self.server.storage_options

    @property
    def environment(self) -> dict[str, str]:
        return self.server.environment

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def key(self) -> str:
        return self.server.key

    @property
    def secret(self) -> str:
        return self.server.secret

    @property
    def region(self) -> str:
        return self.server.region

    def through(self, endpoint: str) -> Bucket:
        """The same bucket behind another endpoint, such as a fault proxy's."""
        return replace(self, server=replace(self.server, endpoint=endpoint))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server, for the whole session."""
    endpoint = os.environ.get("REBEN_TEST_S3_ENDPOINT")
    if endpoint:
        yield S3Server(
            endpoint=endpoint,
            key=os.environ["REBEN_TEST_S3_KEY"],
            secret=os.environ["REBEN_TEST_S3_SECRET"],
            region=os.environ.get("REBEN_TEST_S3_REGION", "us-east-1"),
            folder=None,
        )
        return
    if shutil.which("radosgw") is None:
        missing(
            "no S3 server: set REBEN_TEST_S3_ENDPOINT, _KEY and _SECRET, or "
            "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw curl"
        )
    with ceph() as server:
        yield server


@contextmanager
def ceph() -> Iterator[S3Server]:
    """Ceph's gateway, in a folder of its own."""
    # Not pytest's own folder: its long path would not fit a Unix socket's 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="reben-s3-"))
    try:
        yield _start_ceph(folder)
    finally:
        subprocess.run([CEPH_SCRIPT, "kill", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _start_ceph(folder: Path) -> S3Server:
    """Start it on a free port; it dies with this process."""
    port = free_port(num_in_a_row=3)
    environment = {**os.environ, "STORE": "memstore", "OWNER": str(os.getpid())}
    subprocess.run([CEPH_SCRIPT, "start", folder, str(port)], check=True, env=environment, timeout=PATIENT_S)
    return S3Server(
        endpoint=f"http://127.0.0.1:{port}",
        key="testkey",
        secret="testsecret0123456789",
        region="us-east-1",
        folder=folder,
    )


_reserved: list[socket.socket] = []


def free_port(*, num_in_a_row: int = 1) -> int:
    """A port of 127.0.0.1 that nobody listens on, nor on the next ones, below the ephemeral range.

    It is given once: until this process ends it holds the port bound, but does not listen on it. Who asks for a port as
    here is refused it; a server, which sets SO_REUSEADDR as servers do, is not.
    """
    first = 20_000 + (os.getpid() * 7) % 10_000
    for port in range(first, first + 2_000, num_in_a_row):
        holding = []
        try:
            for offset in range(num_in_a_row):
                holding.append(socket.socket())
                holding[-1].bind(("127.0.0.1", port + offset))
        except OSError:
            for one in holding:
                one.close()
            continue
        for one in holding:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved.extend(holding)
        return port
    raise RuntimeError(f"no free port between {first} and {first + 2_000}")


@pytest.fixture(scope="session")
def _s3_client(s3_server: S3Server) -> Any:
    return s3_server.client()


@pytest.fixture
def s3_bucket(s3_server: S3Server, _s3_client: Any) -> Iterator[Bucket]:
    """An empty bucket, deleted with all that is in it when the test ends."""
    yield from _bucket(s3_server, _s3_client)


@pytest.fixture(scope="module")
def s3_module_bucket(s3_server: S3Server, _s3_client: Any) -> Iterator[Bucket]:
    """A bucket for what the tests of a file only read, deleted with all that is in it after the last of them."""
    yield from _bucket(s3_server, _s3_client)


def _bucket(s3_server: S3Server, client: Any) -> Iterator[Bucket]:
    name = f"reben-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name)
    yield Bucket(name=name, server=s3_server)
    empty_bucket(client, name)
    client.delete_bucket(Bucket=name)


def empty_bucket(client: Any, name: str) -> None:
    """Delete every object version and unfinished upload of a bucket."""
    for page in client.get_paginator("list_object_versions").paginate(Bucket=name):
        found = page.get("Versions", []) + page.get("DeleteMarkers", [])
        if found:
            objects = [{"Key": o["Key"], "VersionId": o["VersionId"]} for o in found]
            client.delete_objects(Bucket=name, Delete={"Objects": objects, "Quiet": True})
    for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.fixture
def fault_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before the S3 server; give it rules, and use ``bucket.through(proxy.endpoint)``."""
    with FaultProxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def slow_gateway(s3_server: S3Server) -> S3Server:
    """The same data behind a gateway that really answers 503 SlowDown to a third request at once."""
    if s3_server.folder is None:
        missing("a throttling gateway can only be had on the S3 server that the tests start themselves")
    port = free_port()
    subprocess.run([CEPH_SCRIPT, "slow", s3_server.folder, str(port)], check=True, timeout=PATIENT_S)
    return replace(s3_server, endpoint=f"http://127.0.0.1:{port}")


def wait_for(condition: Any, *, timeout_s: float = PATIENT_S) -> None:
    """Wait until `condition()` is true.

    Raises:
        TimeoutError: If it is not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {condition}")
        time.sleep(0.02)


def processes_of(group: int) -> list[str]:
    """Processes of a group that still run: those that a killed one leaves go on for a while."""
    command = ["ps", "-eo", "pgid=,stat=,pid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [(line.split()[:2], line) for line in lines]
    return [line for (its, state), line in found if its == str(group) and not state.startswith("Z")]
