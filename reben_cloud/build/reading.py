"""The patches of a task, from where they can be had soonest: the scratch folder, a shard of this root, the source."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from reben_cloud.build.jobs import Job, UnpackTask
from reben_cloud.build.receipts import Receipt
from reben_cloud.errors import SourceError
from reben_cloud.files.system import open_file, pread
from reben_cloud.formats import tar
from reben_cloud.root import layout
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.root.source import Source, StreamedSource, streamed
from reben_cloud.schema import Modality
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

_READERS = 8  # patches read at once from a source with a network between


def read_patches(
    job: Job, infos: Sequence[PatchInfo], stamps: Sequence[str], modalities: Sequence[Modality]
) -> Iterator[Patch]:
    """The patches of a job in order, from the scratch folder or the source."""
    in_archives = streamed(job.source)
    places = job.places.to_pylist() if job.places is not None else [None] * len(infos)

    def read(row: int, place: Mapping[str, Any] | None, info: PatchInfo, stamp: str) -> Patch:
        kept: dict[str, bytes] = {}
        if job.spool is not None:
            for modality in modalities:
                # What was unpacked has no stamp: an archive holds many patches.
                of = "" if modality.name in in_archives else stamp
                if (payload := job.spool.read(modality.name, row, stamp=of)) is not None:
                    kept[modality.name] = payload
            if len(kept) == len(modalities):
                return Patch(info=info, payloads=kept)
        if place is not None:
            written = {m.name: _read_record(job.store, m, place, info.patch_id) for m in modalities}
            if None not in written.values():
                return Patch(info=info, payloads={m: p for m, p in written.items() if p is not None})
        lacking = [m for m in modalities if m.name not in kept]
        if not isinstance(job.source, Source) or any(m.name in in_archives for m in lacking):
            raise SourceError(
                f"{info.patch_id}: its payloads are not whole in the scratch folder; run again with the same "
                f"--scratch, and {job.source.describe()} is read again for what is missing"
            )
        patch = job.source.read(info, [m.name for m in lacking])
        if patch.info != info:
            raise SourceError(
                f"{info.patch_id}: {job.source.describe()} gave another patch for it, {patch.info}"
            )
        for modality in lacking:
            modality.check(patch.payloads[modality.name], name=info.patch_id)
        if job.spool is not None:
            for name, payload in patch.payloads.items():
                job.spool.write(name, row, payload, stamp=stamp)
        found = {**kept, **patch.payloads}
        return Patch(info=info, payloads={m.name: found[m.name] for m in modalities})

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
        handle = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        length = tar.record_bytes(modality)
        start = place[layout.SHARD_ROW] * length
        return tar.payload_of(modality, pread(handle, length, start), patch_id)
    finally:
        os.close(handle)


def unpack(job: Job, task: UnpackTask) -> Receipt:
    """Read one archive into the scratch folder; what an earlier run kept is not decoded again."""
    assert isinstance(job.source, StreamedSource)
    assert job.spool is not None
    column = job.schema.modality(task.modality).key_column
    names = job.rows.column(column).to_pylist()
    rows = {name: row for row, name in enumerate(names)}
    where = job.source.describe()
    others: list[str] = []
    held, seen = job.spool.held(task.modality), np.zeros(len(names), np.bool_)
    if held.all():
        return Receipt(task=task.name, objects=())

    def wanted(name: str) -> bool:
        row = rows.get(name)
        if row is None:
            others.append(name)
            return False
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
            f"{len(names):,} patches of the metadata are not); is it the whole archive? If it is not "
            "meant to be, --incomplete skip builds what is there"
        )
    if others:
        logger.warning(
            "%s: %s of its %s patches are not of this root (in no row of the metadata, or left out) and not taken, "
            "the first is %s",
            where,
            f"{len(others):,}",
            task.modality,
            others[0],
        )
    return Receipt(task=task.name, objects=())
