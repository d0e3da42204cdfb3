"""What predicted probabilities are worth, class by class: NumPy, one sort a class, exact also where values are equal.

Pure arithmetic over arrays; what is a mean over what, and names, are `metrics`' matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

NUM_BINS = 15
"""Bins of equal width of a calibration (Guo et al. 2017, https://arxiv.org/abs/1706.04599)."""

Per = Literal["class", "global"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Some probabilities from the largest to the smallest: an entry for each different one."""

    values: Floats
    """The probability, falling, (n,)."""
    hits: NDArray[np.int64]
    """How many of those that are at least as large are of positives, (n,)."""
    taken: NDArray[np.int64]
    """How many are at least as large, (n,)."""

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], labels: Bools) -> Ranking:
        """Rank probabilities in [0, 1], (n,), with their labels, (n,); n at least 1."""
        wide = probabilities.dtype == np.float64
        floats, ints = (np.float64, np.uint64) if wide else (np.float32, np.uint32)
        # The bits of floats that are not negative are in the order of the floats, and those of at most 1 leave the
        # highest bit free, for the label at the other end: numbers are sorted in a fifth of the time of an argsort.
        keys = (np.abs(probabilities, dtype=floats).view(ints) << ints(1)) | labels.astype(ints)
        keys.sort()
        keys = keys[::-1]
        bits = keys >> ints(1)
        last = np.append(np.flatnonzero(bits[1:] != bits[:-1]), len(bits) - 1)
        return cls(
            values=bits[last].view(floats).astype(np.float64),
            hits=np.cumsum(keys & ints(1), dtype=np.int64)[last],
            taken=last + 1,
        )

    @property
    def num_positives(self) -> int:
        """Positives in all."""
        return int(self.hits[-1])

    def average_precision(self) -> float:
        """The mean over the positives of the precision at their probability; NaN without a positive."""
        if not self.num_positives:
            return float("nan")
        gained = np.diff(self.hits, prepend=0)
        return float((gained * (self.hits / self.taken)).sum() / self.num_positives)

    def auroc(self) -> float:
        """How often a positive is above a negative, equal ones counted by half; NaN where there is no such pair."""
        misses = self.taken - self.hits
        pairs = self.num_positives * int(misses[-1])
        if not pairs:
            return float("nan")
        gained = np.diff(misses, prepend=0)
        before = np.concatenate([[0], self.hits[:-1]])
        return float((gained * (before + self.hits) / 2).sum() / pairs)

    def best_threshold(self, *, beta: float = 1.0) -> float:
        """The threshold above which F-beta is best, between two probabilities.

        One half without a positive, and where all probabilities are 0.
        """
        # What is 0 is above no threshold, so it can never be let through.
        num_above = int((self.values > 0).sum())
        if not self.num_positives or not num_above:
            return 0.5
        hits, taken = self.hits[:num_above], self.taken[:num_above]
        scores = (1 + beta**2) * hits / (taken + beta**2 * self.num_positives)
        best = int(scores.argmax())
        below = self.values[best + 1] if best + 1 < len(self.values) else 0.0
        middle = (self.values[best] + below) / 2
        # Rounded to float32, in which it is compared, it must still be less than the value that it lets through.
        rounded = float(np.float32(middle))
        return rounded if rounded < self.values[best] else float(below)


@dataclass(frozen=True, slots=True)
class Counts:
    """Right and wrong decisions, arrays of one shape."""

    tp: Floats
    """Positives that were found."""
    fp: Floats
    """Negatives that were taken for positives."""
    fn: Floats
    """Positives that were not found."""
    tn: Floats
    """Negatives that were left."""

    @classmethod
    def of(cls, said: Bools, labels: Bools, axis: int | tuple[int, int]) -> Counts:
        """Count decisions (patch, class) along an axis."""
        tp = (said & labels).sum(axis)
        positives, taken, total = labels.sum(axis), said.sum(axis), said.size // max(1, np.size(tp))
        arrays = (tp, taken - tp, positives - tp, total - taken - positives + tp)
        return cls(*(np.asarray(one, np.float64) for one in arrays))

    def ratios(self) -> Mapping[str, Floats]:
        """F1, F2, precision, recall, specificity, accuracy, as the counts are shaped; 0 for no divisor."""
        tp, fp, fn, tn = self.tp, self.fp, self.fn, self.tn
        return {
            "f1": _over(2 * tp, 2 * tp + fp + fn),
            "f2": _over(5 * tp, 5 * tp + fp + 4 * fn),
            "precision": _over(tp, tp + fp),
            "recall": _over(tp, tp + fn),
            "specificity": _over(tn, tn + fp),
            "accuracy": _over(tp + tn, tp + fp + fn + tn),
        }


def _over(above: NDArray[np.floating], below: NDArray[np.floating]) -> Floats:
    found: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found


@dataclass(frozen=True, slots=True)
class Calibration:
    """Probabilities in bins of equal width, beside how often they were right."""

    count: Floats
    """Probabilities in each bin, (NUM_BINS,)."""
    mean: Floats
    """Their mean; 0 in an empty bin."""
    share: Floats
    """Share of positives among them; 0 in an empty bin."""

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], labels: Bools) -> Calibration:
        """Put probabilities, of any shape, into bins."""
        flat, hits = probabilities.ravel(), labels.ravel()
        number = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        count = np.bincount(number, minlength=NUM_BINS).astype(float)
        total = np.bincount(number, weights=flat, minlength=NUM_BINS).astype(float)
        positive = np.bincount(number, weights=hits, minlength=NUM_BINS).astype(float)
        return cls(count, _over(total, count), _over(positive, count))

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of a bin's probability from its share of positives."""
        return float((self.count * np.abs(self.mean - self.share)).sum() / self.count.sum())


def best_thresholds(
    probabilities: NDArray[np.floating], labels: Bools, *, per: Per = "class", beta: float = 1.0
) -> tuple[float, ...]:
    """Thresholds above which a class is said to be there, that give the best F-beta on some patches.

    Args:
        probabilities: (patch, class) in [0, 1].
        labels: Of the same shape.
        per: ``class``: one for each class, which has its best F-beta; a class without a positive gets one half.
            ``global``: one for all, which gives the best F-beta of all decisions together (micro).
        beta: How many times as much recall counts as precision.

    Returns:
        One for each class, in [0, 1).

    Raises:
        ValueError: If `per` is none of these.
    """
    if per == "global":
        best = Ranking.of(probabilities.ravel(), labels.ravel()).best_threshold(beta=beta)
        return tuple(best for _ in range(probabilities.shape[1]))
    if per != "class":
        raise ValueError(f"per must be 'class' or 'global', got {per!r}")
    return tuple(
        Ranking.of(np.ascontiguousarray(probabilities[:, c]), labels[:, c]).best_threshold(beta=beta)
        for c in range(probabilities.shape[1])
    )
