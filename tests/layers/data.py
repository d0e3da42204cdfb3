"""Layers for tests whose values follow from the patch alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.schema import TensorSpec

NUM_PATCHES = 60
"""Patches of the root in `conftest`."""

ELEVATION = TensorSpec(name="dem", shape=(120, 120), dtype="int16", units="m", fill=-9999, pixel_m=10)
EMBEDDING = TensorSpec(name="vector", shape=(24,), dtype="float16")


def elevation_of(patch_id: str) -> NDArray[Any]:
    """Heights of a patch, int16 (120, 120)."""
    base = zlib.crc32(patch_id.encode()) % 2000
    return (base + np.add.outer(np.arange(120), 2 * np.arange(120))).astype(np.int16)


def embedding_of(patch_id: str) -> NDArray[Any]:
    """A vector of a patch, float16 (24,)."""
    rng = np.random.default_rng(zlib.crc32(patch_id.encode()))
    return rng.normal(size=24).astype(np.float16)


def elevations(ids: Iterable[str]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Pairs for `write_layer`."""
    for patch_id in ids:
        yield patch_id, elevation_of(patch_id)
