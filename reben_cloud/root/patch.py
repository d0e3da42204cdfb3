"""A patch: what the metadata say of it, and its payloads; the one value that every source yields.

What a payload is, is told by the schema. This module knows nothing of files, stores or tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reben_cloud.schema import Modality


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchInfo:
    """What the metadata say of one patch; what only BigEarthNet's say is empty elsewhere."""

    patch_id: str
    """Name of the patch."""
    labels: tuple[str, ...]
    """Class names."""
    split: str
    """``train``, ``validation`` or ``test``."""
    country: str = ""
    """English name of the nearest of the ten countries."""
    s1_name: str = ""
    """Name of the Sentinel-1 patch that belongs to it; indices not padded."""
    s2v1_name: str = ""
    """Name of the same patch in BigEarthNet v1."""
    contains_seasonal_snow: bool = False
    """Listed by the authors as covered by seasonal snow."""
    contains_cloud_or_shadow: bool = False
    """Listed by the authors as covered by cloud or cloud shadow."""
    more: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Metadata column -> value, of the columns beyond these."""

    def name_in(self, column: str) -> str:
        """What a metadata column calls the patch, or what belongs to it."""
        return str(self.more[column] if column in self.more else getattr(self, column))

    @property
    def recommended(self) -> bool:
        """Whether training recipes use the patch: no snow, no cloud, no shadow."""
        return not (self.contains_seasonal_snow or self.contains_cloud_or_shadow)


def key_of(modality: Modality, info: PatchInfo) -> str:
    """Key in an LMDB of a patch's payload."""
    return f"{info.name_in(modality.key_column)}{modality.key_suffix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """One patch: its metadata, and the payload of every modality that is there."""

    info: PatchInfo
    """The metadata of the patch."""
    payloads: Mapping[str, bytes]
    """Name of a modality -> payload; a modality may be missing. Whoever stores them checks them first."""
