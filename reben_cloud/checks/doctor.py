"""What stands between this machine and a root: versions, disk, memory, credentials, endpoint, clock.

Each check is one finding with a way out. It changes nothing in the store, unless asked to try a
write, which leaves nothing behind. It knows nothing of what a root holds beyond its manifest.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from reben_cloud.errors import RebenError, StorageError
from reben_cloud.export import find_damage
from reben_cloud.export.opened import LmdbRoot, find_lmdb_root, is_export
from reben_cloud.files.paths import split_scheme
from reben_cloud.store import Store, open_store, public_url, s3_config

Level = Literal["ok", "note", "warning", "problem"]

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "geo": ("rasterio", "tifffile", "geopandas", "matplotlib"),
    "lmdb": ("lmdb",),
    "stac": ("stac-fastapi-api", "cql2"),
    "train": ("timm", "torchmetrics"),
    "dask": ("distributed",),
}
"""What each extra brings that its commands cannot do without."""

MAX_CLOCK_SKEW_S = 15 * 60
"""S3 refuses signatures that are further off than this (RequestTimeTooSkewed)."""

_FREE_BYTES = 5 * 2**30
_OPEN_FILES = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The outcome of one check."""

    level: Level
    """``note`` is worth knowing, ``warning`` will hurt somebody, ``problem`` keeps things from working."""
    subject: str
    """What was looked at, a word or two."""
    detail: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""


def diagnose(
    root: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    *,
    try_write: bool = False,
) -> Iterator[Finding]:
    """Look at this machine, and at the store of `root` when one is given.

    Args:
        root: Path or URL of a root, or of where one is to be, or the folder of an LMDB.
        storage_options: As in `open_store`.
        try_write: Also write, overwrite conditionally and delete one small object beside the root.

    Yields:
        Findings in the order in which one would ask.
    """
    yield from _versions()
    yield from _machine(Path(root) if root and split_scheme(root)[0] is None else Path.cwd())
    if root is None:
        return
    try:
        lmdb = find_lmdb_root(root)
    except RebenError as error:
        yield Finding(level="problem", subject="root", detail=str(error))
        return
    if lmdb is not None:
        yield from _lmdb(lmdb)
        return
    store = open_store(root, storage_options)
    if store.url.startswith("s3://"):
        yield _credentials(storage_options or {})
        reached = list(_endpoint(storage_options or {}))
        yield from reached
        if any(finding.level == "problem" for finding in reached):
            return
    yield from _reading(store)
    if try_write:
        yield from _writing(store)


def _versions() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding(level="ok", subject="Python", detail=f"{version} on {platform.platform(terse=True)}")
    names = ("reben-cloud", "zarr", "obstore", "s3fs", "pyarrow")
    yield Finding(
        level="ok", subject="packages", detail=", ".join(f"{n} {_version(n) or 'absent'}" for n in names)
    )
    if (s3fs := _version("s3fs")) and s3fs.startswith("0."):
        yield Finding(
            level="problem",
            subject="s3fs",
            detail=f"{s3fs} is of 2020: pip chose it to please a newer boto3",
            advice="pip install 's3fs>=2026.1'",
        )
    for extra, packages in EXTRAS.items():
        absent = [name for name in packages if _version(name) is None]
        if absent:
            yield Finding(
                level="note",
                subject=f"extra {extra}",
                detail=f"{', '.join(absent)} not installed",
                advice=f"pip install 'reben-cloud[{extra}]', if you need it",
            )
        elif extra == "train" and (why := _why_not("reben_cloud.training.models")):
            yield Finding(level="warning", subject=f"extra {extra}", detail=why)
        else:
            yield Finding(
                level="ok", subject=f"extra {extra}", detail=", ".join(f"{n} {_version(n)}" for n in packages)
            )


def _why_not(module: str) -> str:
    """Why a module cannot be imported, or nothing."""
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine(folder: Path) -> Iterator[Finding]:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(level="ok", subject="cores", detail=f"{num_cores} for this process")
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 2**30:,.1f} GiB free in {folder.absolute()}"
    if usage.free < _FREE_BYTES:
        yield Finding(
            level="warning",
            subject="disk",
            detail=free,
            advice="a root of the whole dataset takes about 300 GB; give caches and exports another disk",
        )
    else:
        yield Finding(level="ok", subject="disk", detail=free)
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        yield Finding(
            level="warning",
            subject="open files",
            detail=f"{soft} allowed",
            advice=f"ulimit -n {min(hard, 65536)}",
        )


def _credentials(storage_options: Mapping[str, Any]) -> Finding:
    config = s3_config(storage_options)
    if config.get("skip_signature"):
        return Finding(level="ok", subject="credentials", detail="none wanted: requests go unsigned")
    if "access_key_id" in config:
        return Finding(level="ok", subject="credentials", detail="given in storage_options")
    import boto3

    session = boto3.Session(profile_name=config.get("profile"))
    found = session.get_credentials()
    if found is None:
        return Finding(
            level="warning",
            subject="credentials",
            detail="none found",
            advice="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or AWS_NO_SIGN_REQUEST=yes "
            "for a public root",
        )
    return Finding(level="ok", subject="credentials", detail=f"found by {found.method}")


def _endpoint(storage_options: Mapping[str, Any]) -> Iterator[Finding]:
    config = s3_config(storage_options)
    endpoint = public_url(str(config.get("endpoint") or f"https://s3.{config['region']}.amazonaws.com"))
    host = urlsplit(endpoint).netloc
    if urlsplit(endpoint).scheme not in ("http", "https") or not host:
        yield Finding(
            level="problem",
            subject="endpoint",
            detail=f"{endpoint!r} is no http(s) URL",
            advice="write AWS_ENDPOINT_URL or --endpoint-url as http://host:port or https://host",
        )
        return
    start = time.perf_counter()
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=10) as answer:  # noqa: S310 - http(s), as checked
            headers = answer.headers
    except HTTPError as error:
        headers = error.headers  # a refusal is an answer too: its sender is there
    except (URLError, OSError) as error:
        yield Finding(
            level="problem",
            subject="endpoint",
            detail=f"{endpoint}: {getattr(error, 'reason', error)}",
            advice="check AWS_ENDPOINT_URL or --endpoint-url, the port, and proxy variables",
        )
        return
    yield Finding(
        level="ok",
        subject="endpoint",
        detail=f"{endpoint} answers in {(time.perf_counter() - start) * 1e3:.0f} ms",
    )
    if headers.get("Date"):
        skew_s = (datetime.now(UTC) - parsedate_to_datetime(headers["Date"])).total_seconds()
        if abs(skew_s) > MAX_CLOCK_SKEW_S / 3:
            yield Finding(
                level="problem" if abs(skew_s) > MAX_CLOCK_SKEW_S else "warning",
                subject="clock",
                detail=f"{skew_s:+.0f} s off the server's",
                advice="set the clock (NTP): signatures more than 15 minutes off are refused",
            )
        else:
            yield Finding(level="ok", subject="clock", detail=f"within {abs(skew_s):.0f} s of the server's")


def _reading(store: Store) -> Iterator[Finding]:
    try:
        manifest = store.get("manifest.json")
    except FileNotFoundError:
        yield Finding(
            level="note",
            subject="root",
            detail=f"{store.url} has no manifest.json: nothing is published there",
            advice="reben-cloud build SOURCE ROOT",
        )
        return
    except StorageError as error:
        yield Finding(level="problem", subject="root", detail=str(error))
        return
    yield Finding(level="ok", subject="root", detail=f"{store.url} is published")
    try:
        part = store.get_range("manifest.json", 2, 8)
    except StorageError as error:
        yield Finding(
            level="problem",
            subject="range reads",
            detail=str(error),
            advice="this server cannot serve a root: it must answer range requests with 206",
        )
        return
    if bytes(part) != bytes(manifest[2:10]):
        yield Finding(
            level="problem", subject="range reads", detail="the server sent other bytes than were asked for"
        )
    else:
        yield Finding(level="ok", subject="range reads", detail="work")


def _lmdb(root: LmdbRoot) -> Iterator[Finding]:
    damage = find_damage(Path(root.backing.path), root.manifest) if is_export(root.backing.path) else None
    try:
        from reben_cloud.formats import lmdb

        num_records = lmdb.num_records(root.backing.path)
    except RebenError as error:
        damage = damage or str(error)
    if damage:
        yield Finding(
            level="problem",
            subject="root",
            detail=f"{root.backing.path}: {damage}",
            advice="run the same reben-cloud export again, or copy the folder again",
        )
    else:
        yield Finding(
            level="ok", subject="root", detail=f"{root.backing.path} is an LMDB of {num_records:,} records"
        )


def _writing(store: Store) -> Iterator[Finding]:
    path = f".reben-doctor-{uuid.uuid4().hex}"
    try:
        store.put(path, b"first")
    except (StorageError, OSError) as error:
        yield Finding(level="problem", subject="write", detail=str(error))
        return
    try:
        store.put(path, b"second", create=True)
    except FileExistsError:
        yield Finding(level="ok", subject="write", detail="works, and create-only writes are honoured")
    else:
        yield Finding(
            level="warning",
            subject="write",
            detail="works, but the server ignores If-None-Match",
            advice="two builds that publish one root at once would not notice each other here: run one at a time",
        )
    try:
        store.delete(path)
    except StorageError:
        yield Finding(
            level="note",
            subject="delete",
            detail=f"refused, so {path} stays",
            advice="as it should be for a builder's key; somebody who may can delete that object",
        )
