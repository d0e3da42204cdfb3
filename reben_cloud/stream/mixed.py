"""Selections of several roots as one: their patches one after the other, each read by the reader of its root."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reben_cloud.root.mixture import Mixture
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Ints
from reben_cloud.schema import Copy
from reben_cloud.stream.columns import Columns
from reben_cloud.stream.gather import Layout
from reben_cloud.stream.kept import KeptShards
from reben_cloud.stream.payloads import Part
from reben_cloud.stream.readers.base import Brought, Cost, Counters, Places, Reader
from reben_cloud.stream.select import Form, StoredSelection, open_reader


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedSelection(StoredSelection):
    """Several selections in stored order, one after the other; `selection` is the first of them."""

    members: tuple[StoredSelection, ...]
    """Each of them."""

    @property
    def former_fingerprint(self) -> str | None:
        """None: the first version had no mixtures."""
        return None

    @property
    def is_local(self) -> bool:
        """Whether all of them are in folders of this machine."""
        return all(member.is_local for member in self.members)

    @property
    def part_of_shard(self) -> Ints | None:
        """Which of them each shard is of."""
        sizes = [len(member.places.shards) for member in self.members]
        return np.repeat(np.arange(len(sizes)), sizes)


def stored_of(
    selection: Selection | Mixture, modalities: Sequence[str] | None, columns: Sequence[str] | None
) -> StoredSelection:
    """What is streamed, in stored order; arguments and errors are those of `StoredSelection.of`."""
    if not isinstance(selection, Mixture):
        return StoredSelection.of(selection, modalities, columns)
    members = tuple(StoredSelection.of(part, modalities, columns) for part in selection.parts)
    first = members[0]
    for member in members[1:]:
        _check_fit(first, member)
    sizes = [len(member.index) for member in members]
    starts = np.cumsum([0, *sizes[:-1]])
    shards = np.cumsum([0, *(len(member.places.shards) for member in members[:-1])])
    fingerprints = "\0".join(member.fingerprint for member in members)
    return MixedSelection(
        members=members,
        selection=first.selection,
        modalities=first.modalities,
        fingerprint=hashlib.blake2b(fingerprints.encode(), digest_size=8).hexdigest(),
        index=np.concatenate([m.index + start for m, start in zip(members, starts, strict=True)]),
        labels=np.concatenate([m.labels for m in members]),
        places=Places(
            shard=np.concatenate([m.places.shard + start for m, start in zip(members, shards, strict=True)]),
            row=np.concatenate([m.places.row for m in members]),
            shards=[shard for m in members for shard in m.places.shards],
            num_samples=np.concatenate([m.places.num_samples for m in members]),
            ids=np.concatenate([m.places.ids for m in members]),
            checksums={},  # each reader has its own
        ),
        columns=Columns(
            arrays={
                name: np.concatenate([m.columns.arrays[name] for m in members])
                for name in first.columns.arrays
            },
            texts={
                name: pa.concat_arrays([m.columns.texts[name] for m in members])
                for name in first.columns.texts
            },
            drawn=(),
            ids=np.empty(0, "S1"),
            patch_of=None,
        ),
    )


def _check_fit(first: StoredSelection, other: StoredSelection) -> None:
    ours, theirs = first.selection.dataset.url, other.selection.dataset.url
    if other.modalities != first.modalities:
        raise ValueError(
            f"{theirs} gives {', '.join(m.name for m in other.modalities)} and {ours} "
            f"{', '.join(m.name for m in first.modalities)}, or they have other tensors under these names: choose "
            "modalities= that all roots have alike"
        )
    for kind in ("arrays", "texts"):
        here, there = getattr(first.columns, kind).keys(), getattr(other.columns, kind).keys()
        if different := sorted(here ^ there):
            raise ValueError(
                f"{different[0]!r} is in batches of {ours if different[0] in here else theirs} alone: open both with "
                "the layer, or choose columns= and modalities= that both have"
            )


def open_reader_of(
    stored: StoredSelection,
    counters: Counters,
    *,
    form: Form,
    layout: Layout,
    cache_dir: str | os.PathLike[str] | None,
    cache_bytes: int | None,
    keep: int,
    kept: KeptShards | None,
) -> Reader:
    """The reader of what is streamed; arguments and errors are those of `open_reader`."""
    members = stored.members if isinstance(stored, MixedSelection) else (stored,)
    readers = [
        open_reader(
            member,
            counters,
            form=form,
            layout=layout,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            keep=keep,
            kept=kept,
        )
        for member in members
    ]
    return readers[0] if len(readers) == 1 else InTurn(readers, [len(member.index) for member in members])


class InTurn:
    """Readers of some samples each, one after the other.

    Args:
        readers: They have the same sources.
        sizes: How many samples each has.

    Raises:
        ValueError: If their sources differ.
    """

    def __init__(self, readers: Sequence[Reader], sizes: Sequence[int]) -> None:
        self.copies: Mapping[str, tuple[Copy, ...]] = readers[0].copies
        for reader in readers[1:]:
            if reader.copies != self.copies:
                raise ValueError("roots that are read as different forms cannot be mixed; leave form= out")
        # What one of them wants by itself, all of them can give.
        self.parts = max((reader.parts for reader in readers), key=len)
        self._readers = tuple(readers)
        self._ends = np.cumsum(sizes)

    def expect(self, part: tuple[str, ...], stored: Ints, times: Ints, brought: Brought) -> Cost:
        """What `load` will take."""
        whose, total = np.searchsorted(self._ends, stored, side="right"), Cost()
        for number in np.unique(whose).tolist():
            here = whose == number
            first = int(self._ends[number - 1]) if number else 0
            total += self._readers[number].expect(part, stored[here] - first, times[here], brought)
        return total

    def load(self, part: tuple[str, ...], stored: Ints) -> Part:
        """The payloads of these sources, each sample by the reader whose it is."""
        found: Part = {name: [] for name in part}
        whose = np.searchsorted(self._ends, stored, side="right")
        for number in np.unique(whose).tolist():
            here = np.flatnonzero(whose == number)
            first = int(self._ends[number - 1]) if number else 0
            for name, payloads in self._readers[number].load(part, stored[here] - first).items():
                found[name] += [(here[inside], some) for inside, some in payloads]
        return found
