"""STAC API: core, collections, features, item search; filter, sort, fields, paging by token.

stac-fastapi has the routes and models, `Dataset.search` the answers.
"""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import FastAPI, Query, Request
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
from stac_fastapi.extensions.pagination import TokenPaginationExtension
from stac_fastapi.extensions.sort import SearchSortExtension
from stac_fastapi.types.config import ApiSettings
from stac_fastapi.types.search import APIRequest, BaseSearchPostRequest
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from reben_cloud import __version__
from reben_cloud.bigearthnet.about import about
from reben_cloud.root.dataset import Dataset
from reben_cloud.serve.body_limit import MAX_BODY_BYTES, BodyLimit
from reben_cloud.serve.client import MAX_LIMIT, Client
from reben_cloud.serve.compression import Compression
from reben_cloud.serve.nearest import Nearest
from reben_cloud.serve.queryables import Queryables


def create_api(dataset: Dataset, nearest: Nearest) -> FastAPI:
    """The STAC API of a dataset, and beside it the Items nearest to one, where there are embeddings."""
    facts = about(dataset.schema)
    extensions = [
        SearchFilterExtension(client=Queryables(dataset=dataset)),
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
        stac_fastapi_title=facts.title,
        stac_fastapi_description=f"{len(dataset):,} patches; STAC Items of {dataset.url}",
        stac_fastapi_landing_id=facts.id,
        stac_fastapi_version=__version__,
        enable_response_models=False,
        openapi_url="/api",
        docs_url="/api.html",
    )
    client = Client(
        extensions=extensions,
        dataset=dataset,
        nearest=nearest,
        landing_page_id=facts.id,
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
            Middleware(Compression),
            Middleware(
                CORSMiddleware, allow_origins=["*"], allow_methods=["GET", "POST"], allow_headers=["*"]
            ),
            Middleware(BodyLimit, max_bytes=MAX_BODY_BYTES),
        ],
    )
    app: FastAPI = api.app

    @app.get("/collections/{collection_id}/items/{item_id}/nearest", tags=["STAC API - Core"])
    def nearest_items(
        collection_id: str,
        item_id: str,
        request: Request,
        column: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 10,
    ) -> dict[str, Any]:
        return client.nearest_items(collection_id, item_id, request, column=column, limit=limit)

    folder = dataset.store.local_path()
    if folder is not None:
        # So that the assets of a local root can be had over HTTP like those of a bucket.
        app.mount("/root", StaticFiles(directory=folder), name="root")
    for name, layer in dataset.layers.items():
        if (folder := layer.store.local_path()) is not None:
            app.mount(f"/layers/{name}", StaticFiles(directory=folder), name=f"layer {name}")
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
