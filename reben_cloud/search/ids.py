"""Patches by name: lists of ids and files of them, and the rows of the table that they mean."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.arrow import mask_of, names_array, values_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.sampling import Ints
from reben_cloud.search.arguments import parse_names

_ID_COLUMNS = ("patch_id", "id", "s1_name", "s2v1_name")
"""Columns that may hold the names in a file, the first that is there."""

_PARQUET = b"PAR1"


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """The names that a file lists, in its order, each once.

    Args:
        path: A text file with one name per line; or a CSV file with a header, or a parquet file, that has a column
            ``patch_id`` (or ``id``, ``s1_name`` or ``s2v1_name``, in this order). By content, whatever its name.

    Raises:
        ValueError: If it cannot be read, has no such column, or lists nothing.
    """
    file = local_path(path, "a file of ids")
    try:
        with file.open("rb") as stream:
            is_parquet = stream.read(len(_PARQUET)) == _PARQUET
        names = _from_parquet(file) if is_parquet else _from_text(file)
    except (OSError, UnicodeDecodeError, csv.Error, ChecksumError, pa.ArrowInvalid) as error:
        raise ValueError(f"ids: {file} cannot be read: {error}") from error
    if not names:
        raise ValueError(f"ids: {file} lists no id; write one per line, or a CSV or parquet with patch_id")
    return names


def known_ids(dataset: Dataset, names: str | Iterable[str]) -> list[str]:
    """Those of some names that are ids of patches; other names of a patch do not count."""
    asked = list(dict.fromkeys(parse_names(names, "ids")))
    rows = _look_up(dataset, layout.ID, asked)
    return [name for name, row in zip(asked, rows.tolist(), strict=True) if row >= 0]


def rows_of_ids(dataset: Dataset, asked: str | Iterable[str] | os.PathLike[str], *, missing_ok: bool) -> Ints:
    """Rows of the patches that are named, in the order of the names, each once.

    Args:
        dataset: Where to look.
        asked: Patch ids, or a path object of a file that lists them. A name that is not an id may be another name by
            which the table knows one patch (`layout.OTHER_NAMES`).
        missing_ok: Leave out names that no patch has.

    Raises:
        NotFoundError: If no patch has one of the names.
        TypeError: If these are not names.
        ValueError: If a name means several patches, or a file cannot be read.
    """
    names = read_ids(asked) if isinstance(asked, os.PathLike) else parse_names(asked, "ids")
    names = list(dict.fromkeys(names))
    rows = np.full(len(names), -1, np.int64)
    for column in (layout.ID, *layout.OTHER_NAMES):
        unknown = np.flatnonzero(rows < 0)
        if len(unknown) and column in dataset.patch_table.names:
            rows[unknown] = _look_up(dataset, column, [names[number] for number in unknown.tolist()])
    missing = [names[number] for number in np.flatnonzero(rows < 0).tolist()]
    if missing and not missing_ok:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise NotFoundError(
            f"{dataset.url} has no patch {', '.join(map(repr, missing[:3]))}{more}; "
            "search(ids=..., missing_ok=True) leaves such ids out"
        )
    rows = rows[rows >= 0]
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _look_up(dataset: Dataset, column: str, names: Sequence[str]) -> Ints:
    """The row in which a column has each of some different names; -1 where there is none."""
    table, wanted = dataset.patch_table, names_array(names)
    there = table.read(range(len(table.group_starts) - 1), [column]).column(column)
    mask = mask_of(pc.is_in(there, wanted))
    rows = np.flatnonzero(mask)
    found = np.full(len(names), -1, np.int64)
    if len(rows):
        numbers = values_of(pc.index_in(there.filter(pc.is_in(there, wanted)), wanted))
        found[numbers] = rows
        twice = np.flatnonzero(np.bincount(numbers, minlength=len(names)) > 1)
        if len(twice):
            raise ValueError(
                f"{names[int(twice[0])]!r} names several patches of {dataset.url} ({column}); give their patch ids"
            )
    return found


def _from_parquet(file: Path) -> list[str]:
    name = os.fspath(file)
    column = _column(file, parquet.read_footer(file, name=name).schema.to_arrow_schema().names)
    names: dict[str, None] = {}
    for part in parquet.iter_row_groups(file, [column], name=name):
        # First, as a table of texts names a patch many times.
        names |= dict.fromkeys(pc.unique(part.column(0)).cast(pa.string()).to_pylist())
    return [found for found in names if found is not None]


def _from_text(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        lines = list(csv.reader(stream))
    lines = [line for line in lines if any(field.strip() for field in line)]
    number = 0
    if lines and (len(lines[0]) > 1 or lines[0][0].strip() in _ID_COLUMNS):
        header = [field.strip() for field in lines.pop(0)]
        number = header.index(_column(file, header))
    names = (line[number].strip() for line in lines if len(line) > number)
    return [name for name in dict.fromkeys(names) if name]


def _column(file: Path, there: Sequence[str]) -> str:
    for name in _ID_COLUMNS:
        if name in there:
            return name
    raise ValueError(
        f"ids: {file} has no column patch_id (or {', '.join(_ID_COLUMNS[1:])}); it has {', '.join(there)}"
    )
