"""The official reference maps as a layer, for a root that has none: out of their archive, their folder or an LMDB."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from reben_cloud.bigearthnet.reben import MAP, REBEN
from reben_cloud.build import Progress, silent
from reben_cloud.errors import SourceError
from reben_cloud.layers.array_work import Values
from reben_cloud.layers.describe import check_name
from reben_cloud.layers.write import write_layer
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layers import Layer
from reben_cloud.root.metadata import described_columns, described_metadata, patch_infos
from reben_cloud.root.patch import PatchInfo
from reben_cloud.root.source import AnySource, Source, StreamedSource
from reben_cloud.sources.recognise import open_modality

T = TypeVar("T")

logger = logging.getLogger(__name__)

_AT_ONCE = 256
"""Patches that are handed out to threads at a time."""


def write_map_layer(
    dest: str | os.PathLike[str],
    ds: Dataset,
    maps: str | os.PathLike[str],
    *,
    name: str = MAP.name,
    title: str = MAP.title,
    storage_options: Mapping[str, Any] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    threads: int = 2,
    progress: Progress = silent,
) -> Layer:
    """Make an array layer of the official reference maps; a killed run goes on where it was.

    Opened with the layer, a root has maps as if it had been built with them: models can learn them. An archive is read
    once, in its own order, and decoded as far as the root has its patches; a map must agree with the patch's labels.
    Patches without a map are absent from the layer, maps of other patches are left out and counted in the log.

    Args:
        dest: Path or URL of the layer.
        ds: The whole root that it is for, such as one opened where others host it.
        maps: ``Reference_Maps.tar.zst``, a folder of the maps, an LMDB with maps, or a folder with one of these;
            archives may be at a URL.
        name: Name of the layer, and of the array in batches.
        title: What it is, for people.
        storage_options: Credentials and endpoint of `dest` and of `maps`.
        scratch: As for `write_layer`.
        threads: Maps that are read at a time, where they are files of their own.
        progress: Wraps what comes one by one.

    Raises:
        SourceError: If there are no maps, they are of none of the patches, contradict labels, or are damaged.
        ValueError: If the name is none or taken, as where the root has maps, or the root is of another dataset.
        ConflictError, StorageError: As `write_layer`.
    """
    check_name(ds, name)
    if ds.schema.name != REBEN.name:
        raise ValueError(f"{ds.url} is {ds.schema.name}, and the official maps are of {REBEN.name}")
    source = open_modality(maps, MAP.name, storage_options=storage_options)
    work = _Maps(ds, source, threads)
    return write_layer(
        dest,
        ds,
        name=name,
        tensors=MAP.tensors,
        arrays=MAP.arrays if name == MAP.name else (),
        patches=work.of,
        title=title,
        is_map=True,
        provenance={"maps": source.kind, **(source.identity() or work.state())},
        storage_options=storage_options,
        scratch=scratch,
        progress=progress,
    )


class _Maps:
    """The maps that a source has of a root's patches."""

    def __init__(self, ds: Dataset, source: AnySource, threads: int) -> None:
        self._ds, self._source, self._threads = ds, source, threads
        self._row_of = {patch_id: row for row, patch_id in enumerate(ds.selection.patch_ids)}
        self._labels = ds.schema.classes.encode(ds.selection.column(layout.LABELS)).view(np.bool_)

    def of(self, wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
        """Pairs of a patch id and its map, of these patches."""
        is_streamed = isinstance(self._source, StreamedSource)
        found = self._streamed(wanted) if is_streamed else self._read(wanted)
        for patch_id, payload in found:
            values = MAP.decode(payload)
            self._check(patch_id, values)
            yield patch_id, values

    def _streamed(self, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        assert isinstance(self._source, StreamedSource)
        left, ours, others = set(wanted), 0, 0
        for patch_id, payload in self._source.iter_payloads(MAP.name, wanted=left.__contains__):
            is_ours = patch_id in self._row_of
            ours, others = ours + is_ours, others + (not is_ours)
            if payload is not None:
                yield patch_id, payload
        self._tell(ours, others)

    def _read(self, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        source = self._source
        assert isinstance(source, Source)
        names = source.names().get(MAP.name)
        there = list(wanted) if names is None else pa.array(names, pa.string()).to_pylist()
        ours = sum(name in self._row_of for name in there)
        self._tell(ours, len(there) - ours)
        for patch in self._mapped(
            lambda info: source.read(info, [MAP.name]), set(wanted).intersection(there)
        ):
            yield patch.info.patch_id, patch.payloads[MAP.name]

    def state(self) -> dict[str, str]:
        """What tells maps that are files of their own from others: names, sizes and times of all; else nothing."""
        source = self._source
        if not isinstance(source, Source):
            return {}
        there = self._row_of.keys() & set(
            pa.array(source.names().get(MAP.name) or [], pa.string()).to_pylist()
        )
        stamps = list(self._mapped(lambda info: source.stamp(info, [MAP.name]), there))
        return {"state": xxhash.xxh3_64_hexdigest("\n".join(stamps).encode())} if any(stamps) else {}

    def _mapped(self, ask: Callable[[PatchInfo], T], ids: Collection[str]) -> Iterator[T]:
        """What is found for each of these patches, in the order of the root's table."""
        columns = self._ds.manifest.metadata_columns
        table = self._ds.selection.columns(described_columns(self._ds.patch_table.names, columns))
        wanted = pa.array(sorted(ids), pa.string())
        table = described_metadata(table.filter(pc.is_in(table.column(layout.ID), wanted)), columns)
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, table.num_rows, _AT_ONCE):
                yield from pool.map(ask, list(patch_infos(table.slice(start, _AT_ONCE))))

    def _tell(self, ours: int, others: int) -> None:
        where = self._source.describe()
        if not ours:
            raise SourceError(f"{where}: none of its {others:,} maps is of a patch of {self._ds.url}")
        if others:
            logger.info("%s: %s maps are of patches that %s has not", where, f"{others:,}", self._ds.url)

    def _check(self, patch_id: str, values: Mapping[str, Any]) -> None:
        """See that a map shows the classes that the metadata give its patch."""
        classes = self._ds.schema.classes
        shown = classes.labels_in(values[MAP.tensors[0].name], name=f"{MAP.name} of {patch_id}")
        given = [classes.names[n] for n in np.flatnonzero(self._labels[self._row_of[patch_id]]).tolist()]
        if list(shown) != sorted(given):
            raise SourceError(
                f"{patch_id}: its map in {self._source.describe()} shows {', '.join(shown) or 'no class'}, "
                f"{self._ds.url} says {', '.join(given)}; are they the maps of this dataset?"
            )
