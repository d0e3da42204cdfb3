"""A prediction in the making: which patches are predicted together, and files of those that are done.

The patches, in the order in which they are stored, are cut into parts of whole batches. A part is a file, written whole
or not at all, and what it holds does not depend on who made it, nor on what was made before: a prediction that was
killed, or is shared among processes, ends with the bytes of one that was not.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, ConflictError, NotFoundError
from reben_cloud.formats import parquet
from reben_cloud.root.commit import begin
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.store import Store

PART_PATCHES = 1024
"""Patches of a part, or as few more as fill its last batch: what a kill may cost."""

_VALUES = "values"
_PLAN = "plan.json"

Plan = Mapping[str, object]
"""All that the bytes of a prediction follow from, as JSON has it."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one prediction, below a folder of a store.

    Args:
        store: Where.
        folder: The folder, without a slash at its end.
        plan: What the prediction is.
        num_patches: How many patches it is of.
        batch_size: Patches that are predicted at a time.
    """

    store: Store
    folder: str
    plan: Plan
    num_patches: int
    batch_size: int
    _known: set[int] = field(default_factory=set)

    @cached_property
    def size(self) -> int:
        """Patches of each part but the last one."""
        return -(-PART_PATCHES // self.batch_size) * self.batch_size

    def __len__(self) -> int:
        """How many parts there are to be."""
        return -(-self.num_patches // self.size)

    def span(self, number: int) -> range:
        """Positions of a part's patches in stored order."""
        return range(number * self.size, min((number + 1) * self.size, self.num_patches))

    def claim(self) -> None:
        """Make the folder this prediction's, or see that it is.

        Raises:
            ConflictError: If another one was begun there.
        """
        text = (json.dumps(self.plan, indent=1) + "\n").encode()
        path = self._path(_PLAN)
        if not begin(self.store, path, text):
            there = bytes(self.store.get(path))
            if there != text:
                differs = difference(read_plan(there), self.plan)
                raise ConflictError(
                    f"{self.store.url}/{path}: another prediction was begun there, {differs}; "
                    "finish that one with its own options, or delete this folder, or write elsewhere"
                )

    def done(self) -> set[int]:
        """Numbers of the parts that are there and not damaged; those that are damaged are to be made again."""
        there = {path for path, _ in self.store.list(self.folder)}
        for number in range(len(self)):
            if number not in self._known and self._file(number) in there:
                try:
                    self.read(number)
                except ChecksumError:
                    continue
                self._known.add(number)
        return set(self._known)

    def write(self, number: int, ids: Sequence[str], values: NDArray[np.generic]) -> None:
        """Write a part.

        Args:
            number: Which.
            ids: Of its patches.
            values: (len(ids), ...).
        """
        rows = np.ascontiguousarray(values).reshape(len(ids), -1).view(np.uint8)
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(rows.shape[1]), len(rows), [None, parquet.arrow_memory(rows.data.cast("B"))]
        )
        out = io.BytesIO()
        pq.write_table(
            pa.table({PATCH_ID: pa.array(ids, pa.string()), _VALUES: column}),
            out,
            compression="zstd",
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=False,
        )
        self.store.put(self._file(number), out.getbuffer())
        self._known.add(number)

    def read(self, number: int) -> tuple[list[str], memoryview]:
        """Ids of a part's patches, and the bytes of their values on end.

        Raises:
            ChecksumError: If it is damaged, or of another number of patches.
            NotFoundError: If it is gone.
        """
        name = f"{self.store.url}/{self._file(number)}"
        try:
            data = self.store.get(self._file(number))
        except FileNotFoundError as error:
            raise NotFoundError(f"{name} is gone; the same command makes it again") from error
        table = parquet.read_table(data, [PATCH_ID, _VALUES], name=name)
        if table.num_rows != len(self.span(number)):
            raise ChecksumError(f"{name} has {table.num_rows:,} patches, not {len(self.span(number)):,}")
        column = table.column(_VALUES).combine_chunks()
        size = column.type.byte_width
        return table.column(PATCH_ID).to_pylist(), memoryview(column.buffers()[1])[: table.num_rows * size]

    def __iter__(self) -> Iterator[tuple[list[str], memoryview]]:
        """All parts, in order, as `read` gives them."""
        return (self.read(number) for number in range(len(self)))

    def _file(self, number: int) -> str:
        return self._path(f"{number:06d}.parquet")

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}"


def delete_folder(store: Store, folder: str) -> None:
    """Delete the folder of a prediction's parts; the plan last, which says whose it is."""
    paths = [path for path, _ in store.list(folder)]
    for path in sorted(paths, key=lambda path: path.endswith(_PLAN)):
        store.delete(path)
    if (local := store.local_path(folder)) is not None and local.is_dir():
        local.rmdir()


def difference(there: Plan, plan: Plan) -> str:
    """In what another prediction differs, in words."""
    name = next((name for name in plan if there.get(name) != plan[name]), None)
    return f"with another {name}" if name else "of another release"


def read_plan(text: bytes) -> Plan:
    """A plan that was stored; an empty one if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
