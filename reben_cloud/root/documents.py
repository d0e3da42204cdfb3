"""The documents at the top of a root: found, read, checked, and asked for again when an answer came damaged.

What the manifest vouches for is compared before anything is made of it. This module knows where the
documents lie, not what the rows of their tables mean.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import xxhash

from reben_cloud.errors import ChecksumError, NotFoundError, RebenError
from reben_cloud.files import sketch as sketches
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.manifest import InvalidManifestError, Manifest
from reben_cloud.root.objects import Objects
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

WHOLE_BYTES = 64 * 1024 * 1024
"""A table without a seal is read as a whole up to this size, so that its checksum can be compared."""


def get_checked(store: Store, path: str, parse: Callable[[memoryview], T]) -> T:
    """What `parse` makes of an object; a remote store is asked once more when that raises a ChecksumError.

    Raises:
        NotFoundError: If the object is not there.
        ChecksumError: If `parse` says so both times.
    """
    return again(store, path, lambda: parse(store.get(path)))


def again(store: Store, path: str, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, which reads an object that must be there; tried twice on a remote store.

    A range or an object of a remote store can come damaged though it is stored well. Raises as `get_checked`.
    """
    try:
        try:
            return attempt()
        except ChecksumError:
            if store.is_local:
                raise
            return attempt()
    except FileNotFoundError as error:
        raise lost(store, path) from error


def lost(store: Store, path: str) -> NotFoundError:
    """The error for an object of a root that must be there and is not."""
    return NotFoundError(
        f"{store.url} has lost {path}; `reben-cloud verify` says what else is missing: copy it again from where "
        "the root was made"
    )


def read_manifest(store: Store) -> Manifest | None:
    """The manifest; None when there is none.

    Raises:
        ChecksumError: If it is not the manifest of a root, or a damaged one.
        StorageError: If the store cannot be reached or refuses.
    """
    try:
        return get_checked(store, layout.MANIFEST, lambda text: _parsed(store, text))
    except NotFoundError:
        return None


def _parsed(store: Store, text: memoryview) -> Manifest:
    try:
        return Manifest.from_bytes(text, where=store.url)
    except InvalidManifestError as error:
        raise ChecksumError(
            f"{store.url}/{layout.MANIFEST} is not the manifest of a reben_cloud root, or it is damaged: {error}; "
            "copy it again from where the root was made"
        ) from error


def read_objects(store: Store, manifest: Manifest) -> Objects:
    """What ``objects.parquet`` lists, compared with the manifest.

    Raises:
        NotFoundError: If it is not there.
        ChecksumError: If it is not the one that the manifest names.
    """
    sha256 = manifest.objects_sha256
    return get_checked(store, layout.OBJECTS, lambda data: Objects.parse(data, sha256=sha256, url=store.url))


def open_patches(store: Store, manifest: Manifest) -> parquet.ChunkReader:
    """``patches.parquet``, compared with what its manifest knows of it before anything is read from it.

    A root or an export has a seal for it and is read by ranges. An older one is read as a whole and compared with its
    list of objects or files, which for a large table of a remote store would cost too much: it is then said that
    nothing was compared. A table that was made in memory needs nobody to vouch for it.

    Raises:
        NotFoundError: If it is not there.
        ChecksumError: If it is damaged.
    """
    if (seal := manifest.patches_parquet) is not None:
        return again(store, layout.PATCHES, lambda: parquet.ChunkReader(store, layout.PATCHES, seal))
    whole = _fingerprint_of(store, manifest)
    if whole is None or (whole.nbytes > WHOLE_BYTES and not store.is_local):
        if isinstance(manifest, ExportManifest) or manifest.objects_sha256 is not None:
            logger.warning(
                "%s/%s: made by an older version without checksums for parts of it, and too large to be read as a "
                "whole, so damage may go unnoticed; `reben-cloud verify` compares it",
                store.url,
                layout.PATCHES,
            )
        return again(store, layout.PATCHES, lambda: parquet.ChunkReader(store, layout.PATCHES, None))

    def parse(data: memoryview) -> parquet.ChunkReader:
        if data.nbytes != whole.nbytes or whole.digest(data) != whole.hexdigest:
            raise ChecksumError(
                f"{store.url}/{layout.PATCHES} is not the file that was written, its checksum differs; copy it again "
                "from where it was made"
            )
        return parquet.ChunkReader(store, layout.PATCHES, None, whole=data)

    return get_checked(store, layout.PATCHES, parse)


def read_patches(store: Store, manifest: Manifest, columns: Sequence[str]) -> pa.Table:
    """Columns of all rows of ``patches.parquet``; raises as `open_patches`, and KeyError for an unknown column."""
    reader = open_patches(store, manifest)
    groups = range(reader.metadata.num_row_groups)
    return pa.concat_tables(again(store, layout.PATCHES, lambda: reader.read(groups, columns))).select(
        list(columns)
    )


def check_exported(file: Path) -> None:
    """See that a file of an export is the one that was written; nothing is known of one that is not in an export.

    Raises:
        ChecksumError: If it is not.
    """
    try:
        text = (file.parent / layout.EXPORT_MANIFEST).read_bytes()
        _, recorded = ExportManifest.from_bytes(text, where=str(file.parent)).files[file.name]
    except (OSError, InvalidManifestError, KeyError, RebenError):
        return  # not an export; the manifest of one is judged by those who open it
    if sketches.sketch(file) != recorded:
        raise ChecksumError(f"{file} is not the file that was exported, its checksum differs; export again")


class _Fingerprint:
    """Size and checksum of a whole file."""

    def __init__(self, nbytes: int, hexdigest: str, digest: Callable[[memoryview], str]) -> None:
        self.nbytes, self.hexdigest, self.digest = nbytes, hexdigest, digest


def _fingerprint_of(store: Store, manifest: Manifest) -> _Fingerprint | None:
    """What an older manifest knows of ``patches.parquet``; None when it is neither a published root nor an export."""
    if isinstance(manifest, ExportManifest):
        nbytes, xxh3 = manifest.files[layout.PATCHES]
        return (
            _Fingerprint(nbytes, xxh3, xxhash.xxh3_64_hexdigest) if nbytes <= sketches.WHOLE_BYTES else None
        )
    if manifest.objects_sha256 is None:
        return None
    listed = read_objects(store, manifest).get(layout.PATCHES)
    if listed is None:
        raise lost(store, layout.PATCHES)
    return _Fingerprint(listed.nbytes, listed.sha256, lambda data: hashlib.sha256(data).hexdigest())
