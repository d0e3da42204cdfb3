"""URLs of stores as text: their one form, what is above and below them, and what kind of place they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from reben_cloud.files.paths import ALIASES, SCHEMES, local_path, split_scheme
from reben_cloud.store.s3 import s3_config
from reben_cloud.store.secrecy import mask, public_url


def normalise_url(url: str | os.PathLike[str]) -> str:
    """`url` without a trailing slash; a path becomes an absolute ``file://`` URL.

    Raises:
        ValueError: If it is empty, or the scheme is not one of `files.paths.SCHEMES`.
    """
    text = os.fspath(url)
    if not text.strip():
        raise ValueError("cannot open '': name a folder or a URL; the current folder is '.'")
    scheme, rest = split_scheme(text)
    if scheme in (None, "file"):
        return local_path(text).absolute().as_uri().rstrip("/")
    scheme = ALIASES.get(scheme, scheme)
    if scheme == "az" and "@" in rest.partition("/")[0]:
        raise ValueError(
            f"cannot open {text!r}: write az://CONTAINER/PREFIX, and name the account in account_name or "
            "AZURE_STORAGE_ACCOUNT_NAME"
        )
    if scheme not in SCHEMES:
        raise ValueError(
            f"cannot open {mask(text)!r}: the scheme must be {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, got {scheme!r}"
        )
    return f"{scheme}://{rest}".rstrip("/")


def is_http(url: str) -> bool:
    """Whether it is of a web server, whose query stays at the end of every URL below it."""
    return url.startswith(("http://", "https://"))


def is_web(url: str) -> bool:
    """Whether it is of a web server or the hub, which `WebClient` reads."""
    return is_http(url) or url.startswith("hf://")


def child(address: str, prefix: str) -> str:
    """The address of the folder `prefix` below another one."""
    name = prefix.strip("/")
    if is_http(address):  # the query may be what lets one in
        parts = urlsplit(address)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}").geturl()
    return f"{address}/{quote(name) if address.startswith('file://') else name}"


def parent(address: str) -> tuple[str, str]:
    """The address above another one, and the name of that one in it."""
    above, _, name = public_url(address).rpartition("/")
    if is_http(address):
        parts = urlsplit(address)
        above = parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]).geturl()
    is_quoted = address.startswith(("http://", "https://", "file://"))
    return above, unquote(name) if is_quoted else name


class WaysOut(NamedTuple):
    """What to do when a store does not do what is asked; each goes on after a semicolon."""

    unreachable: str
    """When nobody answers."""
    refused: str
    """When who asks may not."""
    no_bucket: str
    """When there is no such bucket."""


def ways_out(url: str) -> WaysOut:
    """What to do when a store does not do what is asked."""
    if is_http(url):
        return WaysOut(
            "check the URL, the network, and the proxy variables", _CREDENTIALS["https"], "check the URL"
        )
    scheme = url.partition("://")[0]
    return WaysOut(
        _ENDPOINTS.get(scheme, _ENDPOINTS["s3"]),
        _CREDENTIALS.get(scheme, _CREDENTIALS["s3"]),
        _BUCKETS.get(scheme, _BUCKETS["s3"]),
    )


_ENDPOINTS = {
    "s3": "check the endpoint (AWS_ENDPOINT_URL, --endpoint-url)",
    "gs": "check the network, the proxy variables, and GOOGLE_BASE_URL if it is set",
    "az": "check the account's name (AZURE_STORAGE_ACCOUNT_NAME), the network, and AZURE_STORAGE_ENDPOINT if it is set",
    "hf": "check the network, the proxy variables and HF_ENDPOINT",
}
_CREDENTIALS = {
    "s3": "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and what they may do",
    "gs": "check the credentials (GOOGLE_APPLICATION_CREDENTIALS) and what they may do",
    "az": "check the credentials (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY) "
    "and what they may do",
    "hf": "check the token (HF_TOKEN, `hf auth login`) and what it may do",
    "https": "check the user, the password and the query of the URL",
}
_BUCKETS = {
    "s3": "check its name, the endpoint and the region, or make it (`reben-cloud bucket create`)",
    "gs": "check its name, or make it (`gcloud storage buckets create`)",
    "az": "check the names of the account and the container, or make it (`az storage container create`)",
}


def s3_location(url: str, storage_options: Mapping[str, object]) -> dict[str, str] | None:
    """``bucket``, ``region`` and, unless it is AWS, ``endpoint`` of an S3 URL: nothing secret; None for others."""
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return None
    config = s3_config(storage_options)
    place = {"bucket": parts.netloc, "region": str(config["region"])}
    if config.get("endpoint"):
        server = urlsplit(str(config["endpoint"]))
        place["endpoint"] = f"{server.scheme}://{server.netloc.rpartition('@')[2]}"
    return place
