"""Which rows of a table layer patches have: all, or those that fit a filter over the layer's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.root.arrow import valid_of, values_of
from reben_cloud.root.drawn import RULES, DrawnRows, Rule
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import COUNT, FIRST, Layer
from reben_cloud.root.selection import Selection
from reben_cloud.schema import check_names
from reben_cloud.search import cql

Ints = NDArray[np.int64]


def draw_rows(
    selection: Selection,
    name: str,
    *,
    rule: Rule = "one",
    where: str | Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
) -> Selection:
    """The patches of a selection that have rows in a layer, and these rows; `Selection.with_rows` tells more."""
    layer = _layer(selection, name)
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if any(one.layer == name for one in selection.drawn):
        raise ValueError(f"the selection has rows of {name!r} already; begin with one that has none")
    known = [column for column in layer.rows.names if column != PATCH_ID]
    if isinstance(columns, str):
        raise ValueError(f"columns must be a list of names, such as [{columns!r}], not a string")
    if columns is not None:
        check_names(columns, known, f"columns of the layer {name}")
    found = selection.table.joined[name].take(selection.rows, [FIRST, COUNT])
    has = valid_of(found.column(FIRST))
    first, count = (values_of(found.column(column)).astype(np.int64)[has] for column in (FIRST, COUNT))
    if first.size and not (
        min(first.min(), count.min() - 1) >= 0 and (first + count).max() <= layer.manifest.num_rows
    ):
        raise ChecksumError(f"{layer.url}: its index names rows that it does not have; the layer is damaged")
    kept = np.flatnonzero(has)
    if where is None:
        numbers = _ranges(first, count)
    else:
        fitting = _fitting(layer, where, known, first, count)
        start, stop = np.searchsorted(fitting, first), np.searchsorted(fitting, first + count)
        some = stop > start
        kept, first, count = kept[some], start[some], (stop - start)[some]
        numbers = fitting[_ranges(first, count)]
    if not len(kept):
        asked = "" if where is None else f" that fits where={where!r}"
        raise NotFoundError(
            f"none of the {len(selection):,} patches selected of {selection.dataset.url} has a row in the layer "
            f"{name}{asked}"
        )
    drawn = DrawnRows(
        layer=name,
        rule=rule,
        columns=tuple(known if columns is None else columns),
        offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
        numbers=numbers,
    )
    before = [one.taken(kept) for one in selection.drawn]
    return Selection(
        selection.dataset,
        selection.table,
        selection.rows[kept],
        query=selection.query,
        drawn=(*before, drawn),
    )


def _layer(selection: Selection, name: str) -> Layer:
    layers = selection.dataset.layers
    many = [one.name for one in layers.values() if one.manifest.kind == "many"]
    if name not in layers:
        raise ValueError(
            f"{selection.dataset.url} has no layer {name!r} with it; "
            f"{'there are ' + ', '.join(layers) if layers else 'open some with rc.open(..., layers=[...])'}"
        )
    if name not in many:
        raise ValueError(
            f"the layer {name!r} has one row a patch at most: its columns are in the batches by themselves (columns=)"
        )
    return layers[name]


def _ranges(first: Ints, count: Ints) -> Ints:
    """The numbers from each `first`, as many as `count` says, on end."""
    ends = np.cumsum(count)
    return np.repeat(first - (ends - count), count) + np.arange(int(count.sum()), dtype=np.int64)


def _fitting(
    layer: Layer, where: str | Mapping[str, Any], known: Sequence[str], first: Ints, count: Ints
) -> Ints:
    """Rows of a layer that fit a filter, rising; row groups of which no row is asked for are not read."""
    expression, table = cql.parse(where), layer.rows
    names = cql.columns(expression, known) or [PATCH_ID]
    starts = table.group_starts
    # Which row groups hold rows of these patches: a count that rises at the first and falls after the last.
    touched = np.zeros(len(starts), np.int64)
    np.add.at(touched, np.searchsorted(starts, first, side="right") - 1, 1)
    np.add.at(touched, np.searchsorted(starts, first + count - 1, side="right"), -1)
    found = [np.empty(0, np.int64)]
    for group in np.flatnonzero(np.cumsum(touched)[:-1]).tolist():
        values = table.read_once([group], names)
        fits = cql.evaluate(expression, pa.table([values.column(n) for n in names], names=names))
        found.append(np.flatnonzero(fits) + starts[group])
    return np.concatenate(found)
