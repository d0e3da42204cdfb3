"""The order of samples, as arithmetic: at write time, in an epoch, over lanes, ranks and steps.

Nothing here reads data or keeps state: an order follows from sizes, a seed and a fingerprint, and
any part of it is computed without what comes before. The words:

*stored position*: index of a selected sample when all are sorted by shard and row;
*string*: the selected samples of all shards, shards permuted, one after the other;
*lane*: one of `lanes` equal ranges of the string; *global sample* k comes from lane k mod lanes;
*block*: the samples of `window` neighbouring shards of a lane, which are shuffled together.

A step of W ranks is the next ``batch_size * W`` global samples, whatever W is; how they are shared out is
`Steps`. Where W divides the lanes, rank r takes the k with k mod W = r and reads only the lanes l with
l mod W = r. For any other W the ranks share lanes: as few as can be, and never a sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_BLOCK_SAMPLES_IN_ORDER = 256
"""Samples in a block of an unshuffled epoch: as many as in a shard."""


_SCRAMBLED_BITS = 14
"""Levels at which the order inside blocks is random; finer than a block of 16,384 samples it need not be."""

_KEPT_STRATA_BITS = 6
"""An epoch keeps 2**6 strata: finer ones gain little for batches and cost randomness (bench_shuffle.py)."""


def random_words(count: int, *key: int | str) -> NDArray[np.uint64]:
    """`count` random 64-bit words named by `key`; the same on every machine and for good.

    The parts of the key are hashed, not added: neighbouring seeds or epochs share nothing.
    """
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=16).digest()
    # NumPy guarantees a bit generator's integer stream for good, but not `permutation()`.
    words: NDArray[np.uint64] = np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(count)
    return words


def shuffled_order(num_samples: int, *, seed: int, stream: int = 0) -> Ints:
    """A random permutation for the write-time order of one group of shards.

    Args:
        num_samples: Length of the permutation.
        seed: Seed of the build.
        stream: Number of the group, so that groups do not share an order.
    """
    return np.argsort(random_words(num_samples, "write", seed, stream), kind="stable")


def stratified_order(strata: NDArray[np.integer], *, seed: int, shard_samples: int, stream: int = 0) -> Ints:
    """Write-time order in which every shard, and every run of rows, is a fair sample of the strata.

    The samples, sorted by stratum and otherwise left in the given order (so in patch id order a
    stratum is a strip of neighbouring patches), are cut into `shard_samples` equal ranges. Each
    shard gets one random sample of each range; row j holds the range that the radical inverse of
    j names, so that any 2**n rows in a row spread over all strata.

    Args:
        strata: Stratum of each sample, any integers, shape (n,).
        seed: Seed of the build.
        shard_samples: Samples in a shard; the last shard may have fewer.
        stream: Number of the group of shards, so that groups do not share an order.

    Returns:
        A permutation of ``range(n)``: the sample at each place, shard by shard.
    """
    num_samples = len(strata)
    num_shards = -(-num_samples // shard_samples)
    last = num_samples - (num_shards - 1) * shard_samples
    # How many shards have a row j, for rows in the order of the ranges that they hold.
    by_range = np.argsort(radical_inverse(np.arange(shard_samples)), kind="stable")
    sizes = np.where(by_range < last, num_shards, num_shards - 1)
    row = np.repeat(by_range, sizes)
    words = random_words(num_samples, "write", seed, stream)
    # Within each range (rows of `row` that are equal), a random sample for each shard in turn.
    members = np.argsort(strata, kind="stable")
    members = members[np.lexsort((words, np.repeat(np.arange(shard_samples), sizes)))]
    shard = np.arange(num_samples) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    order = np.empty(num_samples, np.int64)
    order[shard * shard_samples + row] = members
    return order


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some neighbouring samples of a lane, which are fetched together."""

    lane: int
    """The lane."""
    start: int
    """Position in the lane of the first sample."""
    samples: Ints
    """Stored positions of the samples in the order in which they are delivered."""

    @property
    def stop(self) -> int:
        """Position in the lane after the last sample."""
        return self.start + len(self.samples)


class EpochOrder:
    """The order of one epoch of one selection; the same for every number of ranks.

    Args:
        counts: Selected samples of each shard, shape (num_shards,); zeros are fine.
        rows: Row in its shard of each selected sample in stored order, shape (sum of counts,).
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        fingerprint: Names the dataset, so that two datasets do not share an order.
        lanes: Number of lanes, at least 1.
        window: Shards of a lane that are shuffled together, at least 1.
        parts: Which of several datasets each shard is of, shape (num_shards,): their shards take turns by their share.
        in_order: Do not shuffle: global sample k is the one at stored position ``in_order[k]``.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        counts: NDArray[np.integer],
        rows: NDArray[np.integer],
        *,
        seed: int = 0,
        epoch: int = 0,
        fingerprint: str = "",
        lanes: int = 8,
        window: int = 1,
        parts: Ints | None = None,
        in_order: Ints | None = None,
    ) -> None:
        if seed < 0 or epoch < 0:
            raise ValueError(f"seed and epoch must not be negative, got {seed} and {epoch}")
        if lanes < 1 or window < 1:
            raise ValueError(f"lanes and window must be at least 1, got {lanes} and {window}")
        sizes = np.asarray(counts, np.int64)
        if len(rows) != sizes.sum() or (in_order is not None and len(in_order) != len(rows)):
            raise ValueError(f"{sizes.sum()} samples are counted, but {len(rows)} rows are given")
        self.num_samples = int(sizes.sum())
        """Samples in the epoch."""
        self.lanes = lanes
        """Number of lanes."""
        self._key = (seed, epoch, fingerprint)
        self._in_order = in_order
        self._window = window
        self._strata = radical_inverse(np.asarray(rows)) >> np.uint32(32 - _KEPT_STRATA_BITS)
        shards = np.flatnonzero(sizes)
        shards = shards[np.argsort(random_words(len(shards), "shards", *self._key), kind="stable")]
        if parts is not None:
            shards = shards[np.argsort(_turns(sizes[shards], parts[shards]), kind="stable")]
        # Piece i of the string ends before ends[i]; what is at k in it is at k + shift[i] in stored order.
        self._ends = np.cumsum(sizes[shards])
        first = np.cumsum(sizes) - sizes
        self._shift = first[shards] - (self._ends - sizes[shards])
        # Lanes differ by one sample at most: lane l has the k = l, l + lanes, ... below num_samples.
        lengths = (self.num_samples - np.arange(lanes) + lanes - 1) // lanes
        self._lane_start = np.concatenate([[0], np.cumsum(lengths)])
        self._block_starts = [self._cut(lane) for lane in range(lanes)]
        # Shared by all lanes: what they deliver at one time stays stratified together.
        words = random_words(2**_SCRAMBLED_BITS // 64, "scramble", *self._key)
        self._scramble = _scrambling(np.unpackbits(words.astype("<u8").view(np.uint8)).astype(np.uint32))
        self._block = lru_cache(maxsize=4 * lanes)(self._make_block)

    def take(self, numbers: Ints) -> Ints:
        """Stored positions of global samples; costs a block of each lane that is touched.

        Args:
            numbers: Global sample numbers in [0, num_samples), any shape (n,).
        """
        found = np.empty(len(numbers), np.int64)
        for lane in np.unique(numbers % self.lanes).tolist():
            mine = np.flatnonzero(numbers % self.lanes == lane)
            positions = numbers[mine] // self.lanes
            which = self._block_of(lane, positions)
            for number in np.unique(which).tolist():
                here = which == number
                block = self._block(lane, number)
                found[mine[here]] = block.samples[positions[here] - block.start]
        return found

    def schedule(self, steps: Steps, start: int = 0) -> list[tuple[int, int]]:
        """The blocks that a rank needs from global sample `start` on, in the order of first use.

        Args:
            steps: Of the rank.
            start: Global sample with which its first step begins.

        Returns:
            (lane, number of the block), for `block`.
        """
        stop = steps.stop(start)
        if steps.shares_lanes:
            numbers = np.arange(start + (steps.rank - start) % steps.classes, stop, steps.classes)
            numbers = numbers[steps.places(numbers, start)[0] == steps.rank]
        found = []
        for lane in range(steps.rank % steps.classes, self.lanes, steps.classes):
            starts = self._block_starts[lane]
            if steps.shares_lanes:
                mine = numbers[numbers % self.lanes == lane]
                blocks, first = np.unique(self._block_of(lane, mine // self.lanes), return_index=True)
                found += [(k, lane, n) for k, n in zip(mine[first].tolist(), blocks.tolist(), strict=True)]
                continue
            position = max(0, -(-(start - lane) // self.lanes))
            if position >= starts[-1]:
                continue
            for number in range(int(self._block_of(lane, np.array([position]))[0]), len(starts) - 1):
                first_used = max(position, int(starts[number])) * self.lanes + lane
                if first_used < stop:
                    found.append((first_used, lane, number))
        return [(lane, number) for _, lane, number in sorted(found)]

    def share(self, lane: int, number: int, steps: Steps, start: int) -> Ints:
        """Stored positions of the samples of a block that a rank delivers from global sample `start` on, in order."""
        block = self.block(lane, number)
        inside = slice(
            *(max(0, -(-(k - lane) // self.lanes) - block.start) for k in (start, steps.stop(start)))
        )
        samples: Ints = block.samples[inside]
        if steps.shares_lanes:
            samples = samples[steps.places(self.numbers(block)[inside], start)[0] == steps.rank]
        return samples

    def numbers(self, block: Block) -> Ints:
        """The global numbers of a block's samples, rising."""
        return (block.start + np.arange(len(block.samples))) * self.lanes + block.lane

    def block(self, lane: int, number: int) -> Block:
        """One block of a lane."""
        return self._block(lane, number)

    def _block_of(self, lane: int, positions: Ints) -> Ints:
        found: Ints = np.searchsorted(self._block_starts[lane], positions, side="right").astype(np.int64) - 1
        return found

    def _cut(self, lane: int) -> Ints:
        """Positions in the lane at which blocks start, and its length."""
        start, stop = self._lane_start[lane : lane + 2]
        if self._in_order is not None:
            return np.append(np.arange(0, stop - start, _BLOCK_SAMPLES_IN_ORDER), stop - start)
        inside = self._ends[(self._ends > start) & (self._ends < stop)]
        # Lanes change their shards at different times: a steady flow, not a burst.
        inside = inside[lane % self._window :: self._window]
        bounds: Ints = (
            np.concatenate([[start], inside, [stop] if stop > start else []]).astype(np.int64) - start
        )
        return bounds

    def _make_block(self, lane: int, number: int) -> Block:
        start, stop = (int(p) for p in self._block_starts[lane][number : number + 2])
        if self._in_order is not None:
            return Block(
                lane=lane, start=start, samples=self._in_order[lane + self.lanes * np.arange(start, stop)]
            )
        string = int(self._lane_start[lane]) + np.arange(start, stop)
        piece = np.searchsorted(self._ends, string, side="right")
        stored = string + self._shift[piece]
        # Sorted by stratum, ties at random; then dealt out so that any run of positions, and what
        # the other lanes deliver meanwhile, spreads over the strata (a scrambled (0, 2)-sequence).
        words = random_words(len(stored), "samples", *self._key, lane, number)
        by_stratum = np.lexsort((words, self._strata[stored]))
        place = np.arange(start, stop, dtype=np.uint32) ^ _turn_of(lane, self.lanes)
        point = _reverse_bits(place ^ self._scramble[place & np.uint32(len(self._scramble) - 1)])
        samples = np.empty_like(stored)
        samples[np.argsort(point, kind="stable")] = stored[by_stratum]
        return Block(lane=lane, start=start, samples=samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """How an epoch is cut into batches, for one rank. All ranks have equally many steps, from any position on.

    A step is the next ``batch_size * world_size`` global samples. With g the greatest common divisor of ranks and
    lanes, the samples k with k mod g = c belong to the ranks r with r mod g = c: as many of each step for every c.
    Where W divides the lanes that is one rank. Otherwise these W / g ranks take the step's samples, sorted by lane,
    in W / g equal runs: there are only lanes + W - g pairs of a lane and a rank that reads it, and no rule has fewer
    (but for batches so small that a run is not always of the same lanes).
    """

    num_samples: int
    """Samples in the epoch."""
    batch_size: int
    """Samples in a batch of this rank."""
    lanes: int
    """Lanes of the order."""
    rank: int = 0
    """This rank."""
    world_size: int = 1
    """Number of ranks."""
    drop_last: bool = False
    """Leave out the last global batch when it is not full."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in [0, {self.world_size}), got {self.rank}")
        if self.lanes < 1:
            raise ValueError(f"lanes must be at least 1, got {self.lanes}")

    @property
    def global_batch(self) -> int:
        """Samples in a step of all ranks together."""
        return self.batch_size * self.world_size

    @property
    def classes(self) -> int:
        """Into how many parts that share nothing ranks and lanes fall: rank r reads lanes l with l = r modulo this."""
        return math.gcd(self.world_size, self.lanes)

    @property
    def shares_lanes(self) -> bool:
        """Whether some lanes are read by more than one rank."""
        return self.world_size > self.classes

    def remaining(self, start: int) -> int:
        """Number of steps from global sample `start` on."""
        left = max(0, self.num_samples - start)
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def stop(self, start: int) -> int:
        """Global sample after the last one that is delivered, if the first step begins at `start`."""
        return min(self.num_samples, start + self.remaining(start) * self.global_batch)

    def numbers(self, start: int) -> Ints:
        """Global numbers of this rank's samples in the step that begins at `start`, row by row.

        There are `batch_size` of them, and fewer where the epoch ends.
        """
        stop = min(start + self.global_batch, self.num_samples)
        numbers = np.arange(start + (self.rank - start) % self.classes, stop, self.classes)
        if not self.shares_lanes:
            return numbers
        part, parts = self.rank // self.classes, self.world_size // self.classes
        numbers = numbers[np.argsort(numbers % self.lanes, kind="stable")]
        return numbers[part * len(numbers) // parts : (part + 1) * len(numbers) // parts]

    def places(self, numbers: Ints, start: int) -> tuple[Ints, Ints]:
        """Whose global samples are, without what comes before them: the inverse of `numbers`.

        Args:
            numbers: Global numbers in [start, num_samples), any shape.
            start: Global sample with which a step begins.

        Returns:
            The rank of each, and its row in the rank's batch.
        """
        classes, lanes = self.classes, self.lanes
        begin = numbers - (numbers - start) % self.global_batch
        if not self.shares_lanes:
            rank = numbers % classes
            return rank, (numbers - begin - (rank - begin) % classes) // classes
        end = np.minimum(begin + self.global_batch, self.num_samples)
        own, lane, parts = numbers % classes, numbers % lanes, self.world_size // classes

        def below(stop: Ints, limit: Ints | int) -> Ints:
            # How many samples under `stop` are of the same class and of its first `limit` lanes.
            rest: Ints = np.clip(-(-(stop % lanes - own) // classes), 0, limit)
            return stop // lanes * limit + rest

        place = below(end, lane // classes) - below(begin, lane // classes)
        place += (numbers - begin - (lane - begin) % lanes) // lanes
        size = below(end, lanes // classes) - below(begin, lanes // classes)
        part = ((place + 1) * parts - 1) // size
        return own + classes * part, place - part * size // parts

    def runs(self, start: int) -> list[tuple[int, range]]:
        """The lanes of this rank's step that begins at `start`, and the rows of its batch that each fills, in order."""
        if not self.shares_lanes:
            classes, stop = self.classes, min(start + self.global_batch, self.num_samples)
            numbers = range(start + (self.rank - start) % classes, stop, classes)
            stride = self.lanes // classes
            return [
                (number % self.lanes, range(row, len(numbers), stride))
                for row, number in enumerate(numbers[:stride])
            ]
        lanes = self.numbers(start) % self.lanes
        cuts = np.flatnonzero(np.diff(lanes)) + 1
        rows = [0, *cuts.tolist(), len(lanes)]
        return [(int(lanes[a]), range(a, b)) for a, b in pairwise(rows) if a < b]

    def readers(self) -> Ints:
        """How many lanes each rank reads, shape (world_size,)."""
        if not self.shares_lanes:
            return np.full(self.world_size, self.lanes // self.world_size)
        # After so many samples, steps begin at the same lane again.
        numbers = np.arange(min(math.lcm(self.global_batch, self.lanes), self.num_samples))
        pairs = np.unique(self.places(numbers, 0)[0] * self.lanes + numbers % self.lanes)
        return np.bincount(pairs // self.lanes, minlength=self.world_size)

    def check_start(self, start: int) -> None:
        """Refuse a resume position outside the epoch; ranks can begin at any other.

        Raises:
            ValueError: If it is outside.
        """
        if not 0 <= start <= self.num_samples:
            raise ValueError(f"the position must be in [0, {self.num_samples}], got {start}")


def design_effect(features: NDArray[np.floating], batches: Sequence[Ints]) -> float:
    """How much batch means vary, relative to independent samples; 1 is a true random order.

    Args:
        features: Value of each sample, shape (num_samples, num_features), e.g. multi-hot labels.
        batches: Positions of the samples of each batch, all of one size.

    Returns:
        Variance of the batch means over the variance of means of independent samples, averaged
        over the features with the weight of their variance. Batch size / design effect is the
        effective batch size.
    """
    means = np.stack([features[batch].mean(axis=0) for batch in batches])
    variance = features.var(axis=0)
    observed = ((means - features.mean(axis=0)) ** 2).mean(axis=0)
    return float(observed.sum() * len(batches[0]) / variance.sum())


def _reverse_bits(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    # The bits from the highest to the lowest, taken for those of bytes from the lowest to the highest.
    bits = np.unpackbits(values.astype(">u4").view(np.uint8))
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32, copy=False)


def _turns(sizes: Ints, parts: Ints) -> NDArray[np.float64]:
    """Where the middle of each shard is in its own part when that is stretched to [0, 1)."""
    found = np.empty(len(sizes))
    for part in np.unique(parts):
        mine = parts == part
        ends = np.cumsum(sizes[mine])
        found[mine] = (2 * ends - sizes[mine]) / (2 * ends[-1])
    return found


def radical_inverse(values: NDArray[np.integer]) -> NDArray[np.uint32]:
    """Van der Corput's sequence in base 2, as a fraction of 2**32."""
    return _reverse_bits(values.astype(np.uint32))


def _scrambling(flips: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Owen's nested uniform scrambling (Owen 1995) of van der Corput's sequence, as a table.

    A bit is flipped or not by a random bit that depends on all bits below it.

    Args:
        flips: A random 0 or 1 for each bit and each value of the bits below it: for bit `level`, those
            from ``2**level`` on; shape (2**levels,).

    Returns:
        What the lowest bits of a number are to be XORed with, by these bits, shape (2**levels,).
    """
    table = np.zeros(1, np.uint32)
    for level in range(len(flips).bit_length() - 1):
        table = np.tile(table ^ flips[1 << level : 2 << level] << np.uint32(level), 2)
    return table


def _turn_of(lane: int, lanes: int) -> np.uint32:
    """The lane's number in binary, over and over, lowest bit first: at every scale another part of the interval."""
    width = max(1, (lanes - 1).bit_length())
    bits = 0
    for _ in range(-(-32 // width)):
        bits = bits << width | lane
    return np.uint32(int(f"{bits & 0xFFFFFFFF:032b}"[::-1], 2))
