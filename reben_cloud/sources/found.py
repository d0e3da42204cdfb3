"""Payloads of a hosted dataset as a source: their places are looked up, and they are read by ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.root.backing import Finder, References
from reben_cloud.root.patch import Patch, PatchInfo, key_of
from reben_cloud.root.references import RemoteObjects, Span
from reben_cloud.sources import Official


@dataclass(frozen=True)
class FoundSource(Official):
    """The records of a hosted LMDB."""

    backing: References
    """Where it is, with a finder."""
    held: tuple[str, ...]
    """Modalities that it has."""
    listed: Mapping[str, Sequence[str]] | None = None
    """Modality -> its names, where all records were listed."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Nothing is looked for beside it."""

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "rico-hdl LMDB"

    @property
    def is_remote(self) -> bool:
        """Yes: a read waits for a network."""
        return True

    @property
    def finder(self) -> Finder:
        """What knows where records lie."""
        assert self.backing.finder is not None
        return self.backing.finder

    def describe(self) -> str:
        """One line for people."""
        return f"rico-hdl LMDB {self.backing.objects[0].url}"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """What was listed, or every patch of the metadata; one that is not there is told when it is looked up."""
        return dict.fromkeys(self.held) if self.listed is None else self.listed

    def identity(self) -> Mapping[str, str]:
        """Version of the file."""
        return {one.url.rpartition("/")[2]: one.version for one in self.backing.objects}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: the file holds many patches."""
        return ""

    def look_up(self, table: pa.Table, modalities: Sequence[str]) -> None:
        """Look the records of many patches up together, which takes far fewer requests than one by one.

        Raises:
            NotFoundError: If one is not there.
        """
        for modality in map(REBEN.modality, modalities):
            names = table.column(modality.key_column).to_pylist()
            self.finder.find([f"{name}{modality.key_suffix}" for name in names])

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch.

        Raises:
            InvalidPatchError: If a record has another form.
            NotFoundError: If one is not there.
            ChangedError: If the file was written again.
        """
        payloads = {}
        for modality in map(REBEN.modality, modalities):
            key = key_of(modality, info)
            found = self.finder.find([key])
            span = Span(int(found.start[0]), modality.payload_bytes, np.zeros(1, np.int64))
            number = int(found.object[0])
            payload = bytes(self._remote.read(number, [span])[0])
            modality.check(payload, name=f"{self.backing.objects[number].url}: record {key!r}")
            payloads[modality.name] = payload
        return Patch(info=info, payloads=payloads)

    @cached_property
    def _remote(self) -> RemoteObjects:
        return self.backing.reader()
