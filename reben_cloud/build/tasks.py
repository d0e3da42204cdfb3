"""Doing one task: read its patches, check them, write its objects, leave a receipt.

A task is idempotent: a receipt whose objects are all there with their checksums makes it a no-op.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud import grid, labels, metadata
from reben_cloud.bands import ARRAYS, MODALITIES
from reben_cloud.build.plan import Job, ShardTask, UnpackTask, ZarrTask
from reben_cloud.errors import SourceError
from reben_cloud.formats import tar, zarr
from reben_cloud.patch import MAP_TENSOR, Patch, PatchInfo, decode_tensors
from reben_cloud.sources.archives import ArchiveSource
from reben_cloud.store import Store


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

    task: str
    """Name of the task."""
    objects: tuple[WrittenObject, ...]
    """The objects."""
    payloads: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Modality -> xxh3-64 of each payload in row order (shard tasks only)."""

    def to_json(self) -> bytes:
        """The receipt as it is stored."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes | memoryview) -> Receipt:
        """A stored receipt.

        Raises:
            ValueError, KeyError, TypeError: If it is none.
        """
        value = json.loads(bytes(text))
        return cls(
            task=value["task"],
            objects=tuple(WrittenObject(**o) for o in value["objects"]),
            payloads={m: tuple(sums) for m, sums in value["payloads"].items()},
        )


def run_job(job: Job) -> Receipt:
    """Do one task, unless a receipt in the root says that it is done.

    Raises:
        SourceError: If a patch contradicts its metadata, or the source is broken.
        StorageError: If the store or the scratch disk fails.
    """
    if isinstance(job.task, UnpackTask):
        return _unpack(job, job.task)
    path = f"{job.journal}/{job.task.name}.json"
    done = read_receipt(job.store, path)
    if done is not None and all(_is_right(job.store, o) for o in done.objects):
        return done
    receipt = _write_zarr(job, job.task) if isinstance(job.task, ZarrTask) else _write_shards(job, job.task)
    job.store.put(path, receipt.to_json())
    return receipt


def read_receipt(store: Store, path: str) -> Receipt | None:
    """The receipt at `path`, None if there is none that can be read."""
    try:
        return Receipt.from_json(store.get(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_right(store: Store, written: WrittenObject) -> bool:
    try:
        return hashlib.sha256(store.get(written.path)).hexdigest() == written.sha256
    except FileNotFoundError:
        return False


def put(store: Store, path: str, data: bytes | bytearray, *, is_shard: bool = False) -> WrittenObject:
    """Write an object and say what was written."""
    store.put(path, memoryview(data))
    return WrittenObject(
        path=path,
        nbytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        xxh3=xxhash.xxh3_64_intdigest(data) if is_shard else None,
    )


# -- reading -----------------------------------------------------------------------------------------

_READERS = 8  # patches read at once from a source with a network between


def _read(job: Job) -> Iterator[Patch]:
    """The patches of a job in order, from the scratch folder or the source."""
    infos = list(metadata.patch_infos(job.rows))

    def read(row: int, info: PatchInfo) -> Patch:
        if job.spool is not None:
            kept = {m: job.spool.read(m, row) for m in job.modalities}
            if None not in kept.values():
                return Patch(info=info, payloads={m: p for m, p in kept.items() if p is not None})
        patch = job.source.read(info, job.modalities)
        if job.spool is not None:
            for modality, payload in patch.payloads.items():
                job.spool.write(modality, row, payload)
        return patch

    if not getattr(job.source, "is_remote", False):
        yield from map(read, job.positions.tolist(), infos)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, job.positions.tolist(), infos)


def _unpack(job: Job, task: UnpackTask) -> Receipt:
    """Read one archive into the scratch folder; what an earlier run kept is not decoded again."""
    assert isinstance(job.source, ArchiveSource)
    assert job.spool is not None
    column = "s1_name" if task.modality == "s1" else "patch_id"
    names = job.rows.column(column).to_pylist()
    rows = {name: row for row, name in enumerate(names)}
    where = job.source.describe()
    held, seen = job.spool.held(task.modality), np.zeros(len(names), np.bool_)
    if held.all():
        return Receipt(task=task.name, objects=())

    def wanted(name: str) -> bool:
        row = rows.get(name)
        if row is None:
            raise SourceError(
                f"{name}: this {task.modality} name of {where} is in no row of the metadata; "
                "name both official metadata files (--metadata)"
            )
        if seen[row]:
            raise SourceError(f"{name}: this {task.modality} patch comes twice in {where}")
        seen[row] = True
        return not held[row]

    for name, payload in job.source.iter_payloads(task.modality, wanted=wanted):
        if payload is not None:
            job.spool.write(task.modality, rows[name], payload)
    if not seen.all():
        lacking = np.flatnonzero(~seen)
        raise SourceError(
            f"{names[int(lacking[0])]}: not in the {task.modality} archive of {where} ({lacking.size:,} of "
            f"{len(names):,} patches of the metadata are not); is it the whole archive?"
        )
    return Receipt(task=task.name, objects=())


# -- checking ----------------------------------------------------------------------------------------


def check_pixels(infos: Sequence[PatchInfo], stacks: Mapping[str, NDArray[Any]]) -> None:
    """Refuse pixels that contradict the metadata.

    Args:
        infos: n patches.
        stacks: Array name -> pixels, first dimension n; names as in `zarr.PIXEL_ARRAYS`.

    Raises:
        SourceError: If an S2 band has a zero pixel (the nodata rule), VV is below VH on average
            over all n (swapped bands; one patch alone may be odd), or labels and map disagree.
        InvalidPatchError: If a map has an unknown code.
    """
    for name in MODALITIES["s2"]:
        if name in stacks:
            lowest = stacks[name].reshape(len(infos), -1).min(axis=1)
            if not lowest.all():
                raise SourceError(
                    f"{infos[int(np.argmin(lowest))].patch_id}: {name} has a zero pixel, which means nodata; "
                    "reBEN has no such patch"
                )
    if "s1" in stacks:
        mean_vv, mean_vh = stacks["s1"].mean(axis=(0, 2, 3), dtype=np.float64)
        if not mean_vv > mean_vh:
            raise SourceError(
                f"{infos[0].s1_name} and the {len(infos) - 1} patches after it: mean VV is {mean_vv:.2f} dB and "
                f"mean VH {mean_vh:.2f} dB; VV must be above VH, are the bands swapped?"
            )
    for info, codes in zip(infos, stacks.get(zarr.REFERENCE_MAP, ()), strict=False):
        found = labels.labels_of_map(codes, name=info.patch_id)
        if list(found) != sorted(info.labels):
            raise SourceError(
                f"{info.patch_id}: the reference map holds {', '.join(found)}, "
                f"the metadata says {', '.join(info.labels)}"
            )


# -- writing -----------------------------------------------------------------------------------------


def stack_patches(patches: Iterator[Patch], count: int, arrays: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The pixels of `count` patches as Zarr holds them: array name -> (count, bands, y, x)."""
    specs = {name: zarr.PIXEL_ARRAYS[name] for name in arrays}
    stacks = {name: np.empty((count, *spec.shape), spec.dtype) for name, spec in specs.items()}
    for row, patch in enumerate(patches):
        for modality, payload in patch.payloads.items():
            tensors = decode_tensors(modality, payload)
            if modality == "map":
                stacks[zarr.REFERENCE_MAP][row] = tensors[MAP_TENSOR]
                continue
            for array in MODALITIES[modality]:
                for number, band in enumerate(ARRAYS[array]):
                    stacks[array][row, number] = tensors[band]
    return stacks


def _write_zarr(job: Job, task: ZarrTask) -> Receipt:
    arrays = [name for m in job.modalities for name in zarr.arrays_of(m)]
    stacks = stack_patches(_read(job), job.rows.num_rows, arrays)
    check_pixels(list(metadata.patch_infos(job.rows)), stacks)
    written = tuple(
        put(job.store, f"zarr/{task.product}.zarr/{zarr.shard_path(name, task.number)}", shard)
        for name, shard in ((name, zarr.encode_shard(name, stack)) for name, stack in stacks.items())
    )
    return Receipt(task=task.name, objects=written)


def _write_shards(job: Job, task: ShardTask) -> Receipt:
    patches = list(_read(job))
    texts = [sample_json(patch.info) for patch in patches]
    written, sums = [], {}
    for modality in job.modalities:
        samples = [
            (patch.info.patch_id, patch.payloads[modality], text)
            for patch, text in zip(patches, texts, strict=True)
        ]
        path = tar.shard_path(task.group, modality, task.number)
        written.append(put(job.store, path, tar.encode_shard(modality, samples), is_shard=True))
        sums[modality] = tuple(xxhash.xxh3_64_intdigest(payload) for _, payload, _ in samples)
    return Receipt(task=task.name, objects=tuple(written), payloads=sums)


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
        # None in a dataset made from Sentinel-2 alone.
        "s1_datetime": metadata.rfc3339(grid.s1_sensing_time(info.s1_name)) if info.s1_name else None,
        "epsg": epsg,
        "bbox": bbox,
    }
