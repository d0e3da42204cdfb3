"""A layer against what it says of itself: its document, its tables, its shards; and against the root it is for.

What ties an array layer together is its ``rows.parquet``, which has the place and the checksum of every record, as
``patches.parquet`` has them for a root.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from reben_cloud.checks.objects import Check, check_presence, checksum_checks, listed_objects
from reben_cloud.errors import (
    ChecksumError,
    InvalidPatchError,
    NotFoundError,
    RebenError,
    StorageError,
    UnreachableError,
)
from reben_cloud.formats import parquet, tar
from reben_cloud.formats.parquet import Seal
from reben_cloud.layers.describe import fill_payload
from reben_cloud.layers.statistics import Moments, is_measured, moments_of, summed, together
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import mask_of, valid_of, values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.grouped import GroupedTable
from reben_cloud.root.layer_manifest import PATCH_ID, LayerManifest
from reben_cloud.root.layers import Layer
from reben_cloud.root.manifest import InvalidManifestError
from reben_cloud.root.objects import Objects
from reben_cloud.schema import Modality


class LayerSeen(NamedTuple):
    """What a glance at a layer tells."""

    sizes: list[int]
    """Bytes of each of its objects."""
    problems: list[str]
    """What is wrong."""
    checks: dict[str, list[Check]]
    """What is left to be looked at, by what is done; to be run in this order."""


def look_at_layer(layer: Layer, root: Dataset | None, *, quick: bool, deep: bool) -> LayerSeen:
    """What is wrong with a layer at a glance, and what else is to be looked at.

    Args:
        layer: The layer.
        root: What it stands beside, itself without layers; None compares it with nothing but itself.
        quick: Look at presence and sizes only.
        deep: Also decode every shard.
    """
    layer = Layer(layer.store, layer.manifest)  # with nothing read yet
    said = layer.manifest
    problems = _check_document(layer)
    seals = {layout.ROWS: said.rows_parquet} | ({layout.INDEX: s} if (s := said.index_parquet) else {})
    sizes = {path: seal.nbytes for path, seal in seals.items()}
    objects = Objects([])
    unlisted = [layout.LAYER_MANIFEST]
    if said.objects_sha256 is not None:
        objects, faults = listed_objects(layer.store, said.objects_sha256)
        problems += faults
        sizes = {**sizes, **{path: one.nbytes for path, one in objects.items()}}
        unlisted.append(layout.OBJECTS)
    problems += check_presence(layer.store, sizes, unlisted)
    if root is not None and said.fingerprint != root.manifest.fingerprint:
        problems.append(
            f"{layout.LAYER_MANIFEST}: it was made for the root {said.fingerprint}, not for {root.manifest.fingerprint}"
        )
        root = None
    checks: dict[str, list[Check]] = {}
    if not quick:
        checks["checksums"] = [
            *checksum_checks(layer.store, objects),
            *(_SealCheck(layer, path, seal) for path, seal in seals.items()),
        ]
        try:
            rows = _Rows.of(layer)
            problems += rows.problems(objects)
        except (NotFoundError, ChecksumError, KeyError) as error:
            problems.append(f"its tables cannot be read ({error}); records were not compared")
        else:
            problems += [] if root is None else rows.problems_with(root)
            if deep and rows.places is not None and layer.modality is not None:
                checks.update(_record_checks(layer, layer.modality, rows, root))
    return LayerSeen(list(sizes.values()), problems, checks)


def _check_document(layer: Layer) -> list[str]:
    """Whether ``layer.json`` is whole, and still what it was when the layer was opened."""
    name = layout.LAYER_MANIFEST
    try:
        text = bytes(layer.store.get(name))
        found = LayerManifest.from_bytes(text, where=layer.url)
    except FileNotFoundError:
        return [f"{name}: missing, so nothing is published here"]
    except (InvalidManifestError, RebenError) as error:
        return [f"{name}: damaged: {error}"]
    if found != layer.manifest:
        return [f"{name}: another one than when the layer was opened"]
    if text != found.to_bytes():
        return [f"{name}: says what it must, but not in the bytes that were written"]
    return []


@dataclass(frozen=True, slots=True)
class _SealCheck:
    """Compare every byte of a table with its seal."""

    layer: Layer
    path: str
    seal: Seal

    def __call__(self) -> list[str]:
        try:
            parquet.check_sealed(self.layer.store.get(self.path), self.seal, name=self.path)
        except FileNotFoundError:
            return []  # said already
        except UnreachableError:
            raise
        except (ChecksumError, StorageError) as error:
            return [str(error)]
        return []


# -- tables ------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Where the records of an array layer lie, and what they are, a row a patch."""

    group: NDArray[Any]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    xxh3: NDArray[np.uint64]
    present: NDArray[np.bool_]


class _Rows(NamedTuple):
    """What the tables of a layer say."""

    layer: Layer
    ids: Any
    """Patch of each row of the table with a row a patch: an Arrow array."""
    places: _Places | None
    """Of an array layer."""
    spans: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """First row and number of rows of each patch, of a table with many."""

    @classmethod
    def of(cls, layer: Layer) -> _Rows:
        """Read them; raises as `GroupedTable.read`."""
        kind, table = layer.manifest.kind, layer.by_patch
        if kind == "array":
            found = _whole(table, [PATCH_ID, *_PLACES])
            return cls(
                layer,
                found.column(PATCH_ID).combine_chunks(),
                _Places(
                    np.array(found.column(layers.GROUP).cast(pa.string()).to_pylist(), object),
                    values_of(found.column(layers.SHARD)).astype(np.int64),
                    values_of(found.column(layers.SHARD_ROW)).astype(np.int64),
                    values_of(found.column(layers.XXH3)).astype(np.uint64),
                    mask_of(found.column(layers.PRESENT)),
                ),
                None,
            )
        if kind == "one":
            return cls(layer, _whole(table, [PATCH_ID]).column(PATCH_ID).combine_chunks(), None, None)
        found = _whole(table, [PATCH_ID, layers.FIRST, layers.COUNT])
        spans = tuple(values_of(found.column(name)).astype(np.int64) for name in (layers.FIRST, layers.COUNT))
        return cls(layer, found.column(PATCH_ID).combine_chunks(), None, (spans[0], spans[1]))

    def problems(self, objects: Objects) -> Iterator[str]:
        """What ``layer.json`` says that the tables do not."""
        said, name = self.layer.manifest, layout.LAYER_MANIFEST
        if len(pc.unique(self.ids)) != len(self.ids):
            yield f"{self.layer.by_patch.path}: has a patch twice"
        if self.places is not None:
            yield from _differing(f"{name}: num_patches", said.num_patches, len(self.ids))
            yield from _differing(f"{name}: coverage", said.coverage, int(self.places.present.sum()))
            yield from self._misplaced(self.places, objects)
            return
        yield from _differing(f"{name}: coverage", said.coverage, len(self.ids))
        if self.spans is None:
            return
        # Patches stand in the order of the root's table, their rows in that of its shards.
        order = np.argsort(self.spans[0], kind="stable")
        first, count = (values[order] for values in self.spans)
        if not np.array_equal(first, np.cumsum(count) - count) or (count < 1).any():
            yield f"{layout.INDEX}: its rows do not follow each other"
        elif int(count.sum()) != said.num_rows:
            yield f"{layout.INDEX}: counts {int(count.sum()):,} rows, and there are {said.num_rows:,}"
        else:
            owners = _whole(self.layer.rows, [PATCH_ID]).column(PATCH_ID).combine_chunks()
            if not owners.equals(self.ids.take(pa.array(np.repeat(order, count)))):
                yield f"{layout.INDEX}: gives rows of {layout.ROWS} to other patches than they name"

    def _misplaced(self, places: _Places, objects: Objects) -> Iterator[str]:
        said, name = self.layer.manifest, layout.LAYER_MANIFEST
        groups, counts = np.unique(places.group.astype(str), return_counts=True)
        yield from _differing(
            f"{name}: groups", said.groups, dict(zip(groups.tolist(), counts.tolist(), strict=True))
        )
        found = {
            layout.shard(group, said.name, number): rows for (group, number), rows in _shards(places).items()
        }
        for path in sorted(found.keys() - objects.keys()) if objects else ():
            yield f"{layout.ROWS}: has records in {path}, which {layout.OBJECTS} does not list"
        shards = {path for path in objects if path.startswith(f"{layout.SHARDS}/")}
        for path in sorted(shards - found.keys()):
            yield f"{layout.ROWS}: has no record in {path}, which {layout.OBJECTS} lists"
        for (group, number), rows in _shards(places).items():
            path = layout.shard(group, said.name, number)
            if not np.array_equal(places.row[rows], np.arange(said.samples_in(group, number))):
                yield f"{layout.ROWS}: does not have one patch for each row of {path}"

    def problems_with(self, root: Dataset) -> Iterator[str]:
        """What the tables say of patches that the root does not."""
        path = self.layer.by_patch.path
        try:
            table = root.selection.columns([layout.ID, layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW])
        except (NotFoundError, ChecksumError, KeyError) as error:
            yield f"{path}: was not compared with {root.url}, whose table cannot be read ({error})"
            return
        found = pc.index_in(table.column(layout.ID), value_set=self.ids)
        there = valid_of(found)
        where = values_of(found)[there].astype(np.int64)
        is_whole = not isinstance(root.manifest, ExportManifest)
        if self.places is not None and not there.all():
            yield f"{path}: lacks {int((~there).sum()):,} patches of {root.url}"
        if is_whole and len(where) < len(self.ids):
            yield f"{path}: has {len(self.ids) - len(where):,} patches that are not in {root.url}"
        if is_whole and there.all() and not np.array_equal(where, np.arange(len(self.ids))):
            yield f"{path}: does not have its patches in the order of {root.url}"
        # Of an export, a layer has shards of its own.
        if self.places is not None and len(self.ids) == sum(
            g.num_samples for g in root.manifest.groups.values()
        ):
            theirs = table.filter(pa.array(there))
            same = (
                (self.places.group[where] == np.array(theirs.column(layout.SHARD_GROUP).to_pylist(), object))
                & (self.places.shard[where] == values_of(theirs.column(layout.SHARD)))
                & (self.places.row[where] == values_of(theirs.column(layout.SHARD_ROW)))
            )
            if not same.all():
                example = self.ids[int(where[~same][0])].as_py()
                count = int((~same).sum())
                yield f"{path}: has {count:,} patches in other rows than {root.url}, such as {example}"


_PLACES = (layers.GROUP, layers.SHARD, layers.SHARD_ROW, layers.XXH3, layers.PRESENT)


def _whole(table: GroupedTable, columns: list[str]) -> pa.Table:
    return table.read(range(len(table.group_starts) - 1), columns)


def _shards(places: _Places) -> dict[tuple[str, int], NDArray[np.int64]]:
    """(Group, number) -> rows of the table, in the order of the shard."""
    order = np.lexsort((places.row, places.shard, places.group.astype(str)))
    group, shard = places.group[order], places.shard[order]
    cuts = np.flatnonzero((group[1:] != group[:-1]) | (np.diff(shard) != 0)) + 1
    return {
        (str(places.group[part[0]]), int(places.shard[part[0]])): part
        for part in np.split(order, cuts)
        if len(part)
    }


def _differing(what: str, said: Any, derived: Any) -> Iterator[str]:
    if said != derived:
        yield f"{what} is {said!r:.200}, and {derived!r:.200} by the tables"


# -- records -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    """Moments of the patches for training, as shards are read."""

    counts: NDArray[np.bool_] | None
    """Whether each row of the table counts; None where no root says so, or not all of it."""
    found: dict[int, Mapping[str, Moments]] = field(default_factory=dict)
    """Number of the shard's check -> moments by tensor."""


def _record_checks(
    layer: Layer, modality: Modality, rows: _Rows, root: Dataset | None
) -> dict[str, list[Check]]:
    """Checks that decode every shard, and then the one of the statistics that they give."""
    assert rows.places is not None
    measured = _Measured(None if root is None else _in_statistics(rows, root))
    records: list[Check] = [
        _ShardCheck(layer, modality, rows, number, layout.shard(group, modality.name, shard), mine, measured)
        for number, ((group, shard), mine) in enumerate(_shards(rows.places).items())
    ]
    checks = {"records": records}
    if measured.counts is not None:
        checks["statistics"] = [_StatisticsCheck(layer, modality, measured, len(records))]
    return checks


def _in_statistics(rows: _Rows, root: Dataset) -> NDArray[np.bool_] | None:
    """Whether each patch counts in the statistics: those for training, or all where none is."""
    if isinstance(root.manifest, ExportManifest):
        return None
    table = root.selection.columns([layout.ID, layout.SPLIT])
    training = table.filter(pc.equal(table.column(layout.SPLIT).cast(pa.string()), "train")).column(layout.ID)
    found = mask_of(pc.is_in(rows.ids, value_set=training.combine_chunks()))
    return found if found.any() else np.ones(len(found), np.bool_)


@dataclass(frozen=True, slots=True)
class _ShardCheck:
    """Read one shard: members, names, payloads, what is said of each."""

    layer: Layer
    modality: Modality
    rows: _Rows
    number: int
    path: str
    mine: NDArray[np.int64]
    measured: _Measured

    def __call__(self) -> list[str]:
        try:
            samples = tar.iter_samples(self.modality, self.layer.store.get(self.path))
        except FileNotFoundError:
            return [f"{self.path}: missing"]
        except UnreachableError:
            raise
        except (tarfile.TarError, InvalidPatchError, StorageError, ValueError) as error:
            return [f"{self.path}: {error}"]
        if len(samples) != len(self.mine):
            return [f"{self.path}: {len(samples)} samples, must be {len(self.mine)}"]
        assert self.rows.places is not None
        ids = self.rows.ids.take(pa.array(self.mine)).to_pylist()
        fill, problems = fill_payload(self.modality), []
        moments: dict[str, list[Moments]] = {}
        for number, (patch_id, payload, text) in enumerate(samples):
            row, where = int(self.mine[number]), f"{self.path} row {number}"
            present = bool(self.rows.places.present[row])
            if patch_id != ids[number]:
                problems.append(f"{where}: is {patch_id}, must be {ids[number]}")
            elif text != {"patch_id": patch_id, "present": present}:
                problems.append(f"{where}: what is said of {patch_id} is not what {layout.ROWS} says")
            elif xxhash.xxh3_64_intdigest(payload) != int(self.rows.places.xxh3[row]):
                problems.append(f"{where}: the record of {patch_id} is not the one that {layout.ROWS} names")
            elif not present and payload != fill:
                problems.append(f"{where}: {patch_id} is said to be lacking, and its record holds something")
            elif present and self.measured.counts is not None and self.measured.counts[row]:
                for name, one in moments_of(self.modality, payload).items():
                    moments.setdefault(name, []).append(one)
        if not problems:
            self.measured.found[self.number] = {name: together(parts) for name, parts in moments.items()}
        return problems


@dataclass(frozen=True, slots=True)
class _StatisticsCheck:
    """Compare the statistics with those of the records, once all are read."""

    layer: Layer
    modality: Modality
    measured: _Measured
    num_shards: int

    def __call__(self) -> list[str]:
        if len(self.measured.found) < self.num_shards:
            return []  # a shard is damaged, which was said
        parts = (self.measured.found[number] for number in range(self.num_shards))
        derived = summed(parts, [t.name for t in self.modality.tensors if is_measured(t)])
        said = self.layer.manifest.statistics
        problems = list(_differing(f"{layout.LAYER_MANIFEST}: statistics", sorted(said), sorted(derived)))
        for name in derived.keys() & said.keys():
            for key, value in derived[name].items():
                given = said[name].get(key, math.nan)
                # Sums of floats, which another release of NumPy may add in another order.
                if not math.isclose(given, value, rel_tol=1e-6, abs_tol=1e-9):
                    problems.append(
                        f"{layout.LAYER_MANIFEST}: {key} of {name} is {given:g}, and {value:g} by the records"
                    )
        return problems
