"""The only module that talks to object storage: one `Store` for folders, S3 and memory.

It owns URLs, credentials, endpoints, retries of single requests and the translation of errors.
It knows nothing of datasets, caches or checksums. All calls are synchronous and release the GIL:
use threads to overlap them (obstore's async interface can abort at interpreter exit).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as obs_errors
from obstore.store import HTTPStore, LocalStore, MemoryStore, S3Store

from reben_cloud.errors import ForkError, StorageError
from reben_cloud.paths import SCHEMES, local_path, split_scheme

# 0.1 + 0.2 + ... + 3.2 s of backoff: a throttling store recovers within it, and a wrong endpoint
# is reported after six seconds instead of obstore's default of minutes.
_RETRY: Any = {
    "max_retries": 6,
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
    "retry_timeout": timedelta(seconds=60),
}

# A stalled body is noticed by `read_timeout`; the total must allow 80 MB over a slow line.
_CLIENT: Mapping[str, object] = {
    "connect_timeout": "5s",
    "read_timeout": "20s",
    "timeout": "600s",
}

_first_pid: int | None = None
"""The process that made the first client; a forked child inherits it and finds that it is another."""

_CHUNK_BYTES = 2**18
"""Least bytes that `Store.get_into` copies at a time."""

_MEMORY: dict[str, MemoryStore] = {}
"""``memory://name`` roots of this process, as in fsspec: a second open sees the same objects."""


def open_store(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """A store for everything below `url`; nothing is contacted yet.

    Args:
        url: A path, or a ``file://``, ``s3://bucket/prefix``, ``http(s)://`` (read-only) or
            ``memory://name`` URL.
        storage_options: For S3, in the words of fsspec (``key``, ``secret``, ``token``, ``anon``,
            ``profile``, ``endpoint_url``, ``client_kwargs``) or of obstore (``access_key_id``,
            ``secret_access_key``, ``region``, ``endpoint``, ``skip_signature``, ...). What is not
            given comes from the usual ``AWS_*`` variables or profile.

    Raises:
        ValueError: If the scheme is unknown or an option is not understood.
    """
    return Store(normalise_url(url), dict(storage_options or {}))


def normalise_url(url: str | os.PathLike[str]) -> str:
    """`url` without a trailing slash; a path becomes an absolute ``file://`` URL.

    Raises:
        ValueError: If it is empty, or the scheme is not file, s3, http, https or memory.
    """
    text = os.fspath(url)
    if not text.strip():
        raise ValueError("cannot open '': name a folder or a URL; the current folder is '.'")
    scheme, rest = split_scheme(text)
    if scheme in (None, "file"):
        return local_path(text).absolute().as_uri().rstrip("/")
    if scheme not in SCHEMES:
        raise ValueError(
            f"cannot open {text!r}: the scheme must be {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, got {scheme!r}"
        )
    return f"{scheme}://{rest}".rstrip("/")


class Store:
    """Objects below one URL. Paths are relative, with ``/``; made by `open_store`.

    Safe to use from many threads, and picklable: the client is made on first use in each process.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self.url = url
        """Where the store lies, without a trailing slash."""
        self.storage_options = dict(storage_options)
        """The options it was opened with; may hold secrets, so never printed."""
        self._client: Any = None

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "storage_options": self.storage_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["storage_options"])  # type: ignore[misc]

    # -- reading ---------------------------------------------------------------------------------

    def get(self, path: str) -> memoryview:
        """The whole object, read-only.

        Raises:
            FileNotFoundError: If there is no such object.
            StorageError: If the store refuses, or fails after the retries.
        """
        try:
            return memoryview(obstore.get(self.client, path).bytes())
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "read") from error

    def get_into(self, path: str, buffer: memoryview) -> int:
        """Fill a buffer with the object that should fit it: no memory of its own, so faster than `get`.

        Args:
            path: The object.
            buffer: Bytes that may be written.

        Returns:
            Size of the object as it came, bytes; when it is not that of the buffer, what is in the buffer
            is of no use. Raises as `get`.
        """
        try:
            result = obstore.get(self.client, path)
            size = result.meta["size"]
            if size != buffer.nbytes:
                return size
            start = 0
            for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                stop = start + len(chunk)
                buffer[start:stop] = memoryview(chunk)
                start = stop
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "read") from error
        return start

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        """`length` bytes from byte `start`. Raises as `get`."""
        try:
            return memoryview(obstore.get_range(self.client, path, start=start, length=length))
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "read") from error

    def get_ranges(self, path: str, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Several ranges of one object, one request each, concurrently. Raises as `get`."""
        try:
            buffers = obstore.get_ranges(self.client, path, starts=starts, lengths=lengths, coalesce=0)
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "read") from error
        return [memoryview(buffer) for buffer in buffers]

    def head(self, path: str) -> int:
        """Size of the object in bytes. Raises as `get`."""
        try:
            return obstore.head(self.client, path)["size"]
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "read") from error

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        try:
            self.head(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, bytes) of every object below the folder `prefix`, unsorted; none is no error."""
        if self.is_local and not os.path.isdir(self.local_path() or ""):
            return
        try:
            for page in obstore.list(self.client, prefix or None):
                for meta in page:
                    yield meta["path"], meta["size"]
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, prefix, "list") from error

    # -- writing ---------------------------------------------------------------------------------

    def put(self, path: str, data: bytes | memoryview, *, create: bool = False) -> None:
        """Write an object as a whole, atomically.

        Args:
            path: Where to.
            data: Its bytes.
            create: Refuse to overwrite (``If-None-Match: *`` on S3). One single request, because
                some servers ignore the condition on multipart uploads.

        Raises:
            FileExistsError: If `create` and the object exists.
            StorageError: If the store refuses, or fails after the retries.
        """
        mode: Any = "create" if create else "overwrite"
        try:
            if (folder := self.local_path()) is not None:
                _make_folder(folder)
            obstore.put(self.client, path, data, mode=mode, use_multipart=False)
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "write") from error

    def delete(self, path: str) -> None:
        """Delete an object; on S3 also quiet when there is none."""
        try:
            obstore.delete(self.client, path)
        except (obs_errors.BaseError, OSError) as error:
            raise self._translate(error, path, "delete") from error

    # -- beside ----------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether objects are plain files, so that `local_path` is not None."""
        return self.url.startswith("file://")

    def local_path(self, path: str = "") -> Path | None:
        """The file behind an object, or None when the store is not a local folder."""
        if not self.is_local:
            return None
        root = Path(unquote(urlsplit(self.url).path))
        return root / path if path else root

    @property
    def s3_location(self) -> dict[str, str] | None:
        """``bucket``, ``region`` and, unless it is AWS, ``endpoint`` of an S3 store: nothing secret; else None."""
        parts = urlsplit(self.url)
        if parts.scheme != "s3":
            return None
        config = s3_config(self.storage_options)
        place = {"bucket": parts.netloc, "region": str(config["region"])}
        if config.get("endpoint"):
            server = urlsplit(str(config["endpoint"]))
            place["endpoint"] = f"{server.scheme}://{server.netloc.rpartition('@')[2]}"
        return place

    def child(self, prefix: str) -> Store:
        """The store of everything below the folder `prefix`."""
        return Store(f"{self.url}/{prefix.strip('/')}", self.storage_options)

    @property
    def client(self) -> Any:
        """The obstore client of this process, for libraries that take one (zarr's ObjectStore).

        Raises:
            ForkError: In a child that was forked after the parent used the client.
        """
        global _first_pid  # the client's runtime belongs to the process, not to a store
        if _first_pid not in (None, os.getpid()):
            raise ForkError(
                f"{self.url}: this process was forked from one that used a store, and any client would hang here; "
                "start workers with multiprocessing_context='forkserver' or 'spawn', "
                "or use StreamLoader without workers (it has threads of its own)"
            )
        if self._client is None:
            self._client = _connect(self.url, self.storage_options)
            _first_pid = os.getpid()
        return self._client

    def _translate(self, error: Exception, path: str, verb: str) -> OSError:
        name = f"{self.url}/{path}" if path else self.url
        if isinstance(error, obs_errors.NotFoundError | FileNotFoundError):
            return FileNotFoundError(f"{name}: no such object")
        if isinstance(error, obs_errors.AlreadyExistsError | FileExistsError):
            return FileExistsError(f"{name} exists already")
        # obstore sorts a 403 under several types; its text has the server's own code.
        text = str(error)
        cause = _first_line(text)
        refused = isinstance(
            error,
            obs_errors.PermissionDeniedError | obs_errors.UnauthenticatedError | PermissionError,
        )
        if refused or any(
            code in text for code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
        ):
            return StorageError(
                f"cannot {verb} {name}: permission denied ({cause}); check the credentials "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and what they may do"
            )
        if "error sending request" in text or "connect" in text.lower():
            return StorageError(
                f"cannot {verb} {name}: no connection to the store ({cause}); "
                "check the endpoint (AWS_ENDPOINT_URL, --endpoint-url)"
            )
        return StorageError(f"cannot {verb} {name}: {cause}")


def _make_folder(folder: Path) -> None:
    """Made by the first write, not by opening: a typo in a read must leave no folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error


def _first_line(text: str) -> str:
    """One line of an obstore error, which ends with a debug dump of many lines."""
    line = text.split("\n\nDebug source:", 1)[0].splitlines()
    return line[0].strip() if line else "unknown error"


def _connect(url: str, storage_options: Mapping[str, Any]) -> Any:
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _MEMORY.setdefault(url, MemoryStore())
    if parts.scheme == "file":
        folder = unquote(parts.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{url}: no such folder")
        return LocalStore(folder)
    if parts.scheme in ("http", "https"):
        options: Any = dict(_CLIENT, allow_http=parts.scheme == "http")
        return HTTPStore.from_url(url, client_options=options, retry_config=_RETRY)
    config: Any = s3_config(storage_options)
    profile = config.pop("profile", None)
    provider = None
    signs = not config.get("skip_signature") and "access_key_id" not in config
    if signs and (profile or not os.environ.get("AWS_ACCESS_KEY_ID")):
        provider = _aws_credentials(profile)
    endpoint = str(config.get("endpoint", ""))
    client_options: Any = dict(_CLIENT, allow_http=endpoint.startswith("http://"))
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        client_options=client_options,
        retry_config=_RETRY,
        credential_provider=provider,
    )


_FSSPEC_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
    "endpoint_url": "endpoint",
    "region_name": "region",
    "requester_pays": "request_payer",
}

_OPTIONS = frozenset(_FSSPEC_NAMES.values()) | {
    "profile",
    "virtual_hosted_style_request",
    "unsigned_payload",
}


def s3_config(storage_options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Obstore's S3 settings from `storage_options` and the environment.

    Args:
        storage_options: Options in fsspec's or obstore's words, as in `open_store`.
        environ: The environment; the process's by default.

    Raises:
        ValueError: If an option is unknown.
    """
    env = os.environ if environ is None else environ
    given = dict(storage_options)
    given.update(given.pop("client_kwargs", None) or {})
    config: dict[str, Any] = {}
    for name, value in given.items():
        known = _FSSPEC_NAMES.get(name, name.removeprefix("aws_"))
        if known not in _OPTIONS:
            raise ValueError(
                f"unknown storage option {name!r}; "
                f"known are {', '.join(sorted(_OPTIONS | _FSSPEC_NAMES.keys()))}"
            )
        if value is not None:
            config[known] = value
    endpoint = config.get("endpoint") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
        # A server of one's own rarely has a DNS name a bucket: path style is what all of them take.
        config.setdefault("virtual_hosted_style_request", False)
        config["endpoint"] = endpoint
    if "region" not in config:
        config["region"] = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
    if env.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true"):  # GDAL's name for it
        config.setdefault("skip_signature", True)
    if not env.get("AWS_ACCESS_KEY_ID") and env.get("AWS_PROFILE"):
        config.setdefault("profile", env["AWS_PROFILE"])
    return config


def _aws_credentials(profile: str | None) -> Any:
    """Credentials of ``~/.aws`` or of the machine's role, found and refreshed by boto3.

    boto3 gives up on a machine without a role after seconds, obstore after a minute.

    Raises:
        StorageError: If there are none.
    """
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session(profile_name=profile)
        found = session.get_credentials()
    except BotoCoreError as error:
        raise StorageError(f"no S3 credentials: {error}") from error
    if found is None:
        raise StorageError(
            "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile "
            "in ~/.aws; AWS_NO_SIGN_REQUEST=1 reads a public bucket without any"
        )
    return Boto3CredentialProvider(session)
