"""Pixels that contradict what is said of them: refused before anything is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError
from reben_cloud.root.patch import PatchInfo
from reben_cloud.schema import Modality, Schema


def check_payload(schema: Schema, modality: Modality, payload: bytes, info: PatchInfo) -> None:
    """Refuse pixels that contradict the metadata; each payload passes here on its way into a shard.

    Raises:
        SourceError: If a payload that must be complete has a fill value, decibels are not decibels, or labels and map
            disagree.
        InvalidPatchError: If a map has an unknown code.
    """
    if modality.complete and (name := modality.incomplete(payload)) is not None:
        raise SourceError(
            f"{info.patch_id}: {name} has a pixel of {modality.specs[name].fill}, which means nodata; a patch of "
            f"{schema.name} has none"
        )
    _check_decibels(modality, payload, info)
    if schema.map_array is not None and schema.map_array in modality.samples:
        found = schema.classes.labels_in(modality.stack(payload)[schema.map_array], name=info.patch_id)
        if list(found) != sorted(info.labels):
            raise SourceError(
                f"{info.patch_id}: the reference map holds {', '.join(found)}, "
                f"the metadata says {', '.join(info.labels)}"
            )


_DECIBEL = "dB"
_MAX_DECIBELS = 1000.0
"""More than any number of decibels: 10^100 times the unit. -9999 and other codes for nodata are beyond."""


def _check_decibels(modality: Modality, payload: bytes, info: PatchInfo) -> None:
    """Refuse values that no logarithm is: infinity, which is that of 0, codes for nodata, and linear power."""
    units = {name: spec.units for name, spec in modality.specs.items()}
    if _DECIBEL not in units.values():
        return
    lows = []
    for name, values in modality.decode(payload).items():
        if units[name] != _DECIBEL:
            continue
        low, high = float(values.min()), float(values.max())
        # Not a number where one of them is not; the fill value may be that, if means are not compared.
        if np.isnan(low) and name not in modality.falling and math.isnan(modality.specs[name].fill):
            continue
        if not -_MAX_DECIBELS < low <= high < _MAX_DECIBELS:
            worst = values[~(np.abs(values) < _MAX_DECIBELS)].flat[0]
            raise SourceError(
                f"{info.patch_id}: {name} of {info.name_in(modality.key_column)} has a pixel of {worst:g}, which is "
                f"not a number of {_DECIBEL}; it is the logarithm of 0 or a code for nodata: fill it, or leave this "
                "patch out of the source"
            )
        lows.append(low)
    if lows and min(lows) > 0:
        raise SourceError(
            f"{info.patch_id}: all pixels of {modality.name} are above 0 {_DECIBEL} (from {min(lows):.3g}), which no "
            "surface returns; it is linear power or amplitude: convert it (10 log10 of power, 20 log10 of amplitude)"
        )


def check_falling(
    what: str, modality: Modality, infos: Sequence[PatchInfo], means: NDArray[np.floating[Any]]
) -> None:
    """Refuse swapped bands, by their means over many patches; of one patch alone they may be the other way round.

    Args:
        what: What the patches are, for the message.
        modality: What was measured.
        infos: n patches.
        means: Mean of each tensor of `Modality.falling`, (n, number of them).

    Raises:
        SourceError: If they do not fall.
    """
    overall = means.mean(axis=0).tolist()
    for at in range(len(overall) - 1):
        if overall[at] > overall[at + 1]:
            continue
        high, low = modality.falling[at : at + 2]
        units = modality.specs[high].units or ""
        odd = np.flatnonzero(~(means[:, at] > means[:, at + 1]))
        first = infos[odd[0]]
        name = first.name_in(modality.key_column)
        raise SourceError(
            f"{what}: mean {high} is {overall[at]:.2f} {units} and mean {low} {overall[at + 1]:.2f} {units} over "
            f"{len(infos)} patches; {high} must be above {low}, are the bands swapped? It is so in {odd.size} of the "
            f"patches, the first is {name} of {first.patch_id}"
        )
