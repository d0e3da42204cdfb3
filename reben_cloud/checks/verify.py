"""Check a root or an LMDB: its objects against its own list, its forms against each other, and against a source.

A finding is a sentence that names the object or the patch; a damaged root is a report, not an
exception. What ties everything together is the xxh3-64 of each payload in ``patches.parquet``: the
Zarr stores, the shards and a source are each compared with it, hence with each other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from reben_cloud.checks.claims import check_export, check_manifest, check_root
from reben_cloud.checks.index import PatchIndex
from reben_cloud.checks.layer import look_at_layer
from reben_cloud.checks.objects import Check, check_presence, checksum_checks, listed_objects
from reben_cloud.checks.pixels import shard_checks, zarr_checks
from reben_cloud.checks.records import lmdb_files, record_checks
from reben_cloud.checks.references import check_versions, reference_checks
from reben_cloud.checks.source import source_checks
from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.export.opened import is_export
from reben_cloud.root import layout
from reben_cloud.root.backing import LmdbFolder, References, RootObjects
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layers import Layer
from reben_cloud.root.objects import Objects
from reben_cloud.root.source import AnySource
from reben_cloud.wording import counted, size_text

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps a stream of findings: the findings, how many units there are, what is done."""

Level = Literal["quick", "full", "deep"]
"""Sizes; checksums too; everything decoded and compared too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `verify` found."""

    url: str
    """The root."""
    level: Level
    """How thoroughly it was looked at."""
    against: str | None
    """The source that every patch was compared with."""
    num_objects: int
    """Objects that the root lists."""
    num_bytes: int
    """Their size."""
    num_patches: int
    """Patches of the root."""
    has_checksums: bool
    """Whether payloads have checksums to be compared with; an LMDB that is not an export has none."""
    problems: tuple[str, ...]
    """One sentence a problem, each names the object or the patch."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> str:
        """For a machine."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2)

    def to_text(self) -> str:
        """For people."""
        looked = {"quick": "presence and sizes", "full": "checksums", "deep": "checksums and every pixel"}
        what = looked[self.level]
        if self.level != "quick" and not self.has_checksums:
            what = "records and their headers; it has no checksums"
        what += f", compared with {self.against}" if self.against else ""
        verdict = "all right" if self.ok else counted(len(self.problems), "problem")
        last = (
            f"{self.url}: {counted(self.num_patches, 'patch', 'patches')} in {counted(self.num_objects, 'object')}, "
            f"{size_text(self.num_bytes)}; {what}: {verdict}"
        )
        return "\n".join([*self.problems, last])


def _silent(items: Iterable[Any], _total: int, _what: str) -> Iterable[Any]:
    return items


def verify(
    dataset: Dataset,
    *,
    quick: bool = False,
    deep: bool = False,
    against: AnySource | None = None,
    progress: Progress = _silent,
) -> Report:
    """Look for anything that is missing, damaged, foreign or mixed up.

    Args:
        dataset: The opened root, or an LMDB opened like one; layers beside it are looked at as well.
        quick: Compare presence and sizes only: one listing.
        deep: Also decode every Zarr store and shard, and compare them with the index. An LMDB has
            neither: each of its records is compared without it.
        against: Also compare every patch with this source.
        progress: Wraps the findings as they come.

    Returns:
        The report.

    Raises:
        StorageError: If the store cannot be reached.
        ValueError: If `quick` and `deep` are both wanted, or a source for an LMDB without checksums.
    """
    level = _level(quick=quick, deep=deep)
    beside, dataset = dataset.layers, dataset.without_layers()
    lmdb = dataset.backing.path if isinstance(dataset.backing, LmdbFolder) else None
    has_checksums = is_export(lmdb) if lmdb is not None else _has_checksums(dataset)
    if against is not None and not has_checksums:
        raise ValueError(
            f"{lmdb or dataset.url} has no checksums to compare a source with; build a root from it, and verify that"
        )
    seen = _look(dataset, quick=quick)
    problems = seen.problems
    checks: dict[str, list[Check]] = {}
    if not quick and lmdb is None:
        checks["checksums"] = checksum_checks(dataset.store, seen.objects)
    if not quick and isinstance(dataset.backing, References):
        try:
            checks["payloads"] = reference_checks(dataset)
        except (NotFoundError, ChecksumError) as error:
            problems.append(str(error))
    if deep or against is not None or (lmdb is not None and not quick):
        try:
            index = PatchIndex(dataset)
        except (NotFoundError, ChecksumError, KeyError) as error:
            problems.append(f"{layout.PATCHES}: cannot be read ({error}); pixels were not compared")
        else:
            if lmdb is not None and seen.readable:
                checks["records"] = record_checks(lmdb, index)
            elif isinstance(dataset.backing, RootObjects) and deep:
                checks["pixels"] = [*zarr_checks(dataset, index), *shard_checks(dataset, index)]
            if against is not None:
                checks["source"] = source_checks(index, against)
    problems += _run_all(checks, progress)
    sizes = [*seen.sizes]
    for layer in beside.values():
        looked = look_at_layer(layer, dataset, quick=quick, deep=deep)
        found = [*looked.problems, *_run_all(looked.checks, progress)]
        problems += [f"layer {layer.name}: {problem}" for problem in found]
        sizes += looked.sizes
    return Report(
        url=dataset.url,
        level=level,
        against=None if against is None else against.describe(),
        num_objects=len(sizes),
        num_bytes=sum(sizes),
        num_patches=len(dataset),
        has_checksums=has_checksums,
        problems=tuple(dict.fromkeys(problems)),
    )


def verify_layer(
    layer: Layer,
    *,
    root: Dataset | None = None,
    quick: bool = False,
    deep: bool = False,
    progress: Progress = _silent,
) -> Report:
    """Look for anything in a layer that is missing, damaged, foreign or mixed up.

    Args:
        layer: The opened layer.
        root: What it stands beside, to compare its patches, rows and statistics with.
        quick: Compare presence and sizes only: one listing.
        deep: Also decode every shard, and compare names, payloads and statistics.
        progress: Wraps the findings as they come.

    Raises:
        StorageError: If the store cannot be reached.
        ValueError: If `quick` and `deep` are both wanted.
    """
    level = _level(quick=quick, deep=deep)
    bare = None if root is None else root.without_layers()
    seen = look_at_layer(layer, bare, quick=quick, deep=deep)
    problems = [*seen.problems, *_run_all(seen.checks, progress)]
    return Report(
        url=layer.url,
        level=level,
        against=None if root is None else f"root {root.url}",
        num_objects=len(seen.sizes),
        num_bytes=sum(seen.sizes),
        num_patches=layer.manifest.coverage,
        has_checksums=True,
        problems=tuple(dict.fromkeys(problems)),
    )


def _level(*, quick: bool, deep: bool) -> Level:
    if quick and deep:
        raise ValueError("quick and deep exclude each other")
    return "quick" if quick else "deep" if deep else "full"


def _run_all(checks: Mapping[str, Sequence[Check]], progress: Progress) -> list[str]:
    """What the checks find; those of one kind at the same time, kinds one after the other."""
    problems: list[str] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for what, units in checks.items():
            for found in progress(pool.map(_run, units), len(units), what):
                problems += found
    return problems


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What a glance tells."""

    objects: Objects
    """What a root lists; an LMDB has no list."""
    sizes: Sequence[int]
    """Bytes of each object or file."""
    problems: list[str]
    """What is wrong at a glance and, unless it is a quick one, by the tables."""
    readable: bool
    """Whether payloads can be read."""


def _look(dataset: Dataset, *, quick: bool) -> _Seen:
    changed: list[str] = []
    if isinstance(dataset.backing, References):
        changed = check_versions(dataset.backing)
        if dataset.backing.finder is not None:  # opened where it lies: nobody has listed anything
            return _Seen(objects=Objects(), sizes=[], problems=changed, readable=True)
    if not isinstance(dataset.backing, LmdbFolder):
        objects, problems = listed_objects(dataset.store, dataset.manifest.objects_sha256)
        must = {path: listed.nbytes for path, listed in objects.items()}
        absent = check_presence(dataset.store, must, [layout.MANIFEST, layout.OBJECTS])
        problems = [*changed, *check_manifest(dataset), *problems, *absent]
        if not quick:
            problems += check_root(dataset, objects)
        sizes = [listed.nbytes for listed in objects.values()]
        return _Seen(objects=objects, sizes=sizes, problems=problems, readable=True)
    files, problems, readable = lmdb_files(dataset.backing.path)
    if isinstance(dataset.manifest, ExportManifest) and not quick:
        problems += check_export(dataset, dataset.manifest)
    return _Seen(objects=Objects(), sizes=[*files.values()], problems=problems, readable=readable)


def _has_checksums(dataset: Dataset) -> bool:
    """Whether a root knows the checksum of each payload; of a reference root they are recorded on request."""
    if dataset.manifest.references is None:
        return True
    try:
        columns = set(dataset.patch_table.names)
    except (NotFoundError, ChecksumError):  # which is among the problems
        return False
    return all(layout.checksum_column(name) in columns for name in dataset.modalities)


def _run(check: Check) -> list[str]:
    return check()
