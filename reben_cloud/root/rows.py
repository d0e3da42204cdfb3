"""`LayerRows`: which rows of a table layer each patch of a selection has. Numbers only; no text is read for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerRows:
    """The rows of a layer's ``rows.parquet`` that belong to each of n patches, and those of them that are wanted."""

    first: Ints
    """First row of each patch, 0 where it has none; int64 (n,)."""
    count: Ints
    """Number of its rows, which follow each other; int64 (n,)."""
    offsets: Ints
    """Where those of each patch that are wanted begin in `rows`, and their number; int64 (n + 1,)."""
    rows: Ints
    """The rows that are wanted, patch by patch, rising within each; int64 (offsets[-1],)."""

    @classmethod
    def all_of(cls, first: Ints, count: Ints) -> LayerRows:
        """All rows of each patch."""
        offsets = np.append(0, np.cumsum(count)).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], count)
        return cls(first=first, count=count, offsets=offsets, rows=rows)

    def where(self, wanted: NDArray[np.bool_]) -> LayerRows:
        """Those rows alone for which `wanted`, of the length of `rows`, is true."""
        before = np.append(0, np.cumsum(wanted, dtype=np.int64))
        return LayerRows(
            first=self.first, count=self.count, offsets=before[self.offsets], rows=self.rows[wanted]
        )

    @property
    def counts(self) -> Ints:
        """Number of the rows of each patch that are wanted; int64 (n,)."""
        return np.diff(self.offsets)
