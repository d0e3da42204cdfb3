"""What a table layer can hold: which columns a table gives it, of which types, and how values become these types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.errors import SourceError
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import PRESENT
from reben_cloud.schema import check_names

_TIME = pa.timestamp("us", "UTC")

Choice = Sequence[str] | Mapping[str, str] | None
"""Columns of a table, or column -> its name in the layer; None for all."""


def chosen_columns(names: Sequence[str], choice: Choice, *, key_column: str) -> dict[str, str]:
    """Column of a table -> its name in the layer.

    The column with the names of patches is not among them, as the layer has their ids, nor is an index that pandas
    wrote without a name.

    Args:
        names: The columns that there are.
        choice: Those that are wanted.
        key_column: The one that names the patches.

    Raises:
        SourceError: If two have one name, one has a name that the layer itself needs, or there is none.
        ValueError: If a column that is wanted is not there; the message has the nearest names.
    """
    if choice is None:
        found = {
            name: name
            for name in names
            if name != key_column and name and not name.startswith("__index_level_")
        }
    else:
        if isinstance(choice, str):
            raise ValueError(f"columns must be a list of names, such as [{choice!r}], not a string")
        wanted = dict(choice) if isinstance(choice, Mapping) else {name: name for name in choice}
        check_names(list(wanted), list(names), "column")
        found = {name: new for name, new in wanted.items() if name != key_column}
    way_out = "give `columns` as {column: name in the layer}"
    for name, new in found.items():
        is_ours = new in (PRESENT, PATCH_ID)
        if is_ours or not new or "." in new:
            why = "it has one of that name of its own" if is_ours else "a name is not empty and has no dot"
            raise SourceError(f"column {name!r} cannot be called {new!r} in a layer: {why}; {way_out}")
    if not found:
        raise SourceError(f"there is no column beside {key_column!r}, which names the patches")
    taken = list(found.values())
    if twice := [new for new in taken if taken.count(new) > 1]:
        raise SourceError(f"two columns would be called {twice[0]!r}; {way_out}")
    return found


def layer_type(name: str, kind: pa.DataType, sample: pa.ChunkedArray[pa.Scalar]) -> pa.DataType:
    """The type that a layer keeps a column in.

    Strings of all kinds are strings, times are microseconds in UTC (one without a zone is in UTC), dates their first
    instant, and lists have the length of the first one: all must have it.

    Args:
        name: Name of the column.
        kind: Its type.
        sample: Some of its values.

    Raises:
        SourceError: If a layer cannot hold it.
    """
    types = pa.types
    if types.is_dictionary(kind):
        return layer_type(name, kind.value_type, sample)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return kind
    if (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_time(kind)
    ):
        return pa.string()
    if types.is_timestamp(kind) or types.is_date(kind):
        return _TIME
    if types.is_decimal(kind) or types.is_null(kind):
        return pa.float64()
    if types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        return pa.list_(kind.value_type, kind.list_size)
    if (types.is_list(kind) or types.is_large_list(kind)) and _is_number(kind.value_type):
        sizes = pc.list_value_length(sample).drop_null()
        if len(sizes) and sizes[0].as_py():
            return pa.list_(kind.value_type, sizes[0].as_py())
    raise SourceError(
        f"column {name!r} is of the type {kind}, which a layer cannot hold: it takes strings, booleans, numbers, "
        "times, and lists of numbers that are all of one length; leave it out with `columns`"
    )


def to_layer(batch: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table in the types of a layer, column by column in the order of both.

    Raises:
        SourceError: If a value cannot be one of its type, such as a list of another length.
    """
    columns = []
    for field, column in zip(schema, batch.columns, strict=True):
        try:
            columns.append(column if column.type == field.type else _cast(column, field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            cause = str(error).splitlines()[0]
            raise SourceError(
                f"column {field.name!r} has a value that is no {field.type}: {cause}"
            ) from error
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray[pa.Scalar], kind: pa.DataType) -> pa.ChunkedArray[pa.Scalar]:
    if pa.types.is_timestamp(kind) and pa.types.is_date(column.type):
        return column.cast(pa.timestamp("us")).cast(kind)
    if pa.types.is_timestamp(kind):
        return column.cast(kind, safe=False)  # nanoseconds are cut off
    return column.cast(kind)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
