"""What of BigEarthNet is in a folder and beside it: patch folders, archives, LMDBs, and what only looks like them.

Folders are known by what is in them, whatever they are called and however deep they are; names matter for archives,
and for folders that hold nothing of use. Nothing is read but names.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from reben_cloud.files.clutter import is_clutter
from reben_cloud.root import layout
from reben_cloud.sources import packed
from reben_cloud.sources.folders import FOLDERS, SUFFIXES, is_patch, is_v1_patch
from reben_cloud.store import Listing

logger = logging.getLogger(__name__)

Form = Literal["archive", "lmdb", "folder", "other"]
"""``other``: nothing that a root can be made of."""

FORMS: tuple[Form, ...] = ("archive", "lmdb", "folder")
"""The forms that a root can be made of; of two that hold as much, the first is taken."""

DEPTH = 5
"""Folders are searched this many levels below the one that is named."""

_PRODUCT = re.compile(r"S2[A-D]_MSIL2A_\w+_T\w{5}")
_SCENE = re.compile(r"S1[A-D]_IW_GRDH_1SDV_\w+")
_ARCHIVE = re.compile(r"\.(tar|tgz|tzst|tbz2?|txz|zst|zip|7z|rar)(\b|[a-c][a-z]$|\d{2,4}$).*", re.IGNORECASE)
_TRIES = 50


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is, or looks like, a part of BigEarthNet."""

    form: Form
    """What it is."""
    modality: str
    """``s2``, ``s1`` or ``map``; of an LMDB empty, its keys say."""
    path: str
    """Where it is."""
    why: str = ""
    """Of ``other``: why it is of no use."""
    is_ours: bool = False
    """Whether `reben_cloud` has written it, as an export."""

    def __str__(self) -> str:
        what = {"archive": "archive", "lmdb": "LMDB", "folder": "folder of patches", "other": self.why}[
            self.form
        ]
        return f"{self.path} ({what})"


def modality_named(name: str) -> tuple[str, bool] | None:
    """The modality that the name of a folder or archive stands for, and whether it is spelled out.

    Case, separators, a version and a copy's number do not matter: ``BigEarthNet-S2``, ``bigearthnet_s2-v2.0``,
    ``Reference Maps``; short are ``S2`` and ``maps``. None if it stands for none.
    """
    text = re.sub(r"[\s_.()-]+", "", name.lower())
    text = re.sub(r"(v[12]0?|copy)?\d?$", "", text) if not re.fullmatch(r".*s(entinel)?[12]", text) else text
    match = re.fullmatch(
        r"(?P<set>(re)?(bigearthnet|ben)(mm)?)?(v[12]0?)?(?P<what>s(entinel)?[12]|(?P<ref>ref(erence)?)?maps?)?",
        text,
    )
    if match is None or not text:
        return None
    what = match["what"]
    if what is None:
        # BigEarthNet-v1.0: version 1 has its Sentinel-2 patches alone under that name.
        return ("s2", True) if re.search(r"v1", name.lower()) else None
    return ("map" if what.endswith(("map", "maps")) else what[0] + what[-1]), bool(
        match["set"] or match["ref"]
    )


def survey(folder: Path) -> list[Part]:
    """Everything in `folder` and below it; symbolic links are followed, no folder is looked at twice."""
    return list(_survey(folder, DEPTH, set()))


def beside(path: Path) -> list[Part]:
    """What is beside `path` and looks, by its name, like another part of the same dataset."""
    entries = [entry for entry in _entries(path.parent, quiet=True) if entry.name != path.name]
    found = list(archives({entry.name: entry.path for entry in entries if not entry.is_dir()}))
    for entry in entries:
        if entry.is_dir() and modality_named(entry.name) is not None:
            found += _survey(entry.path, 2, set())
    return found


def at_a_url(modality: str) -> tuple[str, ...]:
    """Names under which the archive of a modality is looked for at a URL, the official one first."""
    return tuple(f"{FOLDERS[modality]}{ending}" for ending in (*packed.SUFFIXES, *packed.FIRST_PARTS))


def listed(url: str, there: Listing) -> list[Part]:
    """What is right in a folder at a URL and looks, by its name, like a part of the dataset that cannot be taken there.

    At a URL only archives are taken, and only under their official names: few web servers say what else they have.
    """
    found: list[Part] = []
    for part in archives({path: f"{url}/{path}" for path, _ in there.files if not is_clutter(path)}):
        if part.form == "archive":
            if part.path.removeprefix(f"{url}/") in at_a_url(part.modality):
                continue
            why = f"at a URL it must be called {at_a_url(part.modality)[0]}"
            found.append(replace(part, form="other", why=why))
        else:
            found.append(part)
    for path in there.folders:
        named = modality_named(path)
        if named is not None and named[1]:
            found.append(
                Part("other", named[0], f"{url}/{path}", "a folder; unpacked ones must lie on a disk")
            )
    return found


def _entries(folder: str | os.PathLike[str], *, quiet: bool) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not is_clutter(e.name)), key=lambda e: e.name)
    except (PermissionError, FileNotFoundError) as error:
        if not quiet:
            raise
        logger.warning("%s cannot be looked into (%s)", os.fspath(folder), error.strerror)
        return []


def _survey(folder: str | os.PathLike[str], depth: int, seen: set[tuple[int, int]]) -> Iterator[Part]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    is_top = depth == DEPTH
    path, entries = os.fspath(folder), _entries(folder, quiet=not is_top)
    files = {e.name: e.path for e in entries if not e.is_dir()}
    folders = {e.name: e.path for e in entries if e.is_dir()}
    is_ours = (
        layout.EXPORT_MANIFEST in files
        or layout.JOURNAL in folders
        or (layout.MANIFEST in files and layout.SHARDS in folders)
    )
    if "data.mdb" in files:
        yield Part("lmdb", "", path, is_ours=is_ours)
    if is_ours and not is_top:
        return
    yield from archives(files)
    yield from _loose(path, files)
    here = list(_patches(path, folders))
    yield from here
    below = [
        part
        for name, where in folders.items()
        if depth and not _is_data(name)
        for part in _survey(where, depth - 1, seen)
    ]
    yield from below
    if here or below:
        return
    named = modality_named(Path(path).name)
    if named is not None and named[1]:
        why = "empty" if not entries else "no patches of BigEarthNet v2 in it"
        yield Part("other", named[0], path, why)


def _is_data(name: str) -> bool:
    """Whether a folder holds pixels and no folders of folders: a product, a scene, a patch, a Zarr store."""
    return (
        bool(_PRODUCT.match(name) or _SCENE.match(name))
        or is_v1_patch(name)
        or name.endswith((".SAFE", layout.ZARR_SUFFIX))
    )


def archives(files: Mapping[str, str]) -> Iterator[Part]:
    """The archives among the files of a folder, by their names; one in parts is one archive, at its first part.

    Args:
        files: Name -> path.
    """
    parts = {name: found for name in files if (found := packed.part_of(name)) is not None}
    first: dict[str, str] = {}
    for stem, part in parts.values():
        first[stem] = min(part, first.get(stem, part))
    for name, path in files.items():
        stem, part = parts.get(name, ("", ""))
        if stem and part != first[stem] and packed.is_first(first[stem]):
            continue
        if (one := archive(name, path)) is not None:
            yield one


def archive(name: str, path: str) -> Part | None:
    """The archive that a file is by its name, None if it is another file."""
    ending = _ARCHIVE.search(name)
    named = modality_named(name[: ending.start()]) if ending else None
    if ending is None or named is None:
        return None
    if "v1" in name.lower():
        return Part("other", named[0], path, "an archive of BigEarthNet v1")
    part = packed.part_of(name)
    if packed.is_whole(ending[0]) or (part is not None and packed.is_first(part[1])):
        return Part("archive", named[0], path)
    if part is not None:
        return Part("other", named[0], path, "a later part of an archive, which is read from its first")
    return Part(
        "other", named[0], path, "an archive in another form than .tar.zst or .tar.gz, or a part of one"
    )


def _loose(path: str, files: dict[str, str]) -> Iterator[Part]:
    """TIFFs of patches in a folder that is not their patch's."""
    folder, found = Path(path).name, dict[str, tuple[str, int]]()
    for name in files:
        stem, ending = os.path.splitext(name)
        patch, _, part = stem.removesuffix("_reference_map").rpartition("_")
        if stem.endswith("_reference_map"):
            patch, part = stem.removesuffix("_reference_map"), "map"
        if ending.lower() not in SUFFIXES or patch == folder:
            continue
        for modality in ("s1", "s2"):
            if is_patch(modality, patch):
                key = "map" if part == "map" else modality
                found[key] = found.get(key, (name, 0))[0], found.get(key, (name, 0))[1] + 1
    for modality, (name, count) in found.items():
        yield Part(
            "other", modality, path, f"{count:,} TIFFs without a folder for each patch, the first is {name}"
        )


def _patches(path: str, folders: dict[str, str]) -> Iterator[Part]:
    """The modalities whose patches, or products of patches, are directly in a folder."""
    v1 = [name for name in folders if is_v1_patch(name)]
    if v1:
        yield Part("other", "s2", path, f"{len(v1):,} patches of BigEarthNet v1, the first is {v1[0]}")
    scenes = {n: p for n, p in folders.items() if _SCENE.match(n) and not n.endswith(".SAFE")}
    products = {n: p for n, p in folders.items() if _PRODUCT.match(n) and not n.endswith(".SAFE")}
    for sensor, groups in (("s1", scenes), ("s2", products)):
        if not groups:
            continue
        kinds = _kinds(sensor, groups)
        for modality in sorted(kinds):
            yield Part("folder", modality, path)
        if not kinds:
            named = modality_named(Path(path).name)
            modality = named[0] if named else sensor
            yield Part("other", modality, path, f"{len(groups):,} folders of patches without TIFFs")


def _kinds(sensor: str, groups: dict[str, str]) -> set[str]:
    """What the TIFFs of the first patches are, by their names; bands and maps may share their folders."""
    for tried, patch in enumerate(_patch_paths(sensor, groups)):
        kinds = set()
        for entry in _entries(patch, quiet=True):
            stem, ending = os.path.splitext(entry.name)
            if ending.lower() in SUFFIXES:
                kinds.add("map" if stem.endswith("_reference_map") else sensor)
        if kinds or tried > _TRIES:
            return kinds
    return set()


def _patch_paths(sensor: str, groups: dict[str, str]) -> Iterator[str]:
    for name, path in groups.items():
        if is_patch(sensor, name):
            yield path
        else:
            yield from (e.path for e in _entries(path, quiet=True) if e.is_dir() and is_patch(sensor, e.name))


def describe(parts: Sequence[Part]) -> str:
    """Parts in words, at most three of them."""
    texts = list(dict.fromkeys(map(str, parts)))  # an LMDB is a part for each modality that it has
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more
