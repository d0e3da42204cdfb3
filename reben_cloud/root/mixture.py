"""`Mixture`: selections of several roots that hold the same kind of patches, to be streamed as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from reben_cloud.root.repeats import Repeats
from reben_cloud.root.selection import Selection


def concat(
    selections: Sequence[Selection],
    *,
    proportions: Sequence[float] | None = None,
    num_samples: int | None = None,
    passes: int = 1,
) -> Mixture:
    """Selections of one or several roots, streamed as one: every loader takes it in the place of a selection.

    Each epoch has the patches of all of them, in an order in which the roots take turns by their share. Weights of
    the selections count. Shards of a lane belong to one root each, so batches hold the proportions more exactly
    with a larger `window` of the loader (docs/howto/balance.md has figures).

    Args:
        selections: At least one, of roots whose classes, and modalities that are streamed, are the same. Columns of
            layers that are streamed must be in all of them; rows (`Selection.with_rows`) cannot be mixed.
        proportions: Share of an epoch of each, positive; they are scaled to a sum of 1. By default as many as there
            are.
        num_samples: Samples of an epoch; by default as many as without proportions.
        passes: As in `Selection.weighted`.

    Raises:
        NotFoundError: If a selection is empty.
        TypeError: If something else is given.
        ValueError: If there is none, they do not fit, or a proportion is out of range.
    """
    parts = tuple(selections)
    if not parts:
        raise ValueError("concat needs at least one selection")
    for number, part in enumerate(parts):
        if not isinstance(part, Selection):
            raise TypeError(
                f"concat takes selections, not a {type(part).__name__}: pass `dataset.search()` for all"
            )
        part.require_patches(f"selection {number} has nothing to mix")
        if part.drawn:
            raise ValueError(
                f"selection {number} has rows of the layer {part.drawn[0].layer}, which cannot be mixed"
            )
        if part.dataset.schema.classes != parts[0].dataset.schema.classes:
            raise ValueError(
                f"{part.dataset.url} has other classes than {parts[0].dataset.url}: labels would be mixed up"
            )
    if proportions is None and num_samples is None and all(part.repeats is None for part in parts):
        return Mixture(parts)
    given = [np.ones(len(p)) if p.repeats is None else p.repeats.weights for p in parts]
    sums = [math.fsum(weights.tolist()) for weights in given]
    shares = sums if proportions is None else [float(share) for share in proportions]
    if len(shares) != len(parts) or not all(math.isfinite(share) and share > 0 for share in shares):
        raise ValueError(
            f"proportions must be {len(parts)} positive numbers, one per selection, got {proportions}"
        )
    total = math.fsum(sums) if num_samples is None else num_samples
    if total < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    scaled = [
        weights * (total * share / math.fsum(shares) / own)
        for weights, share, own in zip(given, shares, sums, strict=True)
    ]
    return Mixture(parts, repeats=Repeats(weights=np.concatenate(scaled), passes=passes))


class Mixture:
    """Selections that are streamed as one; made by `concat`."""

    def __init__(self, parts: Sequence[Selection], *, repeats: Repeats | None = None) -> None:
        self.parts = tuple(parts)
        """The selections."""
        self.repeats = repeats
        """How often their patches come in an epoch, one selection after the other; None: once."""

    def __len__(self) -> int:
        """Number of patches."""
        return sum(map(len, self.parts))

    def __repr__(self) -> str:
        return f"Mixture({', '.join(map(repr, self.parts))})"

    @cached_property
    def patch_ids(self) -> list[str]:
        """Ids of the patches, one selection after the other; ``batch["index"]`` counts in this list."""
        return [patch_id for part in self.parts for patch_id in part.patch_ids]

    def require_patches(self, purpose: str) -> None:
        """Refuse an empty selection among them, as `Selection.require_patches`."""
        for part in self.parts:
            part.require_patches(purpose)
