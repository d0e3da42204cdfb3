"""Sources: objects that hold payloads by name; each module is one kind (`root.source` says what they share)."""

from __future__ import annotations

import pyarrow as pa

from reben_cloud.bigearthnet.official import describe
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.root.source import Source as Source
from reben_cloud.schema import Schema


class Official:
    """What is true of every form of the official data."""

    __slots__ = ()

    @property
    def schema(self) -> Schema:
        """ReBEN's."""
        return REBEN

    @property
    def is_remote(self) -> bool:
        """Not, but for some."""
        return False

    def described(self, metadata: pa.Table) -> pa.Table:
        """The official metadata with what follows from the names."""
        return describe(metadata)
