"""The official metadata of BigEarthNet v2.0: its parquet files, and what follows from the names in them.

Everything is made column by column; no row becomes a Python object.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet import grid, labels
from reben_cloud.errors import ChecksumError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import parquet
from reben_cloud.schema import check_names

Column = Any
"""An Arrow array; the stubs' element types would say no more than the column's name does."""

OFFICIAL_SCHEMA = pa.schema(
    [
        ("patch_id", pa.string()),
        ("labels", pa.list_(pa.field("element", pa.string()))),
        ("split", pa.string()),
        ("country", pa.string()),
        ("s1_name", pa.string()),
        ("s2v1_name", pa.string()),
        ("contains_seasonal_snow", pa.bool_()),
        ("contains_cloud_or_shadow", pa.bool_()),
    ]
)
"""Columns of the official metadata files."""

SPLITS = ("train", "validation", "test")
"""The splits, as the metadata spells them."""

COUNTRIES = (
    "Austria",
    "Belgium",
    "Finland",
    "Ireland",
    "Kosovo",
    "Lithuania",
    "Luxembourg",
    "Portugal",
    "Serbia",
    "Switzerland",
)
"""The ten countries, as the metadata spells them."""


def read_official(paths: Sequence[str | os.PathLike[str]]) -> pa.Table:
    """The rows of official metadata files in one table sorted by ``patch_id``.

    Columns beyond the official eight (pandas adds ``__index_level_0__``) are dropped.

    Args:
        paths: One or both of the official files, or extracts of them.

    Raises:
        FileNotFoundError: If a file does not exist.
        SourceError: If a column is missing, there twice or of another type, a value is null, a name is none of
            reBEN's, an S1 name or a name in v1 is of another place or day than its patch, a patch has no label or one
            of them twice, or a patch or an S1 name comes twice.
    """
    tables = []
    for path in paths:
        name = os.fspath(path)
        try:
            table = parquet.read_table(local_path(path, "a metadata file"), name=name)
        except ChecksumError as error:
            raise SourceError(f"{error}; load it again") from error
        if twice := [column for column in OFFICIAL_SCHEMA.names if table.column_names.count(column) > 1]:
            raise SourceError(f"{name}: has two columns {twice[0]!r}; leave out the wrong one")
        missing = [column for column in OFFICIAL_SCHEMA.names if column not in table.column_names]
        if missing:
            raise SourceError(
                f"{name}: not official metadata, it lacks {', '.join(missing)} (it has {', '.join(table.column_names)})"
            )
        try:
            tables.append(_with_official_s1(table.select(OFFICIAL_SCHEMA.names).cast(OFFICIAL_SCHEMA)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise SourceError(f"{name}: not official metadata: {error}") from error
        _check_rows(tables[-1], name)
    if not tables:
        raise SourceError("no metadata file was given")
    return _sorted_once(tables, hint="was one file given twice?")


def joined_official(tables: Sequence[pa.Table]) -> pa.Table:
    """Official rows of several places in one table sorted by ``patch_id``; a table that comes again counts once.

    Raises:
        SourceError: If a patch or an S1 name comes twice.
    """
    distinct: list[pa.Table] = []
    for table in tables:
        if not any(table.equals(other) for other in distinct):
            distinct.append(table)
    return _sorted_once(
        distinct,
        hint="the metadata of several places have the same patches and are not the same: name the files that are meant "
        "(--metadata)",
    )


def _sorted_once(tables: Sequence[pa.Table], *, hint: str) -> pa.Table:
    found = pa.concat_tables(tables).sort_by("patch_id").combine_chunks()
    for column in ("patch_id", "s1_name"):
        # An empty S1 name, of a dataset made from Sentinel-2 alone, may come again and again.
        named = found.column(column).filter(pc.not_equal(found.column(column), ""))
        counts = pc.value_counts(named)
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            raise SourceError(
                f"{twice[0]['values']}: this {column} comes {twice[0]['counts']} times in the metadata; {hint}"
            )
    return found


def _with_official_s1(table: pa.Table) -> pa.Table:
    """With x and y of S1 names as the official files spell them: no zero before them."""
    names = pc.replace_substring_regex(table.column("s1_name"), pattern=r"_0(\d)_", replacement=r"_\1_")
    names = pc.replace_substring_regex(names, pattern=r"_0(\d)$", replacement=r"_\1")
    return table.set_column(table.column_names.index("s1_name"), "s1_name", names)


_PATCH_PATTERN = r"^S2[A-D]_MSIL2A_\d{8}T\d{6}_N\d{4}_R\d{3}_T\d{2}[C-X][A-Z]{2}_([0-8]\d|90)_([0-8]\d|90)$"
_S1_PATTERN = r"^(S1[A-D]_IW_GRDH_1SDV_\d{8}T\d{6}_\d{2}[A-Z]{3}_\d{1,2}_\d{1,2})?$"


def _check_rows(table: pa.Table, name: str) -> None:
    for column in OFFICIAL_SCHEMA.names:
        values = table.column(column)
        if values.null_count:
            raise SourceError(f"{name}: column {column} has {values.null_count} nulls")
    for column, pattern in (("patch_id", _PATCH_PATTERN), ("s1_name", _S1_PATTERN)):
        values = table.column(column)
        bad = values.filter(pc.invert(pc.match_substring_regex(values, pattern)))
        if len(bad):
            raise SourceError(f"{name}: {bad[0]} is no {column}")
    try:
        labels.check_labels(pc.unique(pc.list_flatten(table.column("labels"))).to_pylist())
        check_names(pc.unique(table.column("split")).to_pylist(), SPLITS, "split")
        check_names(pc.unique(table.column("country")).to_pylist(), COUNTRIES, "country")
    except ValueError as error:
        raise SourceError(f"{name}: {error}") from error
    _check_label_lists(table, name)
    _check_rows_of_names(table, name)


def _check_label_lists(table: pa.Table, name: str) -> None:
    """Refuse a patch without a label, and one with a label twice."""
    given = pc.list_value_length(table.column("labels")).to_numpy()
    different = labels.encode_many(table.column("labels")).sum(axis=1)
    for wrong, what in ((given == 0, "no label"), (given > different, "a label twice")):
        if wrong.any():
            patch_id = table.column("patch_id")[int(np.flatnonzero(wrong)[0])]
            raise SourceError(
                f"{name}: {patch_id} has {what}, as {int(wrong.sum()):,} of {len(given):,} rows have; every patch of "
                "the official files has 1 to 11 different ones: take these files, or correct the column"
            )


def _check_rows_of_names(table: pa.Table, name: str) -> None:
    """Refuse S1 names and names in v1 that stand in the row of another patch: in an LMDB nothing else would tell.

    They share the place with the id of their patch, and those of v1 its satellite and day, in all 549,488 official
    rows; the time in a name of v1 is another one in a fifth of them.
    """
    ids = table.column("patch_id")
    place = pc.replace_substring_regex(
        pc.utf8_slice_codeunits(ids, 39), pattern=r"_0(\d)", replacement=r"_\1"
    )
    day = pc.binary_join_element_wise(
        *(pc.utf8_slice_codeunits(ids, *ends) for ends in ((0, 19), (44, 50))), ""
    )
    expected = {
        "s1_name": place,
        "s2v1_name": pc.replace_substring_regex(day, pattern=r"_0(\d)", replacement=r"_\1"),
    }
    found = {
        "s1_name": pc.utf8_slice_codeunits(table.column("s1_name"), 33),
        # The time goes, whose hours may lack their zero: T95032.
        "s2v1_name": pc.replace_substring_regex(table.column("s2v1_name"), pattern=r"T\d+_", replacement="_"),
    }
    for column in expected:
        # Empty ones are of a dataset that was made without Sentinel-1 or v1.
        wrong = pc.and_(pc.not_equal(found[column], expected[column]), pc.not_equal(table.column(column), ""))
        if pc.any(wrong).as_py():
            rows = table.filter(wrong)
            raise SourceError(
                f"{name}: {rows.column('patch_id')[0]} has the {column} {rows.column(column)[0]}, which is of another "
                f"place or day, as {rows.num_rows:,} of {table.num_rows:,} rows have; the column is in another order "
                "than the others: take the official file, or join it by patch_id again"
            )


EXTRA_METADATA = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
"""Name of the official file with the patches that are not recommended."""

METADATA = "metadata.parquet"
"""Name of the official file with all other patches."""


def other_metadata(official: pa.Table) -> str | None:
    """Name of the official file whose rows a table has not one of; None if it has rows of both, or is of other data."""
    flags = ("contains_seasonal_snow", "contains_cloud_or_shadow")
    if not set(flags) <= set(official.column_names):
        return None
    flagged = pc.or_(*map(official.column, flags))
    if not pc.any(flagged).as_py():
        return EXTRA_METADATA
    return METADATA if pc.all(flagged).as_py() else None


DERIVED = (
    *("product", "datetime", "s1_datetime", "epsg", "x0", "y0", "square", "square_x0", "square_y0"),
    *("platform", "constellation", "grid:code"),
)
"""Columns that `describe` adds: they follow from the names."""


def describe(official: pa.Table, *, patch_m: int = grid.PATCH_M) -> pa.Table:
    """The official rows with what follows from their names: product, times, place, square and satellite.

    Args:
        official: Rows in the official schema, or with a ``patch_id`` and any other columns.
        patch_m: Side of the patches, metres.

    Returns:
        The same rows; besides their columns ``product``, ``datetime`` and ``s1_datetime``
        (UTC), ``epsg``, ``x0`` (west edge) and ``y0`` (north edge, both metres, int64), ``square`` (of the MGRS,
        dictionary) and its corner ``square_x0`` and ``square_y0``, ``platform``, ``constellation`` and ``grid:code``.
    """
    has_s1 = "s1_name" in official.column_names
    if set(DERIVED) - {"s1_datetime"} <= set(official.column_names):
        return official
    patch_ids = official.column("patch_id").combine_chunks()
    epsg, minx, _, _, maxy = grid.footprints(patch_ids.to_pylist(), patch_m=patch_m)
    square = pc.utf8_slice_codeunits(patch_ids, 39, 44)
    satellites = {f"S2{x.upper()}": f"sentinel-2{x}" for x in "abcd"}
    added = {
        "product": pc.utf8_slice_codeunits(patch_ids, 0, -2 * grid.num_digits(patch_m) - 2),
        "datetime": _times(patch_ids, 11),
        **({"s1_datetime": _times(official.column("s1_name").combine_chunks(), 17)} if has_s1 else {}),
        "epsg": pa.array(epsg),
        "x0": pa.array(minx),
        "y0": pa.array(maxy),
        "square": square.dictionary_encode(),
        **_corners(square),
        "platform": _mapped(pc.utf8_slice_codeunits(patch_ids, 0, 3), satellites),
        "constellation": pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(len(patch_ids), np.int8)), ["sentinel-2"]
        ),
        "grid:code": pc.binary_join_element_wise("MGRS", square, "-"),
    }
    table = official.select([name for name in official.column_names if name not in added])
    for name, column in added.items():
        table = table.append_column(name, column)
    return table


def _corners(squares: Column) -> dict[str, Column]:
    encoded = squares.dictionary_encode()
    corners = np.array(
        [grid.tile_corner(name)[1:] for name in encoded.dictionary.to_pylist()], np.int64
    ).reshape(-1, 2)
    taken = corners[encoded.indices.to_numpy()]
    return {"square_x0": pa.array(taken[:, 0]), "square_y0": pa.array(taken[:, 1])}


def _times(names: Column, start: int) -> Column:
    """The UTC times that stand in `names` from character `start` as ``20170613T101031``, null in an empty one."""
    text = pc.utf8_slice_codeunits(names, start, start + 15)
    return pc.assume_timezone(pc.strptime(text, format="%Y%m%dT%H%M%S", unit="us", error_is_null=True), "UTC")


def _mapped(values: Column, names: dict[str, str]) -> Column:
    index = pc.index_in(values, pa.array(list(names))).cast(pa.int8())
    return pa.DictionaryArray.from_arrays(index, list(names.values()))
