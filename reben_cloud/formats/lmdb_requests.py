"""Which pages of a file are read in one request: pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REQUEST_BYTES = 2**18
"""Most bytes of one request."""

GAP_BYTES = 2**15
"""A gap up to this is read through, as long as `GAP_SHARE` allows: a request costs about as much as these bytes
at 1 MB/s per thread and 30 ms per request, which is what hubs give."""

GAP_SHARE = 0.15
"""Bytes between pages that may be read with them, as a share of the pages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Pages that are read at once."""

    start: int
    """First byte."""
    nbytes: int
    positions: NDArray[np.int64]
    """Which of the pages that were asked for."""


def plan_requests(pages: NDArray[np.int64], page_bytes: int) -> list[Request]:
    """Join pages into requests of at most `REQUEST_BYTES`.

    Neighbours are joined always, and others across the smallest gaps first, while `GAP_BYTES` and `GAP_SHARE` allow.

    Args:
        pages: Numbers of the pages, in any order.
        page_bytes: Bytes of a page.
    """
    order = np.argsort(pages, kind="stable")
    numbers = pages[order]
    gaps = (np.diff(numbers) - 1) * page_bytes
    by_gap = np.argsort(gaps, kind="stable")
    allowed = np.cumsum(gaps[by_gap]) <= GAP_SHARE * page_bytes * len(pages)
    joined = np.zeros(len(gaps), bool)
    joined[by_gap] = allowed & (gaps[by_gap] <= GAP_BYTES)
    requests, first = [], 0
    for n in range(1, len(numbers) + 1):
        whole = n < len(numbers) and (numbers[n] + 1 - numbers[first]) * page_bytes <= REQUEST_BYTES
        if not (whole and joined[n - 1]):
            nbytes = int(numbers[n - 1] + 1 - numbers[first]) * page_bytes
            requests.append(
                Request(start=int(numbers[first]) * page_bytes, nbytes=nbytes, positions=order[first:n])
            )
            first = n
    return requests
