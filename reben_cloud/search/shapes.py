"""Boxes and shapes beside the squares of patches: boxes first, then exactly, some squares at a time.

A shape is prepared once. Between two pieces of the work a caller may end it (`Between`), since a shape of many
corners beside all patches takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import ArrayLike, NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import values_of
from reben_cloud.root.table import PatchTable
from reben_cloud.search.arguments import Box

Between = Callable[[], None]
"""Called between two pieces of work; what it raises ends the work."""

_AT_ONCE, _AT_ONCE_ROWS = 2_500_000, 4_096
"""Corners times squares of a piece: some 50 ms, as GEOS looks at each pair of them for 20 ns; and squares, as no
other thread runs while they are read."""

_SYMMETRIC = ("intersects", "disjoint", "overlaps", "touches", "crosses", "equals")
_PREDICATES: Mapping[str, Callable[[Any, Any], Any]] = {
    **{f"s_{name}": getattr(shapely, name) for name in _SYMMETRIC},
    "s_within": shapely.within,
    "s_contains": shapely.contains,
}
"""CQL2's operators: is the first geometry this to the second?"""

SPATIAL = frozenset(_PREDICATES)
"""Names of CQL2's spatial operators, in lower case."""

_SWAPPED = {"s_within": "s_contains", "s_contains": "s_within"}


def go_on() -> None:
    """Lets all work go on to its end."""


def relates(op: str, left: Any, right: Any) -> Any:
    """One of `SPATIAL` for two geometries, or arrays of them as NumPy broadcasts; bool or bool (n,)."""
    return _PREDICATES[op](left, right)


def squares_relate(
    op: str, squares: Any, boxes: Any | None, shape: shapely.Geometry, *, is_left: bool, between: Between
) -> NDArray[np.bool_]:
    """One of `SPATIAL` between squares and a shape.

    Args:
        op: The operator.
        squares: Their WKB, an Arrow column.
        boxes: Their column ``bbox``, which leaves out most of them; None where it is not at hand.
        shape: The shape, in degrees.
        is_left: Whether the squares stand left of the operator.
        between: See `Between`.

    Returns:
        The answer for each square, bool (n,).
    """
    if isinstance(squares, pa.ChunkedArray):
        squares = squares.combine_chunks()  # else each piece would be
    if is_left:  # only the first geometry of a test can be prepared
        op = _SWAPPED.get(op, op)
    apart = op == "s_disjoint"
    found = np.full(len(squares), apart)
    near = np.arange(len(squares))
    if boxes is not None:
        near = np.flatnonzero(in_box(boxes, box_of(shape)))
    shapely.prepare(shape)
    for part in pieces(near, shape):
        between()
        found[part] = relates(op, shape, from_wkb(squares, part))
    return found


def pieces(rows: NDArray[np.int64], shape: shapely.Geometry) -> Iterator[NDArray[np.int64]]:
    """Rows, as many at a time as can be compared with a shape in some 50 ms, or fewer."""
    size = min(_AT_ONCE_ROWS, max(1, _AT_ONCE // (int(shapely.get_num_coordinates(shape)) + 50)))
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def from_wkb(squares: Any, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """The geometries of some rows of a column of WKB, (n,)."""
    return np.asarray(shapely.from_wkb(squares.take(rows).to_numpy(zero_copy_only=False)))


def box_of(shape: shapely.Geometry) -> Box:
    """The box around a shape; of one with parts on both sides of the antimeridian, a box all round the globe."""
    west, south, east, north = shape.bounds
    return west, south, east, north


def over_antimeridian(box: Box) -> bool:
    """Whether a box begins in the east and ends in the west."""
    return box[0] > box[2]


def shape_of_box(box: Box) -> shapely.Geometry:
    """A box as a shape, in two parts where it goes over the antimeridian."""
    west, south, east, north = box
    if over_antimeridian(box):
        return shapely.union(shapely.box(west, south, 180, north), shapely.box(-180, south, east, north))
    return shapely.box(west, south, east, north)


def boxes_meet(box: Box, other: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]) -> NDArray[np.bool_]:
    """Whether a box touches others, given as their sides; these do not go over the antimeridian."""
    west, south, east, north = (np.asarray(side) for side in other)
    after_west, before_east = east >= box[0], west <= box[2]
    along = after_west | before_east if over_antimeridian(box) else after_west & before_east
    return np.asarray(along & (south <= box[3]) & (north >= box[1]))


def in_box(bbox: Any, box: Box) -> NDArray[np.bool_]:
    """Which of a column of boxes touch a box, bool (n,)."""
    west, south, east, north = (values_of(pc.struct_field(bbox, s)) for s in ("xmin", "ymin", "xmax", "ymax"))
    return boxes_meet(box, (west, south, east, north))


def group_meets(table: PatchTable, group: int, box: Box) -> bool:
    """Whether a row group can hold a patch that touches a box, by the file's statistics."""
    anything = (-np.inf, np.inf)
    bounds = {side: table.bounds(group, f"{layout.BBOX}.{side}") for side in ("xmin", "ymin", "xmax", "ymax")}
    (west, _), (south, _) = bounds["xmin"] or anything, bounds["ymin"] or anything
    (_, east), (_, north) = bounds["xmax"] or anything, bounds["ymax"] or anything
    return bool(boxes_meet(box, (west, south, east, north)))
