"""What costs much is answered by a process apart, which leaves interpreter and processor to all other requests.

That process has the same application and gives way to others (`nice`). A request goes to it whole, in the terms of
ASGI: at once if its body is large, and otherwise when the application says that it is costly (`CostlyError`). So a
search of minutes, a page of a thousand Items or the reading of a body of a megabyte keeps no usual request waiting.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reben_cloud.root.dataset import Dataset
from reben_cloud.serve.answers import REFUSED_AFTER_S, answer
from reben_cloud.serve.place import PREFIX
from reben_cloud.serve.process import PORT, SECRET_BYTES, packed, read_packed

LARGE_BODY_BYTES = 20_000
"""Bodies above this take milliseconds to understand."""

MAX_APART = 64
"""Requests that may be with the process apart at a time; more are refused."""

_START_S = 60.0
"""Longest that a request waits for the process to start; it reads the table of patches first."""

_ASK_S = 1.0
"""Longest that the process may take to tell of itself: its numbers must not keep those of the server waiting."""

_LOOK_S = 0.05

_COMMAND = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from reben_cloud.serve.process import run; run()"
)
"""What the process is: with the server's path of modules from the first import on."""

_PARTS = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"),
    *("headers", "client", "server", PREFIX),
)
"""Of a scope of ASGI, what can go to another process and means the same there."""


class CostlyError(Exception):
    """A request is one for the process apart."""


class Apart:
    """The process, as the server sees it; started once, and again if it has ended.

    Args:
        dataset: The dataset.
        create: Makes the application; found by its name, as the process imports it.
    """

    def __init__(self, dataset: Dataset, create: Callable[[Dataset], ASGIApp]) -> None:
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._told = pickle.dumps(sys.path) + pickle.dumps((dataset, create, self._secret))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process; None before it has started."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if it does not run; it answers some seconds later."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._process = _started()
                # In a thread: the process reads nothing before it has imported much.
                threading.Thread(target=self._acquaint, args=(self._process,), daemon=True).start()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._port = None
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.wait()
            with suppress(OSError):  # it has not read all
                self._process.stdin.close()

    def _acquaint(self, process: subprocess.Popen[bytes]) -> None:
        """Tell a process what it needs, and learn its port."""
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it has ended
            process.stdin.write(self._told)
            process.stdin.flush()
        with process.stdout as said:
            port = next((line.removeprefix(PORT) for line in said if line.startswith(PORT)), None)
        with self._lock:
            if port is not None and self._process is process:
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
                parts = {name: scope[name] for name in _PARTS if name in scope}
                writer.write(self._secret + packed(parts, body))
                while (found := await read_packed(reader)) is not None:
                    begun = True
                    await send({**found[0], "body": found[1]} if found[1] else found[0])
            finally:
                gone.cancel()
                writer.close()
        except OSError:
            return begun
        return begun or gone.done()

    async def ask(self, path: str) -> bytes:
        """What the process itself answers to GET; nothing while it starts, or if it takes long."""
        if self._port is None:
            return b""
        parts, hung_up = list[bytes](), asyncio.Event()

        async def send(message: Message) -> None:
            parts.append(message.get("body", b""))

        async def receive() -> Message:
            await hung_up.wait()  # never
            return {"type": "http.disconnect"}

        scope = {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path}
        with suppress(TimeoutError):
            async with asyncio.timeout(_ASK_S):
                await self.answer({**scope, "query_string": b"", "headers": []}, b"", receive, send)
                return b"".join(parts)
        return b""

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
        self._num_inside = 0

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
        if self._num_inside >= MAX_APART:
            await asyncio.sleep(REFUSED_AFTER_S)
            text = "too many requests that take long wait already: ask for less, or come again later"
        else:
            self._num_inside += 1
            try:
                if await self.apart.answer(scope, body, receive, send):
                    return
            finally:
                self._num_inside -= 1
            text = "what answers requests that take long is just starting: come again later"
        await answer(503, text, headers={"Retry-After": "10"})(scope, receive, send)


def _started() -> subprocess.Popen[bytes]:
    """A process that is told by its input what to answer; it ends with that, even if the server is killed."""
    # -P: not from the folder that the server was started in, which may have a secrets.py, or be somebody else's.
    command = [sys.executable, "-P", "-c", _COMMAND]
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
