"""Every patch of a root or an export against the source that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reben_cloud.checks.index import PatchIndex
from reben_cloud.checks.objects import Check
from reben_cloud.errors import ChecksumError, InvalidPatchError, NotFoundError, SourceError
from reben_cloud.root.source import AnySource, Source, StreamedSource, streamed
from reben_cloud.schema import Modality


def source_checks(index: PatchIndex, source: AnySource) -> list[Check]:
    """Checks that read every payload that the source holds: some patches each, or a whole archive."""
    held = source.names()
    modalities = tuple(m for m in index.modalities if m.name in held)
    in_archives = streamed(source)
    found: list[Check] = []
    if isinstance(source, StreamedSource):
        found += [_ArchiveCheck(index, source, m) for m in modalities if m.name in in_archives]
    at_random = tuple(m for m in modalities if m.name not in in_archives)
    if at_random and isinstance(source, Source):
        found += [_SourceCheck(index, source, at_random, rows) for rows in index.parts()]
    return found


@dataclass(frozen=True, slots=True)
class _SourceCheck:
    """Compare some patches with the source's."""

    index: PatchIndex
    source: Source
    modalities: tuple[Modality, ...]
    rows: NDArray[np.int64]

    def __call__(self) -> list[str]:
        problems = []
        by_name = {modality.name: modality for modality in self.modalities}
        for row, info in zip(self.rows.tolist(), self.index.infos(self.rows), strict=True):
            try:
                patch = self.source.read(info, tuple(by_name))
            except (SourceError, NotFoundError, InvalidPatchError, ChecksumError) as error:
                problems.append(f"{info.patch_id}: the source does not give it: {error}")
                continue
            for name, payload in patch.payloads.items():
                problems += self.index.compare(by_name[name], row, payload, "source")
        return problems


@dataclass(frozen=True, slots=True)
class _ArchiveCheck:
    """Compare a whole archive."""

    index: PatchIndex
    source: StreamedSource
    modality: Modality

    def __call__(self) -> list[str]:
        names = self.index.official.column(self.modality.key_column).to_pylist()
        rows = {name: row for row, name in enumerate(names)}
        seen: set[str] = set()
        problems: list[str] = []
        try:
            for name, payload in self._payloads(rows):
                seen.add(name)
                problems += self.index.compare(self.modality, rows[name], payload, "source")
        except (SourceError, InvalidPatchError) as error:
            problems.append(str(error))
        lacking = [name for name in rows if name not in seen]
        if lacking:
            problems.append(
                f"{lacking[0]}: not in the source ({len(lacking):,} such {self.modality.name} patches)"
            )
        return problems

    def _payloads(self, rows: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
        for name, payload in self.source.iter_payloads(self.modality.name, wanted=rows.__contains__):
            if payload is not None:
                yield name, payload
