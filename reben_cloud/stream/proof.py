"""What an epoch of a selection should deliver, computed from the table of patches alone."""

from __future__ import annotations

import numpy as np

from reben_cloud.errors import ChecksumError
from reben_cloud.root.mixture import Mixture
from reben_cloud.root.selection import Selection
from reben_cloud.stream.delivered import Delivered
from reben_cloud.stream.epoch import Entries
from reben_cloud.stream.mixed import stored_of


def expected_delivery(
    selection: Selection | Mixture,
    *,
    epoch: int,
    seed: int = 0,
    num_samples: int | None = None,
    lanes: int = 8,
    window: int = 1,
    shuffle: bool = True,
) -> Delivered:
    """What all ranks together deliver of a selection in an epoch; no pixel is read.

    Args:
        selection: What was streamed, with its weights and rows.
        epoch: Number of the epoch.
        seed: Seed of the run; it counts where there are weights, or not all samples were delivered.
        num_samples: How many samples were delivered, the first ones of the order: fewer than all where `drop_last`
            left some out, or the epoch is still running. None: all.
        lanes: Of the run; it counts where not all samples were delivered, as do `window` and `shuffle`.
        window: Of the run.
        shuffle: Of the run.

    Raises:
        NotFoundError: If the selection is empty.
        ValueError: If an argument is out of range.
    """
    selection.require_patches("nothing was streamed")
    if epoch < 0 or seed < 0:
        raise ValueError(f"seed and epoch must not be negative, got {seed} and {epoch}")
    entries = Entries(stored_of(selection, None, ()), selection.repeats)
    if num_samples is not None and not 0 <= num_samples <= entries.num_samples:
        raise ValueError(
            f"an epoch of this selection has {entries.num_samples:,} samples, of which {num_samples:,} cannot have "
            "been delivered"
        )
    samples = entries.of_epoch(epoch, seed=seed)
    numbers = np.arange(entries.num_samples)
    if num_samples is not None and num_samples < entries.num_samples:
        fingerprint = entries.stored.fingerprint
        order = samples.order(seed=seed, fingerprint=fingerprint, lanes=lanes, window=window, shuffle=shuffle)
        numbers = order.take(numbers[:num_samples])
    return Delivered(epoch=epoch).plus(len(numbers), samples.sum_of(numbers))


def compare_delivery(expected: Delivered, digest: str) -> None:
    """Compare a digest that was recorded with what should have been delivered.

    Raises:
        ValueError: If it is not 16 hex digits.
        ChecksumError: If they differ.
    """
    try:
        value = int(digest, 16)
    except ValueError:
        value = -1
    if len(digest) != len(expected.digest) or value < 0:
        raise ValueError(f"a digest is 16 hex digits, not {digest!r}")
    if value != expected.value:
        raise ChecksumError(
            f"epoch {expected.epoch} should have delivered {expected.num_samples:,} samples of digest "
            f"{expected.digest}, and {digest} was recorded: samples were lost, repeated or are others, or the "
            "selection, epoch, seed or number of samples is not the one of the run"
        )
