"""Layers in STAC documents and in the Croissant card: beside a dataset's own, and the Collection of a layer by itself.

A layer lies outside of its root, whose documents stay as they are: these are made of an opened dataset.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from reben_cloud.catalog.groups import STAC_DTYPES
from reben_cloud.catalog.terms import PARQUET_TYPE, TAR_TYPE, Written, extension, file_fields
from reben_cloud.root import layout
from reben_cloud.root.layer_manifest import Kind, LayerManifest
from reben_cloud.root.layers import Layer
from reben_cloud.schema import TensorSpec


class PlacedLayer(NamedTuple):
    """A layer, and where its assets are said to lie."""

    layer: Layer
    """The layer."""
    url: str
    """What stands before the paths of its objects."""

    @classmethod
    def of(cls, layers: Mapping[str, Layer]) -> list[PlacedLayer]:
        """Layers where they are."""
        return [cls(layer, layer.url) for layer in layers.values()]

    @property
    def title(self) -> str:
        """What it is, for people."""
        return self.layer.manifest.title or self.layer.name


def layer_assets(placed: Sequence[PlacedLayer], properties: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> asset of a patch's Item: the shard of each array layer that has the patch.

    Args:
        placed: The layers.
        properties: Of the Item.
    """
    found = {}
    for one in placed:
        name = one.layer.name
        if one.layer.modality is None or not properties.get(layout.present_column(name)):
            continue
        path = layout.shard(properties[layout.SHARD_GROUP], name, properties[layout.SHARD])
        found[name] = {"href": f"{one.url}/{path}", **_shard_asset(one.title)}
    return found


def _shard_asset(title: str) -> dict[str, Any]:
    return {
        "type": TAR_TYPE,
        "title": f"{title}: shard of safetensors records; the patch is row reben:shard_row",
        "roles": ["data"],
    }


def with_layers(document: dict[str, Any], placed: Sequence[PlacedLayer]) -> None:
    """Say in the Collection of a dataset which layers stand beside it: what Items have of them, and their tables.

    Args:
        document: The Collection; changed.
        placed: The layers.
    """
    if not placed:
        return
    assets, items = document.setdefault("assets", {}), document.setdefault("item_assets", {})
    for one in placed:
        said, name = one.layer.manifest, one.layer.name
        assets[name] = {
            "href": f"{one.url}/{layout.ROWS}",
            "title": f"{one.title}: {said.coverage:,} of {said.num_patches:,} patches",
            **table_fields(one.layer.rows.schema, said.num_rows),
        }
        if (bands := layer_bands(said)) is not None:
            items[name] = {**_shard_asset(one.title), "bands": bands}
    _declare(document, "table")


def _declare(document: dict[str, Any], name: str) -> None:
    declared = document.setdefault("stac_extensions", [])
    if extension(name) not in declared:
        declared.append(extension(name))


def table_fields(schema: pa.Schema, num_rows: int) -> dict[str, Any]:
    """Fields of the asset of a layer's table."""
    columns = [{"name": field.name, "type": str(_plain(field.type))} for field in schema]
    return {
        "type": PARQUET_TYPE,
        "roles": ["metadata"],
        "table:row_count": num_rows,
        "table:columns": columns,
    }


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def layer_bands(said: LayerManifest) -> list[dict[str, Any]] | None:
    """STAC bands of an array layer, one a tensor; None for a table."""
    if said.schema is None:
        return None
    return [_band(tensor, said.statistics.get(tensor.name)) for tensor in said.schema.modalities[0].tensors]


def _band(tensor: TensorSpec, statistics: Mapping[str, float] | None) -> dict[str, Any]:
    band: dict[str, Any] = {
        "name": tensor.name,
        "data_type": tensor.dtype if tensor.dtype in STAC_DTYPES else "other",
        "nodata": tensor.fill if math.isfinite(tensor.fill) else str(tensor.fill),
    }
    if tensor.pixel_m is not None:
        band["gsd"] = tensor.pixel_m
    if tensor.units:
        band["unit"] = tensor.units
    if statistics:
        names = {"min": "minimum", "max": "maximum", "mean": "mean", "std": "stddev", "count": "count"}
        band["statistics"] = {names[key]: value for key, value in statistics.items() if key in names}
    return band


_ROWS: Mapping[Kind, str] = {
    "array": "Every patch: whether it is there, where, checksum",
    "one": "A row per patch that it has something for",
    "many": "Rows about patches, those of a patch together",
}


def layer_collection(
    said: LayerManifest,
    rows: pa.Schema,
    objects: Sequence[Written],
    *,
    collection_id: str,
    bbox: Sequence[float],
    interval: Sequence[str],
) -> dict[str, Any]:
    """The STAC Collection of a layer by itself, which lies in its folder.

    Args:
        said: What the layer says of itself.
        rows: Columns of its ``rows.parquet``.
        objects: Its objects: tables and shards.
        collection_id: Id of the dataset's Collection.
        bbox: West, south, east and north of the dataset's patches, degrees.
        interval: First and last acquisition of the dataset's patches, as STAC writes times.
    """
    title = said.title or said.name
    assets: dict[str, Any] = {
        "layer": {
            "href": f"./{layout.LAYER_MANIFEST}",
            "title": "What the layer says of itself",
            "type": "application/json",
            "roles": ["metadata"],
        }
    }
    for one in objects:
        if one.path == layout.ROWS:
            kind = {"title": _ROWS[said.kind], **table_fields(rows, said.num_rows)}
        elif one.path == layout.INDEX:
            kind = {"title": "Which rows are whose", "type": PARQUET_TYPE, "roles": ["metadata"]}
        else:
            kind = {"type": TAR_TYPE, "roles": ["data"]}
        name = posixpath.basename(one.path).partition(".")[0]
        assets[name] = {"href": f"./{one.path}", **kind, **file_fields(one)}
    if said.objects_sha256 is not None:
        assets["objects"] = {
            "href": f"./{layout.OBJECTS}",
            "title": "All objects with their checksums",
            "type": PARQUET_TYPE,
            "roles": ["metadata"],
        }
    bands = layer_bands(said)
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [extension("file"), extension("table")],
        "id": f"{collection_id}-{said.name}",
        "title": title,
        "description": (
            f"{title} of {said.coverage:,} of the {said.num_patches:,} patches of the dataset {said.fingerprint}; "
            "reben_cloud reads it as a layer beside that dataset."
        ),
        "license": "other",
        "extent": {"spatial": {"bbox": [list(bbox)]}, "temporal": {"interval": [list(interval)]}},
        **({} if bands is None else {"bands": bands}),
        "links": [],
        "assets": assets,
    }


def card_with_layers(card: Mapping[str, Any], placed: Sequence[PlacedLayer]) -> dict[str, Any]:
    """A dataset's Croissant card with a file and a record set for each layer."""
    files, records = list(card["distribution"]), list(card["recordSet"])
    for one in placed:
        said, name = one.layer.manifest, one.layer.name
        file = {
            "@type": "cr:FileObject",
            "@id": f"{name}/{layout.ROWS}",
            "name": f"{name}/{layout.ROWS}",
            "description": f"{one.title}: {said.coverage:,} of {said.num_patches:,} patches.",
            "contentUrl": f"{one.url}/{layout.ROWS}",
            "encodingFormat": "application/x-parquet",
            "contentSize": f"{said.rows_parquet.nbytes} B",
        }
        if said.objects_sha256 is not None:
            file["sha256"] = one.layer.read_objects().find(layout.ROWS, url=one.layer.url).sha256
        files.append(file)
        records.append(
            {
                "@type": "cr:RecordSet",
                "@id": name,
                "name": name,
                "description": f"{one.title}: a record per row of the table.",
                "field": [_field(name, field) for field in one.layer.rows.schema if _type_of(field.type)],
            }
        )
    return {**card, "distribution": files, "recordSet": records}


def _field(name: str, field: pa.Field) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{name}/{field.name}",
        "name": f"{name}/{field.name}",
        "description": f"Column {field.name}.",
        "dataType": _type_of(field.type),
        "source": {"fileObject": {"@id": f"{name}/{layout.ROWS}"}, "extract": {"column": field.name}},
    }


def _type_of(kind: Any) -> str | None:
    """Type of a column in a card; None for what a card has no word for."""
    kind, types = _plain(kind), pa.types
    for name, is_one in (
        ("sc:Boolean", types.is_boolean),
        ("sc:Integer", types.is_integer),
        ("sc:Float", types.is_floating),
        ("sc:Text", types.is_string),
        ("sc:Text", types.is_large_string),
        ("sc:DateTime", types.is_timestamp),
    ):
        if is_one(kind):
            return name
    return None
