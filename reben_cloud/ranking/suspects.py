"""Labels that a model contradicts, the likeliest mistake first: confident learning for many labels per patch.

Each class is a question of its own (Thyagarajan et al. 2022, https://arxiv.org/abs/2211.13895), and noise depends on
the class and on nothing else (Northcutt, Jiang and Chuang 2021, https://doi.org/10.1613/jair.1.12125): a share of those
that lack it are labelled with it, and a share of those that have it are not. Those shares are counted among the rows of
which the model is surest, and Bayes' rule makes of them and of a row's probability how likely its label is wrong.
Shares, unlike margins to a class's mean confidence, can be compared between classes and between both kinds of mistake.

A model that is too sure of itself, as deep networks are, is first brought to what the labels say of it on average
(Platt 1999). Where the shares do not follow the classes' frequencies, any label was turned alike; then one share stands
for all, and the ranking is that of the model's confidence in the label alone, as the model gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
By = Literal["label", "patch"]

_SUREST_ABSENT = 1 / 4
"""Of as many rows as lack a class: how many, with the least probabilities, tell how many labels are added."""

_SUREST_PRESENT = 1 / 20
"""Of as many rows as have a class: how many, with the greatest, tell how many are missing. Fewer, because a model is
seldom sure of a rare class; both were chosen by simulation."""

_ALIKE_SLOPE, _ALIKE_RATIO = 0.5, 0.15
"""Labels were turned alike where the share of added ones grows with a class's odds to a power below the first (0: it is
the same for all; 1: as many are added as go missing), and is at least the second of the share of lost ones. In
simulations the power was 0.4 at most, and the ratio 0.16 at least, where any label was turned alike; the power was 0.7
at least where as many were added as lost, and the ratio 0.07 at most where none was added."""

_LEAST = 2.0**-24
"""A probability is taken to be at least this, and at most one less this: what float32 rounds to 0 or 1 is neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suspects:
    """Labels, or patches, the likeliest mistake first: columns of equal length, an entry each."""

    rows: Ints
    """Row of the patch, (n,)."""
    classes: Ints
    """Number of the class; ranked by patch, of the patch's likeliest mistake. (n,)."""
    given: NDArray[np.bool_]
    """Whether the patch is labelled with that class, (n,)."""
    probabilities: Floats
    """The model's probability of that class, (n,)."""
    scores: Floats
    """Estimated probability that the label is wrong, or that one of the patch's labels is; in [0, 1], (n,).
    Too high where the model is weak, whose own mistakes count as the labels'."""

    def __len__(self) -> int:
        return len(self.rows)


def suspects(
    labels: ArrayLike, probabilities: ArrayLike, *, by: By = "label", limit: int | None = None
) -> Suspects:
    """Rank labels by how likely they are wrong, from a model's predictions for patches it was not trained on.

    A class that every row has, or none, is not ranked: nothing tells how often its label is wrong.

    Args:
        labels: Whether each patch is labelled with each class, bool (n, num_classes).
        probabilities: The model's probability of each class in each patch, in [0, 1], of the same shape. They must be
            out of sample, as from cross-validation: a model repeats the mistakes that it was trained on.
        by: ``label`` ranks each label of each patch, also those that are not given and might be missing; ``patch``
            ranks patches by the probability that any of their labels is wrong.
        limit: How many at most, at least 1; None: all.

    Returns:
        The ranking; of equal scores the lower row comes first, then the lower class.

    Raises:
        ValueError: If shapes do not agree, a probability is not finite or not in [0, 1] (the message names the first),
            or `by` or `limit` is none of those above.
        TypeError: If `labels` is not boolean or `probabilities` not of floats.
    """
    given, found = _checked(np.asarray(labels), np.asarray(probabilities))
    if by not in get_args(By):
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    ranked = np.flatnonzero(given.any(axis=0) & ~given.all(axis=0))
    scores = _wrong(given[:, ranked], found[:, ranked])
    if len(ranked) == 0:
        rows = at = np.zeros(0, np.int64)
        shown = np.zeros(0)
    elif by == "label":
        order = _first(scores.ravel(), limit)
        rows, at = np.divmod(order, len(ranked))
        shown = scores[rows, at]
    else:
        any_wrong = -np.expm1(np.log1p(-scores).sum(axis=1))
        rows = _first(any_wrong, limit)
        at = scores[rows].argmax(axis=1)
        shown = any_wrong[rows]
    classes = ranked[at]
    return Suspects(
        rows=rows,
        classes=classes,
        given=given[rows, classes],
        probabilities=found[rows, classes].astype(np.float64),
        scores=shown,
    )


def _wrong(given: NDArray[np.bool_], found: NDArray[np.floating]) -> Floats:
    """Estimated probability that each label is wrong, (n, num_classes); each class has rows with it and without."""
    if not given.shape[1]:
        return np.empty(given.shape)
    sure = np.clip(found.astype(np.float64), _LEAST, 1 - _LEAST)
    num_given = given.sum(axis=0)
    added, missing = _shares(given, sure)
    # One share for all classes: of a class that a model seldom sees, its own mistakes look like missing labels.
    lost = float(np.average(missing, weights=num_given))
    all_added = float(np.average(added, weights=len(given) - num_given))
    if _slope(added, num_given, len(given)) < _ALIKE_SLOPE and all_added >= _ALIKE_RATIO * lost:
        lost, added = all_added, np.full(len(added), all_added)
    else:
        sure = np.stack([_calibrated(*one) for one in zip(given.T, sure.T, strict=True)], axis=1)
    odds = np.where(given, added / (1 - lost) * (1 - sure) / sure, lost / (1 - added) * sure / (1 - sure))
    wrong: Floats = odds / (1 + odds)
    return wrong


def _shares(given: NDArray[np.bool_], sure: Floats) -> tuple[Floats, Floats]:
    """Of those that lack a class, how many are labelled with it; of those that have it, how many are not."""
    added, missing = np.empty(given.shape[1]), np.empty(given.shape[1])
    for number, (has, probability) in enumerate(zip(given.T, sure.T, strict=True)):
        num_given = int(has.sum())
        num_absent = int(np.ceil(_SUREST_ABSENT * (len(has) - num_given)))
        num_present = int(np.ceil(_SUREST_PRESENT * num_given))
        absent = probability <= np.partition(probability, num_absent - 1)[num_absent - 1]
        present = probability >= np.partition(probability, -num_present)[-num_present]
        added[number] = _share(has[absent])
        missing[number] = _share(~has[present])
    return added, missing


def _slope(added: Floats, num_given: Ints, num_rows: int) -> float:
    """Power of a class's odds with which the share of added labels grows; 1 where all classes are as frequent."""
    odds = np.log(num_given / (num_rows - num_given))
    weights = np.minimum(
        added * (num_rows - num_given) * _SUREST_ABSENT, 50
    )  # a share of many is not all exact
    centred = odds - np.average(odds, weights=weights)
    spread = np.sum(weights * centred**2)
    return float(np.sum(weights * centred * np.log(added)) / spread) if spread > 1e-9 * weights.sum() else 1.0


def _calibrated(has: NDArray[np.bool_], sure: Floats) -> Floats:
    """Probabilities whose logit is the line of the model's logit under which the labels are likeliest.

    A prior as strong as four labels keeps it near the model's own where there are few. Of many rows some tell enough.
    """
    logit = np.log(sure / (1 - sure))
    everything = np.stack([logit, np.ones(len(logit))], axis=1)
    some = slice(None, None, -(-len(logit) // _FITTED_ROWS))
    features, labels = everything[some], has[some].astype(np.float64)

    def cost(line: Floats) -> float:
        values = features @ line
        return float(np.logaddexp(0, values).sum() - labels @ values + ((line - _AS_IS) ** 2).sum() / 2)

    line, least = _AS_IS, cost(_AS_IS)
    for _ in range(20):  # Newton's method, by half a step where a whole one goes too far
        values = 1 / (1 + np.exp(-features @ line))
        slope = features.T @ (values - labels) + line - _AS_IS
        bend = (features * (values * (1 - values))[:, None]).T @ features + np.eye(2)
        step = np.linalg.solve(bend, slope)
        while (reached := cost(line - step)) > least and np.abs(step).max() > _PRECISE:
            step = step / 2
        if reached >= least:
            break
        line, least = line - step, reached
        if np.abs(step).max() < _PRECISE:
            break
    line = np.maximum(line, [0, -np.inf])  # a model that is wrong on the whole says nothing
    calibrated: Floats = np.clip(1 / (1 + np.exp(-everything @ line)), _LEAST, 1 - _LEAST)
    return calibrated


_AS_IS = np.array([1.0, 0.0])
"""Slope and intercept that leave a model's logits as they are."""

_PRECISE, _FITTED_ROWS = 1e-4, 50_000
"""Change of a line that no longer matters; most rows that it is fitted to."""


def _share(wrong: NDArray[np.bool_]) -> float:
    """How many are wrong, by Jeffreys' rule: where none was seen, some may be."""
    return (int(wrong.sum()) + 0.5) / (len(wrong) + 1)


def _first(scores: Floats, limit: int | None) -> Ints:
    """Positions of the largest scores, largest first, of equal ones the lower position."""
    places = np.arange(len(scores))
    if limit is not None and limit < len(scores):
        places = np.flatnonzero(scores >= np.partition(scores, -limit)[-limit])
    return places[np.argsort(-scores[places], kind="stable")][:limit]


def _checked(
    labels: NDArray[np.generic], probabilities: NDArray[np.generic]
) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    if labels.dtype != np.bool_:
        raise TypeError(f"labels must be boolean, got {labels.dtype}")
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise TypeError(f"probabilities must be floats, got {probabilities.dtype}")
    if labels.ndim != 2 or labels.shape != probabilities.shape:
        raise ValueError(
            "labels and probabilities must have one shape (n, num_classes), got "
            f"{labels.shape} and {probabilities.shape}"
        )
    given, found = labels.view(np.bool_), probabilities.view(probabilities.dtype)
    inside = (found >= 0) & (found <= 1)  # which is False for NaN
    if not inside.all():
        row, number = np.argwhere(~inside)[0]
        raise ValueError(
            f"probability of class {number} in row {row} must be in [0, 1], got {found[row, number]}; a model's logits "
            "become probabilities by a sigmoid"
        )
    return given, found
