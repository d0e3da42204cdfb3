"""A selection as a folder on a local disk: an LMDB that rico-hdl's readers open, or safetensors files.

Payloads are copied, never decoded, straight from the shards to the places where they are to lie
(`formats.lmdb_pages`): in one pass, by several threads, without a temporary copy, and to the same
bytes in whatever order they come. Nothing is remembered besides the unfinished file: a record is
there when its checksum says so. So a killed export continues, and bytes that a crash lost are
fetched again. The folder gets its name when all is in it and on the disk.
"""

from __future__ import annotations

import ctypes
import fcntl
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from reben_cloud import metadata
from reben_cloud.bands import MODALITIES
from reben_cloud.errors import ChecksumError, ConflictError, NotFoundError, StorageError
from reben_cloud.formats import tar
from reben_cloud.patch import PAYLOAD_BYTES, PAYLOAD_HEADER, Buffer

if TYPE_CHECKING:
    from reben_cloud.search import Selection

MANIFEST = "export.json"
"""What the folder says of itself; written last."""

FORMAT = "reben_cloud export"
"""Names that document."""

READ_BYTES = 16 * 1024 * 1024
"""Most that one request brings: with a few threads, memory stays far below 500 MB."""

GAP_BYTES = 256 * 1024
"""What lies between two wanted rows is read too when it is less: a request costs as much."""

ATTEMPTS = 4
"""How often rows are read before their damage is reported."""

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Called with an iterable, its length and what it is; gives the items on."""


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

    def to_text(self) -> str:
        """One line for people."""
        done = "nothing to copy" if not self.num_fetched else f"{self.num_fetched:,} payloads copied"
        return f"{self.path}: {self.num_patches:,} patches, {self.nbytes / 1e9:,.2f} GB, {done}"


def export_lmdb(
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    map_size: int | None = None,
    update: bool = False,
    prune: bool = False,
    threads: int = 6,
    progress: Progress = _quiet,
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
        ValueError: If nothing is selected, or a modality is not there.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
        ChecksumError: If the dataset is damaged.
    """
    from reben_cloud.formats.lmdb_sink import LmdbSink

    return _export(
        selection,
        Path(path),
        modalities,
        kind="lmdb",
        make_sink=lambda folder, records: LmdbSink(folder, records, map_size=map_size),
        settings={"map_size": map_size},
        update=update,
        prune=prune,
        threads=threads,
        progress=progress,
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
    progress: Progress = _quiet,
) -> ExportReport:
    """Write a selection as plain safetensors files; the rest is as with `export_lmdb`.

    ``part-00000.safetensors``, ... hold the arrays of `patches_per_file` patches each, stacked, in
    the order of ``patches.parquet`` beside them: patch n is row n % patches_per_file of part
    n // patches_per_file.

    Raises:
        ValueError: If nothing is selected, a modality is not there, or a part would be empty.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
        ChecksumError: If the dataset is damaged.
    """
    from reben_cloud.formats.safetensors import SafetensorsSink

    if patches_per_file < 1:
        raise ValueError(f"patches_per_file must be at least 1, got {patches_per_file}")
    return _export(
        selection,
        Path(path),
        modalities,
        kind="safetensors",
        make_sink=lambda folder, records: SafetensorsSink(folder, records, patches_per_file=patches_per_file),
        settings={"patches_per_file": patches_per_file},
        update=update,
        prune=prune,
        threads=threads,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """The payloads of an export: one of each modality of each patch, in the order of their keys."""

    keys: Sequence[bytes]
    """LMDB keys, rising."""
    modality: Sequence[str]
    """Modality of each."""
    patch: NDArray[np.int64]
    """Which patch, counted in the order of the table, shape (n,)."""
    xxh3: NDArray[np.uint64] | None
    """Checksum of each payload, shape (n,); None when the dataset has none."""

    def check(self, number: int, payload: Any) -> bool:
        """Whether these bytes are the payload of record `number`."""
        modality = self.modality[number]
        header = PAYLOAD_HEADER[modality]
        return (
            memoryview(payload).nbytes == PAYLOAD_BYTES[modality]
            and bytes(payload[: len(header)]) == header
            and (self.xxh3 is None or xxhash.xxh3_64_intdigest(payload) == int(self.xxh3[number]))
        )

    @classmethod
    def of(cls, chosen: Selection, modalities: Sequence[str]) -> Records:
        """The records of a selection."""
        sums = [f"reben:{m}_xxh3" for m in modalities]
        known = set(sums) <= set(chosen.table.names)
        table = chosen.columns(["id", "reben:s1_name", *(sums if known else ())])
        ids = table.column("id")
        maps = pc.binary_join_element_wise(ids, "_reference_map", "")
        names = {"s2": ids, "s1": table.column("reben:s1_name"), "map": maps}
        keys = np.concatenate([names[m].to_numpy().astype("S64") for m in modalities])
        order = np.argsort(keys, kind="stable")
        xxh3 = np.concatenate([table.column(c).to_numpy() for c in sums])[order] if known else None
        return cls(
            keys=keys[order].tolist(),
            modality=np.repeat(np.array(modalities, object), len(ids))[order].tolist(),
            patch=np.tile(np.arange(len(ids)), len(modalities))[order],
            xxh3=xxh3,
        )


class Sink(Protocol):
    """Files of known size in which every payload has its place."""

    @property
    def nbytes(self) -> int:
        """Size of the finished files."""

    def present_bytes(self) -> int:
        """What they take on the disk now."""

    def open(self) -> None:
        """Make the files, or open those of an earlier run."""

    def write(self, number: int, payload: Buffer) -> None:
        """Put a payload in its place; called by many threads."""

    def read(self, number: int) -> Buffer | None:
        """What lies in a payload's place; None when that is certainly not it."""

    def finish(self) -> int:
        """Bring all to the disk, close, check; the answer is the size of the data."""

    def close(self) -> None:
        """Close what is open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Rows of one shard."""

    path: str
    modality: str
    numbers: NDArray[np.int64]
    """Records, by row."""
    rows: NDArray[np.int64]
    """Their rows in the shard, rising."""


def _export(
    selection: Selection,
    path: Path,
    modalities: Sequence[str] | None,
    *,
    kind: str,
    make_sink: Callable[[Path, Records], Sink],
    settings: Mapping[str, Any],
    update: bool,
    prune: bool,
    threads: int,
    progress: Progress,
) -> ExportReport:
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    path = Path(os.path.abspath(path))
    wanted = _modalities(selection, modalities)
    there = _existing(path, selection, kind)
    chosen, wanted = _reconcile(selection, wanted, path, there, update=update, prune=prune)
    if not len(chosen):
        raise ValueError("nothing is selected, so there is nothing to export")
    ids = chosen.patch_ids
    identity = _identity(selection, wanted, ids, kind, settings)
    if there is not None:
        if there["identity"] == identity:
            return ExportReport(
                path=str(path),
                num_patches=len(ids),
                num_records=len(ids) * len(wanted),
                num_fetched=0,
                nbytes=int(there["nbytes"]),
            )
        if not (update or prune):
            raise ConflictError(
                f"{path} holds another export of this root ({there['num_patches']:,} patches, "
                f"{', '.join(there['modalities'])}); add what is selected with --update, drop what is not with --prune"
            )
    records = Records.of(chosen, wanted)
    with _partial_folder(path, identity) as partial:
        sink = make_sink(partial, records)
        _check_room(partial, sink, len(ids))
        try:
            with _translated(path):
                sink.open()
                missing = _missing(sink, records, progress)
                if there is not None and kind == "lmdb":
                    missing = _copy_from(path, sink, records, missing)
                _fetch_all(chosen, sink, records, missing, threads, path, progress)
                nbytes = sink.finish()
                _write_tables(partial, chosen, wanted)
                manifest = _manifest(selection, chosen, wanted, kind, settings, identity, nbytes)
                _write_synced(partial / MANIFEST, json.dumps(manifest, indent=2).encode())
                _put_in_place(partial, path)
        finally:
            sink.close()
    return ExportReport(
        path=str(path),
        num_patches=len(ids),
        num_records=len(records.keys),
        num_fetched=len(missing),
        nbytes=nbytes,
    )


# -- what to export ------------------------------------------------------------------------------------


def _modalities(selection: Selection, asked: Sequence[str] | None) -> tuple[str, ...]:
    dataset = selection.dataset
    there = dataset.modalities
    for modality in asked or ():
        if modality not in there:
            raise ValueError(
                f"modality {modality!r} is not in {dataset.url}, which has {', '.join(there) or 'none'}"
            )
    if not there:
        raise ValueError(f"{dataset.url} is a catalog of metadata alone and has no pixels to export")
    return tuple(m for m in MODALITIES if m in (asked or there))


def _existing(path: Path, selection: Selection, kind: str) -> dict[str, Any] | None:
    """The manifest of the export at `path`, None when nothing is there."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    try:
        found: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise ConflictError(f"{path} exists and is no export; name a folder that does not exist") from None
    if found.get("format") != FORMAT or found.get("kind") != kind:
        raise ConflictError(
            f"{path} is an export of another kind ({found.get('kind')}, not {kind}); name another folder"
        )
    if found["fingerprint"] != selection.dataset.manifest["fingerprint"]:
        raise ConflictError(
            f"{path} is an export of another root (fingerprint {found['fingerprint']}); name another folder"
        )
    return found


def _reconcile(
    selection: Selection,
    modalities: tuple[str, ...],
    path: Path,
    there: Mapping[str, Any] | None,
    *,
    update: bool,
    prune: bool,
) -> tuple[Selection, tuple[str, ...]]:
    """The patches, in the order of the table, and modalities that the folder is to hold."""
    rows = np.unique(selection.rows)
    if there is not None and update != prune:
        ids = pq.read_table(path / "patches.parquet", columns=["id"]).column("id").to_pylist()
        old = selection.dataset.search(ids=ids).rows
        if update and len(old) < len(ids):
            raise ConflictError(
                f"{path} has {len(ids) - len(old):,} patches that {selection.dataset.url} lacks; "
                "update it from the whole root"
            )
        rows = np.union1d(old, rows) if update else np.intersect1d(old, rows)
        both = {*there["modalities"], *modalities} if update else {*there["modalities"]} & {*modalities}
        modalities = tuple(m for m in MODALITIES if m in both)
    return type(selection)(selection.dataset, selection.table, rows), modalities


def _identity(
    selection: Selection,
    modalities: Sequence[str],
    ids: Sequence[str],
    kind: str,
    settings: Mapping[str, Any],
) -> str:
    """Names what the folder is to hold: the same name, the same bytes."""
    digest = hashlib.sha256(
        json.dumps(
            [FORMAT, 1, kind, dict(settings), selection.dataset.manifest["fingerprint"], *modalities]
        ).encode()
    )
    digest.update("\n".join(ids).encode())
    return digest.hexdigest()


# -- payloads ------------------------------------------------------------------------------------------


def _missing(sink: Sink, records: Records, progress: Progress) -> NDArray[np.int64]:
    """Records that an earlier run did not bring to their place, or that cannot be checked."""
    every = np.arange(len(records.keys))
    if records.xxh3 is None or sink.present_bytes() < PAYLOAD_BYTES["map"]:
        return every
    found = []
    for number in progress(every.tolist(), len(every), "look at what is there"):
        payload = sink.read(number)
        if payload is None or not records.check(number, payload):
            found.append(number)
    return np.array(found, np.int64)


def _copy_from(path: Path, sink: Sink, records: Records, missing: NDArray[np.int64]) -> NDArray[np.int64]:
    """Copy what an earlier LMDB export has; the records that it has not."""
    from reben_cloud.formats import lmdb

    left = []
    with lmdb.open_environment(path).begin(buffers=True) as txn:
        for number in missing.tolist():
            payload = txn.get(records.keys[number])
            if payload is not None and records.check(number, payload):
                sink.write(number, payload)
            else:
                left.append(number)
    return np.array(left, np.int64)


def _fetch_all(
    chosen: Selection,
    sink: Sink,
    records: Records,
    missing: NDArray[np.int64],
    threads: int,
    path: Path,
    progress: Progress,
) -> None:
    folder = getattr(chosen.dataset, "lmdb_folder", None)
    if folder is not None:
        _copy_lmdb(folder, sink, records, missing, progress)
        return
    store = chosen.dataset.store
    tasks = _tasks(chosen, records, missing)

    def fetch(task: _Task) -> None:
        with _translated(path):
            for number, payload in _read_rows(store, task, records):
                sink.write(number, payload)

    with ThreadPoolExecutor(threads, "reben-export") as pool:
        futures = [pool.submit(fetch, task) for task in tasks]
        try:
            for future in progress(as_completed(futures), len(futures), "export"):
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _copy_lmdb(
    folder: str, sink: Sink, records: Records, missing: NDArray[np.int64], progress: Progress
) -> None:
    from reben_cloud.formats import lmdb

    with lmdb.open_environment(folder).begin(buffers=True) as txn:
        for number in progress(missing.tolist(), len(missing), "export"):
            payload = txn.get(records.keys[number])
            if payload is None:
                raise NotFoundError(f"{folder}: no record {records.keys[number].decode()!r}")
            if not records.check(number, payload):
                raise ChecksumError(
                    f"{folder}: record {records.keys[number].decode()!r} is not the payload that was written"
                )
            sink.write(number, payload)


def _tasks(chosen: Selection, records: Records, missing: NDArray[np.int64]) -> list[_Task]:
    """The missing records by shard, in pieces of at most `READ_BYTES`."""
    table = chosen.columns(["reben:shard_group", "reben:shard", "reben:shard_row"])
    encoded = table.column("reben:shard_group").cast(pa.string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    patch = records.patch[missing]
    group = encoded.indices.to_numpy()[patch].astype(np.int64)
    shard = table.column("reben:shard").to_numpy()[patch].astype(np.int64)
    row = table.column("reben:shard_row").to_numpy()[patch].astype(np.int64)
    names = list(MODALITIES)
    modality = np.array([names.index(records.modality[n]) for n in missing.tolist()], np.int64)
    record_bytes = np.array([tar.RECORD_BYTES[m] for m in names])[modality]
    piece = row // (READ_BYTES // record_bytes)
    order = np.lexsort((row, piece, shard, group, modality))
    changes = [np.diff(values[order]) != 0 for values in (piece, shard, group, modality)]
    tasks = []
    for part in np.split(order, np.flatnonzero(np.logical_or.reduce(changes)) + 1):
        if not part.size:
            continue
        first = part[0]
        name = names[modality[first]]
        path = tar.shard_path(str(encoded.dictionary[int(group[first])]), name, int(shard[first]))
        tasks.append(_Task(path=path, modality=name, numbers=missing[part], rows=row[part]))
    return tasks


def _read_rows(store: Any, task: _Task, records: Records) -> Iterator[tuple[int, Buffer]]:
    """(Record, payload) of each row; each verified."""
    record, size = tar.RECORD_BYTES[task.modality], PAYLOAD_BYTES[task.modality]
    cuts = np.flatnonzero((np.diff(task.rows) - 1) * record > GAP_BYTES) + 1
    for numbers, rows in zip(np.split(task.numbers, cuts), np.split(task.rows, cuts), strict=True):
        first = int(rows[0])
        length = (int(rows[-1]) - first) * record + size
        start = first * record + tar.PAYLOAD_OFFSET
        for attempt in range(ATTEMPTS):
            try:
                if attempt < ATTEMPTS - 1:
                    data = store.get_range(task.path, start, length)
                    found = [data[o : o + size] for o in ((rows - first) * record).tolist()]
                else:
                    # Another writer's tar may have its rows elsewhere: read it as a tar.
                    found = [memoryview(p) for p in tar.payloads(task.modality, store.get(task.path))[rows]]
                bad = [
                    n
                    for n, payload in zip(numbers.tolist(), found, strict=True)
                    if not records.check(n, payload)
                ]
                if bad:
                    raise ChecksumError(
                        f"{store.url}/{task.path}: the payload of {records.keys[bad[0]].decode()} is not the one "
                        "that patches.parquet lists (xxh3 differs); if `reben-cloud verify` says so too, "
                        "the object is damaged"
                    )
                break
            except FileNotFoundError as error:
                raise NotFoundError(
                    f"{store.url} has lost the shard {task.path}; run `reben-cloud verify`"
                ) from error
            except (ChecksumError, StorageError):
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
        yield from zip(numbers.tolist(), found, strict=True)


# -- the folder ----------------------------------------------------------------------------------------


@contextmanager
def _partial_folder(path: Path, identity: str) -> Iterator[Path]:
    """The hidden folder beside `path` in which the export is made; one process at a time.

    Its name says what is made. What earlier runs left that made something else is removed.
    """
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
        yield partial


def _lock(folder: Path, locks: ExitStack) -> None:
    handle = os.open(folder, os.O_RDONLY)
    locks.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.samestat(os.fstat(handle), os.stat(folder)):
        raise BlockingIOError


def _check_room(partial: Path, sink: Sink, num_patches: int) -> None:
    """Refuse before the start when the disk cannot hold the export."""
    # The tables take about 300 bytes a patch.
    need = sink.nbytes + 300 * num_patches + 65_536 - sink.present_bytes()
    free = shutil.disk_usage(partial).free
    if need > free:
        raise StorageError(
            f"the export needs {need / 1e9:,.3f} GB more and the disk of {partial.parent} has {free / 1e9:,.3f} GB; "
            "make room, select fewer patches or modalities, or name a folder on another disk"
        )


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, StorageError | ConflictError | FileNotFoundError):
            raise
        raise StorageError(
            f"cannot write the export {path}: {error.strerror}; make room and run the same command again, it continues"
        ) from error


def _write_tables(partial: Path, chosen: Selection, modalities: Sequence[str]) -> None:
    """The official metadata of the patches in both official files, and the table that searches need."""
    official = chosen.official()
    extra = pc.or_(official.column("contains_seasonal_snow"), official.column("contains_cloud_or_shadow"))
    for name, rows in (
        ("metadata.parquet", pc.invert(extra)),
        ("metadata_for_patches_with_snow_cloud_or_shadow.parquet", extra),
    ):
        pq.write_table(official.filter(rows), partial / name, compression="zstd")
        _sync(partial / name)
    gone = {"assets", *(f"reben:{m}_xxh3" for m in MODALITIES if m not in modalities)}
    # A table of its own: what it reads of a whole root would otherwise stay in memory for good.
    table = type(chosen.table)(chosen.table.store)
    rows = table.take(chosen.rows, [name for name in table.names if name not in gone])
    _write_synced(partial / "patches.parquet", metadata.write_patches(rows))


def _manifest(
    selection: Selection,
    chosen: Selection,
    modalities: Sequence[str],
    kind: str,
    settings: Mapping[str, Any],
    identity: str,
    nbytes: int,
) -> dict[str, Any]:
    """What the root says of itself, as far as it holds for the export; the order of streaming follows from it."""
    root = selection.dataset.manifest
    products = pc.unique(chosen.column("reben:product").cast(pa.string())).to_pylist()
    return {
        **root,
        "format": FORMAT,
        "version": 1,
        "kind": kind,
        "modalities": list(modalities),
        "num_patches": len(chosen),
        "products": sorted(products),
        "settings": dict(settings),
        "identity": identity,
        "nbytes": nbytes,
    }


def _write_synced(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(partial: Path, path: Path) -> None:
    """Give the finished folder its name, in place of an earlier one if there is one, in one step."""
    _sync(partial)
    if path.exists() and any(path.iterdir()):
        if not _exchange(partial, path):
            # Not Linux, or a file system without: a reader may see neither for an instant.
            old = path.parent / f".{path.name}.old"
            os.rename(path, old)
            os.rename(partial, path)
            os.rename(old, partial)
        _sync(path.parent)
        shutil.rmtree(partial)
        return
    os.rename(partial, path)
    _sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders (renameat2 with RENAME_EXCHANGE); False where that is not possible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
