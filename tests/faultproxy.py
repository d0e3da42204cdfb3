"""An HTTP/1.1 proxy before a real S3 server that breaks what it is told to break.

Host and headers pass unchanged, so request signatures stay valid. It runs on a thread of its own and
logs each request, so that a test can count them. It knows nothing of S3 but the body of a SlowDown.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal[
    "503", "delay", "reset-before", "reset-mid", "truncate", "stall", "corrupt", "slow",
    "cut-upload", "stall-upload", "corrupt-upload", "lose-answer",
]  # fmt: skip
"""The first ones break answers; the last four the body of a request in its middle, or hang up after it was done."""

_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message><RequestId>F</RequestId></Error>"
)


@dataclass(kw_only=True, slots=True)
class Rule:
    """Break the first `times` requests whose request line contains `match`."""

    match: str
    fault: Fault
    times: int = 1
    seconds: float = 1.0
    """How long a `delay`, a `stall` or a `stall-upload` lasts."""
    bytes_per_s: float = 1e6
    """Speed of a `slow` body."""


@dataclass(kw_only=True, slots=True)
class RandomRule:
    """Break a share of the requests, drawn from the request itself, so that thread timing is no matter.

    Each request (line, range, how often it was asked) has its own draw: a retry draws anew, and the
    same test breaks the same requests each time. No request is broken more than `max_times` running.
    """

    faults: Sequence[Fault]
    rate: float
    """Share of requests to break, in [0, 1]."""
    seed: int = 0
    match: str = ""
    max_times: int = 3
    seconds: float = 1.0
    bytes_per_s: float = 1e6

    def draw(self, request: str, attempt: int) -> Fault | None:
        """The fault of the `attempt`-th time `request` is asked, or None."""
        if attempt % (self.max_times + 1) == self.max_times:
            return None
        digest = hashlib.sha256(f"{self.seed}|{attempt}|{request}".encode()).digest()
        if int.from_bytes(digest[:8]) / 2**64 >= self.rate:
            return None
        return self.faults[digest[8] % len(self.faults)]


@dataclass(frozen=True, slots=True)
class _Picked:
    fault: Fault
    seconds: float
    bytes_per_s: float


@dataclass(slots=True)
class FaultProxy:
    """A proxy to `upstream` on a free port of 127.0.0.1; use it as a context manager."""

    upstream: str
    rules: list[Rule | RandomRule] = field(default_factory=list)
    log: list[tuple[str, Fault | None]] = field(default_factory=list)
    """Request line and fault of each request so far."""
    endpoint: str = ""
    _asked: Counter[str] = field(default_factory=Counter)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None

    def add(self, match: str, fault: Fault, **options: float) -> None:
        """Break the next request(s) whose line contains `match`; options are those of `Rule`."""
        self.rules.append(Rule(match=match, fault=fault, **options))  # type: ignore[arg-type]

    def num_requests(self, match: str = "") -> int:
        """How many requests came whose line contains `match`."""
        return sum(match in line for line, _ in list(self.log))

    def num_faults(self) -> int:
        """How many requests were broken."""
        return sum(fault is not None for _, fault in list(self.log))

    def __enter__(self) -> FaultProxy:
        host, port = urlsplit(self.upstream).hostname, urlsplit(self.upstream).port
        ready = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(
                lambda reader, writer: self._connection(reader, writer, str(host), int(port or 80)),
                "127.0.0.1",
                0,
            )
            self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.create_task(serve())
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

        self._thread = threading.Thread(target=run, name="faultproxy", daemon=True)
        self._thread.start()
        if not ready.wait(60):
            raise RuntimeError("the fault proxy did not start within 60 s")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join(10)

    def _pick(self, line: str, range_header: str) -> _Picked | None:
        request = f"{line}|{range_header}"
        attempt = self._asked[request]
        self._asked[request] += 1
        for rule in self.rules:
            if rule.match not in line:
                continue
            if isinstance(rule, RandomRule):
                fault = rule.draw(request, attempt)
            else:
                fault = rule.fault if rule.times > 0 else None
                rule.times -= 1
            if fault is not None:
                return _Picked(fault, rule.seconds, rule.bytes_per_s)
        return None

    async def _connection(
        self, client: asyncio.StreamReader, reply: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        up_reader: asyncio.StreamReader | None = None
        up_writer: asyncio.StreamWriter | None = None
        try:
            while True:
                head = await client.readuntil(b"\r\n\r\n")
                line = head.split(b"\r\n", 1)[0].decode("latin1")
                picked = self._pick(line, _header(head, b"range"))
                self.log.append((line, picked.fault if picked else None))
                num_bytes = int(_header(head, b"content-length") or 0)
                if picked and picked.fault == "503":
                    if _header(head, b"expect"):
                        reply.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    await client.readexactly(num_bytes)
                    body = b"" if line.startswith("HEAD") else _SLOW_DOWN
                    reply.write(
                        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
                        b"Content-Length: %d\r\n\r\n%s" % (len(_SLOW_DOWN), body)
                    )
                    await reply.drain()
                    continue
                if picked and picked.fault == "delay":
                    await asyncio.sleep(picked.seconds)
                if picked and picked.fault == "reset-before":
                    reply.transport.abort()
                    return
                if up_reader is None or up_writer is None:
                    up_reader, up_writer = await asyncio.open_connection(host, port)
                up_writer.write(head)
                if picked and picked.fault == "cut-upload":
                    await _copy(client, up_writer, num_bytes // 2)
                    up_writer.transport.abort()
                    reply.transport.abort()
                    return
                sending = asyncio.create_task(_send(client, up_writer, num_bytes, picked))
                answer = await up_reader.readuntil(b"\r\n\r\n")
                while answer.startswith(b"HTTP/1.1 100"):
                    reply.write(answer)
                    await reply.drain()
                    answer = await up_reader.readuntil(b"\r\n\r\n")
                await sending
                if picked and picked.fault == "lose-answer":
                    reply.transport.abort()
                    return
                reply.write(answer)
                if not (line.startswith("HEAD") or answer[9:12] in (b"204", b"304")):
                    if _header(answer, b"transfer-encoding"):
                        await _copy_chunked(up_reader, reply)
                    elif not await _copy_body(
                        up_reader, reply, int(_header(answer, b"content-length") or 0), picked
                    ):
                        return
                await reply.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # one side hung up: so does the proxy
        finally:
            for writer in (reply, up_writer):
                if writer is not None:
                    writer.close()


def _header(head: bytes, name: bytes) -> str:
    found = re.search(rb"(?i)\r\n" + name + rb": *([^\r]*)", head)
    return found.group(1).decode("latin1") if found else ""


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, num_bytes: int) -> None:
    while num_bytes:
        data = await reader.read(min(num_bytes, 65536))
        if not data:
            return
        writer.write(data)
        await writer.drain()
        num_bytes -= len(data)


async def _send(
    client: asyncio.StreamReader, writer: asyncio.StreamWriter, num_bytes: int, picked: _Picked | None
) -> None:
    """Pass a request's body on, broken in its middle as picked."""
    if picked and num_bytes and picked.fault in ("stall-upload", "corrupt-upload"):
        await _copy(client, writer, num_bytes // 2)
        num_bytes -= num_bytes // 2
        if picked.fault == "stall-upload":
            await asyncio.sleep(picked.seconds)
        else:
            writer.write(bytes([(await client.readexactly(1))[0] ^ 255]))
            num_bytes -= 1
    await _copy(client, writer, num_bytes)


async def _copy_chunked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    size = -1
    while size:
        line = await reader.readline()
        size = int(line.split(b";")[0], 16)
        writer.write(line + await reader.readexactly(size + 2))


async def _copy_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, total: int, picked: _Picked | None
) -> bool:
    """Copy a body of `total` bytes, broken as picked past its middle; False when the connection is gone."""
    done = 0
    fault = picked.fault if picked else None
    while done < total:
        data = await reader.read(min(total - done, 65536))
        if not data:
            break
        if picked and done + len(data) > total // 2:
            if fault == "truncate":
                writer.write(data[:10])
                await writer.drain()
                return False
            if fault == "reset-mid":
                await writer.drain()
                writer.transport.abort()
                return False
            if fault == "stall":
                await asyncio.sleep(picked.seconds)
                fault = None
            elif fault == "corrupt":
                data = bytes([data[0] ^ 255]) + data[1:]
                fault = None
        writer.write(data)
        await writer.drain()
        done += len(data)
        if picked and fault == "slow":
            await asyncio.sleep(len(data) / picked.bytes_per_s)
    return True
