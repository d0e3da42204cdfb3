"""`VectorColumn`: a column of embeddings or predictions in a table layer, read a row group at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import valid_of
from reben_cloud.root.joined import JoinedLayer
from reben_cloud.root.selection import Selection
from reben_cloud.schema import check_names
from reben_cloud.stream.columns import is_vector, numbers_of

Ints = NDArray[np.int64]

_AHEAD = 3
"""Row groups that are read at a time, while one is used."""


class Part(NamedTuple):
    """Vectors of some patches."""

    at: Ints
    """Which of the rows that were asked for they belong to, (n,)."""
    vectors: NDArray[Any]
    """The vectors in the column's type, (n, size); may be read-only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VectorColumn:
    """A column whose values are lists of as many numbers each, in a layer with one row a patch."""

    name: str
    """As a column of the patches, ``layer:column``."""
    joined: JoinedLayer
    """Its layer."""
    size: int
    """Numbers of a vector."""

    @classmethod
    def of(cls, selection: Selection, name: str | None) -> VectorColumn:
        """The column of this name; None stands for the only one that there is.

        Raises:
            ValueError: If there is none of that name, or None is not enough to choose one.
        """
        there = vector_columns(selection)
        if not there:
            raise ValueError(
                f"{selection.dataset.url} has no layer with a column of vectors with it: open one with "
                "rc.open(..., layers=[...]); rc.write_table makes one of a column of lists of one length "
                "(vectors in an array layer are not looked at)"
            )
        if name is None:
            if len(there) > 1:
                raise ValueError(f"there are several columns of vectors: name one of {', '.join(there)}")
            return next(iter(there.values()))
        if not isinstance(name, str):
            raise TypeError(f"column must be a string, such as {next(iter(there))!r}, got {name!r}")
        check_names([name], list(there), "column of vectors")
        return there[name]

    def parts(self, rows: Ints) -> Iterator[Part]:
        """The vectors of rows of the table of patches, in the layer's order; a patch that has none is left out.

        A few row groups are held, while the next ones are read, and none is kept.
        """
        table = self.joined.layer.by_patch
        places = self.joined.places(rows)
        at = np.argsort(places, kind="stable")
        at = at[np.searchsorted(places[at], 0) :]
        starts = table.group_starts
        cuts = np.split(at, np.searchsorted(places[at], starts[1:-1]))
        groups = [(group, mine) for group, mine in enumerate(cuts) if len(mine)]

        def read(group: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
            if (found := table.vectors_once(group, self._column)) is not None:
                return found, None
            column = table.read_once([group], [self._column]).column(0)
            return numbers_of(column), valid_of(column) if column.null_count else None

        with ThreadPoolExecutor(_AHEAD) as ahead:
            following = deque(ahead.submit(read, group) for group, _ in groups[:_AHEAD])
            for number, (group, mine) in enumerate(groups):
                vectors, valid = following.popleft().result()
                following.extend(ahead.submit(read, after) for after, _ in groups[number + _AHEAD :][:1])
                inside = places[mine] - starts[group]
                if valid is not None:
                    mine, inside = mine[valid[inside]], inside[valid[inside]]
                # Rising, so if as many they are all of them: no copy.
                yield Part(mine, vectors if len(inside) == len(vectors) else vectors[inside])

    @property
    def _column(self) -> str:
        return self.name.removeprefix(layout.joined_column(self.joined.layer.name, ""))


def vector_columns(selection: Selection) -> dict[str, VectorColumn]:
    """The columns of vectors of all layers, by name."""
    return {
        field.name: VectorColumn(name=field.name, joined=joined, size=field.type.list_size)
        for joined in selection.table.joined.values()
        for field in joined.fields
        if is_vector(field.type)
    }
