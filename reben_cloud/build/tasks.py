"""Doing one task: read its patches, check them, write its objects, leave a receipt.

A task is idempotent: a receipt whose objects are all there with their checksums makes it a no-op.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid, labels
from reben_cloud.bigearthnet.bands import ARRAYS, MODALITIES
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build.plan import Job, ShardTask, UnpackTask, ZarrTask
from reben_cloud.errors import ConflictError, InvalidPatchError, SourceError
from reben_cloud.formats import tar, zarr
from reben_cloud.root import patches as metadata
from reben_cloud.root.digest import is_intact, sealed
from reben_cloud.root.patch import MAP_TENSOR, PAYLOAD_HEADER, Patch, PatchInfo, decode_tensors
from reben_cloud.sources.archives import ArchiveSource
from reben_cloud.store import Store
from reben_cloud.views import picture


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
    tiny: str = ""
    """`picture.tiny_of` the patches in row order, base64; empty where there is none."""
    stamps: tuple[str, ...] = ()
    """`Source.stamp` of the patches in row order: of which files the objects were made."""

    def to_json(self) -> bytes:
        """The receipt as it is stored, sealed."""
        return json.dumps(sealed(asdict(self)), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes | memoryview) -> Receipt:
        """A stored receipt.

        Raises:
            ValueError, KeyError, TypeError: If it is none, or damaged.
        """
        value = json.loads(bytes(text))
        if not isinstance(value, dict) or not is_intact(value):
            raise ValueError("not a receipt, or a damaged one")
        return cls(
            task=value["task"],
            objects=tuple(WrittenObject(**o) for o in value["objects"]),
            payloads={m: tuple(sums) for m, sums in value["payloads"].items()},
            tiny=value["tiny"],
            stamps=tuple(value["stamps"]),
        )


def run_job(job: Job) -> Receipt:
    """Do one task, unless a receipt in the root says that it is done, from the files that the source has now.

    Raises:
        SourceError: If a patch contradicts its metadata, or the source is broken.
        ConflictError: If the source has changed since the task was done.
        StorageError: If the store or the scratch disk fails.
    """
    if isinstance(job.task, UnpackTask):
        return _unpack(job, job.task)
    path = f"{job.journal}/{job.task.name}.json"
    infos = list(metadata.patch_infos(job.rows))
    # Before anything is read: of a file that changes meanwhile, the other task of its patch has another stamp.
    stamps = tuple(job.source.stamp(info, job.modalities) for info in infos)
    done = read_receipt(job.store, path)
    if done is not None and done.task == job.task.name:
        refuse_changed(job.store, infos, done.stamps, stamps)
        if all(_is_right(job.store, o) for o in done.objects):
            return done
    try:
        receipt = (
            _write_zarr(job, job.task, infos, stamps)
            if isinstance(job.task, ZarrTask)
            else _write_shards(job, job.task, infos, stamps)
        )
    except (SourceError, InvalidPatchError) as error:
        if job.spool is None:
            raise
        # Else a source that has been mended would go on failing, with what was read of it before.
        raise type(error)(
            f"{error}. What was read so far is in {job.spool.folder}: remove it once the source is mended"
        ) from error
    job.store.put(path, receipt.to_json())
    return receipt


def refuse_changed(store: Store, infos: Sequence[PatchInfo], was: Sequence[str], now: Sequence[str]) -> None:
    """Refuse to go on from files that are not those that a build began with.

    Raises:
        ConflictError: If a stamp differs; the message names the first patch.
    """
    if tuple(was) == tuple(now):
        return
    differ = [info.patch_id for info, a, b in zip(infos, was, now, strict=False) if a != b]
    raise ConflictError(
        f"{differ[0] if differ else store.url}: the files of this patch have changed since the build began (names, "
        f"sizes or times; {len(differ)} such patches in this task), and a root is made from one state of its "
        f"source. {START_OVER.format(url=store.url)}"
    )


START_OVER = "Put back what the source was, or start over: remove all that is in {url}, and build again"
"""What to do when a source has changed under an unfinished build."""


def read_receipt(store: Store, path: str) -> Receipt | None:
    """The receipt at `path`, None if there is none, or a damaged one."""
    try:
        return Receipt.from_json(store.get(path))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is_right(store: Store, written: WrittenObject) -> bool:
    try:
        return hashlib.sha256(store.get(written.path)).hexdigest() == written.sha256
    except FileNotFoundError:
        return False


def put(store: Store, path: str, data: bytes | memoryview, *, is_shard: bool = False) -> WrittenObject:
    """Write an object and say what was written."""
    store.put(path, data)
    return WrittenObject(
        path=path,
        nbytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        xxh3=xxhash.xxh3_64_intdigest(data) if is_shard else None,
    )


# -- reading -----------------------------------------------------------------------------------------

_READERS = 8  # patches read at once from a source with a network between


def _read(
    job: Job, infos: Sequence[PatchInfo], stamps: Sequence[str], modalities: Sequence[str]
) -> Iterator[Patch]:
    """The patches of a job in order, from the scratch folder or the source."""
    places = job.places.to_pylist() if job.places is not None else [None] * len(infos)

    def read(row: int, place: Mapping[str, Any] | None, info: PatchInfo, stamp: str) -> Patch:
        if job.spool is not None:
            kept = {m: job.spool.read(m, row, stamp=stamp) for m in modalities}
            if None not in kept.values():
                return Patch(info=info, payloads={m: p for m, p in kept.items() if p is not None})
        if place is not None:
            written = {m: _read_record(job.store, m, place, info.patch_id) for m in modalities}
            if None not in written.values():
                return Patch(info=info, payloads={m: p for m, p in written.items() if p is not None})
        patch = job.source.read(info, modalities)
        if job.spool is not None:
            for modality, payload in patch.payloads.items():
                job.spool.write(modality, row, payload, stamp=stamp)
        return patch

    if not getattr(job.source, "is_remote", False):
        yield from map(read, job.positions.tolist(), places, infos, stamps)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, job.positions.tolist(), places, infos, stamps)


def _read_record(store: Store, modality: str, place: Mapping[str, Any], patch_id: str) -> bytes | None:
    """A payload from a shard of a local root, None when that is not written yet.

    A fifth of the time that the TIFFs take. Shards appear whole or not at all, and those that an earlier
    run left have been compared with their receipts by then.
    """
    path = store.local_path(tar.shard_path(place["reben:shard_group"], modality, place["reben:shard"]))
    assert path is not None
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        start, length = place["reben:shard_row"] * tar.RECORD_BYTES[modality], tar.RECORD_BYTES[modality]
        return tar.payload_of(modality, os.pread(handle, length, start), patch_id)
    finally:
        os.close(handle)


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


def check_payload(modality: str, payload: bytes, info: PatchInfo) -> None:
    """Refuse pixels that contradict the metadata; each payload passes here on its way into a shard.

    Raises:
        SourceError: If an S2 band has a zero pixel (the nodata rule), or labels and map disagree.
        InvalidPatchError: If a map has an unknown code.
    """
    if modality == "s2":
        # All bands in one go: the header is a multiple of two bytes.
        if not np.frombuffer(payload, "<u2", offset=len(PAYLOAD_HEADER["s2"])).min():
            tensors = decode_tensors("s2", payload)
            band = next(name for name, pixels in tensors.items() if not pixels.all())
            raise SourceError(
                f"{info.patch_id}: band {band} has a zero pixel, which means nodata; reBEN has no such patch"
            )
    elif modality == "map":
        codes = np.frombuffer(payload, "<u2", offset=len(PAYLOAD_HEADER["map"]))
        found = labels.labels_of_map(codes, name=info.patch_id)
        if list(found) != sorted(info.labels):
            raise SourceError(
                f"{info.patch_id}: the reference map holds {', '.join(found)}, "
                f"the metadata says {', '.join(info.labels)}"
            )


def check_polarizations(what: str, infos: Sequence[PatchInfo], decibels: NDArray[np.floating[Any]]) -> None:
    """Refuse swapped S1 bands: VV is above VH on average over many patches, of one alone it may not be.

    Args:
        what: What the patches are, for the message.
        infos: n patches.
        decibels: Mean VV and mean VH of each, (n, 2).

    Raises:
        SourceError: If not.
    """
    vv, vh = decibels.mean(axis=0).tolist()
    if not vv > vh:
        odd = np.flatnonzero(~(decibels[:, 0] > decibels[:, 1]))
        first = infos[odd[0]]
        raise SourceError(
            f"{what}: mean VV is {vv:.2f} dB and mean VH {vh:.2f} dB over {len(infos)} patches; VV must be above VH, "
            f"are the bands swapped? It is so in {odd.size} of the patches, the first is {first.s1_name} "
            f"of {first.patch_id}"
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


def _write_zarr(job: Job, task: ZarrTask, infos: Sequence[PatchInfo], stamps: tuple[str, ...]) -> Receipt:
    arrays = [name for m in job.modalities for name in zarr.arrays_of(m)]
    stacks = stack_patches(_read(job, infos, stamps, job.modalities), len(infos), arrays)
    if "s1" in stacks:
        check_polarizations(task.product, infos, stacks["s1"].reshape(len(infos), 2, -1).mean(axis=2))
    written = tuple(
        put(job.store, f"zarr/{task.product}.zarr/{zarr.shard_path(name, task.number)}", shard)
        for name, shard in ((name, zarr.encode_shard(name, stack)) for name, stack in stacks.items())
    )
    pixels = picture.tiny_of(stacks, REBEN.only(job.modalities))
    tiny = b"" if pixels is None else pixels.tobytes()
    return Receipt(task=task.name, objects=written, tiny=base64.b64encode(tiny).decode(), stamps=stamps)


def _write_shards(job: Job, task: ShardTask, infos: Sequence[PatchInfo], stamps: tuple[str, ...]) -> Receipt:
    texts = [sample_json(info) for info in infos]
    written, sums = [], {}
    for modality in job.modalities:
        one, sums[modality] = _write_shard(job, task, modality, infos, stamps, texts)
        written.append(one)
    return Receipt(task=task.name, objects=tuple(written), payloads=sums, stamps=stamps)


def _write_shard(
    job: Job,
    task: ShardTask,
    modality: str,
    infos: Sequence[PatchInfo],
    stamps: Sequence[str],
    texts: Sequence[Mapping[str, object]],
) -> tuple[WrittenObject, tuple[int, ...]]:
    """Write the shard of one modality; it, and the xxh3-64 of each of its payloads."""
    sums: list[int] = []
    decibels: list[tuple[float, float]] = []

    def samples() -> Iterator[tuple[str, bytes, Mapping[str, object]]]:
        for patch, text in zip(_read(job, infos, stamps, [modality]), texts, strict=True):
            payload = patch.payloads[modality]
            check_payload(modality, payload, patch.info)
            if modality == "s1":
                bands = decode_tensors(modality, payload)
                decibels.append((float(bands["VV"].mean()), float(bands["VH"].mean())))
            sums.append(xxhash.xxh3_64_intdigest(payload))
            yield patch.info.patch_id, payload, text

    shard = tar.encode_shard(modality, samples(), num_samples=len(infos))
    if decibels:
        # The first shard tells of a whole dataset that is swapped, long before a product's turn comes.
        check_polarizations(task.name, infos, np.array(decibels))
    path = tar.shard_path(task.group, modality, task.number)
    return put(job.store, path, shard, is_shard=True), tuple(sums)


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
