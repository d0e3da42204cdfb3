"""A layer for another root, and the end of one: layers themselves never change."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.build import Progress, silent
from reben_cloud.errors import NotFoundError
from reben_cloud.layers.array_work import Values
from reben_cloud.layers.publish import JOURNAL
from reben_cloud.layers.read import iter_payloads
from reben_cloud.layers.table import write_table
from reben_cloud.layers.write import write_layer
from reben_cloud.root import layout
from reben_cloud.root.arrow import names_array
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import Layer
from reben_cloud.store import Store


def rebase_layer(
    dest: str | os.PathLike[str],
    ds: Dataset,
    layer: Layer,
    *,
    storage_options: Mapping[str, object] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Layer:
    """Make of a layer one for another root, which has some of the same patches.

    Patches that the root lacks are left out; those that the layer lacks have nothing in the new one either.

    Args:
        dest: Path or URL of the new layer.
        ds: The root that it is for, or an export of it.
        layer: The layer, made for any root.
        storage_options: Credentials and endpoint of `dest`.
        scratch: As for `write_layer`.
        progress: Wraps what comes one by one.

    Raises:
        NotFoundError: If the layer has none of the root's patches.
        ConflictError, StorageError: As `write_layer`.
        ChecksumError: If the layer is damaged.
    """
    manifest, modality = layer.manifest, layer.modality
    provenance = {
        **manifest.provenance,
        "rebased_from": manifest.fingerprint,
        "rebased_layer": manifest.digest,
    }
    if modality is None:
        return write_table(
            dest,
            ds,
            name=layer.name,
            table=_batches(layer),
            key="patch_id",
            many=manifest.kind == "many",
            title=manifest.title,
            provenance=provenance,
            allow_missing=manifest.num_patches,
            storage_options=storage_options,
            progress=progress,
        )
    there = set(ds.selection.patch_ids)
    table = layer.rows
    ids = table.read(range(len(table.group_starts) - 1), [PATCH_ID]).column(PATCH_ID)
    if not there.intersection(ids.to_pylist()):
        raise NotFoundError(f"{layer.url} has none of the patches of {ds.url}: nothing to make a layer of")

    def patches(wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
        mask = pc.is_in(ids, value_set=names_array(wanted))
        for one in iter_payloads(layer, wanted=np.asarray(mask, np.bool_)):
            yield one.patch_id, modality.decode(one.payload)

    return write_layer(
        dest,
        ds,
        name=layer.name,
        tensors=modality.tensors,
        arrays=modality.arrays,
        patches=patches,
        title=manifest.title,
        is_map=manifest.schema is not None and manifest.schema.map_array is not None,
        provenance=provenance,
        storage_options=storage_options,
        scratch=scratch,
        progress=progress,
    )


def _batches(layer: Layer) -> Iterator[pa.RecordBatch]:
    """The rows of a table layer, a row group at a time."""
    table = layer.rows
    for group in range(len(table.group_starts) - 1):
        yield from table.read_once([group], table.names).to_batches()


def remove_layer(store: Store) -> int:
    """Remove a layer, or what an unfinished one has left: ``layer.json`` first, so that nobody opens the rest.

    Objects that no layer has are left where they are.

    Returns:
        How many objects were removed.

    Raises:
        NotFoundError: If there is neither.
        StorageError: If the store cannot be reached or refuses.
    """
    paths = [path for path, _ in store.list()]
    if layout.LAYER_MANIFEST not in paths and not any(path.startswith(f"{JOURNAL}/") for path in paths):
        raise NotFoundError(f"{store.url} holds no layer, and nothing of an unfinished one")
    if layout.MANIFEST in paths:
        raise NotFoundError(f"{store.url} is a root; a layer is never inside of one")
    ours = (
        layout.LAYER_MANIFEST,
        layout.ROWS,
        layout.INDEX,
        layout.OBJECTS,
        layout.LAYER_COLLECTION,
        f"{layout.SHARDS}/",
        f"{JOURNAL}/",
    )
    mine = sorted(
        (path for path in paths if path.startswith(ours)), key=lambda path: path != layout.LAYER_MANIFEST
    )
    for path in mine:
        store.delete(path)
    return len(mine)
