"""Time in CQL2: what a timestamp or a date is, and the operators that compare times and intervals."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow.compute as pc


class Instant(NamedTuple):
    """A time, from its first to its last microsecond: a timestamp has one of them, a date a whole day.

    An instant of the specification has the granularity of its type, so two of them are compared at the
    coarser one: a timestamp is neither before nor after its own day.
    """

    first: Any
    last: Any


def _less(a: Instant, b: Instant) -> Any:
    return pc.less(a.last, b.first)


def _coincide(a: Instant, b: Instant) -> Any:
    return pc.and_kleene(pc.less_equal(a.first, b.last), pc.greater_equal(a.last, b.first))


def _both(*conditions: Any) -> Any:
    return functools.reduce(pc.and_kleene, conditions)


COMPARE_TIMES: Mapping[str, Callable[[Instant, Instant], Any]] = {
    "=": _coincide,
    "<>": lambda a, b: pc.invert(_coincide(a, b)),
    "<": _less,
    "<=": lambda a, b: pc.invert(_less(b, a)),
    ">": lambda a, b: _less(b, a),
    ">=": lambda a, b: pc.invert(_less(a, b)),
}

TEMPORAL: Mapping[str, Callable[[Instant, Instant, Instant, Instant], Any]] = {
    # Start and end of the left, then of the right; an instant starts and ends at once. Intervals are closed,
    # and one of dates begins with its first day and ends with its last. The names are those of OWL-Time.
    "t_before": lambda _a, b, c, _d: _less(b, c),
    "t_after": lambda a, _b, _c, d: _less(d, a),
    "t_equals": lambda a, b, c, d: _both(_coincide(a, c), _coincide(b, d)),
    "t_disjoint": lambda a, b, c, d: pc.or_kleene(_less(b, c), _less(d, a)),
    "t_intersects": lambda a, b, c, d: pc.invert(pc.or_kleene(_less(b, c), _less(d, a))),
    "t_during": lambda a, b, c, d: _inside(a, b, c, d),
    "t_contains": lambda a, b, c, d: _inside(c, d, a, b),
    "t_meets": lambda _a, b, c, _d: _coincide(b, c),
    "t_metby": lambda a, _b, _c, d: _coincide(d, a),
    "t_starts": lambda a, b, c, d: _both(_coincide(a, c), _less(b, d)),
    "t_startedby": lambda a, b, c, d: _both(_coincide(a, c), _less(d, b)),
    "t_finishes": lambda a, b, c, d: _both(_coincide(b, d), _less(c, a)),
    "t_finishedby": lambda a, b, c, d: _both(_coincide(b, d), _less(a, c)),
    "t_overlaps": lambda a, b, c, d: _both(_less(a, c), _less(c, b), _less(b, d)),
    "t_overlappedby": lambda a, b, c, d: _both(_less(c, a), _less(a, d), _less(d, b)),
}


def _inside(a: Instant, b: Instant, c: Instant, d: Instant) -> Any:
    """Begins later and ends earlier, by microseconds: within a day is within it, not at its end."""
    return _both(pc.greater(a.first, c.first), pc.less(b.last, d.last))


def parse_time(text: Any) -> datetime:
    """A timestamp, or the start of a date, in UTC unless it says otherwise.

    Raises:
        ValueError: If it is neither.
    """
    try:
        found = datetime.fromisoformat(text.upper())
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the filter has {text!r} where a time must stand") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
