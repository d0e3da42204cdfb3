"""Conditions of a search on columns of the table: what each argument asks for, checked and made into a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array, mask_of, names_array, valid_of, values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.placement import SPLITS
from reben_cloud.root.query import Query
from reben_cloud.search.arguments import (
    SEASONS,
    Box,
    Interval,
    parse_count,
    parse_flag,
    parse_interval,
    parse_known,
    parse_share,
)
from reben_cloud.search.shapes import in_box
from reben_cloud.spread import seeded_keys


class Condition(NamedTuple):
    """One condition on columns of the table."""

    columns: tuple[str, ...]
    """The columns it looks at."""
    fits: Callable[..., Any]
    """Called with these columns; a boolean Arrow or NumPy array, one value per row; null does not fit."""


def times_of(query: Query) -> dict[str, Interval | None]:
    """Column of times -> the interval that is asked for.

    Raises:
        ValueError: If one is no interval.
    """
    asked = (
        (layout.DATETIME, "datetime", query.datetime),
        (layout.S1_DATETIME, "s1_datetime", query.s1_datetime),
    )
    return {column: None if value is None else parse_interval(value, name) for column, name, value in asked}


def conditions_of(
    dataset: Dataset, query: Query, boxes: Iterable[Box], times: Mapping[str, Interval | None]
) -> list[Condition]:
    """What each row must fit, but for ids, shapes and the filter, which look at more than columns.

    Args:
        dataset: What is searched.
        query: What is asked for.
        boxes: Squares that patches must touch, each of them.
        times: Column of times -> interval, as `times_of` gives.

    Raises:
        ValueError: If a value of the query is not known, or the metadata lack a column that it is about.
    """
    if query.country is not None:
        _require(dataset, [layout.COUNTRY])
    classes = dataset.schema.classes.names
    found = [
        *(Condition((layout.BBOX,), partial(in_box, box=box)) for box in boxes),
        *_in_times(times),
        *_one_of("split", query.split, SPLITS),
        *_one_of("country", query.country, dataset.countries),
        *_one_of("product", query.product, dataset.products),
        *_with_labels(query.labels, np.logical_or, "labels", classes),
        *_with_labels(query.labels_all, np.logical_and, "labels_all", classes),
        *_flagged("contains_seasonal_snow", parse_flag(query.snow, "snow")),
        *_flagged("contains_cloud_or_shadow", parse_flag(query.cloud, "cloud")),
        *_with_layers(dataset, query.has),
        *_in_share(query),
        *_recommended(dataset.schema.recommended_without, parse_flag(query.recommended, "recommended")),
        *_in_season(query.season),
    ]
    _require(dataset, [column for condition in found for column in condition.columns])
    return found


def _in_times(intervals: Mapping[str, Interval | None]) -> list[Condition]:
    return [
        Condition((column,), partial(_in_interval, interval=interval))
        for column, interval in intervals.items()
        if interval is not None
    ]


def _one_of(name: str, value: str | Iterable[str] | None, known: Iterable[str]) -> list[Condition]:
    if value is None:
        return []
    names = names_array(parse_known(value, name, known))
    return [Condition((layout.column(name),), lambda values: pc.is_in(pc.cast(values, pa.string()), names))]


def _require(dataset: Dataset, columns: Sequence[str]) -> None:
    """Refuse a condition on what the metadata of this dataset do not have."""
    for column in columns:
        if column not in dataset.patch_table.names:
            raise ValueError(
                f"the metadata of {dataset.url} say nothing of {layout.field(column)}, so nothing is found by it"
            )


def _flagged(name: str, flag: bool | None) -> list[Condition]:
    return [] if flag is None else [Condition((layout.column(name),), partial(_is, flag))]


def _with_layers(dataset: Dataset, names: str | Iterable[str] | None) -> list[Condition]:
    """Patches for which layers have something."""
    if names is None:
        return []
    if not dataset.layers:
        raise ValueError(
            f"has={names!r} asks for layers, and {dataset.url} was opened without: give layers=[...]"
        )
    chosen = parse_known(names, "layer (has)", list(dataset.layers))
    return [Condition((layout.present_column(name),), mask_of) for name in chosen]


def _in_share(query: Query) -> list[Condition]:
    """Patches by the numbers that a sample is drawn by, so that a share and a sample of it are one choice."""
    part = parse_share(query.share)
    if part is None:
        return []
    first, end = (min(round(at * 2**64), 2**64) for at in part)
    seed = parse_count(query.sample_seed, "sample_seed", least=0, without="0") or 0

    def fits(ids: Any) -> NDArray[np.bool_]:
        keys = seeded_keys(ids.to_pylist(), seed)
        inside: NDArray[np.bool_] = keys >= np.uint64(first) if first < 2**64 else np.zeros(len(keys), bool)
        return inside & (keys < np.uint64(end)) if end < 2**64 else inside

    return [Condition((layout.ID,), fits)]


def _recommended(without: Sequence[str], flag: bool | None) -> list[Condition]:
    """Patches with none of the flags, or those with any."""
    if flag is None:
        return []
    if not without:  # then all patches are recommended
        return [] if flag else [Condition((layout.ID,), lambda ids: np.zeros(len(ids), bool))]
    return [
        Condition(tuple(map(layout.column, without)), lambda *flags: _is(not flag, reduce(pc.or_, flags)))
    ]


def _is(flag: bool, column: Any) -> NDArray[np.bool_]:
    return mask_of(column if flag else pc.invert(column))


def _with_labels(
    names: str | Iterable[str] | None, combine: np.ufunc, argument: str, classes: Sequence[str]
) -> list[Condition]:
    if names is None:
        return []
    chosen = parse_known(names, argument, classes)

    def fits(column: Any) -> NDArray[np.bool_]:
        masks = [combine.reduce([_holds(chunk, name) for name in chosen]) for chunk in column.chunks]
        return np.concatenate([np.empty(0, bool), *masks])

    return [Condition((layout.LABELS,), fits)]


def _holds(lists: pa.ListArray, name: str) -> NDArray[np.bool_]:
    """Which of some lists hold a name; a running count of it says so without a look at each list."""
    found = np.append(0, np.cumsum(mask_of(pc.equal(lists.values, names_array([name])[0])), dtype=np.int64))
    return np.asarray(np.diff(found[values_of(lists.offsets)]) > 0)


def _in_season(names: str | Iterable[str] | None) -> list[Condition]:
    if names is None:
        return []
    chosen = parse_known(names, "season", SEASONS)
    months = ints_array(np.array([month for season in chosen for month in SEASONS[season]]))
    return [Condition((layout.DATETIME,), lambda column: pc.is_in(pc.month(column), months))]


def _in_interval(times: Any, interval: Interval) -> NDArray[np.bool_]:
    start, end = micros_of(interval)
    mask, micros = valid_of(times), values_of(times)
    if start is not None:
        mask &= micros >= start
    if end is not None:
        mask &= micros <= end
    return mask


def micros_of(interval: Interval) -> tuple[int | None, int | None]:
    """Both ends as stored times are: whole microseconds since 1970, ends included."""
    (start, end), epoch = interval, datetime(1970, 1, 1, tzinfo=UTC)
    one = timedelta(microseconds=1)
    return (
        None if start is None else -((epoch - start) // one),  # the ceiling
        None if end is None else (end - epoch) // one,
    )
