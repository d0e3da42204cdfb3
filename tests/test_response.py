"""Heads of HTTP answers: the same to us as to http.client, for what servers send and for what they should not."""

from __future__ import annotations

import http.client
import socket

import pytest

from reben_cloud.store.response import Response

ANSWERS = [
    pytest.param(b'HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nETag: "a"\r\n\r\nabc', id="range"),
    pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", id="until it closes"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", id="chunked"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", id="1.0 closes"),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 3\r\n\r\nabc", id="1.0 keeps"
    ),
    pytest.param(
        b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="continue"
    ),
    pytest.param(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", id="not modified"),
    pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", id="no content"),
    pytest.param(b"HTTP/1.1 404\r\ncontent-length:3\r\nX-Error-Message:  gone \r\n\r\nabc", id="no reason"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nX-A: one\r\n two\r\nX-A: three\r\nContent-Length: 0\r\n\r\n", id="folded, twice"
    ),
    pytest.param(b"HTTP/1.1 200 OK\nContent-Length: 1\n\na", id="bare newlines"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX-A: na\xefve\r\nContent-Length: 0\r\n\r\n", id="latin-1"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\nConnection: close\r\n\r\nabc", id="a length below none"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", id="cut short"),
    pytest.param(b"", id="nothing"),
    pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="no status"),
    pytest.param(b"HTTP/1.1 099 OK\r\n\r\n", id="a status below all"),
    pytest.param(b"ICY 200 OK\r\n\r\n", id="another protocol"),
    pytest.param(b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n", id="a long status"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", id="a long header"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 101 + b"\r\n", id="many headers"),
]
NAMES = ("Content-Length", "ETAG", "x-error-message", "X-A", "Connection", "Transfer-Encoding", "Absent")


def seen(kind, answer, method):
    """What a kind of response makes of an answer, or the error; and its body."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        response = kind(ours, method=method)
        try:
            response.begin()
            headers = response.found if kind is Response else response.headers
            head = [response.status, response.reason, response.version, response.length, response.will_close]
            values = [" ".join(value.split()) if (value := headers.get(name)) else value for name in NAMES]
            return [*head, response.chunked, *values, response.read()]
        except http.client.HTTPException as error:
            return type(error)
        finally:
            response.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_what_http_client_takes_it_for(answer, method):
    found, expected = seen(Response, answer, method), seen(http.client.HTTPResponse, answer, method)

    if expected is http.client.UnknownProtocol:  # a kind of what we say
        expected = http.client.BadStatusLine
    assert found == expected
