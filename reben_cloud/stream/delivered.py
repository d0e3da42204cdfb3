"""`Delivered`: what was delivered of an epoch, as a sum that does not depend on the order.

Each sample has a 64-bit hash that follows from its patch id, the epoch, its row (of a table with several rows a
patch) and its copy (of a patch that comes more than once). Ranks add theirs, modulo 2**64; the sum is the epoch's
own, or something was lost, repeated or taken for something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reben_cloud.sampling import Ints

Words = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_EPOCH, _ROW, _COPY = 0xD1342543DE82EF95, 0xAF251AF3B0F025B5, 0x2545F4914F6CDD1D
_WHOLE = 1 << 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivered:
    """What was delivered of an epoch."""

    epoch: int
    """Number of the epoch."""
    num_samples: int = 0
    """How many samples."""
    value: int = 0
    """Sum of their hashes modulo 2**64."""

    @property
    def digest(self) -> str:
        """The sum in 16 hex digits."""
        return f"{self.value:016x}"

    def plus(self, num_samples: int, value: int) -> Delivered:
        """More of the same epoch: of another batch or another rank."""
        return Delivered(
            epoch=self.epoch,
            num_samples=self.num_samples + num_samples,
            value=(self.value + value) % _WHOLE,
        )

    def to_state(self) -> dict[str, int]:
        """As a loader's state has it: ``delivered``, and ``digest`` as a signed number of 64 bits."""
        return {
            "delivered": self.num_samples,
            "digest": self.value - _WHOLE if self.value >> 63 else self.value,
        }

    @classmethod
    def of_state(cls, state: Mapping[str, int]) -> Delivered:
        """What a loader's state says; nothing where it is from before there were digests."""
        return cls(
            epoch=state["epoch"],
            num_samples=state.get("delivered", 0),
            value=state.get("digest", 0) % _WHOLE,
        )


def merge_states(states: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """One state of the states of all ranks, with which any number of ranks goes on and no sample is unaccounted for.

    The states of ranks differ in what they delivered alone. Go on from one of them and batches are the same, but
    what the other ranks delivered before is not in the sum.

    Raises:
        ValueError: If there is none, or they are not of one place in one order.
    """
    given = [dict(state) for state in states]
    if not given:
        raise ValueError("there must be at least one state")
    merged = given[0]
    own = ("digest", "delivered", "rank")
    total = Delivered(epoch=merged["epoch"])
    for state in given:
        for name in sorted(merged.keys() | state.keys()):
            if name not in own and state.get(name) != merged.get(name):
                raise ValueError(
                    f"the states are of two places: {name} is {merged.get(name)} in one and {state.get(name)} in "
                    "another; take those of all ranks after the same step"
                )
        one = Delivered.of_state(state)
        total = total.plus(one.num_samples, one.value)
    return merged | total.to_state()


def hash_ids(ids: NDArray[np.bytes_]) -> Words:
    """A 64-bit hash of each patch id, which does not depend on the other ids.

    The sum, over the eight-byte little-endian words w_i of the id (the last one filled up with zeros), of ``mix(w_i *
    (2 * i + 1) * 0x9E3779B97F4A7C15)``, with the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as mix.
    It maps 0 to 0, so that a longer id beside it changes nothing.

    Args:
        ids: Shape (n,).
    """
    width = -(-max(1, ids.dtype.itemsize) // 8)
    words = np.ascontiguousarray(ids.astype(f"S{8 * width}")).view("<u8").reshape(len(ids), width)
    found = np.zeros(len(ids), np.uint64)
    for number in range(width):
        found += _mix(words[:, number] * np.uint64(_GOLDEN * (2 * number + 1) % _WHOLE))
    return found


def hash_samples(ids: Words, *, epoch: int, rows: Ints | None = None, copies: Ints | None = None) -> Words:
    """The hashes of some samples: ``mix(hash of the id + E * (epoch + 1) + R * row + C * copy)`` of each.

    E is 0xD1342543DE82EF95, R is 0xAF251AF3B0F025B5, C is 0x2545F4914F6CDD1D; everything is modulo 2**64.

    Args:
        ids: What `hash_ids` gives for the patch of each sample, shape (n,).
        epoch: Number of the epoch.
        rows: Which of its patch's rows each sample has, from 0; None: the first.
        copies: Which of the copies in the epoch each sample is, from 0; None: the first.
    """
    words = ids + np.uint64(_EPOCH * (epoch + 1) % _WHOLE)
    for numbers, factor in ((rows, _ROW), (copies, _COPY)):
        if numbers is not None:
            words += numbers.view(np.uint64) * np.uint64(factor)
    return _mix(words)


def sum_of(hashes: Words) -> int:
    """The sum of some hashes, modulo 2**64."""
    return int(hashes.sum(dtype=np.uint64))


def _mix(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
