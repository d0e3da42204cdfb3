"""Several sources as one: modalities from different places, or the patches of one spread over several.

Each modality comes from whichever source has it. Of one that several have, a patch must be in one of them alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import pyarrow as pa
import xxhash

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import SourceError
from reben_cloud.root.manifest import identity_of
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.root.source import AnySource, Source, StreamedSource
from reben_cloud.schema import Schema
from reben_cloud.sources import Official
from reben_cloud.sources.archives import ArchiveSource
from reben_cloud.sources.folders import FolderSource, refuse_twice
from reben_cloud.sources.lmdb import LmdbSource, modalities_of

logger = logging.getLogger(__name__)


@runtime_checkable
class _Holding(Protocol):
    """A source that says whether it has a patch."""

    def holds(self, modality: str, info: PatchInfo) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Merged(Official):
    """What both forms of several sources have in common."""

    parts: tuple[AnySource, ...]
    """The sources."""
    of: Mapping[str, tuple[int, ...]]
    """Modality -> the numbers of the sources that have it."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Modality that all lack -> what is near one of them, looks like that modality and is not taken."""

    @property
    def kind(self) -> str:
        """What they are, without where."""
        return " and ".join(dict.fromkeys(part.kind for part in self.parts))

    @property
    def is_remote(self) -> bool:
        """Whether a read of one waits for a network."""
        return any(part.is_remote for part in self.parts)

    def describe(self) -> str:
        """One line for people."""
        return " and ".join(part.describe() for part in self.parts)

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Names by modality, of all sources together.

        Raises:
            SourceError: If two have the same patch.
        """
        held = [part.names() for part in self.parts]
        found: dict[str, Sequence[str] | None] = {}
        for modality, numbers in self.of.items():
            names: list[str] = []
            are_known = True
            for listed in (held[number].get(modality, ()) for number in numbers):
                are_known = are_known and listed is not None
                names += pa.array(listed or (), pa.string()).to_pylist()
            refuse_twice(modality, names, self.describe())
            if any(modality in held[number] for number in numbers):
                found[modality] = sorted(names) if are_known else None
        return found

    def identity(self) -> Mapping[str, str]:
        """Sizes and times of the files that hold many patches, by the number of the source."""
        return {
            f"{number}: {name}": state
            for number, part in enumerate(self.parts)
            for name, state in part.identity().items()
        }

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:
        """Those of all files that hold this patch alone; empty where there are none."""
        stamps = [part.stamp(info, wanted) for part, wanted in self._holders(info, modalities) if wanted]
        return xxhash.xxh3_64_hexdigest("\n".join(stamps).encode()) if any(stamps) else ""

    def _holders(self, info: PatchInfo, modalities: Sequence[str]) -> list[tuple[AnySource, list[str]]]:
        """Sources, and what each of them gives of a patch."""
        wanted: dict[int, list[str]] = {}
        for modality in modalities:
            wanted.setdefault(self._holder(info, modality), []).append(modality)
        return [(self.parts[number], names) for number, names in wanted.items()]

    def _holder(self, info: PatchInfo, modality: str) -> int:
        numbers = self.of[modality]
        for number in numbers[:-1]:
            part = self.parts[number]
            if isinstance(part, _Holding) and part.holds(modality, info):
                return number
        return numbers[-1]


class Merged(_Merged):
    """Several sources that are read at random."""

    __slots__ = ()

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, each from where it is.

        Raises:
            SourceError: If one is in an archive, or as its source says.
        """
        payloads: dict[str, bytes] = {}
        for part, wanted in self._holders(info, modalities):
            if not isinstance(part, Source):
                raise SourceError(f"{part.describe()} is read from front to back, and not patch by patch")
            payloads |= part.read(info, wanted).payloads
        return Patch(info=info, payloads={name: payloads[name] for name in modalities})


class MergedWithArchives(Merged):
    """Several sources of which some are archives: what these have is read from front to back, the rest at random."""

    __slots__ = ()

    @property
    def streamed(self) -> Sequence[str]:
        """Modalities that are in archives."""
        return [m for m in self.of if any(isinstance(self.parts[n], StreamedSource) for n in self.of[m])]

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:
        """Those of the files of sources that are not archives."""
        return super().stamp(info, [m for m in modalities if m not in self.streamed])

    def iter_payloads(
        self, modality: str, *, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, bytes | None]]:
        """Every patch of a modality that is in archives, one archive after the other.

        Raises:
            SourceError: If an archive is damaged.
            InvalidPatchError: If a band has another shape or dtype.
        """
        for number in self.of[modality]:
            part = self.parts[number]
            assert isinstance(part, StreamedSource)
            yield from part.iter_payloads(modality, wanted=wanted)


def merge(sources: Sequence[AnySource], *, only: Sequence[str] = ()) -> AnySource:
    """Several sources as one.

    Args:
        sources: Of official data, or roots of it; at least one.
        only: The modalities that are wanted; all that one of them has by default.

    Raises:
        SourceError: If a modality that is wanted is in none, one is in two of which one cannot be told to have a
            patch, or a source is of another dataset.
    """
    for source in sources:
        if not _is_official(source.schema):
            raise SourceError(
                f"{source.describe()} is of another dataset ({source.schema.name}), and is not merged"
            )
    has = [_modalities_of(source) for source in sources]
    of = {
        modality: tuple(number for number, held in enumerate(has) if modality in held)
        for modality in only or REBEN.modality_names
    }
    if lacking := [modality for modality, numbers in of.items() if not numbers and only]:
        found = ", ".join(m for m in REBEN.modality_names if any(m in held for held in has))
        where = " and ".join(source.describe() for source in sources)
        raise SourceError(f"{where} has no {' and no '.join(lacking)}; it has {found}")
    of = {modality: numbers for modality, numbers in of.items() if numbers}
    for modality, numbers in of.items():
        forms = {type(sources[number]) for number in numbers}
        is_known = isinstance(sources[numbers[0]], _Holding | StreamedSource)
        if len(numbers) > 1 and (len(forms) > 1 or not is_known):
            both = " and ".join(sources[n].describe() for n in numbers)
            raise SourceError(f"{modality} is in {both}: name one of them")
    near = {m: what for source in sources for m, what in source.left_out.items() if m not in of and not only}
    used = sorted({number for numbers in of.values() for number in numbers})
    if unused := [source.describe() for number, source in enumerate(sources) if number not in used]:
        logger.warning("not taken: %s; it has nothing of what is wanted", ", ".join(unused))
    form = MergedWithArchives if any(isinstance(sources[n], StreamedSource) for n in used) else Merged
    return form(
        tuple(_narrowed(sources[n], [m for m, numbers in of.items() if n in numbers]) for n in used),
        {m: tuple(map(used.index, numbers)) for m, numbers in of.items()},
        near,
    )


def _is_official(schema: Schema) -> bool:
    """Whether a schema is of the official data; in others labels may mean something else, and the bands be the same."""
    return schema.name == REBEN.name and identity_of(schema) == list(schema.modality_names)


def _narrowed(source: AnySource, modalities: Sequence[str]) -> AnySource:
    """A source without the archives of which nothing is wanted: looking for their names alone would take an hour."""
    if isinstance(source, ArchiveSource):
        return replace(source, files={modality: source.files[modality] for modality in modalities})
    return source


def _modalities_of(source: AnySource) -> Sequence[str]:
    """What a source has, without listing all of it."""
    if isinstance(source, FolderSource):
        return list(source.roots)
    if isinstance(source, ArchiveSource):
        return list(source.files)
    if isinstance(source, LmdbSource):
        return modalities_of(source.folder)
    return source.schema.modality_names
