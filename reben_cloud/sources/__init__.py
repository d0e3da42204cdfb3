"""Sources: objects that hold payloads by name. Each module is one kind of source.

A source says which names it holds (`names`) and reads the patch of a metadata row (`read`); which
rows those are, and in what order, is decided above it. Sources are picklable and small, whatever
the size of the dataset: one travels with every task to the process that does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from reben_cloud.root.patch import Patch, PatchInfo


class Source(Protocol):
    """Where patches come from."""

    @property
    def kind(self) -> str:
        """What it is, without where: a root says what it was made from, and no path of its maker."""
        ...

    def describe(self) -> str:
        """One line for people: what it is and where."""
        ...

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Modality -> the names it holds: patch ids for ``s2`` and ``map``, S1 names for ``s1``.

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

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, checked.

        Raises:
            SourceError: If a file is missing or broken.
            InvalidPatchError: If a band has another shape or dtype.
        """
        ...
