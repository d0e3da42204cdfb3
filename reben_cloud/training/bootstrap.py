"""Confidence intervals of label metrics, by a bootstrap over squares of land.

Patches beside each other are not independent, so whole squares are drawn with replacement (block bootstrap: Roberts et
al. 2017, https://doi.org/10.1111/ecog.02881). What a draw measures follows from counts of each square, so that a
thousand draws cost little more than one: average precision is taken at 1,024 probabilities, each class's own quantiles.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.selection import Selection
from reben_cloud.training.measures import Bools, Counts, Floats

LEVEL = 0.95
"""Probability that an interval is to have."""

_STEPS = 1024
_DRAWS_AT_ONCE = 64
_MGRS = layout.column("grid:code")

Interval = tuple[float, float]


class Intervals(TypedDict):
    """Intervals of metrics, as they stand in ``metrics.json``."""

    level: float
    """Their probability."""
    num_squares: int
    """Squares that were drawn from."""
    num_draws: int
    """How often."""
    macro: dict[str, Interval]
    """Metric -> lower and upper end, of the means over classes."""
    micro: dict[str, Interval]
    """The same of all classes together."""


def squares_of(selection: Selection) -> NDArray[np.int64]:
    """Number of the square of each patch, int64 (patch,): its MGRS square of 100 km, else its product."""
    name = _MGRS if _MGRS in selection.table.names else layout.PRODUCT
    values = selection.column(name).cast(pa.string()).combine_chunks().dictionary_encode()
    codes: NDArray[np.int64] = values.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def intervals(
    probabilities: NDArray[np.floating],
    labels: Bools,
    squares: NDArray[np.int64],
    thresholds: NDArray[np.float32],
    *,
    num_draws: int = 1000,
    seed: int = 0,
) -> Intervals | None:
    """Percentile intervals of AP and of what is measured at thresholds; None where there are not two squares.

    A macro mean is over the classes that occur in a draw.

    Args:
        probabilities: (patch, class) in [0, 1].
        labels: Of the same shape.
        squares: Number of each patch's square, (patch,), not negative.
        thresholds: Probability above which a class is said to be there, (class,).
        num_draws: How often as many squares are drawn as there are, at least 1.
        seed: Of the draws.
    """
    _, squares = np.unique(squares, return_inverse=True)
    num_squares = int(squares.max()) + 1
    if num_squares < 2:
        return None
    said = probabilities > thresholds
    tp, fp, fn, tn = (
        _by_square(mask, squares, num_squares)
        for mask in (said & labels, said & ~labels, ~said & labels, ~said & ~labels)
    )
    steps = [_steps(probabilities[:, c], labels[:, c], squares) for c in range(labels.shape[1])]
    together = _steps(probabilities.ravel(), labels.ravel(), np.repeat(squares, labels.shape[1]))
    # Raw words, as NumPy promises no other stream for good.
    words = np.random.Philox(key=seed).random_raw(num_draws * num_squares).reshape(num_draws, -1)
    macro: list[dict[str, Floats]] = []
    micro: list[dict[str, Floats]] = []
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        drawn = words[start : start + _DRAWS_AT_ONCE] % np.uint64(num_squares)
        weights = _weights(drawn.astype(np.int64), num_squares)
        counts = Counts(*(weights @ one for one in (tp, fp, fn, tn)))
        there = counts.tp + counts.fn > 0
        each = {"ap": np.stack([_ap(weights, *one) for one in steps], 1), **counts.ratios()}
        num_there = np.maximum(there.sum(1), 1)
        macro.append({name: np.where(there, found, 0).sum(1) / num_there for name, found in each.items()})
        pooled = Counts(*(one.sum(1) for one in (counts.tp, counts.fp, counts.fn, counts.tn)))
        micro.append({"ap": _ap(weights, *together), **pooled.ratios()})
    return {
        "level": LEVEL,
        "num_squares": num_squares,
        "num_draws": num_draws,
        "macro": _ends(macro),
        "micro": _ends(micro),
    }


def _weights(drawn: NDArray[np.int64], num_squares: int) -> Floats:
    """How often each square was drawn, (draw, square)."""
    return np.stack([np.bincount(row, minlength=num_squares) for row in drawn]).astype(np.float64)


def _by_square(mask: Bools, squares: NDArray[np.int64], num_squares: int) -> Floats:
    """How often a mask (patch, class) is true in each square: (square, class)."""
    columns = [np.bincount(squares[mask[:, c]], minlength=num_squares) for c in range(mask.shape[1])]
    return np.stack(columns, 1).astype(np.float64)


def _steps(
    probabilities: NDArray[np.floating], labels: Bools, squares: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Positives, and all, of each square at each step of probability, from the largest: (square, step) each."""
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, _STEPS + 1)[1:-1]))
    step = len(edges) - np.searchsorted(edges, probabilities, side="right")
    shape = int(squares.max()) + 1, len(edges) + 1
    cell = squares * shape[1] + step
    size = shape[0] * shape[1]
    hits, taken = np.bincount(cell[labels], minlength=size), np.bincount(cell, minlength=size)
    return hits.reshape(shape).astype(np.float64), taken.reshape(shape).astype(np.float64)


def _ap(weights: Floats, hits: Floats, taken: Floats) -> Floats:
    """Average precision of each draw, (draw,); 0 where it has no positive."""
    gained = weights @ hits
    found = np.cumsum(gained, axis=1)
    seen = np.cumsum(weights @ taken, axis=1)
    total = (gained * found / np.maximum(seen, 1)).sum(1)
    result: Floats = total / np.maximum(found[:, -1], 1)
    return result


def _ends(parts: list[dict[str, Floats]]) -> dict[str, Interval]:
    tail = (1 - LEVEL) / 2
    ends = {}
    for name in parts[0]:
        low, high = np.quantile(np.concatenate([part[name] for part in parts]), [tail, 1 - tail])
        ends[name] = (float(low), float(high))
    return ends
