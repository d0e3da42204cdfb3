"""Check a root or an LMDB: its objects against its own list, its forms against each other, and against a source.

A finding is a sentence that names the object or the patch; a damaged root is a report, not an
exception. What ties everything together is the xxh3-64 of each payload in ``patches.parquet``: the
Zarr stores, the shards and a source are each compared with it, hence with each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import ARRAYS, MODALITIES
from reben_cloud.build import JOURNAL, MANIFEST
from reben_cloud.build.tasks import sample_json
from reben_cloud.checks.claims import check_export, check_manifest, check_root
from reben_cloud.errors import (
    ChecksumError,
    InvalidPatchError,
    NotFoundError,
    RebenError,
    SourceError,
    StorageError,
    UnreachableError,
)
from reben_cloud.export import find_damage
from reben_cloud.export.opened import is_export
from reben_cloud.export.plan import read_manifest
from reben_cloud.formats import tar, zarr
from reben_cloud.root import parquet
from reben_cloud.root import patches as metadata
from reben_cloud.root.backing import LmdbFolder
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.patch import MAP_TENSOR, check_payload, encode_payload, lmdb_key
from reben_cloud.sources import Source
from reben_cloud.sources.archives import ArchiveSource

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
    """Whether payloads have checksums to be compared with; an LMDB that is no export has none."""
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
        what = looked[self.level] if self.has_checksums else "records and their headers; it has no checksums"
        what += f", compared with {self.against}" if self.against else ""
        verdict = "all right" if self.ok else f"{len(self.problems)} problems"
        last = (
            f"{self.url}: {self.num_patches:,} patches in {self.num_objects:,} objects, "
            f"{self.num_bytes / 1e6:,.1f} MB; {what}: {verdict}"
        )
        return "\n".join([*self.problems, last])


def _silent(items: Iterable[Any], _total: int, _what: str) -> Iterable[Any]:
    return items


def verify(
    dataset: Dataset,
    *,
    quick: bool = False,
    deep: bool = False,
    against: Source | None = None,
    progress: Progress = _silent,
) -> Report:
    """Look for anything that is missing, damaged, foreign or mixed up.

    Args:
        dataset: The opened root, or an LMDB opened like one.
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
    if quick and deep:
        raise ValueError("quick and deep exclude each other")
    level: Level = "quick" if quick else "deep" if deep else "full"
    lmdb = dataset.backing.path if isinstance(dataset.backing, LmdbFolder) else None
    has_checksums = lmdb is None or is_export(lmdb)
    if against is not None and not has_checksums:
        raise ValueError(
            f"{lmdb} has no checksums to compare a source with; build a root from it, and verify that"
        )
    readable = True
    if lmdb is None:
        objects, problems = _listed_objects(dataset)
        problems = [*check_manifest(dataset), *problems, *_check_presence(dataset, objects)]
        if not quick:
            problems += check_root(dataset, objects)
    else:
        objects, problems, readable = _lmdb_files(lmdb)
        if has_checksums and not quick:
            problems += check_export(dataset)
    units: list[tuple[str, Sequence[Callable[[], list[str]]]]] = []
    if not quick and lmdb is None:
        units.append(("checksums", [_ChecksumUnit(dataset, row) for row in objects]))
    if deep or against is not None or (lmdb is not None and not quick):
        try:
            index = _Index(dataset)
        except (NotFoundError, ChecksumError, KeyError) as error:
            problems.append(f"patches.parquet: cannot be read ({error}); pixels were not compared")
        else:
            if lmdb is not None and readable:
                units.append(("records", _lmdb_units(lmdb, index)))
            elif lmdb is None and deep:
                units.append(("pixels", [*_zarr_units(dataset, index), *_shard_units(dataset, index)]))
            if against is not None:
                units.append(("source", _source_units(dataset, index, against)))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for what, checks in units:
            for found in progress(pool.map(_run, checks), len(checks), what):
                problems += found
    return Report(
        url=dataset.url,
        level=level,
        against=None if against is None else against.describe(),
        num_objects=len(objects),
        num_bytes=sum(row["bytes"] for row in objects),
        num_patches=len(dataset),
        has_checksums=has_checksums,
        problems=tuple(dict.fromkeys(problems)),
    )


def _run(check: Callable[[], list[str]]) -> list[str]:
    return check()


# -- objects -----------------------------------------------------------------------------------------


def _listed_objects(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        listing = bytes(dataset.store.get("objects.parquet"))
    except FileNotFoundError:
        return [], ["objects.parquet: missing, so nothing says what must be there"]
    problems = []
    if hashlib.sha256(listing).hexdigest() != dataset.manifest.get("objects_sha256"):
        problems.append("objects.parquet: not the list that the manifest names, its sha256 differs")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(listing, name="objects.parquet").to_pylist()
    except ChecksumError as error:
        return [], [*problems, str(error)]
    return rows, problems


def _check_presence(dataset: Dataset, objects: Sequence[Mapping[str, Any]]) -> list[str]:
    there = dict(dataset.store.list())
    problems = []
    for row in objects:
        size = there.get(row["path"])
        if size is None:
            problems.append(f"{row['path']}: missing")
        elif size != row["bytes"]:
            problems.append(f"{row['path']}: {size:,} bytes, must be {row['bytes']:,}")
    known = {row["path"] for row in objects} | {MANIFEST, "objects.parquet"}
    foreign = sorted(p for p in there if p not in known and not p.startswith(f"{JOURNAL}/"))
    return problems + [f"{path}: not part of the dataset, it is in no list" for path in foreign]


@dataclass(frozen=True, slots=True)
class _ChecksumUnit:
    """Compare one object with its sha256."""

    dataset: Dataset
    row: Mapping[str, Any]

    def __call__(self) -> list[str]:
        path = self.row["path"]
        try:
            data = self.dataset.store.get(path)
        except FileNotFoundError:
            return []  # said already
        except UnreachableError:
            raise  # nor would the others be
        except StorageError as error:
            return [f"{path}: {error}"]
        if data.nbytes == self.row["bytes"] and hashlib.sha256(data).hexdigest() != self.row["sha256"]:
            return [f"{path}: damaged, its sha256 differs"]
        return []


# -- LMDBs -------------------------------------------------------------------------------------------


def _lmdb_files(folder: str) -> tuple[list[dict[str, Any]], list[str], bool]:
    """The files of an LMDB, what is wrong with them at a glance, and whether LMDB can open it."""
    from reben_cloud.formats import lmdb

    here = Path(folder)
    problems, readable = [], True
    try:
        damage = find_damage(here, read_manifest(here)) if is_export(folder) else None
        problems += [damage] if damage else []
    except RebenError as error:
        problems.append(str(error))
    try:
        lmdb.open_lmdb(folder)
    except (NotFoundError, SourceError) as error:
        problems, readable = problems or [str(error)], False
    files = [{"path": file.name, "bytes": file.stat().st_size} for file in here.iterdir()]
    return files, problems, readable


def _lmdb_units(folder: str, index: _Index) -> list[Callable[[], list[str]]]:
    cuts = list(range(_PATCHES_A_UNIT, len(index.ids), _PATCHES_A_UNIT))
    return [_RecordsUnit(folder, index, rows) for rows in np.split(np.arange(len(index.ids)), cuts)]


@dataclass(frozen=True, slots=True)
class _RecordsUnit:
    """Read the records of some patches."""

    folder: str
    index: _Index
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        from reben_cloud.formats import lmdb

        problems = []
        infos = metadata.patch_infos(self.index.official.take(pa.array(self.rows)))
        file = lmdb.open_lmdb(self.folder)
        for row, info in zip(self.rows.tolist(), infos, strict=True):
            for modality in self.index.modalities:
                key = lmdb_key(modality, info)
                payload = file.get(key.encode())
                if payload is None:
                    problems.append(f"data.mdb: no record {key}")
                    continue
                try:
                    check_payload(modality, payload, name=f"record {key}")
                except InvalidPatchError as error:
                    problems.append(f"data.mdb: {error}")
                else:
                    problems += self.index.compare(modality, row, payload, f"data.mdb record {key}")
        return problems


# -- pixels ------------------------------------------------------------------------------------------


class _Index:
    """``patches.parquet`` in the order of ``patch_id``: what every payload must be, and where."""

    def __init__(self, dataset: Dataset) -> None:
        self.official = dataset.selection.official()
        self.modalities = dataset.modalities
        table = dataset.selection.to_arrow().sort_by("id")
        self.ids: list[str] = table.column("id").to_pylist()
        self.product = np.array([patch_id[:-6] for patch_id in self.ids])
        self.zarr_row = table.column("reben:zarr_row").to_numpy()
        self.group = np.array(table.column("reben:shard_group").to_pylist())
        self.shard = table.column("reben:shard").to_numpy()
        self.shard_row = table.column("reben:shard_row").to_numpy()
        summed = [m for m in self.modalities if f"reben:{m}_xxh3" in table.column_names]
        self.sums = {m: table.column(f"reben:{m}_xxh3").to_numpy() for m in summed}
        self._owner = {m: dict(zip(s.tolist(), self.ids, strict=True)) for m, s in self.sums.items()}

    def compare(self, modality: str, row: int, payload: bytes | memoryview, where: str) -> list[str]:
        """Findings about one payload that must be the one of `row`."""
        if modality not in self.sums:
            return []
        found = xxhash.xxh3_64_intdigest(payload)
        if found == int(self.sums[modality][row]):
            return []
        other = self._owner[modality].get(found)
        kind = f"holds the pixels of {other}" if other else "has other pixels than patches.parquet says"
        return [f"{where}: {modality} of {self.ids[row]} {kind}"]


def _zarr_units(dataset: Dataset, index: _Index) -> list[Callable[[], list[str]]]:
    units: list[Callable[[], list[str]]] = []
    for product in np.unique(index.product).tolist():
        rows = np.flatnonzero(index.product == product)
        rows = rows[np.argsort(index.zarr_row[rows])]
        units.append(_ZarrMetadataUnit(dataset, index, product, rows))
        for number in range(zarr.num_zarr_shards(len(rows))):
            part = slice(number * zarr.PATCHES_PER_ZARR_SHARD, (number + 1) * zarr.PATCHES_PER_ZARR_SHARD)
            units.append(_ZarrShardUnit(dataset, index, product, number, rows[part]))
    return units


@dataclass(frozen=True, slots=True)
class _ZarrMetadataUnit:
    """Open a product's store as users do, and compare names and labels."""

    dataset: Dataset
    index: _Index
    product: str
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        where = f"zarr/{self.product}.zarr"
        try:
            stack = self.dataset.open_zarr(self.product)
            ids = [str(name) for name in stack.patch_id.values]
            hot = stack.labels.values.astype(bool)
            names = [str(name) for name in stack.label.values]
        except UnreachableError:
            raise
        except (
            FileNotFoundError,
            NotFoundError,
            StorageError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:
            return [f"{where}: cannot be opened ({str(error).splitlines()[0] if str(error) else error!r})"]
        expected = [self.index.ids[row] for row in self.rows]
        if ids != expected:
            return [f"{where}: its patch_id array is not what patches.parquet says"]
        labels = self.index.official.column("labels").take(pa.array(self.rows)).to_pylist()
        return [
            f"{where}: the labels of {patch_id} are not what patches.parquet says"
            for patch_id, got, want in zip(ids, hot, labels, strict=True)
            if sorted(n for n, on in zip(names, got, strict=True) if on) != sorted(want)
        ]


@dataclass(frozen=True, slots=True)
class _ZarrShardUnit:
    """Decode one Zarr shard of every array and rebuild the payloads."""

    dataset: Dataset
    index: _Index
    product: str
    number: int
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        problems: list[str] = []
        for modality in self.index.modalities:
            stacks: dict[str, NDArray[Any]] = {}
            for array in zarr.arrays_of(modality):
                path = f"zarr/{self.product}.zarr/{zarr.shard_path(array, self.number)}"
                try:
                    wanted = np.arange(len(self.rows))
                    stacks[array] = zarr.decode_shard(
                        array, self.dataset.store.get(path), rows=wanted, name=path
                    )
                except FileNotFoundError:
                    problems.append(f"{path}: missing")
                except ChecksumError as error:
                    problems.append(str(error))  # names the object already
                except UnreachableError:
                    raise
                except (StorageError, ValueError, RuntimeError) as error:
                    problems.append(f"{path}: {error}")
            if len(stacks) < len(zarr.arrays_of(modality)):
                continue
            where = f"zarr/{self.product}.zarr"
            for position, row in enumerate(self.rows.tolist()):
                payload = _payload(modality, stacks, position)
                problems += self.index.compare(
                    modality, row, payload, f"{where} row {self.index.zarr_row[row]}"
                )
        return problems


def _payload(modality: str, stacks: Mapping[str, NDArray[Any]], position: int) -> bytes:
    if modality == "map":
        return encode_payload("map", {MAP_TENSOR: stacks[zarr.REFERENCE_MAP][position]})
    return encode_payload(
        modality,
        {
            band: stacks[array][position, number]
            for array in MODALITIES[modality]
            for number, band in enumerate(ARRAYS[array])
        },
    )


def _shard_units(dataset: Dataset, index: _Index) -> list[Callable[[], list[str]]]:
    order = np.lexsort((index.shard_row, index.shard, index.group))
    cuts = (
        np.flatnonzero((index.group[order][1:] != index.group[order][:-1]) | np.diff(index.shard[order])) + 1
    )
    return [
        _ShardUnit(dataset, index, modality, rows)
        for rows in np.split(order, cuts)
        for modality in index.modalities
    ]


@dataclass(frozen=True, slots=True)
class _ShardUnit:
    """Read one tar shard: members, names, payloads, metadata."""

    dataset: Dataset
    index: _Index
    modality: str
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        index, first = self.index, int(self.rows[0])
        path = tar.shard_path(str(index.group[first]), self.modality, int(index.shard[first]))
        try:
            samples = tar.iter_samples(self.modality, self.dataset.store.get(path))
        except FileNotFoundError:
            return [f"{path}: missing"]
        except UnreachableError:
            raise
        except (tarfile.TarError, InvalidPatchError, StorageError, ValueError) as error:
            return [f"{path}: {error}"]
        if len(samples) != len(self.rows):
            return [f"{path}: {len(samples)} samples, must be {len(self.rows)}"]
        infos = metadata.patch_infos(index.official.take(pa.array(self.rows)))
        problems = []
        for (patch_id, payload, text), row, info in zip(samples, self.rows.tolist(), infos, strict=True):
            where = f"{path} row {index.shard_row[row]}"
            if patch_id != info.patch_id:
                problems.append(f"{where}: is {patch_id}, must be {info.patch_id}")
            elif text != sample_json(info):
                problems.append(f"{where}: the metadata of {patch_id} is not what patches.parquet says")
            problems += index.compare(self.modality, row, payload, where)
        return problems


# -- source ------------------------------------------------------------------------------------------

_PATCHES_A_UNIT = 256


def _source_units(dataset: Dataset, index: _Index, source: Source) -> list[Callable[[], list[str]]]:
    modalities = tuple(m for m in index.modalities if m in source.names())
    if isinstance(source, ArchiveSource):
        return [_ArchiveUnit(index, source, modality) for modality in modalities]
    cuts = range(_PATCHES_A_UNIT, len(dataset), _PATCHES_A_UNIT)
    return [
        _SourceUnit(index, source, modalities, rows) for rows in np.split(np.arange(len(dataset)), list(cuts))
    ]


@dataclass(frozen=True, slots=True)
class _SourceUnit:
    """Compare some patches with the source's."""

    index: _Index
    source: Source
    modalities: tuple[str, ...]
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        problems = []
        infos = metadata.patch_infos(self.index.official.take(pa.array(self.rows)))
        for row, info in zip(self.rows.tolist(), infos, strict=True):
            try:
                patch = self.source.read(info, self.modalities)
            except (SourceError, NotFoundError, InvalidPatchError, ChecksumError) as error:
                problems.append(f"{info.patch_id}: the source does not give it: {error}")
                continue
            for modality, payload in patch.payloads.items():
                problems += self.index.compare(modality, row, payload, "source")
        return problems


@dataclass(frozen=True, slots=True)
class _ArchiveUnit:
    """Compare a whole archive."""

    index: _Index
    source: ArchiveSource
    modality: str

    def __call__(self) -> list[str]:
        column = "s1_name" if self.modality == "s1" else "patch_id"
        rows = {name: row for row, name in enumerate(self.index.official.column(column).to_pylist())}
        seen: set[str] = set()
        problems: list[str] = []
        try:
            for name, payload in self._payloads(rows):
                seen.add(name)
                problems += self.index.compare(self.modality, rows[name], payload, "source")
        except (SourceError, InvalidPatchError) as error:
            problems.append(str(error))
        lacking = [name for name in rows if name not in seen]
        if lacking:
            problems.append(
                f"{lacking[0]}: not in the source ({len(lacking):,} such {self.modality} patches)"
            )
        return problems

    def _payloads(self, rows: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        for name, payload in self.source.iter_payloads(self.modality, wanted=rows.__contains__):
            if payload is not None:
                yield name, payload
