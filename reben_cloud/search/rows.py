"""Which rows of a table layer patches have: all, or those that fit a filter over the layer's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from reben_cloud.errors import NotFoundError
from reben_cloud.root.drawn import RULES, DrawnRows, Rule, ranges
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import Layer
from reben_cloud.root.selection import Selection
from reben_cloud.schema import check_names
from reben_cloud.search import cql
from reben_cloud.search.fitting import fits, for_rows_of, layers_of_rows


def draw_rows(
    selection: Selection,
    name: str,
    *,
    rule: Rule = "one",
    where: str | Mapping[str, object] | None = None,
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
    joined = selection.table.joined[name]
    first, count = joined.spans(selection.rows)
    numbers = ranges(first, count)
    if where is not None:
        expression = for_rows_of(joined, cql.parse(where))
        if others := set(layers_of_rows(expression, selection.table)) - {name}:
            raise ValueError(
                f"where= is for rows of {name!r}, and names columns of {', '.join(sorted(others))}"
            )
        wanted = fits(selection.table, selection.rows, expression, joined, first, count)
        number = np.append(0, np.cumsum(wanted, dtype=np.int64))
        ends = np.cumsum(count)
        numbers, count = numbers[wanted], number[ends] - number[ends - count]
    kept = np.flatnonzero(count)
    count = count[kept]
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
    earlier = [one.taken(kept) for one in selection.drawn]
    return Selection(
        selection.dataset,
        selection.table,
        selection.rows[kept],
        query=selection.query,
        drawn=(*earlier, drawn),
        repeats=None if selection.repeats is None else selection.repeats.taken(kept),
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
            f"the layer {name!r} has one row per patch at most: its columns are in the batches by themselves (columns=)"
        )
    return layers[name]
