"""What a dataset reads its payloads from: the objects of its own root, or an LMDB.

A value that readers, exports and checks dispatch on. It holds no store and opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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


Backing = RootObjects | LmdbFolder
"""What a dataset reads its payloads from."""
