"""A selection as a folder on a local disk: an LMDB that rico-hdl's readers open, or safetensors files.

GeoTIFFs, pictures and texts, which are made of payloads, have modules of their own here.

Payloads are copied, never decoded, straight from the shards to the places where they are to lie
(`formats.lmdb_pages`): in one pass, by several threads, without a temporary copy, and to the same
bytes in whatever order they come. Nothing is remembered besides the unfinished file: a record is
there when its checksum says so. So a killed export continues, and bytes that a crash lost are
fetched again. The folder gets its name when all is in it and on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reben_cloud.export.copying import Progress as Progress
from reben_cloud.export.copying import Sink, copy_from, fetch, find_missing, open_origin
from reben_cloud.export.filewise import FilesReport as FilesReport
from reben_cloud.export.folder import check_room, partial_folder, translated
from reben_cloud.export.folder import find_damage as find_damage
from reben_cloud.export.geotiffs import export_geotiff as export_geotiff
from reben_cloud.export.job import begin
from reben_cloud.export.pictures import export_png as export_png
from reben_cloud.export.plan import MANIFEST as MANIFEST
from reben_cloud.export.plan import Records
from reben_cloud.export.texts import export_texts as export_texts
from reben_cloud.root.selection import Selection
from reben_cloud.wording import counted, size_text


def _quiet(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:  # noqa: ARG001
    return items


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export did."""

    path: str
    """The folder."""
    num_patches: int
    """Patches in it."""
    num_records: int
    """Payloads in it."""
    num_fetched: int
    """Payloads that were read from the dataset; the others were there."""
    nbytes: int
    """Size of the data, bytes."""
    changed: bool
    """Whether the folder is new, or another one than before."""
    num_added: int = 0
    """Patches that an existing export lacked."""
    num_dropped: int = 0
    """Patches that an existing export had, and has no longer."""

    def to_text(self) -> str:
        """One line for people."""
        there = self.num_records - self.num_fetched
        done = "complete already, nothing to copy"
        if self.changed:
            done = f"{counted(self.num_fetched, 'payload')} copied" + (
                f", {there:,} were there" if there else ""
            )
        if self.num_added or self.num_dropped:
            done = (
                f"{counted(self.num_added, 'patch', 'patches')} added, {self.num_dropped:,} dropped, {done}"
            )
        return (
            f"{self.path}: {counted(self.num_patches, 'patch', 'patches')}, {size_text(self.nbytes)}, {done}"
        )


def export_lmdb(
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    map_size: int | None = None,
    update: bool = False,
    prune: bool = False,
    threads: int = 6,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a selection as an LMDB folder, with the metadata files that its readers need beside it.

    Run again after a crash, it continues; when the folder is complete, it does nothing. An existing
    export changes by `update` and `prune`: the new one is made beside it, from its payloads where it
    has them, and takes its place at once, so that a reader sees one or the other.

    Up to 512 patches (what rico-hdl puts in one transaction a modality), ``data.mdb`` has the very
    bytes that rico-hdl would write; a larger one has the same records on other pages.

    Args:
        selection: What to export; sorted, in the order of the root's table.
        path: The new folder, or an earlier export of the same root.
        modalities: Of ``s2``, ``s1``, ``map``; all that the dataset has by default.
        map_size: What the file says of its map size, bytes; its own size by default.
        update: Add what an existing export lacks.
        prune: Drop what is not selected from an existing export.
        threads: Concurrent requests, at least 1.
        progress: Wraps the iterable of finished parts.

    Raises:
        NotFoundError: If nothing is selected; it names the condition that left nothing.
        ValueError: If a modality is not there, or the map size holds less than the data.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
        ChecksumError: If the dataset is damaged.
    """
    from reben_cloud.formats.lmdb_sink import LmdbSink

    return _export(
        selection,
        path,
        modalities,
        kind="lmdb",
        make_sink=lambda folder, records: LmdbSink(folder, records, map_size=map_size),
        settings={"map_size": map_size},
        update=update,
        prune=prune,
        threads=threads,
        progress=progress or _quiet,
    )


def export_safetensors(
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    patches_per_file: int = 1000,
    update: bool = False,
    prune: bool = False,
    threads: int = 6,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a selection as plain safetensors files; the rest is as with `export_lmdb`.

    ``part-00000.safetensors``, ... hold the arrays of `patches_per_file` patches each, stacked, in
    the order of ``patches.parquet`` beside them: patch n is row n % patches_per_file of part
    n // patches_per_file.

    Raises:
        NotFoundError: If nothing is selected; it names the condition that left nothing.
        ValueError: If a modality is not there, or a part would be empty.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
        ChecksumError: If the dataset is damaged.
    """
    from reben_cloud.formats.safetensors import SafetensorsSink

    if patches_per_file < 1:
        raise ValueError(f"patches_per_file must be at least 1, got {patches_per_file}")
    return _export(
        selection,
        path,
        modalities,
        kind="safetensors",
        make_sink=lambda folder, records: SafetensorsSink(folder, records, patches_per_file=patches_per_file),
        settings={"patches_per_file": patches_per_file},
        update=update,
        prune=prune,
        threads=threads,
        progress=progress or _quiet,
    )


def _export(
    selection: Selection,
    path: str | os.PathLike[str],
    modalities: Sequence[str] | None,
    *,
    kind: str,
    make_sink: Callable[[Path, Records], Sink],
    settings: Mapping[str, object],
    update: bool,
    prune: bool,
    threads: int,
    progress: Progress,
) -> ExportReport:
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    job = begin(selection, path, modalities, kind=kind, settings=settings, update=update, prune=prune)
    num_records = len(job.chosen) * len(job.modalities)
    if job.is_done and job.there is not None:
        return ExportReport(
            path=str(job.path),
            num_patches=len(job.chosen),
            num_records=num_records,
            num_fetched=0,
            nbytes=job.there.nbytes,
            changed=False,
        )
    with partial_folder(job.path, job.making) as partial, translated(job.path):
        earlier = job.path if job.there is not None and kind == "lmdb" else None
        nbytes, num_fetched = _copy(
            job.chosen, job.modalities, partial, earlier, make_sink, threads, progress
        )
        job.finish(partial, nbytes=nbytes)
    return ExportReport(
        path=str(job.path),
        num_patches=len(job.chosen),
        num_records=num_records,
        num_fetched=num_fetched,
        nbytes=nbytes,
        changed=True,
        num_added=job.num_added,
        num_dropped=job.num_dropped,
    )


def _copy(
    chosen: Selection,
    modalities: tuple[str, ...],
    partial: Path,
    earlier: Path | None,
    make_sink: Callable[[Path, Records], Sink],
    threads: int,
    progress: Progress,
) -> tuple[int, int]:
    """Fill the files of the partial folder; their size in bytes, and how many records were fetched."""
    origin = open_origin(chosen, modalities)  # first: what it needs for a moment is gone before the keys come
    records = Records.of(chosen, modalities)
    sink = make_sink(partial, records)
    check_room(partial, sink, len(chosen))
    try:
        missing = find_missing(sink, records, progress)
        if earlier is not None:
            missing = copy_from(earlier, sink, records, missing)
        fetch(origin, sink, records, missing, threads=threads, progress=progress)
        return sink.finish(), len(missing)
    finally:
        sink.close()
