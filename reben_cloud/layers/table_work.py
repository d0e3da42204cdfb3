"""One table layer in the making: its rows are put in order, measured, written a row group at a time, and committed.

They stand in the order of the root's table, where a patch has one, or of its shards, where a patch may have several:
what a loader wants at a time then stands together. Nothing but the names of patches is held as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.build import Progress
from reben_cloud.build.lease import Lease
from reben_cloud.formats.parquet import Seal
from reben_cloud.formats.vectors import vector_bytes
from reben_cloud.layers import publish
from reben_cloud.layers.columns import layer_type, to_layer
from reben_cloud.layers.keys import Keys
from reben_cloud.layers.listing import publish_listed
from reben_cloud.layers.sorting import sorted_groups
from reben_cloud.layers.statistics import Moments, counted, summed
from reben_cloud.layers.tabular import TableSource
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import ints_array, valid_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.digest import table_digest
from reben_cloud.root.layer_manifest import PATCH_ID, Kind, LayerManifest
from reben_cloud.root.layers import Layer
from reben_cloud.root.objects import WrittenObject
from reben_cloud.root.patches_file import ROW_GROUP_ROWS
from reben_cloud.sampling import Ints
from reben_cloud.store import Store

LEAST_ROWS, MOST_ROWS = 4_096, 8_192
"""Rows of a row group where a patch has several rows: it ends with the shard that makes it so large, and before the
patch that would make it larger than the second."""

_DIGESTED_ROWS = 1 << 15
"""Rows whose digest is taken at a time; another number would be another digest."""

MOST_BYTES = 32 << 20
"""Bytes of the vectors in a row group, which is read as a whole: at most so many, or those of one row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TableWork:
    """One layer in the making."""

    store: Store
    ds: Dataset
    source: TableSource
    keys: Keys
    columns: Mapping[str, str]
    kind: Kind
    name: str
    title: str
    provenance: Mapping[str, Any]

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of ``rows.parquet``."""
        first = next(iter(self.source.batches(list(self.columns), batch_rows=1_024)), None)
        fields = [pa.field(PATCH_ID, pa.string(), nullable=False)]
        for column, new in self.columns.items():
            kind = self.source.schema.field(column).type
            sample = pa.chunked_array([], kind) if first is None else first.column(column)
            fields.append(pa.field(new, layer_type(column, kind, sample)))
        return pa.schema(fields)

    @cached_property
    def counts(self) -> Ints:
        """Rows of each patch, in the order of the root's table."""
        return np.bincount(self.keys.patches[self.keys.patches >= 0], minlength=len(self.ds)).astype(np.int64)

    @cached_property
    def beginning(self) -> Mapping[str, Any]:
        """What ``layer.json`` will say, as far as it is known now."""
        return publish.plain(
            {
                "kind": self.kind,
                "name": self.name,
                "title": self.title,
                "fingerprint": self.ds.manifest.fingerprint,
                "num_patches": len(self.ds),
                "coverage": int((self.counts > 0).sum()),
                "num_rows": int(self.counts.sum()),
                "provenance": dict(self.provenance),
            }
        )

    def digest(self) -> str:
        """The sha256 of all that the rows become, hex: for a source whose name and state do not tell it from others."""
        found = hashlib.sha256(self.keys.patches.astype("<i8").tobytes())
        batches = self.source.batches(list(self.columns), batch_rows=_DIGESTED_ROWS)
        for batch in _of_size(batches, _DIGESTED_ROWS):
            found.update(table_digest(to_layer(batch, self.schema.remove(0))).encode())
        return found.hexdigest()

    @cached_property
    def patches(self) -> pa.Table:
        """Id, split and place of every patch, in the order of the root's table."""
        columns = [layout.ID, layout.SPLIT, layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW]
        return self.ds.selection.columns([name for name in columns if name in self.ds.patch_table.names])

    @property
    def _has_shards(self) -> bool:
        return layout.SHARD in self.patches.column_names

    @cached_property
    def order(self) -> Ints:
        """Rows of the root's table in the order of the layer's rows."""
        if self.kind == "one" or not self._has_shards:
            return np.arange(len(self.ds), dtype=np.int64)
        group, number = self._shards
        row = self.patches.column(layout.SHARD_ROW).to_numpy()
        return np.lexsort((row, number, group)).astype(np.int64)

    @property
    def _shards(self) -> tuple[Ints, Ints]:
        """Group, as its place among the sorted names, and shard of each patch."""
        group = self.patches.column(layout.SHARD_GROUP).cast(pa.string()).combine_chunks().dictionary_encode()
        by_name = np.argsort(np.argsort(np.array(group.dictionary.to_pylist())))
        return by_name[group.indices.to_numpy()], self.patches.column(layout.SHARD).to_numpy().astype(
            np.int64
        )

    @cached_property
    def sizes(self) -> list[int]:
        """Rows of each row group."""
        counts = self.counts[self.order]
        if self.kind == "one":
            total = int(counts.sum())
            row_bytes = max(1, sum(vector_bytes(field.type) for field in self.schema))
            most = max(1, min(ROW_GROUP_ROWS, MOST_BYTES // row_bytes))
            return [min(most, total - start) for start in range(0, total, most)]
        begins = np.arange(len(counts)) == 0
        if self._has_shards:
            group, number = (one[self.order] for one in self._shards)
            begins[1:] = (np.diff(group) != 0) | (np.diff(number) != 0)
        return cut_groups(counts, begins)

    def write(self, scratch: Path, progress: Progress, held: Lease) -> Layer:
        """Write both tables and ``layer.json``."""
        place_of = np.empty(len(self.order), np.int64)
        place_of[self.order] = np.arange(len(self.order))
        places = np.where(self.keys.patches >= 0, place_of[self.keys.patches], -1)
        moments: list[Mapping[str, Moments]] = []
        inner = pa.schema(list(self.schema)[1:])
        groups = sorted_groups(
            self.source,
            list(self.columns),
            lambda part: to_layer(part, inner),
            places=places,
            sizes=self.sizes,
            scratch=scratch,
        )
        of_row = np.repeat(self.order, self.counts[self.order])
        rows = self._complete(progress(groups, len(self.sizes), "row groups"), of_row, moments)
        first = next(rows, self.schema.empty_table())
        file = scratch / layout.ROWS
        seal = publish.write_groups(
            file,
            _chained(first, rows),
            self.schema,
            of_few=[PATCH_ID] * (self.kind == "many") + _of_few(first),
            statistics=self.kind == "one",
        )
        self.source.require_unchanged()
        held.check()
        self.store.put_file(layout.ROWS, file)
        written, index = [WrittenObject.of_file(layout.ROWS, file)], None
        if self.kind == "many":
            data, index = self._index()
            self.store.put(layout.INDEX, data)
            written.append(WrittenObject.of(layout.INDEX, data))
        held.check()
        numeric = [field.name for field in self.schema if _is_measured(field.type)]
        known = dict(self.beginning)
        said = partial(
            LayerManifest.of,
            kind=self.kind,
            name=self.name,
            title=self.title,
            fingerprint=self.ds.manifest.fingerprint,
            num_patches=len(self.ds),
            coverage=known["coverage"],
            num_rows=known["num_rows"],
            rows=seal,
            index=index,
            statistics=summed(moments, numeric),
            provenance=self.provenance,
        )
        return publish_listed(self.store, self.ds, said, rows=self.schema, written=written)

    def _complete(
        self, groups: Iterable[pa.Table], of_row: Ints, moments: list[Mapping[str, Moments]]
    ) -> Iterator[pa.Table]:
        """Row groups with the ids of their patches; what is measured of them is added to `moments`."""
        ids = self.patches.column(layout.ID).cast(pa.string()).combine_chunks()
        counts = counted(self.patches.column(layout.SPLIT))
        start = 0
        for group in groups:
            mine = of_row[start : start + group.num_rows]
            start += group.num_rows
            moments.append(_moments(group, counts[mine]))
            yield pa.table([ids.take(ints_array(mine)), *group.columns], schema=self.schema)

    def _index(self) -> tuple[bytes, Seal]:
        """``index.parquet``: where the rows of each patch are."""
        counts = self.counts[self.order]
        first = np.empty(len(self.ds), np.int64)
        first[self.order] = np.cumsum(counts) - counts
        covered = np.flatnonzero(self.counts)
        ids = self.patches.column(layout.ID).cast(pa.string()).take(ints_array(covered))
        table = pa.table(
            {
                PATCH_ID: ids,
                layers.FIRST: ints_array(first[covered]),
                layers.COUNT: ints_array(self.counts[covered]),
            }
        )
        return publish.encode_table([table], table.schema, row_group_rows=ROW_GROUP_ROWS)


def cut_groups(counts: Ints, begins: NDArray[np.bool_]) -> list[int]:
    """Sizes of row groups that hold whole patches, and most shards in one or two of them.

    Args:
        counts: Rows of each patch, in order, (n,).
        begins: Whether a shard begins with the patch, (n,).
    """
    sizes, size = list[int](), 0
    for count, begin in zip(counts.tolist(), begins.tolist(), strict=True):
        if size and (size + count > MOST_ROWS or (begin and size >= LEAST_ROWS)):
            sizes.append(size)
            size = 0
        size += count
    return [*sizes, size] if size else sizes


def _of_size(batches: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of so many, and a last one of the rest, however they come."""
    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(batch)
        while sum(one.num_rows for one in waiting) >= num_rows:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, num_rows)
            waiting = [whole.slice(num_rows)]
    if any(one.num_rows for one in waiting):
        yield pa.concat_tables(waiting)


def _chained(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from others


def _of_few(table: pa.Table) -> list[str]:
    """Columns of strings of which most rows share their value with others."""
    return [
        field.name
        for field in table.schema
        if field.name != PATCH_ID
        and pa.types.is_string(field.type)
        and len(pc.unique(table.column(field.name))) * 2 < table.num_rows
    ]


def _is_measured(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _moments(group: pa.Table, counts: NDArray[np.bool_]) -> dict[str, Moments]:
    """Moments of each column of numbers, over the rows that count."""
    found = {}
    for field in group.schema:
        if _is_measured(field.type):
            column = group.column(field.name).combine_chunks()
            column = column.filter(pa.array(counts & valid_of(column)))
            values = column.flatten() if pa.types.is_fixed_size_list(field.type) else column
            found[field.name] = Moments.of(values.drop_null().to_numpy(zero_copy_only=False), fill=None)
    return found
