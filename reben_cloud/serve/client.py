"""What the STAC API answers: the one collection, its Items, and pages of searches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attr
from fastapi import Request
from stac_fastapi.api.models import GeoJSONResponse
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
from reben_cloud.serve.fields import Fields, fields_of_body, fields_of_names, with_fields
from reben_cloud.serve.layers import list_layers, shown_columns
from reben_cloud.serve.links import Links, position_of
from reben_cloud.serve.nearest import Nearest
from reben_cloud.serve.results import Results
from reben_cloud.serve.tiffs import PATH, images_of

MAX_LIMIT = 1_000
"""Most Items on a page; a larger limit gets this."""


@attr.s
class Client(BaseCoreClient):
    """Answers from a dataset."""

    dataset: Dataset = attr.ib(kw_only=True)
    nearest: Nearest = attr.ib(kw_only=True)
    _results: Results = attr.ib(init=False)
    _images: Mapping[str, BandImage] = attr.ib(init=False)

    def __attrs_post_init__(self) -> None:
        self._results = Results(self.dataset)
        self._images = images_of(self.dataset)

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
            raise NotFoundError(f"no such patch: {item_id}")
        return self._items(found, kwargs["request"])[0]

    def nearest_items(
        self, collection_id: str, item_id: str, request: Request, *, column: str | None, limit: int
    ) -> dict[str, Any]:
        """The Items of the patches that are most like one, nearest first, each with its score."""
        self._check_collection(collection_id)
        found = self.nearest.to(item_id, column=column, k=limit)
        items = self._items(found.selection, request)
        for item, score in zip(items, found.scores.tolist(), strict=True):
            item["properties"][layout.column("score")] = score
        return {
            "type": "FeatureCollection",
            "features": items,
            "links": self._links(request).of_collections(),
            "numberReturned": len(items),
        }

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
        self._check_collection(collection_id)
        request: Request = kwargs["request"]
        query = {"bbox": bbox and list(bbox), "datetime": datetime}
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
        query = {
            "collections": collections,
            "ids": ids,
            "bbox": bbox and list(bbox),
            "intersects": intersects,
            "datetime": datetime,
            "cql2": filter_,
            "sortby": kwargs.get("sortby"),
        }
        wanted = None
        if "fields" in kwargs["request"].query_params:
            wanted = fields_of_names(kwargs.get("fields") or [])
        return self._page(
            query, kwargs["request"], limit=limit, token=kwargs.get("token"), fields=wanted, body=None
        )

    def post_search(self, search_request: Any, **kwargs: Any) -> Any:
        """A page of a search, from a JSON body."""
        body = search_request.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        query = {
            "collections": body.get("collections"),
            "ids": body.get("ids"),
            "bbox": body.get("bbox"),
            "intersects": body.get("intersects"),
            "datetime": body.get("datetime"),
            "cql2": body.get("filter"),
            "sortby": [
                ("-" if s["direction"] == "desc" else "") + s["field"] for s in body.get("sortby", ())
            ],
        }
        wanted = None
        if "fields" in search_request.model_fields_set:
            given = search_request.fields.model_dump(exclude_unset=True)
            body["fields"] = {name: sorted(values or ()) for name, values in given.items()}
            wanted = fields_of_body(given)
        return self._page(
            query,
            kwargs["request"],
            limit=body.get("limit"),
            token=body.get("token"),
            fields=wanted,
            body=body,
        )

    # -- what the routes share -----------------------------------------------------------------------

    def _links(self, request: Request) -> Links:
        return Links(get_base_url(request), self.title, self._collection_id)

    def _page(
        self,
        query: Mapping[str, object],
        request: Request,
        *,
        limit: int | None,
        token: str | None,
        fields: Fields | None,
        body: Mapping[str, object] | None,
    ) -> Response:
        rows = self._results.rows(dict(query))
        start = position_of(token, len(rows))
        end = start + min(limit or 10, MAX_LIMIT)
        selection = Selection(self.dataset, self.dataset.patch_table, rows[start:end])
        items = self._items(selection, request)
        if fields is not None:
            items = [with_fields(item, fields) for item in items]
        page = {
            "type": "FeatureCollection",
            "features": items,
            "links": self._links(request).of_page(request, start, end, len(rows), body),
            "numberMatched": len(rows),
            "numberReturned": len(items),
        }
        # Made here, in a thread: FastAPI would look at each value first, in the loop that all requests share.
        return GeoJSONResponse(page)

    def _items(self, selection: Selection, request: Request) -> list[dict[str, Any]]:
        where = self.dataset.store.s3_location
        layers = self._layers(request)
        columns = selection.columns(shown_columns(self.dataset))
        items = list(patch_items(columns, self._assets_url(request), where, layers))
        links = self._links(request)
        for item in items:
            item["links"] = links.of_item(item["id"])
            add_band_images(item, self._images, f"{get_base_url(request)}{PATH}")
        return items

    def _assets_url(self, request: Request) -> str:
        if self.dataset.store.is_local:
            return f"{get_base_url(request)}root"
        return self.dataset.url

    def _layers(self, request: Request) -> list[PlacedLayer]:
        base = get_base_url(request)
        return [
            PlacedLayer(layer, f"{base}layers/{name}" if layer.store.is_local else layer.url)
            for name, layer in self.dataset.layers.items()
        ]

    def _collection(self, request: Request) -> dict[str, Any]:
        document = dataset_document(self.dataset, url=self._assets_url(request), layers=self._layers(request))
        kept = {"license", "cite-as", "about"}
        document["links"] = [
            *self._links(request).of_collection(),
            *(link for link in document["links"] if link["rel"] in kept),
        ]
        document.setdefault("item_assets", {}).update(band_definitions(self._images))
        if layers := list_layers(self.dataset):
            document[layout.column("layers")] = layers
        return document

    @property
    def _collection_id(self) -> str:
        return about(self.dataset.schema).collection

    def _check_collection(self, collection_id: str) -> None:
        if collection_id != self._collection_id:
            raise NotFoundError(f"no such collection: {collection_id}")


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidQueryParameter(f"{what} is not JSON: {error}") from error
