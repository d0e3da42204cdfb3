"""`EpochSamples`: what the samples of one epoch are, where patches may come several times.

Three numbers name a sample, from the outside in. A *sample* of the epoch, in stored order; the *entry* that it is of:
a patch, or one of the rows that a table layer has for it; and the *patch*, as a stored position. Without weights,
sample and entry are the same; without rows, entry and patch are.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import xxhash

from reben_cloud.root.drawn import ranges
from reben_cloud.root.repeats import Repeats, copies_of, epoch_counts, epoch_length, units_of
from reben_cloud.sampling import EpochOrder, Ints
from reben_cloud.stream.delivered import Words, hash_ids, hash_samples, sum_of
from reben_cloud.stream.select import StoredSelection


class Entries:
    """The entries of a selection, and how often each comes: what all its epochs have in common.

    Args:
        stored: What is streamed.
        repeats: How often its patches come, in the order of the selection; None: once.
    """

    def __init__(self, stored: StoredSelection, repeats: Repeats | None) -> None:
        self.stored = stored
        """What is streamed."""
        self.repeats = repeats
        """How often its patches come."""
        rows = [one for one, _ in stored.columns.drawn if one.rule == "all"]
        self.first = rows[0].offsets[:-1] if rows else None
        """First entry of each patch, where a patch may have several."""
        self.num_samples = stored.num_entries
        """Samples in an epoch."""
        if repeats is not None:
            repeats.require_samples()
            # The comb falls on the entries in the order of the selection, whatever form it is stored in.
            patches, units = np.argsort(stored.index, kind="stable"), units_of(repeats.weights)
            if rows:
                counts = rows[0].counts[patches]
                self.order, self.units = ranges(rows[0].offsets[patches], counts), np.repeat(units, counts)
            else:
                self.order, self.units = patches, units
            self.num_samples = epoch_length(self.units)

    @cached_property
    def hashes(self) -> Words:
        """What `delivered.hash_ids` gives for each patch, in stored order."""
        return hash_ids(self.stored.places.ids)

    @property
    def digest(self) -> int:
        """Names what is selected, how often, and in which order: in [0, 2**63)."""
        if self.repeats is None:
            return self.stored.digest
        digest = xxhash.xxh3_64(f"{self.stored.digest} {self.repeats.passes}".encode())
        digest.update(np.ascontiguousarray(self.units).data)
        return digest.intdigest() >> 1

    def of_epoch(self, epoch: int, *, seed: int) -> EpochSamples:
        """The samples of an epoch."""
        return EpochSamples(self, epoch=epoch, seed=seed)


class EpochSamples:
    """The samples of one epoch.

    Args:
        entries: What they are of.
        epoch: Number of the epoch.
        seed: Seed of the run.
    """

    def __init__(self, entries: Entries, *, epoch: int, seed: int) -> None:
        self.num_samples = entries.num_samples
        """Samples in the epoch."""
        self._of, self._stored, self._epoch = entries, entries.stored, epoch
        self._entry: Ints | None = None
        self._copy: Ints | None = None
        self._passed: Ints | None = None
        if entries.repeats is not None:
            self._repeat(entries.repeats.passes, seed)

    def _repeat(self, passes: int, seed: int) -> None:
        counts = np.empty(len(self._of.order), np.int64)
        counts[self._of.order] = epoch_counts(self._of.units, seed=seed, epoch=self._epoch)
        self._entry, self._copy, passed = copies_of(counts, passes)
        self._passed = passed if passes > 1 else None

    @property
    def has_repeats(self) -> bool:
        """Whether several samples may be of one patch."""
        return self._entry is not None or self._stored.columns.patch_of is not None

    def entries(self, samples: Ints) -> Ints:
        """The entry of each of these samples."""
        return samples if self._entry is None else self._entry[samples]

    def copies(self, samples: Ints) -> Ints | None:
        """Which of the epoch's copies of its entry each of these samples is, from 0; None: the only one."""
        return None if self._copy is None else self._copy[samples]

    def patches(self, samples: Ints) -> Ints:
        """The patch of each of these samples."""
        return self._stored.patches(self.entries(samples))

    def sum_of(self, samples: Ints) -> int:
        """Sum of the hashes of these samples, modulo 2**64."""
        return sum_of(self._hashes[samples])

    @cached_property
    def _hashes(self) -> Words:
        """The hash of each sample. All at once: for the few of a batch, the dozen steps of a hash take longer."""
        samples = np.arange(self.num_samples)
        entries = self.entries(samples)
        patches, first = self._stored.patches(entries), self._of.first
        return hash_samples(
            self._of.hashes[patches],
            epoch=self._epoch,
            rows=None if first is None else entries - first[patches],
            copies=self.copies(samples),
        )

    def order(self, *, seed: int, fingerprint: str, lanes: int, window: int, shuffle: bool) -> EpochOrder:
        """The order in which they come."""
        places, patches = self._stored.places, self.patches(np.arange(self.num_samples))
        shard, num_shards = places.shard[patches], len(places.shards)
        parts = self._stored.part_of_shard
        if self._passed is not None:
            # A shard of a later pass is a shard of its own, with few samples, all of rare classes, say. So passes
            # take turns, and a block has shards of all: it is as mixed as one of a single pass.
            passes = int(self._passed[-1]) + 1
            shard = self._passed * num_shards + shard
            of_pass = np.repeat(np.arange(passes), num_shards)
            parts = of_pass if parts is None else np.tile(parts, passes) * passes + of_pass
            num_shards *= passes
            window *= passes
        return EpochOrder(
            np.bincount(shard, minlength=num_shards),
            places.row[patches],
            seed=seed,
            epoch=self._epoch,
            fingerprint=fingerprint,
            lanes=lanes,
            window=window,
            parts=parts,
            in_order=None if shuffle else np.argsort(self._stored.index[patches], kind="stable"),
        )
