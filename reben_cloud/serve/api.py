"""STAC API: core, collections, features, item search; filter, sort, fields, paging by token.

stac-fastapi has the routes and models, `Dataset.search` the answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

from fastapi import FastAPI, Query, Request
from stac_fastapi.api.app import StacApi
from stac_fastapi.api.models import create_get_request_model, create_post_request_model, create_request_model
from stac_fastapi.extensions.fields import FieldsExtension
from stac_fastapi.extensions.filter import FilterConformanceClasses, FilterExtension
from stac_fastapi.extensions.pagination import TokenPaginationExtension
from stac_fastapi.extensions.sort import SearchSortExtension
from stac_fastapi.types.config import ApiSettings
from stac_fastapi.types.search import APIRequest
from starlette.middleware import Middleware
from starlette.staticfiles import StaticFiles

from reben_cloud import __version__
from reben_cloud.bigearthnet.about import about
from reben_cloud.root.dataset import Dataset
from reben_cloud.serve.answers import LastResort, add_error_answers
from reben_cloud.serve.apart import Apart, Relay
from reben_cloud.serve.body_limit import HeadAsGet
from reben_cloud.serve.client import Client
from reben_cloud.serve.compression import Compression
from reben_cloud.serve.models import MAX_LIMIT, FilterBody, ItemsParameters, SearchBody, SearchParameters
from reben_cloud.serve.nearest import Nearest
from reben_cloud.serve.place import Placed
from reben_cloud.serve.queryables import Queryables
from reben_cloud.serve.results import Results

_FILTER_CLASSES = [
    FilterConformanceClasses.FILTER,
    FilterConformanceClasses.SEARCH,
    FilterConformanceClasses.ITEMS,
    FilterConformanceClasses.CQL2_TEXT,
    FilterConformanceClasses.CQL2_JSON,
    FilterConformanceClasses.BASIC_CQL2,
    FilterConformanceClasses.ADVANCED_COMPARISON_OPERATORS,
    FilterConformanceClasses.CASE_INSENSITIVE_COMPARISON,
    FilterConformanceClasses.ACCENT_INSENSITIVE_COMPARISON,
    FilterConformanceClasses.BASIC_SPATIAL_FUNCTIONS,
    FilterConformanceClasses.BASIC_SPATIAL_FUNCTIONS_PLUS,
    FilterConformanceClasses.SPATIAL_FUNCTIONS,
    FilterConformanceClasses.TEMPORAL_FUNCTIONS,
    FilterConformanceClasses.ARRAY_FUNCTIONS,
    FilterConformanceClasses.PROPERTY_PROPERTY,
    FilterConformanceClasses.ARITHMETIC,
]
"""What works of the filter extension and CQL2; functions of one's own do not."""


def create_api(dataset: Dataset, nearest: Nearest, results: Results, apart: Apart | None) -> FastAPI:
    """The STAC API of a dataset, and beside it the Items nearest to one, where there are embeddings.

    Args:
        dataset: The dataset.
        nearest: Finds the nearest.
        results: Searches.
        apart: Answers what is costly; None to do so here.
    """
    facts = about(dataset.schema)
    filters = FilterExtension(
        client=Queryables(dataset=dataset), conformance_classes=[str(one) for one in _FILTER_CLASSES]
    )
    filters.POST = FilterBody
    extensions = [
        filters,
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
        stac_fastapi_description=f"{len(dataset):,} patches as STAC Items",
        stac_fastapi_landing_id=facts.id,
        stac_fastapi_version=__version__,
        enable_response_models=False,
        openapi_url="/api",
        docs_url="/api.html",
    )

    @asynccontextmanager
    async def searching(_: FastAPI) -> AsyncIterator[None]:
        yield
        results.close()

    client = Client(
        extensions=extensions,
        dataset=dataset,
        nearest=nearest,
        results=results,
        landing_page_id=facts.id,
        title=settings.stac_fastapi_title,
        description=settings.stac_fastapi_description,
    )
    api = StacApi(
        settings=settings,
        client=client,
        extensions=extensions,
        app=FastAPI(
            openapi_url=settings.openapi_url,
            docs_url=settings.docs_url,
            redoc_url=None,
            title=settings.stac_fastapi_title,
            version=__version__,
            description=settings.stac_fastapi_description,
            lifespan=searching,
        ),
        search_get_request_model=create_get_request_model(extensions, base_model=SearchParameters),
        search_post_request_model=create_post_request_model(extensions, base_model=SearchBody),
        items_get_request_model=cast(
            type[APIRequest],
            create_request_model(
                "ItemsParameters",
                base_model=ItemsParameters,
                extensions=[filters, TokenPaginationExtension()],
            ),
        ),
        # The last one is the outermost.
        middlewares=[
            Middleware(Placed),
            *([] if apart is None else [Middleware(Relay, apart=apart)]),
            Middleware(LastResort),
            Middleware(Compression),
            Middleware(HeadAsGet),
        ],
    )
    app: FastAPI = api.app
    add_error_answers(app, dataset)

    @app.get("/collections/{collection_id}/items/{item_id}/nearest", tags=["STAC API - Core"])
    async def nearest_items(
        collection_id: str,
        item_id: str,
        request: Request,
        column: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 10,
    ) -> dict[str, Any]:
        return await client.nearest_items(collection_id, item_id, request, column=column, limit=limit)

    folder = dataset.store.local_path()
    if folder is not None:
        # So that the assets of a local root can be had over HTTP like those of a bucket.
        app.mount("/root", StaticFiles(directory=folder), name="root")
    for name, layer in dataset.layers.items():
        if (folder := layer.store.local_path()) is not None:
            app.mount(f"/layers/{name}", StaticFiles(directory=folder), name=f"layer {name}")
    return app
