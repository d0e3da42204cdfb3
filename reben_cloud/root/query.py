"""What a search may ask for, written once: Python, the command line, the API and recipes take it from here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np  # the command line lists the options without it

Instant: TypeAlias = "str | date | np.datetime64"
"""A time, or a date, month or year for all of it: RFC 3339 text, a date, datetime or pandas Timestamp."""

When: TypeAlias = "Instant | Sequence[Instant | None]"
"""An instant, or both ends of an interval; None where it is open."""

Names = str | Iterable[str]
"""One name or several."""

Share = str | float | Sequence[float]
"""A part of [0, 1): its end, or both ends, as ``0.1``, ``(0.5, 0.75)`` or ``"0.5/0.75"``."""

Balance = Literal["label", "country", "season"]
"""What a sample may be spread over evenly."""

Kind = Literal["text", "names", "flag", "number", "measure"]
"""How an option is given on a command line: once, repeatedly, as ``--x/--no-x``, as a whole or as any number."""


@runtime_checkable
class GeoInterface(Protocol):
    """A geometry or feature of shapely, geopandas and others, which says itself in GeoJSON."""

    @property
    def __geo_interface__(self) -> Mapping[str, object]:
        """The geometry or Feature as GeoJSON."""


class Option(NamedTuple):
    """How one condition is asked for outside Python."""

    flags: str
    """As typer spells them: ``--bbox`` or ``--snow/--no-snow``."""
    help: str
    """One line for people."""
    kind: Kind = "text"
    """How it is given."""
    file: str | None = None
    """Of names: flag of a file that lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """The conditions of a search, as they were given; None does not narrow.

    `Dataset.search` has the same names as arguments, and tells what each may hold; `reben_cloud.search`
    checks and evaluates them. An iterator becomes a tuple, so that a query can be looked at again.
    """

    bbox: str | Sequence[float] | None = None
    """West, south, east, north in degrees."""
    intersects: str | Mapping[str, object] | GeoInterface | None = None
    """GeoJSON geometry or Feature, WKT or shapely geometry, in degrees."""
    datetime: When | None = None
    """Sentinel-2 time: an instant or an interval."""
    labels: Names | None = None
    """Classes of which a patch has at least one."""
    labels_all: Names | None = None
    """Classes of which a patch has all."""
    split: Names | None = None
    """Splits."""
    country: Names | None = None
    """Countries."""
    product: Names | None = None
    """Products."""
    ids: Names | os.PathLike[str] | None = None
    """Patch ids, or a path object: of a file that lists them."""
    missing_ok: bool = False
    """Leave out ids that the dataset lacks, instead of an error."""
    ids_order: bool = False
    """List the patches in the order of `ids`."""
    s1_datetime: When | None = None
    """Sentinel-1 time, written as `datetime`."""
    season: Names | None = None
    """Seasons of the Sentinel-2 time."""
    snow: bool | None = None
    """With or without seasonal snow."""
    cloud: bool | None = None
    """With or without cloud or shadow."""
    recommended: bool | None = None
    """True: without snow, cloud and shadow; False: only those with any of them."""
    has: Names | None = None
    """Layers that have something for a patch, all of these."""
    share: Share | None = None
    """Patches whose hash is in this part of [0, 1)."""
    cql2: str | Mapping[str, object] | None = None
    """A CQL2 filter, text or JSON."""
    sortby: Names | None = None
    """Columns, a leading ``-`` for descending order."""
    limit: int | None = None
    """At most so many patches, from the first."""
    sample: int | None = None
    """So many patches, drawn from all that fit the other conditions."""
    sample_seed: int | None = None
    """Seed of the sample or of the share; 0 where it is None."""
    balance: Balance | None = None
    """Groups over which the sample is even."""
    min_distance_m: float | None = None
    """Least distance between the centres of the sample's patches, metres."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if isinstance(value := getattr(self, one.name), Iterator):
                object.__setattr__(self, one.name, tuple(value))

    def given(self) -> dict[str, Any]:
        """The conditions that were given, by name."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        for name in ("missing_ok", "ids_order"):
            if not values[name]:
                del values[name]  # which says nothing then
        return {name: value for name, value in values.items() if value is not None}

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.given())

    def replace(self, **changes: Any) -> Query:
        """The same query with other values for some conditions."""
        return dataclasses.replace(self, **changes)

    def describe(self) -> str:
        """The conditions in a line, for messages: ``split=train, country=Finland``."""
        parts = []
        for name, value in self.given().items():
            several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
            text = " ".join(str(one) for one in value) if several else str(value)
            parts.append(f"{name}={text if len(text) <= 60 else text[:57] + '...'}")
        return ", ".join(parts) or "no condition"


OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        "bbox": Option("--bbox", "West,south,east,north in degrees."),
        "intersects": Option("--intersects", "WKT, GeoJSON, or @FILE with GeoJSON."),
        "datetime": Option("--datetime", "Sentinel-2 time: A/B, 2017-06, ../B."),
        "labels": Option("--label", "Patches with this class; repeat.", "names"),
        "labels_all": Option("--label-all", "Patches with all of these; repeat.", "names"),
        "split": Option("--split", "train, validation or test; repeat.", "names"),
        "country": Option("--country", "Name of a country; repeat.", "names"),
        "product": Option("--product", "Sentinel-2 product; repeat.", "names"),
        "ids": Option("--id", "Id of a patch; repeat.", "names", file="--ids"),
        "missing_ok": Option("--missing-ok", "Leave out ids that the dataset lacks.", "flag"),
        "ids_order": Option("--ids-order", "List patches in the order of the ids.", "flag"),
        "s1_datetime": Option("--s1-datetime", "Sentinel-1 time, written as --datetime."),
        "season": Option("--season", "spring, summer, fall, winter; repeat.", "names"),
        "snow": Option("--snow/--no-snow", "With or without snow.", "flag"),
        "cloud": Option("--cloud/--no-cloud", "With or without cloud or shadow.", "flag"),
        "recommended": Option(
            "--recommended/--not-recommended", "Without, or only with, snow and cloud.", "flag"
        ),
        "has": Option("--has", "Patches that this layer has something for; repeat.", "names"),
        "share": Option("--share", "A part of all by a hash of the id: 0.1, or 0.5/0.75."),
        "cql2": Option("--cql2", "CQL2 text."),
        "sortby": Option("--sortby", "Column, -COLUMN for descending; repeat.", "names"),
        "limit": Option("--limit", "At most so many, from the first.", "number"),
        "sample": Option("--sample", "So many, drawn from all that fit.", "number"),
        "sample_seed": Option("--sample-seed", "Seed of the sample or share; 0 by default.", "number"),
        "balance": Option("--balance", "Sample evenly over label, country or season."),
        "min_distance_m": Option(
            "--min-distance", "Least metres between the centres of a sample's patches.", "measure"
        ),
    }
)
"""Name of a condition -> how it is asked for outside Python."""
