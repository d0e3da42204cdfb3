"""`write_table`: a table about patches, in whatever order its rows come, becomes a table layer of a root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reben_cloud.build import Progress, silent
from reben_cloud.build.lease import Lease
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.layers import publish
from reben_cloud.layers.columns import Choice, chosen_columns
from reben_cloud.layers.describe import check_name
from reben_cloud.layers.keys import Key, Keys, find_keys
from reben_cloud.layers.table_work import TableWork
from reben_cloud.layers.tabular import TableSource, Tabular, open_table
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layer_manifest import Kind
from reben_cloud.root.layers import Layer
from reben_cloud.store import open_store


def write_table(
    dest: str | os.PathLike[str],
    ds: Dataset,
    *,
    name: str,
    table: Tabular,
    key: Key | None = None,
    many: bool | None = None,
    columns: Choice = None,
    title: str = "",
    provenance: Mapping[str, Any] | None = None,
    allow_missing: int = 0,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> Layer:
    """Write a table layer of a root: a row for each patch, or any number.

    A run that was killed begins again; a layer that is there already, made of the same, is left as it is.

    Args:
        dest: Path or URL of the layer; the root itself is left as it is.
        ds: The root that the layer is for, or an export of it.
        name: Name of the layer: what its columns begin with, ``name:column``.
        table: A table in memory (pyarrow, pandas, polars), the path of a parquet or CSV file, or record batches, which
            may come only once. Columns hold strings, booleans, numbers, times, or lists of numbers of one length.
        key: What the names of patches in it are: ``patch_id``, ``s1_name`` or ``s2v1_name`` (that of version 1, which
            ben-ge has in its column ``patch_id``). By default it is looked which of them are there, and in which
            column; that column itself is not kept, as the layer has the ids.
        many: Whether a patch may have several rows; by default it may where one has.
        columns: The columns that are wanted, or column -> its name in the layer; all by default.
        title: What it is, for people.
        provenance: What it is made from, and how: plain JSON that ``layer.json`` keeps. Name, size and checksum of a
            file are added to it, and the digest of rows that are not of a file.
        allow_missing: How many different names may be no patch's before that is an error; their rows are left out.
        storage_options: Credentials and endpoint of `dest`.
        progress: Wraps the row groups as they are written.

    Returns:
        The layer, for `Dataset.with_layers`.

    Raises:
        ConflictError: If something else is there.
        NotFoundError: If there is no such file.
        SourceError: If the table cannot be read or held, or its names are not those of patches.
        StorageError: If the store or the scratch disk fails.
        TypeError: If it is no table.
        ValueError: If the name is none or taken, or a column is not there.
    """
    check_name(ds, name)
    store = open_store(dest, storage_options)
    with tempfile.TemporaryDirectory(prefix="reben_cloud-") as scratch:
        source = open_table(table, Path(scratch))
        keys = find_keys(source, ds, key)
        if keys.num_unknown > allow_missing:
            raise SourceError(_too_many_unknown(keys, source, ds))
        work = TableWork(
            store=store,
            ds=ds,
            source=source,
            keys=keys,
            columns=chosen_columns(source.schema.names, columns, key_column=keys.column),
            kind=_kind(keys, many, ds),
            name=name,
            title=title,
            provenance={**source.identity, "key": keys.key, **(provenance or {})},
        )
        schema = work.schema  # refuses what a layer cannot hold before anything is written
        if not source.identity:
            work = replace(work, provenance={**work.provenance, "rows_sha256": work.digest()})
        done = publish.claim(store, ds, work.beginning)
        if done is not None:
            if done.rows.schema.names != schema.names:
                raise ConflictError(
                    f"{store.url} has a layer already, with other columns; a layer never changes: write into a new "
                    "place, or remove this one first (reben-cloud layer remove)"
                )
            return done
        with Lease(store, f"{publish.JOURNAL}/lease.json") as held:
            return work.write(Path(scratch), progress, held)


def _too_many_unknown(keys: Keys, source: TableSource, ds: Dataset) -> str:
    return (
        f"{source.name}: {keys.num_unknown:,} of the {keys.num_names:,} different names in column {keys.column!r} are "
        f"no {keys.key} of a patch of {ds.url}, the first is {keys.first_unknown}; a table of more patches, such as "
        f"all of version 1, may be meant so: allow_missing={keys.num_unknown} (--allow-missing) leaves their rows out"
    )


def _kind(keys: Keys, many: bool | None, ds: Dataset) -> Kind:
    if many:
        return "many"
    counts = np.bincount(keys.patches[keys.patches >= 0], minlength=len(ds))
    if counts.max(initial=0) <= 1:
        return "one"
    if many is None:
        return "many"
    row, twice = int(counts.argmax()), int((counts > 1).sum())
    patch_id = ds.patch_table.take(np.array([row]), [layout.ID]).column(0)[0]
    raise SourceError(
        f"{twice:,} {'patch has' if twice == 1 else 'patches have'} several rows, such as {patch_id} with "
        f"{counts[row]:,}; many=True makes a layer of any number of rows for each patch"
    )
