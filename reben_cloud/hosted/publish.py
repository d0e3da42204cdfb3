"""A root of payloads that stay where others put them: tables and catalog, and the places of the payloads.

Nothing is copied. The patches are placed in the order of their ids, which is that of an LMDB's values, so that
patches that are read together lie together.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud import catalog
from reben_cloud.bigearthnet.official import read_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build.account import not_taken
from reben_cloud.build.plan import BuildPlan, is_root_of, make_plan, manifest_of
from reben_cloud.build.publish import commit_root
from reben_cloud.build.receipts import put
from reben_cloud.errors import ConflictError, SourceError, StorageError
from reben_cloud.export.copying import Progress
from reben_cloud.files.cache import cache_folder
from reben_cloud.formats.lmdb_index import Estimate
from reben_cloud.hosted.checksums import checksums as read_checksums
from reben_cloud.hosted.finder import name_of
from reben_cloud.hosted.indexed import Index, IndexedSource, index_of
from reben_cloud.hosted.lmdb import find_hosted
from reben_cloud.hosted.tars import BLOCK_BYTES, index_tars, list_tars
from reben_cloud.root import layout
from reben_cloud.root.documents import read_manifest
from reben_cloud.root.layout import OBJECTS, PATCHES
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.objects import Objects
from reben_cloud.root.patches import patches_table
from reben_cloud.root.patches_file import write_patches
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.root.references import Found, RemoteObjects, require_reachable
from reben_cloud.root.source import Incomplete
from reben_cloud.root.table import PatchTable
from reben_cloud.schema import Modality
from reben_cloud.store import Store, open_store
from reben_cloud.wording import counted, size_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What an index costs to make, at most."""

    kind: Literal["lmdb", "tars"]
    """What is hosted."""
    records: int | None
    """Records of an LMDB; how many members tars have is not known before they are read."""
    objects: int
    """Files that are read."""
    requests: int
    """Requests for them."""
    nbytes: int
    """Bytes of them."""

    @classmethod
    def of_lmdb(cls, cost: Estimate) -> Cost:
        """Its branches and leaves are read."""
        return cls(kind="lmdb", records=cost.entries, objects=1, requests=cost.requests, nbytes=cost.nbytes)

    @classmethod
    def of_tars(cls, tars: Mapping[str, int]) -> Cost:
        """Tars are read through: where a member lies is said by the one before it."""
        requests = sum(-(-nbytes // BLOCK_BYTES) for nbytes in tars.values())
        return cls(kind="tars", records=None, objects=len(tars), requests=requests, nbytes=sum(tars.values()))

    def to_text(self) -> str:
        """One line for people."""
        what = counted(self.objects, "tar") if self.records is None else counted(self.records, "record")
        return f"{what}; reading {size_text(self.nbytes)} in {counted(self.requests, 'request')} at most"


def publish_references(
    index: Index,
    official: pa.Table,
    store: Store,
    *,
    modalities: Sequence[str] | None = None,
    checksums: bool = False,
    incomplete: Incomplete = "refuse",
    storage_options: Mapping[str, object] | None = None,
    progress: Progress = lambda items, _total, _what: items,
) -> Manifest:
    """Write a root whose payloads lie in the objects of an index.

    Args:
        index: Where the payloads lie.
        official: Metadata of its patches, and perhaps of many more.
        store: The root to be.
        modalities: What patches must have and the root refers to; all of the index by default.
        checksums: Read every payload once and record its xxh3, so that later changes are noticed.
        incomplete: What to do about patches that lack a modality, as for `make_plan`.
        storage_options: Credentials and endpoint of the objects, to read them.
        progress: Wraps the reading.

    Returns:
        The manifest.

    Raises:
        ConflictError: If the store holds another dataset, or the same without the checksums that are wanted.
        SourceError: If the metadata and the index do not fit, or a payload is not one.
        StorageError: If a store fails.
    """
    plan = make_plan(
        IndexedSource(index),
        official,
        store,
        modalities=modalities,
        options=PlacementOptions(order="stored"),
        incomplete=incomplete,
    )
    if text := not_taken(plan, official):
        logger.warning("%s: %s", plan.source.describe(), text)
    require_reachable(store, index.objects)
    there = read_manifest(store)
    if there is not None:
        if not (is_root_of(plan.fingerprint, there, store) and there.references == index.objects):
            raise _conflict(store, "holds another dataset")
        columns = PatchTable(store, there).names
        if checksums and any(layout.checksum_column(m.name) not in columns for m in plan.schema.modalities):
            raise _conflict(store, "was indexed without checksums")
        return there
    placement = plan.placement.drop_columns([layout.ZARR_ROW])
    places = {m.name: _places(plan, index, m) for m in plan.schema.modalities}
    for name, columns in places.items():
        for column, values in zip(layout.place_columns(name), columns.columns, strict=True):
            placement = placement.append_column(column, values)
    kept: list[Path] = []
    if checksums:
        objects = RemoteObjects(index.objects, storage_options)
        for modality in plan.schema.modalities:
            columns = places[modality.name]
            found = Found(*(columns.column(n).to_numpy().astype(np.int64) for n in ("object", "offset")))
            ids = plan.table.column("patch_id").to_pylist()
            kept.append(cache_folder() / "index" / f"{name_of(*index.objects)}.{modality.name}.sums")
            sums = read_checksums(objects, found, modality, ids, keep=kept[-1], progress=progress)
            placement = placement.append_column(layout.checksum_column(modality.name), sums)
    table = patches_table(plan.table, plan.schema, placement)
    patches = write_patches(table, plan.schema)
    written = [put(store, PATCHES, patches)]
    if plan.matched.incomplete:
        written.append(put(store, layout.INCOMPLETE, plan.matched.incomplete_csv()))
    for path, data in catalog.root_documents(table, {}, written, schema=plan.schema).items():
        written.append(put(store, path, data))
    data = Objects.of(written).encode()
    store.put(OBJECTS, data)
    manifest = commit_root(store, manifest_of(plan).referring_to(index.objects), patches, data)
    _forget(kept)
    return manifest


def index_hosted(
    url: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    metadata_paths: Sequence[str | os.PathLike[str]] = (),
    modalities: Sequence[str] | None = None,
    checksums: bool = False,
    incomplete: Incomplete = "refuse",
    threads: int = 16,
    storage_options: Mapping[str, object] | None = None,
    tell: Callable[[Cost], object] = lambda _cost: None,
    progress: Progress = lambda items, _total, _what: items,
) -> Manifest:
    """Make a reference root of what is hosted at a URL: a rico-hdl LMDB, or uncompressed tars of its payloads.

    Args:
        url: The LMDB's file, its folder or the folder above; a tar, or a folder of tars.
        dest: Path or URL of the root to be.
        metadata_paths: The official metadata, when they are not beside an LMDB.
        modalities: What the root refers to; all that is there by default.
        checksums: Read every payload once and record its xxh3.
        incomplete: What to do about patches that lack a modality: ``"refuse"``, or ``"skip"`` to leave them out, which
            the manifest says.
        threads: Requests at a time.
        storage_options: Credentials and endpoint of both places, as in `store.open_store`.
        tell: Told what it costs before it is read.
        progress: Wraps what takes long.

    Returns:
        The manifest.

    Raises:
        SourceError: If there is neither, or the metadata do not fit.
        ConflictError: If `dest` holds another dataset, or the same without the checksums that are wanted.
        ValueError: If a modality is unknown.
        StorageError: If a store fails.
    """
    REBEN.only(modalities or ())  # a typo is told before anything is read
    store, root = open_store(url, storage_options), open_store(dest, storage_options)
    there = read_manifest(root)
    if there is not None and there.references is None:
        raise _conflict(root, "holds another dataset")
    keep: Path | None = None
    if (hosted := find_hosted(store)) is not None:
        official = hosted.read_metadata(metadata_paths)
        remote = hosted.describe()
        if there is not None and there.references != (remote,):
            raise _conflict(root, "holds another dataset")
        try:
            if remote.url.startswith(("http://", "https://")):
                RemoteObjects((remote,), storage_options).check_version(0)
        except StorageError as error:
            raise StorageError(
                f"{error}; an index keeps no user, password or query of a URL, so what it refers to must be readable "
                "without them"
            ) from error
        pages = hosted.pages(remote, threads=threads)
        keep = cache_folder() / "index" / f"{name_of(remote)}.partial"
        cost = pages.estimate()
        tell(Cost.of_lmdb(cost))
        total = cost.requests
        table = _told(
            lambda tell: pages.index(keep=keep, progress=tell), progress, total, "pages of the LMDB"
        )
        index = index_of(remote, table)
    elif tars := list_tars(store, progress):
        if not metadata_paths:
            raise SourceError(
                f"{store.url}: tars carry no metadata of their patches; name the official files (--metadata)"
            )
        official = read_official(metadata_paths)
        tell(Cost.of_tars(tars))
        place = store.parent()[0] if list(tars) == [store.parent()[1]] else store
        index = index_tars(place, list(tars), official, threads=threads, progress=progress)
    else:
        raise _nothing(store)
    manifest = publish_references(
        index,
        official,
        root,
        modalities=modalities,
        checksums=checksums,
        incomplete=incomplete,
        storage_options=storage_options,
        progress=progress,
    )
    if keep is not None:  # not before: what cannot be published is not read again when its cause is mended
        _forget([keep])
    return manifest


def estimate_hosted(url: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> Cost:
    """What an index costs to make. Raises as `index_hosted`."""
    store = open_store(url, storage_options)
    if (hosted := find_hosted(store)) is not None:
        return Cost.of_lmdb(hosted.pages(hosted.describe()).estimate())
    if tars := list_tars(store):
        return Cost.of_tars(tars)
    raise _nothing(store)


def _told(
    work: Callable[[Callable[[int, int], None]], pa.Table], progress: Progress, total: int, what: str
) -> pa.Table:
    """The result of work that tells how far it is, shown as the progress of an iterable."""
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    stop = threading.Event()

    def tell(done: int, _all: int) -> None:
        if stop.is_set():
            raise _Stopped
        told.put(done)

    def steps(future: Future[pa.Table]) -> Iterator[int]:
        shown = 0
        while not (future.done() and told.empty()):
            with suppress(queue.Empty):
                while shown < told.get(timeout=0.2):
                    shown += 1
                    yield shown

    with ThreadPoolExecutor(1, "reben-index") as pool:
        future = pool.submit(work, tell)
        try:
            for _ in progress(steps(future), total, what):
                pass
            return future.result()
        finally:
            stop.set()  # or else Ctrl-C would wait until all is read


class _Stopped(Exception):  # noqa: N818 - it ends a thread whose result nobody waits for
    """Whoever wanted the result is gone."""


def _forget(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()


def _nothing(store: Store) -> SourceError:
    return SourceError(f"{store.url}: no LMDB (data.mdb) and no uncompressed tars there to refer to")


def _conflict(store: Store, what: str) -> ConflictError:
    return ConflictError(f"{store.url} {what}; a root never changes, take an empty place")


def _places(plan: BuildPlan, index: Index, modality: Modality) -> pa.Table:
    """Object, first byte and size of each patch's payload, in the order of the plan."""
    here = index.places[modality.name]
    rows = pc.index_in(
        plan.table.column(modality.key_column).combine_chunks(), here.column("name").combine_chunks()
    )
    return pa.table(
        {
            "object": here.column("object").take(rows).cast(pa.int32()),
            "offset": here.column("offset").take(rows),
            "nbytes": here.column("nbytes").take(rows).cast(pa.int32()),
        }
    )
