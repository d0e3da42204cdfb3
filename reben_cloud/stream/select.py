"""A selection as the loader needs it: plain arrays in stored order, read from the root's tables once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError
from reben_cloud.files.paths import local_path
from reben_cloud.root import layers, layout
from reben_cloud.root.arrow import codes_of, ints_array, texts_of, values_of
from reben_cloud.root.backing import LmdbFolder, References, RootObjects
from reben_cloud.root.documents import read_objects
from reben_cloud.root.layers import Layer
from reben_cloud.root.layout import PATCHES, PRODUCT, ZARR_ROW
from reben_cloud.root.placement import STORED, check_places
from reben_cloud.root.references import Found, places_in
from reben_cloud.root.references import check_places as check_references
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Ints
from reben_cloud.schema import Modality, SampleArray
from reben_cloud.stream.cache import ShardCache
from reben_cloud.stream.columns import BatchColumns, Columns
from reben_cloud.stream.gather import Arrays, Layout
from reben_cloud.stream.kept import KeptShards
from reben_cloud.stream.readers.base import Counters, Places, Reader, Together
from reben_cloud.stream.readers.lmdb import LmdbReader
from reben_cloud.stream.readers.references import ReferenceReader
from reben_cloud.stream.readers.shards import CACHED_USES, ShardReader

_MANY = 8
"""A selection of more than one in so many rows is taken out of arrays, a smaller one out of the table."""

Form = Literal["shards", "zarr"]
"""From which of a root's forms samples are read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredSelection:
    """The selected patches in stored order: by shard, then by row.

    An entry is a patch, or one of the rows that a table layer has for it (`DrawnRows`, rule ``all``).
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
    def nbytes(self) -> int:
        """Bytes of what is held of the selection: ids, places, labels, checksums, columns."""
        places = self.places
        held: list[NDArray[Any]] = [self.index, self.labels, places.shard, places.row, places.ids]
        held += [*places.checksums.values(), *self.columns.arrays.values()]
        return sum(array.nbytes for array in held)

    @property
    def specs(self) -> Mapping[str, SampleArray]:
        """What a sample has that is known without reading: its label vector, its position, columns of numbers."""
        return {
            "labels": SampleArray((self.labels.shape[1],), np.dtype(np.float32)),
            "index": SampleArray((), np.dtype(np.int64)),
            **{name: SampleArray(a.shape[1:], a.dtype) for name, a in self.columns.arrays.items()},
        }

    def fill(self, arrays: Arrays, patches: Ints) -> None:
        """Put that, of patches at stored positions, into the first rows of a batch's arrays."""
        count = len(patches)
        arrays["labels"][:count] = self.labels[patches]
        arrays["index"][:count] = self.index[patches]
        for name, values in self.columns.arrays.items():
            arrays[name][:count] = values[patches]

    @property
    def former_fingerprint(self) -> str | None:
        """Names the root as the first version did, where that differs."""
        return self.selection.dataset.former_fingerprint

    @property
    def is_local(self) -> bool:
        """Whether it is in a folder of this machine."""
        return self.selection.dataset.store.is_local

    @property
    def part_of_shard(self) -> Ints | None:
        """Which of several roots each shard is of; None: there is one."""
        return None

    @property
    def num_entries(self) -> int:
        """Entries: patches, or the rows that a table layer has for them."""
        repeated = self.columns.patch_of
        return len(self.index) if repeated is None else len(repeated)

    def patches(self, entries: Ints) -> Ints:
        """Which patch each of these entries is of, as a stored position."""
        repeated = self.columns.patch_of
        return entries if repeated is None else repeated[entries]

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
        chosen = selection.dataset.choose_modalities(modalities)
        schema = selection.dataset.schema
        wanted = tuple(m for m in schema.modalities if m.name in chosen)
        # One call: a lazy selection reads its columns together.
        # Only a root has checksums of its payloads for sure; an LMDB of rico-hdl has none.
        summed = [m.name for m in wanted if layout.checksum_column(m.name) in selection.table.names]
        asked = BatchColumns.of(selection, [m.name for m in wanted], columns)
        groups, where = selection.table.places(selection.rows)
        table = selection.table.read(
            groups,
            [
                layout.ID,
                layout.SHARD_GROUP,
                layout.SHARD,
                layout.SHARD_ROW,
                layout.LABELS,
                *map(layout.checksum_column, summed),
                *asked.names,
            ],
            as_codes=[layout.LABELS],
        )
        if len(where) * _MANY < table.num_rows:
            table, where = table.take(ints_array(where)), np.arange(len(where))
        # Else texts and lists become arrays first, of which rows are taken faster than of a table.
        texts, labels = table.column(layout.ID), table.column(layout.LABELS)
        table = table.drop_columns([layout.ID, layout.LABELS]).take(ints_array(where))
        # A stable order of the groups, whatever order the dictionary has.
        names, codes = codes_of(table.column(layout.SHARD_GROUP))
        number = values_of(table.column(layout.SHARD)).astype(np.int64)
        row = values_of(table.column(layout.SHARD_ROW)).astype(np.int64)
        check_places(
            manifest,
            names=names,
            codes=codes,
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
        keys = (codes << 32 | number)[order]
        is_first = np.diff(keys, prepend=-1) != 0
        shards = [(names[key >> 32], key & 0xFFFFFFFF) for key in keys[is_first].tolist()]
        full = manifest.shard_samples
        in_group = {name: group.num_samples for name, group in manifest.groups.items()}
        sizes = [min(full, in_group[name] - n * full) for name, n in shards]
        at = where[order]
        ids = texts_of(texts)[at]
        stored = cls(
            selection=selection,
            modalities=wanted,
            fingerprint=manifest.fingerprint,
            index=order,
            labels=schema.classes.encode(labels)[at],
            columns=asked.read(table, order, selection, ids=ids),
            places=Places(
                shard=np.cumsum(is_first) - 1,
                row=row[order],
                shards=shards,
                num_samples=np.array(sizes, np.int64),
                ids=ids,
                checksums={m: values_of(table.column(layout.checksum_column(m)))[order] for m in summed},
            ),
        )
        del table
        pa.default_memory_pool().release_unused()  # decoding took several times what is kept
        return stored

    def values(self, name: str) -> list[Any]:
        """A column of the selection in stored order."""
        found: list[Any] = _combined(self.selection.column(name)).take(ints_array(self.index)).to_pylist()
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
    layout: Layout = "arrays",
    kept: KeptShards | None = None,
    uses: int = CACHED_USES,
) -> Reader:
    """The reader of the form in which the samples are wanted; array layers are read from their shards.

    `uses` says how often a shard in the cache is expected to save what is asked for at one time.

    Raises:
        ValueError: If `form` or `layout` is unknown, or a cache is asked for where there is none.
    """
    dataset = stored.selection.dataset
    if cache_dir is not None:
        cache_dir = local_path(cache_dir, "cache_dir")
    if form not in get_args(Form):
        raise ValueError(f"form must be 'shards' or 'zarr', got {form!r}")
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be 'arrays' or 'records', got {layout!r}")
    if cache_bytes is not None and cache_dir is None:
        raise ValueError("cache_bytes bounds the files in cache_dir, which is not given")
    cache = ShardCache(cache_dir, cache_bytes) if cache_dir is not None else None
    own = tuple(m for m in stored.modalities if m.name not in dataset.layers)
    readers: list[Reader] = (
        [
            _open_own(
                stored, own, counters, form=form, layout=layout, cache=cache, kept=kept, keep=keep, uses=uses
            )
        ]
        if own
        else []
    )
    for modality in stored.modalities:
        if (layer := dataset.layers.get(modality.name)) is not None:
            places = _places_of(stored, layer)
            shards = layer.read_objects().shards()
            readers.append(
                ShardReader(
                    layer.store,
                    places,
                    shards,
                    (modality,),
                    counters,
                    layout=layout,
                    cache=cache,
                    kept=kept,
                    keep=keep,
                    uses=uses,
                )
            )
    return readers[0] if len(readers) == 1 else Together(readers)


def _open_own(
    stored: StoredSelection,
    modalities: tuple[Modality, ...],
    counters: Counters,
    *,
    form: Form,
    layout: Layout,
    cache: ShardCache | None,
    kept: KeptShards | None,
    keep: int,
    uses: int,
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
            layout=layout,
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
            layout=layout,
        )
    if form == "zarr":
        # Loads numcodecs, a tenth of the time from an interpreter to the first batch of shards.
        from reben_cloud.stream.readers.zarr import ZarrReader

        rows = np.array(stored.values(ZARR_ROW))
        if rows.size and not 0 <= rows.min() <= rows.max() < len(dataset):
            raise ChecksumError(
                f"{dataset.url}/{PATCHES}: names rows {rows.min()} to {rows.max()} of Zarr stores, which have no such "
                "rows; the root is damaged, `reben-cloud verify` says what else is"
            )
        listed = read_objects(dataset.store, dataset.manifest)
        return ZarrReader(
            dataset.store,
            stored.values(PRODUCT),
            rows,
            stored.places.ids,
            listed,
            modalities,
            counters,
            layout=layout,
        )
    shards = read_objects(dataset.store, dataset.manifest).shards()
    return ShardReader(
        dataset.store,
        stored.places,
        shards,
        modalities,
        counters,
        layout=layout,
        cache=cache,
        kept=kept,
        keep=keep,
        uses=uses,
    )


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
    names, codes = codes_of(table.column(layers.GROUP))
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
        return places_in(table.take(ints_array(stored.index)), modality, backing.objects, name=name)
    found = backing.finder.find(stored.keys(modality))
    if wrong := check_references(backing.objects, found.object, found.start, modality.payload_bytes):
        raise ChecksumError(f"{name}: names {wrong}; the root is damaged, index it again (reben-cloud index)")
    return found
