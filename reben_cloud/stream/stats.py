"""What a loader has done so far, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass

from reben_cloud.stream.delivered import Delivered


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
            f"{self.samples_per_s:,.0f} samples/s, {self.bytes_per_s / 1e6:,.0f} MB/s, "
            f"waited {self.wait_share:.0%}, {self.retries} retries"
        )

    def to_text(self) -> str:
        """A few lines for people."""
        return "\n".join(
            [
                f"{self.samples:,} samples in {self.batches:,} batches, {self.elapsed_s:.2f} s: {self.to_line()}",
                f"  read       {self.bytes_read / 1e6:,.1f} MB in {self.requests:,} requests",
                f"  delivered  {self.bytes_delivered / 1e6:,.1f} MB of pixels",
                f"  cache      {self.cache_hits:,} hits",
                f"  digest     {self.delivered.digest} of {self.delivered.num_samples:,} samples of epoch "
                f"{self.delivered.epoch}",
            ]
        )
