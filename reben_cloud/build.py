"""Build a root: a pure plan of which task writes which objects, an executor, and the commit.

A task writes whole objects, is idempotent, and leaves a receipt with their checksums below
``_build/``; a second run skips what a receipt vouches for. The manifest is put last, create-only:
a killed build leaves no dataset, and run again it ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
import zarr_cm
from numpy.typing import NDArray
from pyproj import CRS

from reben_cloud import catalog, grid, labels, metadata
from reben_cloud.bands import MODALITIES
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.formats import tar, zarr
from reben_cloud.patch import Patch, PatchInfo
from reben_cloud.placement import PlacementOptions, group_sizes, place
from reben_cloud.sources import Source
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""The commit point of a root."""

JOURNAL = "_build"
"""Folder of the plan and the receipts; no part of the dataset."""

FORMAT_VERSION = 1
"""Version of the root's layout, in the manifest; readers refuse a higher one."""


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
    """Write the tar shards of one number, one a modality."""

    group: str
    """Shard group, e.g. ``train`` or ``test-extra``."""
    number: int
    """Number of the shard, from 0."""

    @property
    def name(self) -> str:
        """Unique name, also the receipt's."""
        return f"shard-{self.group}-{self.number:06d}"


Task = ZarrTask | ShardTask


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenObject:
    """One object of a root, as ``objects.parquet`` lists it."""

    path: str
    """Path below the root."""
    nbytes: int
    """Size in bytes."""
    sha256: str
    """Hex digest."""
    xxh3: int | None = None
    """xxh3-64 of a shard, which the loader checks; None for other objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a task wrote."""

    objects: tuple[WrittenObject, ...]
    """The objects."""
    payloads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Modality -> xxh3-64 of each payload in row order (shard tasks only)."""

    def to_json(self) -> bytes:
        """The receipt as it is stored."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes | memoryview) -> Receipt:
        """A stored receipt."""
        value = json.loads(bytes(text))
        return cls(
            objects=tuple(WrittenObject(**o) for o in value["objects"]),
            payloads={m: tuple(sums) for m, sums in value["payloads"].items()},
        )


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a task needs to know, decided before anything is written."""

    source: Source
    """Where payloads come from."""
    store: Store
    """The root."""
    table: pa.Table
    """Official metadata of the patches to write, sorted by ``patch_id``."""
    placement: pa.Table
    """Where each of them goes (`placement.place`)."""
    modalities: tuple[str, ...]
    """What every patch has, in the order s2, s1, map."""
    options: PlacementOptions
    """Order, seed and shard size."""

    @cached_property
    def fingerprint(self) -> str:
        """Names what is built: the same plan ends in the same bytes."""
        table = io.BytesIO()
        pq.write_table(self.table.combine_chunks(), table, compression="none")
        digest = hashlib.sha256(table.getbuffer())
        digest.update(repr((FORMAT_VERSION, self.modalities, self.options)).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def products(self) -> Mapping[str, tuple[int, int]]:
        """Product -> (first row of `table`, number of patches)."""
        encoded = self.placement.column("reben:product").combine_chunks()
        starts, counts = np.unique(encoded.indices.to_numpy(), return_index=True, return_counts=True)[1:]
        names = encoded.dictionary.to_pylist()
        return {names[i]: (int(starts[i]), int(counts[i])) for i in range(len(names))}

    @cached_property
    def shards(self) -> Mapping[tuple[str, int], NDArray[np.int64]]:
        """(Group, shard number) -> rows of `table` in shard order."""
        encoded = self.placement.column("reben:shard_group").combine_chunks()
        group, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        shard = self.placement.column("reben:shard").to_numpy()
        row = self.placement.column("reben:shard_row").to_numpy()
        order = np.lexsort((row, shard, group))
        cuts = np.flatnonzero(np.diff(group[order]) | np.diff(shard[order])) + 1
        return {
            (names[group[rows[0]]], int(shard[rows[0]])): rows for rows in np.split(order, cuts) if rows.size
        }

    def tasks(self) -> list[Task]:
        """Every task, Zarr first."""
        found: list[Task] = [
            ZarrTask(product=product, number=number)
            for product, (_, count) in self.products.items()
            for number in range(zarr.num_zarr_shards(count))
        ]
        return found + [ShardTask(group=group, number=number) for group, number in self.shards]

    def rows_of(self, task: Task) -> NDArray[np.int64]:
        """Rows of `table` that a task writes, in the order in which it writes them."""
        if isinstance(task, ShardTask):
            return self.shards[task.group, task.number]
        start, count = self.products[task.product]
        first = task.number * zarr.PATCHES_PER_ZARR_SHARD
        return start + np.arange(first, min(first + zarr.PATCHES_PER_ZARR_SHARD, count))

    def pixel_arrays(self) -> tuple[str, ...]:
        """Names of the Zarr pixel arrays that the root has."""
        return tuple(name for m in self.modalities for name in zarr.arrays_of(m))


def shard_object(group: str, modality: str, number: int) -> str:
    """Path of a tar shard, e.g. ``shards/train/s2/train-s2-000017.tar``."""
    return f"shards/{group}/{modality}/{group}-{modality}-{number:06d}.tar"


def make_plan(
    source: Source,
    official: pa.Table,
    store: Store,
    *,
    modalities: Sequence[str] | None = None,
    options: PlacementOptions | None = None,
) -> BuildPlan:
    """Decide what a build writes; reads nothing but the names that the source holds.

    Args:
        source: Where payloads come from.
        official: Official metadata, of the source's patches and perhaps many more.
        store: The root to be.
        modalities: What to build; by default every modality that the source has.
        options: Order, seed and shard size.

    Raises:
        SourceError: If a name in the source has no metadata row, or a patch lacks a modality.
    """
    names = source.names()
    wanted = tuple(m for m in MODALITIES if m in (modalities or names))
    table = _matching_rows(names, official, wanted, source.describe())
    options = options or PlacementOptions()
    return BuildPlan(
        source=source,
        store=store,
        table=table,
        placement=place(table, options),
        modalities=wanted,
        options=options,
    )


def _matching_rows(
    names: Mapping[str, Sequence[str]], official: pa.Table, modalities: Sequence[str], where: str
) -> pa.Table:
    """The metadata rows whose patch the source holds in every wanted modality."""
    held: dict[str, NDArray[np.bool_]] = {}
    for modality in modalities:
        if not names.get(modality):
            raise SourceError(f"{where} has no {modality}; it has {', '.join(names) or 'nothing'}")
        column = "s1_name" if modality == "s1" else "patch_id"
        found = pa.array(sorted(names[modality]))
        unknown = found.filter(pc.invert(pc.is_in(found, official.column(column).combine_chunks())))
        if len(unknown):
            what = "pairs with no patch" if modality == "s1" else "is in no row"
            raise SourceError(
                f"{unknown[0]}: this {modality} name of {where} {what} of the metadata "
                f"({len(unknown)} such names); is it the right metadata file (--metadata)?"
            )
        held[modality] = pc.is_in(official.column(column), found).to_numpy(zero_copy_only=False)
    everywhere = np.logical_and.reduce(list(held.values()))
    somewhere = np.logical_or.reduce(list(held.values()))
    partial = np.flatnonzero(somewhere & ~everywhere)
    if partial.size:
        first = official.column("patch_id")[int(partial[0])].as_py()
        lacking = [m for m, there in held.items() if not there[partial[0]]]
        raise SourceError(
            f"{first}: {where} has no {' and no '.join(lacking)} for this patch ({partial.size} patches "
            f"are incomplete, {int(everywhere.sum())} complete); complete the source, or build only what "
            f"every patch has (--modality)"
        )
    return official.filter(pa.array(everywhere)).combine_chunks()


# -- tasks -----------------------------------------------------------------------------------------


def run_task(plan: BuildPlan, task: Task) -> Receipt:
    """Do one task, unless a receipt in the root says that it is done."""
    path = f"{JOURNAL}/{plan.fingerprint}/{task.name}.json"
    done = _finished(plan.store, path)
    if done is not None:
        return done
    receipt = _write_zarr(plan, task) if isinstance(task, ZarrTask) else _write_shards(plan, task)
    plan.store.put(path, receipt.to_json())
    return receipt


def _finished(store: Store, path: str) -> Receipt | None:
    """The receipt at `path` if every object it lists is there with its checksum."""
    try:
        receipt = Receipt.from_json(store.get(path))
        for written in receipt.objects:
            if hashlib.sha256(store.get(written.path)).hexdigest() != written.sha256:
                return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return receipt


def _read(plan: BuildPlan, rows: NDArray[np.int64]) -> Iterator[Patch]:
    for info in metadata.patch_infos(plan.table.take(pa.array(rows))):
        patch = plan.source.read(info, plan.modalities)
        check_patch(patch)
        yield patch


def check_patch(patch: Patch) -> None:
    """Refuse pixels that contradict the metadata.

    Raises:
        SourceError: If an S2 band has a zero pixel (the nodata rule), VV is below VH on average
            (swapped bands), a map has an unknown code, or labels and map disagree.
    """
    name = patch.info.patch_id
    arrays = patch.arrays()
    for band_array in ("s2_10m", "s2_20m", "s2_60m"):
        if band_array in arrays and not arrays[band_array].all():
            raise SourceError(
                f"{name}: {band_array} has a zero pixel, which means nodata; such a patch is none of reBEN"
            )
    if "s1" in arrays:
        mean_vv, mean_vh = arrays["s1"].mean(axis=(1, 2), dtype=np.float64)
        if not mean_vv > mean_vh:
            raise SourceError(
                f"{patch.info.s1_name}: mean VV is {mean_vv:.2f} dB and mean VH {mean_vh:.2f} dB; "
                "VV must be above VH, are the bands swapped?"
            )
    if "map" in arrays:
        found = labels.labels_of_map(arrays["map"], name=name)
        if sorted(found) != sorted(patch.info.labels):
            raise SourceError(
                f"{name}: the reference map holds {', '.join(sorted(found))}, "
                f"the metadata says {', '.join(patch.info.labels)}"
            )


def _write_zarr(plan: BuildPlan, task: ZarrTask) -> Receipt:
    stacks: dict[str, list[NDArray[Any]]] = {name: [] for name in plan.pixel_arrays()}
    for patch in _read(plan, plan.rows_of(task)):
        for name, array in patch.arrays().items():
            stacks[zarr.REFERENCE_MAP if name == "map" else name].append(array)
    written = []
    for name, stack in stacks.items():
        path = f"zarr/{task.product}.zarr/{zarr.shard_path(name, task.number)}"
        written.append(_put(plan.store, path, zarr.encode_shard(name, np.stack(stack))))
    return Receipt(objects=tuple(written))


def _write_shards(plan: BuildPlan, task: ShardTask) -> Receipt:
    patches = list(_read(plan, plan.rows_of(task)))
    written, sums = [], {}
    texts = [sample_json(patch.info) for patch in patches]
    for modality in plan.modalities:
        samples = [
            (patch.info.patch_id, patch.payloads[modality], text)
            for patch, text in zip(patches, texts, strict=True)
        ]
        shard = tar.encode_shard(modality, samples)
        path = shard_object(task.group, modality, task.number)
        written.append(_put(plan.store, path, bytes(shard), is_shard=True))
        sums[modality] = tuple(xxhash.xxh3_64_intdigest(payload) for _, payload, _ in samples)
    return Receipt(objects=tuple(written), payloads=sums)


def sample_json(info: PatchInfo) -> dict[str, object]:
    """The metadata that goes beside each payload of a shard."""
    epsg, *bbox = grid.footprint(info.patch_id)
    return {
        "patch_id": info.patch_id,
        "labels": list(info.labels),
        "split": info.split,
        "country": info.country,
        "s1_name": info.s1_name,
        "s2v1_name": info.s2v1_name,
        "contains_seasonal_snow": info.contains_seasonal_snow,
        "contains_cloud_or_shadow": info.contains_cloud_or_shadow,
        "datetime": grid.sensing_time(info.patch_id).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "s1_datetime": grid.s1_sensing_time(info.s1_name).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "epsg": epsg,
        "bbox": bbox,
    }


def _put(store: Store, path: str, data: bytes, *, is_shard: bool = False) -> WrittenObject:
    store.put(path, data)
    return WrittenObject(
        path=path,
        nbytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        xxh3=xxhash.xxh3_64_intdigest(data) if is_shard else None,
    )


# -- executing and finishing -------------------------------------------------------------------


Progress = Callable[[Iterable[Receipt], int], Iterable[Receipt]]
"""Wraps the receipts as they come, e.g. with a progress bar; the second argument is their number."""


def _silent(receipts: Iterable[Receipt], total: int) -> Iterable[Receipt]:
    return receipts


def build(plan: BuildPlan, *, workers: int = 1, progress: Progress = _silent) -> dict[str, Any]:
    """Write the root, or finish writing it.

    Args:
        plan: From `make_plan`.
        workers: Local processes; 1 works in this process.
        progress: Wraps the stream of finished tasks.

    Returns:
        The manifest.

    Raises:
        ConflictError: If the root is published already, or holds another plan's build.
        SourceError: If a patch contradicts its metadata.
        StorageError: If the store fails after the retries.
    """
    claim(plan)
    tasks = plan.tasks()
    if workers == 1:
        receipts = {
            t.name: r
            for t, r in zip(tasks, progress((run_task(plan, t) for t in tasks), len(tasks)), strict=True)
        }
    else:
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(plan,)
        ) as pool:
            futures = {pool.submit(_work, task): task for task in tasks}
            finished = progress((future.result() for future in as_completed(futures)), len(tasks))
            try:
                for _ in finished:
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            receipts = {futures[f].name: f.result() for f in futures}
    return finish(plan, [receipts[task.name] for task in tasks])


_worker_plan: BuildPlan | None = None


def _start_worker(plan: BuildPlan) -> None:
    global _worker_plan  # one plan a worker process, set once: pickling it with every task costs more
    _worker_plan = plan


def _work(task: Task) -> Receipt:
    assert _worker_plan is not None
    return run_task(_worker_plan, task)


def claim(plan: BuildPlan) -> None:
    """Make the root this plan's, or find that it is.

    Raises:
        ConflictError: If it is published, or another plan has claimed it.
    """
    if plan.store.exists(MANIFEST):
        raise ConflictError(
            f"{plan.store.url} is published already; a root never changes, build into a new one"
        )
    try:
        plan.store.put(f"{JOURNAL}/plan.json", plan.fingerprint.encode(), create=True)
    except FileExistsError:
        theirs = bytes(plan.store.get(f"{JOURNAL}/plan.json")).decode()
        if theirs != plan.fingerprint:
            raise ConflictError(
                f"{plan.store.url} holds an unfinished build of something else (plan {theirs}, this is "
                f"{plan.fingerprint}); finish that one with its own source and options, or take an empty root"
            ) from None


def finish(plan: BuildPlan, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Write tables, product metadata and catalog, and publish: the manifest comes last."""
    written = [o for receipt in receipts for o in receipt.objects]
    for product in plan.products:
        for path, data in product_objects(plan, product).items():
            written.append(_put(plan.store, f"zarr/{product}.zarr/{path}", data))
    placement = plan.placement
    for modality in plan.modalities:
        placement = placement.append_column(f"reben:{modality}_xxh3", _checksums(plan, receipts, modality))
    table = metadata.patches_table(plan.table, placement)
    patches = metadata.write_patches(table)
    written.append(_put(plan.store, "patches.parquet", patches))
    manifest = {
        "format": "reben_cloud root",
        "version": FORMAT_VERSION,
        "created_from": plan.source.describe(),
        "modalities": list(plan.modalities),
        "num_patches": plan.table.num_rows,
        "products": list(plan.products),
        "groups": {
            group: {"num_samples": size, "num_shards": -(-size // plan.options.shard_samples)}
            for group, size in group_sizes(plan.placement).items()
        },
        "shard_samples": plan.options.shard_samples,
        "zarr_shard_patches": zarr.PATCHES_PER_ZARR_SHARD,
        "order": {"kind": plan.options.order, "seed": plan.options.seed},
        "fingerprint": plan.fingerprint,
    }
    for path, data in catalog.root_documents(table, manifest, written).items():
        written.append(_put(plan.store, path, data))
    objects = _objects_parquet(written)
    plan.store.put("objects.parquet", objects)
    manifest["objects_sha256"] = hashlib.sha256(objects).hexdigest()
    text = json.dumps(manifest, indent=2).encode()
    try:
        plan.store.put(MANIFEST, text, create=True)
    except FileExistsError:
        if bytes(plan.store.get(MANIFEST)) != text:
            raise ConflictError(f"{plan.store.url} was published by another build meanwhile") from None
    return manifest


def product_objects(plan: BuildPlan, product: str) -> dict[str, bytes]:
    """Metadata and coordinates of a product's Zarr store."""
    start, count = plan.products[product]
    rows = plan.table.slice(start, count)
    ids = rows.column("patch_id").to_pylist()
    epsg, minx, miny, maxx, maxy = grid.footprints(ids)
    x0, y0 = np.asarray(minx, np.float64), np.asarray(maxy, np.float64)
    text = {
        name: np.array(rows.column(name).to_pylist(), dtype=object)
        for name in ("patch_id", "split", "country", "s1_name")
    }
    seconds = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}
    times = np.array([grid.sensing_time(i).timestamp() for i in ids], np.int64)
    s1_times = np.array([grid.s1_sensing_time(n).timestamp() for n in text["s1_name"]], np.int64)
    projected = CRS.from_epsg(int(epsg[0]))
    patch = ("patch",)
    coordinates: dict[str, Any] = {
        **{name: (patch, values, {}) for name, values in text.items()},
        "labels": (
            ("patch", "label"),
            labels.encode_many(rows.column("labels")),
            {"long_name": "1 where the patch has the class"},
        ),
        "x0": (patch, x0, {"units": "m", "long_name": "west edge of the patch"}),
        "y0": (patch, y0, {"units": "m", "long_name": "north edge of the patch"}),
        "time": (patch, times, {"standard_name": "time", **seconds}),
        "s1_time": (patch, s1_times, seconds),
        "spatial_ref": ((), np.array(0, np.int64), projected.to_cf()),
        **zarr.band_coordinates(plan.pixel_arrays()),
    }
    bounds = [float(np.min(minx)), float(np.min(miny)), float(np.max(maxx)), float(np.max(maxy))]
    return zarr.product_objects(
        num_patches=count,
        arrays=plan.pixel_arrays(),
        coordinates=coordinates,
        attributes={
            "title": f"BigEarthNet v2.0 patches of {product}",
            "coordinates": "patch_id split country s1_name x0 y0 time s1_time spatial_ref",
            **zarr_cm.create_many(
                {
                    "proj": {"proj:code": f"EPSG:{epsg[0]}"},
                    "spatial": {"spatial:dimensions": ["y", "x"], "spatial:bbox": bounds},
                }
            ),
        },
    )


def _checksums(plan: BuildPlan, receipts: Sequence[Receipt], modality: str) -> pa.Array:
    """The xxh3-64 of each row's payload, in the order of the plan's table."""
    sums = np.zeros(plan.table.num_rows, np.uint64)
    for task, receipt in zip(plan.tasks(), receipts, strict=True):
        if isinstance(task, ShardTask):
            sums[plan.rows_of(task)] = receipt.payloads[modality]
    return pa.array(sums)


def _objects_parquet(written: Sequence[WrittenObject]) -> bytes:
    rows = sorted(written, key=lambda o: o.path)
    table = pa.table(
        {
            "path": pa.array([o.path for o in rows], pa.string()),
            "bytes": pa.array([o.nbytes for o in rows], pa.int64()),
            "sha256": pa.array([o.sha256 for o in rows], pa.string()),
            "xxh3": pa.array([o.xxh3 for o in rows], pa.uint64()),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()
