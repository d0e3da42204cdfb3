"""What a search may ask for, and how long it is expected to take, from its text alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.search import cql
from reben_cloud.search.arguments import Box, parse_box
from reben_cloud.search.cql_evaluation import shape_of
from reben_cloud.search.shapes import SPATIAL, box_of, in_box

MAX_CORNERS = 5_000
"""Most corners of all shapes of a search. Beside all patches so many take a minute of a core."""

SHORT_S = 0.15
"""A search that is expected to take longer than this has to wait for its turn among the long ones."""

_PAIR_S = 20e-9
"""Seconds for a corner beside a square; measured with a polygon of teeth over all patches."""

_BOX_ROW_S = 10e-9
"""Seconds for a row beside the box of a shape: 5 ms for all patches."""

_MAX_LOOKS = 16
"""Most boxes for which it is counted how many patches they touch: a count takes 5 ms, and a filter may have 250."""

_ROW_S = 6e-9
"""Seconds for a row beside an operator of a filter: 3 ms for all patches."""

_SLOW_ROW_S: Mapping[str, float] = {"casei": 750e-9, "accenti": 750e-9, "like": 250e-9, "in": 50e-9}
"""The same for operators that take longer, over strings that are nearly all different."""


def check_corners(shapes: object) -> int:
    """Count the corners in what was sent as shapes, before anything is made of it, and refuse more than `MAX_CORNERS`.

    Raises:
        ValueError: If there are more.
    """
    if (corners := count_corners(shapes)) > MAX_CORNERS:
        raise ValueError(
            f"the shapes of the search have {corners:,} corners, {MAX_CORNERS:,} is the most: simplify them, "
            "for instance with shapely.simplify(shape, 0.001)"
        )
    return corners


def count_corners(node: object) -> int:
    """Positions in GeoJSON, wherever they stand in objects and lists."""
    count, left = 0, [node]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple) and one:
            if isinstance(one[0], int | float):
                count += 1
            else:
                left += one
    return count


def expected_s(dataset: Dataset, query: Mapping[str, Any]) -> float:
    """Seconds that a search is expected to take of one core.

    What is short even beside all patches is not looked at more closely, which takes as long as a usual search.

    Args:
        dataset: What is searched.
        query: ``intersects`` as a shape, ``cql2`` as an expression; other conditions take next to nothing.

    Raises:
        ValueError: If a shape of the filter is not one.
    """
    expression = query.get("cql2", ())
    shapes: list[shapely.Geometry] = [] if "intersects" not in query else [query["intersects"]]
    boxes = [box_of(shape) for shape in shapes] + cql.boxes(expression)
    if "bbox" in query:
        boxes.append(parse_box(query["bbox"]))
    row_s = 0.0
    for node in cql.nodes(expression):
        if (op := str(node.get("op", "")).lower()) in SPATIAL:
            shapes += [shape_of(arg) for arg in node.get("args", ()) if not _is_property(arg)]
        elif op:
            row_s += _row_s(dataset, op, node.get("args", ()))
    boxes_s = _BOX_ROW_S * len(dataset) * len(shapes)
    corners = [int(shapely.get_num_coordinates(shape)) + 50 for shape in shapes]
    if (beside_all_s := (row_s + _PAIR_S * sum(corners)) * len(dataset) + boxes_s) <= SHORT_S:
        return beside_all_s
    num_rows = min([len(dataset), *(_near(dataset, box) for box in boxes[:_MAX_LOOKS])])
    are_few = len(boxes) + len(shapes) <= _MAX_LOOKS  # many are taken to be beside all that the boxes leave
    pairs = sum(
        count * (min(num_rows, _near(dataset, box_of(shape))) if are_few else num_rows)
        for count, shape in zip(corners, shapes, strict=True)
    )
    return row_s * num_rows + boxes_s + _PAIR_S * pairs


def _row_s(dataset: Dataset, op: str, args: Sequence[object]) -> float:
    """Seconds for a row beside an operator."""
    if op == "in" and len(args) == 2 and isinstance(args[1], list):
        return _SLOW_ROW_S[op] + _ROW_S * sum(isinstance(option, Mapping) for option in args[1])
    names = [arg["property"] for arg in args if isinstance(arg, Mapping) and "property" in arg]
    schema = dataset.patch_table.schema
    columns = [one for name in names for one in (str(name), f"{layout.PREFIX}{name}") if one in schema.names]
    types = [schema.field(column).type for column in columns]
    if types and all(map(pa.types.is_dictionary, types)):
        return 5 * _ROW_S
    return _SLOW_ROW_S.get(op, _ROW_S)


def _is_property(node: object) -> bool:
    return isinstance(node, Mapping) and "property" in node


def _near(dataset: Dataset, box: Box) -> int:
    """Number of patches whose boxes touch a box."""
    table = dataset.patch_table
    boxes = table.read(range(len(table.group_starts) - 1), [layout.BBOX]).column(layout.BBOX)
    return int(np.count_nonzero(in_box(boxes, box)))
