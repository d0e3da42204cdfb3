"""What a batch has of tables: whether layers have anything for a patch, columns of numbers and texts, drawn rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import ints_array, mask_of, valid_of, values_of
from reben_cloud.root.drawn import DrawnRows, turns
from reben_cloud.root.layers import LayerTable
from reben_cloud.root.selection import Selection
from reben_cloud.sampling import Ints

logger = logging.getLogger(__name__)

Beside = dict[str, Any]
"""Name -> what a batch has that is no array of fixed size: a list, or an array of numbers of drawn rows."""


class Rest:
    """What a batch has beside the arrays of its slot, while it is filled; rows that nothing fills are padding.

    Args:
        num_rows: Rows of the slot.
        readers: Give the columns that every batch has, whatever comes to fill them: ranks must agree on names.
    """

    def __init__(self, num_rows: int, readers: Sequence[RowReader]) -> None:
        self._num_rows = num_rows
        self.columns: Beside = {}
        """Name -> list or array with as many rows as the slot."""
        for reader in readers:
            self.columns |= reader.padding(num_rows)

    def put_texts(self, name: str, texts: list[str]) -> None:
        """Set a column of texts; those of padding are empty."""
        self.columns[name] = texts + [""] * (self._num_rows - len(texts))

    def put(self, name: str, rows: slice, values: Any) -> None:
        """Set rows of a column of drawn rows."""
        column = self.columns[name]
        if isinstance(column, np.ndarray) and not isinstance(values, np.ndarray):
            # A null that no number stands for.
            column = self.columns[name] = column.tolist()
        column[rows] = values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Columns:
    """Columns of the selected patches in stored order."""

    arrays: Mapping[str, NDArray[Any]]
    """Name in a batch -> a value of fixed size for each patch, shape (n, ...)."""
    texts: Mapping[str, pa.Array[Any]]
    """Name in a batch -> a text for each patch."""
    drawn: tuple[tuple[DrawnRows, LayerTable], ...]
    """Rows of table layers, and where they are read."""
    ids: NDArray[np.bytes_]
    """Patch ids, for what is chosen by them; none where nothing is."""
    turns: dict[int, Ints] = field(default_factory=dict)
    """Seed -> with which of its rows each patch begins; hashing all ids takes a while, and an epoch needs it again."""
    patch_of: Ints | None
    """Which patch each sample is of, where a patch may be several samples; else a sample is a patch."""

    @property
    def identity(self) -> list[NDArray[np.int64]]:
        """What the samples depend on, beside their patches."""
        return [values for drawn, _ in self.drawn for values in (drawn.offsets, drawn.numbers)]

    def readers(self, epoch: int, *, seed: int) -> list[RowReader]:
        """What reads the drawn rows of an epoch."""
        return [
            RowReader(self, drawn, table, epoch, seed=seed) for drawn, table in self.drawn if drawn.columns
        ]


class RowReader:
    """Reads the rows of a table layer that samples have in an epoch."""

    def __init__(
        self, columns: Columns, drawn: DrawnRows, table: LayerTable, epoch: int, *, seed: int
    ) -> None:
        self._columns = columns
        self._drawn = drawn
        self._table = table
        if drawn.rule == "one":
            if seed not in columns.turns:
                columns.turns[seed] = turns(columns.ids, seed=seed)
            self._turn = columns.turns[seed] + epoch

    def padding(self, num_rows: int) -> Beside:
        """The columns of so many rows of padding: zeros, empty texts, empty lists, None for all else."""
        drawn, schema = self._drawn, self._table.schema
        return {
            layout.joined_column(drawn.layer, name): [[] for _ in range(num_rows)]
            if drawn.rule == "list"
            else _padding(schema.field(name).type, num_rows)
            for name in drawn.columns
        }

    def load(self, entries: Ints, copies: Ints | None = None) -> LoadedRows:
        """The rows of these entries, read; under the rule ``one``, copies of a patch have its rows in turn."""
        drawn, patch_of = self._drawn, self._columns.patch_of
        patches = entries if patch_of is None else patch_of[entries]
        offsets = None
        if drawn.rule == "one":
            turn = self._turn[patches] if copies is None else self._turn[patches] + copies
            rows = drawn.numbers[drawn.offsets[patches] + turn % drawn.counts[patches]]
        elif drawn.rule == "all":
            rows = drawn.numbers[entries]  # in stored order, as the entries are counted
        else:
            some = drawn.taken(patches)
            rows, offsets = some.numbers, some.offsets
        # Each row once, rising, as the file has them.
        unique, inverse = np.unique(rows, return_inverse=True)
        table = self._table.take_once(unique, drawn.columns)
        names = [layout.joined_column(drawn.layer, name) for name in drawn.columns]
        return LoadedRows(table.take(ints_array(inverse)).rename_columns(names), offsets)


class LoadedRows:
    """The rows of the samples of a block.

    Args:
        table: A row per sample, or as many as `offsets` say.
        offsets: Where the rows of each sample begin, and their number in all; None for one each.
    """

    def __init__(self, table: pa.Table, offsets: Ints | None) -> None:
        self._table = table
        self._offsets = offsets

    def take(self, inside: slice) -> dict[str, Any]:
        """Columns of some samples of the block.

        Numbers, and lists of as many numbers each, are an array, NaN where one is null. Where whole numbers or
        booleans have a null, they are a list with None; so is all else. Several rows per sample are a list of lists.
        """
        start, stop = inside.start, inside.stop
        if self._offsets is None:
            part = self._table.slice(start, stop - start)
            return {name: _values(part.column(name)) for name in part.column_names}
        first, last = int(self._offsets[start]), int(self._offsets[stop])
        part = self._table.slice(first, last - first)
        cuts = (self._offsets[start : stop + 1] - first).tolist()
        found = {name: part.column(name).to_pylist() for name in part.column_names}
        return {name: [values[a:b] for a, b in pairwise(cuts)] for name, values in found.items()}


def _values(column: pa.ChunkedArray[Any]) -> Any:
    kind = column.type
    if (is_number(kind) or is_vector(kind)) and (_has_nan(kind) or not column.null_count):
        return numbers_of(column)
    return column.to_pylist()


def _padding(kind: pa.DataType, num_rows: int) -> Any:
    if is_vector(kind):
        return np.zeros((num_rows, kind.list_size), kind.value_type.to_pandas_dtype())
    if is_number(kind):
        return np.zeros(num_rows, kind.to_pandas_dtype())
    return [""] * num_rows if pa.types.is_string(kind) else [None] * num_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchColumns:
    """Which columns of the table of patches batches have."""

    present: Mapping[str, str]
    """Column that says whether a layer has anything -> its name in a batch."""
    numbers: tuple[str, ...]
    """Columns of numbers, or of lists of as many numbers each."""
    texts: tuple[str, ...]
    """Columns of texts."""
    is_asked: bool
    """Whether somebody asked for them by name."""

    @classmethod
    def of(
        cls, selection: Selection, modalities: Sequence[str], columns: Sequence[str] | None
    ) -> BatchColumns:
        """Those that somebody asks for, or all numbers of layers with a row per patch.

        Raises:
            ValueError: If one is not a column of a layer, or of a type that no batch has.
        """
        there = {
            field.name: field.type
            for joined in selection.table.joined.values()
            if joined.layer.manifest.kind == "one"
            for field in joined.fields
            if field.name != layout.present_column(joined.layer.name)
        }
        if isinstance(columns, str):
            raise ValueError(f"columns must be a list of names, such as [{columns!r}], not a string")
        for name in columns or ():
            if name not in there:
                raise ValueError(
                    f"column {name!r} is not one of a layer with a row per patch; there are "
                    f"{', '.join(there) or 'none: open some with rc.open(..., layers=[...])'}"
                )
            if not (is_number(there[name]) or is_vector(there[name]) or pa.types.is_string(there[name])):
                raise ValueError(f"column {name!r} is of type {there[name]}, which no batch has")
        names = [name for name, kind in there.items() if is_number(kind)] if columns is None else columns
        layers = dict.fromkeys([*modalities, *(name.partition(":")[0] for name in names)])
        return cls(
            present={
                column: f"{layer}_present"
                for layer in layers
                if (column := layout.present_column(layer)) in selection.table.names
            },
            numbers=tuple(name for name in names if not pa.types.is_string(there[name])),
            texts=tuple(name for name in names if pa.types.is_string(there[name])),
            is_asked=columns is not None,
        )

    @property
    def names(self) -> list[str]:
        """All columns of the table that are needed."""
        return [*self.present, *self.numbers, *self.texts]

    def read(self, table: pa.Table, order: Ints, selection: Selection, *, ids: NDArray[np.bytes_]) -> Columns:
        """The columns in stored order.

        Args:
            table: The selection's columns, among them those of `names`.
            order: The patches in stored order, as positions in the selection.
            selection: What is streamed.
            ids: Patch ids in stored order, shape (n,).

        Raises:
            ValueError: If a column of whole numbers that was asked for is null for patches that its layer has.
        """
        arrays: dict[str, NDArray[Any]] = {
            name: mask_of(table.column(column))[order] for column, name in self.present.items()
        }
        for name in self.numbers:
            column, there = table.column(name), arrays[f"{name.partition(':')[0]}_present"]
            nulls = column.null_count - int((~there).sum())
            if nulls and not _has_nan(column.type):
                text = f"column {name!r} is null for {nulls:,} patches that its layer has, and {column.type} has no NaN"
                if self.is_asked:
                    raise ValueError(f"{text}; select patches that have it (cql2: {name!r} IS NOT NULL)")
                logger.warning("%s: batches are without it", text)
                continue
            arrays[name] = numbers_of(column)[order]
        stored = [one.taken(order) for one in selection.drawn]
        repeated = [one for one in stored if one.rule == "all"]
        if len(repeated) > 1:
            raise ValueError("only one table can be streamed by the rule 'all'")
        return Columns(
            arrays=arrays,
            texts={name: _filled(table.column(name)).take(ints_array(order)) for name in self.texts},
            drawn=tuple((one, selection.table.joined[one.layer].layer.rows) for one in stored),
            ids=ids if stored else np.empty(0, "S1"),
            patch_of=np.repeat(np.arange(len(order)), repeated[0].counts) if repeated else None,
        )


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type is an array of numbers."""
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column of this type is lists of as many numbers each, such as an embedding."""
    return bool(pa.types.is_fixed_size_list(kind)) and is_number(kind.value_type)


def _has_nan(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind.value_type if is_vector(kind) else kind))


def numbers_of(column: pa.ChunkedArray[Any]) -> NDArray[Any]:
    """A column as an array: (n,), or (n, length of its lists); NaN where it is null, or 0 if there is none.

    It may be the column's own memory, which is read-only.
    """
    kind = column.type
    if is_vector(kind):
        size = kind.list_size
        # What stands below a null list counts as well: the values of all lists lie on end.
        inner = [chunk.values.slice(chunk.offset * size, len(chunk) * size) for chunk in column.chunks]
        found = numbers_of(pa.chunked_array(inner, kind.value_type)).reshape(-1, size)
    elif pa.types.is_boolean(kind):
        return mask_of(column)
    else:
        found = values_of(column)
    if column.null_count:
        found = found.copy()
        found[~valid_of(column)] = np.nan if _has_nan(kind) else 0
    return found


def _filled(column: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """A column of texts as one array, empty where it is null."""
    filled = column.fill_null("")
    combined = filled.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
