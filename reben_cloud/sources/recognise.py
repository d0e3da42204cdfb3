"""What a SOURCE argument is: archives, folders, an LMDB, a root, a synthetic set; with its metadata."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pyarrow as pa

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA, joined_official
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import MissingExtraError, SourceError, StorageError, UnreachableError
from reben_cloud.files.scratch import private_scratch
from reben_cloud.root.source import AnySource, Incomplete, StreamedSource
from reben_cloud.schema import check_names
from reben_cloud.sources.survey import Part
from reben_cloud.sources.tables import OFFICIAL_METADATA as OFFICIAL_METADATA
from reben_cloud.sources.tables import read_metadata
from reben_cloud.store import Store, open_store

if TYPE_CHECKING:
    from reben_cloud.sources.exports import ExportSource
    from reben_cloud.sources.folders import FolderSource
    from reben_cloud.sources.roots import RootSource

logger = logging.getLogger(__name__)

SYNTHETIC = "synthetic:"
"""Prefix of a made-up source: ``synthetic:5000`` is 5,000 synthetic patches."""


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    metadata_paths: Sequence[str | os.PathLike[str]] = (),
    modalities: Sequence[str] | None = None,
    incomplete: Incomplete = "refuse",
    storage_options: Mapping[str, object] | None = None,
) -> tuple[AnySource, pa.Table]:
    """The source behind a path or URL, or behind several, and the official metadata that goes with it.

    Args:
        source: A folder (or an ``s3://`` or ``http(s)://`` prefix) with the official archives; one
            archive; a root; the folder of an export; a folder that `prepare` wrote; a folder with a rico-hdl LMDB
            or the official GeoTIFF folders at or below it; or ``synthetic:N``. Several become one source
            (`sources.merged`).
        metadata_paths: The metadata parquet files; by default those found in or beside `source`, and of a root, an
            export or what `prepare` wrote its own.
        modalities: What is wanted of ``s2``, ``s1`` and ``map``; by default all that is there.
        incomplete: ``"skip"`` if files may lack: then each folder is looked into, and archives are read once more.
        storage_options: Credentials and endpoint of a URL, as in `store.open_store`.

    Returns:
        The source and its metadata in the official schema, sorted by ``patch_id``; the metadata
        may have rows that the source lacks. Where no modalities are named and something is near the
        source that looks like one it lacks, `make_plan` refuses until it is told what is wanted.

    Raises:
        ValueError: If a modality or the way with incomplete patches is unknown, or no source is named.
        SourceError: If nothing known is there, a modality that is wanted is not, a modality is there twice, or no
            metadata is found.
    """
    check_names([incomplete], get_args(Incomplete), "way with incomplete patches")
    places = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not places:
        raise ValueError("no source is named")
    if len(places) == 1:
        found, table, store = _open_one(places[0], metadata_paths, modalities, storage_options)
        # A synthetic source has no store, and has looked at the files that are named.
        if store is not None and (table is None or metadata_paths):
            table = read_metadata([store], metadata_paths)
        assert table is not None
        return _as_told(found, incomplete), table
    from reben_cloud.sources.merged import merge

    opened = [_open_one(place, metadata_paths, None, storage_options) for place in places]
    merged = merge(
        [_as_told(found, incomplete) for found, _, _ in opened],
        only=REBEN.only(modalities or ()).modality_names,
    )
    stores = [store for _, table, store in opened if table is None and store is not None]
    tables = (
        [] if metadata_paths else [table.select(OFFICIAL_SCHEMA.names) for _, table, _ in opened if table]
    )
    if not tables or metadata_paths:
        return merged, read_metadata(stores, metadata_paths)
    return merged, joined_official(tables)


def _as_told(source: AnySource, incomplete: Incomplete) -> AnySource:
    """A source, told to look whether files lack."""
    from reben_cloud.sources.archives import ArchiveSource
    from reben_cloud.sources.folders import FolderSource

    if incomplete == "skip" and isinstance(source, ArchiveSource | FolderSource):
        return replace(source, is_partial=True)
    return source


def _open_one(
    source: str | os.PathLike[str],
    metadata_paths: Sequence[str | os.PathLike[str]],
    modalities: Sequence[str] | None,
    storage_options: Mapping[str, object] | None,
) -> tuple[AnySource, pa.Table | None, Store | None]:
    """What is behind one path or URL, the metadata that it has itself, and where it is."""
    text = os.fspath(source)
    store = None if text.startswith(SYNTHETIC) else open_store(text, storage_options)
    if store is not None and (store.local_path() is None or os.path.isdir(store.local_path() or "")):
        from reben_cloud.sources.exports import open_export
        from reben_cloud.sources.prepared import open_prepared
        from reben_cloud.sources.roots import open_root

        ours: tuple[RootSource | ExportSource | FolderSource, pa.Table] | None = open_root(store)
        if ours is None and (folder := store.local_path()) is not None:
            ours = open_export(folder) or open_prepared(folder)
        if ours is not None:
            has = ours[0].schema.modality_names
            if lacking := [m for m in modalities or () if m not in has]:
                raise _lacks(ours[0].describe(), lacking, has)
            return replace(ours[0], schema=ours[0].schema.only(modalities or has)), ours[1], store
    only = REBEN.only(modalities or ()).modality_names
    if text.startswith(SYNTHETIC):
        from reben_cloud.sources.synthetic import SyntheticSource, synthetic_metadata

        number = text.removeprefix(SYNTHETIC)
        if not number.isdigit() or int(number) < 1:
            raise SourceError(f"{text}: write synthetic:N with N patches, N at least 1")
        rows = synthetic_metadata(int(number), metadata_paths)
        return SyntheticSource(rows.num_rows, only or REBEN.modality_names), rows, None
    assert store is not None
    folder = store.local_path()
    found = None if folder is not None else _find_remote(store, only)
    if found is None and folder is not None:
        found = _find_local(folder, only)
    if found is None:
        raise SourceError(
            f"{store.url}: no root, no archives (BigEarthNet-S2.tar.zst, ...) and no LMDB (data.mdb) there; "
            "unpacked folders must lie on a disk"
        )
    return found, None, store


def open_modality(
    source: str | os.PathLike[str], modality: str, *, storage_options: Mapping[str, object] | None = None
) -> AnySource:
    """What holds one modality of the official data at a path or URL; no metadata are looked for.

    Args:
        source: A folder or prefix with the official archive, the archive, the official folder of GeoTIFFs, or an LMDB.
        modality: Its name.
        storage_options: Credentials and endpoint of a URL, as in `store.open_store`.

    Raises:
        SourceError: If it is not there.
    """
    store = open_store(os.fspath(source), storage_options)
    folder = store.local_path()
    found = _find_remote(store, (modality,)) if folder is None else _find_local(folder, (modality,))
    if found is None:
        from reben_cloud.sources.archives import ARCHIVES

        raise SourceError(f"{store.url}: no {ARCHIVES[modality]} there; unpacked folders must lie on a disk")
    return found


def default_scratch(source: AnySource) -> Path | None:
    """A scratch folder for a source that cannot do without one, None for the others."""
    return private_scratch() if isinstance(source, StreamedSource) else None


def _lacks(where: str, lacking: Sequence[str], has: Iterable[str], near: str = "") -> SourceError:
    return SourceError(f"{where} has no {' and no '.join(lacking)}; it has {', '.join(has)}{near}")


def _find_remote(store: Store, only: tuple[str, ...]) -> AnySource | None:
    """The archives at a URL, or the one that it is itself; None if nothing there looks like one."""
    from reben_cloud.sources import survey
    from reben_cloud.sources.archives import ArchiveSource

    parent, name = store.parent()
    is_archive = any(name in survey.at_a_url(modality) for modality in REBEN.modality_names)
    place = parent if is_archive else store
    there = {}
    for modality in REBEN.modality_names:
        names = survey.at_a_url(modality)
        named = [name] if name in names else []
        if archive := next((one for one in [*named, *names] if place.exists(one)), None):
            there[modality] = archive
    held = {m: archive for m, archive in there.items() if archive == name or not is_archive}
    near = {m: f"{place.url}/{archive}" for m, archive in there.items() if m not in held}
    unknown = [m for m in only or REBEN.modality_names if m not in there]
    parts = _listed(place) if unknown else []
    near |= {
        m: survey.describe(same) for m in unknown if (same := [part for part in parts if part.modality == m])
    }
    if not held:
        itself = None if is_archive else survey.archive(name, store.url)
        if itself is not None and itself.form == "archive":
            raise SourceError(
                f"{store.url}: no archive is read from a URL under this name; call it "
                f"{survey.at_a_url(itself.modality)[0]}"
            )
        if near:
            raise SourceError(
                f"{store.url}: no archive there can be taken; there is {', '.join(near.values())}"
            )
        return None
    if lacking := [m for m in only if m not in held]:
        what = "".join(f"; {near[m]} cannot be taken together with it" for m in lacking if m in near)
        raise _lacks(store.url, lacking, held, what)
    return ArchiveSource({m: (place, held[m]) for m in only or held}, {} if only else near)


def _listed(place: Store) -> list[Part]:
    """What at a URL only looks like a part of the dataset, as far as the store says what it has."""
    from reben_cloud.sources import survey

    if not place.lists:
        return []
    try:
        return survey.listed(place.url, place.list_folder())
    except UnreachableError:
        raise
    except StorageError as error:  # objects that anybody may read often lie where nobody may list
        logger.warning("what else is there is not known: %s", error)
        return []


def _find_local(path: Path, only: tuple[str, ...]) -> AnySource:
    """What there is on a disk: the form that has most of what is wanted; of two that have as much, archives first."""
    from reben_cloud.sources import survey
    from reben_cloud.sources.archives import ArchiveSource
    from reben_cloud.sources.folders import FolderSource

    if not path.exists():
        raise SourceError(
            f"{path}: no such folder; a source is a folder, an s3:// or http(s):// URL, or synthetic:N"
        )
    parts = _parts_of(
        survey.survey(path) if path.is_dir() else [survey.archive(path.name, os.fspath(path))], path
    )
    held = {form: {part.modality for part in parts if part.form == form} for form in survey.FORMS}
    form = max(survey.FORMS, key=lambda form: len(held[form].intersection(only or REBEN.modality_names)))
    wanted = held[form].intersection(only or REBEN.modality_names)
    if not wanted:
        raise SourceError(_nothing(path, parts, only))
    taken: dict[str, str] = {}
    for part in parts:
        if (
            part.form == form
            and part.modality in wanted
            and taken.setdefault(part.modality, part.path) != part.path
        ):
            raise SourceError(
                f"{path}: {part.modality} is there twice, in {taken[part.modality]} and in {part.path}; a source has "
                "each modality once: name the folder that has the right one, or move the other away"
            )
    if os.fspath(path) in taken.values():
        # Of a folder of patches, an archive or an LMDB that is named itself, what is beside it counts as well.
        parts += [p for p in _parts_of(survey.beside(path), path) if p.modality not in held[form]]
    near = {
        m: survey.describe([part for part in parts if part.modality == m])
        for m in REBEN.modality_names
        if m not in held[form] and any(part.modality == m for part in parts)
    }
    if lacking := [m for m in only if m not in taken]:
        what = "".join(f"; {near[m]} cannot be taken together with it" for m in lacking if m in near)
        raise _lacks(os.fspath(path), lacking, sorted(held[form]), what)
    others = [p for p in parts if p.modality in taken and p.path != taken[p.modality]]
    if others:
        logger.warning(
            "not taken: %s; what it looks like is taken from %s",
            survey.describe(others),
            ", ".join(sorted(set(taken.values()))),
        )
    left_out = {} if only else near
    if form == "lmdb":
        from reben_cloud.sources.lmdb import LmdbSource

        return LmdbSource(next(iter(taken.values())), only, left_out)
    if form == "folder":
        return FolderSource({m: (place,) for m, place in taken.items()}, left_out)
    files = {m: (open_store(os.path.dirname(place)), os.path.basename(place)) for m, place in taken.items()}
    return ArchiveSource(files, left_out)


def _parts_of(found: Iterable[Part | None], path: Path) -> list[Part]:
    """The parts that were found; an LMDB as one for each modality that it has."""
    parts = [part for part in found if part is not None]
    # An export below a source is what was made from it, unless there is nothing else.
    parts = [part for part in parts if not part.is_ours] or parts
    lmdbs = [part for part in parts if part.form == "lmdb"]
    others = [part for part in parts if part.form != "lmdb"]
    if not lmdbs:
        return others
    if len(lmdbs) > 1:
        raise SourceError(
            f"{path} holds several LMDB folders; name those that belong together, as in `reben-cloud build A B ROOT`: "
            f"{', '.join(p.path for p in lmdbs)}"
        )
    try:
        from reben_cloud.sources import lmdb
    except MissingExtraError:
        if not others:
            raise
        return others
    held = lmdb.modalities_of(lmdbs[0].path)
    if not held and not others:
        lmdb.LmdbSource(lmdbs[0].path).names()  # says what it has instead
    return others + [replace(lmdbs[0], modality=modality) for modality in held]


def _nothing(path: Path, parts: Sequence[Part], only: Sequence[str]) -> str:
    from reben_cloud.sources import survey

    if only and any(part.form != "other" for part in parts):
        return f"{path} has no {' and no '.join(only)}; it has {survey.describe(parts)}"
    there = f"nothing known in it but {survey.describe(parts)}" if parts else "nothing known in it"
    return (
        f"{path}: {there}; a source has the official archives (BigEarthNet-S2.tar.zst, ...), the "
        "folders BigEarthNet-S2, BigEarthNet-S1, Reference_Maps, a rico-hdl LMDB (data.mdb), or is a root"
    )
