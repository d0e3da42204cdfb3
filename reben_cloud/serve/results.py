"""The rows that a search finds: within a limit of time, once for all who ask, and kept for the next page.

A root never changes, so a result stays good for ever.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from fastapi import HTTPException
from stac_fastapi.types.errors import InvalidQueryParameter

from reben_cloud.bigearthnet.about import about
from reben_cloud.errors import ChecksumError, RebenError
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.query import Query
from reben_cloud.search import cql, find_rows, known_ids
from reben_cloud.search.arguments import parse_geometry
from reben_cloud.search.shapes import Between
from reben_cloud.serve.answers import REFUSED_AFTER_S
from reben_cloud.serve.apart import CostlyError
from reben_cloud.serve.cost import SHORT_S, check_corners, expected_s
from reben_cloud.serve.lanes import MAX_SEARCH_S, BusyError, GivenUpError, Lanes, Rows, Search
from reben_cloud.serve.models import check_times

_KEPT_BYTES = 1 << 25
"""Bytes of queries and row numbers that are kept, so that the next page costs no search; all patches are 4.4 MB."""

_ENTRY_BYTES = 500
"""What the objects around a query and its rows take, about."""

_MANY_CORNERS = 100
"""Corners of shapes that are not made while there is no place for a long search."""

_LOOK_S = 0.2
"""How often it is looked whether a client still waits."""


class Results:
    """Searches of a dataset; safe to use from many threads.

    Args:
        dataset: The dataset.
        pass_on: Whether another process makes what is costly.
    """

    def __init__(self, dataset: Dataset, *, pass_on: bool = False) -> None:
        self.dataset = dataset
        self._pass_on = pass_on
        self.lanes = Lanes(pass_on=pass_on)
        """Where the searches run."""
        self._kept: OrderedDict[str, Rows] = OrderedDict()
        self._kept_bytes = 0
        self._running: dict[str, Search] = {}
        self._lock = threading.Lock()

    async def found(self, query: dict[str, Any], is_gone: Callable[[], Awaitable[bool]]) -> Rows:
        """The rows that fit, int64 (n,). No thread waits for them, and the search ends soon after the client is gone.

        Args:
            query: Options of `Dataset.search`; also ``collections``, and ``sortby`` with STAC's names.
            is_gone: Whether the client has hung up.

        Raises:
            InvalidQueryParameter: If an option cannot be understood.
            HTTPException: 503 if it takes longer than `MAX_SEARCH_S`, or too many wait; 499 if the client is gone.
            CostlyError: If it takes long, and another process makes what does.
        """
        try:
            with _refusing():
                found = await asyncio.to_thread(self._join, query)
                if not isinstance(found, Search):
                    return found
                try:
                    return await _outcome(found, is_gone)
                finally:
                    self._leave(found)
        except HTTPException as error:
            if error.status_code == 503:
                await asyncio.sleep(REFUSED_AFTER_S)
            raise

    def costly(self) -> None:
        """To be called before what is costly is done.

        Raises:
            CostlyError: If another process does it.
        """
        if self._pass_on:
            raise CostlyError

    def close(self) -> None:
        """Start no more searches, and let those that run end."""
        self.lanes.close()
        with self._lock:
            for search in self._running.values():
                search.waiting = 0

    def _join(self, query: Mapping[str, Any]) -> Rows | Search:
        """What is known already, or a search that goes on until all have left it."""
        query = {name: value for name, value in query.items() if value not in (None, [], "")}
        if "bbox" in query and "intersects" in query:
            raise ValueError("give bbox or intersects, not both")
        collections = query.pop("collections", None)
        if collections and about(self.dataset.schema).collection not in collections:
            return np.empty(0, np.int64)
        corners = check_corners([query.get("intersects"), query.get("cql2")])
        key = json.dumps(query, sort_keys=True)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            if (running := self._running.get(key)) is not None:
                running.waiting += 1
                return running
        if corners > _MANY_CORNERS and self.lanes.is_full:
            raise BusyError  # before the shape is made: it would be in vain, and takes as long as a short search
        query = _understood(query)
        search = Search(
            key,
            lambda between: self._find(query, between),
            is_long=expected_s(self.dataset, query) > SHORT_S,
        )
        with self._lock:
            running = self._running.setdefault(key, search)
            running.waiting += 1
        if running is search:
            search.future.add_done_callback(lambda _: self._keep(search))
            try:
                self.lanes.start(search)
            except (BusyError, CostlyError) as error:
                search.future.set_exception(error)  # for all who have joined it meanwhile
        return running

    def _leave(self, search: Search) -> None:
        with self._lock:
            search.waiting -= 1
            if search.waiting <= 0:
                self._forget(search)

    def _forget(self, search: Search) -> None:
        if self._running.get(search.key) is search:
            del self._running[search.key]

    def _keep(self, search: Search) -> None:
        with self._lock:
            self._forget(search)
            if search.future.exception() is not None or search.key in self._kept:
                return
            self._kept[search.key] = rows = search.future.result()
            self._kept_bytes += _kept_bytes(search.key, rows)
            while self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= _kept_bytes(*self._kept.popitem(last=False))

    def _find(self, query: Mapping[str, Any], between: Between) -> Rows:
        if "ids" in query:  # an Item has no other name
            query = {**query, "ids": known_ids(self.dataset, query["ids"])}
        return find_rows(self.dataset, Query(**query), between=between)


def _kept_bytes(key: str, rows: Rows) -> int:
    """Memory of a result: a query may be a body of a megabyte that finds nothing."""
    return len(key) + rows.nbytes + _ENTRY_BYTES


async def _outcome(search: Search, is_gone: Callable[[], Awaitable[bool]]) -> Rows:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(ended.set)

    search.future.add_done_callback(tell)
    while not search.future.done():
        if search.left_s < 0:
            raise GivenUpError
        if await is_gone():
            raise HTTPException(499, "the client is gone")
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _LOOK_S)
    return search.future.result()


@contextmanager
def _refusing() -> Iterator[None]:
    """Errors of a search as answers."""
    try:
        yield
    except (FutureTimeout, GivenUpError, CancelledError):
        text = f"the search took more than {MAX_SEARCH_S:g} s: take a simpler filter or area, or come again later"
        raise HTTPException(503, text, headers={"Retry-After": "60"}) from None
    except BusyError:
        text = "too many searches that take long wait already: take a simpler filter or area, or come again later"
        raise HTTPException(503, text, headers={"Retry-After": "10"}) from None
    except RecursionError:
        raise InvalidQueryParameter("it has more objects and lists in each other than can be read") from None
    except RebenError as error:
        if isinstance(error, ChecksumError) or not isinstance(error, ValueError | LookupError):
            raise
        raise InvalidQueryParameter(str(error)) from error
    except (TypeError, ValueError) as error:
        raise InvalidQueryParameter(str(error)) from error


def _understood(query: Mapping[str, Any]) -> dict[str, Any]:
    """A query with its filter and shape parsed, as `find_rows` takes it."""
    query = {**query, "sortby": [_plain_field(field) for field in query.get("sortby", ())] or None}
    if "datetime" in query:
        check_times(query["datetime"])
    if "cql2" in query:
        query["cql2"] = cql.parse(query["cql2"])
        check_corners(query["cql2"])  # of text they can be counted only now
    if "intersects" in query:
        query["intersects"] = parse_geometry(query["intersects"])
    return query


def _plain_field(field: str) -> str:
    sign = "-" if field.startswith("-") else ""
    return sign + field.lstrip("+-").removeprefix("properties.")
