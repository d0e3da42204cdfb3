"""What a SOURCE argument is: an LMDB, folders of GeoTIFFs, a synthetic set; with its metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from reben_cloud import metadata
from reben_cloud.errors import SourceError
from reben_cloud.sources import Source

SYNTHETIC = "synthetic:"
"""Prefix of a made-up source: ``synthetic:5000`` is 5,000 synthetic patches."""


def open_source(
    source: str | os.PathLike[str], *, metadata_paths: Sequence[str | os.PathLike[str]] = ()
) -> tuple[Source, pa.Table]:
    """The source behind a path, and the official metadata that goes with it.

    Args:
        source: A folder with a rico-hdl LMDB or the official GeoTIFF folders at or below it, or
            ``synthetic:N``.
        metadata_paths: The metadata parquet files; by default those found in or beside `source`.

    Returns:
        The source and its metadata in the official schema, sorted by ``patch_id``; the metadata
        may have rows that the source lacks.

    Raises:
        SourceError: If the folder holds nothing known, or no metadata is found.
    """
    text = os.fspath(source)
    if text.startswith(SYNTHETIC):
        from reben_cloud.sources.synthetic import SyntheticSource, synthetic_metadata

        number = text.removeprefix(SYNTHETIC)
        if not number.isdigit() or int(number) < 1:
            raise SourceError(f"{text}: write synthetic:N with N patches, N at least 1")
        rows = synthetic_metadata(int(number), metadata_paths)
        return SyntheticSource(rows.num_rows), rows
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder; a source is a folder or synthetic:N")
    paths = [Path(p) for p in metadata_paths] or _find_metadata(folder)
    found = _recognise(folder)
    return found, metadata.read_official(paths)


def _recognise(folder: Path) -> Source:
    from reben_cloud.sources.folders import FolderSource, find_folders

    if any(folder.rglob("data.mdb")):
        from reben_cloud.formats import lmdb

        where = lmdb.find_lmdb(folder)
        assert where is not None
        return lmdb.LmdbSource(where)
    roots = find_folders(folder)
    if roots:
        return FolderSource(roots)
    raise SourceError(
        f"{folder}: nothing known in it; a source has a rico-hdl LMDB (data.mdb) or the folders "
        "BigEarthNet-S2, BigEarthNet-S1, Reference_Maps"
    )


def _find_metadata(folder: Path) -> list[Path]:
    for place in (folder, folder.parent):
        found = sorted(place.glob("metadata*.parquet"))
        if found:
            return found
    raise SourceError(
        f"{folder}: no metadata*.parquet in or beside it; name the official metadata files (--metadata)"
    )
