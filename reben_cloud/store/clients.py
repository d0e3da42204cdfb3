"""Clients of a process: obstore's for folders, buckets and memory, and what answers for the objects of each store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as obs_errors
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from reben_cloud.errors import ChangedError, ForkError, StorageError
from reben_cloud.store.answers import Span, Stat, dated_version, is_strong, put
from reben_cloud.store.budget import PROGRESS_BYTES, Budget
from reben_cloud.store.s3 import aws_credentials, s3_config
from reben_cloud.store.secrecy import scrub

if TYPE_CHECKING:
    from reben_cloud.store.hub import Hub
    from reben_cloud.store.web import WebClient

MAX_CONNECTIONS = 32
"""Requests that a store on the web has on their way, where its options do not say."""

_first_pid: int | None = None
"""The process that made the first client; a forked child inherits it and finds that it is another."""

_ENDPOINTS = ("google_base_url", "base_url", "azure_storage_endpoint", "azure_endpoint", "endpoint")
"""Options, and in capitals variables, that name another server of Google's or Azure's kind."""

_MEMORY: dict[str, MemoryStore] = {}
"""``memory://name`` roots of this process, as in fsspec: a second open sees the same objects."""


def check_process(url: str) -> None:
    """See that this process may use clients.

    Raises:
        ForkError: In a child that was forked after the parent used one.
    """
    global _first_pid  # the client's runtime belongs to the process, not to a store
    if _first_pid not in (None, os.getpid()):
        raise ForkError(
            f"{url}: this process was forked from one that used a store, and any client would hang here; "
            "start workers with multiprocessing_context='forkserver' or 'spawn', "
            "or use StreamLoader without workers (it has threads of its own)"
        )
    _first_pid = os.getpid()


def connect_obstore(
    url: str, storage_options: Mapping[str, object], budget: Budget, *, attempts: int = 1
) -> Any:
    """An obstore client.

    Args:
        url: Where its objects are.
        storage_options: As for `open_store`.
        budget: What a request may take.
        attempts: How often it makes one of its own accord: more than once only where it makes many for one call.

    Raises:
        FileNotFoundError: If a folder is not there.
        StorageError: If there are no credentials, or no such client.
    """
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _MEMORY.setdefault(url, MemoryStore())
    if parts.scheme == "file":
        folder = unquote(parts.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{url}: no such folder")
        return LocalStore(folder)
    if parts.scheme in ("http", "https"):
        return HTTPStore.from_url(url, **_client_options(budget, attempts, http=parts.scheme == "http"))
    if parts.scheme == "hf":
        raise StorageError("the hub is read only, and by Store alone")
    if parts.scheme in ("gs", "az"):
        return _connect_cloud(
            parts.scheme, parts.netloc, parts.path.strip("/"), storage_options, budget, attempts
        )
    config: Any = s3_config(storage_options)
    profile = config.pop("profile", None)
    provider = None
    signs = not config.get("skip_signature") and "access_key_id" not in config
    if signs and (profile or not os.environ.get("AWS_ACCESS_KEY_ID")):
        provider = aws_credentials(profile)
    endpoint = str(config.get("endpoint", ""))
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        credential_provider=provider,
        **_client_options(budget, attempts, http=endpoint.startswith("http://")),
    )


def _connect_cloud(
    scheme: str,
    bucket: str,
    prefix: str,
    storage_options: Mapping[str, object],
    budget: Budget,
    attempts: int,
) -> Any:
    """A client of Google Cloud Storage or Azure Blob Storage; what is not given comes from their own variables.

    Raises:
        ValueError: If neither obstore nor fsspec has such an option for that store.
    """
    config: Any = _cloud_config(scheme, storage_options)
    given = {name: str(config.get(name) or os.environ.get(name.upper(), "")) for name in _ENDPOINTS}
    http = any(value.startswith("http://") for value in given.values())
    make = GCSStore if scheme == "gs" else AzureStore
    try:
        return make(
            bucket, prefix=prefix or None, config=config, **_client_options(budget, attempts, http=http)
        )
    except obs_errors.UnknownConfigurationKeyError as error:
        raise ValueError(f"a storage option of {scheme}:// is not understood: {scrub(error)}") from error


def _cloud_config(scheme: str, storage_options: Mapping[str, object]) -> dict[str, Any]:
    """Options in obstore's words; of fsspec's, those that obstore calls otherwise are translated.

    Raises:
        ValueError: If the token of a Google account is not the name of a file or ``anon``.
    """
    # A command has one set of options for all its stores; the address of an S3 server is none of these.
    config = {name: value for name, value in storage_options.items() if name != "endpoint_url"}
    if (is_anonymous := config.pop("anon", None)) is not None:
        config["skip_signature"] = bool(is_anonymous)
    if scheme == "gs" and (token := config.pop("token", None)) is not None:
        if not isinstance(token, str) or token in ("browser", "cache", "cloud"):
            raise ValueError("token must be 'anon', 'google_default' or the path of a file with credentials")
        known = {"anon": {"skip_signature": True}, "google_default": {}}
        config |= known.get(token, {"application_credentials": token})
    return config


def connect_web(
    url: str, storage_options: Mapping[str, object], budget: Budget
) -> tuple[WebClient, Hub | None]:
    """What answers for the objects below an http(s) or hf URL, and the hub behind it if there is one.

    Args:
        url: The URL, with user, password and query.
        storage_options: ``max_connections``; for a hub also those of `hub.Hub`.
        budget: What a request may take.

    Raises:
        ValueError: If an option is not understood.
        MissingExtraError: If the hub's library is not installed.
    """
    # http.client and ssl are an eighth of the time that `import reben_cloud` takes.
    from reben_cloud.store.connections import Connections
    from reben_cloud.store.web import WebClient, locations_below

    limit = max_connections(storage_options)
    if url.startswith("hf://"):
        from reben_cloud.store.hub import Hub

        hub = Hub(url, storage_options, timeout_s=budget.silence_s)
        return WebClient(Connections(limit, budget), hub.locate), hub
    return WebClient(Connections(limit, budget), locations_below(url)), None


def max_connections(storage_options: Mapping[str, object]) -> int:
    """Most requests that a store on the web has on their way.

    Raises:
        ValueError: If it is not a number from 1.
    """
    limit = storage_options.get("max_connections", MAX_CONNECTIONS)
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"max_connections must be a whole number from 1, got {limit!r}")
    return limit


def _client_options(budget: Budget, attempts: int, *, http: bool) -> dict[str, Any]:
    """Settings of an obstore client, which tries nothing again of its own accord but where it is told to."""
    client = {
        "connect_timeout": timedelta(seconds=min(5.0, budget.silence_s)),
        "read_timeout": timedelta(seconds=budget.silence_s),
        "timeout": timedelta(seconds=budget.request_s),
        "allow_http": http,
    }
    retries = {"max_retries": attempts - 1, "retry_timeout": timedelta(seconds=budget.seconds)}
    return {"client_options": client, "retry_config": retries}


class ObstoreClient:
    """Objects through obstore; see `answers.Client`.

    Args:
        client: An obstore client.
        root: The folder, where the objects are files.
    """

    def __init__(self, client: Any, root: Path | None) -> None:
        self._client, self._root = client, root

    def get(self, path: str, span: Span, *, version: str | None) -> ObstoreAnswer:
        """Ask for bytes of an object; see `answers.Client`."""
        options: Any = {}
        if isinstance(span, int) and isinstance(self._client, AzureStore):  # which has no ranges from the end
            there = self.stat(path)
            span = (max(0, there.size - span), there.size) if there.size else None
            version = version or there.version
        if span is not None:
            options["range"] = {"suffix": span} if isinstance(span, int) else span
        if self._root is None and is_strong(version):
            options["if_match"] = version
        result = obstore.get(self._client, path, options=options)
        answer = ObstoreAnswer(result, self._root and self._root / path, version)
        answer.check()
        return answer

    def read(self, path: str, span: Span, *, version: str | None) -> memoryview:
        """The same bytes all at once, read-only."""
        return self.get(path, span, version=version).whole().toreadonly()

    def stat(self, path: str) -> Stat:
        """Size and version of an object; see `answers.Client`."""
        meta = obstore.head(self._client, path)
        return Stat(int(meta["size"]), _version(meta, self._root and self._root / path))


class ObstoreAnswer:
    """Bytes of an object through obstore; see `answers.Answer`."""

    def __init__(self, result: Any, file: Path | None, version: str | None) -> None:
        self._result, self._file, self._wanted = result, file, version
        self.first, self.stop = result.range

    @property
    def version(self) -> str:
        """The version of the object; of a file, as it is now."""
        return _version(self._result.meta, self._file)

    def check(self) -> None:
        """See that it is the version that was asked for.

        Raises:
            ChangedError: If it is not.
        """
        if self._wanted is not None and self.version != self._wanted:
            raise ChangedError(f"it was version {self._wanted} and is {self.version} now")

    def fill(self, buffer: memoryview) -> Iterator[int]:
        """Put the bytes into memory as they come; see `answers.Answer`."""
        done = 0
        for chunk in self._result.stream(min_chunk_size=PROGRESS_BYTES):
            done = put(memoryview(chunk), buffer, done)
            yield len(chunk)
        self.check()

    def whole(self) -> memoryview:
        """The bytes at once."""
        data = memoryview(self._result.bytes())
        self.check()  # of a file only now: it may have been written to while it was read
        return data

    def close(self) -> None:
        """Nothing is held."""


def file_version(file: str | os.PathLike[str]) -> str:
    """Size and time of a file; another text when it was written again.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    status = os.stat(file)
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    changed = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{status.st_size:,} bytes of {changed}.{nanoseconds:09d}"


def _version(meta: Any, file: Path | None) -> str:
    if file is not None:
        return file_version(file)
    return meta["e_tag"] or dated_version(int(meta["size"]), meta["last_modified"].isoformat())
