"""Who searches when: short searches first, long ones one after another, and none for nobody.

A search runs in pieces (`search.find_rows`), and between two of them it ends if nobody waits for it any more, if its
time is over, or, in the lane of short ones, if it is not short; then it begins again in the other lane.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from reben_cloud.search.shapes import Between
from reben_cloud.serve.apart import CostlyError

Rows = NDArray[np.int64]
"""Row numbers, (n,)."""

MAX_SEARCH_S = 20.0
"""Longest that a search may take, waiting included; then it is 503. All patches by a usual filter take 0.1 s."""

_SHORT_CPU_S = 0.3
"""Seconds of a core after which a search that was taken for short is not."""

_GIVE_WAY_S = 0.001
"""How long a long search leaves the interpreter to others between two pieces."""

MAX_LONG = 16
"""Long searches that may wait; one more is refused."""

MAX_SHORT = 512
"""Short searches that may wait."""


class GivenUpError(Exception):
    """A search has ended without a result, as its time was over or nobody waited for it."""


class BusyError(Exception):
    """There is no place to wait."""


class _NotShortError(Exception):
    """A search takes longer than was expected."""


class Search:
    """One search, for all who ask for the same."""

    def __init__(self, key: str, find: Callable[[Between], Rows], *, is_long: bool) -> None:
        self.key = key
        """What equal searches have in common."""
        self.future = Future[Rows]()
        """What it will find."""
        self.waiting = 0
        """How many wait for it."""
        self.is_long = is_long
        """In which lane it is."""
        self._find = find
        self._end = time.monotonic() + MAX_SEARCH_S
        self._cpu_s = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until its time is over."""
        return self._end - time.monotonic()

    def run(self) -> Rows:
        """Search.

        Raises:
            GivenUpError: If nobody waits for it, or its time is over.
        """
        self._cpu_s = time.thread_time()
        self._between()
        return self._find(self._between)

    def _between(self) -> None:
        if not self.waiting or self.left_s < 0:
            raise GivenUpError
        if self.is_long:
            time.sleep(_GIVE_WAY_S)
        elif time.thread_time() - self._cpu_s > _SHORT_CPU_S:
            raise _NotShortError


class Lanes:
    """Threads for short searches, and one for long ones.

    Args:
        pass_on: Whether another process makes the long ones.
    """

    def __init__(self, *, pass_on: bool) -> None:
        self._pass_on = pass_on
        self._short = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="search")
        # One, so that however many there are, all other cores are free for what is quickly done.
        self._long = ThreadPoolExecutor(1, thread_name_prefix="long search")
        self._lock = threading.Lock()
        self.num_short, self.num_long = 0, 0
        """Searches that wait or run."""
        self.num_given_up, self.num_refused = 0, 0
        """Searches that ended without a result, and that had no place, since the start."""

    @property
    def is_full(self) -> bool:
        """Whether there is no place for a long search."""
        return self.num_long >= MAX_LONG

    def start(self, search: Search) -> None:
        """Let a search run when it is its turn.

        Raises:
            BusyError: If too many wait already.
            CostlyError: If another process makes it.
        """
        if search.is_long and self._pass_on:
            raise CostlyError
        with self._lock:
            if self.num_long >= MAX_LONG if search.is_long else self.num_short >= MAX_SHORT:
                self.num_refused += 1
                raise BusyError
            if search.is_long:
                self.num_long += 1
            else:
                self.num_short += 1
        (self._long if search.is_long else self._short).submit(self._run, search)

    def close(self) -> None:
        """Start no search that waits."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, search: Search) -> None:
        error: BaseException | None = None
        try:
            rows = search.run()
        except _NotShortError:
            self._leave(search)
            search.is_long = True
            try:
                self.start(search)
            except (BusyError, CostlyError) as refused:
                search.future.set_exception(refused)
            return
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is for those who wait
            error = raised
        self._leave(search)
        if error is None:
            search.future.set_result(rows)
            return
        if isinstance(error, GivenUpError):
            with self._lock:
                self.num_given_up += 1
        search.future.set_exception(error)

    def _leave(self, search: Search) -> None:
        with self._lock:
            if search.is_long:
                self.num_long -= 1
            else:
                self.num_short -= 1
