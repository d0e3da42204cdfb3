"""A made-up dataset over real ids, labels and footprints, for demos, tests and benchmarks.

Every pixel is computed from (patch, band, y, x), so a mixed-up band, row or patch shows; `landscape` says how.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.bigearthnet.official import read_official
from reben_cloud.bigearthnet.reben import MAP_TENSOR, REBEN
from reben_cloud.errors import SourceError
from reben_cloud.formats import parquet
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.sources import Official
from reben_cloud.sources.landscape import band_of, land_of


@dataclass(frozen=True, slots=True)
class SyntheticSource(Official):
    """Computed patches; nothing is stored."""

    num_patches: int
    """How many the metadata has; for people only."""
    modalities: tuple[str, ...] = REBEN.modality_names
    """What every patch has."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Nothing."""
        return {}

    @property
    def kind(self) -> str:
        """What it is, without where."""
        return "synthetic patches"

    def describe(self) -> str:
        """One line for people."""
        return f"{self.num_patches:,} synthetic patches (real ids and labels, computed pixels)"

    def names(self) -> Mapping[str, Sequence[str] | None]:
        """Every patch of the metadata."""
        return dict.fromkeys(self.modalities)

    def identity(self) -> Mapping[str, str]:
        """Nothing: there are no files."""
        return {}

    def stamp(self, info: PatchInfo, modalities: Sequence[str]) -> str:  # noqa: ARG002 - the protocol's
        """Nothing: there are no files."""
        return ""

    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        """The payloads of one patch, computed."""
        land = land_of(info.patch_id, info.labels)

        def pixels(name: str) -> NDArray[np.generic]:
            return land if name == MAP_TENSOR else band_of(info.patch_id, name, land)

        return Patch(
            info=info,
            payloads={
                m.name: m.encode({name: pixels(name) for name in m.places})
                for m in map(REBEN.modality, modalities)
            },
        )


def synthetic_metadata(num_patches: int, paths: Sequence[str | os.PathLike[str]] = ()) -> pa.Table:
    """Metadata of `num_patches` real patches, spread evenly over those available.

    Args:
        num_patches: How many.
        paths: Official metadata files to draw from; by default the sample of 4,553 rows (all
            products, splits, countries and classes) that comes with the package.

    Raises:
        SourceError: If there are fewer.
    """
    if not paths:
        sample = files("reben_cloud.sources").joinpath("sample_metadata.parquet")
        table = parquet.read_table(sample.read_bytes(), name=sample.name)
    else:
        table = read_official(paths)
    if num_patches > table.num_rows:
        raise SourceError(
            f"{num_patches:,} synthetic patches are wanted and {table.num_rows:,} ids are known here; "
            "name the official metadata files (--metadata), they have 549,488"
        )
    rows = np.arange(num_patches, dtype=np.int64) * table.num_rows // num_patches
    return table.take(rows)
