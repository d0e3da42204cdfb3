"""Labels of a selection that a model's predictions contradict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reben_cloud.errors import NotFoundError
from reben_cloud.ranking.suspects import By, Suspects, suspects
from reben_cloud.root import layout
from reben_cloud.root.selection import Selection
from reben_cloud.search.vectors import VectorColumn

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SuspectLabels:
    """Labels, or patches, the likeliest mistake first."""

    judged: Selection
    """The patches that have predictions."""
    ranking: Suspects
    """The ranking; its rows count in `judged`, its classes in the schema's."""
    num_left_out: int
    """Patches that were not judged, as they have no prediction."""

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.ranking)

    @property
    def patch_ids(self) -> list[str]:
        """The patch of each entry."""
        return [str(i) for i in self._judged(self.ranking.rows).column(layout.ID).to_pylist()]

    @property
    def labels(self) -> list[str]:
        """The class of each entry; ranked by patch, of the patch's likeliest mistake."""
        names = self.judged.dataset.schema.classes.names
        return [names[number] for number in self.ranking.classes.tolist()]

    @property
    def given(self) -> NDArray[np.bool_]:
        """Whether the patch of each entry is labelled with that class, (len,)."""
        return self.ranking.given

    @property
    def scores(self) -> NDArray[np.float64]:
        """Estimated probability of each entry that the label is wrong, in [0, 1], (len,)."""
        return self.ranking.scores

    @property
    def selection(self) -> Selection:
        """The patches of the ranking, each once, the likeliest mistake first."""
        rows = self.ranking.rows
        return self._judged(rows[np.sort(np.unique(rows, return_index=True)[1])])

    def to_pandas(self) -> pd.DataFrame:
        """A row an entry: ``patch_id``, ``label``, ``given``, ``probability`` of the label, ``score``."""
        import pandas as pd

        return pd.DataFrame(
            {
                "patch_id": self.patch_ids,
                "label": self.labels,
                "given": self.given,
                "probability": self.ranking.probabilities,
                "score": self.scores,
            }
        )

    def _judged(self, at: NDArray[np.int64]) -> Selection:
        judged = self.judged
        return Selection(
            judged.dataset,
            judged.table,
            judged.rows[at],
            drawn=[one.taken(at) for one in judged.drawn],
        )


def find_suspects(
    selection: Selection, probabilities: str | ArrayLike, *, by: By, limit: int | None
) -> SuspectLabels:
    """The labels of a selection that predictions contradict; `Selection.suspects` tells more."""
    selection.require_patches("suspects")
    classes = selection.dataset.schema.classes
    judged = selection
    if isinstance(probabilities, str):
        at, found = _column(selection, probabilities, len(classes))
        judged = Selection(
            selection.dataset,
            selection.table,
            selection.rows[at],
            drawn=[one.taken(at) for one in selection.drawn],
        )
    else:
        found = np.asarray(probabilities)
        if found.shape != (len(selection), len(classes)):
            raise ValueError(
                f"probabilities must have the shape ({len(selection):,}, {len(classes)}), a row per patch of the "
                f"selection and a column per class of the schema, got {found.shape}"
            )
    if not np.issubdtype(found.dtype, np.floating):
        raise TypeError(f"probabilities must be floats, got {found.dtype}")
    _check_shares(judged, found)
    given = classes.encode(judged.column(layout.LABELS)).view(np.bool_)
    ranking = suspects(given, found, by=by, limit=limit)
    return SuspectLabels(judged=judged, ranking=ranking, num_left_out=len(selection) - len(judged))


def _column(selection: Selection, name: str, num_classes: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Which patches have predictions, rising, and these."""
    column = VectorColumn.of(selection, name)
    if column.size != num_classes:
        raise ValueError(
            f"{name} has {column.size:,} numbers per patch, and {selection.dataset.url} has {num_classes} classes: "
            "the probabilities of all of them are needed, in the order of the schema"
        )
    parts = [part for part in column.parts(selection.rows) if len(part.at)]
    if not parts:
        raise NotFoundError(f"none of the {len(selection):,} patches has {name} in {column.url}")
    at = np.concatenate([part.at for part in parts])
    order = np.argsort(at)
    return at[order], np.concatenate([part.vectors for part in parts])[order]


def _check_shares(judged: Selection, found: NDArray[np.floating]) -> None:
    inside = (found >= 0) & (found <= 1)  # which is False for NaN
    if not inside.all():
        row, number = np.argwhere(~inside)[0]
        raise ValueError(
            f"the probability of {judged.dataset.schema.classes.names[number]!r} in {judged.patch_ids[row]} must be in "
            f"[0, 1], got {found[row, number]}; a model's logits become probabilities by a sigmoid"
        )
