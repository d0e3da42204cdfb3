"""What the server says of itself: counts for Prometheus, and a line of JSON per request."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
"""Upper bounds of the durations that are counted together."""

_ROUTES = (
    "search",
    "collections",
    "queryables",
    "explore",
    "patches",
    "root",
    "layers",
    "_mgmt",
    "conformance",
    "api",
    "api.html",
)
"""First parts of paths, which are told apart; a client may not make new ones."""


class Counts:
    """Requests since the start, by route, method and status; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._durations: Counter[float] = Counter()
        self._sum_s = 0.0

    def add(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self._requests[route, method, status] += 1
            self._sum_s += seconds
            self._durations[next((bound for bound in _BUCKETS_S if seconds <= bound), float("inf"))] += 1

    def exposition(self, gauges: Mapping[str, float]) -> str:
        """All counts, and other numbers by name, in the text format of Prometheus."""
        with self._lock:
            requests, durations, sum_s = dict(self._requests), dict(self._durations), self._sum_s
        lines = ["# TYPE reben_requests_total counter"]
        for (route, method, status), count in sorted(requests.items()):
            lines.append(
                f'reben_requests_total{{route="{route}",method="{method}",status="{status}"}} {count}'
            )
        lines.append("# TYPE reben_request_seconds histogram")
        so_far = 0
        for bound in (*_BUCKETS_S, float("inf")):
            so_far += durations.get(bound, 0)
            name = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'reben_request_seconds_bucket{{le="{name}"}} {so_far}')
        lines += [f"reben_request_seconds_sum {sum_s:.6f}", f"reben_request_seconds_count {so_far}"]
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE reben_{name} {kind}", f"reben_{name} {value:g}"]
        return "\n".join(lines) + "\n"


class Watch:
    """Counts requests, and tells each in a line of JSON (level INFO) once it is answered."""

    def __init__(self, app: ASGIApp, counts: Counts, clock: Callable[[], float] = time.perf_counter) -> None:
        self.app, self.counts, self.clock = app, counts, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application and notes what it sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, sent = self.clock(), 0, 0

        async def noted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            seconds = self.clock() - start
            first = scope["path"].strip("/").partition("/")[0]
            route = f"/{first}" if first in _ROUTES or not first else "other"
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
            self.counts.add(route, method, status, seconds)
            if logger.isEnabledFor(logging.INFO):
                logger.info(_line(scope, status, sent, seconds))


def _line(scope: Scope, status: int, sent: int, seconds: float) -> str:
    """A request in JSON; of its query nothing but the length, which may be anything."""
    client = scope.get("client")
    return json.dumps(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"][:200],
            "query_bytes": len(scope.get("query_string", b"")),
            "status": status,
            "bytes": sent,
            "ms": round(1000 * seconds, 1),
        }
    )
