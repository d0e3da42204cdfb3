"""Labels of another version as a table layer: BigEarthNet v1's own files, or a table of names.

Version 1 names the 43 CORINE classes that its patches show, which become the 19 classes of version 2 by the same rule
that made those (Sumbul et al. 2021, https://arxiv.org/abs/2105.07921; `bigearthnet.labels.CLC`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from reben_cloud.bigearthnet.labels import CLC
from reben_cloud.build import Progress, silent
from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import parquet
from reben_cloud.layers.keys import Key
from reben_cloud.layers.table import write_table
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layers import Layer
from reben_cloud.schema import Classes

COLUMN = "labels"
"""Column of the layer: a list of 0 and 1, one for each class."""

_SUFFIX = "_labels_metadata.json"
_KEYS = ("s2v1_name", "patch_id", "s1_name", "patch_name", "name", "id")


def write_label_layer(
    dest: str | os.PathLike[str],
    ds: Dataset,
    labels: str | os.PathLike[str],
    *,
    name: str,
    key: Key | None = None,
    title: str = "",
    allow_missing: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Layer:
    """Make a table layer of labels that others give the patches; recipes learn them by ``labels = "name:labels"``.

    Args:
        dest: Path or URL of the layer.
        ds: The root that it is for.
        labels: The unpacked folder of BigEarthNet v1, with a ``<patch>_labels_metadata.json`` for each patch somewhere
            below it; or a parquet file with a column that names patches and a column ``labels``, lists of names.
            Names are those of the root's classes, or of CORINE's, of which those that are none of the 19 classes are
            left out.
        name: Name of the layer.
        key: What names of patches are, as for `write_table`.
        title: What it is, for people.
        allow_missing: How many names may be no patch's; they are left out.
        storage_options: Credentials and endpoint of `dest`.
        progress: Wraps what is written.

    Raises:
        NotFoundError: If there is no such file, or no file of labels in the folder.
        SourceError: If a file is damaged, or the root has no class for a label.
        ValueError, ConflictError, StorageError: As `write_table`.
    """
    path = local_path(labels, "the labels")
    if path.is_dir():
        found, column = list(_of_folder(path)), "s2v1_name"
    elif path.is_file():
        found, column = _of_table(path)
    else:
        raise NotFoundError(f"{path}: no such file or folder of labels")
    table = pa.table(
        {
            column: pa.array([one for one, _ in found], pa.string()),
            COLUMN: _encoded([given for _, given in found], ds.schema.classes, str(path)),
        }
    )
    return write_table(
        dest,
        ds,
        name=name,
        table=table,
        key=key,
        many=False,
        title=title,
        provenance={"labels": path.name},
        allow_missing=allow_missing,
        storage_options=storage_options,
        progress=progress,
    )


def _of_folder(folder: Path) -> Iterator[tuple[str, Sequence[str]]]:
    count = 0
    for count, path in enumerate(sorted(folder.rglob(f"*{_SUFFIX}")), 1):  # noqa: B007 - looked at below
        try:
            yield (
                path.name.removesuffix(_SUFFIX),
                [str(one) for one in json.loads(path.read_bytes())["labels"]],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{path}: not labels of BigEarthNet v1 ({error!r})") from error
    if not count:
        raise NotFoundError(
            f"{folder}: no file named <patch>{_SUFFIX} below it; BigEarthNet-v1.0.tar.gz has one for each patch"
        )


def _of_table(path: Path) -> tuple[list[tuple[str, Sequence[str]]], str]:
    table = parquet.read_table(path, name=str(path))
    column = next((name for name in _KEYS if name in table.column_names), None)
    if column is None or COLUMN not in table.column_names:
        raise SourceError(
            f"{path} must have a column {COLUMN!r} and one that names patches ({', '.join(_KEYS)}); it has "
            f"{', '.join(table.column_names)}"
        )
    names, given = table.column(column).to_pylist(), table.column(COLUMN).to_pylist()
    if any(not isinstance(one, list) for one in given):
        raise SourceError(f"{path}: column {COLUMN!r} must be lists of names")
    return list(zip(names, given, strict=True)), column


def _encoded(given: Sequence[Sequence[str]], classes: Classes, source: str) -> pa.FixedSizeListArray:
    number_of: dict[str, int | None] = {
        one.name: None if one.label is None else classes.names.index(one.label)
        for one in CLC.values()
        if one.label is None or one.label in classes.names
    }
    number_of |= {name: number for number, name in enumerate(classes.names)}
    values = np.zeros((len(given), len(classes)), np.uint8)
    for row, names in enumerate(given):
        for name in names:
            if name not in number_of:
                raise SourceError(
                    f"{source}: {name!r} is neither a class of the root nor one of CORINE's that becomes one; the "
                    f"root has {', '.join(classes.names[:20])}"
                )
            if (number := number_of[name]) is not None:
                values[row, number] = 1
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(classes))
