"""The head of an HTTP answer, read in a fraction of the time that ``http.client`` takes for it.

That parses headers as those of an e-mail, which is a third of the processor time of a range of 160 kB. Connections,
requests and bodies stay its own.
"""

from __future__ import annotations

import http.client
import socket
from typing import BinaryIO

_MAX_LINE = 65_536
_MAX_HEADERS = 100
"""As `http.client` has them."""


class Headers:
    """The headers of an answer; of several of one name the first."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def get(self, name: str) -> str | None:
        """A value by its name, in any case; None where there is none."""
        return self._values.get(name.lower())

    def add(self, name: str, value: str) -> None:
        """Put down a header, unless there is one of this name."""
        self._values.setdefault(name.lower(), value)


class Response(http.client.HTTPResponse):
    """An answer whose head is read by `read_head`."""

    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        self.found = Headers()
        """What `headers` is elsewhere, which stays empty."""
        self._is_head = method == "HEAD"
        self._is_begun = False

    def begin(self) -> None:
        """Read status and headers, and find out how the body ends (RFC 9112, section 6.3)."""
        if self._is_begun:
            return
        while True:
            protocol, status, reason = _read_status(self.fp)
            found = read_head(self.fp)
            if status != http.client.CONTINUE:
                break
        self.found, self._is_begun = found, True
        self.headers = self.msg = http.client.HTTPMessage()
        self.code = self.status = status
        self.reason = reason
        self.version = 10 if protocol == "HTTP/1.0" else 11
        self.chunked = (found.get("Transfer-Encoding") or "").lower() == "chunked"
        self.chunk_left = None
        length = found.get("Content-Length") or ""
        has_none = (
            self._is_head or status in (http.client.NO_CONTENT, http.client.NOT_MODIFIED) or status < 200
        )
        self.length = 0 if has_none else int(length) if length.isdecimal() and not self.chunked else None
        said = (found.get("Connection") or "").lower()
        is_kept = "close" not in said if self.version == 11 else "keep-alive" in said
        self.will_close = not is_kept or (self.length is None and not self.chunked)


def _read_status(file: BinaryIO) -> tuple[str, int, str]:
    line = str(file.readline(_MAX_LINE + 1), "iso-8859-1")
    if len(line) > _MAX_LINE:
        raise http.client.LineTooLong("status line")
    if not line:
        raise http.client.RemoteDisconnected("Remote end closed connection without response")
    protocol, _, rest = line.partition(" ")
    code, _, reason = rest.strip().partition(" ")
    if not protocol.startswith("HTTP/1.") or not (len(code) == 3 and code.isdecimal() and code >= "100"):
        raise http.client.BadStatusLine(line)
    return protocol, int(code), reason.strip()


def read_head(file: BinaryIO) -> Headers:
    """The headers of an answer, up to the empty line after them.

    Raises:
        http.client.HTTPException: If there are too many, or one is too long.
    """
    found, name, value = Headers(), "", ""
    for _ in range(_MAX_HEADERS + 1):
        line = file.readline(_MAX_LINE + 1)
        if len(line) > _MAX_LINE:
            raise http.client.LineTooLong("header line")
        text = str(line, "iso-8859-1")
        if name and text[:1] in (" ", "\t") and text.strip():
            value = f"{value} {text.strip()}"  # an old form: the value goes on
            continue
        if name:
            found.add(name, value)
        if not text.strip("\r\n"):
            return found
        name, _, value = text.partition(":")
        name, value = name.strip(), value.strip()
    raise http.client.HTTPException(f"got more than {_MAX_HEADERS} headers")
