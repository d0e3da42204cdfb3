"""Why a search found nothing: which condition left nothing, and for a box where the patches are instead."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from reben_cloud.root.query import Query
from reben_cloud.root.table import PatchTable
from reben_cloud.search.arguments import Box, parse_box

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection

_NO_CONDITION = frozenset(
    ("missing_ok", "ids_order", "sortby", "limit", "sample", "sample_seed", "balance", "min_distance_m")
)
"""Arguments of a search that leave no patch out, or none of an empty selection."""


def why_empty(selection: Selection) -> str:
    """Which conditions of the query of an empty selection left nothing; that costs a few searches."""
    dataset = selection.dataset
    conditions = {name: value for name, value in selection.query.given().items() if name not in _NO_CONDITION}
    if not len(dataset) or not conditions:
        return f"{dataset.url} has no patch" if not len(dataset) else "the selection is empty"
    asked = {name: f"{name}={reprlib.repr(value)}" for name, value in conditions.items()}

    def count(names: Iterable[str]) -> int:
        given = {name: conditions[name] for name in names}
        seed = selection.query.sample_seed if "share" in given else None
        query = Query(missing_ok=True, sample_seed=seed, **given)
        return len(dataset.select(query))

    if alone := [name for name in asked if not count([name])]:
        where = _where(dataset.patch_table, parse_box(conditions["bbox"])) if "bbox" in alone else ""
        return f"no patch of {dataset.url} fits {', and none '.join(asked[name] for name in alone)}{where}"
    without = {text: count(conditions.keys() - {name}) for name, text in asked.items()}
    helps = [f"without {text} there are {number:,}" for text, number in without.items() if number]
    return (
        f"no patch of {dataset.url} fits {' and '.join(asked.values())} together; "
        f"{', '.join(helps) or 'to leave one of them out is not enough'}"
    )


def _where(table: PatchTable, box: Box) -> str:
    """Where the patches are that a box misses, and the box that was probably meant."""
    if (extent := _extent(table)) is None:
        return ""
    text = f": all patches are within {_text(extent)} (west,south,east,north)"
    west, south, east, north = box
    swapped = (south, west, north, east)
    if _meets(swapped, extent):
        return f"{text}; longitude comes first: did you mean {_text(swapped)}?"
    if west > east:
        return f"{text}; it goes over the antimeridian, as its west is east of its east"
    return text


def _extent(table: PatchTable) -> Box | None:
    """The box of all patches, from the statistics of the file; None if it has none."""
    groups = range(len(table.group_starts) - 1)
    west, south = ([table.bounds(group, f"bbox.{side}") for group in groups] for side in ("xmin", "ymin"))
    east, north = ([table.bounds(group, f"bbox.{side}") for group in groups] for side in ("xmax", "ymax"))
    if not groups or any(span is None for side in (west, south, east, north) for span in side):
        return None
    least = [min(span[0] for span in side if span is not None) for side in (west, south)]
    most = [max(span[1] for span in side if span is not None) for side in (east, north)]
    return least[0], least[1], most[0], most[1]


def _meets(box: Box, other: Box) -> bool:
    return box[0] <= other[2] and box[2] >= other[0] and box[1] <= other[3] and box[3] >= other[1]


def _text(box: Box) -> str:
    return ",".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in box)
