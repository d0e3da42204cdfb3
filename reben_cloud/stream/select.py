"""A selection as the loader needs it: plain arrays in stored order, read from the root's tables once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.files.paths import local_path
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import values_of
from reben_cloud.root.backing import LmdbFolder, References, RootObjects
from reben_cloud.root.documents import read_objects
from reben_cloud.root.layers import Layer
from reben_cloud.root.layout import PATCHES
from reben_cloud.root.objects import Objects
from reben_cloud.root.placement import STORED, check_places
from reben_cloud.root.references import Found, places_in
from reben_cloud.root.references import check_places as check_references
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Ints
from reben_cloud.schema import Modality
from reben_cloud.stream.cache import ShardCache
from reben_cloud.stream.columns import BatchColumns, Columns
from reben_cloud.stream.readers.base import Counters, Places, Reader, Together
from reben_cloud.stream.readers.lmdb import LmdbReader
from reben_cloud.stream.readers.references import ReferenceReader
from reben_cloud.stream.readers.shards import ShardReader
from reben_cloud.stream.readers.zarr import ZarrReader

Form = Literal["shards", "zarr"]
"""From which of a root's forms samples are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSelection:
    """The selected patches in stored order: by shard, then by row.

    A sample is a patch, or one of the rows that a table layer has for it (`DrawnRows`, rule ``all``).
    """

    selection: Selection
    """The selection itself."""
    modalities: tuple[Modality, ...]
    """What to stream, in the order of the schema."""
    fingerprint: str
    """Hex digits that name the root."""
    index: Ints
    """Position in the selection of each patch, shape (n,)."""
    labels: NDArray[np.uint8]
    """Multi-hot labels in the order of the schema's classes, shape (n, num_classes)."""
    places: Places
    """Where they lie in the shards; the order of an epoch follows from it, whatever form is read."""
    columns: Columns
    """What a batch has of tables: whether layers have anything for a patch, numbers, texts."""

    @property
    def digest(self) -> int:
        """Names what is selected, and in which order: in [0, 2**63)."""
        digest = xxhash.xxh3_64()
        for values in (self.places.shard, self.places.row, self.index, *self.columns.identity):
            digest.update(np.ascontiguousarray(values).data)
        return digest.intdigest() >> 1

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        repeated = self.columns.patch_of
        return len(self.index) if repeated is None else len(repeated)

    def patches(self, samples: Ints) -> Ints:
        """Which patch each of these samples is of, as a stored position."""
        repeated = self.columns.patch_of
        return samples if repeated is None else repeated[samples]

    @classmethod
    def of(
        cls, selection: Selection, modalities: Sequence[str] | None, columns: Sequence[str] | None = None
    ) -> StoredSelection:
        """Read the columns of a selection and sort them.

        Args:
            selection: What to stream.
            modalities: Names of what to stream; all by default.
            columns: Columns of table layers that batches are to have; by default all of numbers that are never null.

        Raises:
            TypeError: If it is no selection.
            ValueError: If a modality is unknown, or the dataset has it not, or no pixels at all.
        """
        if not isinstance(selection, Selection):
            raise TypeError(
                f"a selection is streamed, not a {type(selection).__name__}: pass `dataset.search()` for all of it"
            )
        manifest = selection.dataset.manifest
        there = selection.dataset.modalities
        if not there:
            raise ValueError(
                f"{selection.dataset.url} has metadata and no pixels, so there is nothing to stream; "
                "make a root that has them with `reben-cloud build`"
            )
        if isinstance(modalities, str):
            raise ValueError(f"modalities must be a list of names, such as [{modalities!r}], not a string")
        for modality in modalities or ():
            if modality not in there:
                is_table = modality in selection.dataset.layers
                raise ValueError(
                    f"modality {modality!r} is not in {selection.dataset.url}, which has {', '.join(there)}"
                    + (
                        "; the layer of that name is a table: its columns= come with any of them"
                        if is_table
                        else ""
                    )
                )
        schema = selection.dataset.schema
        wanted = tuple(m for m in schema.modalities if m.name in (modalities or there))
        # One call: a lazy selection reads its columns together.
        # Only a root has checksums of its payloads for sure; an LMDB of rico-hdl has none.
        summed = [m.name for m in wanted if layout.checksum_column(m.name) in selection.table.names]
        asked = BatchColumns.of(selection, [m.name for m in wanted], columns)
        table = selection.columns(
            [
                layout.ID,
                layout.SHARD_GROUP,
                layout.SHARD,
                layout.SHARD_ROW,
                layout.LABELS,
                *map(layout.checksum_column, summed),
                *asked.names,
            ]
        )
        group = _combined(table.column(layout.SHARD_GROUP).cast(pa.string())).dictionary_encode()
        names = group.dictionary.to_pylist()
        codes = group.indices.to_numpy().astype(np.int64)
        # A stable order of the groups, whatever order the dictionary has.
        codes = np.argsort(np.argsort(names, kind="stable"), kind="stable")[codes] if names else codes
        names = sorted(names)
        number = table.column(layout.SHARD).to_numpy().astype(np.int64)
        row = table.column(layout.SHARD_ROW).to_numpy().astype(np.int64)
        check_places(
            manifest,
            groups=np.array(names, object)[codes] if names else codes,
            shards=number,
            rows=row,
            name=f"{selection.dataset.url}/{PATCHES}",
        )
        order = np.lexsort((row, number, codes))
        if manifest.order.kind == STORED and not isinstance(selection.dataset.backing, RootObjects):
            # Nothing lies in shards, so the selection itself is cut into as large ones: what is read together
            # is then as much for a few patches of each shard as for all.
            codes, number, row = np.zeros_like(codes), np.empty_like(number), np.empty_like(row)
            number[order], row[order] = np.divmod(np.arange(len(order)), manifest.shard_samples)
        keys, shard = np.unique((codes << 32 | number)[order], return_inverse=True)
        shards = [(names[key >> 32], key & 0xFFFFFFFF) for key in keys.tolist()]
        full = manifest.shard_samples
        in_group = [manifest.groups[name].num_samples for name, _ in shards]
        sizes = [min(full, total - n * full) for total, (_, n) in zip(in_group, shards, strict=True)]
        stored = cls(
            selection=selection,
            modalities=wanted,
            fingerprint=manifest.fingerprint,
            index=order,
            labels=schema.classes.encode(table.column(layout.LABELS))[order],
            columns=asked.read(table, order, selection),
            places=Places(
                shard=shard.astype(np.int64),
                row=row[order],
                shards=shards,
                num_samples=np.array(sizes, np.int64),
                ids=table.column(layout.ID).to_numpy().astype(np.bytes_)[order],
                checksums={
                    m: table.column(layout.checksum_column(m)).to_numpy().astype(np.uint64)[order]
                    for m in summed
                },
            ),
        )
        del table
        pa.default_memory_pool().release_unused()  # decoding took several times what is kept
        return stored

    def values(self, name: str) -> list[Any]:
        """A column of the selection in stored order."""
        found: list[Any] = _combined(self.selection.column(name)).take(pa.array(self.index)).to_pylist()
        return found

    def keys(self, modality: Modality) -> list[str]:
        """The LMDB key of each sample's payload of a modality, in stored order."""
        return [f"{name}{modality.key_suffix}" for name in self.values(layout.column(modality.key_column))]


def _combined(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def open_reader(
    stored: StoredSelection,
    counters: Counters,
    *,
    form: Form,
    cache_dir: str | os.PathLike[str] | None,
    cache_bytes: int | None,
    keep: int,
) -> Reader:
    """The reader of the form in which the samples are wanted; array layers are read from their shards.

    Raises:
        ValueError: If `form` is unknown, or a cache is asked for where there is none.
    """
    dataset = stored.selection.dataset
    if cache_dir is not None:
        cache_dir = local_path(cache_dir, "cache_dir")
    if form not in get_args(Form):
        raise ValueError(f"form must be 'shards' or 'zarr', got {form!r}")
    if cache_bytes is not None and cache_dir is None:
        raise ValueError("cache_bytes bounds the files in cache_dir, which is not given")
    cache = ShardCache(cache_dir, cache_bytes) if cache_dir is not None else None
    own = tuple(m for m in stored.modalities if m.name not in dataset.layers)
    readers: list[Reader] = (
        [_open_own(stored, own, counters, form=form, cache=cache, keep=keep)] if own else []
    )
    for modality in stored.modalities:
        if (layer := dataset.layers.get(modality.name)) is not None:
            places = _places_of(stored, layer)
            objects = _shard_objects(layer.read_objects())
            readers.append(
                ShardReader(layer.store, places, objects, (modality,), counters, cache=cache, keep=keep)
            )
    return readers[0] if len(readers) == 1 else Together(readers)


def _open_own(
    stored: StoredSelection,
    modalities: tuple[Modality, ...],
    counters: Counters,
    *,
    form: Form,
    cache: ShardCache | None,
    keep: int,
) -> Reader:
    """What reads modalities of the dataset itself."""
    dataset = stored.selection.dataset
    if isinstance(dataset.backing, LmdbFolder):
        return LmdbReader(
            dataset.backing.path,
            {m.name: stored.keys(m) for m in modalities},
            modalities,
            stored.places.checksums,
            counters,
        )
    if isinstance(dataset.backing, References):
        if form == "zarr":
            raise ValueError(
                f"{dataset.url} refers to payloads elsewhere and has no Zarr stores; leave form out"
            )
        return ReferenceReader(
            dataset.backing.reader(),
            {m.name: _references(stored, dataset.backing, m) for m in modalities},
            stored.places.ids,
            modalities,
            stored.places.checksums,
            counters,
        )
    if form == "zarr":
        rows = np.array(stored.values(layout.ZARR_ROW))
        if rows.size and not 0 <= rows.min() <= rows.max() < len(dataset):
            raise ChecksumError(
                f"{dataset.url}/{PATCHES}: names rows {rows.min()} to {rows.max()} of Zarr stores, which have no such "
                "rows; the root is damaged, `reben-cloud verify` says what else is"
            )
        listed = read_objects(dataset.store, dataset.manifest).items()
        sizes = {path: one.nbytes for path, one in listed}
        return ZarrReader(
            dataset.store,
            stored.values(layout.PRODUCT),
            rows,
            stored.places.ids,
            sizes,
            modalities,
            counters,
        )
    objects = _shard_objects(read_objects(dataset.store, dataset.manifest))
    return ShardReader(dataset.store, stored.places, objects, modalities, counters, cache=cache, keep=keep)


def _places_of(stored: StoredSelection, layer: Layer) -> Places:
    """Where the samples lie in the shards of an array layer, in stored order.

    Raises:
        ChecksumError: If one would lie outside of its shard, or the layer has nothing at all for it.
    """
    selection, name = stored.selection, f"{layer.url}/{layout.ROWS}"
    columns = [layers.GROUP, layers.SHARD, layers.SHARD_ROW]
    table = selection.table.joined[layer.name].take(selection.rows[stored.index], columns)
    if any(table.column(column).null_count for column in columns):
        raise ChecksumError(
            f"{name}: lacks patches of {selection.dataset.url}: the layer was made for another export (then "
            "`reben-cloud layer rebase` makes one of it for this dataset), or it is damaged"
        )
    group = _combined(table.column(layers.GROUP).cast(pa.string())).dictionary_encode()
    names, codes = group.dictionary.to_pylist(), group.indices.to_numpy().astype(np.int64)
    number, row = (values_of(table.column(c)).astype(np.int64) for c in columns[1:])
    if number.size and not 0 <= number.min() <= number.max() < 1 << 32:
        raise ChecksumError(f"{name}: names shards {number.min()} to {number.max()}; the layer is damaged")
    keys, shard = np.unique(codes << 32 | number, return_inverse=True)
    shards = [(names[key >> 32], key & 0xFFFFFFFF) for key in keys.tolist()]
    return Places(
        shard=shard.astype(np.int64),
        row=row,
        shards=shards,
        num_samples=np.array([layer.manifest.samples_in(*one) for one in shards], np.int64),
        ids=stored.places.ids,
        checksums=stored.places.checksums,
    )


def _references(stored: StoredSelection, backing: References, modality: Modality) -> Found:
    """Where the payloads of a modality lie in other people's objects, in stored order.

    Raises:
        ChecksumError: If one would not be inside its object, or has another size than the schema says.
    """
    name = f"{stored.selection.dataset.url}/{PATCHES}"
    if backing.finder is None:
        table: pa.Table = stored.selection.columns(list(layout.place_columns(modality.name)))
        return places_in(table.take(pa.array(stored.index)), modality, backing.objects, name=name)
    found = backing.finder.find(stored.keys(modality))
    if wrong := check_references(backing.objects, found.object, found.start, modality.payload_bytes):
        raise ChecksumError(f"{name}: names {wrong}; the root is damaged, index it again (reben-cloud index)")
    return found


def _shard_objects(listed: Objects) -> dict[str, tuple[int, int]]:
    """Path of each shard -> (bytes, xxh3-64)."""
    return {path: (one.nbytes, one.xxh3) for path, one in listed.items() if one.xxh3 is not None}
