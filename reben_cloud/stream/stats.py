"""What a loader has done so far, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reben_cloud.stream.delivered import Delivered
from reben_cloud.wording import counted, size_text, wrapped

Stage = Literal["store", "checks", "gather", "consumer"]
"""What may keep an epoch from being faster: reading, comparing checksums, copying into batches, taking the batches."""

_ADVICE: dict[Stage, str] = {
    "store": "raise fetch_threads and prefetch; for a remote root pass cache_dir or come nearer to it, "
    "for files raise gather_threads or use a faster disk",
    "checks": "checksums are compared in every epoch, by the thread that read: raise fetch_threads (remote) "
    "or gather_threads (files)",
    "gather": "raise gather_threads, or pass layout='records', which copies each payload once",
    "consumer": "the loader is ahead: what takes the batches is the limit, and nothing here would make it faster",
}

_IS_WAITING = 0.1
"""Share of the time from which on the caller counts as waiting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stages:
    """Where the threads' time went, in seconds of threads."""

    fetch_store_s: float
    """Fetch threads in requests."""
    fetch_checks_s: float
    """Fetch threads comparing checksums, and decoding Zarr chunks."""
    late_s: float
    """Gather threads waiting for what is fetched."""
    fill_store_s: float
    """Gather threads reading files into batches."""
    fill_checks_s: float
    """Gather threads comparing checksums of that."""
    fill_copy_s: float
    """Gather threads copying into batches, and all else that a batch takes."""

    @property
    def slowest(self) -> Stage:
        """What a batch that comes late waited for most."""
        busy: dict[Stage, float]
        if self.late_s > self.fill_store_s + self.fill_checks_s + self.fill_copy_s:
            busy = {"store": self.fetch_store_s, "checks": self.fetch_checks_s}
        else:
            busy = {"store": self.fill_store_s, "checks": self.fill_checks_s, "gather": self.fill_copy_s}
        return max(busy, key=busy.__getitem__)


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamStats:
    """What a loader did so far, over all its epochs."""

    samples: int
    """Samples handed out."""
    batches: int
    """Batches handed out."""
    bytes_delivered: int
    """Bytes of pixels in these samples."""
    bytes_read: int
    """Bytes fetched from the store, or read from local files."""
    requests: int
    """Objects, ranges and records asked for."""
    retries: int
    """Objects asked for again, because they came damaged or the store failed."""
    cache_hits: int
    """Shards found in the disk cache."""
    wait_s: float
    """Seconds that the caller waited for batches: what storage and copying cost the training."""
    elapsed_s: float
    """Seconds from the start of the first epoch to the last batch."""

    delivered: Delivered
    """What this rank delivered of the epoch that runs, or of the last one; add up those of all ranks."""

    stages: Stages
    """Where the time of the loader's threads went."""

    @property
    def limiting_stage(self) -> Stage:
        """What kept it from being faster."""
        return "consumer" if self.wait_share < _IS_WAITING else self.stages.slowest

    @property
    def advice(self) -> str:
        """What to change about the limiting stage."""
        return _ADVICE[self.limiting_stage]

    @property
    def samples_per_s(self) -> float:
        """Samples handed out a second."""
        return self.samples / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Bytes of pixels handed out a second."""
        return self.bytes_delivered / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time that the caller waited, in [0, 1]."""
        return self.wait_s / self.elapsed_s if self.elapsed_s else 0.0

    def to_line(self) -> str:
        """The rates, in one line."""
        return (
            f"{self.samples_per_s:,.0f} samples/s, {size_text(self.bytes_per_s)}/s, "
            f"waited {self.wait_share:.0%}, {self.retries} retries"
        )

    def to_text(self) -> str:
        """A few lines for people."""
        done = self.delivered
        rows = (
            ("read", f"{size_text(self.bytes_read)} in {counted(self.requests, 'request')}"),
            ("delivered", f"{size_text(self.bytes_delivered)} of pixels"),
            ("cache", counted(self.cache_hits, "hit")),
            ("limit", f"{self.limiting_stage}: {self.advice}"),
            ("digest", f"{done.digest} of {counted(done.num_samples, 'sample')} of epoch {done.epoch}"),
        )
        of = f"{counted(self.samples, 'sample')} in {counted(self.batches, 'batch', 'batches')}"
        return "\n".join([f"{of}, {self.elapsed_s:.2f} s: {self.to_line()}", *wrapped(rows)])
