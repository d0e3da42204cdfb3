"""The process apart from inside, and how it and the server talk: a connection of the loopback address per request.

The server sends the secret, then the request; the process sends the messages of its answer, and closes.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import secrets
import signal
import struct
import sys
import threading
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message

SECRET_BYTES = 32
"""Size of what shows that a connection is the server's: every user of the machine can connect to the port."""

PORT = b"port "
"""How the line begins that tells the port: what runs at the start of every Python may print too."""

_NICE = 10
"""How much the process gives way: where both are busy it gets a tenth of what the server gets."""

_LENGTHS = struct.Struct("<QQ")
_BYTES = "bytes of Latin-1"


def run() -> None:
    """Answer until the server ends, which has started this process and tells it what it needs."""
    # The server's to obey, which finishes what was begun: systemd tells all processes of a service to end.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed is for people
    told = sys.stdin.buffer
    dataset, create, secret = pickle.load(told)  # noqa: S301 - from the server, as all of its input

    def end_with_the_server() -> None:
        told.read()
        os._exit(0)  # searches may go on; there is nothing to be put in order

    threading.Thread(target=end_with_the_server, daemon=True).start()
    app = create(dataset)
    if sys.platform != "win32":
        os.nice(_NICE)  # only now: with a tenth of a busy processor it would take a minute to start

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if secrets.compare_digest(await reader.readexactly(SECRET_BYTES), secret):
                await _answer(app, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        with said:
            said.write(b"%b%d\n" % (PORT, server.sockets[0].getsockname()[1]))
        await asyncio.Event().wait()

    asyncio.run(serve())


async def _answer(app: ASGIApp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    asked = await read_packed(reader)
    if asked is None:
        return
    scope, body = asked
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    ended = asyncio.ensure_future(reader.read())

    async def receive() -> Message:
        if whole:
            return whole.pop()
        await asyncio.shield(ended)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        parts = {name: value for name, value in message.items() if name != "body"}
        writer.write(packed(parts, message.get("body", b"")))
        await writer.drain()

    try:
        await app(scope, receive, send)
    finally:
        ended.cancel()


def packed(parts: Mapping[str, Any], body: bytes) -> bytes:
    """What one process sends the other: JSON, with bytes as Latin-1, and a body as it is."""
    text = json.dumps(parts, default=lambda one: {_BYTES: one.decode("latin-1")}).encode()
    return _LENGTHS.pack(len(text), len(body)) + text + body


async def read_packed(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """What the other process has sent next; None at the end."""
    try:
        num_text, num_body = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        text, body = await reader.readexactly(num_text), await reader.readexactly(num_body)
    except asyncio.IncompleteReadError:
        return None
    return json.loads(
        text, object_hook=lambda one: one[_BYTES].encode("latin-1") if _BYTES in one else one
    ), body
