"""What a dataset reads its payloads from: the objects of its own root, an LMDB, or other people's objects.

A value that readers, exports and checks dispatch on. It holds no store and opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from reben_cloud.root.references import Found, RemoteObject, RemoteObjects
from reben_cloud.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class RootObjects:
    """The shards and Zarr stores of the root itself."""

    def former_fingerprint(self) -> None:
        """A root has one fingerprint for good."""
        return


@dataclass(frozen=True, kw_only=True, slots=True)
class LmdbFolder:
    """An LMDB in a folder of this machine; there are no Zarr stores then."""

    path: str
    """The folder with ``data.mdb``."""
    compute_former: Callable[[], str] | None = None
    """Computes what the first version called an LMDB that has no tables of its own; None for an export."""

    def former_fingerprint(self) -> str | None:
        """What the first version called this LMDB, if it is one that has no tables of its own; takes seconds."""
        return None if self.compute_former is None else self.compute_former()


class Finder(Protocol):
    """Finds payloads of which no table says where they lie, in one object."""

    @property
    def place(self) -> tuple[Store, str]:
        """Store and path of that object, with what lets one in, which its URL does not have."""

    def find(self, keys: Sequence[str]) -> Found:
        """Where the payloads with these LMDB keys lie.

        Raises:
            NotFoundError: If one is not there.
            ChecksumError: If what is looked up in was written again meanwhile.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """Objects that others keep; there are no Zarr stores then."""

    objects: tuple[RemoteObject, ...]
    """What the places of payloads count."""
    storage_options: Mapping[str, object] = field(default_factory=dict, repr=False)
    """Credentials and endpoint of their stores."""
    finder: Finder | None = None
    """Looks places up; None where the table of patches has them."""

    def reader(self) -> RemoteObjects:
        """What reads the objects; nothing is contacted yet."""
        place = None if self.finder is None else self.finder.place
        return RemoteObjects(self.objects, self.storage_options, place=place)

    def former_fingerprint(self) -> None:
        """The first version knew no references."""
        return


Backing = RootObjects | LmdbFolder | References
"""What a dataset reads its payloads from."""
