"""By what the patches of an evaluation are told apart: country, season and split."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.bigearthnet.grid import season
from reben_cloud.root.layout import DATETIME, column
from reben_cloud.root.selection import Selection

GROUPINGS = ("country", "season", "split")
"""By what the patches of an evaluation are told apart."""


class Groups(NamedTuple):
    """The groups of a selection's patches."""

    names: list[str]
    """Names of the groups."""
    numbers: NDArray[np.int64]
    """Number of each patch's group, int64 (num_patches,)."""


def group_numbers(selection: Selection, by: str) -> Groups:
    """The groups of a selection's patches.

    Args:
        selection: Patches.
        by: ``country``, ``season`` or ``split``.

    Raises:
        ValueError: If `by` is something else.
    """
    if by == "season":
        months = pc.month(selection.column(DATETIME)).to_numpy()
        of_month = [season(datetime(2017, month, 1)) for month in range(1, 13)]
        values = np.array(of_month)[months - 1]
    elif by in GROUPINGS:
        values = np.asarray(selection.column(column(by)).to_pylist(), dtype=str)
    else:
        raise ValueError(f"by must be one of {', '.join(GROUPINGS)}, got {by!r}")
    names, numbers = np.unique(values, return_inverse=True)
    return Groups([str(name) for name in names], numbers.astype(np.int64))
