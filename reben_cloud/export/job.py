"""What an export has to do: which patches a folder is to hold, and what of that is there already."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reben_cloud.errors import ConflictError, NotFoundError
from reben_cloud.export.folder import find_damage, put_in_place, write_manifest, write_tables
from reben_cloud.export.plan import (
    existing,
    identity_of,
    layers_of,
    modalities_of,
    pixels_of,
    pixels_there,
    reconcile,
)
from reben_cloud.files.paths import local_path
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.selection import Selection

logger = logging.getLogger(__name__)

_WAY_OUT = (
    "export to a local folder and copy that to the store (such as `aws s3 cp --recursive`), "
    "or build a root there with `reben-cloud build`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One export."""

    path: Path
    """The folder, absolute."""
    chosen: Selection
    """Its patches, in the order of the table."""
    modalities: tuple[str, ...]
    """What of them."""
    kind: str
    """Form of the export."""
    settings: Mapping[str, object]
    """What else the bytes depend on, as JSON has it."""
    identity: str
    """Names all of this: the same name, the same bytes."""
    pixels: str
    """Names the payloads that it is made of; empty where no checksums of them are known."""
    there: ExportManifest | None
    """What an earlier export in that folder says of itself."""
    is_done: bool
    """Whether that is this one, undamaged."""
    num_added: int
    """Patches that an existing export lacked."""
    num_dropped: int
    """Patches that an existing export had, and has no longer."""

    @property
    def making(self) -> str:
        """Names what is made and of what, as no unfinished folder of a root's other pixels must be gone on with."""
        return hashlib.sha256(f"{self.identity} {self.pixels}".encode()).hexdigest()

    def finish(
        self, partial: Path, *, nbytes: int, more: Mapping[str, object] | None = None
    ) -> ExportManifest:
        """Write tables and manifest beside the finished files, and give the folder its name.

        Args:
            partial: The folder in which they were made.
            nbytes: Size of what was made of the patches.
            more: What else the form says in the manifest, as JSON has it.

        Returns:
            The manifest.
        """
        write_tables(partial, self.chosen, self.modalities)
        manifest = write_manifest(
            partial,
            self.chosen,
            self.modalities,
            kind=self.kind,
            settings=self.settings,
            identity=self.identity,
            nbytes=nbytes,
            more=more or {},
        )
        put_in_place(partial, self.path)
        return manifest


def begin(
    selection: Selection,
    path: str | os.PathLike[str],
    modalities: Sequence[str] | None,
    *,
    kind: str,
    settings: Mapping[str, object],
    update: bool,
    prune: bool,
    start: Callable[[Selection], None] | None = None,
) -> Job:
    """Decide what is to be done; nothing is written.

    Args:
        selection: What is selected.
        path: The folder.
        modalities: What of it; all by default.
        kind: Form of the export.
        settings: What else the bytes depend on, as JSON has it.
        update: Add what an existing export lacks.
        prune: Drop what is not selected from an existing export.
        start: Told the patches; of a form that is made of its own modalities, which an update does not add to.

    Raises:
        NotFoundError: If nothing is selected, or nothing would be left.
        ValueError: If a modality is not there.
        ConflictError: If `path` holds something else, or the same patches with other pixels.
    """
    path = Path(os.path.abspath(local_path(path, "the folder of an export", way_out=_WAY_OUT)))
    selection.require_patches("nothing to export")
    selection.refuse_repeats("an export")
    wanted = modalities_of(selection, modalities)
    there = existing(path, selection, kind)
    chosen, wanted, (added, dropped) = reconcile(selection, wanted, path, there, update=update, prune=prune)
    if not len(chosen):
        raise NotFoundError(
            f"nothing to export: {path} has none of the selected patches, so nothing would be left"
        )
    if start is not None:
        start(chosen)
        wanted = modalities_of(selection, modalities)
    identity = identity_of(chosen, wanted, kind, settings, layers_of(chosen, wanted))
    damage = None if there is None else find_damage(path, there)
    is_same = there is not None and there.identity == identity
    if there is not None and not is_same and not (update or prune):
        raise ConflictError(_other(path, there, settings))
    pixels = pixels_of(chosen, wanted)
    is_remade = (
        there is not None
        and is_same
        and damage is None
        and _are_others(pixels, pixels_there(path, there, wanted))
    )
    if is_remade and not (update or prune):
        raise ConflictError(
            f"{path} is an export of the same patches with other pixels: {selection.dataset.url} was made again since, "
            "or is a copy of another root; name another folder, or make it again with --update and --prune"
        )
    if damage is not None:
        logger.warning("%s is damaged and made again: %s", path, damage)
    return Job(
        path=path,
        chosen=chosen,
        modalities=wanted,
        kind=kind,
        settings=settings,
        identity=identity,
        pixels=pixels,
        there=there,
        is_done=is_same and damage is None and not is_remade,
        num_added=added,
        num_dropped=dropped,
    )


def _are_others(pixels: str, theirs: str) -> bool:
    """Whether two exports are known to be of other pixels."""
    return bool(pixels and theirs) and pixels != theirs


def _other(path: Path, there: ExportManifest, settings: Mapping[str, object]) -> str:
    before = there.settings
    differing = [
        name
        for name in sorted({*before, *settings})
        if _plain(before.get(name)) != _plain(settings.get(name))
    ]
    way_out = "add what is selected with --update, drop what is not with --prune"
    if differing:
        way_out = (
            f"it was made with another {' and '.join(differing)}: name another folder, or make it again with --update "
            "and --prune"
        )
    return (
        f"{path} holds another export of this root ({there.num_patches:,} patches, "
        f"{', '.join(there.modalities)}); {way_out}"
    )


def _plain(value: object) -> object:
    """As JSON would give it back."""
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value
