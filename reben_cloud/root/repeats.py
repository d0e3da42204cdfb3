"""How often patches come in an epoch, where some come more often than others: weights, and a plan of whole numbers.

A weight is how often a patch comes in an epoch, in the mean over epochs. In one epoch it comes so often as
`epoch_counts`
says: the weight rounded down or up. All is computed in whole numbers, so that every machine plans the same epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import NotFoundError
from reben_cloud.root import layout
from reben_cloud.root.arrow import values_of
from reben_cloud.root.drawn import ranges
from reben_cloud.sampling import Ints, radical_inverse, random_words

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from reben_cloud.root.selection import Selection

_ONE = 1 << 32
"""Units of a weight of 1."""

_STEP = 2.0**-20
"""Weights are multiples of it: what another machine's `pow` gives a little higher is the same weight."""

_MOST_SAMPLES = 2**30
"""Of an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Repeats:
    """How often the patches of a selection come in an epoch.

    Raises:
        ValueError: If a weight is negative or no finite number, or they are too large.
    """

    weights: NDArray[np.float64]
    """How often each patch comes in an epoch, in the mean over epochs; shape (num_patches,)."""
    passes: int = 1
    """In how many passes over the shards an epoch's copies of a patch are delivered."""

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ValueError(f"passes must be at least 1, got {self.passes}")
        wrong = np.flatnonzero(~(np.isfinite(self.weights) & (self.weights >= 0)))
        if wrong.size:
            raise ValueError(
                f"weights must be finite and not negative, got {self.weights[wrong[0]]} at position {wrong[0]}"
            )
        total = math.fsum(self.weights.tolist())
        if total > _MOST_SAMPLES:
            raise ValueError(
                f"the weights make an epoch of {total:,.0f} samples; more than {_MOST_SAMPLES:,} are not planned: "
                "scale them down, or pass num_samples="
            )
        object.__setattr__(self, "weights", np.rint(self.weights / _STEP) * _STEP)

    def require_samples(self) -> None:
        """Refuse weights of which no epoch could be made.

        Raises:
            NotFoundError: If all are 0.
        """
        if not self.weights.any():
            raise NotFoundError("nothing is left: all weights are 0")

    def taken(self, patches: Ints) -> Repeats:
        """The same for these patches, in their order."""
        return Repeats(weights=self.weights[patches], passes=self.passes)


def units_of(weights: NDArray[np.float64]) -> Ints:
    """Weights in whole numbers of which 2**32 are 1."""
    return np.rint(weights * _ONE).astype(np.int64)


def epoch_length(units: Ints) -> int:
    """Samples in an epoch, the same in each: the whole number nearest to the sum of the weights, and at least 1."""
    return max(1, (int(units.sum()) + _ONE // 2) // _ONE)


def epoch_counts(units: Ints, *, seed: int, epoch: int) -> Ints:
    """How often each of some samples comes in an epoch (systematic sampling).

    The weights are laid end to end and scaled to `epoch_length`, which changes each by the same factor, by half a
    sample over all of them at most. A comb of as many equally distant teeth falls on them, and a sample comes once
    for each tooth on it. The comb is moved for every epoch by the next fraction of van der Corput's sequence: in 2**k
    epochs that begin with a multiple of 2**k, its teeth make a comb 2**k times as fine, so each sample comes within
    one of 2**k times its weight (Hermite's identity), and as often as its weight says in the limit.

    Args:
        units: Weights, as `units_of` gives them, shape (n,); at least one is positive.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        Counts, shape (n,): the scaled weight, rounded down or up.
    """
    ends = np.cumsum(units)
    length, total = epoch_length(units), int(ends[-1])
    apart, rest = divmod(total, length)
    begin = int(random_words(1, "repeats", seed)[0] >> np.uint64(32))
    turn = (begin + int(radical_inverse(np.array([epoch]))[0])) % _ONE
    teeth = np.arange(length, dtype=np.int64)
    teeth = teeth * apart + teeth * rest // length + apart * turn // _ONE
    return np.bincount(np.searchsorted(ends, teeth, side="right"), minlength=len(units)).astype(np.int64)


def copies_of(counts: Ints, passes: int) -> tuple[Ints, Ints, Ints]:
    """The samples of an epoch in stored order, pass after pass.

    Args:
        counts: How often each entry comes, shape (n,).
        passes: Number of passes.

    Returns:
        The entry of each sample, which of its copies it is, and its pass: copy c comes in pass c modulo `passes`.
    """
    entry = np.repeat(np.arange(len(counts)), counts)
    copy = ranges(np.zeros(len(counts), np.int64), counts)
    passed = copy % passes
    if passes > 1:
        order = np.argsort(passed, kind="stable")
        entry, copy, passed = entry[order], copy[order], passed[order]
    return entry, copy, passed


def weigh(
    selection: Selection,
    weights: ArrayLike | Mapping[str, float] | str,
    *,
    num_samples: int | None,
    passes: int,
) -> Repeats:
    """The weights that somebody gives; `Selection.weighted` tells more."""
    if isinstance(weights, str):
        column = selection.column(weights)
        if column.null_count:
            raise ValueError(
                f"column {weights!r} is null for {column.null_count:,} of the patches, which has no weight; select "
                f"those that have it (cql2: {weights!r} IS NOT NULL)"
            )
        found = values_of(column).astype(np.float64)
    elif isinstance(weights, Mapping):
        lacking = [one for one in selection.patch_ids if one not in weights]
        if lacking:
            raise ValueError(f"{len(lacking):,} patches have no weight, such as {lacking[0]}")
        found = np.array([weights[one] for one in selection.patch_ids], np.float64)
    else:
        found = np.array(weights, np.float64)
    if found.shape != (len(selection),):
        raise ValueError(f"weights must be one per patch, of shape ({len(selection)},), got {found.shape}")
    return _of_length(found, num_samples, passes)


def balance(
    selection: Selection, *, power: float, threshold: float | None, num_samples: int | None, passes: int
) -> Repeats:
    """Repeat factors by labels; `Selection.balanced` tells more."""
    if not 0 <= power <= 1:
        raise ValueError(f"power must be in [0, 1], got {power}")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    labels = selection.dataset.schema.classes.encode(selection.column(layout.LABELS))
    return _of_length(repeat_factors(labels, power=power, threshold=threshold), num_samples, passes)


def repeat_factors(
    labels: NDArray[np.uint8], *, power: float = 0.5, threshold: float | None = None
) -> NDArray[np.float64]:
    """Repeat factor sampling: r(patch) = max over its classes c of max(1, (t / f(c)) ** power).

    f(c) is the share of patches that have the class. With power 0.5 that is Gupta, Dollar and Girshick, "LVIS: A
    Dataset for Large Vocabulary Instance Segmentation", CVPR 2019, section 4.2.

    Args:
        labels: 0 or 1, shape (num_patches, num_classes).
        power: 0 repeats nothing; 1 repeats a class of few patches until it is in a share t of them, were it alone.
        threshold: t; by default the median of f over the classes that occur.

    Returns:
        Factors, at least 1, shape (num_patches,).
    """
    share = labels.mean(axis=0, dtype=np.float64)
    there = share > 0
    if not there.any():
        return np.ones(len(labels))
    share = np.where(there, share, 1.0)
    most = float(np.median(share[there])) if threshold is None else threshold
    factors = np.maximum(1.0, (most / share) ** power)
    found: NDArray[np.float64] = np.maximum(1.0, (labels * factors).max(axis=1))
    return found


def _of_length(weights: NDArray[np.float64], num_samples: int | None, passes: int) -> Repeats:
    if num_samples is not None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        given = Repeats(weights=weights)
        given.require_samples()
        weights = given.weights * (num_samples / math.fsum(given.weights.tolist()))
    found = Repeats(weights=weights, passes=passes)
    found.require_samples()
    return found
