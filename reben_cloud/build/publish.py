"""The last step of a build: tables, product metadata, catalog, and at the very end the manifest.

Small beside the rest: seconds for the whole dataset, done by one process. It runs again from the
start after a crash, and ends in the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr_cm
from numpy.typing import NDArray
from pyproj import CRS

from reben_cloud import catalog
from reben_cloud.bigearthnet.about import about
from reben_cloud.build.jobs import ShardTask, ZarrTask
from reben_cloud.build.plan import (
    MANIFEST,
    BuildPlan,
    countries_of,
    fingerprint_of,
    is_root_of,
    manifest_of,
)
from reben_cloud.build.receipts import Receipt, put
from reben_cloud.build.tasks import START_OVER, refuse_changed
from reben_cloud.errors import ConflictError
from reben_cloud.formats import zarr
from reben_cloud.formats.parquet import Seal
from reben_cloud.root import layout
from reben_cloud.root.commit import check_presence, commit
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.layout import OBJECTS, PATCHES
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.metadata import check_metadata, patch_infos
from reben_cloud.root.objects import Objects, WrittenObject
from reben_cloud.root.patches import patches_table
from reben_cloud.root.patches_file import write_patches
from reben_cloud.root.placement import group_sizes
from reben_cloud.schema import Schema
from reben_cloud.store import Store
from reben_cloud.views import picture


def publish(plan: BuildPlan, receipts: Mapping[str, Receipt]) -> Manifest:
    """Write what belongs to no task, check that all is there, and commit.

    Args:
        plan: What is built.
        receipts: Task name -> receipt, of every task.

    Returns:
        The manifest.

    Raises:
        ConflictError: If another build has published the root meanwhile, or the source has changed while it was read.
        StorageError: If an object is missing or the store fails.
    """
    _check_source(plan, receipts)
    written = [o for receipt in receipts.values() for o in receipt.objects]
    written += _put_all(plan.store, _of_products(plan, receipts))
    if plan.matched.incomplete:
        written.append(put(plan.store, layout.INCOMPLETE, plan.matched.incomplete_csv()))
    placement = plan.placement
    for modality in plan.modalities:
        placement = placement.append_column(
            layout.checksum_column(modality), _checksums(plan, receipts, modality)
        )
    table = patches_table(plan.table, plan.schema, placement)
    patches = write_patches(table, plan.schema)
    written.append(put(plan.store, PATCHES, patches))
    groups = group_sizes(plan.placement)
    written += _put_all(
        plan.store, catalog.root_documents(table, groups, written, schema=plan.schema).items()
    )
    objects = Objects.of(written).encode()
    written.append(put(plan.store, OBJECTS, objects))
    _remove_staged(plan.store, written)
    check_presence(plan.store, {one.path: one.nbytes for one in written})
    return commit_root(plan.store, manifest_of(plan), patches, objects)


def publish_metadata(metadata: pa.Table, schema: Schema, store: Store, *, given: Sequence[str]) -> Manifest:
    """Write a root of metadata alone: tables and catalog, to search and to browse, without pixels.

    Args:
        metadata: Metadata of the patches, described (`root.metadata.REQUIRED`).
        schema: What the dataset is; its modalities say how fine its images are.
        store: The root to be.
        given: Columns of `metadata` that were given; the others follow from them.

    Returns:
        The manifest.

    Raises:
        ConflictError: If the store holds another dataset.
        StorageError: If the store fails.
    """
    bare = schema.only([])
    check_metadata(metadata, bare)
    fingerprint = fingerprint_of(metadata.select(list(given)).sort_by("patch_id"), bare, None)
    there = read_manifest(store)
    if there is not None:
        if is_root_of(fingerprint, there, store):
            return there
        raise ConflictError(f"{store.url} holds another dataset; a root never changes, take an empty place")
    table = patches_table(metadata, schema)
    patches = write_patches(table, schema)
    written = [put(store, PATCHES, patches)]
    manifest = Manifest.of(
        created_from="metadata",
        schema=bare,
        metadata_columns=given,
        num_patches=table.num_rows,
        products=sorted(pc.unique(pc.cast(table.column(layout.PRODUCT), pa.string())).to_pylist()),
        countries=countries_of(metadata),
        fingerprint=fingerprint,
    )
    for path, data in catalog.root_documents(table, {}, written, schema=schema).items():
        written.append(put(store, path, data))
    objects = Objects.of(written).encode()
    store.put(OBJECTS, objects)
    return commit_root(store, manifest, patches, objects)


def commit_root(store: Store, manifest: Manifest, patches: bytes, objects: bytes) -> Manifest:
    """Put the manifest, which vouches for both tables and makes the root a dataset.

    Raises:
        ConflictError: If another process has published there meanwhile.
    """
    digest = hashlib.sha256(objects).hexdigest()
    manifest = manifest.vouching_for(patches=Seal.of(io.BytesIO(patches)), objects_sha256=digest)
    commit(store, MANIFEST, manifest.to_bytes())
    return manifest


def _of_products(plan: BuildPlan, receipts: Mapping[str, Receipt]) -> Iterator[tuple[str, bytes]]:
    """Paths and bytes of what every product has beside its Zarr shards."""
    for product in plan.products:
        for path, data in product_objects(plan, product).items():
            yield f"{layout.zarr_store(product)}/{path}", data
    for product, data in _thumbnails(plan, receipts):
        yield layout.thumbnail(about(plan.schema).collection, product), data


def _put_all(store: Store, objects: Iterable[tuple[str, bytes]]) -> list[WrittenObject]:
    """Put many small objects, several at a time: on a distant store each one waits.

    Args:
        store: The root.
        objects: Paths and bytes, made as they are put.

    Returns:
        What was written, in the given order.
    """
    waiting = iter(objects)
    written: list[WrittenObject] = []
    with ThreadPoolExecutor(_PUTS) as pool:
        while some := list(islice(waiting, 4 * _PUTS)):
            written += pool.map(lambda one: put(store, *one), some)
    return written


_PUTS = 16  # at a time; a few hundred bytes each


def _remove_staged(store: Store, written: Sequence[WrittenObject]) -> None:
    """Remove what killed processes left of these objects (`<name>#<number>`), which no listing shows."""
    folder = store.local_path()
    if folder is not None:
        ours = {one.path for one in written}
        for path in folder.rglob("*#*"):
            name, _, number = path.relative_to(folder).as_posix().rpartition("#")
            if name in ours and number.isdigit():
                path.unlink(missing_ok=True)


def product_objects(plan: BuildPlan, product: str) -> dict[str, bytes]:
    """Metadata and coordinates of a product's Zarr store."""
    start, count = plan.products[product]
    rows = plan.table.slice(start, count)
    epsg = rows.column("epsg").to_numpy()
    x0, y0 = (rows.column(name).to_numpy().astype(np.float64) for name in ("x0", "y0"))
    text = {
        name: np.array(rows.column(name).to_pylist(), dtype=object)
        for name in ("patch_id", "split", "country", "s1_name")
        if name in rows.column_names
    }
    seconds = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}
    times = _seconds(rows.column("datetime"))
    s1_times = {}
    if "s1_datetime" in rows.column_names and not rows.column("s1_datetime").null_count:
        # A dataset made from Sentinel-2 alone has no such times.
        s1_times = {"s1_time": (("patch",), _seconds(rows.column("s1_datetime")), seconds)}
    projected = CRS.from_epsg(int(epsg[0]))
    patch = ("patch",)
    coordinates: dict[str, Any] = {
        **{name: (patch, values, {}) for name, values in text.items()},
        "labels": (
            ("patch", "label"),
            plan.schema.classes.encode(rows.column("labels")),
            {"long_name": "1 where the patch has the class"},
        ),
        "x0": (patch, x0, {"units": "m", "long_name": "west edge of the patch"}),
        "y0": (patch, y0, {"units": "m", "long_name": "north edge of the patch"}),
        "time": (patch, times, {"standard_name": "time", **seconds}),
        **s1_times,
        "spatial_ref": ((), np.array(0, np.int64), projected.to_cf()),
        **zarr.label_coordinates(plan.pixel_arrays(), plan.schema.classes.names),
    }
    side = plan.schema.patch_m
    bounds = [float(x0.min()), float(y0.min() - side), float(x0.max() + side), float(y0.max())]
    return zarr.product_objects(
        num_patches=count,
        arrays=plan.pixel_arrays(),
        coordinates=coordinates,
        attributes={
            "title": f"{plan.schema.name.removesuffix(' (reBEN)')} patches of {product}",
            "coordinates": " ".join([*text, "x0", "y0", "time", *s1_times, "spatial_ref"]),
            **zarr_cm.create_many(
                {
                    "proj": {"proj:code": f"EPSG:{epsg[0]}"},
                    "spatial": {"spatial:dimensions": ["y", "x"], "spatial:bbox": bounds},
                }
            ),
        },
    )


def _seconds(times: pa.ChunkedArray) -> NDArray[np.int64]:
    """UTC times as seconds since 1970."""
    found: NDArray[np.int64] = times.cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
    return found


def _thumbnails(plan: BuildPlan, receipts: Mapping[str, Receipt]) -> Iterator[tuple[str, bytes]]:
    """Products and their thumbnails, from what the Zarr tasks saw; none without the bands of true colour."""
    if not any(receipt.tiny for receipt in receipts.values()):
        return
    tasks: dict[str, list[ZarrTask]] = {product: [] for product in plan.products}
    for task in plan.tasks:
        if isinstance(task, ZarrTask):
            tasks[task.product].append(task)
    side = picture.THUMBNAIL_PX
    for product, (start, count) in plan.products.items():
        parts = sorted(tasks[product], key=lambda t: t.number)
        tiny = b"".join(base64.b64decode(receipts[part.name].tiny) for part in parts)
        pixels = np.frombuffer(tiny, np.uint8).reshape(count, side, side, 3)
        rows = plan.table.slice(start, count)
        x0, y0 = (rows.column(name).to_numpy().astype(np.float64) for name in ("x0", "y0"))
        yield product, picture.thumbnail(pixels, x0, y0, patch_m=plan.schema.patch_m)


def _check_source(plan: BuildPlan, receipts: Mapping[str, Receipt]) -> None:
    """Refuse when a patch's files changed between the task of its shard and that of its Zarr store."""
    stamps: dict[type, NDArray[np.bytes_]] = {}
    for task in plan.tasks:
        known = stamps.setdefault(type(task), np.zeros(plan.table.num_rows, "S16"))
        known[plan.rows_of(task)] = receipts[task.name].stamps
    one, *others = stamps.values()
    for other in others:
        rows = np.flatnonzero(one != other)
        if rows.size:
            infos = list(patch_infos(plan.table.take(pa.array(rows))))
            refuse_changed(plan.store, infos, one[rows].tolist(), other[rows].tolist())
    if plan.source.identity() != plan.beginning["source"]["files"]:
        raise ConflictError(
            f"{plan.source.describe()} has changed while {plan.store.url} was built from it. "
            f"{START_OVER.format(url=plan.store.url)}"
        )


def _checksums(plan: BuildPlan, receipts: Mapping[str, Receipt], modality: str) -> pa.Array:
    """The xxh3-64 of each row's payload, in the order of the plan's table."""
    sums = np.zeros(plan.table.num_rows, np.uint64)
    for task in plan.tasks:
        if isinstance(task, ShardTask):
            sums[plan.rows_of(task)] = receipts[task.name].payloads[modality]
    return pa.array(sums)
