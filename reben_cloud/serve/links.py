"""Links of the API's documents, and the tokens of its pages: a token is a position in a result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request
from stac_fastapi.types.errors import InvalidQueryParameter

from reben_cloud.root.backing import LmdbFolder
from reben_cloud.root.dataset import Dataset

GEOJSON = "application/geo+json"
QUERYABLES = "http://www.opengis.net/def/rel/ogc/1.0/queryables"

_TITLES = {
    "self": "This document",
    "items": "Patches",
    "next": "Next page",
    "previous": "Previous page",
    QUERYABLES: "What a filter may name",
}


def root_url(dataset: Dataset, base: str) -> str:
    """Where clients read the dataset's objects: those of a folder are served below ``root``.

    Args:
        dataset: The dataset.
        base: The server's URL with a slash at the end.
    """
    return f"{base}root" if dataset.store.is_local else dataset.url


def open_url(dataset: Dataset, base: str) -> str | None:
    """What `reben_cloud.open` takes for the dataset on the machine of a client; arguments as for `root_url`.

    Returns:
        The URL; None for an LMDB with layers: read over HTTP it has another order and is not the root of its layers.
    """
    url, backing = root_url(dataset, base), dataset.backing
    if not isinstance(backing, LmdbFolder):
        return url
    if dataset.layers:
        return None
    # A web server does not list its folders, so that the one with the LMDB must be named.
    inside = os.path.relpath(backing.path, dataset.store.local_path())
    return url if inside == "." else f"{url}/{quote(inside)}"


def layer_urls(dataset: Dataset, base: str) -> dict[str, str]:
    """Name of each layer -> where clients read its objects; arguments as for `root_url`."""
    return {
        name: f"{base}layers/{name}" if layer.store.is_local else layer.url
        for name, layer in dataset.layers.items()
    }


class Links:
    """Makes the links of the answers to one request."""

    def __init__(self, base: str, title: str, collection: str) -> None:
        """Takes the server's URL with a slash at the end, title and id of the collection."""
        self.base, self.title = base, title
        self.collection_url = f"{base}collections/{collection}"

    def link(self, rel: str, href: str, kind: str = "application/json") -> dict[str, Any]:
        """One link."""
        return {"rel": rel, "href": href, "type": kind, "title": _TITLES.get(rel, self.title)}

    def of_collections(self) -> list[dict[str, Any]]:
        """Links of the list of collections."""
        root, parent = (self.link(rel, self.base) for rel in ("root", "parent"))
        return [self.link("self", f"{self.base}collections"), root, parent]

    def of_collection(self) -> list[dict[str, Any]]:
        """Links of the collection."""
        return [
            self.link("self", self.collection_url),
            self.link("root", self.base),
            self.link("parent", self.base),
            self.link("items", f"{self.collection_url}/items", GEOJSON),
            self.link(QUERYABLES, f"{self.collection_url}/queryables", "application/schema+json"),
        ]

    def of_item(self, patch_id: str) -> list[dict[str, Any]]:
        """Links of the Item of a patch."""
        return [
            self.link("self", f"{self.collection_url}/items/{patch_id}", GEOJSON),
            self.link("root", self.base),
            self.link("parent", self.collection_url),
            self.link("collection", self.collection_url),
        ]

    def of_page(
        self, request: Request, start: int, end: int, count: int, body: Mapping[str, object] | None
    ) -> list[dict[str, Any]]:
        """Links of a page with the rows from `start` to `end` of `count`.

        Args:
            request: What was asked for.
            start: First row of the page.
            end: Row after the last one that the page may have.
            count: Rows of the whole result.
            body: JSON body of the request; None for a query string.
        """
        links = [self.link("root", self.base), self.link("self", str(request.url), GEOJSON)]
        if request.url.path.endswith("/items"):
            links.append(self.link("collection", self.collection_url))
        if end < count:
            links.append(self._page("next", end, request, body))
        if start > 0:
            links.append(self._page("previous", max(0, start - (end - start)), request, body))
        return links

    def _page(
        self, rel: str, position: int, request: Request, body: Mapping[str, object] | None
    ) -> dict[str, Any]:
        if body is not None:
            link = self.link(rel, str(request.url), GEOJSON)
            return {**link, "method": "POST", "body": {**body, "token": str(position)}}
        parameters = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
        href = f"{request.url.replace(query='')}?{urlencode([*parameters, ('token', position)])}"
        return {**self.link(rel, href, GEOJSON), "method": "GET"}


def position_of(token: str | None, count: int) -> int:
    """The row at which a page starts.

    Raises:
        InvalidQueryParameter: If the token cannot be of a result of `count` rows.
    """
    if token is None:
        return 0
    # ASCII digits, no more than a position has: Python refuses to count thousands of them.
    if not (token.isascii() and token.isdecimal() and len(token) <= 12 and int(token) <= count):
        raise InvalidQueryParameter(f"token {token[:40]!r} is none of this search")
    return int(token)
