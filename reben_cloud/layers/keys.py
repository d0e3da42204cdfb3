"""Which patch each row of a table is about: the column that names patches, and which of their names it has.

Names are looked up, never taken apart or rebuilt: those of BigEarthNet v1 do not follow from anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.layers.tabular import TableSource
from reben_cloud.root import layout
from reben_cloud.root.arrow import valid_of, values_of
from reben_cloud.root.dataset import Dataset

Key = Literal["patch_id", "s1_name", "s2v1_name"]
"""A name of a patch: its id, that of its Sentinel-1 patch, or its id in version 1."""

_SAMPLE_ROWS = 4_096
_USUAL = (*get_args(Key), "id")
"""Columns that are looked at first."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Keys:
    """What the rows of a table are about."""

    column: str
    """Column of the table that names the patches."""
    key: Key
    """What their names in it are."""
    patches: NDArray[np.int64]
    """Row of the root's table for each row; -1 where the name is no patch's. Shape (num_rows,)."""
    num_names: int
    """Different names."""
    num_unknown: int
    """Different names that no patch has."""
    first_unknown: str | None
    """The first of them."""


def find_keys(source: TableSource, ds: Dataset, key: Key | None) -> Keys:
    """Find out which patch each row of a table is about.

    Args:
        source: The table.
        ds: The root.
        key: What the names are; None to look.

    Raises:
        SourceError: If no column names patches, or names of one mean several things.
        ValueError: If the key is none, or the root does not know it.
    """
    names = _names(ds)
    if key is not None:
        if key not in names:
            raise ValueError(f"key must be one of {', '.join(names)} of {ds.url}, got {key!r}")
        names = {key: names[key]}
    headings = pa.array(source.schema.names, pa.string())
    if any(_count(headings, names).values()):
        raise SourceError(
            f"{source.name} has no header: its first line names a patch; write names of columns before it"
        )
    columns = [field.name for field in source.schema if _is_text(field.type)]
    usual = [name for name in ([key] if key else []) + list(_USUAL) if name in columns]
    others = [name for name in columns if name not in usual]
    found = _look(source, dict.fromkeys([*usual, *others]), names)
    column, codes = found if found is not None else _look_at_all(source, usual, others, names, ds)
    there = codes.chunk(0).dictionary if codes.num_chunks else pa.array([], pa.string())
    hits = _count(there, names)
    found_key = _only(hits, column, len(there), ds)
    rows = pc.index_in(there, value_set=names[found_key])
    of_code = np.append(np.where(valid_of(rows), values_of(rows), -1), -1).astype(np.int64)
    indices = [pc.fill_null(chunk.indices, len(there)) for chunk in codes.chunks]
    numbers = np.concatenate([np.empty(0, np.int64), *(values_of(one) for one in indices)]).astype(np.int64)
    unknown = np.flatnonzero(of_code[:-1] < 0)
    has_null = bool((numbers == len(there)).any())
    first = str(there[int(unknown[0])]) if len(unknown) else ("no name at all" if has_null else None)
    return Keys(
        column=column,
        key=found_key,
        patches=of_code[numbers],
        num_names=len(there) + has_null,
        num_unknown=len(unknown) + has_null,
        first_unknown=first,
    )


def _names(ds: Dataset) -> dict[Key, pa.ChunkedArray[pa.Scalar]]:
    """The names of all patches, of each kind that the root knows."""
    known: Mapping[Key, str] = {key: layout.column(key) for key in get_args(Key)}
    there = {key: column for key, column in known.items() if column in ds.patch_table.names}
    table = ds.selection.columns(list(there.values()))
    return {key: table.column(column).cast(pa.string()) for key, column in there.items()}


def _look(
    source: TableSource, columns: Mapping[str, None], names: Mapping[Key, pa.ChunkedArray[pa.Scalar]]
) -> tuple[str, pa.ChunkedArray[pa.Scalar]] | None:
    """The first column whose first values name patches, and its codes; None if no column does."""
    first = next(iter(source.batches(list(columns), batch_rows=_SAMPLE_ROWS)), None)
    if first is None:
        return None
    for column in columns:
        if any(_count(pc.unique(_texts(first.column(column))), names).values()):
            return column, source.codes(column)
    return None


def _look_at_all(
    source: TableSource,
    usual: Sequence[str],
    others: Sequence[str],
    names: Mapping[Key, pa.ChunkedArray[pa.Scalar]],
    ds: Dataset,
) -> tuple[str, pa.ChunkedArray[pa.Scalar]]:
    """The column with names of patches where the first rows have none."""
    for column in usual:
        codes = source.codes(column)
        if codes.num_chunks and any(_count(codes.chunk(0).dictionary, names).values()):
            return column, codes
    raise SourceError(
        f"{source.name}: {_nothing_found(source, [*usual, *others])}, so it cannot be told which patch a row is about; "
        f"patches of {ds.url} are named by their {' or '.join(names)}, such as {next(iter(names.values()))[0]}"
    )


def _nothing_found(source: TableSource, columns: Sequence[str]) -> str:
    """What there is where names of patches should be."""
    there = source.schema.names
    if len(there) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in there[0]]):
        return f"its columns are separated by {marks[0]!r} and not by commas"
    first = next(iter(source.batches([*columns, *there][:1], batch_rows=1)), None)
    if first is None or not first.num_rows:
        return "it has no rows"
    if not columns:
        return f"it has no column of strings among {', '.join(map(repr, there))}"
    shown = ", ".join(map(repr, columns))
    return f"no value of {shown} names a patch (the first of {columns[0]!r} is {first.column(0)[0].as_py()!r:.80})"


def _count(values: pa.Array[pa.Scalar], names: Mapping[Key, pa.ChunkedArray[pa.Scalar]]) -> dict[Key, int]:
    """How many of some different values are names of patches, by kind."""
    return {
        key: int(pc.sum(pc.is_in(values, value_set=known)).as_py() or 0) if len(values) else 0
        for key, known in names.items()
    }


def _only(hits: Mapping[Key, int], column: str, num_names: int, ds: Dataset) -> Key:
    fits = [key for key, number in hits.items() if number]
    if len(fits) > 1:
        counts = ", ".join(f"{number:,} are a {key}" for key, number in hits.items())
        raise SourceError(
            f"column {column!r} has {num_names:,} different names, which mean several things in {ds.url}: {counts}; "
            "say by `key` (--key) which is meant"
        )
    return fits[0]


def _texts(column: pa.ChunkedArray[pa.Scalar]) -> pa.ChunkedArray[pa.Scalar]:
    return column.cast(pa.string())


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
