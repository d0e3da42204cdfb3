"""Layers for tests whose values follow from the patch alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.layers import publish
from reben_cloud.root import layout
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.schema import TensorSpec
from reben_cloud.store import open_store

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


def write_table_layer(folder, ds, *, kind):
    """A table layer of every second patch: a temperature (kind ``one``), or two texts each (``many``)."""
    ids = ds.selection.patch_ids[::2]
    texts = [f"text {number} of {patch_id}" for patch_id in ids for number in (0, 1)]
    table = {"patch_id": ids, "temperature": [float(zlib.crc32(i.encode()) % 30) for i in ids]}
    if kind == "many":
        table = {"patch_id": [patch_id for patch_id in ids for _ in (0, 1)], "input": texts}
    rows = pa.table(table)
    data, seal = publish.encode_table([rows], rows.schema, row_group_rows=20)
    store = open_store(folder)
    store.put(layout.ROWS, data)
    index = None
    if kind == "many":
        spans = pa.table({"patch_id": ids, "first": range(0, 2 * len(ids), 2), "count": [2] * len(ids)})
        data, index = publish.encode_table([spans], spans.schema, row_group_rows=20)
        store.put(layout.INDEX, data)
    manifest = LayerManifest.of(
        kind=kind,
        name="climate" if kind == "one" else "txt",
        fingerprint=ds.manifest.fingerprint,
        num_patches=len(ds),
        coverage=len(ids),
        num_rows=rows.num_rows,
        rows=seal,
        index=index,
    )
    return publish.commit_layer(store, manifest, {})
