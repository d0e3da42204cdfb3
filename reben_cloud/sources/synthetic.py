"""A made-up dataset over real ids, labels and footprints, for demos, tests and benchmarks.

Every pixel is computed from (patch, band, y, x), so a mixed-up band, row or patch shows; the
values are smooth like real imagery, differ by land cover, and have its ranges. Integer arithmetic
and raw Philox words only: the same on every machine and for good.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import BANDS, STATISTICS_MEAN
from reben_cloud.bigearthnet.labels import CLASSES, representative_code
from reben_cloud.bigearthnet.official import read_official
from reben_cloud.bigearthnet.reben import MAP, MAP_TENSOR, REBEN
from reben_cloud.errors import SourceError
from reben_cloud.formats import parquet
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.sources import Official

_GRID = 8
"""Cells of the coarse random field along one side of a patch; interpolated, it is the terrain."""


_MAP_SHAPE = MAP.tensors[0].shape


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
        land = synthetic_map(info)
        return Patch(
            info=info,
            payloads={
                m.name: m.encode({name: synthetic_band(info, name, land) for name in m.places})
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


def synthetic_map(info: PatchInfo) -> NDArray[np.uint16]:
    """The reference map of a patch, (120, 120) CLC codes: its labels as smooth regions, all present."""
    codes = np.array([representative_code(label) for label in info.labels], np.uint16)
    height = _smooth(info.patch_id, stream=0, size=_MAP_SHAPE[0])
    # Equal-area bands of the terrain's height: every label gets a region of its own.
    ranks = np.empty(height.size, np.int64)
    ranks[np.argsort(height, axis=None, kind="stable")] = np.arange(height.size)
    return codes[(ranks * len(codes) // height.size).reshape(_MAP_SHAPE)]


def synthetic_band(info: PatchInfo, name: str, land: NDArray[np.uint16]) -> NDArray[np.generic]:
    """One tensor of a patch.

    Args:
        info: The patch.
        name: A band, or ``Data`` for the map itself.
        land: The patch's `synthetic_map`.

    Returns:
        (size, size): S2 uint16 digital numbers in [1, 20000], S1 float32 dB in [-45, 10].
    """
    if name == MAP_TENSOR:
        return land
    band = BANDS[name]
    number = list(BANDS).index(name)
    step = _MAP_SHAPE[0] // band.size_px
    cover = _BRIGHTNESS[land[::step, ::step]]
    words = _words(info.patch_id, stream=1 + number, count=band.size_px**2 // 4)
    noise = (words.view(np.uint16) & 63).astype(np.int32).reshape(land[::step, ::step].shape)
    terrain = _smooth(info.patch_id, stream=0, size=band.size_px)
    # 0..255 of cover, 0..1020 of terrain and 0..63 of noise, scaled to the band's real mean.
    total = 4 * cover + terrain + noise + 37 * number
    if band.dtype == "float32":
        return (STATISTICS_MEAN[name] + (total - 1050) / 128).astype(np.float32)
    return (1 + total * int(STATISTICS_MEAN[name]) // 1200).astype(np.uint16)


_BRIGHTNESS = np.zeros(1000, np.int32)
for _number, _label in enumerate(CLASSES):
    _BRIGHTNESS[representative_code(_label)] = (_number * 97) % 256


@functools.lru_cache(maxsize=4)  # the three resolutions of the patch at hand, for its 15 tensors
def _smooth(patch_id: str, *, stream: int, size: int) -> NDArray[np.int32]:
    """A smooth field (size, size) of integers in [0, 1020], from 9 x 9 random corners."""
    corners = _words(patch_id, stream=1000 + stream, count=11).view(np.uint8)[: (_GRID + 1) ** 2]
    coarse = corners.reshape(_GRID + 1, _GRID + 1).astype(np.float32)
    position = (np.arange(size) * 2 + 1) * _GRID * 16 // size  # in 1/32 of a cell
    cell, part = position // 32, position % 32
    weights = np.zeros((size, _GRID + 1), np.float32)
    weights[np.arange(size), cell] = 32 - part
    weights[np.arange(size), cell + 1] += part
    # Whole numbers below 2**24: float32 products and sums are exact, whatever the BLAS.
    field = weights @ coarse @ weights.T
    return field.astype(np.int32) >> 8


def _words(patch_id: str, *, stream: int, count: int) -> NDArray[np.uint64]:
    """Raw Philox words keyed by the patch; NumPy keeps this stream for good."""
    name = patch_id.encode()
    key = int.from_bytes(name[-16:], "little") ^ int.from_bytes(name[8:24], "little") << 1
    return np.random.Philox(key=key & (2**128 - 1), counter=[0, 0, 0, stream]).random_raw(count)
