"""An export to files: each file against the checksum that it was written with, and nothing beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reben_cloud.checks.finding import Finding
from reben_cloud.checks.verify import Progress, Report
from reben_cloud.errors import ChecksumError
from reben_cloud.export import MANIFEST, find_damage
from reben_cloud.export.listing import MadeFile, read_listing
from reben_cloud.export.opened import ExportedFiles
from reben_cloud.files.clutter import is_clutter


def _silent(items: Iterable[Any], _total: int, _what: str) -> Iterable[Any]:
    return items


def verify_files(exported: ExportedFiles, *, quick: bool = False, progress: Progress = _silent) -> Report:
    """Look for files that are missing, damaged or foreign.

    Args:
        exported: The folder and its manifest.
        quick: Compare presence and sizes of the files of patches only.
        progress: Wraps the findings as they come.
    """
    folder, manifest = exported
    problems: list[str] = []
    made: list[MadeFile] = []
    try:
        problems += filter(None, [find_damage(folder, manifest)])
        made = list(read_listing(folder))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            found = pool.map(lambda file: file.difference(folder, whole=not quick), made)
            problems += filter(None, progress(found, len(made), "files"))
    except ChecksumError as error:
        problems.append(str(error))
    once = manifest.files
    known = {MANIFEST, *once, *(file.path for file in made)}
    for path, _, names in os.walk(folder):
        here = os.path.relpath(path, folder)
        below = [name if here == "." else f"{here}/{name}" for name in names if not is_clutter(name)]
        problems += [f"{name} is not of this export" for name in sorted({*below} - known)]
    return Report(
        url=os.fspath(folder),
        level="quick" if quick else "full",
        against=None,
        num_objects=len(known),
        num_bytes=sum(size for size, _ in once.values()) + sum(file.nbytes for file in made),
        num_patches=manifest.num_patches,
        has_checksums=True,
        problems=tuple(dict.fromkeys(problems)),
    )


def look_at_files(exported: ExportedFiles) -> Finding:
    """What `doctor` says of it, at a glance."""
    try:
        damage = find_damage(exported.folder, exported.manifest)
    except ChecksumError as error:
        damage = str(error)
    if damage:
        return Finding(
            level="problem",
            subject="root",
            detail=f"{exported.folder}: {damage}",
            advice="run the same reben-cloud export again, or copy the folder again",
        )
    what = f"an export to {exported.manifest.kind} of {exported.manifest.num_patches:,} patches"
    return Finding(level="ok", subject="root", detail=f"{exported.folder} is {what}, and not a root")
