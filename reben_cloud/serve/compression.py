"""Answers are sent compressed to who takes them so, but for files that are read in pieces."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SMALLEST_BYTES = 2_000
"""Below it, compression saves nothing that a network counts."""

LEVEL = 1
"""Most of the bytes that are saved, for a fraction of the time."""


class Compression:
    """Gzip, except for TIFFs and for ranges: a range is of the file as it is, and so is its entity tag."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.compressed = GZipMiddleware(app, minimum_size=SMALLEST_BYTES, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Choose by what is asked for."""
        in_pieces = scope["type"] == "http" and (
            scope["path"].endswith(".tif") or "range" in Headers(scope=scope)
        )
        await (self.app if in_pieces else self.compressed)(scope, receive, send)
