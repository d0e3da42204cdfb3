"""Kept-alive HTTP connections to any number of servers, and requests that follow no redirect.

It knows neither objects nor attempts. On ``http.client``, which takes two thirds of the CPU time that urllib3
takes for a range of 160 kB: a loader makes thousands of them a second beside its own work.
"""

from __future__ import annotations

import base64
import functools
import http.client
import ssl
import string
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from reben_cloud.errors import StorageError
from reben_cloud.store.answers import put
from reben_cloud.store.budget import PROGRESS_BYTES, Budget
from reben_cloud.store.refusals import SilentError
from reben_cloud.store.response import Response
from reben_cloud.store.secrecy import mask, public_url

_DRAINED_BYTES = 2**16
"""An answer that nobody wants is read to its end up to this size, so that its connection can be used again."""

_DRAINED_S = 0.5
"""And for so long: it may trickle."""


class Origin(NamedTuple):
    """What a connection leads to, and whom credentials are for (RFC 6454)."""

    scheme: str
    host: str
    port: int


@functools.lru_cache(1024)  # one URL is asked thousands of times
def origin_of(url: str) -> Origin:
    """The server of a URL.

    Raises:
        StorageError: If it is not an http(s) URL of some host.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise StorageError(f"{public_url(mask(url))} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StorageError(f"{public_url(mask(url))} is not an http(s) URL of a host")
    return Origin(parts.scheme, parts.hostname, port)


class Reply:
    """A server's answer: its status, its headers, and a body that is still to come.

    Its connection goes back to the others when it is closed, or ends with it where the body was not read whole.
    """

    def __init__(
        self,
        connections: Connections,
        origin: Origin,
        connection: http.client.HTTPConnection,
        response: Response,
        deadline: float,
    ) -> None:
        self._connections, self._origin, self._connection = connections, origin, connection
        self._response, self._deadline = response, deadline
        self._is_open, self._has_failed = True, False
        self.server = f"{origin.scheme}://{origin.host}:{origin.port}"
        """Who answers."""
        self.reason = response.reason
        """The words beside the status."""
        self.status = response.status
        """The HTTP status."""
        self.headers = response.found
        """The headers."""

    def fill(self, buffer: memoryview) -> Iterator[int]:
        """Put the body into memory as it comes, and say each time how many bytes came.

        Raises:
            SilentError: If it stops, or takes longer than a request may take.
            OSError: If it is longer than the memory.
        """
        done = 0
        while (left := self._response.length) != 0:
            try:  # what is there, once there is something
                if left is None:
                    piece = self._response.read1(PROGRESS_BYTES)
                else:  # straight to where it belongs
                    came = self._response.fp.readinto1(buffer[done : done + min(left, PROGRESS_BYTES)])
                    self._response.length = left - came
            except (OSError, http.client.HTTPException) as error:
                self._has_failed = True
                raise SilentError(_cause(error)) from error
            if left is None:
                came = put(piece, buffer, done) - done
            if not came:
                return
            done += came
            yield came
            if time.monotonic() > self._deadline:
                self._has_failed = True
                raise SilentError("the answer took longer than a request may take")

    def close(self) -> None:
        """Give the connection back; what is left of a body is read if it is short."""
        if self._is_open:
            self._is_open = False
            self._connections.take_back(self._origin, self._connection, is_clean=self._is_clean())

    def _is_clean(self) -> bool:
        """Whether the next answer on this connection will not begin within this one."""
        if self._has_failed or self._response.will_close:
            return False
        length = self._response.length
        if length is not None and 0 < length <= _DRAINED_BYTES:
            silence_s = self._connection.sock.gettimeout()
            self._connection.sock.settimeout(_DRAINED_S)
            self._deadline = min(self._deadline, time.monotonic() + _DRAINED_S)
            try:
                for _ in self.fill(memoryview(bytearray(length))):
                    pass
            except SilentError:
                return False
            self._connection.sock.settimeout(silence_s)
        if self._response.length == 0:
            self._response.read()  # nothing is left, which closes it
        return self._response.isclosed()


class Connections:
    """At most `limit` requests at a time, to any servers, over connections that are kept.

    Args:
        limit: Most requests on their way; another one waits.
        budget: What a request may take.
    """

    def __init__(self, limit: int, budget: Budget) -> None:
        self._slots = threading.BoundedSemaphore(limit)
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = defaultdict(list)
        self._proxy_of = functools.cache(_proxy_of)
        self._lock = threading.Lock()
        self._budget = budget

    def ask(self, url: str, headers: Mapping[str, str], *, method: str = "GET") -> Reply:
        """Send a request and wait for the head of the answer, which must be closed.

        Raises:
            SilentError: If nobody answers.
            StorageError: If the URL cannot be asked for, or the server's certificate is not to be trusted.
        """
        origin = origin_of(url)
        self._slots.acquire()
        try:
            deadline = time.monotonic() + self._budget.request_s
            with self._lock:
                kept = self._idle[origin].pop() if self._idle[origin] else None
            if kept is not None:
                try:
                    return self._send(origin, kept, url, headers, method, deadline)
                except TimeoutError as error:
                    raise SilentError(_cause(error)) from error
                except (OSError, http.client.HTTPException):
                    pass  # the server gave up a connection that was idle: no failure, and no attempt
            try:
                return self._send(
                    origin,
                    _connected(origin, self._proxy_of(origin), self._budget),
                    url,
                    headers,
                    method,
                    deadline,
                )
            except ssl.SSLCertVerificationError as error:
                raise StorageError(
                    f"{origin.scheme}://{origin.host}:{origin.port}: the certificate is not trusted "
                    f"({error.verify_message}); name the file of its authority in SSL_CERT_FILE"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                raise SilentError(_cause(error)) from error
        except BaseException:
            self._slots.release()
            raise

    def take_back(self, origin: Origin, connection: http.client.HTTPConnection, *, is_clean: bool) -> None:
        """What a `Reply` calls at its end."""
        if is_clean:
            with self._lock:
                self._idle[origin].append(connection)
        else:
            connection.close()
        self._slots.release()

    def _send(
        self,
        origin: Origin,
        connection: http.client.HTTPConnection,
        url: str,
        headers: Mapping[str, str],
        method: str,
        deadline: float,
    ) -> Reply:
        try:
            target, headers = _target(url), dict(headers)
            proxy = self._proxy_of(origin)
            if proxy and origin.scheme == "http":  # which is told where to, and by whom, in every request
                target, headers = (
                    f"http://{urlsplit(url).netloc.rpartition('@')[2]}{target}",
                    headers | _proxy_headers(proxy),
                )
            connection.request(method, target, headers=headers)
            response = connection.getresponse()
            assert isinstance(response, Response)
            return Reply(self, origin, connection, response, deadline)
        except BaseException:
            connection.close()
            raise


@functools.lru_cache(1024)
def _target(url: str) -> str:
    """The path and query of a URL; a redirect may have characters in them that a request line must not."""
    parts = urlsplit(url)
    # Safe is also "%": what is escaped already stays as it is signed.
    return quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)


def _connected(origin: Origin, proxy: SplitResult | None, budget: Budget) -> http.client.HTTPConnection:
    host, port = (proxy.hostname, proxy.port or 80) if proxy else (origin.host, origin.port)
    assert host is not None
    connect_s = min(5.0, budget.silence_s)
    connection: http.client.HTTPConnection
    if origin.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=connect_s, context=_trust())
        if proxy:
            connection.set_tunnel(origin.host, origin.port, headers=_proxy_headers(proxy))
    else:
        connection = http.client.HTTPConnection(host, port, timeout=connect_s)
    connection.response_class = Response
    connection.connect()
    connection.sock.settimeout(budget.silence_s)
    return connection


@functools.cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _proxy_of(origin: Origin) -> SplitResult | None:
    """The proxy that ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``, or the system, name for a server."""
    named = getproxies().get(origin.scheme)
    if not named or proxy_bypass(f"{origin.host}:{origin.port}"):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    return parts if parts.hostname else None


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    return {"Proxy-Authorization": basic_authorization(proxy.username, proxy.password or "")}


def basic_authorization(user: str, password: str) -> str:
    """The header of a user and a password as they stand in a URL (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()


def _cause(error: Exception) -> str:
    text = mask(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
