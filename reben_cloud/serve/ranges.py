"""A file in memory over HTTP: whole, in ranges, or not again when the client has it (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re

import xxhash
from starlette.datastructures import Headers
from starlette.responses import Response

_RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")

MAX_AGE_S = 86_400
"""How long a client may keep a file without asking: a root never changes, but an address may get another root."""


def send_file(data: bytes, headers: Headers, *, media_type: str, max_age_s: int = MAX_AGE_S) -> Response:
    """The answer to a GET or HEAD of a file.

    Several ranges at a time, ranges in other units and such as cannot be understood are answered with the whole
    file, as the standard has it.

    Args:
        data: The file.
        headers: Of the request.
        media_type: Of the file.
        max_age_s: How long the client may keep it without asking again.

    Returns:
        200, 206 with a range, 304 where the client has the file, 416 where the file has no such range.
    """
    tag = f'"{xxhash.xxh3_64_hexdigest(data)}"'
    kept = {
        "ETag": tag,
        "Cache-Control": f"public, max-age={max_age_s}" if max_age_s else "no-cache",
        "Accept-Ranges": "bytes",
        # For readers in pages of others.
        "Access-Control-Expose-Headers": "Accept-Ranges, Content-Length, Content-Range, ETag",
    }
    if _has(headers.get("if-none-match"), tag):
        return Response(status_code=304, headers=kept)
    wanted = _RANGE.fullmatch(headers.get("range", ""))
    if wanted is None or not any(wanted.groups()) or headers.get("if-range", tag) != tag:
        return Response(data, headers=kept, media_type=media_type)
    first, last = wanted.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
        if last and int(last) < int(first):
            return Response(data, headers=kept, media_type=media_type)
    else:
        start, stop = max(0, len(data) - int(last)), len(data)
    if start >= len(data):
        return Response(status_code=416, headers={**kept, "Content-Range": f"bytes */{len(data)}"})
    piece = {**kept, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    return Response(data[start:stop], 206, headers=piece, media_type=media_type)


def _has(known: str | None, tag: str) -> bool:
    """Whether an ``If-None-Match`` names a tag; weak ones compare as well here."""
    if known is None:
        return False
    return known.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in known.split(","))
