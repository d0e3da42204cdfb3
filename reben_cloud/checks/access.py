"""The way to a store: credentials, endpoint, clock, range reads, and a trial write that leaves nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from reben_cloud.checks.finding import Finding
from reben_cloud.errors import RebenError, StorageError
from reben_cloud.root import layout
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.root.manifest import InvalidManifestError
from reben_cloud.store import Store, public_url, s3_config

MAX_CLOCK_SKEW_S = 15 * 60
"""S3 refuses signatures that are further off than this (RequestTimeTooSkewed)."""


def look_at_credentials(storage_options: Mapping[str, object]) -> Finding:
    """Whether requests can be signed, or need not be."""
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


def look_at_endpoint(storage_options: Mapping[str, object]) -> Iterator[Finding]:
    """Whether the server answers, and whether its clock agrees with this machine's."""
    config = s3_config(storage_options)
    endpoint = public_url(str(config.get("endpoint") or f"https://s3.{config['region']}.amazonaws.com"))
    host = urlsplit(endpoint).netloc
    if urlsplit(endpoint).scheme not in ("http", "https") or not host:
        yield Finding(
            level="problem",
            subject="endpoint",
            detail=f"{endpoint!r} is not an http(s) URL",
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


def try_reading(store: Store) -> Iterator[Finding]:
    """Whether a root or a layer is published in the store, and whether it serves ranges of objects."""
    name, what = layout.MANIFEST, "root"
    try:
        if not store.exists(name) and store.exists(layout.LAYER_MANIFEST):
            name, what = layout.LAYER_MANIFEST, "layer"
        manifest = store.get(name)
    except FileNotFoundError:
        yield Finding(
            level="note",
            subject="root",
            detail=f"{store.url} has no {layout.MANIFEST}: nothing is published there",
            advice="reben-cloud build SOURCE ROOT",
        )
        return
    except StorageError as error:
        yield Finding(level="problem", subject=what, detail=str(error))
        return
    if what == "layer":
        try:
            said = LayerManifest.from_bytes(manifest, where=store.url)
        except (InvalidManifestError, RebenError) as error:
            yield Finding(level="problem", subject=what, detail=f"{store.url}/{name} is damaged: {error}")
            return
        detail = f"{store.url} is published: the layer {said.name}, made for the root {said.fingerprint}"
    else:
        detail = f"{store.url} is published"
    yield Finding(level="ok", subject=what, detail=detail)
    try:
        part = store.get_range(name, 2, 8)
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


def try_writing(store: Store) -> Iterator[Finding]:
    """Write, overwrite conditionally and delete one small object."""
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
