"""What a SOURCE argument is: archives, folders, an LMDB, a root, a synthetic set; with its metadata."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from reben_cloud import metadata
from reben_cloud.errors import MissingExtraError, SourceError
from reben_cloud.sources import Source
from reben_cloud.store import Store, open_store

SYNTHETIC = "synthetic:"
"""Prefix of a made-up source: ``synthetic:5000`` is 5,000 synthetic patches."""

OFFICIAL_METADATA = ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
"""Names of the two official metadata files."""


def open_source(
    source: str | os.PathLike[str],
    *,
    metadata_paths: Sequence[str | os.PathLike[str]] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[Source, pa.Table]:
    """The source behind a path or URL, and the official metadata that goes with it.

    Args:
        source: A folder (or an ``s3://`` or ``http(s)://`` prefix) with the official archives; one
            archive; a root; a folder with a rico-hdl LMDB or the official GeoTIFF folders at or
            below it; or ``synthetic:N``.
        metadata_paths: The metadata parquet files; by default those found in or beside `source`.
        storage_options: Credentials and endpoint of a URL, as in `store.open_store`.

    Returns:
        The source and its metadata in the official schema, sorted by ``patch_id``; the metadata
        may have rows that the source lacks.

    Raises:
        SourceError: If nothing known is there, or no metadata is found.
    """
    text = os.fspath(source)
    if text.startswith(SYNTHETIC):
        from reben_cloud.sources.synthetic import SyntheticSource, synthetic_metadata

        number = text.removeprefix(SYNTHETIC)
        if not number.isdigit() or int(number) < 1:
            raise SourceError(f"{text}: write synthetic:N with N patches, N at least 1")
        rows = synthetic_metadata(int(number), metadata_paths)
        return SyntheticSource(rows.num_rows), rows
    store = open_store(text, storage_options)
    found = _find_archives(store)
    folder = store.local_path()
    if found is None and folder is not None and not folder.is_dir():
        raise SourceError(
            f"{folder}: no such folder; a source is a folder, an s3:// or http(s):// URL, or synthetic:N"
        )
    if found is None:
        from reben_cloud.sources.roots import open_root

        root = open_root(store)
        if root is not None:
            return root
    if found is None and folder is not None:
        found = _recognise(folder)
    if found is None:
        raise SourceError(
            f"{store.url}: no root and no archives (BigEarthNet-S2.tar.zst, ...) there; "
            "an LMDB or unpacked folders must lie on a disk"
        )
    return found, _read_metadata(store, metadata_paths)


def default_scratch(source: Source) -> Path | None:
    """A scratch folder for a source that cannot do without one, None for the others."""
    from reben_cloud.sources.archives import ArchiveSource

    return Path(tempfile.gettempdir()) / "reben-cloud" if isinstance(source, ArchiveSource) else None


def _find_archives(store: Store) -> Source | None:
    """The archives at `store`, or the one that it is itself."""
    from reben_cloud.sources.archives import ARCHIVES, ArchiveSource

    parent, _, name = store.url.rpartition("/")
    for modality, archive in ARCHIVES.items():
        if name == archive:
            return ArchiveSource({modality: (Store(parent, store.storage_options), name)})
    folder = store.local_path()
    if folder is not None:
        there = [m for m, archive in ARCHIVES.items() if (folder / archive).is_file()]
    else:
        there = [m for m, archive in ARCHIVES.items() if store.exists(archive)]
    return ArchiveSource({m: (store, ARCHIVES[m]) for m in there}) if there else None


def _recognise(folder: Path) -> Source:
    from reben_cloud.formats.safetensors import SafetensorsSource, is_safetensors
    from reben_cloud.sources.folders import FolderSource, find_folders

    if is_safetensors(folder):
        return SafetensorsSource(os.fspath(folder))
    roots = find_folders(folder)
    try:
        from reben_cloud.formats import lmdb
    except MissingExtraError:
        if not roots:
            raise
    else:
        where = lmdb.find_lmdb(folder)
        if where is not None:
            return lmdb.LmdbSource(where)
    if roots:
        return FolderSource(roots)
    raise SourceError(
        f"{folder}: nothing known in it; a source has the official archives (BigEarthNet-S2.tar.zst, ...), the "
        "folders BigEarthNet-S2, BigEarthNet-S1, Reference_Maps, a rico-hdl LMDB (data.mdb), or is a root"
    )


def _read_metadata(store: Store, paths: Sequence[str | os.PathLike[str]]) -> pa.Table:
    if paths:
        return metadata.read_official(paths)
    folder = store.local_path()
    if folder is not None:
        return metadata.read_official(_find_metadata(folder if folder.is_dir() else folder.parent))
    with tempfile.TemporaryDirectory() as copies:
        here = []
        for name in OFFICIAL_METADATA:
            try:
                data = store.get(name)
            except FileNotFoundError:
                continue
            here.append(Path(copies) / name)
            here[-1].write_bytes(data)
        if not here:
            raise SourceError(
                f"{store.url}: no {OFFICIAL_METADATA[0]} there; name the official files (--metadata)"
            )
        return metadata.read_official(here)


def _find_metadata(folder: Path) -> list[Path]:
    for place in (folder, folder.parent):
        found = sorted(place.glob("metadata*.parquet"))
        if found:
            return found
    raise SourceError(
        f"{folder}: no metadata*.parquet in or beside it; name the official metadata files (--metadata)"
    )
