"""The server as a process: its port, how long it waits for clients, and how it stops."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from reben_cloud.errors import AddressError
from reben_cloud.serve.lanes import MAX_SEARCH_S

MAX_HEADER_S = 10.0
"""Longest that a client may take over the head of a request, or to begin its first one."""

_KEEP_ALIVE_S = 75
"""How long an idle connection is kept: longer than proxies do, so that they do not send into one that is closing."""

MAX_CONNECTIONS = 4_000
"""Connections at a time; more get 503."""

_SWITCH_S = 0.0005
"""How long a thread may keep the interpreter from the others, in place of Python's 5 ms."""

_STOP_S = MAX_SEARCH_S + 5
"""Longest that a server which is to stop waits for those who are served."""


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on clients which do not come to the point, and would keep a connection for ever."""

    _hang_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Waits on if this is but a part of a request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._hang_up is None and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._hang_up = self.loop.call_later(MAX_HEADER_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def run_server(
    app: FastAPI, *, host: str, port: int, forwarded_allow_ips: str | None, ready: Callable[[str], None]
) -> None:
    """Serve an application until interrupted or terminated; then finish what was begun.

    Args:
        app: The application.
        host: Address to listen on.
        port: TCP port; 0 takes a free one.
        forwarded_allow_ips: Addresses of proxies whose ``X-Forwarded-*`` headers are believed, with commas between, or
            ``*``; None for this machine's alone.
        ready: Called with the URL once clients are answered.

    Raises:
        AddressError: If the address cannot be had.
    """
    # A thread that counts in Python gives way after this: a request changes threads some ten times.
    sys.setswitchinterval(_SWITCH_S)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            # Before the URL is told, so that a client that comes at once is not refused.
            listening.listen(2048)
        except (OSError, OverflowError) as error:
            raise AddressError(
                f"cannot listen on {host} port {port}: {error}; choose another with --host or --port"
            ) from error
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{listening.getsockname()[1]}/"
        config = uvicorn.Config(
            app,
            log_level="warning",
            http=ImpatientProtocol,
            lifespan="on",
            forwarded_allow_ips=forwarded_allow_ips,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=round(_STOP_S),
            timeout_keep_alive=_KEEP_ALIVE_S,
            server_header=False,
        )
        _Server(config, lambda: ready(url)).run(sockets=[listening])
