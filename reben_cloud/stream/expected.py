"""`Expected`: what an epoch will take, computed before it runs by the plans that it then follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from reben_cloud.sampling import EpochOrder, Steps
from reben_cloud.stream.epoch import EpochSamples
from reben_cloud.stream.readers.base import Brought, Cost, Reader
from reben_cloud.wording import size_text

RULES: Mapping[str, str] = {
    "batches": "the samples over batch_size x ranks, rounded up, or down with drop_last",
    "samples": "this rank's, without padding",
    "bytes_read": "whole shards, or ranges where these cost less; a payload for each sample where shards are in files",
    "requests": "one for a shard or a range; for an LMDB, one for each payload",
    "memory_bytes": "batches being filled, handed out and kept; shards in use, ahead and kept; ids, labels, checksums",
    "overlap": "pairs of a lane and a rank that reads it, over lanes: 1 if the ranks divide the lanes",
}
"""What each number follows from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What the next ``iter()`` of a loader takes, up to the end of its epoch."""

    epoch: int
    """Number of the epoch."""
    batches: int
    """Batches of this rank, and of each other one."""
    samples: int
    """Samples of this rank, without padding."""
    bytes_read: int
    """Bytes that this rank fetches from the store, or reads from local files; rows of table layers are not counted."""
    requests: int
    """Objects, ranges and records that it asks for."""
    memory_bytes: int
    """Most bytes that it holds at a time."""
    overlap: float
    """Into how many times the lanes the lanes add up that all ranks read: what sharing them may cost in bytes."""

    def to_text(self) -> str:
        """A line for each number, with its rule."""
        shown = {
            "batches": f"{self.batches:,}",
            "samples": f"{self.samples:,}",
            "bytes_read": f"{size_text(self.bytes_read)}",
            "requests": f"{self.requests:,}",
            "memory_bytes": f"{size_text(self.memory_bytes)}",
            "overlap": f"{self.overlap:.2f}",
        }
        assert shown.keys() | {"epoch"} == {one.name for one in fields(self)}
        lines = [f"  {name:13s} {value:>14s}  {RULES[name]}" for name, value in shown.items()]
        return "\n".join([f"epoch {self.epoch} will take", *lines])


def expect_epoch(
    reader: Reader,
    samples: EpochSamples,
    order: EpochOrder,
    steps: Steps,
    start: int,
    *,
    epoch: int,
    max_blocks: int,
    other_bytes: int,
) -> Expected:
    """Follow the plans of an epoch without reading.

    Args:
        reader: What will read.
        samples: Of the epoch.
        order: Of the epoch.
        steps: Of this rank.
        start: Global sample to begin with.
        epoch: Number of the epoch.
        max_blocks: Most blocks that are held at a time.
        other_bytes: What is held besides blocks.
    """
    brought = Brought()
    costs, num_samples = [], 0
    for lane, number in order.schedule(steps, start):
        mine = order.share(lane, number, steps, start)
        patches, times = np.unique(samples.patches(mine), return_counts=True)
        costs.append(sum((reader.expect(part, patches, times, brought) for part in reader.parts), Cost()))
        num_samples += len(mine)
    held = np.cumsum([0, *(cost.held_bytes for cost in costs)])
    most = held[max_blocks:] - held[: len(held) - max_blocks] if len(costs) > max_blocks else held[-1:]
    return Expected(
        epoch=epoch,
        batches=steps.remaining(start),
        samples=num_samples,
        bytes_read=sum(cost.bytes_read for cost in costs),
        requests=sum(cost.requests for cost in costs),
        memory_bytes=int(most.max()) + other_bytes,
        overlap=float(steps.readers().sum() / steps.lanes),
    )
