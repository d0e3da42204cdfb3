"""The documents at the top of a root: found, read, checked, and asked for again when an answer came damaged.

What the manifest vouches for is compared before anything is made of it. This module knows where the
documents lie, not what the rows of their tables mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import xxhash

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.formats import parquet
from reben_cloud.root.manifest import MANIFEST as MANIFEST
from reben_cloud.root.manifest import InvalidManifestError, from_bytes
from reben_cloud.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

OBJECTS = "objects.parquet"
"""List of every object, with its size and checksums."""

PATCHES = "patches.parquet"
"""The table of patches."""

EXPORT_MANIFEST = "export.json"
"""What an export says of itself: the manifest of the root that it came from, and what differs."""

PATCHES_SEAL = "patches_parquet"
"""Key of the manifest (and of that of an export) that vouches for the table of patches: a `parquet.Seal`."""

EXPORTED_FILES = "files"
"""Key of an export's manifest: name of a file -> its size, and its xxh3 where it is not larger than `WHOLE_BYTES`."""

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


def read_manifest(store: Store) -> dict[str, Any] | None:
    """The manifest; None when there is none.

    Raises:
        ChecksumError: If it is not the manifest of a root, or a damaged one.
        StorageError: If the store cannot be reached or refuses.
    """
    try:
        return get_checked(store, MANIFEST, lambda text: _parsed(store, text))
    except NotFoundError:
        return None


def _parsed(store: Store, text: memoryview) -> dict[str, Any]:
    try:
        return from_bytes(text, where=store.url)
    except InvalidManifestError as error:
        raise ChecksumError(
            f"{store.url}/{MANIFEST} is not the manifest of a reben_cloud root, or it is damaged: {error}; "
            "copy it again from where the root was made"
        ) from error


def read_objects(store: Store, manifest: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """Columns of ``objects.parquet``, compared with the manifest.

    Raises:
        NotFoundError: If it is not there.
        ChecksumError: If it is not the one that the manifest names.
    """

    def parse(data: memoryview) -> pa.Table:
        if hashlib.sha256(data).hexdigest() != manifest["objects_sha256"]:
            raise ChecksumError(
                f"{store.url}/{OBJECTS} is not the one that the manifest names; the root is damaged: "
                "copy it again from where the root was made"
            )
        return parquet.read_table(data, columns, name=f"{store.url}/{OBJECTS}")

    return get_checked(store, OBJECTS, parse)


def open_patches(store: Store, manifest: Mapping[str, Any]) -> parquet.ChunkReader:
    """``patches.parquet``, compared with what its manifest knows of it before anything is read from it.

    A root or an export has a seal for it and is read by ranges. An older one is read as a whole and compared with its
    list of objects or files, which for a large table of a remote store would cost too much: it is then said that
    nothing was compared. A table that was made in memory needs nobody to vouch for it.

    Raises:
        NotFoundError: If it is not there.
        ChecksumError: If it is damaged.
    """
    if (value := manifest.get(PATCHES_SEAL)) is not None:
        try:
            seal = parquet.Seal.from_json(value)
        except (ValueError, TypeError, KeyError) as error:
            raise ChecksumError(
                f"{store.url}: its manifest is damaged, {PATCHES_SEAL} is {value!r}; copy it again from where "
                "the root was made"
            ) from error
        return again(store, PATCHES, lambda: parquet.ChunkReader(store, PATCHES, seal))
    whole = _fingerprint_of(store, manifest)
    if whole is None or (whole.nbytes > WHOLE_BYTES and not store.is_local):
        if {EXPORTED_FILES, "objects_sha256"} & manifest.keys():
            logger.warning(
                "%s/%s: made by an older version without checksums for parts of it, and too large to be read as a "
                "whole, so damage may go unnoticed; `reben-cloud verify` compares it",
                store.url,
                PATCHES,
            )
        return again(store, PATCHES, lambda: parquet.ChunkReader(store, PATCHES, None))

    def parse(data: memoryview) -> parquet.ChunkReader:
        if data.nbytes != whole.nbytes or whole.digest(data) != whole.hexdigest:
            raise ChecksumError(
                f"{store.url}/{PATCHES} is not the file that was written, its checksum differs; copy it again from "
                "where it was made"
            )
        return parquet.ChunkReader(store, PATCHES, None, whole=data)

    return get_checked(store, PATCHES, parse)


def read_patches(store: Store, manifest: Mapping[str, Any], columns: Sequence[str]) -> pa.Table:
    """Columns of all rows of ``patches.parquet``; raises as `open_patches`, and KeyError for an unknown column."""
    reader = open_patches(store, manifest)
    groups = range(reader.metadata.num_row_groups)
    return pa.concat_tables(again(store, PATCHES, lambda: reader.read(groups, columns))).select(list(columns))


def check_exported(file: Path) -> None:
    """See that a file of an export is the one that was written; nothing is known of one that is not in an export.

    Raises:
        ChecksumError: If it is not.
    """
    try:
        known = json.loads((file.parent / EXPORT_MANIFEST).read_bytes())[EXPORTED_FILES][file.name]
    except (OSError, ValueError, TypeError, KeyError):
        return  # not an export; the manifest of one is judged by those who open it
    if known[0] <= WHOLE_BYTES and xxhash.xxh3_64_hexdigest(file.read_bytes()) != known[1]:
        raise ChecksumError(f"{file} is not the file that was exported, its checksum differs; export again")


class _Fingerprint:
    """Size and checksum of a whole file."""

    def __init__(self, nbytes: int, hexdigest: str, digest: Callable[[memoryview], str]) -> None:
        self.nbytes, self.hexdigest, self.digest = nbytes, hexdigest, digest


def _fingerprint_of(store: Store, manifest: Mapping[str, Any]) -> _Fingerprint | None:
    """What an older manifest knows of ``patches.parquet``; None when it is no published root and no export."""
    if EXPORTED_FILES in manifest:
        nbytes, xxh3 = manifest[EXPORTED_FILES][PATCHES]
        return _Fingerprint(nbytes, xxh3, xxhash.xxh3_64_hexdigest) if nbytes <= WHOLE_BYTES else None
    if "objects_sha256" not in manifest:
        return None
    table = read_objects(store, manifest, ["path", "bytes", "sha256"])
    for row in table.to_pylist():
        if row["path"] == PATCHES:
            return _Fingerprint(row["bytes"], row["sha256"], lambda data: hashlib.sha256(data).hexdigest())
    raise lost(store, PATCHES)
