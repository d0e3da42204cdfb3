"""Pixels that contradict what is said of them: refused before anything is made of them."""

from __future__ import annotations

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
        SourceError: If a payload that must be complete has a fill value, or labels and map disagree.
        InvalidPatchError: If a map has an unknown code.
    """
    if modality.complete and (name := modality.incomplete(payload)) is not None:
        raise SourceError(
            f"{info.patch_id}: {name} has a pixel of {modality.specs[name].fill}, which means nodata; a patch of "
            f"{schema.name} has none"
        )
    if schema.map_array is not None and schema.map_array in modality.samples:
        found = schema.classes.labels_in(modality.stack(payload)[schema.map_array], name=info.patch_id)
        if list(found) != sorted(info.labels):
            raise SourceError(
                f"{info.patch_id}: the reference map holds {', '.join(found)}, "
                f"the metadata says {', '.join(info.labels)}"
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
