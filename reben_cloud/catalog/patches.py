"""Rows of ``patches.parquet`` as STAC Items, plain dictionaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pystac
from numpy.typing import NDArray

from reben_cloud.catalog.layers import PlacedLayer, layer_assets
from reben_cloud.catalog.terms import extension
from reben_cloud.root import layout
from reben_cloud.root.metadata import plain_value
from reben_cloud.root.selection import Selection

SQUARE = np.dtype([("head", "V13"), ("ring", "<f8", (5, 2))])
"""WKB of a patch's footprint, as `metadata` writes it: one ring of five points."""


def patch_items(
    table: pa.Table,
    url: str | None = None,
    s3_location: Mapping[str, str] | None = None,
    layers: Sequence[PlacedLayer] = (),
) -> Iterator[dict[str, Any]]:
    """Rows of ``patches.parquet`` as STAC Items, plain dictionaries.

    Args:
        table: All columns of the rows; without ``links`` the Items have none.
        url: Where the table lies; links and assets are then absolute.
        s3_location: `Store.s3_location`, when `url` is in a bucket; assets then say how to reach it.
        layers: Layers whose shards are assets of the patches that they have.

    Yields:
        An Item a row, in order. 64-bit checksums become 16 hex digits, which JSON can hold.
    """
    rings = wkb_rings(table.column(layout.GEOMETRY))
    fixed = {layout.ID, layout.GEOMETRY, layout.BBOX, layout.LINKS, layout.ASSETS}
    fixed |= {"stac_version", "stac_extensions", "collection"}
    properties = table.drop_columns([name for name in table.column_names if name in fixed])
    names = {name: _property(name, properties.column_names) for name in properties.column_names}
    parts = table.select([name for name in table.column_names if name in fixed - {layout.GEOMETRY}])
    for part, values, ring in zip(parts.to_pylist(), properties.to_pylist(), rings.tolist(), strict=True):
        assets = part.get("assets") or {}
        item = {
            "type": "Feature",
            "stac_version": part["stac_version"],
            "stac_extensions": part["stac_extensions"],
            "id": part["id"],
            "collection": part["collection"],
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "bbox": [part["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax")],
            "properties": {names[name]: _plain(name, v) for name, v in values.items() if _is_said(v)},
            "links": [_absolute(link, url) for link in part.get(layout.LINKS) or ()],
            "assets": {name: _absolute(asset, url) for name, asset in assets.items()},
        }
        item["assets"] |= layer_assets(layers, item["properties"])
        add_storage(item, item["properties"], s3_location, layers)
        yield item


def _is_said(value: Any) -> bool:
    """Whether JSON has a value: none for null, and for numbers that are none."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def pystac_items(selection: Selection) -> Iterator[pystac.Item]:
    """A pystac Item of each patch of a selection, in order; links and assets absolute."""
    dataset = selection.dataset
    layers = PlacedLayer.of(dataset.layers)
    for item in patch_items(selection.to_arrow(), dataset.url, dataset.store.s3_location, layers):
        yield pystac.Item.from_dict(item, preserve_dict=False)


def add_storage(
    document: dict[str, Any],
    fields: dict[str, Any],
    s3_location: Mapping[str, str] | None,
    layers: Sequence[PlacedLayer] = (),
) -> None:
    """Say in a document with absolute ``s3://`` assets which server has them (storage extension).

    The documents of a root do not: their assets are relative, and a root has the same bytes wherever it lies.

    Args:
        document: An Item or a Collection; changed.
        fields: Where its fields stand: an Item's properties, or the Collection itself.
        s3_location: `Store.s3_location` of the root; None where it is in no bucket.
        layers: Layers, each of which may lie in another bucket, under another address; an asset of one has its name.
    """
    places = {"root": s3_location, **{one.layer.name: one.layer.store.s3_location for one in layers}}
    in_buckets = {name: place for name, place in places.items() if place is not None}
    used: dict[str, Any] = {}
    for name, asset in document["assets"].items():
        scheme = name if name in places else "root"
        if scheme in in_buckets:
            used[scheme] = _scheme(in_buckets[scheme])
            asset["storage:refs"] = [scheme]
    if used:
        fields["storage:schemes"] = used
        document["stac_extensions"] = [*document["stac_extensions"], extension("storage")]


def _scheme(s3_location: Mapping[str, str]) -> dict[str, Any]:
    custom = "endpoint" in s3_location
    return {
        "type": "custom-s3" if custom else "aws-s3",
        "platform": s3_location.get("endpoint", "https://{bucket}.s3.{region}.amazonaws.com"),
        "bucket": s3_location["bucket"],
        "region": s3_location["region"],
    }


def wkb_rings(geometry: Any) -> NDArray[np.float64]:
    """Corners of a geometry column of ``patches.parquet``, (n, 5, 2) longitude and latitude."""
    data = b"".join(geometry.to_pylist())
    return np.ascontiguousarray(np.frombuffer(data, SQUARE)["ring"])


def _property(column: str, columns: Sequence[str]) -> str:
    """Property of a column; the checksum of a layer's payload is the layer's own, not the dataset's."""
    for modality in layout.modalities_with_checksums([column]):
        if layout.present_column(modality) in columns:
            return layout.joined_column(modality, "xxh3")
    return column


def _plain(name: str, value: Any) -> Any:
    return f"{value:016x}" if layout.is_checksum_column(name) else plain_value(value)


def _absolute(link: Mapping[str, object], url: str | None) -> dict[str, Any]:
    if url is None:
        return dict(link)
    return {**link, "href": f"{url}/{str(link['href']).removeprefix('./')}"}
