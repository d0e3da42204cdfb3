"""The only module that talks to object storage: one `Store` for folders, S3 and memory.

It owns URLs, credentials, endpoints, the budget of a request and the translation of errors.
It knows nothing of datasets, caches or checksums. All calls are synchronous and release the GIL:
use threads to overlap them (obstore's async interface can abort at interpreter exit).
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import obstore
from obstore import exceptions as obs_errors
from obstore.store import HTTPStore, LocalStore, MemoryStore, S3Store

from reben_cloud.errors import ForkError, StorageError, UnreachableError
from reben_cloud.files.paths import SCHEMES, local_path, split_scheme

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What one read or write may cost before it is given up: attempts and seconds without progress.

    Both count from the last progress, which is `_CHUNK_BYTES` of an answer: a slow download goes on for as
    long as it takes, and one below about 10 kB/s counts as stalled. With the defaults nothing takes
    longer than 90 s without progress.
    """

    attempts: int = 7
    """Most attempts. The pauses between them, 0.1 + 0.2 + ... + 3.2 s, see a throttling store through."""
    seconds: float = 60.0
    """No attempt starts later than this."""
    silence_s: float = 20.0
    """An attempt fails when nothing comes for so long."""
    request_s: float = 25.0
    """An attempt to read ends after so long; the next goes on where it stopped."""


BUDGET = Budget()
"""That of every store which is not given another."""

_first_pid: int | None = None
"""The process that made the first client; a forked child inherits it and finds that it is another."""

_CHUNK_BYTES = 2**18
"""What is copied at a time from an answer, and counts as progress."""

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
            f"cannot open {mask(text)!r}: the scheme must be {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}, got {scheme!r}"
        )
    return f"{scheme}://{rest}".rstrip("/")


class Store:
    """Objects below one URL. Paths are relative, with ``/``; made by `open_store`.

    Safe to use from many threads, and picklable: the client is made on first use in each process.
    Every call has one `Budget`; nothing above it needs to try again because a store failed.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any], *, budget: Budget | None = None) -> None:
        self._address = url
        self.url = public_url(url)
        """Where the store is, without a trailing slash, credentials or query."""
        self.storage_options = dict(storage_options)
        """The options it was opened with; may hold secrets, so never printed."""
        self.budget = budget or BUDGET
        """What a call may cost."""
        self._client: Any = None

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"url": self._address, "storage_options": self.storage_options, "budget": self.budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"], state["storage_options"])  # type: ignore[misc]
        self.budget = state["budget"]

    # -- reading ---------------------------------------------------------------------------------

    def get(self, path: str) -> memoryview:
        """The whole object, read-only.

        Raises:
            FileNotFoundError: If there is no such object.
            UnreachableError: If the store does not answer within the budget.
            StorageError: If the store refuses, or fails after the attempts of the budget.
        """
        return memoryview(self._read(path)).toreadonly()

    def get_into(self, path: str, buffer: memoryview) -> int:
        """Fill a buffer with the object that should fit it: no memory of its own, so faster than `get`.

        Args:
            path: The object.
            buffer: Bytes that may be written.

        Returns:
            Size of the object as it came, bytes; when it is not that of the buffer, what is in the buffer
            is of no use. Raises as `get`.
        """
        found = self._read(path, place=lambda size: buffer if size == buffer.nbytes else size)
        return found.nbytes if isinstance(found, memoryview) else int(found)

    def get_range(self, path: str, start: int, length: int) -> memoryview:
        """`length` bytes from byte `start`. Raises as `get`."""
        return memoryview(self._read(path, (start, start + length))).toreadonly()

    def get_end(self, path: str, length: int) -> memoryview:
        """The last `length` bytes. Raises as `get`."""
        return memoryview(self._read(path, {"suffix": length})).toreadonly()

    def get_ranges(self, path: str, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Several ranges of one object, one request each, concurrently. Raises as `get`."""
        tries = _Tries(self.budget)
        try:
            buffers = obstore.get_ranges(self.client, path, starts=starts, lengths=lengths, coalesce=0)
        except (obs_errors.BaseError, OSError) as error:
            self._again(tries, error, "read", path)
        else:
            return [memoryview(buffer) for buffer in buffers]
        # One of them failed, and which is not said: one after the other, each as far as it goes.
        spans = zip(starts, lengths, strict=True)
        return [
            self._read(path, (start, start + length), tries=tries).toreadonly() for start, length in spans
        ]

    def head(self, path: str) -> int:
        """Size of the object in bytes. Raises as `get`."""
        return self._try("read", path, lambda: int(obstore.head(self.client, path)["size"]))

    def version(self, path: str) -> str:
        """Size and age of the object, and its ETag where the store has one; another text when it was written again.

        Raises as `get`.
        """
        if (file := self.local_path(path)) is not None:
            return file_version(file)
        meta = self._try("read", path, lambda: obstore.head(self.client, path))
        tag = f", ETag {meta['e_tag']}" if meta["e_tag"] else ""
        return f"{meta['size']:,} bytes of {meta['last_modified'].isoformat()}{tag}"

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
        tries = _Tries(self.budget)
        last: str | None = None
        while True:
            try:
                for page in obstore.list(self.client, prefix or None, offset=last):
                    tries.progress()
                    for meta in page:
                        yield meta["path"], meta["size"]
                    if self._is_remote:  # which lists in order of paths
                        last = page[-1]["path"]
                return
            except (obs_errors.BaseError, OSError) as error:
                self._again(tries, error, "list", prefix)

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
            StorageError: As `get`.
        """
        mode: Any = "create" if create else "overwrite"
        if (folder := self.local_path()) is not None:
            _make_folder(folder)
        self._try("write", path, lambda: obstore.put(self.client, path, data, mode=mode, use_multipart=False))

    def delete(self, path: str) -> None:
        """Delete an object; on S3 also quiet when there is none."""
        self._try("delete", path, lambda: obstore.delete(self.client, path))

    # -- attempts --------------------------------------------------------------------------------

    def _try(self, verb: str, path: str, call: Callable[[], T]) -> T:
        tries = _Tries(self.budget)
        while True:
            try:
                return call()
            except (obs_errors.BaseError, OSError) as error:
                self._again(tries, error, verb, path)

    def _read(
        self,
        path: str,
        span: tuple[int, int] | Mapping[str, int] | None = None,
        *,
        place: Callable[[int], Any] | None = None,
        tries: _Tries | None = None,
    ) -> Any:
        """Bytes of an object; an answer that breaks off is gone on with where it ended.

        Args:
            path: The object.
            span: First byte and the one after the last, or obstore's form of another range; None for all.
            place: Called with the number of bytes that come: where to put them (memory of its own by default),
                or, to do without them, anything else, which is then the result.
            tries: Attempts that count already.

        Returns:
            What `place` gave, filled.
        """
        tries = tries or _Tries(self.budget)
        options: Any = {} if span is None else {"range": span}
        buffer: Any = None
        done = 0
        while True:
            try:
                result = obstore.get(self.client, path, options=options)
                if not self._is_remote and place is None:  # a stream of a file comes in pieces of 8 kB
                    return memoryview(result.bytes())
                if buffer is None:
                    first, stop = result.range
                    buffer = place(stop - first) if place else np.empty(stop - first, np.uint8).data
                    if not isinstance(buffer, memoryview):
                        return buffer
                    etag = result.meta["e_tag"]
                for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                    if done + len(chunk) > stop - first:
                        raise OSError(f"more bytes came than the {stop - first:,} announced")
                    buffer[done : done + len(chunk)] = memoryview(chunk)
                    done += len(chunk)
                    tries.progress()
                if done < stop - first:
                    raise OSError(f"{done:,} bytes came of the {stop - first:,} announced")
                return buffer
            except (obs_errors.BaseError, OSError) as error:
                self._again(tries, error, "read", path)
            if done == 0:
                buffer = None
            elif done < stop - first:
                options = {"range": (first + done, stop)}
                if etag and not etag.startswith("W/"):
                    options["if_match"] = etag
            else:
                return buffer

    def _again(self, tries: _Tries, error: Exception, verb: str, path: str) -> None:
        """Wait before the next attempt, or raise: what `error` means, when another is no use or not allowed."""
        scrub(error)
        failure = self._translate(error, path, verb)
        passing = isinstance(failure, StorageError) and self._is_remote and _may_pass(str(error))
        if not passing:
            raise failure from error
        if not tries.wait():
            raise type(failure)(f"{failure}; {tries}") from error

    # -- beside ----------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether objects are plain files, so that `local_path` is not None."""
        return self.url.startswith("file://")

    @property
    def _is_remote(self) -> bool:
        return not self.url.startswith(("file://", "memory://"))

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
        parts = urlsplit(self._address) if self._is_http else None
        if parts is None:
            address = f"{self._address}/{prefix.strip('/')}"
        else:  # a query, which may be what lets one in, stays at the end
            address = parts._replace(path=f"{parts.path.rstrip('/')}/{prefix.strip('/')}").geturl()
        return Store(address, self.storage_options, budget=self.budget)

    def parent(self) -> tuple[Store, str]:
        """The store above this one, and the name of this one in it."""
        address, name = self.url.rpartition("/")[::2]
        if self._is_http:
            parts = urlsplit(self._address)
            address = parts._replace(path=parts.path.rstrip("/").rpartition("/")[0]).geturl()
        return Store(address, self.storage_options, budget=self.budget), name

    @property
    def _is_http(self) -> bool:
        return self.url.startswith(("http://", "https://"))

    @property
    def client(self) -> Any:
        """The obstore client of this process, for libraries that take one; it makes one attempt at a time.

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
            self._client = _connect(self._address, self.storage_options, self.budget)
            _first_pid = os.getpid()
        return self._client

    def _translate(self, error: Exception, path: str, verb: str) -> OSError:
        name = f"{self.url}/{path}" if path else self.url
        if isinstance(error, obs_errors.NotFoundError | FileNotFoundError):
            return FileNotFoundError(f"{name}: no such object")
        if isinstance(error, obs_errors.AlreadyExistsError | FileExistsError):
            return FileExistsError(f"{name} exists already")
        # obstore sorts a refusal under several types; its text has the server's own code.
        text = str(error)
        cause = _first_line(text)
        for codes, meaning, advice in _REFUSALS:
            if any(code in text for code in codes):
                return StorageError(f"cannot {verb} {name}: {meaning} ({cause}); {advice}")
        refused = obs_errors.PermissionDeniedError | obs_errors.UnauthenticatedError | PermissionError
        # The answer to a HEAD has no code: an expired token is a bare 400.
        if isinstance(error, refused) or re.search(r"HEAD .*status code: 40[013]", cause):
            return StorageError(f"cannot {verb} {name}: permission denied ({cause}); {_CHECK_CREDENTIALS}")
        if _is_silence(text):
            return UnreachableError(
                f"cannot {verb} {name}: no answer from or no connection to the store ({cause}); "
                "check the endpoint (AWS_ENDPOINT_URL, --endpoint-url)"
            )
        return StorageError(f"cannot {verb} {name}: {cause}")


def file_version(file: str | os.PathLike[str]) -> str:
    """Size and time of a file; another text when it was written again.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    status = os.stat(file)
    seconds, nanoseconds = divmod(status.st_mtime_ns, 10**9)
    changed = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{status.st_size:,} bytes of {changed}.{nanoseconds:09d}"


class _Tries:
    """The attempts of one call so far."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.progress()

    def progress(self) -> None:
        """Something came: count from here."""
        self._failed, self._since = 0, time.monotonic()

    def wait(self) -> bool:
        """After a failure: wait, and say whether there may be another attempt."""
        self._failed += 1
        # Jitter: the readers of a store that just failed must not come back all at once.
        pause = 0.1 * 2 ** (self._failed - 1) * (0.75 + random.random() / 2)  # noqa: S311
        self._waited = time.monotonic() - self._since
        if self._failed >= self._budget.attempts or self._waited + pause > self._budget.seconds:
            return False
        time.sleep(pause)
        return True

    def __str__(self) -> str:
        attempts = "attempt" if self._failed == 1 else "attempts"
        return f"given up after {self._failed} {attempts} in {self._waited:.0f} s without progress"


_CHECK_CREDENTIALS = (
    "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and what they may do"
)

_REFUSALS: Sequence[tuple[Sequence[str], str, str]] = (
    (
        ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"),
        "the clock of this machine is not that of the store",
        "set the clock (NTP): a signature more than 15 minutes off is refused",
    ),
    (
        ("ExpiredToken", "TokenRefreshRequired"),
        "the credentials have expired",
        "get new ones (AWS_SESSION_TOKEN goes with its key and secret)",
    ),
    (
        (
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "InvalidToken",
            "InvalidClientTokenId",
            "UnrecognizedClient",
            "AuthFailure",
            "InvalidSecurity",
            "MissingSecurity",
            "NotSignedUp",
            "AccountProblem",
            "AllAccessDisabled",
            "AccessDenied",
            "InvalidPayer",
        ),
        "permission denied",
        _CHECK_CREDENTIALS,
    ),
)
"""Codes by which a store refuses who asks, what they mean and what to do; another attempt is no use."""


def _is_silence(text: str) -> bool:
    """Whether nobody answered, or the answer stopped."""
    return "error sending request" in text or "body error" in text or "TimedOut" in text


def _may_pass(text: str) -> bool:
    """Whether what went wrong can be otherwise the next time."""
    if any(code in text for codes, _, _ in _REFUSALS for code in codes):
        return False
    status = re.search(r"status code: (\d{3})", text)
    if status is None:
        return _is_silence(text) or "HTTP error" in text
    return status[1] in ("408", "425", "429") or status[1] >= "500" or "RequestTimeout" in text


# -- secrets -------------------------------------------------------------------------------------------

_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)(?:[^/?#\s'\"]*|[^/?#\s'\":]*:(?!\d+/)[^\s'\"]*)@")
"""Who asks, before the host of a URL; a secret with a slash in it, which no URL may have, is one too."""

_QUERY = re.compile(r"(?i)(\bhttps?://[^\s?'\"<>]*\?)[^\s'\"<>)\]}]+")

_PARAMETER = re.compile(
    r"(?i)([?&]|\b)((?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|sig|signature"
    r"|(?:access_?|session_?|security_?)?token|secret|password|api_?key)=)[^&\s'\"<>)\]},]+"
)


def mask(text: str) -> str:
    """`text` without what could let its reader in: users and passwords, and queries, of URLs."""
    text = _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))
    return _PARAMETER.sub(r"\1\2***", text)


def scrub(error: E) -> E:
    """The same error of a library, with the texts of it and of those behind it masked for a traceback."""
    seen: BaseException | None = error
    while seen is not None:
        seen.args = tuple(mask(a) if isinstance(a, str) else a for a in seen.args)
        seen = seen.__cause__ or seen.__context__
    return error


def public_url(url: str) -> str:
    """A URL without user, password and query: what may be shown and written down."""
    if url.startswith(("http://", "https://")):
        url = url.partition("?")[0].partition("#")[0].rstrip("/")
    return _USER.sub(r"\1", url)


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


def _connect(url: str, storage_options: Mapping[str, Any], budget: Budget) -> Any:
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _MEMORY.setdefault(url, MemoryStore())
    if parts.scheme == "file":
        folder = unquote(parts.path)
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{url}: no such folder")
        return LocalStore(folder)
    if parts.scheme in ("http", "https"):
        return HTTPStore.from_url(url, **_client_options(budget, http=parts.scheme == "http"))
    config: Any = s3_config(storage_options)
    profile = config.pop("profile", None)
    provider = None
    signs = not config.get("skip_signature") and "access_key_id" not in config
    if signs and (profile or not os.environ.get("AWS_ACCESS_KEY_ID")):
        provider = _aws_credentials(profile)
    endpoint = str(config.get("endpoint", ""))
    return S3Store(
        parts.netloc,
        prefix=parts.path.strip("/") or None,
        config=config,
        credential_provider=provider,
        **_client_options(budget, http=endpoint.startswith("http://")),
    )


def _client_options(budget: Budget, *, http: bool) -> dict[str, Any]:
    """Settings of an obstore client, which must not try anything again of its own accord."""
    client = {
        "connect_timeout": timedelta(seconds=min(5.0, budget.silence_s)),
        "read_timeout": timedelta(seconds=budget.silence_s),
        "timeout": timedelta(seconds=budget.request_s),
        "allow_http": http,
    }
    return {"client_options": client, "retry_config": {"max_retries": 0}}


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
        raise StorageError(f"no S3 credentials: {mask(str(error))}") from scrub(error)
    if found is None:
        raise StorageError(
            "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile "
            "in ~/.aws; AWS_NO_SIGN_REQUEST=1 reads a public bucket without any"
        )
    return Boto3CredentialProvider(session)
