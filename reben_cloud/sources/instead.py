"""What is at a path or URL where no root is: said in words, with the command that goes on from there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import RebenError, StorageError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.root import layout
from reben_cloud.schema import did_you_mean
from reben_cloud.sources import survey
from reben_cloud.store import Store

_FOLDERS = 200
"""Folders that are looked into for a root, at most."""

_SHOWN = 3


def instead(store: Store) -> str:
    """Why no dataset can be opened at a store's URL, what is there instead, and what to do about it.

    Nothing but names is read; what may not be listed is passed over.
    """
    folder = store.local_path()
    where = str(store.url if folder is None else folder)
    return f"{where} {_local(folder) if folder is not None else _remote(store)}"


def _local(path: Path) -> str:
    if not path.exists():
        near = _similar(path.name, _names(path.parent))
        return f"does not exist, so no dataset is published there{near}"
    if path.is_file():
        return _file(path)
    if (
        root := next((p for p in islice(path.parents, 3) if (p / layout.MANIFEST).is_file()), None)
    ) is not None:
        return f"is a part of the root {root}; name the root"
    if (path / layout.LAYER_MANIFEST).is_file():
        return _LAYER
    if (path / layout.JOURNAL).is_dir():
        return _UNFINISHED
    if roots := [os.fspath(folder) for folder in _below(path) if (folder / layout.MANIFEST).is_file()]:
        return _contains(roots)
    try:
        parts = survey.survey(path)
    except (RebenError, OSError):
        parts = []
    if held := [part for part in parts if part.form != "other"]:
        return _source(path, held)
    if any(name.endswith(".SAFE") for name in _names(path)):
        return (
            f"holds Sentinel products (.SAFE): `reben-cloud prepare --s2 {path} ...` cuts them into patches"
        )
    if not any(path.iterdir()):
        return f"is an empty folder, so no dataset is published there; {_CHECK}"
    near = f"; there is {survey.describe(parts)}" if parts else ""
    return f"{_NOTHING}{near}; {_CHECK}"


def _remote(store: Store) -> str:
    try:
        there = store.list_folder() if store.lists else None
    except StorageError:  # what anybody may read, nobody may list
        there = None
    if there is None:
        return f"{_NOTHING}; {_CHECK}"
    names = [folder.rstrip("/") for folder in there.folders]
    files = [path for path, _ in there.files]
    if layout.LAYER_MANIFEST in files:
        return _LAYER
    if layout.JOURNAL in names:
        return _UNFINISHED
    roots = [f"{store.url}/{name}" for name in names[:20] if store.exists(f"{name}/{layout.MANIFEST}")]
    if roots:
        return _contains(roots)
    archives = survey.archives({name: f"{store.url}/{name}" for name in files})
    if held := [part for part in archives if part.form == "archive"]:
        return f"holds {survey.describe(held)}: {_build(store.url)}"
    if not files and not names:
        parent, name = store.parent()
        near = _similar(name, _listed(parent)) or f"; {_CHECK}"
        return f"has nothing in it, so no dataset is published there{near}"
    return f"{_NOTHING}, but {_some(files + [f'{name}/' for name in names])}; {_CHECK}"


_CHECK = "check the path or URL"
_NOTHING = f"has no {layout.MANIFEST}, so no dataset is published there"
_UNFINISHED = (
    f"has no {layout.MANIFEST}, so no dataset is published there: its build is not finished; run the same "
    "`reben-cloud build` again, and it goes on where it was"
)
_LAYER = "is a layer: open its root, with the layer beside it (rc.open(ROOT, layers=[...]) or --layer)"


def _contains(roots: list[str]) -> str:
    """What to say of a folder in which roots are."""
    first = roots[0]
    if len(roots) == 1:
        return f"is not a root itself, but has one in it: `reben-cloud info {first}`"
    return f"is not a root itself, but has {len(roots)} in it, {_some(roots)}: `reben-cloud info {first}`"


def _source(path: Path, parts: list[survey.Part]) -> str:
    """What to say of a folder that a root can be made of, or an LMDB opened in."""
    if (lmdb := next((part for part in parts if part.form == "lmdb"), None)) is not None:
        if Path(lmdb.path) != path:
            return f"has an LMDB in it: `reben-cloud info {lmdb.path}`"
        return f"is an LMDB: {_build(path)}"
    held = {part.modality for part in parts}
    modalities = ", ".join(m for m in REBEN.modality_names if m in held)
    kind = "archives" if parts[0].form == "archive" else "GeoTIFFs"
    beside = {part.modality for part in survey.beside(path) if part.form == parts[0].form} - held
    # One of the official folders alone is rarely what is meant to be built.
    source = path.parent if beside and len(held) == 1 else path
    return f"holds the official {kind} ({modalities}): {_build(source)}"


def _build(source: str | Path) -> str:
    return f"`reben-cloud build {source} ROOT` makes a root of it"


def _file(path: Path) -> str:
    if path.name in (layout.MANIFEST, layout.PATCHES, "data.mdb"):
        return f"is one file of a dataset: name its folder, {path.parent}"
    if (part := survey.archive(path.name, os.fspath(path))) is not None and part.form == "archive":
        return f"is an archive: {_build(path.parent)}"
    if path.suffix in (".parquet", ".csv"):
        return (
            "is a table and not a dataset; a table about patches is opened beside a root (--layer; layers=[...] in "
            "Python)"
        )
    return f"is a file, and a dataset is a folder; {_CHECK}"


def _below(path: Path) -> Iterator[Path]:
    """Folders in a folder and in these, as many as are looked into."""

    def two_levels() -> Iterator[Path]:
        first = [path / name for name in _names(path) if (path / name).is_dir()]
        yield from first
        for folder in first:
            yield from (folder / name for name in _names(folder) if (folder / name).is_dir())

    return islice(two_levels(), _FOLDERS)


def _names(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if it cannot be looked into."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_clutter(name))
    except OSError:
        return []


def _listed(store: Store) -> list[str]:
    try:
        return [folder.rstrip("/") for folder in store.list_folder().folders]
    except (StorageError, ValueError):
        return []


def _similar(name: str, names: Iterable[str]) -> str:
    hint = did_you_mean(name, names, cutoff=0.6)
    return f"; {hint}" if hint else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
