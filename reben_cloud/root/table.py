"""``patches.parquet`` read in parts: the footer, then ranges of row groups, column by column.

A remote file is read with one range a row group (neighbours in one), from the first to the last
column that is wanted; what was read once is kept. Columns of layers stand beside those of the file.
This module knows nothing of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from reben_cloud.errors import ChecksumError
from reben_cloud.formats.parquet import ChunkReader
from reben_cloud.root import layout
from reben_cloud.root.documents import open_patches
from reben_cloud.root.grouped import GroupedTable
from reben_cloud.root.joined import JoinedLayer
from reben_cloud.root.layers import Layer
from reben_cloud.root.manifest import Manifest
from reben_cloud.store import Store


class PatchTable(GroupedTable):
    """``patches.parquet`` of a root, and what layers say of its patches; read by row group and column, no byte twice.

    Args:
        store: The root.
        manifest: What vouches for the table (`root.open_patches`).
        layers: Layers whose columns are to stand beside its own.
    """

    def __init__(self, store: Store, manifest: Manifest, layers: Sequence[Layer] = ()) -> None:
        super().__init__(store, layout.PATCHES)
        self.manifest = manifest
        """What the root or the export says of itself."""
        self.joined = {layer.name: JoinedLayer(layer, self) for layer in layers}
        """The layers by name, each row of the table with what a layer has for it."""

    def afresh(self) -> PatchTable:
        """The same table with no columns read yet: what it reads is gone with it."""
        found = PatchTable(self.store, self.manifest, [one.layer for one in self.joined.values()])
        found._reader = self._reader
        return found

    def _open(self) -> ChunkReader:
        reader = open_patches(self.store, self.manifest)
        if reader.metadata.num_rows != (expected := self.manifest.num_patches):
            raise ChecksumError(
                f"{self.store.url}/{layout.PATCHES} has {reader.metadata.num_rows:,} rows and the manifest says "
                f"{expected:,} patches; the root is damaged: copy it again from where it was made"
            )
        return reader

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns, those of layers last."""
        found = self._reader.schema
        for layer in self.joined.values():
            for field in layer.fields:
                found = found.append(field)
        return found

    def _fetch(
        self, groups: Sequence[int], columns: Sequence[str], as_codes: Sequence[str]
    ) -> dict[tuple[int, str], pa.ChunkedArray[Any]]:
        own = [name for name in columns if name in self._reader.schema.names]
        found = super()._fetch(groups, own, as_codes) if own else {}
        for layer in self.joined.values():
            if mine := [field.name for field in layer.fields if field.name in columns]:
                for group in groups:
                    start, stop = self.group_starts[group : group + 2].tolist()
                    part = layer.slice(start, stop, mine)
                    found |= {(group, name): part.column(name) for name in mine}
        return found

    def bounds(self, group: int, leaf: str) -> tuple[Any, Any] | None:
        """Smallest and largest value of a leaf column in a row group; None when not recorded.

        As the file has them: a time is its microseconds since 1970.
        """
        column = self._reader.metadata.row_group(group).column(self._leaf(leaf))
        stats = column.statistics
        # The cooked values of a time would load pandas, which takes longer than all else of a search.
        return (stats.min_raw, stats.max_raw) if stats is not None and stats.has_min_max else None

    def _leaf(self, path: str) -> int:
        group = self._reader.metadata.row_group(0)
        return next(i for i in range(group.num_columns) if group.column(i).path_in_schema == path)
