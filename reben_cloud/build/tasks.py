"""Doing one task: read its patches, check them, write its objects, leave a receipt.

A task is idempotent: a receipt whose objects are all there with their checksums makes it a no-op.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from reben_cloud.build.jobs import Job, ShardTask, UnpackTask, ZarrTask
from reben_cloud.build.pixels import check_falling, check_payload
from reben_cloud.build.reading import read_patches, unpack
from reben_cloud.build.receipts import Receipt, is_right, put, read_receipt
from reben_cloud.errors import ConflictError, InvalidPatchError, SourceError
from reben_cloud.formats import tar, zarr
from reben_cloud.root import layout
from reben_cloud.root.metadata import patch_infos, sample_json
from reben_cloud.root.objects import WrittenObject
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.schema import ArraySpec, Modality
from reben_cloud.store import Store
from reben_cloud.views import picture


def run_job(job: Job) -> Receipt:
    """Do one task, unless a receipt in the root says that it is done, from the files that the source has now.

    Raises:
        SourceError: If a patch contradicts its metadata, or the source is broken.
        ConflictError: If the source has changed since the task was done.
        StorageError: If the store or the scratch disk fails.
    """
    if isinstance(job.task, UnpackTask):
        return unpack(job, job.task)
    path = f"{job.journal}/{job.task.name}.json"
    infos = list(patch_infos(job.rows))
    # Before anything is read: of a file that changes meanwhile, the other task of its patch has another stamp.
    stamps = tuple(job.source.stamp(info, job.schema.modality_names) for info in infos)
    done = read_receipt(job.store, path)
    if done is not None and done.task == job.task.name:
        refuse_changed(job.store, infos, done.stamps, stamps)
        if all(is_right(job.store, o) for o in done.objects):
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
        for patch in read_patches(job, infos, stamps, modalities):
            for modality in modalities:
                if modality.falling:
                    means[modality.name].append(modality.means(patch.payloads[modality.name]))
            yield patch

    stacks = stack_patches(patches(), len(infos), modalities)
    for name, values in means.items():
        check_falling(task.product, job.schema.modality(name), infos, np.array(values))
    arrays = [pair for m in modalities for pair in zip(m.arrays, zarr.pixel_arrays(m), strict=True)]

    def write(batch: ArraySpec, array: zarr.PixelArray) -> WrittenObject:
        path = layout.zarr_shard(task.product, array.name, task.number, ndim=len(array.shape))
        return put(job.store, path, zarr.encode_shard(array, stacks[batch.name]))

    with ThreadPoolExecutor(
        len(arrays)
    ) as pool:  # a small one costs the way to the store, and that five times over
        written = list(pool.map(lambda pair: write(*pair), arrays))
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
        for patch, text in zip(read_patches(job, infos, stamps, [modality]), texts, strict=True):
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
