"""The metadata of patches: what of them is needed, checked, and had back from ``patches.parquet``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.bigearthnet.official import OFFICIAL_SCHEMA
from reben_cloud.errors import SourceError
from reben_cloud.root import layout
from reben_cloud.root.patch import PatchInfo
from reben_cloud.root.placement import SPLITS
from reben_cloud.schema import Schema, check_names

REQUIRED = ("patch_id", "labels", "split", "product", "datetime", "epsg", "x0", "y0")
"""Columns without which there is no table of patches."""

PLACE = ("epsg", "x0", "y0", "square", "square_x0", "square_y0")
"""Metadata that become geometry, bbox and ``proj:`` columns, and nothing else."""

STAC = ("datetime", "platform", "constellation", "grid:code")
"""Metadata whose columns have STAC's own names."""


def patch_infos(table: pa.Table) -> Iterator[PatchInfo]:
    """The rows of a metadata table as values."""
    given = [name for name in table.column_names if name not in ("bbox", *PLACE, *STAC)]
    known = {field.name for field in fields(PatchInfo)}
    for row in table.select([name for name in given if name in known]).to_pylist():
        yield PatchInfo(**{**row, "labels": tuple(row["labels"])})


def given_metadata(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The metadata that a root was made of, from columns of ``patches.parquet``, sorted by ``patch_id``.

    Args:
        table: The columns `layout.column` of each of `names`, in their order.
        names: Names of the metadata columns.
    """
    columns = []
    for column in table.columns:
        kind = column.type
        columns.append(column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column)
    found = pa.table(dict(zip(names, columns, strict=True)))
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
    given = [layout.column(name) for name in names]
    return [*given, *(name for name in _DESCRIBING if name in there and name not in given)]


def described_metadata(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The metadata that a root was made of, with what describes its patches, from ``patches.parquet``.

    Args:
        table: The columns that `described_columns` names; others are left out.
        names: Names of the metadata columns of which the root was made.

    Returns:
        Those columns, then ``product``, times and the place of each patch, sorted by ``patch_id``.
    """
    found = given_metadata(table.select([layout.column(name) for name in names]), names)
    table = table.sort_by(layout.ID).combine_chunks()
    bounds = table.column("proj:bbox").combine_chunks().flatten().to_numpy().reshape(-1, 4)
    codes = table.column("proj:code").cast(pa.string()).to_pylist()
    added: dict[str, Any] = {
        name.removeprefix(layout.PREFIX): table.column(name)
        for name in _DESCRIBING
        if name in table.column_names and not name.startswith("proj:")
    }
    added["epsg"] = pa.array(np.array([int(code.removeprefix("EPSG:")) for code in codes], np.int64))
    # As `describe` gives it: a build sorts by it, and Arrow sorts no dictionaries.
    added["product"] = table.column(layout.PRODUCT).cast(pa.string())
    added |= {"x0": pa.array(_whole(bounds[:, 0])), "y0": pa.array(_whole(bounds[:, 3]))}
    for name, column in added.items():
        if name not in names:
            found = found.append_column(name, column)
    return found


def _whole(values: NDArray[np.float64]) -> NDArray[Any]:
    """The values as integers where all are."""
    whole = np.rint(values).astype(np.int64)
    return whole if (whole == values).all() else values


def check_metadata(table: pa.Table, schema: Schema) -> None:
    """Refuse metadata of which no root can be made.

    Raises:
        SourceError: If a column is missing, a value is null, a split or a label is unknown, or a patch comes twice.
    """
    missing = [name for name in (*REQUIRED, *schema.recommended_without) if name not in table.column_names]
    if missing:
        raise SourceError(
            f"the metadata lack {', '.join(missing)}; they have {', '.join(table.column_names)}"
        )
    for name in REQUIRED:
        if nulls := table.column(name).null_count:
            raise SourceError(f"column {name} of the metadata has {nulls} nulls")
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


def sample_json(table: pa.Table, schema: Schema) -> list[dict[str, object]]:
    """The metadata that goes beside each payload of a shard, in the order of the rows of a metadata table."""
    given = [n for n in table.column_names if n not in (*PLACE, *STAC, "product", "s1_datetime")]
    times = [name for name in ("datetime", "s1_datetime") if name in table.column_names]
    found = []
    for row in table.to_pylist():
        x0, y0 = row["x0"], row["y0"]
        found.append(
            {name: row[name] for name in given}
            # None in a dataset made from Sentinel-2 alone.
            | {name: rfc3339(row[name]) if row[name] is not None else None for name in times}
            | {"epsg": row["epsg"], "bbox": [x0, y0 - schema.patch_m, x0 + schema.patch_m, y0]}
        )
    return found


def rfc3339(time: Any) -> str:
    """A UTC datetime as STAC writes it: ``2017-06-13T10:10:31Z``."""
    return str(time.strftime("%Y-%m-%dT%H:%M:%SZ"))
