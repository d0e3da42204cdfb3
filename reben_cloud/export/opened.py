"""A local LMDB opened like a root: an export with its own tables, or rico-hdl's with the metadata beside it.

An export has the root's order in its ``patches.parquet``. For any other LMDB the tables are those of
the root that a build would make from it. In both cases a search finds the same patches, and a loader
gives the same batches, as with the root.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from reben_cloud.build import MANIFEST, make_plan, not_taken, rows_without_patches_text
from reben_cloud.build.plan import BuildPlan, manifest_of
from reben_cloud.errors import NotFoundError
from reben_cloud.export import MANIFEST as EXPORT
from reben_cloud.export.plan import read_manifest
from reben_cloud.files.paths import local_path, split_scheme
from reben_cloud.root.backing import LmdbFolder
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layout import ASSETS, PATCHES
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.patches import patches_table
from reben_cloud.root.patches_file import write_patches
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import Stat, Store, open_store
from reben_cloud.wording import size_text, wrapped

logger = logging.getLogger(__name__)

SCHEME = "lmdb://"
"""Prefix of a URL that can only be an LMDB."""


class LmdbRoot(NamedTuple):
    """What `reben_cloud.open` needs of an LMDB."""

    store: Store
    """Where ``patches.parquet`` is read from."""
    manifest: Manifest
    """In a root's words."""
    backing: LmdbFolder
    """The folder with ``data.mdb``."""


def find_lmdb_root(url: str | os.PathLike[str]) -> LmdbRoot | None:
    """The LMDB at a path or URL; None when it is a root, or no folder of this machine.

    Raises:
        NotFoundError: If ``lmdb://`` names a folder without an LMDB, or an export to another format.
        SourceError: If an LMDB has no metadata beside it, or not the one of its patches, or an export's
            manifest is damaged.
        RebenError: If a newer version has exported it.
    """
    text = os.fspath(url)
    named = text.startswith(SCHEME)
    folder = _local_folder(text.removeprefix(SCHEME) if named else text)
    if folder is None or (folder / MANIFEST).exists():
        if named:
            raise NotFoundError(f"{text} is not a folder with an LMDB")
        return None
    if is_export(folder):
        return _open_export(folder)
    # Not searched any deeper: what is opened is most often a folder of a million files, half built.
    found = sorted(file.parent for pattern in ("data.mdb", "*/data.mdb") for file in folder.glob(pattern))
    found = [lmdb for lmdb in found if not is_export(lmdb)]  # opened by its own name only
    if found:
        made = MadeRoot(str(folder))
        backing = LmdbFolder(path=str(found[0]), compute_former=made.compute_former_fingerprint)
        return LmdbRoot(made, made.manifest, backing)
    if named:
        raise NotFoundError(f"{text}: no LMDB (data.mdb) in that folder")
    return None


class ExportedFiles(NamedTuple):
    """The folder of an export that is not opened like a root: pictures, GeoTIFFs, texts, safetensors."""

    folder: Path
    """The folder."""
    manifest: ExportManifest
    """What it says of itself."""

    def summary(self) -> str:
        """A few lines for people."""
        said = self.manifest
        whole = sum(group.num_samples for group in said.groups.values())
        of = f"{said.num_patches:,} of the {whole:,} patches of root {said.fingerprint}"
        rows = [("modalities", ", ".join(said.modalities)), *(("layer", text) for text in said.layer_lines())]
        for title, count in (("texts", said.num_texts), ("files", said.num_files)):
            if count is not None:
                rows.append((title, f"{count:,}"))
        rows.append(("data", size_text(said.nbytes)))
        for name, value in said.settings.items():
            text = ", ".join(value) if isinstance(value, dict) else str(value)
            if value is not None and name != "templates":
                rows.append((name.replace("_", " "), text))
        return "\n".join([f"{self.folder}: an export to {said.kind} of {of}", *wrapped(rows)])


def find_exported_files(url: str | os.PathLike[str]) -> ExportedFiles | None:
    """The export at a path or URL that is not opened like a root; None when it is something else.

    Raises:
        SourceError: If the manifest of an export is damaged.
        RebenError: If a newer version has exported it.
    """
    text = os.fspath(url)
    folder = None if text.startswith(SCHEME) else _local_folder(text)
    if folder is None or (folder / MANIFEST).exists() or not is_export(folder):
        return None
    manifest = read_manifest(folder)
    return None if manifest.kind == "lmdb" else ExportedFiles(folder, manifest)


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is an export, which knows the checksums of its payloads."""
    return (Path(folder) / EXPORT).exists()


def _local_folder(text: str) -> Path | None:
    return local_path(text).absolute() if split_scheme(text)[0] in (None, "file") else None


def _open_export(folder: Path) -> LmdbRoot:
    manifest = read_manifest(folder)
    if manifest.kind != "lmdb":
        raise NotFoundError(
            f"{folder} is an export to {manifest.kind}, which is not searched or streamed; `reben-cloud info` "
            f"says what is in it{_way_back(manifest)}"
        )
    return LmdbRoot(open_store(folder), manifest, LmdbFolder(path=str(folder)))


def _way_back(manifest: ExportManifest) -> str:
    has_pixels = manifest.kind == "safetensors" or manifest.settings.get("per") == "band"
    return ", and `reben-cloud build` makes a root of it" if has_pixels else ""


class MadeRoot(Store):
    """A folder with an LMDB that behaves as if ``patches.parquet`` lay in it.

    Made again in another process: seconds for the whole dataset, and nothing is written.
    """

    def __init__(self, folder: str, storage_options: Mapping[str, object] | None = None) -> None:
        super().__init__(open_store(folder).url if "://" not in folder else folder, storage_options or {})

    @cached_property
    def _plan(self) -> BuildPlan:
        source, official = open_source(self.local_path() or "")
        plan = make_plan(source, official, open_store("memory://lmdb-root"))
        for text in (not_taken(plan, official), rows_without_patches_text(plan, official, is_written=False)):
            if text:
                logger.warning("%s: %s", self.url, text)
        # By its method and not its class, whose module needs the package lmdb: `build` asks here about every source.
        spelled_here: Callable[[pa.Table], pa.Table] | None = getattr(source, "spelled_here", None)
        if spelled_here is None:
            return plan
        return replace(plan, table=spelled_here(plan.table))  # records are found by these names

    @cached_property
    def _patches(self) -> memoryview:
        plan = self._plan
        table = patches_table(plan.table, plan.schema, plan.placement)
        there = [name for name in table.column_names if name != ASSETS]  # which would name Zarr stores
        return memoryview(write_patches(table.select(there), plan.schema))

    @property
    def manifest(self) -> Manifest:
        """The manifest of the root that a build would make."""
        return manifest_of(self._plan)

    def compute_former_fingerprint(self) -> str:
        """What the first version called this dataset, which streams and their states depend on.

        It hashed the bytes of a parquet file, so it is what that version said only where pyarrow is the same.
        """
        plan, table = self._plan, io.BytesIO()
        given = plan.table.select(list(plan.given)).replace_schema_metadata().combine_chunks()
        pq.write_table(given, table, compression="none")
        digest = hashlib.sha256(table.getbuffer())
        digest.update(repr((1, plan.modalities, plan.options)).encode())
        return digest.hexdigest()[:16]

    def stat(self, path: str) -> Stat:
        """As `Store.stat`."""
        if path != PATCHES:
            return super().stat(path)
        return Stat(self._patches.nbytes, self._plan.fingerprint)

    def get(self, path: str, *, version: str | None = None) -> memoryview:
        """As `Store.get`."""
        return self._patches if path == PATCHES else super().get(path, version=version)

    def get_range(self, path: str, start: int, length: int, *, version: str | None = None) -> memoryview:
        """As `Store.get_range`."""
        if path != PATCHES:
            return super().get_range(path, start, length, version=version)
        return self._patches[start : start + length]

    def get_ranges(
        self, path: str, starts: Sequence[int], lengths: Sequence[int], *, version: str | None = None
    ) -> list[memoryview]:
        """As `Store.get_ranges`."""
        if path != PATCHES:
            return super().get_ranges(path, starts, lengths, version=version)
        return [self._patches[s : s + n] for s, n in zip(starts, lengths, strict=True)]
