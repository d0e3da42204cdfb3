"""The rows that a search finds, within a limit of time, and kept for the next page.

A root never changes, so a result stays good for ever.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray
from stac_fastapi.types.errors import InvalidQueryParameter

from reben_cloud.bigearthnet.about import about
from reben_cloud.root.dataset import Dataset
from reben_cloud.search import known_ids

MAX_SEARCH_S = 20.0
"""Longest that a search may take; then the answer is 503. All patches by a usual filter take 0.1 s."""

_CACHED_RESULTS = 64
"""Results kept as row numbers, at most 4.4 MB each, so that the next page costs no search."""

_RUNNING_SEARCHES = max(2, os.cpu_count() or 1)
"""Searches at a time. One that takes too long cannot be stopped, but others find a thread."""


class Results:
    """Searches of a dataset; safe to use from many threads."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._kept: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()
        self._searches = ThreadPoolExecutor(_RUNNING_SEARCHES, thread_name_prefix="search")

    def rows(self, query: dict[str, Any]) -> NDArray[np.int64]:
        """The rows that fit, int64 (n,).

        Args:
            query: Options of `Dataset.search`; also ``collections``, and ``sortby`` with STAC's names.

        Raises:
            InvalidQueryParameter: If an option cannot be understood.
            HTTPException: 503 if it takes longer than `MAX_SEARCH_S`.
        """
        query = {name: value for name, value in query.items() if value}
        key = json.dumps(query, sort_keys=True)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        rows = self._search(query)
        with self._lock:
            self._kept[key] = rows
            while len(self._kept) > _CACHED_RESULTS:
                self._kept.popitem(last=False)
        return rows

    def _search(self, query: dict[str, Any]) -> NDArray[np.int64]:
        if query.get("bbox") and query.get("intersects"):
            raise InvalidQueryParameter("give bbox or intersects, not both")
        collections = query.pop("collections", None)
        if collections and about(self.dataset.schema).collection not in collections:
            return np.empty(0, np.int64)
        if "ids" in query:
            query["ids"] = known_ids(self.dataset, query["ids"])  # an Item has no other name
        sort = [_plain_field(field) for field in query.pop("sortby", ())]
        search = self._searches.submit(self.dataset.search, **query, sortby=sort or None)
        try:
            return search.result(timeout=MAX_SEARCH_S).rows
        except FutureTimeout:
            search.cancel()
            text = f"the search took more than {MAX_SEARCH_S:g} s: take a simpler filter or area, or come again later"
            raise HTTPException(503, text, headers={"Retry-After": "60"}) from None
        except (TypeError, ValueError) as error:
            raise InvalidQueryParameter(str(error)) from error


def _plain_field(field: str) -> str:
    sign = "-" if field.startswith("-") else ""
    return sign + field.lstrip("+-").removeprefix("properties.")
