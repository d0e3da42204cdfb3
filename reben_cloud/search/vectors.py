"""`VectorColumn`: embeddings or predictions that layers have for patches, read a part at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reben_cloud.root import layout
from reben_cloud.root.arrow import mask_of, valid_of, values_of
from reben_cloud.root.joined import JoinedLayer
from reben_cloud.root.selection import Selection
from reben_cloud.schema import check_names
from reben_cloud.stream import RawLoader
from reben_cloud.stream.columns import is_vector, numbers_of

Ints = NDArray[np.int64]

_AHEAD = 3
"""Row groups that are read at a time, while one is used."""

_BATCH_BYTES, _BLOCKS_AHEAD = 1 << 23, 16
"""Bytes of a batch of vectors, counted as float64, and blocks of 256 patches that are read meanwhile."""


class Part(NamedTuple):
    """Vectors of some patches."""

    at: Ints
    """Which of the rows that were asked for they belong to, (n,)."""
    vectors: NDArray[Any]
    """The vectors in the column's type, (n, size); may be read-only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VectorColumn(ABC):
    """As many numbers for each patch: a column of lists in a table layer, or a tensor with one axis."""

    name: str
    """``layer:column``, or ``layer:tensor``."""
    size: int
    """Numbers of a vector."""
    url: str
    """Where they lie."""

    @classmethod
    def of(cls, selection: Selection, name: str | None) -> VectorColumn:
        """The column of this name; None stands for the only one that there is.

        Raises:
            ValueError: If there is none of that name, or None is not enough to choose one.
        """
        there = vector_columns(selection)
        if not there:
            raise ValueError(
                f"{selection.dataset.url} has no layer with a column of vectors with it: open one with "
                "rc.open(..., layers=[...]); rc.write_table makes one of a column of lists of one length, "
                "rc.write_layer one of a tensor of floats with one axis"
            )
        if name is None:
            if len(there) > 1:
                raise ValueError(f"there are several columns of vectors: name one of {', '.join(there)}")
            return next(iter(there.values()))
        if not isinstance(name, str):
            raise TypeError(f"column must be a string, such as {next(iter(there))!r}, got {name!r}")
        check_names([name], list(there), "column of vectors")
        return there[name]

    @abstractmethod
    def parts(self, rows: Ints) -> Iterator[Part]:
        """The vectors of rows of the table of patches, in the order in which they are stored; who has none is left out.

        What is held at a time is a few row groups or batches, and none is kept.
        """

    @abstractmethod
    def has(self, row: int) -> bool:
        """Whether its layer has anything for a row of the table of patches."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TableVectors(VectorColumn):
    """A column whose values are lists of as many numbers each, in a layer with one row per patch."""

    joined: JoinedLayer
    """Its layer."""

    def parts(self, rows: Ints) -> Iterator[Part]:
        """A row group at a time; see `VectorColumn.parts`."""
        table = self.joined.layer.by_patch
        places = self.joined.places(rows)
        at = np.argsort(places, kind="stable")
        at = at[np.searchsorted(places[at], 0) :]
        starts = table.group_starts
        cuts = np.split(at, np.searchsorted(places[at], starts[1:-1]))
        groups = [(group, mine) for group, mine in enumerate(cuts) if len(mine)]

        def read(group: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
            if (found := table.vectors_once(group, self._column)) is not None:
                return found, None
            column = table.read_once([group], [self._column]).column(0)
            return numbers_of(column), valid_of(column) if column.null_count else None

        with ThreadPoolExecutor(_AHEAD) as ahead:
            following = deque(ahead.submit(read, group) for group, _ in groups[:_AHEAD])
            for number, (group, mine) in enumerate(groups):
                vectors, valid = following.popleft().result()
                following.extend(ahead.submit(read, after) for after, _ in groups[number + _AHEAD :][:1])
                inside = places[mine] - starts[group]
                if valid is not None:
                    mine, inside = mine[valid[inside]], inside[valid[inside]]
                # Rising, so if as many they are all of them: no copy.
                yield Part(mine, vectors if len(inside) == len(vectors) else vectors[inside])

    def has(self, row: int) -> bool:
        """See `VectorColumn.has`."""
        return bool(self.joined.places(np.array([row]))[0] >= 0)

    @property
    def _column(self) -> str:
        return self.name.removeprefix(layout.joined_column(self.joined.layer.name, ""))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorVectors(VectorColumn):
    """A tensor of floats with one axis, of an array layer or of what an export took along of one."""

    selection: Selection
    """Of the dataset that has it."""
    modality: str
    """Its layer."""
    array: str
    """Name of its array in batches."""

    def parts(self, rows: Ints) -> Iterator[Part]:
        """A batch at a time; see `VectorColumn.parts`."""
        if not len(rows):
            return
        dataset, table = self.selection.dataset, self.selection.table
        places = table.take(rows, [layout.SHARD_GROUP, layout.SHARD, layout.SHARD_ROW])
        group = np.array(places.column(0).to_pylist(), str)
        stored = np.lexsort((*(values_of(places.column(number)) for number in (2, 1)), group))
        loader = RawLoader(
            Selection(dataset, table, rows[stored]),
            modalities=[self.modality],
            columns=[],
            batch_size=max(1, _BATCH_BYTES // (8 * self.size)),
            shuffle=False,
            lanes=1,
            prefetch=_BLOCKS_AHEAD,
        )
        for batch in loader:
            at, vectors = stored[batch["index"]], batch[self.array]
            present = batch.get(f"{self.modality}_present")
            yield (
                Part(at, vectors) if present is None or present.all() else Part(at[present], vectors[present])
            )

    def has(self, row: int) -> bool:
        """See `VectorColumn.has`."""
        name = layout.present_column(self.modality)
        if name not in self.selection.table.names:
            return True
        return bool(mask_of(self.selection.table.take(np.array([row]), [name]).column(0))[0])


def vector_columns(selection: Selection) -> dict[str, VectorColumn]:
    """The columns of vectors of all layers, by name."""
    found: dict[str, VectorColumn] = {
        field.name: TableVectors(
            name=field.name, size=field.type.list_size, url=joined.layer.url, joined=joined
        )
        for joined in selection.table.joined.values()
        for field in joined.fields
        if is_vector(field.type)
    }
    dataset = selection.dataset
    for modality in dataset.schema.modalities:
        layer = dataset.layers.get(modality.name)
        for array in modality.arrays:
            shape, dtype = modality.samples[array.name]
            if len(shape) == 1 and not array.stacked and np.issubdtype(dtype, np.floating):
                name = layout.joined_column(modality.name, array.tensors[0])
                found[name] = TensorVectors(
                    name=name,
                    size=shape[0],
                    url=dataset.url if layer is None else layer.url,
                    selection=selection,
                    modality=modality.name,
                    array=array.name,
                )
    return found
