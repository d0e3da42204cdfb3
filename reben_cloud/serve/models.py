"""What requests may hold, by type alone: what a value means is checked where it is used, the same for GET and POST.

stac-fastapi's own models parse boxes, times and shapes themselves, each method in another way, and shapes so slowly
that a body of many corners would keep everyone waiting.
"""

# No future annotations: FastAPI reads these types from the classes that attrs makes.

import re
from typing import Annotated, Any, Literal

import attr
from fastapi import Query
from pydantic import BaseModel, Field, PositiveInt, model_validator
from stac_fastapi.types.search import APIRequest, BaseSearchGetRequest

MAX_LIMIT = 1_000
"""Most Items on a page; a larger limit gets this."""

Limit = Annotated[
    PositiveInt | None, Query(description=f"Items on a page; more than {MAX_LIMIT:,} are {MAX_LIMIT:,}.")
]
Box = Annotated[
    str | None,
    Query(
        description="West, south, east, north in degrees; west > east goes over the antimeridian.",
        openapi_examples={"Lisbon": {"value": "-9.3,38.6,-9,38.9"}},
    ),
]
Datetime = Annotated[
    str | None,
    Query(
        description="An RFC 3339 time, or two with a slash between; .. or nothing for an open end.",
        openapi_examples={"a summer": {"value": "2017-06-01T00:00:00Z/2017-08-31T23:59:59Z"}},
    ),
]


@attr.s
class SearchParameters(BaseSearchGetRequest):
    """Parameters of ``GET /search``."""

    bbox: Box = attr.ib(default=None)  # type: ignore[assignment]  # it is parsed later
    datetime: Datetime = attr.ib(default=None)
    limit: Limit = attr.ib(default=10)


@attr.s
class ItemsParameters(APIRequest):
    """Parameters of ``GET /collections/{collection_id}/items``."""

    collection_id: str = attr.ib()
    bbox: Box = attr.ib(default=None)
    datetime: Datetime = attr.ib(default=None)
    limit: Limit = attr.ib(default=10)


class SearchBody(BaseModel):
    """Body of ``POST /search``."""

    collections: list[str] | None = None
    ids: list[str] | None = None
    bbox: list[float] | None = Field(None, description="West, south, east, north in degrees.")
    intersects: dict[str, Any] | None = Field(None, description="A GeoJSON geometry in degrees.")
    datetime: str | None = Field(None, description="As of GET.")
    limit: PositiveInt | None = 10

    @model_validator(mode="before")
    @classmethod
    def _forgive(cls, body: Any) -> Any:
        """A single collection needs no list; ``fields`` must not be null."""
        if not isinstance(body, dict):
            return body
        if "fields" in body and body["fields"] is None:
            raise ValueError("fields must not be null")
        if isinstance(body.get("collections"), str):
            return {**body, "collections": [body["collections"]]}
        return body


class FilterBody(BaseModel):
    """What the filter extension adds to the body."""

    filter_expr: dict[str, Any] | str | None = Field(
        None, alias="filter", description="A CQL2 filter, JSON or text."
    )
    filter_crs: str | None = Field(None, alias="filter-crs", description="CRS84, or nothing.")
    filter_lang: Literal["cql2-json", "cql2-text"] | None = Field(
        None, alias="filter-lang", description="cql2-text for a string, cql2-json for an object."
    )


_TIME = re.compile(r"\d{4}-\d\d-\d\dt\d\d:\d\d:\d\d([.]\d+)?(z|[-+]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def check_times(text: str) -> None:
    """Refuse what is not ``datetime`` of a STAC API, which is narrower than that of `Dataset.search`.

    Raises:
        ValueError: If it is neither a time of RFC 3339, section 5.6, nor an interval of two.
    """
    ends = text.split("/")
    open_ends = ("", "..") if len(ends) == 2 else ()
    if len(ends) > 2 or not all(end in open_ends or _TIME.fullmatch(end) for end in ends):
        raise ValueError(
            f"datetime must be a time such as 2017-06-13T10:10:31Z, or two with a slash between and .. for an open "
            f"end, got {text[:40]!r}"
        )
