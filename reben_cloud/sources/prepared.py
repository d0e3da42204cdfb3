"""A folder that `prepare` wrote of a dataset of one's own: the official layout, and a document with its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from reben_cloud.errors import ChecksumError, SourceError
from reben_cloud.files.whole import write_whole
from reben_cloud.formats import parquet
from reben_cloud.schema import Schema
from reben_cloud.sources.folders import FOLDERS, FolderSource

DOCUMENT = "dataset.json"
"""What says that a folder is of this kind, and what its patches have; beside the official folders."""

_FORMAT = "reben-cloud-prepared"
_VERSION = 1


def write_document(folder: Path, schema: Schema) -> None:
    """Say what the patches of a folder have.

    Args:
        folder: Where the official folders are.
        schema: What their patches have.
    """
    told = {"format": _FORMAT, "version": _VERSION, "schema": schema.to_json()}
    write_whole(folder / DOCUMENT, json.dumps(told, indent=1, ensure_ascii=False).encode())


def open_prepared(folder: Path) -> tuple[FolderSource, pa.Table] | None:
    """The source in a folder that `prepare` wrote, and its metadata sorted by id; None if it is another folder.

    Raises:
        SourceError: If the document, the metadata or a folder of patches is missing or damaged.
    """
    path = folder / DOCUMENT
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("format") != _FORMAT:
            return None
        if told["version"] > _VERSION:
            raise SourceError(
                f"{path}: of version {told['version']}, this release reads up to {_VERSION}; update reben_cloud"
            )
        schema = Schema.from_json(told["schema"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: damaged ({error}); run prepare again, which writes it last") from error
    roots = {name: (str(folder / FOLDERS[name]),) for name in schema.modality_names if name in FOLDERS}
    if lacking := [n for n in schema.modality_names if n not in roots or not Path(roots[n][0]).is_dir()]:
        raise SourceError(
            f"{folder}: has no {FOLDERS.get(lacking[0], lacking[0])}, where its {lacking[0]} would be"
        )
    found = sorted(folder.glob("metadata*.parquet"))
    if not found:
        raise SourceError(f"{folder}: no metadata*.parquet in it; run prepare to its end")
    try:
        tables = [parquet.read_table(file, name=str(file)) for file in found]
    except ChecksumError as error:
        raise SourceError(f"{error}; run prepare again, which writes it last") from error
    return FolderSource(roots, schema=schema), pa.concat_tables(tables).sort_by("patch_id").combine_chunks()
