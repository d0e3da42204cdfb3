"""Queries that let one read images for a while, as the Planetary Computer gives them (shared access signatures).

An address answers ``{"token": "...", "msft:expiry": "2024-01-15T08:00:00Z"}``; the token is put behind each URL, and
another one is asked for before it expires.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from reben_cloud.errors import SourceError
from reben_cloud.store import open_store, public_url
from reben_cloud.store.address import parent

PLANETARY_COMPUTER = "planetarycomputer.microsoft.com"
"""The API whose images are known to need a token."""

_EARLY = timedelta(minutes=5)
"""A token is not used any more so long before it expires."""

_UNKNOWN = timedelta(minutes=15)
"""How long a token is used that does not say when it expires."""

_tokens: dict[str, tuple[str, datetime]] = {}
_lock = threading.Lock()


def token_url_of(api: str, collection: str) -> str | None:
    """Where the tokens for a collection of an API are to be had; None where it is not known to need any."""
    parts = urlsplit(api)
    if parts.hostname != PLANETARY_COMPUTER:
        return None
    return f"{parts.scheme}://{parts.netloc}/api/sas/v1/token/{collection}"


def signed(href: str, token_url: str | None) -> str:
    """A URL with a valid token behind it; as it is, if it needs none or has a query of its own.

    Raises:
        SourceError: If what the address answers is not a token.
        StorageError: If it cannot be asked.
    """
    if token_url is None or not href.startswith(("http://", "https://")) or urlsplit(href).query:
        return href
    return f"{href}?{_token(token_url)}"


def _token(url: str) -> str:
    with _lock:  # threads that need one wait for the first of them
        now = datetime.now(UTC)
        known = _tokens.get(url)
        if known is None or known[1] - _EARLY <= now:
            known = _tokens[url] = _ask(url, now)
        return known[0]


def _ask(url: str, now: datetime) -> tuple[str, datetime]:
    above, name = parent(url)
    data = bytes(open_store(above).get(name))
    try:
        said = json.loads(data)
        token, expiry = str(said["token"]), said.get("msft:expiry")
        until = (
            now + _UNKNOWN if expiry is None else datetime.fromisoformat(str(expiry).replace("Z", "+00:00"))
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{public_url(url)}: does not answer with a token ({type(error).__name__}); it must be JSON with 'token' "
            "and 'msft:expiry'"
        ) from error
    return token.lstrip("?"), until if until.tzinfo else until.replace(tzinfo=UTC)
