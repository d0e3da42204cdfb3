"""Which places of a sequence an index means: one, or several, as lists and NumPy arrays take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Several = slice | Sequence[int] | Sequence[bool] | NDArray[np.integer] | NDArray[np.bool_]
"""An index that means several places: a slice, whole numbers, or a mask with as many booleans as there are places."""


def position_of(at: int | np.integer, length: int, *, what: str) -> int:
    """The place of one, in [0, length); negative numbers count from the end.

    Raises:
        IndexError: If there is no such place.
    """
    number = int(at)
    if not -length <= number < length:
        raise IndexError(f"{what} {number} is out of range: there are {length:,}")
    return number % length


def positions_of(at: Several, length: int, *, what: str) -> NDArray[np.int64]:
    """The places of several, in the order in which they were asked for.

    Args:
        at: Which.
        length: Number of places.
        what: What is at a place, to begin messages with.

    Returns:
        int64 (n,), each in [0, length).

    Raises:
        IndexError: If there is no such place, or a mask has another length.
        TypeError: If `at` is not such an index.
    """
    if isinstance(at, slice):
        return np.arange(length, dtype=np.int64)[at]
    if not isinstance(at, np.ndarray | Sequence) or isinstance(at, str | bytes | tuple):
        raise TypeError(
            f"{what} numbers must be an integer, a slice, or a list or array of integers or booleans, "
            f"not {type(at).__name__}"
        )
    found = np.asarray(at)
    if not found.size and found.ndim == 1:
        return np.empty(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise TypeError(
            f"{what} numbers must be integers or booleans along one axis, got {found.dtype} of shape {found.shape}"
        )
    if found.dtype.kind == "b":
        if len(found) != length:
            raise IndexError(f"a mask needs as many booleans as there are, {length:,}, got {len(found):,}")
        return np.flatnonzero(found).astype(np.int64)
    outside = (found < -length) | (found >= length) if found.dtype.kind == "i" else found >= length
    if outside.any():
        raise IndexError(f"{what} {found[outside][0]} is out of range: there are {length:,}")
    numbers = found.astype(np.int64)
    return np.where(numbers < 0, numbers + length, numbers)
