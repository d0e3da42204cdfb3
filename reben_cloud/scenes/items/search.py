"""Searches of a STAC API: what is asked for, all pages of what it finds, and why it finds nothing."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from itertools import islice
from typing import TYPE_CHECKING, Any

import pystac

from reben_cloud.build import Progress, silent
from reben_cloud.errors import (
    NotFoundError,
    RebenError,
    SourceError,
    StorageError,
    UnreachableError,
    missing_extra,
)
from reben_cloud.scenes.area import Degrees
from reben_cloud.search.arguments import parse_interval
from reben_cloud.store import mask, public_url

if TYPE_CHECKING:
    from pystac_client import Client

CLOUD_COVER = "eo:cloud_cover"
"""Property with the share of clouds, percent."""

_PAGE = 100
"""Items of a page."""

_TIMES = (5.0, 30.0)
"""Seconds to connect, and to be answered."""

_ATTEMPTS = 6
"""Of each request; the pauses between them double from half a second on."""

_WAY_OUT = "check the URL (--stac), the network and the proxy variables"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StacSearch:
    """What is searched for."""

    api: str
    """URL of the API's landing page."""
    collection: str
    """Id of the collection."""
    box: Degrees | None = None
    """West, south, east and north, degrees; Items that touch it are found."""
    datetime: str | None = None
    """A time, or a range ``A/B``; each may be a date, a month or a year."""
    max_cloud: float | None = None
    """Greatest `CLOUD_COVER`, percent."""
    max_items: int = 100
    """A search that finds more is refused: it is broader than was thought."""

    def __post_init__(self) -> None:
        if not self.api.startswith(("http://", "https://")):
            raise ValueError(f"--stac is the URL of an API (https://...), got {mask(self.api)!r}")
        if self.datetime is not None:
            parse_interval(self.datetime, "--datetime")
        if self.max_cloud is not None and not 0 <= self.max_cloud <= 100:
            raise ValueError(f"--max-cloud is a percentage in [0, 100], got {self.max_cloud:g}")
        if self.max_items < 1:
            raise ValueError(f"--max-items must be 1 or more, got {self.max_items}")

    @property
    def interval(self) -> str | None:
        """The time as APIs want it: RFC 3339 with a zone, both ends."""
        if self.datetime is None:
            return None
        ends = parse_interval(self.datetime, "--datetime")
        return "/".join(".." if end is None else f"{end.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" for end in ends)

    def __str__(self) -> str:
        said = [f"collection {self.collection}"]
        if self.box is not None:
            said.append(f"bbox {' '.join(f'{degrees:g}' for degrees in self.box)}")
        if self.datetime is not None:
            said.append(f"datetime {self.datetime}")
        if self.max_cloud is not None:
            said.append(f"at most {self.max_cloud:g} % clouds")
        return f"{public_url(self.api)}: {', '.join(said)}"


def find_items(
    search: StacSearch, *, progress: Progress = silent, may_be_none: bool = False
) -> list[pystac.Item]:
    """All Items that a search finds, sorted by id.

    Args:
        search: What is searched for.
        progress: Wraps the stream of Items.
        may_be_none: Whether to find nothing is no error.

    Raises:
        NotFoundError: If there is none, with the cause; or no such collection.
        SourceError: If there are more than the search allows, or an Item does not say how cloudy it is.
        StorageError: If the API refuses, or fails after its retries.
    """
    with _answering(search.api):
        client = _open(search.api)
        matched = _matched(client, search)
        most = search.max_items + 1
        what = f"search {search.collection}"
        stream = progress(islice(_items(client, search), most), min(matched or most, most), what)
        items = sorted(stream, key=lambda item: item.id)
        if len(items) > search.max_items:
            count = f"{matched:,}" if matched else f"more than {search.max_items:,}"
            raise SourceError(
                f"{search}: {count} Items, at most {search.max_items:,} are taken; narrow the search (--bbox, "
                "--datetime, --max-cloud) or raise --max-items"
            )
        if matched is not None and len(items) < matched:
            # No error: some APIs estimate how many there are.
            logger.warning("%s: the API counts %d Items and gives %d", search, matched, len(items))
        if not items and not may_be_none:
            raise NotFoundError(f"{search}: finds nothing; {_why(client, search)}")
        return items


def _open(api: str) -> Client:
    """A client that asks again after what passes, and not for ever."""
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO
    from urllib3.util.retry import Retry

    retries = Retry(total=_ATTEMPTS - 1, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    return Client.open(api, stac_io=StacApiIO(timeout=_TIMES, max_retries=retries))


@contextmanager
def _answering(api: str) -> Iterator[None]:
    """What goes wrong at an API becomes an error of this package."""
    try:
        from pystac_client.errors import ClientTypeError
        from pystac_client.exceptions import APIError
    except ImportError as error:
        raise missing_extra("pystac_client", "stac", error) from error
    where = public_url(api)
    try:
        with warnings.catch_warnings():
            # It warns of what an API does not say, such as how many Items there are.
            warnings.filterwarnings("ignore", module="pystac_client")
            yield
    except APIError as error:
        # Only what answers has a status; pystac-client wraps whatever else goes wrong in the same error.
        code = getattr(error, "status_code", None)
        status = f"status {code}: " if code else ""
        cause = mask(" ".join(str(error).split()))[:300]
        if code is None:
            raise UnreachableError(f"cannot search {where}: no answer ({cause}); {_WAY_OUT}") from error
        raise StorageError(
            f"cannot search {where}: {status}{cause}; check the URL (--stac) and what is searched for"
        ) from error
    except RebenError:
        raise
    except (ClientTypeError, pystac.STACError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{where}: what it answers is not STAC ({type(error).__name__}: {mask(str(error))[:200]}); --stac is the "
            "URL of the API's landing page, such as https://earth-search.aws.element84.com/v1"
        ) from error


def _found(client: Client, search: StacSearch, **more: Any) -> Any:
    """pystac-client's search: GET, which may be repeated; the API filters clouds where it can."""
    query = None
    if search.max_cloud is not None and client.conforms_to("QUERY"):
        query = {CLOUD_COVER: {"lte": search.max_cloud}}
    return client.search(
        method="GET", collections=[search.collection], bbox=search.box, datetime=search.interval, query=query,
        limit=_PAGE, **more,
    )  # fmt: skip


def _items(client: Client, search: StacSearch) -> Iterator[pystac.Item]:
    """Each Item once, whatever the pages repeat."""
    seen: set[str] = set()
    for page in _found(client, search).pages():
        new = [item for item in page if item.id not in seen]
        if not new:
            raise SourceError(
                f"{search}: after {len(seen):,} Items another page says the same again, so the API's pages do not "
                "end; narrow the search (--bbox, --datetime) until it fits one page"
            )
        for item in new:
            if item.id not in seen and (search.max_cloud is None or cloud_cover(item) <= search.max_cloud):
                yield item
            seen.add(item.id)


def _matched(client: Client, search: StacSearch) -> int | None:
    """How many there are, where the API says so and filters all by itself."""
    if not client.conforms_to("ITEM_SEARCH"):
        raise SourceError(
            f"{public_url(search.api)}: a STAC catalog without search; --stac is the URL of an API's landing page"
        )
    if search.max_cloud is not None and not client.conforms_to("QUERY"):
        return None
    found: int | None = _found(client, search).matched()
    return found


def cloud_cover(item: pystac.Item) -> float:
    """How cloudy an Item is, percent.

    Raises:
        SourceError: If it does not say.
    """
    value = item.properties.get(CLOUD_COVER)
    if not isinstance(value, int | float) or math.isnan(value):
        raise SourceError(
            f"Item {item.id}: no property {CLOUD_COVER} ({value!r}), which --max-cloud needs; search without it"
        )
    return float(value)


def _why(client: Client, search: StacSearch) -> str:
    """Which condition leaves nothing."""
    names = sorted(collection.id for collection in client.get_collections())
    if search.collection not in names:
        like = [name for name in names if search.collection.split("-")[0] in name] or names
        return f"there is no such collection; the API has {', '.join(like[:8])}{', ...' if len(like) > 8 else ''}"
    if search.max_cloud is not None:
        cloudy = replace(search, max_cloud=None)
        covers = [cloud_cover(item) for item in islice(_items(client, cloudy), search.max_items)]
        if covers:
            clearest = f"the clearest with {min(covers):.1f} %"
            return f"{len(covers):,} are there with more clouds, {clearest}; raise --max-cloud"
        search = cloudy
    for condition, option, loose in (
        (search.datetime, "--datetime", replace(search, datetime=None)),
        (search.box, "--bbox", replace(search, box=None)),
    ):
        if condition is not None and next(_items(client, loose), None) is not None:
            return f"without {option} there would be some"
    return "the collection has nothing at that place and time" if search.box else "the collection is empty"
