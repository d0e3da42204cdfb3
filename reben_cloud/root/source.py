"""Where patches come from: what a build and a check ask of a source, whatever form it has.

A source says which names it holds (`names`) and reads the patch of a metadata row (`read`), or, where it can
only be read from front to back, its payloads one after the other (`iter_payloads`). Which rows those are, and
in what order, is decided above it. Sources are picklable and small, whatever the size of the dataset: one
travels with every task to the process that does it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import pyarrow as pa

from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.schema import Schema

Incomplete = Literal["refuse", "skip"]
"""What to do about patches that lack a modality: an error, or a root without them."""


class AnySource(Protocol):
    """Where patches come from."""

    @property
    def kind(self) -> str:
        """What it is, without where: a root says what it was made from, and no path of its maker."""
        ...

    @property
    def schema(self) -> Schema:
        """What its patches can have."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Modality that it lacks -> what lies near it and looks like that modality, in words."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a read waits for a network, so that several at once are worth it."""
        ...

    def describe(self) -> str:
        """One line for people: what it is and where."""
        ...

    def described(self, metadata: pa.Table) -> pa.Table:
        """Its metadata with the columns that a root needs besides, such as those that follow from names."""
        ...

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Modality -> the names it holds: what the metadata have in the modality's key column.

        None stands for every patch of the metadata: an archive is not read twice just to list it.
        A modality that the source lacks altogether is not a key.
        """
        ...

    def identity(self) -> Mapping[str, str]:
        """Name of each file or object that holds many patches -> its size and time, or a digest.

        When a build goes on, these must be what they were. Without folders: a source may be moved.
        """
        ...

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:
        """The same of the files that hold one patch alone, in short; empty where it has none."""
        ...


@runtime_checkable
class Source(AnySource, Protocol):
    """A source that is read at random."""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, checked.

        Raises:
            SourceError: If a file is missing or broken.
            InvalidPatchError: If a band has another shape or dtype.
        """
        ...


@runtime_checkable
class StreamedSource(AnySource, Protocol):
    """A source that is read from front to back, one modality after the other: an archive.

    One that is a `Source` besides, for its other modalities, has both.
    """

    @property
    def streamed(self) -> Sequence[str]:
        """The modalities that are read like this."""
        ...

    def iter_payloads(
        self, modality: str, *, wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, bytes | None]]:
        """(Name, payload) of every patch in the order of the archive; None for those that are not wanted.

        Raises:
            SourceError: If the archive is damaged.
            InvalidPatchError: If a band has another shape or dtype.
        """
        ...


def streamed(source: AnySource) -> Sequence[str]:
    """The modalities of a source that can only be read from front to back."""
    return source.streamed if isinstance(source, StreamedSource) else ()
