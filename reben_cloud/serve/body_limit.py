"""Limits to what a client may send, and to how long it may take over it."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reben_cloud.serve.answers import REFUSED_AFTER_S, answer
from reben_cloud.serve.apart import LARGE_BODY_BYTES
from reben_cloud.serve.cost import MAX_CORNERS

MAX_BODY_BYTES = 1_000_000
"""Largest request that is read: some 10,000 ids, or a polygon of more corners than are taken."""

MAX_BODY_S = 20.0
"""Longest that a client may take to send a request."""

MAX_LISTS = MAX_CORNERS + 1_000
"""Most lists in a body, of which a corner is one; they are counted in no time, and reading them takes 2 µs each."""


class BodyLimit:
    """Refuses request bodies beyond a size, announced or not, and those that come too slowly."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, max_s: float = MAX_BODY_S) -> None:
        self.app, self.max_bytes, self.max_s = app, max_bytes, max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the whole body before the application does."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.max_s):
                body = await self._read(receive)
        except TimeoutError:
            await answer(
                408, f"a request must arrive within {self.max_s:g} s", headers={"Connection": "close"}
            )(scope, receive, send)
            return
        if body is None:
            await answer(413, f"a request may have {self.max_bytes:,} bytes")(scope, receive, send)
            return
        is_json = Headers(scope=scope).get("content-type") != "application/octet-stream"
        if is_json and (lists := body.count(b"[")) > MAX_LISTS:
            await asyncio.sleep(REFUSED_AFTER_S)
            text = f"a request may have {MAX_LISTS:,} lists, and shapes {MAX_CORNERS:,} corners; this has {lists:,}"
            way_out = "simplify the shapes, for instance with shapely.simplify(shape, 0.001)"
            await answer(400, f"{text}: {way_out}")(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        async def held_back(message: Message) -> None:
            # Who has a large one refused waits for a second before the next.
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await asyncio.sleep(REFUSED_AFTER_S)
            await send(message)

        await self.app(scope, replay, held_back if len(body) > LARGE_BODY_BYTES else send)

    async def _read(self, receive: Receive) -> bytearray | None:
        """The body; None where it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                return None
            if not message.get("more_body"):
                return body


class HeadAsGet:
    """Answers HEAD as GET without the body. Files are left to their own way, which does not read them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns the method, and drops what the application sends after the headers."""
        if (
            scope["type"] != "http"
            or scope["method"] != "HEAD"
            or scope["path"].startswith(("/root/", "/layers/"))
        ):
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, without_body)
