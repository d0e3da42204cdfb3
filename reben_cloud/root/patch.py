"""A patch: what the metadata say of it, and its payloads; the one value that every source yields.

What a payload is, is told by the schema. This module knows nothing of files, stores or tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reben_cloud.schema import Modality


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchInfo:
    """What the official metadata says of one patch."""

    patch_id: str
    """Name of the patch: 50 characters, indices padded with zeros."""
    labels: tuple[str, ...]
    """Class names, sorted, 1 to 19 of them."""
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

    @property
    def recommended(self) -> bool:
        """Whether training recipes use the patch: no snow, no cloud, no shadow."""
        return not (self.contains_seasonal_snow or self.contains_cloud_or_shadow)


def key_of(modality: Modality, info: PatchInfo) -> str:
    """Key in an LMDB of a patch's payload."""
    return f"{getattr(info, modality.key_column)}{modality.key_suffix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """One patch: its metadata, and the payload of every modality that is there."""

    info: PatchInfo
    """The metadata of the patch."""
    payloads: Mapping[str, bytes]
    """Name of a modality -> payload; a modality may be missing. Whoever stores them checks them first."""
