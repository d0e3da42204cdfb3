"""Objects of a web server, read by ranges: redirects that expire, ETags, and servers that do not do as asked.

A hub redirects each of its large files to a signed URL of another host, which serves it for some minutes or hours.
That URL is remembered and asked directly; when it is refused, the hub is asked for another, once. obstore, which
reads every other store, would ask the hub before each range, and does not tell what a header says.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

from reben_cloud.errors import ChangedError, StorageError
from reben_cloud.store.answers import Span, Stat, dated_version, is_strong
from reben_cloud.store.connections import Connections, Reply, basic_authorization, origin_of
from reben_cloud.store.refusals import RefusedError, SilentError
from reben_cloud.store.response import Headers
from reben_cloud.store.secrecy import mask, public_url

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_EXPIRED = (400, 401, 403, 404, 410)
"""How servers refuse a signed URL whose time is over, or whose object has moved."""

_HEAD_REFUSED = (400, 403, 405, 501)
"""How servers answer a HEAD that they, or a signature for a GET, do not allow."""

_MAX_ROUTES = 4096
"""Objects whose place is remembered; a dataset has fewer large ones than that."""

_ELSEWHERE = "that is where the store redirected to; check the clock of this machine and the proxy variables"
"""The way out where a signed URL is refused as soon as it was given."""

_SAME_QUESTION_S = 2.0
"""So long a thread waits for the answer of another that asks where the same object is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where an object can be asked for at any time."""

    url: str
    """With its query, without user and password."""
    headers: Mapping[str, str]
    """Sent to the server of this URL only, and never to where it redirects."""
    advice: str = ""
    """The way out where that server refuses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Route:
    """Where an object was found last: at its location, or where that redirected to."""

    url: str
    headers: Mapping[str, str]
    linked: str | None
    """The object's ETag by the redirect itself: the other host's may be of another kind."""
    own: str | None = None
    """The ETag by that other host, when it was asked first."""


class WebClient:
    """The objects of a web server, or of a hub; see `answers.Client`.

    Args:
        connections: What it asks through.
        locate: Path of an object -> where it is; may ask a server itself.
    """

    def __init__(self, connections: Connections, locate: Callable[[str], Location]) -> None:
        self._connections = connections
        self._locate = functools.lru_cache(_MAX_ROUTES)(locate)
        self._routes: dict[str, _Route] = {}
        self._questions: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, path: str, span: Span, *, version: str | None) -> WebAnswer:
        """Ask for bytes of an object; see `answers.Client`."""
        location = self._locate(path)
        asked = {} if span is None else {"Range": _range_header(span)}
        reply, route = self._ask(location, asked, version)
        try:
            advice = location.advice if route.url == location.url else _ELSEWHERE
            return _accepted(reply, span, route.linked, version, advice)
        except BaseException:
            reply.close()
            raise

    def stat(self, path: str) -> Stat:
        """Size and version of an object; see `answers.Client`."""
        location = self._locate(path)
        reply = self._connections.ask(location.url, location.headers, method="HEAD")
        with closing(reply):
            linked, size = reply.headers.get("X-Linked-ETag"), reply.headers.get("X-Linked-Size")
            if reply.status in _REDIRECTS and linked and size and size.isdecimal():
                return Stat(int(size), linked)
            length = reply.headers.get("Content-Length")
            if reply.status == 200 and length and length.isdecimal():
                return Stat(int(length), _version(reply.headers, int(length)))
            if reply.status not in (200, *_REDIRECTS, *_HEAD_REFUSED):
                raise _refusal(reply, location.advice)
        # A redirect may be signed for one method only; and some servers answer no HEAD, or without a length.
        answer = self.get(path, (0, 1), version=None)
        answer.close()
        return Stat(answer.size, answer.version)

    def _ask(self, location: Location, asked: Mapping[str, str], version: str | None) -> tuple[Reply, _Route]:
        """The answer of whoever has the object now, and who that is."""
        failed: _Route | None = None
        if (route := self._routes.get(location.url)) is not None:
            if (reply := self._try(location, route, asked, version)) is not None:
                return reply, route
            failed = route
        with self._lock:
            question = self._questions.setdefault(location.url, threading.Lock())
        # Of threads that read one object only one asks where it is: hubs count these requests. Not for long: a
        # server that does not answer must not be waited for in turn.
        is_first = question.acquire(timeout=_SAME_QUESTION_S)
        try:
            route = self._routes.get(location.url)
            if route is not None and route is not failed:
                reply = self._try(location, route, asked, version)
                if reply is not None:
                    return reply, route
            return self._follow(location, asked)
        finally:
            if is_first:
                with self._lock:
                    self._questions.pop(location.url, None)
                question.release()

    def _try(
        self, location: Location, route: _Route, asked: Mapping[str, str], version: str | None
    ) -> Reply | None:
        """The answer from where the object was last; None where it is no longer to be had."""
        try:
            reply = self._connections.ask(route.url, {**route.headers, **asked, **_condition(route, version)})
        except SilentError:
            with self._lock:
                self._routes.pop(location.url, None)  # the next attempt may be sent elsewhere
            raise
        is_gone = reply.status in _EXPIRED and route.url != location.url
        is_other = reply.status < 300 and route.linked is not None and reply.headers.get("ETag") != route.own
        if is_gone or is_other or reply.status in _REDIRECTS:
            reply.close()
            return None
        return reply

    def _follow(self, location: Location, asked: Mapping[str, str]) -> tuple[Reply, _Route]:
        """Ask the location, and go where it redirects."""
        route = _Route(url=location.url, headers=location.headers, linked=None)
        for _ in range(_MAX_REDIRECTS):
            reply = self._connections.ask(route.url, {**route.headers, **asked})
            if reply.status not in _REDIRECTS:
                if reply.status < 300:
                    self._remember(location.url, replace(route, own=reply.headers.get("ETag")))
                return reply, route
            reply.close()
            route = _redirected(location, route, reply)
        raise StorageError(f"{public_url(location.url)} redirects more than {_MAX_REDIRECTS} times")

    def _remember(self, url: str, route: _Route) -> None:
        with self._lock:
            self._routes.pop(url, None)
            self._routes[url] = route
            if len(self._routes) > _MAX_ROUTES:
                del self._routes[next(iter(self._routes))]


class WebAnswer:
    """Bytes of an object that a web server sends; see `answers.Answer`."""

    def __init__(self, reply: Reply, first: int, stop: int, size: int, version: str) -> None:
        self._reply = reply
        self.first, self.stop = first, stop
        self.size = size
        """Bytes of the whole object."""
        self._version = version

    @property
    def version(self) -> str:
        """The version of the object."""
        return self._version

    def fill(self, buffer: memoryview) -> Iterator[int]:
        """Put the bytes into memory as they come; see `answers.Answer`."""
        return self._reply.fill(buffer)

    def close(self) -> None:
        """Let the connection go."""
        self._reply.close()


def _redirected(location: Location, route: _Route, reply: Reply) -> _Route:
    """The next place to ask.

    Raises:
        StorageError: If it is not one that may be asked.
    """
    here = public_url(route.url)
    there = reply.headers.get("Location")
    if not there:
        raise StorageError(f"{here} redirects (status {reply.status}) without saying where to")
    url = urljoin(route.url, there)
    origin = origin_of(url)
    if origin.scheme == "http" and urlsplit(route.url).scheme == "https":
        raise StorageError(
            f"{here} redirects to {public_url(url)}, where others could read and change what is sent"
        )
    is_home = origin == origin_of(location.url)
    return _Route(
        url=url,
        headers=location.headers if is_home else {},
        linked=reply.headers.get("X-Linked-ETag") or route.linked,
    )


def _range_header(span: tuple[int, int] | int) -> str:
    return f"bytes=-{span}" if isinstance(span, int) else f"bytes={span[0]}-{span[1] - 1}"


def _condition(route: _Route, version: str | None) -> dict[str, str]:
    """What lets a server refuse another version; where a redirect has told the ETag, it is compared with that."""
    return (
        {"If-Match": version} if version is not None and is_strong(version) and route.linked is None else {}
    )


def _accepted(reply: Reply, span: Span, linked: str | None, version: str | None, advice: str) -> WebAnswer:
    """An answer that was looked at: it brings what was asked for, of the version that was asked for.

    Raises:
        ChangedError: If the object is another version.
        RefusedError: If the server refuses.
        StorageError: If it sends something else.
    """
    server = reply.server
    if reply.status == 412:
        raise ChangedError(f"it is no longer version {version}")
    if reply.status >= 300:
        raise _refusal(reply, advice)
    if (encoding := reply.headers.get("Content-Encoding") or "identity") != "identity":
        raise StorageError(f"{server} sends it compressed ({encoding}), though asked not to")
    first, stop, size = _extent(reply, span, server)
    found = linked or _version(reply.headers, size)
    if version is not None and found != version:
        raise ChangedError(f"it was version {version} and is {found} now")
    return WebAnswer(reply, first, stop, size, found)


def _extent(reply: Reply, span: Span, server: str) -> tuple[int, int, int]:
    """First byte, the one after the last, and size of the object.

    Raises:
        StorageError: If they are not those that were asked for.
    """
    length = reply.headers.get("Content-Length")
    if span is None:
        if reply.status != 200 or length is None or not length.isdecimal():
            raise StorageError(
                f"{server} answers with status {reply.status} and a length of {length}, not with the whole object"
            )
        return 0, int(length), int(length)
    if reply.status != 206:
        raise StorageError(
            f"{server} ignores the Range header (status {reply.status} instead of 206) and would send all "
            f"{length} bytes; only servers that answer ranges can be read from"
        )
    said = reply.headers.get("Content-Range") or ""
    found = re.fullmatch(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", said.strip())
    if found is None:
        raise StorageError(f"{server} does not say which bytes it sends (Content-Range: {said[:100]!r})")
    first, stop, size = int(found[1]), int(found[2]) + 1, int(found[3])
    want = (max(0, size - span), size) if isinstance(span, int) else (span[0], min(span[1], size))
    if (first, stop) != want or (length is not None and length != str(stop - first)):
        raise StorageError(
            f"{server} sends other bytes than were asked for: {said!r} with {length} bytes, "
            f"where {want[0]}-{want[1] - 1} are wanted"
        )
    return first, stop, size


def _version(headers: Headers, size: int) -> str:
    return headers.get("ETag") or dated_version(size, headers.get("Last-Modified"))


def _refusal(reply: Reply, advice: str) -> RefusedError:
    said = reply.headers.get("X-Error-Message") or reply.reason
    cause = f"{reply.server} answers with status {reply.status}: {mask(said)[:200]}"
    if reply.status == 416:
        return RefusedError(416, f"it has no such bytes ({reply.headers.get('Content-Range') or cause})")
    wait_s = _wait_s(reply.headers)
    if wait_s:
        cause += f", and asks to wait {wait_s:.0f} s"
    return RefusedError(reply.status, cause, advice=advice, wait_s=wait_s)


def _wait_s(headers: Headers) -> float:
    """How long a server asks to wait: Retry-After (RFC 9110, section 10.2.3), or the hub's RateLimit."""
    said = (headers.get("Retry-After") or "").strip()
    if said.isdecimal():
        return float(said[:9])
    if said:
        try:
            at = parsedate_to_datetime(said)
        except ValueError:
            return 0.0
        return max(0.0, (at - datetime.now(UTC)).total_seconds()) if at.tzinfo else 0.0
    # `"resolvers";r=0;t=125`: what is left, and the seconds until there is more.
    found = re.search(r";\s*r=0\s*;\s*t=(\d{1,9})\b", headers.get("RateLimit") or "")
    return float(found[1]) if found else 0.0


def locations_below(address: str) -> Callable[[str], Location]:
    """Where the objects below an http(s) URL are; its query stays, its user and password become a header.

    Raises:
        ValueError: If it is no such URL.
    """
    parts = urlsplit(address)
    headers = {}
    if parts.username is not None:
        headers["Authorization"] = basic_authorization(parts.username, parts.password or "")
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")

    def locate(path: str) -> Location:
        return Location(
            url=base._replace(path=f"{base.path.rstrip('/')}/{quote(path)}").geturl(), headers=headers
        )

    return locate
