"""What a build writes, decided before anything is read or written. Pure, but for the source's names.

A task writes whole objects that no other task writes. It needs the metadata rows of its patches and
a few small settings, and gets exactly those (`BuildPlan.job`): a worker's memory does not grow with
the dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.build.jobs import Estimate, Job, ShardTask, Task, UnpackTask, ZarrTask
from reben_cloud.build.matching import Matched, match
from reben_cloud.build.spool import Spool
from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import tar, zarr
from reben_cloud.root import layout
from reben_cloud.root.digest import document_digest, table_digest
from reben_cloud.root.documents import read_patches
from reben_cloud.root.layout import JOURNAL as JOURNAL
from reben_cloud.root.layout import MANIFEST as MANIFEST
from reben_cloud.root.manifest import FORMAT_VERSION as FORMAT_VERSION
from reben_cloud.root.manifest import Manifest, ShardOrder, identity_of
from reben_cloud.root.metadata import SQUARE, check_metadata, given_columns, given_metadata, storable
from reben_cloud.root.placement import Order, PlacementOptions, group_sizes, place
from reben_cloud.root.source import AnySource, Incomplete, streamed
from reben_cloud.schema import Schema
from reben_cloud.store import Store

COORDINATES = ("split", "country", "s1_name", "x0", "y0", "datetime", "s1_datetime")
"""Metadata columns that are coordinates of a product's Zarr store, where there are such; beside ids and labels."""

_ZARR_RATIO = 0.66  # of compressed to raw bytes, on the 24 real pairs


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that is to be written, decided before anything is."""

    source: AnySource
    """Where payloads come from."""
    store: Store
    """The root."""
    table: pa.Table
    """Metadata of the patches to write, described, sorted by ``product`` and ``patch_id``."""
    given: tuple[str, ...]
    """Columns of `table` that were given; the others follow from them."""
    placement: pa.Table
    """Where each of them goes (`placement.place`)."""
    schema: Schema
    """What every patch has."""
    options: PlacementOptions
    """Order, seed and shard size."""
    matched: Matched
    """What of the source and its metadata is taken, and what is left out."""
    scratch: Path | None
    """Where payloads may be kept from their first use to their second; None: the second time they are read from
    the shards of a local root, or from the source again."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of what every patch has."""
        return self.schema.modality_names

    @cached_property
    def fingerprint(self) -> str:
        """Names what is built: the same plan ends in the same bytes."""
        given = self.table.select(list(self.given)).sort_by("patch_id")
        return fingerprint_of(given, self.schema, self.options)

    @cached_property
    def beginning(self) -> Mapping[str, Any]:
        """What a build begins with, and must go on with: patches, options, and the state of the source."""
        options = self.options
        return {
            "plan": self.fingerprint,
            "patches": self.table.num_rows,
            "modalities": list(self.modalities),
            "order": {"kind": options.order, "seed": options.seed, "shard_samples": options.shard_samples},
            "source": {"kind": self.source.kind, "files": dict(self.source.identity())},
        }

    @cached_property
    def products(self) -> Mapping[str, tuple[int, int]]:
        """Product -> (first row of `table`, number of patches)."""
        encoded = self.placement.column(layout.PRODUCT).combine_chunks()
        starts, counts = np.unique(encoded.indices.to_numpy(), return_index=True, return_counts=True)[1:]
        names = encoded.dictionary.to_pylist()
        return {names[i]: (int(starts[i]), int(counts[i])) for i in range(len(names))}

    @cached_property
    def shards(self) -> Mapping[tuple[str, int], NDArray[np.int64]]:
        """(Group, shard number) -> rows of `table` in shard order."""
        encoded = self.placement.column(layout.SHARD_GROUP).combine_chunks()
        group, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        shard = self.placement.column(layout.SHARD).to_numpy()
        row = self.placement.column(layout.SHARD_ROW).to_numpy()
        order = np.lexsort((row, shard, group))
        cuts = np.flatnonzero(np.diff(group[order]) | np.diff(shard[order])) + 1
        return {
            (names[group[rows[0]]], int(shard[rows[0]])): rows for rows in np.split(order, cuts) if rows.size
        }

    @cached_property
    def spool(self) -> Spool | None:
        """The scratch folder of this plan."""
        if self.scratch is None:
            return None
        # Of one state of the source: payloads of archives that were replaced must not come back.
        state = document_digest(self.beginning)[:16]
        return Spool(
            folder=str(self.scratch / f"build-{self.fingerprint}-{state}"),
            num_rows=self.table.num_rows,
            sizes={m.name: m.payload_bytes for m in self.schema.modalities},
        )

    def unpack_tasks(self) -> list[Task]:
        """The tasks that come before all others: one an archive."""
        in_archives = streamed(self.source)
        return [UnpackTask(modality=modality) for modality in self.modalities if modality in in_archives]

    @cached_property
    def tasks(self) -> Sequence[Task]:
        """Every task that writes objects, shards first: in a local root the others read them, not the source."""
        found: list[Task] = [ShardTask(group=group, number=number) for group, number in self.shards]
        return found + [
            ZarrTask(product=product, number=number)
            for product, (_, count) in self.products.items()
            for number in range(zarr.num_zarr_shards(count))
        ]

    def rows_of(self, task: Task) -> NDArray[np.int64]:
        """Rows of `table` that a task writes, in the order in which it writes them."""
        if isinstance(task, UnpackTask):
            return np.arange(self.table.num_rows)
        if isinstance(task, ShardTask):
            return self.shards[task.group, task.number]
        start, count = self.products[task.product]
        first = task.number * zarr.PATCHES_PER_ZARR_SHARD
        return start + np.arange(first, min(first + zarr.PATCHES_PER_ZARR_SHARD, count))

    def jobs(self, tasks: Sequence[Task]) -> Iterator[Job]:
        """The jobs of `tasks`, made when asked for."""
        for task in tasks:
            rows = self.rows_of(task)
            yield Job(
                task=task,
                rows=self.table.take(pa.array(rows)),
                positions=rows,
                source=self.source,
                store=self.store,
                schema=self.schema,
                journal=f"{JOURNAL}/{self.fingerprint}",
                spool=self.spool,
                places=self._places(task, rows),
            )

    def _places(self, task: Task, rows: NDArray[np.int64]) -> pa.Table | None:
        """Where the payloads of a Zarr task lie in the root, if that is a disk; of S3 each would be a request."""
        if not isinstance(task, ZarrTask) or not self.store.is_local:
            return None
        columns = [layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW]
        return self.placement.select(columns).take(pa.array(rows))

    def pixel_arrays(self) -> tuple[zarr.PixelArray, ...]:
        """The Zarr arrays that the root has, but for the coordinates."""
        return tuple(array for m in self.schema.modalities for array in zarr.pixel_arrays(m))

    def _num_product_objects(self) -> int:
        """Metadata and coordinates of all Zarr stores, of which those with one value in a product have no object."""
        of_rows = [name for name in COORDINATES if name in self.table.column_names]
        if "s1_datetime" in of_rows and self.table.column("s1_datetime").null_count:
            of_rows.remove("s1_datetime")
        labels = zarr.label_coordinates(self.pixel_arrays(), self.schema.classes.names).values()
        once = sum(zarr.is_said_once("", values) for _, values, _ in labels) + 1  # spatial_ref
        values = self.table.group_by("product").aggregate([(name, "count_distinct") for name in of_rows])
        of_products = sum(
            int(pc.sum(pc.equal(values.column(f"{name}_count_distinct"), 1)).as_py()) for name in of_rows
        )
        num_coordinates = len(of_rows) + len(labels) + 3  # patch_id, labels, spatial_ref
        whole = zarr.num_product_objects(self.pixel_arrays(), num_coordinates, once)
        return len(self.products) * whole - of_products

    def estimate(self) -> Estimate:
        """What the build is going to take."""
        count = self.table.num_rows
        raw = sum(array.nbytes for array in self.pixel_arrays())
        num_zarr = sum(zarr.num_zarr_shards(n) for _, n in self.products.values())
        num_objects = (
            num_zarr * len(self.pixel_arrays())
            + len(self.shards) * len(self.modalities)
            + self._num_product_objects()
        )
        return Estimate(
            source=self.source.describe(),
            root=self.store.url,
            num_patches=count,
            num_products=len(self.products),
            modalities=self.modalities,
            num_tasks=len(self.tasks) + len(self.unpack_tasks()),
            num_objects=num_objects,
            shard_bytes=sum(
                tar.shard_bytes(m, len(rows)) for m in self.schema.modalities for rows in self.shards.values()
            ),
            zarr_bytes=int(raw * count * _ZARR_RATIO),
            scratch=None if self.spool is None else self.spool.folder,
            scratch_bytes=0 if self.spool is None else self.spool.nbytes,
            # An object is put once; a task looks for its receipt and puts one.
            num_requests=num_objects + 2 * len(self.tasks) + 8,
        )


def make_plan(
    source: AnySource,
    official: pa.Table,
    store: Store,
    *,
    modalities: Sequence[str] | None = None,
    options: PlacementOptions | None = None,
    scratch: Path | None = None,
    only: Sequence[str] | None = None,
    incomplete: Incomplete = "refuse",
) -> BuildPlan:
    """Decide what a build writes; reads nothing but the names that the source holds.

    Args:
        source: Where payloads come from.
        official: Official metadata, of the source's patches and perhaps many more; if of fewer, a selection.
        store: The root to be.
        modalities: What to build; by default every modality that the source has, if nothing is near it that looks like
            another one.
        options: Order, seed and shard size.
        scratch: Folder for payloads between their two uses (Zarr and shards). Archives need one.
        only: Patch ids to build, of those that the source has; all by default.
        incomplete: What to do about patches that lack a modality: ``"refuse"``, or ``"skip"`` to leave them out.

    Raises:
        ValueError: If a modality is unknown.
        SourceError: If the source is empty, none of it is in the metadata, patches are incomplete, what looks
            like a modality would be left out and `modalities` does not say so, or the source needs a scratch
            folder and none is given.
    """
    for modality in modalities or ():
        source.schema.modality(modality)
    names = source.names()
    if not names:
        raise SourceError(f"{source.describe()}: it holds no patches")
    if modalities is None:
        _refuse_to_leave_out(source, names)
    schema = source.schema.only(modalities or list(names))
    matched = match(names, official, schema.modalities, source.describe(), incomplete=incomplete)
    table = matched.rows
    if only is not None:
        table = table.filter(pc.is_in(table.column("patch_id"), pa.array(only, pa.string()))).combine_chunks()
    if not table.num_rows:
        raise SourceError(f"{source.describe()}: no patch is left to build{matched.incomplete_text()}")
    table = source.described(storable(table))
    given = tuple(name for name in official.column_names if name not in SQUARE)
    check_metadata(table, schema)
    table = table.sort_by([("product", "ascending"), ("patch_id", "ascending")]).combine_chunks()
    options = options or PlacementOptions()
    scratch = None if scratch is None else local_path(scratch, "the scratch folder")
    if any(name in streamed(source) for name in schema.modality_names) and scratch is None:
        raise SourceError(
            f"{source.describe()}: archives are read from front to back and need a scratch folder (--scratch)"
        )
    return BuildPlan(
        source=source,
        store=store,
        table=table,
        given=given,
        placement=place(table, options, recommended_without=schema.recommended_without),
        schema=schema,
        options=options,
        matched=matched,
        scratch=scratch,
    )


def _refuse_to_leave_out(source: AnySource, names: Mapping[str, Sequence[str] | None]) -> None:
    """Where no modalities are asked for, one that is missing must not be there in a form that cannot be read."""
    for modality, what in source.left_out.items():
        if modality not in names:
            flags = " ".join(f"--modality {m}" for m in source.schema.modality_names if m in names)
            raise SourceError(
                f"{source.describe()} has no {modality}, but there is {what}, which is not taken; name it as a further "
                "source if they belong together (`reben-cloud build A B ROOT`), or say that a root without "
                f"{modality} is wanted ({flags})"
            )


def fingerprint_of(metadata: pa.Table, schema: Schema, options: PlacementOptions | None) -> str:
    """Names what a root holds and in which order: 16 hex digits, the same whatever libraries are installed.

    Args:
        metadata: The given metadata of its patches, sorted by ``patch_id``.
        schema: What every patch has.
        options: Order, seed and shard size; None when it has no shards.
    """
    placed = None if options is None else [options.order, options.seed, options.shard_samples]
    # 1, the version that began with it: roots of the same patches keep their fingerprint for good.
    parts = [1, identity_of(schema), placed, table_digest(metadata)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def options_of(manifest: Manifest) -> PlacementOptions | None:
    """How the patches of a root were put in order, from its manifest; None when it has no shards.

    Raises:
        ValueError: If it names an order that is not known.
    """
    if not manifest.modalities:
        return None
    order = cast("Order", manifest.order.kind)  # which the options compare with the orders that there are
    return PlacementOptions(order=order, seed=manifest.order.seed, shard_samples=manifest.shard_samples)


def is_root_of(fingerprint: str, manifest: Manifest, store: Store) -> bool:
    """Whether the root at `store`, which has this manifest, is the one that a fingerprint names.

    The first version took fingerprints from a library's bytes. What such a root is follows from its table.
    """
    if manifest.fingerprint == fingerprint or manifest.has_digest:
        return manifest.fingerprint == fingerprint
    columns = manifest.metadata_columns
    table = given_metadata(read_patches(store, manifest, given_columns(columns)), columns)
    return fingerprint_of(table, manifest.schema, options_of(manifest)) == fingerprint


def countries_of(metadata: pa.Table) -> list[str]:
    """Names of the countries of some patches, sorted; none where the metadata have no such column, or an empty name."""
    if "country" not in metadata.column_names:
        return []
    return sorted(name for name in pc.unique(metadata.column("country")).to_pylist() if name)


def manifest_of(plan: BuildPlan) -> Manifest:
    """What the root says of itself, but for the checksums of its tables."""
    return Manifest.of(
        created_from=plan.source.kind,
        schema=plan.schema,
        metadata_columns=plan.given,
        num_patches=plan.table.num_rows,
        products=list(plan.products),
        group_sizes=group_sizes(plan.placement),
        shard_samples=plan.options.shard_samples,
        zarr_shard_patches=zarr.PATCHES_PER_ZARR_SHARD,
        countries=countries_of(plan.table),
        order=ShardOrder(kind=plan.options.order, seed=plan.options.seed),
        fingerprint=plan.fingerprint,
        incomplete=plan.matched.left_out(),
    )
