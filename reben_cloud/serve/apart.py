"""What costs much is answered by a process apart, which leaves interpreter and processor to all other requests.

That process has the same application and gives way to others (`nice`). A request goes to it whole, in the terms of
ASGI: at once if its body is large, and otherwise when the application says that it is costly (`CostlyError`). So a
search of minutes, a page of a thousand Items or the reading of a body of a megabyte keeps no usual request waiting.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import pickle
import secrets
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reben_cloud.root.dataset import Dataset
from reben_cloud.serve.answers import REFUSED_AFTER_S, answer

LARGE_BODY_BYTES = 20_000
"""Bodies above this take milliseconds to understand."""

MAX_APART = 64
"""Requests that may be with the process apart at a time; more are refused."""

_NICE = 10
"""How much the process gives way: where both are busy it gets a tenth of what the server gets."""

_START_S = 60.0
"""Longest that a request waits for the process to start; it reads the table of patches first."""

_LOOK_S = 0.05
_SECRET_BYTES = 32
_LENGTHS = struct.Struct("<QQ")
_BYTES = "bytes of Latin-1"

_PARTS = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server"),
)
"""Of a scope of ASGI, what can go to another process and means the same there."""


class CostlyError(Exception):
    """A request is one for the process apart."""


class Apart:
    """The process, as the server sees it; started once, and again if it has ended.

    Args:
        dataset: The dataset.
        create: Makes the application; found by its name, as the process imports it.
        keep: Names of further parts of a scope, whose values are plain.
    """

    def __init__(
        self, dataset: Dataset, create: Callable[[Dataset], ASGIApp], *, keep: tuple[str, ...] = ()
    ) -> None:
        self._dataset, self._create, self._keep = dataset, create, keep
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self.num_inside = 0
        """Requests that it has."""

    @property
    def pid(self) -> int | None:
        """Number of the process; None before it has started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if it does not run; it answers some seconds later."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._port = None
                self._process = _started()
                # In a thread: the process reads nothing before it has imported much.
                threading.Thread(target=self._acquaint, args=(self._process,), daemon=True).start()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _acquaint(self, process: subprocess.Popen[bytes]) -> None:
        """Tell a process what it needs, and learn its port."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it has ended
            for one in (sys.path, (self._dataset, self._create, self._secret)):
                process.stdin.write(pickle.dumps(one))
            process.stdin.flush()
        port = process.stdout.readline()
        with self._lock:
            if port and self._process is process:
                self._port = int(port)

    async def answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> bool:
        """Let the process answer a request.

        Args:
            scope: As ASGI has it.
            body: The whole body.
            receive: Tells when the client has hung up.
            send: As ASGI has it.

        Returns:
            Whether it has answered; if not, nothing has been sent.
        """
        begun = False
        try:
            reader, writer = await self._connect()
            gone = asyncio.ensure_future(_hung_up(receive))
            gone.add_done_callback(lambda _: writer.close())
            try:
                parts = {name: scope[name] for name in (*_PARTS, *self._keep) if name in scope}
                writer.write(self._secret + _packed(parts, body))
                while (found := await _read(reader)) is not None:
                    begun = True
                    await send({**found[0], "body": found[1]} if found[1] else found[0])
            finally:
                gone.cancel()
                writer.close()
        except OSError:
            return begun
        return begun or gone.done()

    async def ask(self, path: str) -> bytes:
        """What the process itself answers to GET; nothing while it starts."""
        if self._port is None:
            return b""
        parts, hung_up = list[bytes](), asyncio.Event()

        async def send(message: Message) -> None:
            parts.append(message.get("body", b""))

        async def receive() -> Message:
            await hung_up.wait()  # never
            return {"type": "http.disconnect"}

        scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path}
        await self.answer({**scope, "query_string": b"", "headers": []}, b"", receive, send)
        return b"".join(parts)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.start()
        async with asyncio.timeout(_START_S):  # its error is an OSError too
            while (port := self._port) is None:
                if self._process is None or self._process.poll() is not None:
                    raise ConnectionError("the process has ended")
                await asyncio.sleep(_LOOK_S)
        return await asyncio.open_connection("127.0.0.1", port)


class Relay:
    """Hands requests with large bodies, and those that are costly, to the process apart."""

    def __init__(self, app: ASGIApp, apart: Apart) -> None:
        self.app, self.apart = app, apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the application, which has not sent anything when it raises `CostlyError`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        first = await receive()
        if len(body := first.get("body", b"")) <= LARGE_BODY_BYTES:
            whole = [first]

            async def replay() -> Message:
                return whole.pop() if whole else await receive()

            try:
                await self.app(scope, replay, send)
            except CostlyError:
                pass
            else:
                return
        if self.apart.num_inside >= MAX_APART:
            await asyncio.sleep(REFUSED_AFTER_S)
            text = "too many requests that take long wait already: ask for less, or come again later"
        else:
            self.apart.num_inside += 1
            try:
                if await self.apart.answer(scope, body, receive, send):
                    return
            finally:
                self.apart.num_inside -= 1
            text = "what answers requests that take long is just starting: come again later"
        await answer(503, text, headers={"Retry-After": "10"})(scope, receive, send)


def _started() -> subprocess.Popen[bytes]:
    """A process that is told by its input what to answer; it ends with that, even if the server is killed."""
    command = [sys.executable, "-c", "from reben_cloud.serve.apart import run; run()"]
    # Not in the server's group: Ctrl-C is for the server, which ends this process last.
    if sys.platform == "win32":
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
        )
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _packed(parts: Mapping[str, Any], body: bytes) -> bytes:
    """What one process sends the other: JSON, with bytes as Latin-1, and a body as it is."""
    text = json.dumps(parts, default=lambda one: {_BYTES: one.decode("latin-1")}).encode()
    return _LENGTHS.pack(len(text), len(body)) + text + body


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """What the other process has sent next; None at the end."""
    try:
        num_text, num_body = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        text, body = await reader.readexactly(num_text), await reader.readexactly(num_body)
    except asyncio.IncompleteReadError:
        return None
    return json.loads(
        text, object_hook=lambda one: one[_BYTES].encode("latin-1") if _BYTES in one else one
    ), body


# -- in the process ----------------------------------------------------------------------------------


def run() -> None:
    """Answer until the server ends, which has started this process and tells it what it needs."""
    if sys.platform != "win32":
        os.nice(_NICE)
    told = sys.stdin.buffer
    sys.path[:] = pickle.load(told)  # noqa: S301 - from the server, as all of its input
    dataset, create, secret = pickle.load(told)  # noqa: S301
    app = create(dataset)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if hmac.compare_digest(await reader.readexactly(_SECRET_BYTES), secret):
                await _answer(app, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")  # the server reads it
        sys.stdout.flush()
        await asyncio.Event().wait()

    def end_with_the_server() -> None:
        told.read()
        os._exit(0)  # searches may go on; there is nothing to be put in order

    threading.Thread(target=end_with_the_server, daemon=True).start()
    asyncio.run(serve())


async def _answer(app: ASGIApp, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    asked = await _read(reader)
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
        writer.write(_packed(parts, message.get("body", b"")))
        await writer.drain()

    try:
        await app(scope, receive, send)
    finally:
        ended.cancel()
