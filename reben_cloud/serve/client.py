"""What the STAC API answers: the one collection, its Items, and pages of searches."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

import attr
from fastapi import Request
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.errors import InvalidQueryParameter, NotFoundError
from stac_fastapi.types.requests import get_base_url
from starlette.responses import Response

from reben_cloud.bigearthnet.about import about
from reben_cloud.catalog import PlacedLayer, dataset_document, patch_items
from reben_cloud.catalog.band_images import BandImage, add_band_images, band_definitions
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.selection import Selection
from reben_cloud.search import known_ids
from reben_cloud.serve.compression import LEVEL, SMALLEST_BYTES
from reben_cloud.serve.fields import Fields, fields_of_body, fields_of_names, with_fields
from reben_cloud.serve.lanes import Rows
from reben_cloud.serve.layers import list_layers, shown_columns
from reben_cloud.serve.links import GEOJSON, Links, layer_urls, position_of, root_url
from reben_cloud.serve.models import MAX_LIMIT
from reben_cloud.serve.nearest import Nearest
from reben_cloud.serve.pictures import thumbnail_of
from reben_cloud.serve.results import Results
from reben_cloud.serve.tiffs import PATH, images_of

LARGE_PAGE = 100
"""Pages with more Items than this are made one after another, so that those who want less need not wait."""

_BODY = frozenset(
    (
        *("collections", "ids", "bbox", "intersects", "datetime", "limit", "token"),
        *("filter", "filter-lang", "filter-crs", "sortby", "fields"),
    )
)
"""What a body may hold that means something; the rest is not sent back."""

_AT_ONCE_ITEMS = 100
"""Items that are made before others get their turn; they take some 10 ms."""

_CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"


@attr.s
class Client(BaseCoreClient):
    """Answers from a dataset.

    Searches are coroutines, which stac-fastapi takes as well: no thread waits for one.
    """

    dataset: Dataset = attr.ib(kw_only=True)
    nearest: Nearest = attr.ib(kw_only=True)
    results: Results = attr.ib(kw_only=True)
    _large_page: asyncio.Semaphore = attr.ib(init=False, factory=lambda: asyncio.Semaphore(1))
    _images: Mapping[str, BandImage] = attr.ib(init=False)
    _thumbnail: str | None = attr.ib(init=False)

    def __attrs_post_init__(self) -> None:
        self._images = images_of(self.dataset)
        self._thumbnail = thumbnail_of(self.dataset)

    def landing_page(self, **kwargs: Any) -> Any:
        """The API's entry, with the collection as a child."""
        page = super().landing_page(**kwargs)
        page["stac_version"] = "1.1.0"  # of the Items; stac-fastapi writes its own default
        page["links"].append(
            {
                "rel": "child",
                "type": "application/json",
                "title": self.title,
                "href": f"{get_base_url(kwargs['request'])}collections/{self._collection_id}",
            }
        )
        return page

    def all_collections(self, **kwargs: Any) -> Any:
        """The one collection."""
        request: Request = kwargs["request"]
        return {
            "collections": [self._collection(request)],
            "numberMatched": 1,
            "numberReturned": 1,
            "links": self._links(request).of_collections(),
        }

    def get_collection(self, collection_id: str, **kwargs: Any) -> Any:
        """The collection, if it is that one."""
        self._check_collection(collection_id)
        return self._collection(kwargs["request"])

    def get_item(self, item_id: str, collection_id: str, **kwargs: Any) -> Any:
        """The Item of a patch."""
        self._check_collection(collection_id)
        found = self.dataset.search(ids=known_ids(self.dataset, item_id))
        if not len(found):
            raise NotFoundError(f"no such patch: {item_id[:80]}")
        return self._items(found, kwargs["request"])[0]

    async def nearest_items(
        self, collection_id: str, item_id: str, request: Request, *, column: str | None, limit: int
    ) -> dict[str, Any]:
        """The Items of the patches that are most like one, nearest first, each with its score."""
        self._check_collection(collection_id)
        found = await self.nearest.to(item_id, column=column, k=limit)
        items = await asyncio.to_thread(self._items, found.selection, request)
        for item, score in zip(items, found.scores.tolist(), strict=True):
            item["properties"][layout.column("score")] = score
        return {
            "type": "FeatureCollection",
            "features": items,
            "links": self._links(request).of_collections(),
            "numberReturned": len(items),
        }

    async def item_collection(  # type: ignore[override]
        self,
        collection_id: str,
        bbox: Any = None,
        datetime: str | None = None,
        limit: int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A page of the collection's Items."""
        self._check_collection(collection_id)
        query = {"bbox": _numbers(bbox), "datetime": datetime, "cql2": _filter_of_text(kwargs)}
        return await self._page(query, kwargs["request"], limit=limit, token=token, fields=None, body=None)

    async def get_search(  # type: ignore[override]
        self,
        collections: list[str] | None = None,
        ids: list[str] | None = None,
        bbox: Any = None,
        intersects: Any = None,
        datetime: str | None = None,
        limit: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """A page of a search, from the query string."""
        query = {
            "collections": collections,
            "ids": ids,
            "bbox": _numbers(bbox),
            "intersects": _parsed(intersects, "intersects") if intersects else None,
            "datetime": datetime,
            "cql2": _filter_of_text(kwargs),
            "sortby": kwargs.get("sortby"),
        }
        wanted = None
        if "fields" in kwargs["request"].query_params:
            wanted = fields_of_names(kwargs.get("fields") or [])
        return await self._page(
            query, kwargs["request"], limit=limit, token=kwargs.get("token"), fields=wanted, body=None
        )

    async def post_search(self, search_request: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """A page of a search, from a JSON body."""
        request: Request = kwargs["request"]
        query = {
            "collections": search_request.collections,
            "ids": search_request.ids,
            "bbox": search_request.bbox,
            "intersects": search_request.intersects,
            "datetime": search_request.datetime,
            "cql2": _filter_of_body(search_request),
            "sortby": [
                ("-" if one.direction == "desc" else "") + one.field for one in search_request.sortby or ()
            ],
        }
        wanted = None
        if "fields" in search_request.model_fields_set:
            wanted = fields_of_body(search_request.fields.model_dump(exclude_unset=True))
        return await self._page(
            query,
            request,
            limit=search_request.limit,
            token=search_request.token,
            fields=wanted,
            # As it was sent, for the link to the next page; it has been read and checked already.
            body={name: value for name, value in (await request.json()).items() if name in _BODY},
        )

    # -- what the routes share -----------------------------------------------------------------------

    def _links(self, request: Request) -> Links:
        return Links(get_base_url(request), self.title, self._collection_id)

    async def _page(
        self,
        query: dict[str, object],
        request: Request,
        *,
        limit: int | None,
        token: str | None,
        fields: Fields | None,
        body: Mapping[str, object] | None,
    ) -> Response:
        if (limit or 10) > LARGE_PAGE:
            self.results.costly()
        rows = await self.results.found(query, request.is_disconnected)
        start = position_of(token, len(rows))
        end = start + min(limit or 10, MAX_LIMIT)

        def written() -> Response:
            page = {
                "type": "FeatureCollection",
                "links": self._links(request).of_page(request, start, end, len(rows), body),
                "numberMatched": len(rows),
                "numberReturned": len(rows[start:end]),
            }
            text = (
                _json(page)[:-1] + ',"features":[' + ",".join(self._written(rows[start:end], request, fields))
            )
            return _response(f"{text}]}}".encode(errors="replace"), request)

        # In a thread: a thousand Items would keep all others waiting.
        if end - start <= LARGE_PAGE:
            return await asyncio.to_thread(written)
        async with self._large_page:
            return await asyncio.to_thread(written)

    def _written(self, rows: Rows, request: Request, fields: Fields | None) -> Iterator[str]:
        """Items as JSON, some at a time: no other thread runs while Arrow or the JSON encoder is at work."""
        for first in range(0, len(rows), _AT_ONCE_ITEMS):
            part = Selection(self.dataset, self.dataset.patch_table, rows[first : first + _AT_ONCE_ITEMS])
            for item in self._items(part, request):
                yield _json(item if fields is None else with_fields(item, fields))

    def _items(self, selection: Selection, request: Request) -> list[dict[str, Any]]:
        where = self.dataset.store.s3_location
        layers = self._layers(request)
        columns = selection.columns(shown_columns(self.dataset))
        items = list(patch_items(columns, root_url(self.dataset, get_base_url(request)), where, layers))
        links = self._links(request)
        for item in items:
            item["links"] = links.of_item(item["id"])
            add_band_images(item, self._images, f"{get_base_url(request)}{PATH}")
            if self._thumbnail is not None:  # STAC Browser and others show it in lists
                item["assets"]["thumbnail"] = {
                    "href": f"{get_base_url(request)}explore/patches/{item['id']}/{self._thumbnail}.png",
                    "type": "image/png",
                    "title": "Thumbnail",
                    "roles": ["thumbnail"],
                }
        return items

    def _layers(self, request: Request) -> list[PlacedLayer]:
        urls = layer_urls(self.dataset, get_base_url(request))
        return [PlacedLayer(layer, urls[name]) for name, layer in self.dataset.layers.items()]

    def _collection(self, request: Request) -> dict[str, Any]:
        document = dataset_document(
            self.dataset, url=root_url(self.dataset, get_base_url(request)), layers=self._layers(request)
        )
        kept = {"license", "cite-as", "about"}
        document["links"] = [
            *self._links(request).of_collection(),
            *(link for link in document["links"] if link["rel"] in kept),
        ]
        document.setdefault("item_assets", {}).update(band_definitions(self._images))
        if layers := list_layers(self.dataset, layer_urls(self.dataset, get_base_url(request))):
            document[layout.column("layers")] = layers
        return document

    @property
    def _collection_id(self) -> str:
        return about(self.dataset.schema).collection

    def _check_collection(self, collection_id: str) -> None:
        if collection_id != self._collection_id:
            raise NotFoundError(f"no such collection: {collection_id[:80]}")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _response(body: bytes, request: Request) -> Response:
    """GeoJSON, compressed if it is large and the client takes that; the middleware would do it between requests."""
    headers = {"Vary": "Accept-Encoding"}
    if len(body) > SMALLEST_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, LEVEL, mtime=0)
    return Response(body, media_type=GEOJSON, headers=headers)


def _numbers(bbox: str | None) -> list[str] | None:
    return bbox.split(",") if bbox else None


def _filter_of_text(parameters: Mapping[str, Any]) -> Any:
    """The filter of a query string, text unless it says otherwise."""
    text = parameters.get("filter_expr")
    _check_crs(parameters.get("filter_crs"))
    if text and parameters.get("filter_lang") == "cql2-json":
        return _parsed(text, "filter")
    return text


def _filter_of_body(body: Any) -> Any:
    """The filter of a JSON body, in the language that its type tells."""
    _check_crs(body.filter_crs)
    lang = "cql2-text" if isinstance(body.filter_expr, str) else "cql2-json"
    if body.filter_expr is not None and body.filter_lang not in (None, lang):
        raise InvalidQueryParameter(
            f"filter-lang is {body.filter_lang}, and the filter is {'a string' if lang == 'cql2-text' else 'an object'}"
        )
    return body.filter_expr


def _check_crs(crs: str | None) -> None:
    if crs not in (None, "", _CRS84):
        raise InvalidQueryParameter(f"filter-crs can only be {_CRS84}")


def _parsed(text: str, what: str) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidQueryParameter(f"{what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidQueryParameter(f"{what} must be a JSON object")
    return found
