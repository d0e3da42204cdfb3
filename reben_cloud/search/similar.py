"""Patches whose embeddings are nearest to a patch's, or to a vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reben_cloud.errors import NotFoundError
from reben_cloud.ranking.nearest import Metric, UnfitRowError, Vectors, nearest
from reben_cloud.root.selection import Selection
from reben_cloud.search.ids import rows_of_ids
from reben_cloud.search.vectors import Ints, VectorColumn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Neighbours:
    """The patches nearest to a patch or a vector."""

    selection: Selection
    """The patches, nearest first."""
    scores: NDArray[np.float32]
    """How near each is, in the metric, (len(selection),)."""
    column: str
    """Column of the embeddings that were compared."""
    metric: Metric
    """``cosine`` and ``dot``: larger is nearer; ``l2``: smaller is."""
    num_left_out: int
    """Patches that were not compared, as they have no embedding there."""

    def __len__(self) -> int:
        """Number of patches."""
        return len(self.selection)

    def to_pandas(self) -> pd.DataFrame:
        """`Selection.to_pandas` with the scores as second column, ``score``."""
        frame = self.selection.to_pandas()
        frame.insert(1, "score", self.scores)
        return frame


def find_neighbours(
    selection: Selection, to: str | ArrayLike, *, column: str | None, k: int, metric: Metric
) -> Neighbours:
    """The patches of a selection that are nearest; `Selection.nearest` tells more."""
    selection.require_patches("nearest")
    vectors = VectorColumn.of(selection, column)
    at = np.arange(len(selection))
    if isinstance(to, str):
        (row,) = rows_of_ids(selection.dataset, to, missing_ok=False)
        query = _vector_of(vectors, int(row), to)
        at = at[selection.rows != row]
    else:
        query = np.asarray(to, np.float32)
        if query.shape != (vectors.size,):
            raise ValueError(
                f"{vectors.name} has vectors of {vectors.size:,} numbers, and the one to compare them with has the "
                f"shape {query.shape}"
            )
    compared = list[Ints]()

    def blocks() -> Iterator[Vectors]:
        for part in vectors.parts(selection.rows[at]):
            compared.append(at[part.at])
            yield _taken(part.vectors)

    try:
        ((found,), (scores,)) = nearest(blocks(), query, k, metric=metric)
    except UnfitRowError as error:
        patch_id = selection.table.take(selection.rows[np.concatenate(compared)[[error.row]]], ["id"])
        raise ValueError(
            f"{vectors.name} of {patch_id.column(0)[0]} in {vectors.url} {error.reason}; write the layer "
            "again with null in its place, or select patches without it"
        ) from error
    places = np.concatenate([np.empty(0, np.int64), *compared])
    chosen = places[found]
    return Neighbours(
        selection=Selection(
            selection.dataset,
            selection.table,
            selection.rows[chosen],
            drawn=[one.taken(chosen) for one in selection.drawn],
        ),
        scores=scores,
        column=vectors.name,
        metric=metric,
        num_left_out=len(at) - len(places),
    )


def _vector_of(vectors: VectorColumn, row: int, patch_id: str) -> NDArray[Any]:
    for part in vectors.parts(np.array([row])):
        if len(part.at):
            return _taken(part.vectors[0])
    raise NotFoundError(
        f"{vectors.url} has no {vectors.name} of {patch_id}: name a patch that has one, or give a vector"
    )


def _taken(vectors: NDArray[Any]) -> Vectors:
    """In a type that can be compared."""
    return vectors if vectors.dtype in (np.float16, np.float32, np.int8) else vectors.astype(np.float32)
