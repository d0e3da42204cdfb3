"""Labels that a model contradicts, the likeliest mistake first: confident learning for many labels per patch.

Each class is a question of its own (Thyagarajan et al. 2022, https://arxiv.org/abs/2211.13895), and noise depends on
the class and on nothing else (Northcutt, Jiang and Chuang 2021, https://doi.org/10.1613/jair.1.12125): a share of those
that lack it are labelled with it, and a share of those that have it are not. Those shares are counted among the rows of
which the model is surest, and Bayes' rule makes of them and of a row's probability how likely its label is wrong.
Shares, unlike margins to a class's mean confidence, can be compared between classes and between both kinds of mistake.
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
    added, missing, num_given = (np.empty(given.shape[1]) for _ in range(3))
    for number in range(given.shape[1]):
        has, probability = given[:, number], found[:, number]
        num_given[number] = has.sum()
        num_absent = int(np.ceil(_SUREST_ABSENT * (len(has) - num_given[number])))
        num_present = int(np.ceil(_SUREST_PRESENT * num_given[number]))
        absent = probability <= np.partition(probability, num_absent - 1)[num_absent - 1]
        present = probability >= np.partition(probability, -num_present)[-num_present]
        added[number] = _share(has[absent])
        missing[number] = _share(~has[present])
    # One share for all classes: of a class that a model seldom sees, its own mistakes look like missing labels.
    lost = np.average(missing, weights=num_given) if len(missing) else 0.0
    sure = np.clip(found.astype(np.float64), _LEAST, 1 - _LEAST)
    odds = np.where(given, added / (1 - lost) * (1 - sure) / sure, lost / (1 - added) * sure / (1 - sure))
    wrong: Floats = odds / (1 + odds)
    return wrong


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
