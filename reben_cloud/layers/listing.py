"""The end of a layer's making: its STAC Collection, the list of its objects, and ``layer.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from reben_cloud.bigearthnet.about import about
from reben_cloud.catalog import layer_collection
from reben_cloud.layers import publish
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layer_manifest import LayerManifest
from reben_cloud.root.layers import Layer
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.objects import Objects, WrittenObject
from reben_cloud.store import Store


class Saying(Protocol):
    """What a layer says of itself, once the sha256 of the list of its objects is known."""

    def __call__(self, *, objects_sha256: str) -> LayerManifest:
        """The whole of it."""


def publish_listed(
    store: Store, ds: Dataset, said: Saying, *, rows: pa.Schema, written: Sequence[WrittenObject]
) -> Layer:
    """Put ``collection.json``, ``objects.parquet`` and, once all objects are there, ``layer.json``.

    Args:
        store: Where the layer is.
        ds: What it is for.
        said: What it says of itself.
        rows: Columns of its ``rows.parquet``.
        written: All that was put already.

    Raises:
        ConflictError, StorageError: As `publish.commit_layer`.
    """
    # The list of objects has the Collection, so that is made before the list has its checksum.
    document = _collection(ds, said(objects_sha256="0" * 64), rows, written)
    store.put(layout.LAYER_COLLECTION, document)
    written = [*written, WrittenObject.of(layout.LAYER_COLLECTION, document)]
    objects = Objects.of(written).encode()
    store.put(layout.OBJECTS, objects)
    manifest = said(objects_sha256=hashlib.sha256(objects).hexdigest())
    return publish.commit_layer(store, manifest, {one.path: one.nbytes for one in written})


def _collection(ds: Dataset, said: LayerManifest, rows: pa.Schema, written: Sequence[WrittenObject]) -> bytes:
    """The STAC Collection of the layer."""
    table = ds.selection.columns([layout.BBOX, layout.DATETIME])
    box = table.column(layout.BBOX).combine_chunks()
    sides = {"xmin": pc.min, "ymin": pc.min, "xmax": pc.max, "ymax": pc.max}
    times = pc.min_max(table.column(layout.DATETIME)).as_py()
    document = layer_collection(
        said,
        rows,
        written,
        collection_id=about(ds.schema).collection,
        bbox=[reduce(box.field(side)).as_py() for side, reduce in sides.items()],
        interval=[rfc3339(times["min"]), rfc3339(times["max"])],
    )
    return json.dumps(document, indent=1, ensure_ascii=False).encode()
