"""Where the server is for its clients: behind a proxy that may have another name, scheme and path.

Inside, the path of a request is as if there were no proxy; links are made with what the proxy is called.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "reben_cloud.prefix"
"""Part of a scope of ASGI: the path of the server at the proxy."""


class Place:
    """Outermost: takes the proxy's path off, and puts the public scheme and host on.

    Args:
        app: The application.
        public_url: URL at which clients reach the server; None for the one that they ask for.
        root_path: Path of the server at the proxy, which may leave it on requests or take it off; that of
            `public_url` where it is empty.

    Raises:
        ValueError: If the URL is not of http or https, or the path does not begin with a slash.
    """

    def __init__(self, app: ASGIApp, public_url: str | None = None, root_path: str = "") -> None:
        parts = urlsplit(public_url or "")
        if public_url is not None and (parts.scheme not in ("http", "https") or not parts.netloc):
            raise ValueError(f"the public URL must begin with https:// or http://, got {public_url!r}")
        if parts.query or parts.fragment:
            raise ValueError(f"the public URL must end with its path, got {public_url!r}")
        if root_path and not root_path.startswith("/"):
            raise ValueError(f"the root path must begin with a slash, such as /stac, got {root_path!r}")
        self.app = app
        self.scheme, self.host = parts.scheme, parts.netloc.encode()
        self.inner = root_path.rstrip("/") or parts.path.rstrip("/")
        """Path that requests may come with."""
        self.prefix = parts.path.rstrip("/") if public_url else self.inner
        """Path that links get."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Changes path, scheme and host of a request."""
        if scope["type"] == "http":
            mounted = scope.get("root_path", "")  # in another application
            scope = {
                **scope,
                "path": _without(_without(scope["path"], mounted), self.inner),
                "root_path": "",
                PREFIX: self.prefix or mounted,
            }
            if self.scheme:
                headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
                scope |= {"scheme": self.scheme, "headers": [*headers, (b"host", self.host)]}
        await self.app(scope, receive, send)


class Placed:
    """Innermost: gives the application path and prefix as the ASGI specification has them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Puts the prefix before the path."""
        if prefix := scope.get(PREFIX):
            scope = {**scope, "path": prefix + scope["path"], "root_path": prefix}
        await self.app(scope, receive, send)


def _without(path: str, prefix: str) -> str:
    return path[len(prefix) :] or "/" if path == prefix or path.startswith(f"{prefix}/") else path
