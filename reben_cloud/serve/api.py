"""STAC API: core, collections, features, item search; filter, sort, fields, paging by token.

stac-fastapi has the routes and models, `Dataset.search` the answers. A token is a position in a
result; a root never changes, so it stays good for ever.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple, cast
from urllib.parse import urlencode

import attr
import numpy as np
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray
from pydantic import model_validator
from stac_fastapi.api.app import StacApi
from stac_fastapi.api.models import (
    ItemCollectionUri,
    create_get_request_model,
    create_post_request_model,
    create_request_model,
)
from stac_fastapi.extensions.fields import FieldsExtension
from stac_fastapi.extensions.filter import SearchFilterExtension
from stac_fastapi.extensions.filter.client import BaseFiltersClient
from stac_fastapi.extensions.pagination import TokenPaginationExtension
from stac_fastapi.extensions.sort import SearchSortExtension
from stac_fastapi.types.config import ApiSettings
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.errors import InvalidQueryParameter, NotFoundError
from stac_fastapi.types.requests import get_base_url
from stac_fastapi.types.search import APIRequest, BaseSearchPostRequest
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reben_cloud import __version__
from reben_cloud.bigearthnet.labels import CLASSES
from reben_cloud.catalog import add_storage, patch_items
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layout import COLLECTION_ID
from reben_cloud.root.placement import SPLITS
from reben_cloud.root.query import Query
from reben_cloud.root.selection import Selection

MAX_BODY_BYTES = 1_000_000
"""Largest request that is read: a polygon of some 20,000 corners."""

MAX_LIMIT = 1_000
"""Most Items on a page; a larger limit gets this."""

_CACHED_RESULTS = 64
"""Results kept as row numbers, at most 4.4 MB each, so that the next page costs no search."""

MAX_SEARCH_S = 20.0
"""Longest that a search may take; then the answer is 503. All patches by a usual filter take 0.1 s."""

_RUNNING_SEARCHES = max(2, os.cpu_count() or 1)
"""Searches at a time. One that takes too long cannot be stopped, but others find a thread."""

_NOT_FOUND = "no such {what}: {name}"


def create_api(dataset: Dataset) -> FastAPI:
    """The STAC API of a dataset."""
    extensions = [
        SearchFilterExtension(client=_Queryables(countries=dataset.countries)),
        SearchSortExtension(
            conformance_classes=[
                # pystac-client looks for the first, the second is the extension's own present one.
                "https://api.stacspec.org/v1.0.0/item-search#sort",
                "https://api.stacspec.org/v1.1.0/item-search#sort",
            ]
        ),
        FieldsExtension(),
        TokenPaginationExtension(),
    ]
    settings = ApiSettings(
        stac_fastapi_title="BigEarthNet v2.0 (reBEN)",
        stac_fastapi_description=f"{len(dataset):,} patches; STAC Items of {dataset.url}",
        stac_fastapi_landing_id="reben",
        stac_fastapi_version=__version__,
        enable_response_models=False,
        openapi_url="/api",
        docs_url="/api.html",
    )
    client = _Client(
        extensions=extensions,
        dataset=dataset,
        landing_page_id="reben",
        title=settings.stac_fastapi_title,
        description=settings.stac_fastapi_description,
    )
    api = StacApi(
        settings=settings,
        client=client,
        extensions=extensions,
        search_get_request_model=create_get_request_model(extensions),
        search_post_request_model=create_post_request_model(extensions, base_model=_SearchBody),
        items_get_request_model=cast(
            type[APIRequest],
            create_request_model(
                "ItemCollectionUri", base_model=ItemCollectionUri, extensions=[TokenPaginationExtension()]
            ),
        ),
        middlewares=[
            Middleware(GZipMiddleware, minimum_size=2_000, compresslevel=1),
            Middleware(
                CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["*"]
            ),
            Middleware(_BodyLimit, max_bytes=MAX_BODY_BYTES),
        ],
    )
    app: FastAPI = api.app
    folder = dataset.store.local_path()
    if folder is not None:
        # So that the assets of a local root can be had over HTTP like those of a bucket.
        app.mount("/root", StaticFiles(directory=folder), name="root")
    return app


class _SearchBody(BaseSearchPostRequest):
    @model_validator(mode="before")
    @classmethod
    def _forgive(cls, body: Any) -> Any:
        """A single collection needs no list; ``fields`` must not be null."""
        if isinstance(body, dict):
            if "fields" in body and body["fields"] is None:
                raise ValueError("fields must not be null")
            if isinstance(body.get("collections"), str):
                return {**body, "collections": [body["collections"]]}
        return body


class _BodyLimit:
    """Refuses request bodies beyond a size, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = b""
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                answer = {"code": "TooLarge", "description": f"a request may have {self.max_bytes:,} bytes"}
                await JSONResponse(answer, 413)(scope, receive, send)
                return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)


@attr.s
class _Client(BaseCoreClient):
    """Answers from a dataset."""

    dataset: Dataset = attr.ib(kw_only=True)
    _results: OrderedDict[str, NDArray[np.int64]] = attr.ib(factory=OrderedDict, init=False)
    _lock: threading.Lock = attr.ib(factory=threading.Lock, init=False)
    _searches: ThreadPoolExecutor = attr.ib(init=False)

    def __attrs_post_init__(self) -> None:
        self._searches = ThreadPoolExecutor(_RUNNING_SEARCHES, thread_name_prefix="search")

    def landing_page(self, **kwargs: Any) -> Any:
        """The API's entry, with the collection as a child."""
        page = super().landing_page(**kwargs)
        page["stac_version"] = "1.1.0"  # of the Items; stac-fastapi writes its own default
        page["links"].append(
            {
                "rel": "child",
                "type": "application/json",
                "title": "BigEarthNet v2.0 (reBEN)",
                "href": f"{get_base_url(kwargs['request'])}collections/{COLLECTION_ID}",
            }
        )
        return page

    def all_collections(self, **kwargs: Any) -> Any:
        """The one collection."""
        request: Request = kwargs["request"]
        base = get_base_url(request)
        return {
            "collections": [self._collection(base, request)],
            "numberMatched": 1,
            "numberReturned": 1,
            "links": [_link("self", f"{base}collections"), _link("root", base), _link("parent", base)],
        }

    def get_collection(self, collection_id: str, **kwargs: Any) -> Any:
        """The collection, if it is that one."""
        _check_collection(collection_id)
        return self._collection(get_base_url(kwargs["request"]), kwargs["request"])

    def get_item(self, item_id: str, collection_id: str, **kwargs: Any) -> Any:
        """The Item of a patch."""
        _check_collection(collection_id)
        found = self.dataset.search(ids=item_id, missing_ok=True)
        if not len(found):
            raise NotFoundError(_NOT_FOUND.format(what="patch", name=item_id))
        return self._items(found, get_base_url(kwargs["request"]), kwargs["request"])[0]

    def item_collection(
        self,
        collection_id: str,
        bbox: Any = None,
        datetime: str | None = None,
        limit: int | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """A page of the collection's Items."""
        _check_collection(collection_id)
        request: Request = kwargs["request"]
        query = _query(bbox=bbox and list(bbox), datetime=datetime)
        return self._page(query, request, limit=limit, token=token, fields=None, body=None)

    def get_search(
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
        filter_ = kwargs.get("filter_expr")
        if filter_ and kwargs.get("filter_lang") == "cql2-json":
            filter_ = _parsed(filter_, "filter")
        if isinstance(intersects, str):
            intersects = _parsed(intersects, "intersects")
        query = _query(
            ids=ids,
            bbox=bbox and list(bbox),
            intersects=intersects,
            datetime=datetime,
            cql2=filter_,
            sortby=kwargs.get("sortby"),
        )
        wanted = None
        if "fields" in kwargs["request"].query_params:
            names = kwargs.get("fields") or []
            include = {name.lstrip("+ ") for name in names if not name.startswith("-")}
            exclude = {name[1:] for name in names if name.startswith("-")}
            wanted = _fields(include, exclude, whole=bool(exclude))
        return self._page(
            query,
            kwargs["request"],
            limit=limit,
            token=kwargs.get("token"),
            fields=wanted,
            body=None,
            collections=collections,
        )

    def post_search(self, search_request: Any, **kwargs: Any) -> Any:
        """A page of a search, from a JSON body."""
        body = search_request.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        query = _query(
            ids=body.get("ids"),
            bbox=body.get("bbox"),
            intersects=body.get("intersects"),
            datetime=body.get("datetime"),
            cql2=body.get("filter"),
            sortby=[("-" if s["direction"] == "desc" else "") + s["field"] for s in body.get("sortby", ())],
        )
        wanted = None
        if "fields" in search_request.model_fields_set:
            given = search_request.fields.model_dump(exclude_unset=True)
            body["fields"] = {name: sorted(values or ()) for name, values in given.items()}
            include, exclude = set(given.get("include") or ()), set(given.get("exclude") or ())
            whole = bool(exclude) and "include" not in given
            wanted = _fields(include, exclude, whole=whole)
        return self._page(
            query,
            kwargs["request"],
            limit=body.get("limit"),
            token=body.get("token"),
            fields=wanted,
            body=body,
            collections=body.get("collections"),
        )

    # -- what the routes share -----------------------------------------------------------------------

    def _page(
        self,
        query: Query,
        request: Request,
        *,
        limit: int | None,
        token: str | None,
        fields: _Fields | None,
        body: Mapping[str, Any] | None,
        collections: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        elsewhere = collections and COLLECTION_ID not in collections
        rows = np.empty(0, np.int64) if elsewhere else self._rows(query)
        start = _position(token, len(rows))
        end = start + min(limit or 10, MAX_LIMIT)
        base = get_base_url(request)
        selection = Selection(self.dataset, self.dataset.patch_table, rows[start:end])
        items = self._items(selection, base, request)
        if fields is not None:
            items = [_with_fields(item, fields) for item in items]
        links = [_link("root", base), _link("self", str(request.url), "application/geo+json")]
        if request.url.path.endswith("/items"):
            links.append(_link("collection", f"{base}collections/{COLLECTION_ID}"))
        for rel, position in (("next", end), ("previous", max(0, start - (end - start)))):
            if (rel == "next" and position < len(rows)) or (rel == "previous" and start > 0):
                links.append(_page_link(rel, position, request, body))
        return {
            "type": "FeatureCollection",
            "features": items,
            "links": links,
            "numberMatched": len(rows),
            "numberReturned": len(items),
        }

    def _rows(self, query: Query) -> NDArray[np.int64]:
        key = json.dumps(query.given(), sort_keys=True)
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        search = self._searches.submit(self.dataset.select, query)
        try:
            rows = search.result(timeout=MAX_SEARCH_S).rows
        except FutureTimeout:
            search.cancel()
            text = f"the search took more than {MAX_SEARCH_S:g} s: take a simpler filter or area, or come again later"
            raise HTTPException(503, text, headers={"Retry-After": "60"}) from None
        except (TypeError, ValueError) as error:
            raise InvalidQueryParameter(str(error)) from error
        with self._lock:
            self._results[key] = rows
            while len(self._results) > _CACHED_RESULTS:
                self._results.popitem(last=False)
        return rows

    def _items(self, selection: Selection, base: str, request: Request) -> list[dict[str, Any]]:
        where = self.dataset.store.s3_location
        items = list(patch_items(selection.to_arrow(), self._assets_url(request), where))
        collection = f"{base}collections/{COLLECTION_ID}"
        for item in items:
            item["links"] = [
                _link("self", f"{collection}/items/{item['id']}", "application/geo+json"),
                _link("root", base),
                _link("parent", collection),
                _link("collection", collection),
            ]
        return items

    def _assets_url(self, request: Request) -> str:
        if self.dataset.store.is_local:
            return f"{get_base_url(request)}root"
        return self.dataset.url

    def _collection(self, base: str, request: Request) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(
            bytes(self.dataset.store.get(f"{COLLECTION_ID}/collection.json"))
        )
        here = f"{base}collections/{COLLECTION_ID}"
        kept = {"license", "cite-as", "about"}
        document["links"] = [
            _link("self", here),
            _link("root", base),
            _link("parent", base),
            _link("items", f"{here}/items", "application/geo+json"),
            _link(
                "http://www.opengis.net/def/rel/ogc/1.0/queryables",
                f"{base}queryables",
                "application/schema+json",
            ),
            *(link for link in document["links"] if link["rel"] in kept),
        ]
        for asset in document.get("assets", {}).values():
            path = (
                asset["href"].removeprefix("../")
                if asset["href"].startswith("../")
                else (f"{COLLECTION_ID}/{asset['href'].removeprefix('./')}")
            )
            asset["href"] = f"{self._assets_url(request)}/{path}"
        where = self.dataset.store.s3_location
        if where is not None:
            add_storage(document, document, where)
        return document


@attr.s
class _Queryables(BaseFiltersClient):
    countries: list[str] = attr.ib(kw_only=True)

    def get_queryables(self, collection_id: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """What a filter may name: the same in every collection, there is one."""
        del collection_id
        text = {"type": "string"}
        time = {"type": "string", "format": "date-time"}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": f"{get_base_url(kwargs['request'])}queryables",
            "type": "object",
            "title": "Queryables of BigEarthNet v2.0",
            "additionalProperties": False,
            "properties": {
                "id": {"title": "Patch", **text},
                "collection": {"title": "Collection", **text},
                "geometry": {"title": "Footprint", "$ref": "https://geojson.org/schema/Polygon.json"},
                "datetime": {"title": "Sentinel-2 acquisition", **time},
                "platform": {"title": "Satellite", "enum": ["sentinel-2a", "sentinel-2b"]},
                "grid:code": {"title": "MGRS square", **text},
                "proj:code": {"title": "UTM zone", **text},
                "reben:labels": {"title": "Labels", "type": "array", "items": {"enum": list(CLASSES)}},
                "reben:split": {"title": "Split", "enum": list(SPLITS)},
                "reben:country": {"title": "Country", "enum": list(self.countries)},
                "reben:product": {"title": "Sentinel-2 product", **text},
                "reben:s1_datetime": {"title": "Sentinel-1 acquisition", **time},
                "reben:s1_name": {"title": "Sentinel-1 patch", **text},
                "reben:contains_seasonal_snow": {"title": "Snow", "type": "boolean"},
                "reben:contains_cloud_or_shadow": {"title": "Cloud or shadow", "type": "boolean"},
            },
        }


def _query(
    *,
    bbox: Sequence[float] | None = None,
    intersects: Mapping[str, Any] | None = None,
    datetime: str | None = None,
    ids: Sequence[str] | None = None,
    cql2: str | Mapping[str, Any] | None = None,
    sortby: Sequence[str] | None = None,
) -> Query:
    """What a request asks for. To STAC an empty value is none, and an id that is not there is no error."""
    if bbox and intersects:
        raise InvalidQueryParameter("give bbox or intersects, not both")
    return Query(
        bbox=bbox or None,
        intersects=intersects or None,
        datetime=datetime or None,
        ids=ids or None,
        missing_ok=True,
        cql2=cql2 or None,
        sortby=[_plain_field(field) for field in sortby or ()] or None,
    )


def _check_collection(collection_id: str) -> None:
    if collection_id != COLLECTION_ID:
        raise NotFoundError(_NOT_FOUND.format(what="collection", name=collection_id))


_TITLES = {
    "self": "This document",
    "root": "BigEarthNet v2.0 (reBEN)",
    "parent": "BigEarthNet v2.0 (reBEN)",
    "collection": "BigEarthNet v2.0 (reBEN)",
    "items": "Patches",
    "next": "Next page",
    "previous": "Previous page",
    "http://www.opengis.net/def/rel/ogc/1.0/queryables": "What a filter may name",
}


def _link(rel: str, href: str, kind: str = "application/json") -> dict[str, Any]:
    return {"rel": rel, "href": href, "type": kind, "title": _TITLES[rel]}


def _page_link(rel: str, position: int, request: Request, body: Mapping[str, Any] | None) -> dict[str, Any]:
    if body is not None:
        link = _link(rel, str(request.url), "application/geo+json")
        return {**link, "method": "POST", "body": {**body, "token": str(position)}}
    parameters = [(k, v) for k, v in request.query_params.multi_items() if k != "token"]
    href = f"{request.url.replace(query='')}?{urlencode([*parameters, ('token', position)])}"
    return {**_link(rel, href, "application/geo+json"), "method": "GET"}


def _position(token: str | None, count: int) -> int:
    if token is None:
        return 0
    if not token.isdecimal() or int(token) > count:
        raise InvalidQueryParameter(f"token {token[:40]!r} is none of this search")
    return int(token)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidQueryParameter(f"{what} is no JSON: {error}") from error


def _plain_field(field: str) -> str:
    sign = "-" if field.startswith("-") else ""
    return sign + field.lstrip("+-").removeprefix("properties.")


class _Fields(NamedTuple):
    """What a client wants of each Item; nested names have a dot."""

    include: set[str] | frozenset[str] | None
    """Nothing but these; None: everything."""
    exclude: set[str]
    """Not these; a field that is in both is included."""


_DEFAULT_FIELDS = frozenset(
    ("type", "stac_version", "id", "geometry", "bbox", "links", "assets", "properties.datetime")
)
"""What the fields extension recommends when `fields` names nothing to include."""

_ALWAYS = frozenset(("type", "stac_version", "id", "collection"))
"""Short and there whatever is asked for, as the extension allows: what makes an answer a STAC Item of something."""


def _fields(include: set[str], exclude: set[str], *, whole: bool) -> _Fields:
    """What is wanted; when nothing is included, `whole` Items or what the extension recommends, less `exclude`."""
    return _Fields(include or (None if whole else _DEFAULT_FIELDS - exclude), exclude)


def _with_fields(item: dict[str, Any], fields: _Fields) -> dict[str, Any]:
    """The fields extension."""
    include = fields.include
    exclude = fields.exclude - (include or set()) - _ALWAYS
    found = {
        name: value
        for name, value in item.items()
        if name not in exclude and (include is None or name in include or name in _ALWAYS)
    }
    nested = _nested(include or ())
    if nested and "properties" not in found:
        found["properties"] = {name: value for name, value in item["properties"].items() if name in nested}
    if "properties" in found and (dropped := _nested(exclude)):
        found["properties"] = {
            name: value for name, value in found["properties"].items() if name not in dropped
        }
    return found


def _nested(names: Iterable[str]) -> set[str]:
    return {name.split(".", 1)[1] for name in names if name.startswith("properties.")}
