"""A hub on this machine: files below ``/datasets/OWNER/NAME/resolve/REVISION/PATH``, on signed URLs of a second port.

It does as the Hugging Face hub does (redirects, ETags, tokens, the questions of `huggingface_hub`), and, when it is
told to, what servers do at their worst: URLs that expire, throttling, answers that break off or are of other bytes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Asked:
    """A request that came."""

    server: str
    """``hub`` or ``cdn``."""
    method: str
    path: str
    headers: Message
    status: int = 0
    nbytes: int = 0


@dataclass
class Hub:
    """One data set, its commits, and how the two servers behave; knobs are changed while they serve."""

    repo: str = "owner/name"
    others: tuple[str, ...] = ()
    """Names under which it can be had as well."""
    url: str = ""
    """Where it is, while it serves."""
    token: str | None = None
    """Who does not bring it is refused, where there is one."""
    is_gated: bool = False
    expire_after: int = 10**9
    """Requests that a signed URL serves."""
    expire_s: float = 10**9
    """Seconds that it serves."""
    expired_status: int = 403
    redirects: bool = True
    """Or else the hub sends the bytes itself."""
    linked: bool = True
    """Whether the redirect tells size and ETag, as the hub's does and others' do not."""
    answers_head: bool = True
    latency_s: float = 0.0
    ignores_ranges: bool = False
    spoil_range: Callable[[str], str] = lambda said: said
    """What becomes of a Content-Range."""
    extra: dict[str, str] = field(default_factory=dict)
    """More headers of the bytes."""
    has_etag: bool = True
    location: Callable[[str], str] = lambda url: url
    """What becomes of a redirect."""
    throttled: dict[str, int] = field(default_factory=dict)
    """Server -> how many of the next requests are answered with 429."""
    throttle_headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0"})
    cut_after: list[int] = field(default_factory=list)
    """The next answers with bytes end after so many of them."""
    asked: list[Asked] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.commits: dict[str, dict[str, bytes | Path]] = {}
        self.revisions: dict[str, str] = {}
        self.signed: dict[str, tuple[float, int, str, str]] = {}
        self.lock = threading.Lock()
        self.in_flight = 0
        self.connections: list[socket.socket] = []
        self.cdn_url = ""
        self.etags: dict[tuple[str, str], str] = {}

    def commit(self, files: dict[str, bytes | Path], branch: str = "main") -> str:
        """Make these the files of a branch; the new commit."""
        commit = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[commit], self.revisions[branch] = files, commit
        return commit

    def expire(self) -> None:
        """No URL that was given so far is served any more."""
        with self.lock:
            self.signed.clear()

    def count(self, server: str) -> int:
        """Requests for files that a server has had."""
        return sum(a.server == server and "/api/" not in a.path for a in self.asked)

    def drop_connections(self) -> None:
        """Close every connection that is kept, as servers do after a while."""
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def etag(self, commit: str, path: str) -> str:
        """The ETag of a file."""
        if (commit, path) not in self.etags:
            data = self.commits[commit][path]
            text = data if isinstance(data, bytes) else f"{data}{data.stat().st_mtime_ns}".encode()
            self.etags[commit, path] = f'"{hashlib.sha256(text).hexdigest()}"'
        return self.etags[commit, path]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.hub.lock:
            self.server.hub.connections.append(self.connection)

    def do_GET(self) -> None:
        hub = self.server.hub
        entry = Asked(self.server.kind, self.command, self.path, self.headers)
        with hub.lock:
            hub.asked.append(entry)
            hub.in_flight += 1
            hub.most_in_flight = max(hub.most_in_flight, hub.in_flight)
        self.entry = entry
        try:
            if hub.latency_s:
                time.sleep(hub.latency_s)
            if self.throttled():
                self.answer(429, **hub.throttle_headers)
            elif self.server.kind == "hub":
                self.hub()
            else:
                self.cdn()
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            with hub.lock:
                hub.in_flight -= 1

    def do_HEAD(self) -> None:
        self.do_GET()

    def throttled(self) -> bool:
        hub = self.server.hub
        with hub.lock:
            left = hub.throttled.get(self.server.kind, 0)
            hub.throttled[self.server.kind] = max(0, left - 1)
            return left > 0

    def hub(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        basic = base64.b64encode(f"user:{hub.token}".encode()).decode()
        if hub.token and self.headers.get("Authorization") not in (f"Bearer {hub.token}", f"Basic {basic}"):
            return self.answer(
                401, **{"X-Error-Code": "RepoNotFound", "X-Error-Message": "no such repository"}
            )
        if hub.is_gated:
            return self.answer(403, **{"X-Error-Code": "GatedRepo", "X-Error-Message": "it is gated"})
        repo = next((name for name in (hub.repo, *hub.others) if f"/{name}" in parts.path), hub.repo)
        api, files = f"/api/datasets/{repo}", f"/datasets/{repo}/resolve/"
        if parts.path.startswith(files):
            revision, _, path = parts.path.removeprefix(files).partition("/")
            commit, path = self.commit_of(revision), unquote(path)
            if commit is None:
                return self.answer(404, **{"X-Error-Code": "RevisionNotFound"})
            if path not in hub.commits[commit]:
                return self.answer(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return self.resolve(commit, path)
        if parts.path != api and not parts.path.startswith(f"{api}/"):
            return self.answer(404, **{"X-Error-Code": "RepoNotFound"})
        kind, _, rest = parts.path.removeprefix(api).lstrip("/").partition("/")
        revision, _, folder = rest.partition("/")
        commit = self.commit_of(revision or "main")
        if commit is None:
            return self.answer(404, **{"X-Error-Code": "RevisionNotFound"})
        names = hub.commits[commit]
        if kind == "tree":
            above = f"{unquote(folder)}/" if folder else ""
            found = {}
            for name, data in names.items():
                head, _, deeper = name.removeprefix(above).partition("/")
                if not name.startswith(above):
                    continue
                if deeper and parse_qs(parts.query).get("recursive", ["False"])[0] not in (
                    "True",
                    "true",
                    "1",
                ):
                    found[head] = {"type": "directory", "path": above + head, "oid": commit}
                else:
                    found[name] = {"type": "file", "path": name, "size": _size(data), "oid": commit}
            if not found:
                return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            return self.answer(200, json.dumps(list(found.values())).encode())
        siblings = [{"rfilename": name} for name in names]
        info = {
            "id": hub.repo,
            "sha": commit,
            "private": False,
            "gated": False,
            "siblings": siblings,
            "tags": [],
        }
        return self.answer(200, json.dumps({**info, "downloads": 0, "likes": 0}).encode())

    def commit_of(self, revision: str) -> str | None:
        hub, name = self.server.hub, unquote(revision)
        return name if name in hub.commits else hub.revisions.get(name)

    def resolve(self, commit: str, path: str) -> None:
        hub, data = self.server.hub, self.server.hub.commits[commit][path]
        if self.command == "HEAD" and not hub.answers_head:
            return self.answer(405)
        etag = hub.etag(commit, path)
        if not hub.redirects:
            return self.send_bytes(data, etag)
        with hub.lock:
            key = f"k{len(hub.signed)}-{time.monotonic_ns()}"
            hub.signed[key] = (time.monotonic() + hub.expire_s, hub.expire_after, commit, path)
        linked = {"X-Linked-Size": str(_size(data)), "X-Linked-ETag": etag} if hub.linked else {}
        url = hub.location(f"{hub.cdn_url}/{commit}/{key}?X-Amz-Signature=sEcr3t-{key}&name=a%20b%2Fc")
        return self.answer(302, Location=url, **{"X-Repo-Commit": commit}, **linked)

    def cdn(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        key = parts.path.rpartition("/")[2]
        with hub.lock:
            until, left, commit, path = hub.signed.get(key, (0.0, 0, "", ""))
            ok = time.monotonic() < until and left > 0 and parse_qs(parts.query)["name"] == ["a b/c"]
            if ok:
                hub.signed[key] = (until, left - 1, commit, path)
        if not ok or self.command != "GET":  # which is what the URL is signed for
            return self.answer(hub.expired_status)
        return self.send_bytes(hub.commits[commit][path], f'"cdn-{hub.etag(commit, path)[1:-1]}"')

    def send_bytes(self, data: bytes | Path, etag: str) -> None:
        hub, size = self.server.hub, _size(data)
        wanted = None if hub.ignores_ranges else self.headers.get("Range")
        start, stop, headers = 0, size, dict(hub.extra)
        if hub.has_etag:
            headers["ETag"] = etag
            if self.headers.get("If-Match", etag) != etag:
                return self.answer(412)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, size - int(last))
            stop = min(int(last) + 1, size) if first and last else size
            if start >= size:
                return self.answer(416, **{"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = hub.spoil_range(f"bytes {start}-{stop - 1}/{size}")
        with hub.lock:
            cut = hub.cut_after.pop(0) if hub.cut_after else None
        self.begin(206 if wanted else 200, stop - start, headers)
        if self.command == "HEAD":
            return None
        if isinstance(data, bytes):
            part: bytes | memoryview = memoryview(data)[start:stop]
        else:
            with data.open("rb") as file:
                file.seek(start)
                part = file.read(stop - start)
        self.entry.nbytes = len(part[:cut])
        self.wfile.write(part[:cut])
        self.wfile.flush()
        self.close_connection |= cut is not None
        return None

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.begin(status, len(body), {"Content-Type": "application/json", **headers})
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.entry.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: Hub, kind: str) -> None:
        self.hub, self.kind = hub, kind
        super().__init__(("127.0.0.1", 0), _Handler)


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The two servers of a hub, while the context lasts; it knows their URLs."""
    with _Server(hub, "hub") as front, _Server(hub, "cdn") as back:
        hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in (front, back))
        for server in (front, back):
            # The end is noticed within 0.02 s, not the half second that is the default.
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        for server in (front, back):
            server.shutdown()


def say(line: str) -> None:
    """Answer whoever started this process."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve one file as a hub until the standard input ends: for benchmarks, which need a core of their own."""
    path = Path(sys.argv[1])
    hub = Hub(latency_s=float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    hub.commit({path.name: path})
    with serve(hub):
        say(hub.url)
        for _ in sys.stdin:  # a line asks what came since the last one
            with hub.lock:
                sent = [a for a in hub.asked if a.server == "cdn"]
                said = {
                    "requests": len(sent),
                    "nbytes": sum(a.nbytes for a in sent),
                    "most": hub.most_in_flight,
                }
                hub.asked.clear()
                hub.most_in_flight = 0
            say(json.dumps(said))


if __name__ == "__main__":
    main()
