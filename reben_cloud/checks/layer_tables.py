"""The tables of a layer: what they say of its patches and shards, beside its document, its objects and its root.

What ties an array layer together is its ``rows.parquet``, which has the place and the checksum of every record, as
``patches.parquet`` has them for a root.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import mask_of, valid_of, values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.grouped import GroupedTable
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import Layer
from reben_cloud.root.objects import Objects


class Places(NamedTuple):
    """Where the records of an array layer lie, and what they are, a row for each patch."""

    group: NDArray[np.object_]
    """Group of its shard, strings."""
    shard: NDArray[np.int64]
    """Number of its shard."""
    row: NDArray[np.int64]
    """Its row in the shard."""
    xxh3: NDArray[np.uint64]
    """Checksum of its payload."""
    present: NDArray[np.bool_]
    """Whether the layer has anything for it."""


class LayerRows(NamedTuple):
    """What the tables of a layer say."""

    layer: Layer
    """Whose they are."""
    ids: pa.Array
    """Patch of each row of the table with a row for each patch."""
    places: Places | None
    """Of an array layer."""
    spans: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """First row and number of rows of each patch, of a table with many."""

    @classmethod
    def of(cls, layer: Layer) -> LayerRows:
        """Read them; raises as `GroupedTable.read`."""
        kind, table = layer.manifest.kind, layer.by_patch
        if kind == "array":
            found = _whole(table, [PATCH_ID, *_PLACES])
            return cls(
                layer,
                found.column(PATCH_ID).combine_chunks(),
                Places(
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
            yield from differing(f"{name}: num_patches", said.num_patches, len(self.ids))
            yield from differing(f"{name}: coverage", said.coverage, int(self.places.present.sum()))
            yield from self._misplaced(self.places, objects)
            return
        yield from differing(f"{name}: coverage", said.coverage, len(self.ids))
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

    def _misplaced(self, places: Places, objects: Objects) -> Iterator[str]:
        said, name = self.layer.manifest, layout.LAYER_MANIFEST
        groups, counts = np.unique(places.group.astype(str), return_counts=True)
        yield from differing(
            f"{name}: groups", said.groups, dict(zip(groups.tolist(), counts.tolist(), strict=True))
        )
        found = {
            layout.shard(group, said.name, number): rows
            for (group, number), rows in shards_of(places).items()
        }
        for path in sorted(found.keys() - objects.keys()) if objects else ():
            yield f"{layout.ROWS}: has records in {path}, which {layout.OBJECTS} does not list"
        shards = {path for path in objects if path.startswith(f"{layout.SHARDS}/")}
        for path in sorted(shards - found.keys()):
            yield f"{layout.ROWS}: has no record in {path}, which {layout.OBJECTS} lists"
        for (group, number), rows in shards_of(places).items():
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
            group.num_samples for group in root.manifest.groups.values()
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


def shards_of(places: Places) -> dict[tuple[str, int], NDArray[np.int64]]:
    """(Group, number) -> rows of the table, in the order of the shard."""
    order = np.lexsort((places.row, places.shard, places.group.astype(str)))
    group, shard = places.group[order], places.shard[order]
    cuts = np.flatnonzero((group[1:] != group[:-1]) | (np.diff(shard) != 0)) + 1
    return {
        (str(places.group[part[0]]), int(places.shard[part[0]])): part
        for part in np.split(order, cuts)
        if len(part)
    }


def differing(what: str, said: object, derived: object) -> Iterator[str]:
    """A problem if what is said and what follows from the tables are not the same."""
    if said != derived:
        yield f"{what} is {said!r:.200}, and {derived!r:.200} by the tables"
