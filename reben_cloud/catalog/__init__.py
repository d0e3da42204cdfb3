"""STAC documents: the static catalog of a root or of the metadata alone, and Items of patches.

    catalog.json
    <collection>/collection.json               the dataset; its tables as assets
    <collection>/croissant.json                the same as a GeoCroissant card
    <collection>/<product>/<product>.json      an Item per product; its Zarr group is an asset
    <collection>/<product>/thumbnail.png       where a picture can be made
    <collection>-shards/collection.json        roots only
    <collection>-shards/<x>/<x>.json           an Item per shard group and modality; shards are assets

Patches are Items too, but of ``patches.parquet`` (`root.patches`): as files those of BigEarthNet would be
0.7 GB that nobody crawls. Everything is made from numbers in hand, and the same numbers give the
same bytes. Nothing here reads or writes a store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pystac

from reben_cloud.bigearthnet.about import about
from reben_cloud.catalog.collections import dataset_collection, shard_collection
from reben_cloud.catalog.croissant import croissant_card
from reben_cloud.catalog.patches import add_storage as add_storage
from reben_cloud.catalog.patches import patch_items as patch_items
from reben_cloud.catalog.patches import pystac_items as pystac_items
from reben_cloud.catalog.products import Summary, product_item
from reben_cloud.catalog.terms import Written
from reben_cloud.root import layout
from reben_cloud.schema import Schema


def root_documents(
    table: pa.Table, groups: Mapping[str, int], written: Sequence[Written], *, schema: Schema
) -> dict[str, bytes]:
    """Every catalog document of a root, or of the metadata alone.

    Args:
        table: `metadata.patches_table`.
        groups: Samples in each group of shards; none when only the tables exist.
        written: The objects that the documents describe, with checksums: tables and shards.
        schema: Of the dataset; of what the metadata are of where only the tables exist.

    Returns:
        Path -> bytes, the same for the same arguments.
    """
    objects = {o.path: o for o in written}
    facts = about(schema)
    has_pixels = bool(groups)
    catalog = pystac.Catalog(
        facts.id,
        f"{facts.title} as a cloud-native dataset",
        title=facts.title,
        catalog_type=pystac.CatalogType.SELF_CONTAINED,
    )
    summary = Summary(table)
    collection = dataset_collection(table, summary, schema, facts, objects)
    for product in summary.products:
        collection.add_item(
            product_item(table, product, summary, schema, facts, objects, has_pixels=has_pixels)
        )
    catalog.add_child(collection)
    if has_pixels:
        catalog.add_child(shard_collection(summary, groups, schema, facts, objects))
    catalog.normalize_hrefs("/")
    documents: dict[str, bytes] = {}
    for parent, _, items in catalog.walk():
        documents[_path(parent)] = _json(parent)
        documents.update((_path(item), _json(item)) for item in items)
    card = croissant_card(summary, schema, facts, objects.get(layout.PATCHES))
    documents[layout.croissant(facts.collection)] = _dump(card)
    return documents


def _path(stac: Any) -> str:
    return str(stac.get_self_href()).lstrip("/")


def _json(stac: Any) -> bytes:
    return _dump(stac.to_dict(include_self_link=False))


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
