"""Payloads in other people's uncompressed tars: WebDataset shards of the same records, whoever wrote them."""

from __future__ import annotations

import io
import logging
import re
import tarfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import SourceError
from reben_cloud.export.copying import Progress
from reben_cloud.files.clutter import is_clutter
from reben_cloud.hosted.indexed import MAP_SUFFIX, Index
from reben_cloud.root.references import RemoteObject
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

BLOCK_BYTES = 4 * 1024 * 1024
"""What is read at once: members are nearer to each other than another request would be worth."""

MOST_OTHERS = 100_000
"""Most objects that are looked through for tars and are none: a hundred requests where 1,000 are listed at once."""

_FIRST_PAGE = 1000
"""So many objects are listed without a word."""

_LIKE_A_TAR = re.compile(
    r"\.(tar(\.(gz|bz2|xz|zst|zstd|lz4|part|partial|crdownload|tmp))?|tgz|tbz2?|txz|tzst)( ?\(\d+\))?",
    re.IGNORECASE,
)


class _Member(NamedTuple):
    modality: str
    name: str
    offset: int


class _Blocks(io.RawIOBase):
    """An object as a file, read block by block; the last one is kept."""

    def __init__(self, store: Store, remote: RemoteObject, path: str) -> None:
        self._store, self._path = store, path
        self._nbytes, self._version = remote.nbytes, remote.version
        self._at, self._first, self._block = 0, 0, memoryview(b"")

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._nbytes}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if not 0 <= self._at < self._nbytes:
            return 0
        if not self._first <= self._at < self._first + self._block.nbytes:
            length = min(BLOCK_BYTES, self._nbytes - self._at)
            self._block = self._store.get_range(self._path, self._at, length, version=self._version)
            self._first = self._at
        here = self._block[self._at - self._first :][: len(buffer)]
        buffer[: here.nbytes] = here
        self._at += here.nbytes
        return here.nbytes


def list_tars(store: Store, progress: Progress = lambda items, _total, _what: items) -> dict[str, int]:
    """Path -> bytes of the tars below a URL, sorted; the object itself where the URL names one.

    A warning names what looks like a tar and is none to be read in place: compressed, half downloaded, or misnamed.
    Of what is no tar nothing is kept, and the listing ends when there is too much of it.

    Args:
        store: Where to look.
        progress: Wraps the objects as they are listed, when there are more than a server lists at once.

    Raises:
        SourceError: If more than `MOST_OTHERS` objects there are no tars.
        StorageError: If the store fails, or cannot list.
    """
    above, name = store.parent()
    if name.endswith(".tar"):
        try:
            return {name: above.head(name)}
        except FileNotFoundError:
            return {}
    found: dict[str, int] = {}
    alike: list[str] = []
    num_others = 0
    for path, nbytes in _listed(store, progress):
        if path.endswith(".tar"):
            found[path] = nbytes
            continue
        num_others += 1
        if _only_looks_like_a_tar(path):
            alike.append(path)
        if num_others > MOST_OTHERS:
            raise SourceError(
                f"{store.url}: more than {MOST_OTHERS:,} objects there are no tars ({path} and others), and "
                f"{len(found):,} are; name the folder that has the tars"
            )
    if alike:
        alike.sort()
        more = f" and {len(alike) - 3:,} more" if len(alike) > 3 else ""
        logger.warning(
            "%s: not taken: %s%s; only uncompressed tars whose names end in .tar are",
            store.url,
            ", ".join(alike[:3]),
            more,
        )
    return dict(sorted(found.items()))


def _listed(store: Store, progress: Progress) -> Iterator[tuple[str, int]]:
    """What a store holds; only a long list shows how far it is."""
    listed = store.list()
    first = list(islice(listed, _FIRST_PAGE))
    yield from first
    if len(first) == _FIRST_PAGE:
        yield from progress(listed, MOST_OTHERS, "objects listed, at most")


def _only_looks_like_a_tar(path: str) -> bool:
    name = path.rpartition("/")[2]
    ending = _LIKE_A_TAR.search(name)
    return (
        ending is not None
        and ending.end() == len(name)
        and not name.endswith(".tar")
        and not is_clutter(name)
    )


def index_tars(
    store: Store,
    paths: Sequence[str],
    official: pa.Table,
    *,
    threads: int = 16,
    progress: Progress = lambda items, _total, _what: items,
) -> Index:
    """Where the payloads in some tars lie; their headers are read, and what lies between them.

    A member is a payload when it begins as one of reBEN's modalities does; its name up to the first dot is that of
    the patch or, for Sentinel-1, of the S1 patch.

    Args:
        store: Where the tars lie.
        paths: The tars.
        official: The metadata, which say which S1 name belongs to which patch.
        threads: Tars read at a time.
        progress: Wraps the tars as they are read.

    Raises:
        SourceError: If one is compressed, cut short or no tar, a patch comes twice, or there is no payload at all.
        ChangedError: If one is written to meanwhile.
        StorageError: If the store fails.
    """
    objects, found = [], []
    stop = threading.Event()
    with ThreadPoolExecutor(threads, "reben-index") as pool:
        read = pool.map(partial(_read_tar, store, stop), paths)
        try:
            for number, (remote, members) in enumerate(progress(read, len(paths), "tars")):
                objects.append(remote)
                found += [(number, member) for member in members]
        finally:
            stop.set()  # an error, or Ctrl-C, does not wait until all tars are read
    places = {}
    for modality in REBEN.modalities:
        mine = [(number, member) for number, member in found if member.modality == modality.name]
        if not mine:
            continue
        names = _in_key_column(
            pa.array([m.name for _, m in mine], pa.string()), modality.key_column, official
        )
        counts = pc.value_counts(names)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise SourceError(
                f"{store.url}: {twice[0]['values']} has {twice[0]['counts']} payloads of {modality.name} in "
                "these tars; a root has one"
            )
        places[modality.name] = pa.table(
            {
                "name": names,
                "object": pa.array([number for number, _ in mine], pa.int64()),
                "offset": pa.array([member.offset for _, member in mine], pa.int64()),
                "nbytes": pa.array([modality.payload_bytes] * len(mine), pa.int64()),
            }
        )
    if not places:
        raise SourceError(
            f"{store.url}: no payload of BigEarthNet v2 in {len(paths):,} tars; a member must be a safetensors record "
            "as rico-hdl writes it"
        )
    return Index(objects=tuple(objects), places=places)


def _read_tar(store: Store, stop: threading.Event, path: str) -> tuple[RemoteObject, list[_Member]]:
    nbytes, version = store.stat(path)
    remote = RemoteObject(url=store.child(path).url, nbytes=nbytes, version=version)
    # Buffered, because a raw file may give less than it was asked for, which a tar would take for its end.
    blocks = io.BufferedReader(_Blocks(store, remote, path))
    try:
        with tarfile.open(fileobj=blocks, mode="r:") as tar:
            members = list(_payloads_in(tar, blocks, stop))
            blocks.seek(tar.offset)
            end = blocks.read(tarfile.BLOCKSIZE)
            more = not stop.is_set() and any(
                any(rest) for rest in iter(partial(blocks.read, BLOCK_BYTES), b"")
            )
    except tarfile.TarError as error:
        raise SourceError(
            f"{remote.url}: not an uncompressed tar ({error}); payloads in compressed archives cannot be read in place"
        ) from error
    # `tarfile` takes a header that it does not understand, and half of one, for the end.
    if not stop.is_set() and end != bytes(tarfile.BLOCKSIZE):
        raise SourceError(
            f"{remote.url}: damaged or cut short at byte {tar.offset:,} of {nbytes:,}: there is neither another member "
            "nor the end of the archive; copy it again"
        )
    if more:
        raise SourceError(
            f"{remote.url}: more follows the end of the archive at byte {tar.offset:,}, as when tars are put together "
            "with `cat`; join them with `tar --concatenate`, or refer to them one by one"
        )
    return remote, members


def _payloads_in(
    tar: tarfile.TarFile, blocks: io.BufferedReader[_Blocks], stop: threading.Event
) -> Iterator[_Member]:
    by_size = {modality.payload_bytes: modality for modality in REBEN.modalities}
    for member in tar:
        if stop.is_set():
            return
        modality = by_size.get(member.size)
        if modality is None or not member.isfile() or member.issparse():
            continue
        at = blocks.tell()
        blocks.seek(member.offset_data)
        head = blocks.read(len(modality.payload_header))
        blocks.seek(at)
        if head == modality.payload_header:
            name = member.name.rpartition("/")[2].partition(".")[0]
            yield _Member(modality.name, name.removesuffix(MAP_SUFFIX), member.offset_data)


def _in_key_column(names: pa.Array[Any], column: str, official: pa.Table) -> pa.Array[Any]:
    """Names as the metadata have them in the modality's key column; some name every payload by its patch."""
    rows = pc.index_in(names, official.column("patch_id").combine_chunks())
    keys = official.column(column).combine_chunks().take(rows)
    return pc.if_else(pc.is_valid(keys), keys, names)
