"""Roots of synthetic patches, as most tests want one: of a few products.

``synthetic:60`` has a product for nearly each of its patches, and what a product's Zarr store says of itself takes
zarr-python 30 ms and a store 30 objects: most of the time that a small root takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import build, make_plan
from reben_cloud.root.patch import Patch, PatchInfo
from reben_cloud.root.placement import PlacementOptions
from reben_cloud.sources.synthetic import SyntheticSource
from reben_cloud.store import open_store
from tests.official import table_of


def synthetic_root(
    place: str | os.PathLike[str],
    num_patches: int,
    *,
    num_products: int = 3,
    storage_options: Mapping[str, Any] | None = None,
    turned: bool = False,
    **placement: Any,
) -> None:
    """Build a root of synthetic patches, of all splits.

    Args:
        place: Folder or URL of the root to be.
        num_patches: How many; 3 products have 113, 6 have 239, 10 have 407, 20 have 787.
        num_products: Of how many products, each in a country of its own.
        storage_options: Of the store.
        turned: Whether B02 is turned round: a sound root of the same patches with other pixels.
        placement: Fields of `PlacementOptions`.
    """
    source = (_Turned if turned else SyntheticSource)(num_patches)
    table = table_of(num_patches, num_products=num_products)
    store = open_store(place, storage_options)
    build(make_plan(source, table, store, options=PlacementOptions(**placement)))


class _Turned(SyntheticSource):
    def read(self, info: PatchInfo, modalities: Sequence[str]) -> Patch:
        payloads = dict(super().read(info, modalities).payloads)
        if "s2" in payloads:
            tensors = REBEN.modality("s2").decode(payloads["s2"])
            payloads["s2"] = REBEN.modality("s2").encode({**tensors, "B02": tensors["B02"][::-1, ::-1]})
        return Patch(info=info, payloads=payloads)
