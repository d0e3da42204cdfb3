"""The tasks of a build, what a process needs to do one, and what all of them are going to take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.build.spool import Spool
from reben_cloud.root.source import AnySource
from reben_cloud.schema import Schema
from reben_cloud.store import Store
from reben_cloud.wording import counted, size_text


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpackTask:
    """Read one archive from front to back into the scratch folder."""

    modality: str
    """Which archive."""

    @property
    def name(self) -> str:
        """Unique name."""
        return f"unpack-{self.modality}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ZarrTask:
    """Write one Zarr shard of every pixel array of a product."""

    product: str
    """The product."""
    number: int
    """Number of the Zarr shard, from 0."""

    @property
    def name(self) -> str:
        """Unique name, also the receipt's."""
        return f"zarr-{self.product}-{self.number:04d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Write the tar shards of one number, one per modality."""

    group: str
    """Shard group, e.g. ``train`` or ``test-extra``."""
    number: int
    """Number of the shard, from 0."""

    @property
    def name(self) -> str:
        """Unique name, also the receipt's."""
        return f"shard-{self.group}-{self.number:06d}"


Task = UnpackTask | ZarrTask | ShardTask


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A task and all that it takes to do it, wherever that is; pickled to the process that does it."""

    task: Task
    """What to write."""
    rows: pa.Table
    """Official metadata of its patches, in the order in which they are written."""
    positions: NDArray[np.int64]
    """Row of each of them in the plan's table: its address in the scratch folder."""
    source: AnySource
    """Where payloads come from."""
    store: Store
    """The root."""
    schema: Schema
    """What every patch has."""
    journal: str
    """Folder of the receipts, below the root."""
    spool: Spool | None
    """The scratch folder, if one is used."""
    places: pa.Table | None
    """Shard group, shard and row of each patch, where its payloads may be read again; None: they may not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a build is going to take."""

    source: str
    """Where the patches come from."""
    root: str
    """Where they go."""
    num_patches: int
    """Patches to write."""
    num_products: int
    """Zarr stores to write."""
    modalities: tuple[str, ...]
    """What every patch has."""
    num_tasks: int
    """Tasks, each with a receipt."""
    num_objects: int
    """Objects of tasks, and of product metadata (catalog documents come on top)."""
    shard_bytes: int
    """Bytes of the tar shards, exactly."""
    zarr_bytes: int
    """Bytes of the Zarr shards, about: 0.66 of the raw pixels, as measured on real patches."""
    scratch: str | None
    """The scratch folder, None when there is none."""
    scratch_bytes: int
    """Most that it takes."""
    num_requests: int
    """Requests to the root's store, about."""

    def to_text(self) -> str:
        """A few lines for people."""
        readings = "one reading" if self.root.startswith("file://") else "two readings"
        products = counted(self.num_products, "product")
        scratch = (
            f"{size_text(self.scratch_bytes)} in {self.scratch}" if self.scratch else f"none ({readings})"
        )
        return "\n".join(
            [
                f"from      {self.source}",
                f"to        {self.root}",
                f"patches   {self.num_patches:,} of {products} ({', '.join(self.modalities)})",
                f"tasks     {self.num_tasks:,}, each can be done anywhere and again",
                f"objects   {self.num_objects:,} and the catalog",
                f"to write  {size_text(self.shard_bytes + self.zarr_bytes)}: "
                f"{size_text(self.shard_bytes)} of shards, about {size_text(self.zarr_bytes)} of Zarr",
                f"scratch   {scratch}",
                f"requests  about {self.num_requests:,}",
            ]
        )
