"""Texts without what could let their reader in: users, passwords, tokens and signed queries."""

from __future__ import annotations

import re
from typing import TypeVar

E = TypeVar("E", bound=BaseException)

_USER = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)(?:[^/?#\s'\"]*|[^/?#\s'\":]*:(?!\d+/)[^\s'\"]*)@")
"""Who asks, before the host of a URL; a secret with a slash in it, which no URL may have, is one too."""

_QUERY = re.compile(r"(?i)(\bhttps?://[^\s?'\"<>]*\?)[^\s'\"<>)\]}]+")

_PARAMETER = re.compile(
    r"(?i)([?&]|\b)((?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|sig|signature"
    r"|(?:access_?|session_?|security_?)?token|secret|password|api_?key)=)[^&\s'\"<>)\]},]+"
)


def mask(text: str) -> str:
    """`text` without what could let its reader in: users and passwords, and queries, of URLs."""
    text = _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))
    return _PARAMETER.sub(r"\1\2***", text)


def scrub(error: E) -> E:
    """The same error of a library, with the texts of it and of those behind it masked for a traceback."""
    seen: BaseException | None = error
    while seen is not None:
        seen.args = tuple(mask(a) if isinstance(a, str) else a for a in seen.args)
        seen = seen.__cause__ or seen.__context__
    return error


def public_url(url: str) -> str:
    """A URL without user, password and query: what may be shown and written down."""
    if url.startswith(("http://", "https://")):
        url = url.partition("?")[0].partition("#")[0].rstrip("/")
    return _USER.sub(r"\1", url)
