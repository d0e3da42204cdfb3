"""`JoinedLayer`: a layer beside the table of patches, each of whose rows gets what the layer has for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import bools_array, ints_array, valid_of, values_of
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.grouped import GroupedTable
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import Layer

if TYPE_CHECKING:
    from reben_cloud.root.table import PatchTable


class JoinedLayer:
    """A layer, and which of its rows each patch of a table has.

    The table of a whole root, and one of a layer that has a row for every patch, have their rows in one order: the
    fingerprint of the root, which both name, covers the patches and their order. Otherwise rows are found by the
    patches' ids.

    Args:
        layer: The layer.
        table: The table of patches that it stands beside.
    """

    def __init__(self, layer: Layer, table: PatchTable) -> None:
        self.layer = layer
        """The layer."""
        self._patches = table

    @cached_property
    def fields(self) -> tuple[pa.Field, ...]:
        """Columns that it adds to the table: whether it has anything for a patch, and what it says of it."""
        name, kind = self.layer.name, self.layer.manifest.kind
        present = pa.field(layout.present_column(name), pa.bool_())
        if kind == "array":
            return present, pa.field(layout.checksum_column(name), pa.uint64())
        if kind == "many":
            return (present,)
        return present, *self.row_fields

    @cached_property
    def row_fields(self) -> tuple[pa.Field, ...]:
        """Columns of each row of a table layer, by the names that a filter has for them."""
        if self.layer.manifest.kind == "array":
            return ()
        return tuple(
            field.with_name(layout.joined_column(self.layer.name, field.name))
            for field in self.layer.rows.schema
            if field.name != PATCH_ID
        )

    def spans(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first of its rows that each of these patches has in a table layer, and their number; both int64 (n,).

        0 and 0 where it has none.

        Args:
            rows: Rows of the table of patches, (n,).

        Raises:
            ChecksumError: If the layer's index names rows that it does not have.
        """
        places = self.places(rows)
        has = places >= 0
        if self.layer.manifest.kind == "many":
            found = self.take(rows, [layers.FIRST, layers.COUNT])
            if not all(valid_of(found.column(n))[has].all() for n in range(2)):
                raise ChecksumError(
                    f"{self.layer.url}: its index does not name the rows of every patch; the layer is damaged"
                )
            first, count = (np.where(has, values_of(found.column(n)), 0) for n in range(2))
        else:
            first, count = np.where(has, places, 0), has.astype(np.int64)
        first, count = first.astype(np.int64), count.astype(np.int64)
        total = self.layer.manifest.num_rows
        # One after the other: sums of numbers without a bound run over.
        if ((first < 0) | (first > total)).any() or ((count < 0) | (count > total - first)).any():
            raise ChecksumError(
                f"{self.layer.url}: its index names rows that it does not have; the layer is damaged"
            )
        return first, count

    def slice(self, start: int, stop: int, names: Sequence[str]) -> pa.Table:
        """Columns of `fields` for the rows of the table from `start` to before `stop`; null where it has none."""
        rows, layer = np.arange(start, stop), self.layer
        present, checksum = layout.present_column(layer.name), layout.checksum_column(layer.name)
        inner = {
            name: layers.PRESENT
            if name == present
            else layers.XXH3
            if name == checksum
            else name.partition(":")[2]
            for name in names
        }
        if layer.manifest.kind != "array":
            inner.pop(present, None)
        table = self.take(rows, list(inner.values())) if inner else pa.table({})
        found = {name: table.column(number) for number, name in enumerate(inner)}
        if present in inner:
            found[present] = pc.fill_null(found[present], False)
        elif present in names:
            found[present] = pa.chunked_array([bools_array(self.places(rows) >= 0)])
        return pa.table({name: found[name] for name in names})

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Columns of the layer's own table with a row per patch, for rows of this one; null where it has none."""
        if self._is_aligned:
            return self.layer.by_patch.take(rows, columns)
        places = self.places(rows)
        has = places >= 0
        found = self.layer.by_patch.take(places[has], columns)
        return found.take(ints_array(np.cumsum(has) - 1, valid=has))

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which row of the layer's table with a row per patch belongs to each of these, -1 where it has none; (n,)."""
        return rows if self._is_aligned else self._where[rows]

    @property
    def _is_aligned(self) -> bool:
        manifest = self.layer.manifest
        return (
            not isinstance(self._patches.manifest, ExportManifest)
            and (manifest.kind == "array" or manifest.coverage == manifest.num_patches)
            and manifest.num_patches == self._patches.manifest.num_patches
        )

    @cached_property
    def _where(self) -> NDArray[np.int64]:
        """Row of the layer's table for each row of the table of patches, -1 where there is none; int64 (n,)."""
        ids = _whole(self._patches, layout.ID)
        keys = _whole(self.layer.by_patch, PATCH_ID).combine_chunks()
        found = pc.index_in(ids, value_set=keys)
        return np.where(valid_of(found), values_of(found), -1).astype(np.int64)


def _whole(table: GroupedTable, column: str) -> pa.ChunkedArray[Any]:
    return table.read(range(len(table.group_starts) - 1), [column]).column(column)
