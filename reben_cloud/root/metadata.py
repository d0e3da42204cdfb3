"""The metadata of which a root is made: what they must be, and how they are read back from its table of patches.

A row is a patch. What is stored of it, and under which names, is written by `root.patches`; whatever goes into
a root comes out of it again with the same names, types and values, so that a root can be built of a root.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.errors import SourceError
from reben_cloud.formats import tar
from reben_cloud.root import layout
from reben_cloud.root.digest import table_digest
from reben_cloud.root.patch import PatchInfo
from reben_cloud.root.placement import SPLITS
from reben_cloud.schema import Schema, check_names

Column = Any
"""An Arrow array; the stubs' element types would say no more than the column's name does."""

PLACE = ("epsg", "x0", "y0")
"""Metadata that say where a patch is: they become geometry, bbox and ``proj:`` columns."""

SQUARE = ("square", "square_x0", "square_y0")
"""Metadata that group products which share a place, for the order of the rows; they are not stored."""

REQUIRED = ("patch_id", "labels", "split", "product", "datetime", *PLACE)
"""Columns without which there is no table of patches."""

_TYPES = {
    "epsg": pa.int64(),
    "x0": pa.float64(),
    "y0": pa.float64(),
    "datetime": pa.timestamp("us", "UTC"),
}
"""Types of what is stored in another form than it was given, or in a column of STAC's."""

_PATCH_ID = r"^[A-Za-z0-9_~-]+$"  # names of files, which a dot ends in a tar, and parts of URLs
_PRODUCT = r"^[A-Za-z0-9_~][A-Za-z0-9_.~-]*$"
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_:-]*")


def patch_infos(table: pa.Table) -> Iterator[PatchInfo]:
    """The rows of a metadata table as values."""
    left = {"bbox", "product", "s1_datetime", *PLACE, *SQUARE, *layout.STAC}
    known = {field.name for field in fields(PatchInfo)}
    names = [name for name in table.column_names if name in known]
    more = [name for name in table.column_names if name not in known and name not in left]
    for row in table.select([*names, *more]).to_pylist():
        others = {name: row.pop(name) for name in more}
        yield PatchInfo(**{**row, "labels": tuple(row["labels"])}, more=others)


# -- into a root -------------------------------------------------------------------------------------


def storable(table: pa.Table) -> pa.Table:
    """Given metadata, without what is not stored, in the types in which they will be read back.

    Raises:
        SourceError: If a column cannot have the type that it must have, or is of a type that cannot be kept.
    """
    columns: dict[str, Column] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in SQUARE:
            continue
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_timestamp(kind) and kind.unit == "s":
            kind = pa.timestamp("ms", kind.tz)  # Parquet has no whole seconds
        kind = _TYPES.get(name, kind)
        try:
            columns[name] = column.cast(kind)
            table_digest(pa.table({name: columns[name].slice(0, 0)}))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
            raise SourceError(f"column {name} of the metadata is {column.type}: {error}") from error
    return pa.table(columns)


def check_metadata(table: pa.Table, schema: Schema) -> None:
    """Refuse metadata of which no root can be made.

    Raises:
        SourceError: If a column is missing or has a name that a root needs itself, a value is null, a split or a
            label is unknown, a name cannot be part of paths, a product has two projections, or a patch comes twice.
    """
    keys = [modality.key_column for modality in schema.modalities]
    needed = dict.fromkeys((*REQUIRED, *schema.recommended_without, *keys))
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise SourceError(
            f"the metadata lack {', '.join(missing)}; they have {', '.join(table.column_names)}"
        )
    for name in needed:
        if nulls := table.column(name).null_count:
            raise SourceError(f"column {name} of the metadata has {nulls} nulls")
    places = {column for modality in schema.modality_names for column in layout.place_columns(modality)}
    for name in table.column_names:
        stored = layout.column(name)
        if name == "bbox" or stored in (*layout.PLACEMENT, *places) or layout.is_checksum_column(stored):
            raise SourceError(
                f"a root has a column {name!r} of its own; the metadata must name theirs differently"
            )
        if not _COLUMN.fullmatch(name):
            raise SourceError(
                f"{name!r} is not a valid name of a metadata column: it must be letters, digits, '_', ':' and '-'"
            )
    _check_names(table, schema)
    try:
        schema.classes.check(pc.unique(pc.list_flatten(table.column("labels"))).to_pylist())
        check_names(pc.unique(table.column("split")).to_pylist(), SPLITS, "split")
    except ValueError as error:
        raise SourceError(f"the metadata have an {error}") from error
    counts = pc.value_counts(table.column("patch_id"))
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise SourceError(
            f"{twice[0]['values']}: this patch comes {twice[0]['counts']} times in the metadata"
        )
    places = table.select(["product", "epsg"]).group_by("product").aggregate([("epsg", "count_distinct")])
    several = places.filter(pc.greater(places.column("epsg_count_distinct"), 1)).column("product")
    if len(several):
        raise SourceError(
            f"product {several[0]} has patches in several projections (epsg), and a Zarr store has one; make a product "
            "of each"
        )


def _check_names(table: pa.Table, schema: Schema) -> None:
    for name, pattern in (("patch_id", _PATCH_ID), ("product", _PRODUCT)):
        column = table.column(name).cast(pa.string())
        wrong = column.filter(pc.invert(pc.match_substring_regex(column, pattern)))
        if len(wrong):
            dots = ", dots" if name == "product" else ""
            raise SourceError(
                f"{wrong[0].as_py()!r} is not a valid {name}: it is part of paths and URLs, so it must be letters, "
                f"digits{dots}, '_', '~' and '-'"
            )
    longest = pc.max(pc.binary_length(table.column("patch_id"))).as_py() or 0
    for modality in schema.modalities:
        if (size := longest + len(f".{modality.name}.safetensors")) > tar.NAME_BYTES:
            raise SourceError(
                f"a patch_id of {longest} characters is too long: with the name of modality {modality.name} the member "
                f"of a shard would have {size}, and {tar.NAME_BYTES} is the most"
            )


def sample_json(table: pa.Table, schema: Schema) -> list[dict[str, object]]:
    """The metadata that goes beside each payload of a shard, in the order of the rows of a metadata table."""
    left = (*PLACE, *SQUARE, *layout.STAC, "product", "s1_datetime")
    given = [name for name in table.column_names if name not in left]
    # Null in a dataset made from Sentinel-2 alone.
    times = [name for name in ("datetime", "s1_datetime") if name in table.column_names]
    found = []
    for row in table.to_pylist():
        x0, y0 = row["x0"], row["y0"]
        found.append(
            {name: plain_value(row[name]) for name in [*given, *times]}
            | {"epsg": row["epsg"], "bbox": [x0, y0 - schema.patch_m, x0 + schema.patch_m, y0]}
        )
    return found


def plain_value(value: Any) -> Any:
    """A value of the metadata as JSON can hold it: a time as STAC writes it, and null for what is not a number."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def rfc3339(time: Any) -> str:
    """A UTC datetime as STAC writes it: ``2017-06-13T10:10:31Z``."""
    return str(time.strftime("%Y-%m-%dT%H:%M:%SZ"))


# -- out of a root -----------------------------------------------------------------------------------

_STORED = {"epsg": "proj:code", "x0": "proj:bbox", "y0": "proj:bbox"}
"""Metadata that are stored in another form -> the column that has them."""


def given_columns(names: Sequence[str]) -> list[str]:
    """The columns of ``patches.parquet`` that `given_metadata` takes for metadata columns of these names."""
    return list(dict.fromkeys(_STORED.get(name) or layout.column(name) for name in names))


def given_metadata(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The metadata that a root was made of, from columns of ``patches.parquet``, sorted by ``patch_id``.

    Args:
        table: At least the columns `given_columns` of `names`.
        names: Names of the metadata columns.
    """
    columns: dict[str, Column] = {}
    for name in names:
        if name in _STORED:
            columns[name] = pa.array(_place(table, name), _TYPES[name])
            continue
        column = table.column(layout.column(name))
        kind = column.type
        columns[name] = column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column
    found = pa.table(columns)
    if set(OFFICIAL_SCHEMA.names) == set(names):
        found = found.select(OFFICIAL_SCHEMA.names).cast(OFFICIAL_SCHEMA)
    return found.sort_by("patch_id").combine_chunks()


_DESCRIBING = (
    *(layout.PRODUCT, layout.DATETIME, layout.S1_DATETIME),
    *("proj:code", "proj:bbox", "platform", "constellation", "grid:code"),
)
"""Columns that describe patches, and need not be among the metadata of which a root was made."""


def described_columns(there: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns of ``patches.parquet``, of those that are `there`, that `described_metadata` takes."""
    given = given_columns(names)
    return [*given, *(name for name in _DESCRIBING if name in there and name not in given)]


def described_metadata(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The metadata that a root was made of, with what describes its patches, from ``patches.parquet``.

    Args:
        table: The columns that `described_columns` names; others are left out.
        names: Names of the metadata columns of which the root was made.

    Returns:
        Those columns, then ``product``, times and the place of each patch, sorted by ``patch_id``.
    """
    found = given_metadata(table, names)
    table = table.sort_by(layout.ID).combine_chunks()
    added: dict[str, Any] = {
        name.removeprefix(layout.PREFIX): table.column(name)
        for name in _DESCRIBING
        if name in table.column_names and not name.startswith("proj:")
    }
    added["epsg"] = pa.array(_place(table, "epsg"))
    # As `describe` gives it: a build sorts by it, and Arrow sorts no dictionaries.
    added["product"] = table.column(layout.PRODUCT).cast(pa.string())
    added |= {name: pa.array(_whole(_place(table, name))) for name in ("x0", "y0")}
    for name, column in added.items():
        if name not in names:
            found = found.append_column(name, column)
    return found


def with_columns_of(metadata: pa.Table, described: pa.Table) -> pa.Table:
    """Metadata with the columns that they lack and `described` has, each row with those of its patch.

    Args:
        metadata: Some patches of `described`, in any order.
        described: A row per patch.
    """
    rows = pc.index_in(metadata.column("patch_id"), described.column("patch_id").combine_chunks())
    found = described.take(rows)
    for name in found.column_names:
        if name not in metadata.column_names:
            metadata = metadata.append_column(name, found.column(name))
    return metadata


def _place(table: pa.Table, name: str) -> NDArray[Any]:
    """One of `PLACE` of each patch, from the columns that have it."""
    if name == "epsg":
        codes = table.column(_STORED[name]).cast(pa.string()).to_pylist()
        return np.array([int(code.removeprefix("EPSG:")) for code in codes], np.int64)
    bounds = table.column(_STORED[name]).combine_chunks().flatten().to_numpy().reshape(-1, 4)
    return np.asarray(bounds[:, 0 if name == "x0" else 3])


def _whole(values: NDArray[np.float64]) -> NDArray[Any]:
    """The values as integers where all are."""
    whole = np.rint(values).astype(np.int64)
    return whole if (whole == values).all() else values
