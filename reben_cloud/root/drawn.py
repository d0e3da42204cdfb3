"""`DrawnRows`: which rows of a table layer the samples of a selection have, where a patch has several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

Rule = Literal["one", "all", "list"]
"""``one``: a patch has one of its rows, another one in each epoch. ``all``: a patch is delivered once per row.
``list``: a patch has a list of all its rows."""

RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DrawnRows:
    """Rows of a table layer for each patch of a selection; every patch has one at least."""

    layer: str
    """Name of the layer."""
    rule: Rule
    """Which of a patch's rows its samples have."""
    columns: tuple[str, ...]
    """Columns that a batch has, without the layer's name."""
    offsets: NDArray[np.int64]
    """Where the rows of each patch begin in `numbers`, and their number in all; shape (num_patches + 1,)."""
    numbers: NDArray[np.int64]
    """Rows of ``rows.parquet``, patch after patch."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each patch, at least 1, shape (num_patches,)."""
        return np.diff(self.offsets)

    def taken(self, patches: NDArray[np.int64]) -> DrawnRows:
        """The same for these patches, in their order."""
        counts = self.counts[patches]
        return DrawnRows(
            layer=self.layer,
            rule=self.rule,
            columns=self.columns,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            numbers=self.numbers[ranges(self.offsets[:-1][patches], counts)],
        )


def ranges(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each `first`, as many as `count` says, on end."""
    ends = np.cumsum(count)
    return np.repeat(first - (ends - count), count) + np.arange(int(count.sum()), dtype=np.int64)


def turns(ids: NDArray[np.bytes_], *, seed: int) -> NDArray[np.int64]:
    """With which of its rows each patch begins under the rule ``one``: a number that follows from seed and id alone.

    In epoch e a patch has its row ``(turn + e) mod count``: in as many epochs as it has rows, each comes once.

    Args:
        ids: Patch ids, shape (n,).
        seed: Seed of the run.

    Returns:
        Numbers in [0, 2**62), shape (n,).
    """
    found = [xxhash.xxh3_64_intdigest(patch_id, seed % 2**64) >> 2 for patch_id in ids.tolist()]
    return np.array(found, np.int64)
