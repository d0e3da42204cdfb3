"""Doing one task: read its patches, check them, write its objects, leave a receipt.

A task is idempotent: a receipt whose objects are all there with their checksums makes it a no-op.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.build.jobs import Job, ShardTask, UnpackTask, ZarrTask
from reben_cloud.errors import ConflictError, InvalidPatchError, SourceError
from reben_cloud.formats import tar, zarr
from reben_cloud.root import layout
from reben_cloud.root.digest import is_intact, sealed
from reben_cloud.root.metadata import patch_infos, sample_json
from reben_cloud.root.objects import WrittenObject
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.root.source import Source, StreamedSource
from reben_cloud.schema import Modality, Schema
from reben_cloud.store import Store
from reben_cloud.views import picture


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
    infos = list(patch_infos(job.rows))
    # Before anything is read: of a file that changes meanwhile, the other task of its patch has another stamp.
    stamps = tuple(job.source.stamp(info, job.schema.modality_names) for info in infos)
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
    return WrittenObject.of(path, data, is_shard=is_shard)


# -- reading -----------------------------------------------------------------------------------------

_READERS = 8  # patches read at once from a source with a network between


def _read(
    job: Job, infos: Sequence[PatchInfo], stamps: Sequence[str], modalities: Sequence[Modality]
) -> Iterator[Patch]:
    """The patches of a job in order, from the scratch folder or the source."""
    places = job.places.to_pylist() if job.places is not None else [None] * len(infos)

    def read(row: int, place: Mapping[str, Any] | None, info: PatchInfo, stamp: str) -> Patch:
        if job.spool is not None:
            kept = {m.name: job.spool.read(m.name, row, stamp=stamp) for m in modalities}
            if None not in kept.values():
                return Patch(info=info, payloads={m: p for m, p in kept.items() if p is not None})
        if place is not None:
            written = {m.name: _read_record(job.store, m, place, info.patch_id) for m in modalities}
            if None not in written.values():
                return Patch(info=info, payloads={m: p for m, p in written.items() if p is not None})
        if not isinstance(job.source, Source):
            raise SourceError(
                f"{info.patch_id}: its payloads are not whole in the scratch folder; run again with the same "
                f"--scratch, and {job.source.describe()} is read again for what is missing"
            )
        patch = job.source.read(info, [m.name for m in modalities])
        if patch.info != info:
            raise SourceError(
                f"{info.patch_id}: {job.source.describe()} gave another patch for it, {patch.info}"
            )
        for modality in modalities:
            modality.check(patch.payloads[modality.name], name=info.patch_id)
        if job.spool is not None:
            for name, payload in patch.payloads.items():
                job.spool.write(name, row, payload, stamp=stamp)
        return patch

    if not job.source.is_remote:
        yield from map(read, job.positions.tolist(), places, infos, stamps)
        return
    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, job.positions.tolist(), places, infos, stamps)


def _read_record(store: Store, modality: Modality, place: Mapping[str, Any], patch_id: str) -> bytes | None:
    """A payload from a shard of a local root, None when that is not written yet.

    A fifth of the time that the TIFFs take. Shards appear whole or not at all, and those that an earlier
    run left have been compared with their receipts by then.
    """
    path = store.local_path(layout.shard(place[layout.SHARD_GROUP], modality.name, place[layout.SHARD]))
    assert path is not None
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        length = tar.record_bytes(modality)
        start = place[layout.SHARD_ROW] * length
        return tar.payload_of(modality, os.pread(handle, length, start), patch_id)
    finally:
        os.close(handle)


def _unpack(job: Job, task: UnpackTask) -> Receipt:
    """Read one archive into the scratch folder; what an earlier run kept is not decoded again."""
    assert isinstance(job.source, StreamedSource)
    assert job.spool is not None
    column = job.schema.modality(task.modality).key_column
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
            job.schema.modality(task.modality).check(payload, name=name)
            job.spool.write(task.modality, rows[name], payload)
    if not seen.all():
        lacking = np.flatnonzero(~seen)
        raise SourceError(
            f"{names[int(lacking[0])]}: not in the {task.modality} archive of {where} ({lacking.size:,} of "
            f"{len(names):,} patches of the metadata are not); is it the whole archive?"
        )
    return Receipt(task=task.name, objects=())


# -- checking ----------------------------------------------------------------------------------------


def check_payload(schema: Schema, modality: Modality, payload: bytes, info: PatchInfo) -> None:
    """Refuse pixels that contradict the metadata; each payload passes here on its way into a shard.

    Raises:
        SourceError: If a payload that must be complete has a fill value, or labels and map disagree.
        InvalidPatchError: If a map has an unknown code.
    """
    if modality.complete and (name := modality.incomplete(payload)) is not None:
        raise SourceError(
            f"{info.patch_id}: {name} has a pixel of {modality.specs[name].fill}, which means nodata; a patch of "
            f"{schema.name} has none"
        )
    if schema.map_array is not None and schema.map_array in modality.samples:
        found = schema.classes.labels_in(modality.stack(payload)[schema.map_array], name=info.patch_id)
        if list(found) != sorted(info.labels):
            raise SourceError(
                f"{info.patch_id}: the reference map holds {', '.join(found)}, "
                f"the metadata says {', '.join(info.labels)}"
            )


def check_falling(
    what: str, modality: Modality, infos: Sequence[PatchInfo], means: NDArray[np.floating[Any]]
) -> None:
    """Refuse swapped bands, by their means over many patches; of one patch alone they may be the other way round.

    Args:
        what: What the patches are, for the message.
        modality: What was measured.
        infos: n patches.
        means: Mean of each tensor of `Modality.falling`, (n, number of them).

    Raises:
        SourceError: If they do not fall.
    """
    overall = means.mean(axis=0).tolist()
    for at in range(len(overall) - 1):
        if overall[at] > overall[at + 1]:
            continue
        high, low = modality.falling[at : at + 2]
        units = modality.specs[high].units or ""
        odd = np.flatnonzero(~(means[:, at] > means[:, at + 1]))
        first = infos[odd[0]]
        name = first.name_in(modality.key_column)
        raise SourceError(
            f"{what}: mean {high} is {overall[at]:.2f} {units} and mean {low} {overall[at + 1]:.2f} {units} over "
            f"{len(infos)} patches; {high} must be above {low}, are the bands swapped? It is so in {odd.size} of the "
            f"patches, the first is {name} of {first.patch_id}"
        )


# -- writing -----------------------------------------------------------------------------------------


def stack_patches(
    patches: Iterable[Patch], count: int, modalities: Sequence[Modality]
) -> dict[str, NDArray[Any]]:
    """The pixels of `count` patches as batches and Zarr hold them: batch array -> (count, *shape of a sample)."""
    samples = {name: spec for modality in modalities for name, spec in modality.samples.items()}
    stacks = {name: np.empty((count, *spec.shape), spec.dtype) for name, spec in samples.items()}
    for row, patch in enumerate(patches):
        for modality in modalities:
            tensors = modality.decode(patch.payloads[modality.name])
            for array in modality.arrays:
                if array.stacked:
                    for number, name in enumerate(array.tensors):
                        stacks[array.name][row, number] = tensors[name]
                else:
                    stacks[array.name][row] = tensors[array.tensors[0]]
    return stacks


def _write_zarr(job: Job, task: ZarrTask, infos: Sequence[PatchInfo], stamps: tuple[str, ...]) -> Receipt:
    modalities = job.schema.modalities
    means: dict[str, list[tuple[float, ...]]] = {m.name: [] for m in modalities if m.falling}

    def patches() -> Iterator[Patch]:
        for patch in _read(job, infos, stamps, modalities):
            for modality in modalities:
                if modality.falling:
                    means[modality.name].append(modality.means(patch.payloads[modality.name]))
            yield patch

    stacks = stack_patches(patches(), len(infos), modalities)
    for name, values in means.items():
        check_falling(task.product, job.schema.modality(name), infos, np.array(values))
    written = []
    for modality in modalities:
        for batch, array in zip(modality.arrays, zarr.pixel_arrays(modality), strict=True):
            path = layout.zarr_shard(task.product, array.name, task.number, ndim=len(array.shape))
            written.append(put(job.store, path, zarr.encode_shard(array, stacks[batch.name])))
    by_zarr_name = {array.zarr_name: stacks[array.name] for m in modalities for array in m.arrays}
    pixels = picture.tiny_of(by_zarr_name, job.schema)
    tiny = b"" if pixels is None else pixels.tobytes()
    return Receipt(
        task=task.name, objects=tuple(written), tiny=base64.b64encode(tiny).decode(), stamps=stamps
    )


def _write_shards(job: Job, task: ShardTask, infos: Sequence[PatchInfo], stamps: tuple[str, ...]) -> Receipt:
    texts = sample_json(job.rows, job.schema)
    written, sums = [], {}
    for modality in job.schema.modalities:
        one, sums[modality.name] = _write_shard(job, task, modality, infos, stamps, texts)
        written.append(one)
    return Receipt(task=task.name, objects=tuple(written), payloads=sums, stamps=stamps)


def _write_shard(
    job: Job,
    task: ShardTask,
    modality: Modality,
    infos: Sequence[PatchInfo],
    stamps: Sequence[str],
    texts: Sequence[Mapping[str, object]],
) -> tuple[WrittenObject, tuple[int, ...]]:
    """Write the shard of one modality; it, and the xxh3-64 of each of its payloads."""
    sums: list[int] = []
    means: list[tuple[float, ...]] = []

    def samples() -> Iterator[tuple[str, bytes, Mapping[str, object]]]:
        for patch, text in zip(_read(job, infos, stamps, [modality]), texts, strict=True):
            payload = patch.payloads[modality.name]
            check_payload(job.schema, modality, payload, patch.info)
            if modality.falling:
                means.append(modality.means(payload))
            sums.append(xxhash.xxh3_64_intdigest(payload))
            yield patch.info.patch_id, payload, text

    shard = tar.encode_shard(modality, samples(), num_samples=len(infos))
    if means:
        # The first shard tells of a whole dataset that is swapped, long before a product's turn comes.
        check_falling(task.name, modality, infos, np.array(means))
    path = layout.shard(task.group, modality.name, task.number)
    return put(job.store, path, shard, is_shard=True), tuple(sums)
