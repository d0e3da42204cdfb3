"""The folder of an export while it is made and when it is finished: room, tables, manifest, its name in one step."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from reben_cloud.bigearthnet.official import EXTRA_METADATA, OFFICIAL_SCHEMA
from reben_cloud.errors import ChecksumError, ConflictError, StorageError
from reben_cloud.export.copying import Sink
from reben_cloud.export.listing import read_listing
from reben_cloud.export.plan import MANIFEST, afresh, layers_of
from reben_cloud.files.sketch import sketch
from reben_cloud.files.system import lock_or_fail, require_locks
from reben_cloud.files.whole import sync_path
from reben_cloud.formats import parquet
from reben_cloud.root import layout, patches_file
from reben_cloud.root.exported import ExportManifest
from reben_cloud.wording import size_text

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection


@contextmanager
def partial_folder(path: Path, identity: str) -> Iterator[Path]:
    """The hidden folder beside `path` in which the export is made; one process at a time.

    Its name says what is made. What earlier runs left that made something else is removed.
    """
    require_locks("an export")
    partial = path.parent / f".{path.name}.{identity[:16]}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for folder in sorted(path.parent.glob(f".{glob.escape(path.name)}.*.partial")):
            try:
                _lock(folder, locks)
            except (BlockingIOError, FileNotFoundError):
                raise ConflictError(f"another process is exporting to {path}; wait for it") from None
            if folder != partial:
                shutil.rmtree(folder)
        try:
            yield partial
        finally:
            with suppress(OSError):  # something is in it, or it has its name
                partial.rmdir()


def _lock(folder: Path, locks: ExitStack) -> None:
    handle = os.open(folder, os.O_RDONLY)
    locks.callback(os.close, handle)
    lock_or_fail(handle, "an export")
    if not os.path.samestat(os.fstat(handle), os.stat(folder)):
        raise BlockingIOError


def check_room(partial: Path, sink: Sink, num_patches: int) -> None:
    """Refuse before the start when the disk cannot hold the export."""
    # The tables take about 300 bytes per patch.
    need = sink.nbytes + 300 * num_patches + 65_536 - sink.present_bytes()
    free = shutil.disk_usage(partial).free
    if need > free:
        raise StorageError(
            f"the export needs {size_text(need)} more and the disk of {partial.parent} has {size_text(free)}; "
            "make room, select fewer patches or modalities, or name a folder on another disk"
        )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """What the disk refuses, as a StorageError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, StorageError | ConflictError | FileNotFoundError):
            raise
        raise StorageError(
            f"cannot write the export {path}: {error.strerror}; make room and run the same command again, it continues"
        ) from error


def write_tables(partial: Path, chosen: Selection, modalities: Sequence[str]) -> None:
    """The official metadata of the patches in both official files, and the table that searches need."""
    _write_official(partial, chosen)
    dataset = chosen.dataset
    without = [name for name in dataset.modalities if name not in modalities]
    gone = {layout.ASSETS, *map(layout.checksum_column, without), *map(layout.present_column, without)}
    names = [name for name in chosen.table.names if name not in gone]
    schema = chosen.table.take(chosen.rows[:1], names).schema
    file = partial / layout.PATCHES
    extents = chosen.columns([layout.BBOX, layout.DATETIME])
    with patches_file.patches_writer(file, schema, extents, dataset.schema) as writer:
        # Row groups of the root's size, but for those that the selection leaves smaller.
        for part in chosen.table.parts(chosen.rows, names):
            writer.write_table(part.cast(schema), row_group_size=patches_file.ROW_GROUP_ROWS)
    with file.open("r+b") as written:
        parquet.add_chunk_sums(written)
    sync_path(file)


def _write_official(partial: Path, chosen: Selection) -> None:
    """The metadata of the patches, sorted by patch: in both official files where they are official."""
    order = np.argsort(
        np.concatenate(
            [p.column(layout.ID).to_numpy().astype("S") for p in chosen.table.parts(chosen.rows, [layout.ID])]
        )
    )
    columns = afresh(chosen, chosen.rows[:1]).official().schema
    is_official = columns.names == OFFICIAL_SCHEMA.names
    files = {"metadata.parquet": False, EXTRA_METADATA: True} if is_official else {"metadata.parquet": False}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                pq.ParquetWriter(partial / name, columns, compression="zstd", write_page_checksum=True)
            )
            for name in files
        }
        for start in range(0, len(order), patches_file.ROW_GROUP_ROWS):
            rows = np.sort(chosen.rows[order[start : start + patches_file.ROW_GROUP_ROWS]])
            # Neighbours by name are neighbours in the table, but for products: read again, not kept.
            part = afresh(chosen, rows).official()
            extra = pa.array(np.zeros(part.num_rows, np.bool_))
            if is_official:
                extra = pc.or_(part.column("contains_seasonal_snow"), part.column("contains_cloud_or_shadow"))
            for name, wanted in files.items():
                writers[name].write_table(part.filter(extra if wanted else pc.invert(extra)))
    for name in files:
        sync_path(partial / name)


def write_manifest(
    partial: Path,
    chosen: Selection,
    modalities: Sequence[str],
    *,
    kind: str,
    settings: Mapping[str, object],
    identity: str,
    nbytes: int,
    more: Mapping[str, object],
) -> ExportManifest:
    """What the root says of itself, as far as it holds for the export; the order of streaming follows from it."""
    table = chosen.columns([layout.PRODUCT, layout.SHARD_GROUP])
    counts = pc.value_counts(table.column(layout.SHARD_GROUP).cast(pa.string())).to_pylist()
    with (partial / layout.PATCHES).open("rb") as file:
        seal = parquet.Seal.of(file)
    manifest = ExportManifest.of_root(
        chosen.dataset.manifest,
        kind=kind,
        settings=settings,
        identity=identity,
        nbytes=nbytes,
        modalities=modalities,
        num_patches=len(chosen),
        products=sorted(pc.unique(table.column(layout.PRODUCT).cast(pa.string())).to_pylist()),
        exported_groups={one["values"]: one["counts"] for one in sorted(counts, key=lambda c: c["values"])},
        patches=seal,
        files={
            file.name: (file.stat().st_size, sketch(file))
            for file in sorted(partial.iterdir())
            if file.is_file() and file.name not in (_LOCK_FILE, MANIFEST)
        },
        more=more,
        schema=chosen.dataset.schema,
        layers=layers_of(chosen, modalities),
    )
    (partial / MANIFEST).write_bytes(manifest.to_bytes())
    sync_path(partial / MANIFEST)
    return manifest


def find_damage(path: Path, manifest: ExportManifest) -> str | None:
    """What is wrong with the files of a finished export, as far as a glance tells; None when nothing is.

    Sizes, and a sketch of the bytes; of the files of single patches, sizes. Every payload and file is compared
    by `reben-cloud verify`.
    """
    for name, (nbytes, recorded) in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != nbytes:
            return f"{name} has {size:,} bytes, must have {nbytes:,}"
        if sketch(path / name) != recorded:
            return f"{name} is not the file that was written, its checksum differs"
    try:
        different = (file.difference(path, whole=False) for file in read_listing(path))
        return next(filter(None, different), None)
    except ChecksumError as error:
        return str(error)


_LOCK_FILE = "lock.mdb"  # LMDB's own: readers write to it


def put_in_place(partial: Path, path: Path) -> None:
    """Give the finished folder its name, in place of an earlier one if there is one, in one step."""
    sync_path(partial)
    if path.exists() and any(path.iterdir()):
        if not _exchange(partial, path):
            # Not Linux, or a file system without: a reader may see neither for an instant.
            old = path.parent / f".{path.name}.old"
            os.rename(path, old)
            os.rename(partial, path)
            os.rename(old, partial)
        sync_path(path.parent)
        shutil.rmtree(partial)
        return
    os.rename(partial, path)
    sync_path(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders (renameat2 with RENAME_EXCHANGE); False where that is not possible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
