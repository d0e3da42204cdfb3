"""STAC documents: the static catalog of a root or of the metadata alone, and Items of patches.

    catalog.json
    bigearthnet-v2/collection.json               the dataset; its tables as assets
    bigearthnet-v2/croissant.json                the same as a GeoCroissant card
    bigearthnet-v2/<product>/<product>.json      an Item a product; its Zarr group is an asset
    bigearthnet-v2/<product>/thumbnail.png       roots with Sentinel-2 only: the product in true colour
    bigearthnet-v2-shards/collection.json        roots only
    bigearthnet-v2-shards/<x>/<x>.json           an Item a shard group and modality; shards are assets

The 549,488 patches are Items too, but of ``patches.parquet`` (`metadata`): as files they would be
0.7 GB that nobody crawls. Everything is made from numbers in hand, and the same numbers give the
same bytes. Nothing here reads or writes a store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pystac

from reben_cloud.catalog.collections import dataset_collection, shard_collection
from reben_cloud.catalog.croissant import croissant_card
from reben_cloud.catalog.patches import add_storage as add_storage
from reben_cloud.catalog.patches import patch_items as patch_items
from reben_cloud.catalog.patches import pystac_items as pystac_items
from reben_cloud.catalog.products import Summary, product_item
from reben_cloud.catalog.products import thumbnail_path as thumbnail_path
from reben_cloud.catalog.terms import TITLE, Written
from reben_cloud.root.patches import COLLECTION_ID


def root_documents(
    table: pa.Table, manifest: Mapping[str, Any] | None, written: Sequence[Written]
) -> dict[str, bytes]:
    """Every catalog document of a root, or of the metadata alone.

    Args:
        table: `metadata.patches_table`.
        manifest: Of the root; None when only the tables exist.
        written: The objects that the documents describe, with checksums: tables and shards.

    Returns:
        Path -> bytes, the same for the same arguments.
    """
    objects = {o.path: o for o in written}
    modalities = tuple(manifest["modalities"]) if manifest else ()
    catalog = pystac.Catalog(
        "reben",
        f"{TITLE} as a cloud-native dataset",
        title=TITLE,
        catalog_type=pystac.CatalogType.SELF_CONTAINED,
    )
    summary = Summary(table)
    collection = dataset_collection(table, summary, modalities, objects)
    for product in summary.products:
        collection.add_item(product_item(table, product, summary, modalities, objects))
    catalog.add_child(collection)
    shards = shard_collection(summary, manifest, objects) if manifest else None
    if shards is not None:
        catalog.add_child(shards)
    catalog.normalize_hrefs("/")
    documents: dict[str, bytes] = {}
    for parent, _, items in catalog.walk():
        documents[_path(parent)] = _json(parent)
        documents.update((_path(item), _json(item)) for item in items)
    card = croissant_card(summary.bbox, summary.interval, objects.get("patches.parquet"))
    documents[f"{COLLECTION_ID}/croissant.json"] = _dump(card)
    return documents


def _path(stac: Any) -> str:
    return str(stac.get_self_href()).lstrip("/")


def _json(stac: Any) -> bytes:
    return _dump(stac.to_dict(include_self_link=False))


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
