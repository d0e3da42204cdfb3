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
same bytes. Nothing here writes a store, and only what is made of an opened
dataset reads one.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pystac

from reben_cloud.bigearthnet.about import about
from reben_cloud.catalog.collections import dataset_collection, shard_collection
from reben_cloud.catalog.croissant import croissant_card
from reben_cloud.catalog.layers import PlacedLayer as PlacedLayer
from reben_cloud.catalog.layers import card_with_layers, with_layers
from reben_cloud.catalog.layers import layer_collection as layer_collection
from reben_cloud.catalog.patches import add_storage as add_storage
from reben_cloud.catalog.patches import patch_items as patch_items
from reben_cloud.catalog.patches import pystac_items as pystac_items
from reben_cloud.catalog.products import Summary, product_item
from reben_cloud.catalog.terms import Written
from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.root import layout
from reben_cloud.root.backing import References, RootObjects
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.documents import get_checked
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


def dataset_document(dataset: Dataset, *, url: str, layers: Sequence[PlacedLayer]) -> dict[str, Any]:
    """The Collection of an opened dataset, with its layers; addresses of assets absolute.

    Args:
        dataset: A root; or an LMDB, whose Collection is made of its table, without the assets that only a root has.
        url: What stands before the paths of its objects.
        layers: The layers, where they are said to lie.

    Raises:
        NotFoundError: If a root has lost it.
        ChecksumError: If it is damaged.
    """
    path = layout.collection(about(dataset.schema).collection)
    document = _read(dataset, path) if _has_documents(dataset) else _collection_of_table(dataset)
    for asset in document.get("assets", {}).values():
        asset["href"] = f"{url}/{posixpath.normpath(posixpath.join(posixpath.dirname(path), asset['href']))}"
    with_layers(document, layers)
    add_storage(document, document, dataset.store.s3_location, layers)
    return document


def dataset_card(dataset: Dataset) -> dict[str, Any]:
    """The Croissant card of a root, with its layers; addresses absolute.

    Raises:
        NotFoundError: If it has none, as an LMDB, or has lost it.
        ChecksumError: If it is damaged.
    """
    path = layout.croissant(about(dataset.schema).collection)
    card = _read(dataset, path)
    for file in card["distribution"]:
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), file["contentUrl"]))
        file["contentUrl"] = f"{dataset.url}/{there}"
    return card_with_layers(card, PlacedLayer.of(dataset.layers))


def _read(dataset: Dataset, path: str) -> dict[str, Any]:
    if not _has_documents(dataset):
        raise NotFoundError(f"{dataset.url} is not a root, and has no {path}")
    document: dict[str, Any] = get_checked(dataset.store, path, lambda data: _parsed(dataset, path, data))
    return document


def _has_documents(dataset: Dataset) -> bool:
    """Whether documents were published with a dataset: with a root they are, also with one of references."""
    backing = dataset.backing
    return isinstance(backing, RootObjects) or (isinstance(backing, References) and backing.finder is None)


def _collection_of_table(dataset: Dataset) -> dict[str, Any]:
    """The Collection of a dataset that has its table alone, without assets: the table is of no file of a root."""
    of_layers = {field.name for joined in dataset.patch_table.joined.values() for field in joined.fields}
    table = dataset.selection.columns([name for name in dataset.patch_table.names if name not in of_layers])
    schema = dataset.manifest.schema
    collection = dataset_collection(table, Summary(table), schema, about(schema), {})
    collection.assets.clear()
    del collection.extra_fields["item_assets"]
    document: dict[str, Any] = collection.to_dict(include_self_link=False)
    return document


def _parsed(dataset: Dataset, path: str, data: memoryview) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(bytes(data))
    except ValueError as error:
        raise ChecksumError(f"{dataset.url}/{path} is damaged: {error}") from error
    return document


def _path(stac: Any) -> str:
    return str(stac.get_self_href()).lstrip("/")


def _json(stac: Any) -> bytes:
    return _dump(stac.to_dict(include_self_link=False))


def _dump(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()
