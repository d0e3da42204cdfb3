"""What a caller may write for a condition, as one checked value: names, flags, boxes, shapes, intervals."""

from __future__ import annotations

import calendar
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Any, get_args

import numpy as np
import shapely
from shapely.geometry import shape as from_mapping

from reben_cloud.root.query import Balance, GeoInterface, Share, When
from reben_cloud.schema import check_names, respelled

Box = tuple[float, float, float, float]
"""West, south, east, north in degrees; west > east is a box over the antimeridian."""

SEASONS = {"spring": (3, 4, 5), "summer": (6, 7, 8), "fall": (9, 10, 11), "winter": (12, 1, 2)}
"""Season -> calendar months of the Sentinel-2 acquisition, UTC."""

Interval = tuple[datetime | None, datetime | None]
"""Both ends, included; None where it is open."""


def parse_names(value: str | Iterable[str], argument: str) -> list[str]:
    """One text, or several, as a list.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        found = list(value)
        if all(isinstance(name, str) for name in found):
            return found
    raise TypeError(f"{argument} must be a string or a list of strings, got {value!r}")


def parse_known(value: str | Iterable[str], argument: str, known: Iterable[str]) -> list[str]:
    """One or several of the known names, in any case.

    Raises:
        TypeError: If it is neither a string nor a list of strings.
        ValueError: If there is none, or an unknown one; the message has the nearest names.
    """
    found = parse_names(value, argument)
    if not found:
        raise ValueError(f"{argument} is an empty list, which no patch fits; leave it out to have all")
    known = list(known)
    found = respelled(found, known)
    check_names(found, known, argument)
    return found


def parse_flag(value: bool | None, argument: str) -> bool | None:
    """True, False or None; a string such as "no" would count as true.

    Raises:
        TypeError: If it is anything else.
    """
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise TypeError(f"{argument} must be True, False or None, got {value!r}")


def parse_count(value: int | None, argument: str, *, least: int = 1, without: str = "all") -> int | None:
    """A whole number, or None.

    Args:
        value: What was given.
        argument: Name of the argument.
        least: The smallest number that is allowed.
        without: What there is when it is left out, for the message.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is less than `least`.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{argument} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, got {value}; leave it out to have {without}")
    return int(value)


def parse_share(value: Share | None) -> tuple[float, float] | None:
    """Both ends of a part of [0, 1), or None.

    Raises:
        TypeError: If it is neither a number nor two nor a text of them.
        ValueError: If it is not a part of [0, 1), or an empty one.
    """
    if value is None:
        return None
    what = f"share must be a part of [0, 1] such as 0.1, (0.5, 0.75) or '0.5/0.75', got {value!r}"
    try:
        ends = (
            value.split("/") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
        )
        if any(
            isinstance(end, bool | bytes) or (isinstance(end, str) and not isinstance(value, str))
            for end in ends
        ):
            raise TypeError(what)
        numbers = [float(end) for end in ends]
    except ValueError as error:
        raise ValueError(what) from error
    except TypeError as error:
        raise TypeError(what) from error
    first, end = numbers if len(numbers) == 2 else (0.0, numbers[0] if len(numbers) == 1 else -1.0)
    if not 0 <= first < end <= 1:
        raise ValueError(what)
    return first, end


def parse_distance(value: float | None, argument: str) -> float | None:
    """A number of metres above 0, or None.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not above 0, or not finite.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{argument} must be a number of metres, got {value!r}")
    if not 0 < value < np.inf:
        raise ValueError(
            f"{argument} must be above 0 metres and finite, got {value}; leave it out to have any distance"
        )
    return float(value)


def parse_balance(value: str | None) -> Balance | None:
    """What a sample is to be even over, or None.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is not one of `Balance`.
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"balance must be one of {', '.join(get_args(Balance))}, got {value!r}")
    for known in get_args(Balance) if value is not None else ():
        if value == known:
            found: Balance = known
            return found
    check_names([] if value is None else [value], get_args(Balance), "balance")
    return None


def parse_interval(value: When, argument: str = "datetime") -> Interval:
    """Both ends, included, of an instant or interval; None where it is open.

    A text is an instant, or two ends with ``/`` between, ``..`` or nothing for an open end (STAC
    API, RFC 3339 section 5.6). A date, month or year means all of it. No time zone means UTC.

    Raises:
        TypeError: If it is neither a time nor two of them.
        ValueError: If it is not one of these, or ends before it starts.
    """
    if isinstance(value, str):
        ends: list[Any] = value.split("/")
    elif isinstance(value, date | np.datetime64):
        ends = [value]
    elif isinstance(value, Iterable) and not isinstance(value, Mapping):
        ends = list(value)
    else:
        raise TypeError(f"{argument} must be a time, date or text such as '2017-06', or two, got {value!r}")
    if len(ends) not in (1, 2):
        raise ValueError(f"{argument} must be an instant or A/B, got {value!r}")
    start, end = (_instant(e, argument, last=last) for e, last in ((ends[0], False), (ends[-1], True)))
    if start is None and end is None:
        raise ValueError(f"{argument} {value!r} is open at both ends; leave it out instead")
    if start is not None and end is not None and end < start:
        raise ValueError(f"{argument} {value!r} ends before it starts")
    return start, end


def _instant(value: Any, argument: str, *, last: bool) -> datetime | None:
    if value is None or (isinstance(value, str) and value in ("", "..")):
        return None
    # pandas' NaT is a datetime that does not even equal itself.
    if isinstance(value, datetime) and value == value:
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if not isinstance(value, str | date | np.datetime64):
        raise TypeError(f"{argument} must be a time, date or text such as '2017-06', got {value!r}")
    text = str(value).strip()
    for form, step in (("%Y", "year"), ("%Y-%m", "month"), ("%Y-%m-%d", "day")):
        try:
            start = datetime.strptime(text, form).replace(tzinfo=UTC)
        except ValueError:
            continue
        return _end(start, step) if last else start
    try:
        # The standard library also takes 20170613 and 2017-W24, and means their first instant.
        found = datetime.fromisoformat(text.replace("z", "Z")) if ":" in text else None
    except ValueError:
        found = None
    if found is None:
        raise ValueError(
            f"{argument} {text!r} is no RFC 3339 time, date, month or year, such as 2017-06-13T10:10:31Z, "
            "2017-06-13, 2017-06 or 2017"
        )
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _end(start: datetime, step: str) -> datetime:
    """The last instant of the day, month or year that begins at `start`."""
    month = 12 if step == "year" else start.month
    day = start.day if step == "day" else calendar.monthrange(start.year, month)[1]
    # Not the next one's first less a bit: the year 9999, which people write for an open end, has no next.
    return datetime.combine(date(start.year, month, day), time.max, UTC)


def parse_box(bbox: str | Sequence[float]) -> Box:
    """West, south, east, north; heights (six numbers) are dropped. West > east goes over the antimeridian.

    Raises:
        TypeError: If it is not a list of numbers.
        ValueError: If it has another length, its latitudes are turned round, or it lies beyond the globe.
    """
    if isinstance(bbox, shapely.Geometry | Mapping):
        raise TypeError("bbox must be west,south,east,north in degrees; a geometry goes to intersects")
    try:
        values = [float(v) for v in (bbox.split(",") if isinstance(bbox, str) else bbox)]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox must be west,south,east,north in degrees, got {bbox!r}") from None
    if len(values) not in (4, 6):
        raise ValueError(f"bbox must be west,south,east,north, got {len(values)} numbers")
    if not all(np.isfinite(values)):
        raise ValueError(f"bbox must be in finite degrees, got {', '.join(map(str, values))}")
    west, south, east, north = values if len(values) == 4 else (*values[:2], *values[3:5])
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        raise ValueError(f"bbox longitudes must be in [-180, 180], got {west} and {east}")
    if not -90 <= south <= north <= 90:
        raise ValueError(f"bbox latitudes must rise and be in [-90, 90], got {south} and {north}")
    return west, south, east, north


def parse_geometry(value: Any, argument: str = "intersects") -> shapely.Geometry:
    """A shapely geometry from shapely, GeoJSON (a geometry or Feature) or WKT.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is not valid, empty, or beyond the globe.
    """
    if isinstance(value, shapely.Geometry):
        shape = value
    elif isinstance(value, str):
        try:
            shape = shapely.from_geojson(value) if value.lstrip().startswith("{") else shapely.from_wkt(value)
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"{argument} is neither GeoJSON nor WKT: {error}") from error
    elif isinstance(value, Mapping):
        try:
            shape = from_mapping(value.get("geometry", value))
        except (*_NOT_SHAPES, shapely.errors.ShapelyError) as error:
            raise ValueError(f"{argument} is not GeoJSON geometry: {error}") from error
    elif isinstance(value, GeoInterface):
        return parse_geometry(value.__geo_interface__, argument)
    else:
        raise TypeError(f"{argument} must be GeoJSON, WKT or a shapely geometry, got {type(value).__name__}")
    if shape.is_empty:
        raise ValueError(f"{argument} is an empty geometry")
    if not shape.is_valid:
        raise ValueError(f"{argument} is not a valid geometry: {shapely.is_valid_reason(shape)}")
    parse_box(shape.bounds)
    return shape


_NOT_SHAPES = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""Errors that come of making a geometry out of any objects, lists and numbers."""
