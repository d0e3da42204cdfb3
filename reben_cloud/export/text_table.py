"""A parquet file of texts about patches, as BigEarthNet.txt is: millions of rows, read a row group at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet.texts import ANSWER_COLUMNS, COLUMNS
from reben_cloud.errors import NotFoundError, SourceError
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.selection import Selection


class TextTable:
    """A parquet file of texts, read a row group at a time.

    Args:
        path: The file.
        with_answers: Whether the columns are needed that say what captions give away.

    Raises:
        NotFoundError: If there is no such file.
        SourceError: If it lacks a column.
        ChecksumError: If it is damaged.
    """

    def __init__(self, path: Path, *, with_answers: bool) -> None:
        self.path = path
        """The file."""
        self.columns = (*COLUMNS, *(ANSWER_COLUMNS if with_answers else ()))
        """What is read of it."""
        if not path.is_file():
            raise NotFoundError(
                f"{path}: no such file of texts; it is BigEarthNet.txt.parquet, or a part of it"
            )
        footer = parquet.read_footer(path, name=str(path))
        names = footer.schema.to_arrow_schema().names
        self.num_groups = footer.num_row_groups
        """Row groups of the file."""
        if lacking := [name for name in self.columns if name not in names]:
            raise SourceError(
                f"{path}: texts must have the columns {', '.join(self.columns)}; it lacks {', '.join(lacking)}"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Name, size and sha256 of the file."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": self.path.name, "bytes": self.path.stat().st_size, "sha256": digest}

    def restrict(self, selection: Selection) -> Selection:
        """The selected patches that have a text.

        Raises:
            NotFoundError: If there is none.
        """
        ids = selection.column(layout.ID).cast(pa.string())
        has_text = np.zeros(len(selection), np.bool_)
        for part in parquet.iter_row_groups(self.path, ["patch_id"], name=str(self.path)):
            has_text |= pc.is_in(
                ids, value_set=pc.unique(part.column("patch_id").cast(pa.string()))
            ).to_numpy()
        if not has_text.any():
            raise NotFoundError(f"none of the {len(selection):,} selected patches has a text in {self.path}")
        return Selection(selection.dataset, selection.table, selection.rows[has_text], query=selection.query)

    def groups(self, patch_ids: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """The texts of some patches, in the order of the file, a row group at a time."""
        wanted = pa.array(patch_ids, pa.string())
        for part in parquet.iter_row_groups(self.path, self.columns, name=str(self.path)):
            ids = part.column("patch_id").cast(pa.string())
            yield part.filter(pc.is_in(ids, value_set=wanted)).to_pylist()
