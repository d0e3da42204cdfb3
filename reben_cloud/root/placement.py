"""Where every patch goes in a root: its Zarr row, and its shard and row. Pure arithmetic on tables.

Each split is put in training order once, with a fixed seed, and cut into shards; patches with
snow, cloud or shadow get shards of their own (``<split>-extra``), so that the recommended set is
whole shards. The same metadata and options always give the same placement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.root import layout
from reben_cloud.root.manifest import Manifest
from reben_cloud.sampling import shuffled_order, stratified_order

Order = Literal["stratified", "shuffled", "stored"]
"""How samples are ordered at write time: every shard a fair share of each product, or a plain shuffle; or, where
payloads stay where others put them, by patch id, so that what lies together is read together."""

SHARD_SAMPLES = 256
"""Samples in a shard, but for the last one of a group."""

SPLITS = ("train", "validation", "test")
"""The splits, as the metadata spells them."""

GROUPS = ("train", "validation", "test", "train-extra", "validation-extra", "test-extra")
"""Names of the shard groups, in the order in which they are planned."""

STORED = "stored"
"""That order, and the name of its one group: neighbours of all splits lie together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementOptions:
    """What a placement depends on besides the metadata."""

    order: Order = "stratified"
    """Write-time order of the samples of a group."""
    seed: int = 0
    """Seed of that order, in [0, 2**32)."""
    shard_samples: int = SHARD_SAMPLES
    """Samples in a shard, at least 1."""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order must be {' or '.join(map(repr, get_args(Order)))}, got {self.order!r}")
        if self.shard_samples < 1:
            raise ValueError(f"shard_samples must be at least 1, got {self.shard_samples}")


def place(table: pa.Table, options: PlacementOptions, *, recommended_without: Sequence[str]) -> pa.Table:
    """The place of every patch.

    Args:
        table: Metadata, sorted by ``product`` and ``patch_id``, unique.
        options: Order, seed and shard size.
        recommended_without: Boolean columns; a patch with any of them goes to the ``-extra`` group of its split.

    Returns:
        A row per patch in the same order: ``patch_id``, ``reben:product`` (dictionary),
        ``reben:zarr_row``, ``reben:shard_group`` (dictionary), ``reben:shard``,
        ``reben:shard_row`` (int32).
    """
    ids = table.column("patch_id").combine_chunks()
    products = table.column("product").cast(pa.string()).combine_chunks().dictionary_encode()
    codes = products.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    zarr_row = np.arange(len(codes)) - starts[np.cumsum(np.diff(codes, prepend=-1) != 0) - 1]
    stored = options.order == STORED
    names = (STORED,) if stored else GROUPS
    group = np.zeros(len(codes), np.int8) if stored else _groups(table, recommended_without)
    shard = np.empty(len(codes), np.int32)
    row = np.empty(len(codes), np.int32)
    for number in range(len(names)):
        members = np.flatnonzero(group == number)
        if not members.size:
            continue
        order = members if stored else members[_order(codes[members], options, stream=number)]
        shard[order] = np.arange(order.size) // options.shard_samples
        row[order] = np.arange(order.size) % options.shard_samples
    return pa.table(
        {
            "patch_id": ids,
            layout.PRODUCT: products,
            layout.ZARR_ROW: pa.array(zarr_row, pa.int32()),
            layout.SHARD_GROUP: pa.DictionaryArray.from_arrays(pa.array(group, pa.int8()), list(names)),
            layout.SHARD: shard,
            layout.SHARD_ROW: row,
        }
    )


def check_places(
    manifest: Manifest,
    *,
    names: Sequence[str],
    codes: NDArray[np.int64],
    shards: NDArray[Any],
    rows: NDArray[Any],
    name: str,
) -> None:
    """See that places in the shards are within what the manifest says there is: addresses are computed from them.

    Args:
        manifest: Of the root, or of an export of it.
        names: Names of shard groups.
        codes: Which of these is the group of each patch, shape (n,).
        shards: Numbers of the shards, shape (n,).
        rows: Rows in the shards, shape (n,).
        name: What holds the places, for the error.

    Raises:
        ChecksumError: If one is not.
    """
    sizes = np.array([manifest.groups[g].num_samples if g in manifest.groups else 0 for g in names], np.int64)
    full = manifest.shard_samples
    shards, rows = np.asarray(shards, np.int64), np.asarray(rows, np.int64)
    total = sizes[codes] if len(names) else np.zeros(0, np.int64)
    outside = (shards < 0) | (rows < 0) | (rows >= full) | (shards * full + rows >= total)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise ChecksumError(
            f"{name}: names row {rows[at]} of shard {shards[at]} of group {names[codes[at]]!r}, which the manifest "
            "does not have; the root is damaged, `reben-cloud verify` says what else is"
        )


def group_sizes(placement: pa.Table) -> Mapping[str, int]:
    """Number of samples in each shard group that has any."""
    counts = pc.value_counts(pc.cast(placement.column(layout.SHARD_GROUP), pa.string()))
    found = {c["values"]: c["counts"] for c in counts.to_pylist()}
    return {name: found[name] for name in (*GROUPS, STORED) if name in found}


def _groups(table: pa.Table, recommended_without: Sequence[str]) -> NDArray[np.int8]:
    split = pc.index_in(table.column("split"), pa.array(SPLITS)).to_numpy()
    extra = np.zeros(len(split), np.bool_)
    for name in recommended_without:
        extra |= table.column(name).to_numpy()
    groups: NDArray[np.int8] = (split + len(SPLITS) * extra).astype(np.int8)
    return groups


def _order(strata: NDArray[np.int32], options: PlacementOptions, *, stream: int) -> NDArray[np.int64]:
    # Groups must not share their order: mix the group's number into the key, do not add it.
    seed = options.seed
    if options.order == "shuffled":
        return shuffled_order(len(strata), seed=seed, stream=stream)
    return stratified_order(strata, seed=seed, stream=stream, shard_samples=options.shard_samples)
