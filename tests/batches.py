"""What a loader gave, by patch, to compare two datasets that must hold the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from reben_cloud.root.selection import Selection
from reben_cloud.stream import RawLoader

Samples = dict[str, dict[str, np.ndarray[Any, Any]]]
"""Patch id -> its arrays by name."""


def samples(selection: Selection, **options: Any) -> Samples:
    """One epoch, in which no patch comes twice."""
    found: Samples = {}
    ids = selection.patch_ids
    for batch in RawLoader(selection, batch_size=7, **options):
        for row, at in enumerate(batch["index"]):
            assert ids[at] not in found
            found[ids[at]] = {n: batch[n][row].copy() for n in batch if n not in ("index", "valid")}
    return found


def assert_same(left: Samples, right: Samples) -> None:
    """The same patches with the same values."""
    assert left.keys() == right.keys()
    for patch_id, arrays in left.items():
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, right[patch_id][name])
