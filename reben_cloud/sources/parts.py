"""The files of an export to safetensors as a source."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.formats import safetensors
from reben_cloud.root import layout
from reben_cloud.root.documents import read_patches
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.manifest import InvalidManifestError
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.sources import Official
from reben_cloud.store import file_version, open_store


@dataclass(frozen=True, slots=True)
class SafetensorsSource(Official):
    """The patches of a folder that an export to safetensors wrote."""

    folder: str
    """The folder with the part files."""
    only: tuple[str, ...] = ()
    """Modalities to look at; all when empty."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Nothing: what an export lacks is not near it."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "safetensors files"

    def describe(self) -> str:
        """One line for people."""
        return f"safetensors files {self.folder}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality: every patch has all of them."""
        index = _index(self.folder)
        ids = list(index.rows)
        modalities = [m for m in index.modalities if not self.only or m in self.only]
        by_column = {"patch_id": ids, "s1_name": [index.s1_names[i] for i in ids]}
        return {m: by_column[REBEN.modality(m).key_column] for m in modalities}

    def identity(self) -> Mapping[str, str]:
        """Sizes and times of the part files and of what says which patch is where."""
        files = sorted(file for file in Path(self.folder).iterdir() if file.is_file())
        return {file.name: file_version(file) for file in files}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: a part file holds many patches."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, put together from its arrays.

        Raises:
            NotFoundError: If the patch is not there.
        """
        index = _index(self.folder)
        if info.patch_id not in index.rows:
            raise NotFoundError(f"{self.folder} has no patch {info.patch_id}")
        number, row = divmod(index.rows[info.patch_id], index.step)
        count = min(index.step, len(index.rows) - number * index.step)
        there = [REBEN.modality(name) for name in index.modalities]
        found = safetensors.read_part(self.folder, there, number=number, count=count, row=row)
        payloads = {name: found[name] for name in modalities}
        return Patch(info=info, payloads=payloads)


class _Index(NamedTuple):
    rows: Mapping[str, int]
    s1_names: Mapping[str, str]
    modalities: tuple[str, ...]
    step: int


@lru_cache(maxsize=2)
def _index(folder: str) -> _Index:
    try:
        text = (Path(folder) / layout.EXPORT_MANIFEST).read_bytes()
        manifest = ExportManifest.from_bytes(text, where=folder)
    except InvalidManifestError as error:
        raise SourceError(f"{folder}/{layout.EXPORT_MANIFEST} is damaged: {error}; export again") from error
    table = read_patches(open_store(folder), manifest, [layout.ID, layout.column("s1_name")])
    ids = table.column(layout.ID).to_pylist()
    return _Index(
        {patch_id: row for row, patch_id in enumerate(ids)},
        dict(zip(ids, table.column(layout.column("s1_name")).to_pylist(), strict=True)),
        manifest.modalities,
        manifest.patches_per_file,
    )


def is_safetensors(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` holds an export to safetensors."""
    try:
        manifest = json.loads((Path(folder) / layout.EXPORT_MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == "safetensors"
