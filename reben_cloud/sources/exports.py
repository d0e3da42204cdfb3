"""The folder of an export as a source: it says itself what its patches have, whatever dataset it is of.

Its ``patches.parquet`` has the metadata and the checksum of every payload. An LMDB export of the official
data is also what rico-hdl makes, and is read as that (`sources.lmdb`), unless a layer is in it; its checksums are
compared there too (`compare_exported`).

An array layer that is there for every patch is a modality more. A root cannot say that patches lack something, and has
no tables of others: other layers are left out, which has to be wanted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import xxhash

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import ChecksumError, NotFoundError, SourceError
from reben_cloud.formats import safetensors
from reben_cloud.root import layout
from reben_cloud.root.documents import open_patches, read_patches
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.manifest import InvalidManifestError
from reben_cloud.root.metadata import described_columns, described_metadata, with_columns_of
from reben_cloud.root.patch import Patch, PatchInfo, key_of
from reben_cloud.schema import Modality, Schema
from reben_cloud.store import file_version, open_store


@dataclass(frozen=True, slots=True)
class ExportSource:
    """The patches of a folder that an export wrote."""

    folder: str
    """The folder."""
    form: str
    """``safetensors`` or ``lmdb``."""
    schema: Schema
    """What is taken of it."""
    metadata: pa.Table
    """The metadata of its patches, with times and places, sorted by ``patch_id``."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Layer that a root cannot have -> why."""

    @property
    def is_remote(self) -> bool:
        """Not."""
        return False

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "safetensors files" if self.form == "safetensors" else "LMDB export"

    def describe(self) -> str:
        """One line for people."""
        return f"{self.kind} {self.folder}"

    def described(self, metadata: pa.Table) -> pa.Table:
        """The metadata with times and places from the export's own table."""
        return with_columns_of(metadata, self.metadata)

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Those of the export's own metadata; the metadata that it is built with may be others."""
        return {m.name: self.metadata.column(m.key_column).to_pylist() for m in self.schema.modalities}

    def identity(self) -> Mapping[str, str]:
        """Sizes and times of the files, one of which says which patch is where."""
        files = sorted(file for file in Path(self.folder).iterdir() if file.is_file())
        return {file.name: file_version(file) for file in files if file.name != "lock.mdb"}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: a file holds many patches."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch.

        Raises:
            NotFoundError: If the patch is not there.
            ChecksumError: If a payload is not the one that was exported.
        """
        index = _index(self.folder, _version(self.folder))
        row = index.rows.get(info.patch_id)
        if row is None:
            raise NotFoundError(f"{self.folder} has no patch {info.patch_id}")
        wanted = [self.schema.modality(name) for name in modalities]
        found = self._records(info, wanted) if self.form == "lmdb" else self._parts(index, row)
        index.compare(self.folder, info.patch_id, found)
        return Patch(info=info, payloads={modality.name: found[modality.name] for modality in wanted})

    def _parts(self, index: _Index, row: int) -> Mapping[str, bytes]:
        """Put together from the arrays of the part files."""
        number, place = divmod(row, index.step)
        count = min(index.step, len(index.rows) - number * index.step)
        return safetensors.read_part(self.folder, index.modalities, number=number, count=count, row=place)

    def _records(self, info: PatchInfo, wanted: Sequence[Modality]) -> Mapping[str, bytes]:
        from reben_cloud.formats import lmdb

        keys = [key_of(modality, info) for modality in wanted]
        values = lmdb.read_many(self.folder, keys)
        return {modality.name: value for modality, value in zip(wanted, values, strict=True)}


class _Index(NamedTuple):
    """Where each patch is, and what its payloads are; a row is one of the export's table."""

    rows: Mapping[str, int]
    sums: Mapping[str, Sequence[int]]
    modalities: Sequence[Modality]
    step: int

    def compare(self, folder: str, patch_id: str, payloads: Mapping[str, bytes]) -> None:
        """Refuse payloads that are not those of the table; raises ChecksumError."""
        for name, payload in payloads.items():
            if xxhash.xxh3_64_intdigest(payload) != self.sums[name][self.rows[patch_id]]:
                raise ChecksumError(
                    f"{folder}: the {name} of {patch_id} is not what was exported; export again"
                )


def compare_exported(folder: str, patch_id: str, payloads: Mapping[str, bytes]) -> None:
    """Compare payloads of an LMDB with what an export says of them, where an export has written the folder.

    Args:
        folder: Of the LMDB.
        patch_id: Whose they are; a record that is not in the export's table is not compared.
        payloads: Modality -> payload.

    Raises:
        ChecksumError: If one is not what was exported.
        SourceError: If what the export says of itself is damaged.
    """
    version = _version(folder)
    if version is None:
        return
    index = _index(folder, version)
    known = {name: payload for name, payload in payloads.items() if name in index.sums}
    if patch_id in index.rows:
        index.compare(folder, patch_id, known)


def _version(folder: str) -> str | None:
    """The state of an export's manifest; None where there is none."""
    try:
        return file_version(Path(folder, layout.EXPORT_MANIFEST))
    except FileNotFoundError:
        return None


@lru_cache(maxsize=2)
def _index(folder: str, _version: str | None) -> _Index:
    manifest = _manifest(folder)
    modalities = manifest.schema.modalities
    sums = [layout.checksum_column(modality.name) for modality in modalities]
    table = read_patches(open_store(folder), manifest, [layout.ID, *sums])
    return _Index(
        {patch_id: row for row, patch_id in enumerate(table.column(layout.ID).to_pylist())},
        {
            modality.name: table.column(column).to_pylist()
            for modality, column in zip(modalities, sums, strict=True)
        },
        modalities,
        manifest.patches_per_file,
    )


def _manifest(folder: str) -> ExportManifest:
    try:
        text = (Path(folder) / layout.EXPORT_MANIFEST).read_bytes()
        return ExportManifest.from_bytes(text, where=folder)
    except InvalidManifestError as error:
        raise SourceError(f"{folder}/{layout.EXPORT_MANIFEST} is damaged: {error}; export again") from error


def open_export(folder: str | os.PathLike[str]) -> tuple[ExportSource, pa.Table] | None:
    """The source behind an export and its metadata; None if the folder is none, or one that `sources.lmdb` reads.

    Raises:
        SourceError: If what the export says of itself is damaged.
    """
    try:
        told = json.loads((Path(folder) / layout.EXPORT_MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    form = told.get("kind") if isinstance(told, dict) else None
    if form not in ("safetensors", "lmdb"):
        return None
    manifest = _manifest(os.fspath(folder))
    schema = manifest.schema
    if form == "lmdb" and schema.name == REBEN.name and not manifest.layers:
        return None
    partial = {
        name: f"a layer of that name for {layer.coverage:,} of {manifest.num_patches:,} patches"
        for name, layer in manifest.layers.items()
        if layer.kind != "array" or layer.coverage < manifest.num_patches
    }
    schema = schema.only([name for name in schema.modality_names if name not in partial])
    names, store = manifest.metadata_columns, open_store(folder)
    there = open_patches(store, manifest).schema.names
    metadata = described_metadata(read_patches(store, manifest, described_columns(there, names)), names)
    return ExportSource(os.fspath(folder), form, schema, metadata, partial), metadata.select(names)
