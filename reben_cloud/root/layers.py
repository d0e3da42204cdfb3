"""`Layer`: data that others have for the patches of a root, where it lies and what it says of itself.

An array layer is one modality more, cut into shards as its root is; a table layer is one parquet. Neither
touches the root.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from reben_cloud.errors import ChecksumError, ConflictError
from reben_cloud.formats.parquet import ChunkReader, Seal
from reben_cloud.root import layout
from reben_cloud.root.documents import again, get_checked
from reben_cloud.root.grouped import GroupedTable
from reben_cloud.root.layer_manifest import PATCH_ID, LayerManifest
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.manifest_checks import InvalidManifestError
from reben_cloud.root.objects import Objects
from reben_cloud.schema import Modality, Schema
from reben_cloud.store import Store
from reben_cloud.wording import counted, wrapped

GROUP, SHARD, SHARD_ROW, PRESENT, XXH3 = "group", "shard", "shard_row", "present", "xxh3"
"""Columns of an array layer's ``rows.parquet``, beside the patch's id: where its record lies, whether it is more than
fill values, and the checksum of its payload."""

FIRST, COUNT = "first", "count"
"""Columns of ``index.parquet``, beside the patch's id: the first of its rows in ``rows.parquet``, and their number."""


_TypeTest = Callable[[pa.DataType], bool]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_ROWS_OF_TABLES: Mapping[str, _TypeTest] = {PATCH_ID: _is_text}
_ROWS_OF_ARRAYS: Mapping[str, _TypeTest] = {
    PATCH_ID: _is_text,
    GROUP: _is_text,
    SHARD: pa.types.is_integer,
    SHARD_ROW: pa.types.is_integer,
    PRESENT: pa.types.is_boolean,
    XXH3: pa.types.is_uint64,
}
_INDEX: Mapping[str, _TypeTest] = {
    PATCH_ID: _is_text,
    FIRST: pa.types.is_integer,
    COUNT: pa.types.is_integer,
}


class LayerTable(GroupedTable):
    """A table of a layer.

    Args:
        store: The layer.
        path: The table's path there.
        seal: What vouches for it.
        num_rows: Rows that it must have.
        columns: Columns that it must have, and what tells whether their type is right.
    """

    def __init__(
        self, store: Store, path: str, seal: Seal, *, num_rows: int, columns: Mapping[str, _TypeTest]
    ) -> None:
        super().__init__(store, path)
        self._seal, self._expected, self._required = seal, num_rows, columns

    def _open(self) -> ChunkReader:
        reader = again(self.store, self.path, lambda: ChunkReader(self.store, self.path, self._seal))
        if reader.metadata.num_rows != self._expected:
            raise ChecksumError(
                f"{self.store.url}/{self.path} has {reader.metadata.num_rows:,} rows and {layout.LAYER_MANIFEST} says "
                f"{self._expected:,}; the layer is damaged: copy it again from where it was made"
            )
        names = reader.schema.names
        if len(names) > len(set(names)):
            raise ChecksumError(
                f"{self.store.url}/{self.path} has a column twice: {min(n for n in names if names.count(n) > 1)!r}; "
                "what wrote it is not reben_cloud: make the layer with `reben-cloud layer`"
            )
        for name, is_right in self._required.items():
            found = [field.type for field in reader.schema if field.name == name]
            if not found or not is_right(found[0]):
                has = f"a column {name!r} of type {found[0]}" if found else f"no column {name!r}"
                raise ChecksumError(
                    f"{self.store.url}/{self.path} has {has}; what wrote it is not reben_cloud: make the layer with "
                    "`reben-cloud layer`"
                )
        return reader


@dataclass(frozen=True, eq=False)
class Layer:
    """A published layer, whatever root it is attached to. Picklable; reads nothing by itself."""

    store: Store
    """Where it lies, with what lets one in."""
    manifest: LayerManifest
    """What it says of itself."""

    @property
    def name(self) -> str:
        """Name of its modality, or what its columns begin with."""
        return self.manifest.name

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.store.url

    @property
    def modality(self) -> Modality | None:
        """What an array layer adds to every patch; None for a table."""
        schema = self.manifest.schema
        return None if schema is None else schema.modalities[0]

    @cached_property
    def rows(self) -> LayerTable:
        """Its ``rows.parquet``."""
        manifest = self.manifest
        columns = _ROWS_OF_ARRAYS if manifest.kind == "array" else _ROWS_OF_TABLES
        return LayerTable(
            self.store, layout.ROWS, manifest.rows_parquet, num_rows=manifest.num_rows, columns=columns
        )

    @cached_property
    def by_patch(self) -> LayerTable:
        """Its table with one row per patch: ``index.parquet`` where a patch has several rows, else `rows`."""
        manifest = self.manifest
        if (seal := manifest.index_parquet) is None:
            return self.rows
        return LayerTable(self.store, layout.INDEX, seal, num_rows=manifest.coverage, columns=_INDEX)

    def describe(self) -> str:
        """A few lines for people, of the layer by itself."""
        one = self.manifest
        rows: list[tuple[str, str | Sequence[str]]] = [
            ("kind", one.kind),
            ("made for", f"root {one.fingerprint} of {counted(one.num_patches, 'patch', 'patches')}"),
        ]
        if self.modality is not None:
            for t in self.modality.tensors:
                text = f"{t.name}: {t.dtype} {' x '.join(map(str, t.shape))}"
                text += f", {t.units}" if t.units else ""
                text += f", pixels of {t.pixel_m:g} m" if t.pixel_m is not None else ""
                rows.append(("tensor", f"{text}, no data {t.fill:g}"))
            rows.append(("groups", [f"{name} {n:,}" for name, n in one.groups.items()]))
        for name, found in one.statistics.items():
            values = ", ".join(f"{key} {value:,.6g}" for key, value in found.items())
            rows.append(("statistics", f"{name}: {values}"))
        rows += [("provenance", f"{name}: {value}") for name, value in one.provenance.items()]
        return "\n".join([self.summary(), *wrapped(rows)])

    def summary(self) -> str:
        """One line for people."""
        one, title = self.manifest, f", {self.manifest.title}" if self.manifest.title else ""
        rows = f", {one.num_rows:,} rows" if one.kind == "many" else ""
        return f"{one.name}: {one.coverage:,} of {one.num_patches:,} patches{rows}{title}, in {self.url}"

    def read_objects(self) -> Objects:
        """What a layer's ``objects.parquet`` lists, compared with what vouches for it.

        Raises:
            NotFoundError: If it is not there.
            ChecksumError: If it is not the one that the layer names.
        """
        sha256 = self.manifest.objects_sha256
        return get_checked(
            self.store, layout.OBJECTS, lambda data: Objects.parse(data, sha256=sha256, url=self.url)
        )

    def check_root(self, manifest: Manifest, *, url: str) -> None:
        """Refuse a root that the layer was not made for.

        Raises:
            ConflictError: If it is another one, or more of it than an array layer of an export was made for.
        """
        if self.manifest.fingerprint != manifest.fingerprint:
            raise ConflictError(
                f"{self.url}: the layer {self.name} was made for the root {self.manifest.fingerprint} "
                f"({self.manifest.num_patches:,} patches), and {url} is {manifest.fingerprint}: its rows are other "
                "patches. `reben-cloud layer rebase` makes one of it for this root"
            )
        if self.modality is not None and self.manifest.num_patches < manifest.num_patches:
            raise ConflictError(
                f"{self.url}: the layer {self.name} was made for an export of {self.manifest.num_patches:,} patches, "
                f"and {url} has {manifest.num_patches:,}. `reben-cloud layer rebase` makes one of it for all of them"
            )


def read_layer_manifest(store: Store) -> LayerManifest | None:
    """What a layer says of itself; None when there is none.

    Raises:
        ChecksumError: If it is no layer's, or a damaged one.
        StorageError: If the store cannot be reached or refuses.
    """

    def parse(text: memoryview) -> LayerManifest:
        try:
            return LayerManifest.from_bytes(text, where=store.url)
        except InvalidManifestError as error:
            raise ChecksumError(
                f"{store.url}/{layout.LAYER_MANIFEST} is not what a layer says of itself, or it is damaged: {error}; "
                "copy it again from where the layer was made"
            ) from error

    if not store.exists(layout.LAYER_MANIFEST):
        return None
    return get_checked(store, layout.LAYER_MANIFEST, parse)


def with_layers(schema: Schema, layers: tuple[Layer, ...]) -> Schema:
    """The schema of a root with the modalities of array layers after its own.

    Raises:
        ValueError: If a name is taken.
    """
    added = [layer.manifest.schema for layer in layers if layer.manifest.schema is not None]
    if not added:
        return schema
    maps = [one.map_array for one in (schema, *added) if one.map_array is not None]
    return Schema(
        name=schema.name,
        modalities=(*schema.modalities, *(m for one in added for m in one.modalities)),
        classes=schema.classes,
        patch_m=schema.patch_m,
        map_array=maps[0] if maps else None,
        recommended_without=schema.recommended_without,
        description=schema.description,
        license=schema.license,
    )
