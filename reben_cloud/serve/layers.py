"""Layers for the API and the page: which there are, what they have for a patch, and their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.layers.read import read_payload
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.joined import JoinedLayer
from reben_cloud.root.layer_manifest import PATCH_ID
from reben_cloud.root.layers import COUNT, FIRST, Layer
from reben_cloud.root.metadata import plain_value
from reben_cloud.schema import TensorSpec
from reben_cloud.search.vectors import vector_columns
from reben_cloud.views.picture import grey, relief

MAX_TEXTS = 20
"""Rows of a layer with several a patch that the page shows."""


_NUMBERS = frozenset(
    (
        "uint8",
        "int8",
        "uint16",
        "int16",
        "uint32",
        "int32",
        "uint64",
        "int64",
        "float16",
        "float32",
        "float64",
    )
)
"""Dtypes that NumPy counts with."""


def shown_columns(dataset: Dataset) -> list[str]:
    """Columns of the table that Items have and filters name: those of layers without vectors and checksums."""
    fields = [field for joined in dataset.patch_table.joined.values() for field in joined.fields]
    hidden = {field.name for field in fields if pa.types.is_nested(field.type)}
    hidden |= {layout.checksum_column(name) for name in dataset.layers}
    hidden.add(layout.LINKS)  # a server has its own, and those of all patches are 50 MB
    return [name for name in dataset.patch_table.names if name not in hidden]


def list_layers(dataset: Dataset, urls: Mapping[str, str]) -> list[dict[str, Any]]:
    """Name, title, kind, place and number of patches of each layer.

    Args:
        dataset: The dataset.
        urls: Where clients read each layer.
    """
    shown = set(shown_columns(dataset))
    found = []
    for layer in dataset.layers.values():
        fields = [field.name for field in dataset.patch_table.joined[layer.name].fields]
        found.append(
            {
                "name": layer.name,
                "title": layer.manifest.title,
                "kind": layer.manifest.kind,
                "url": urls[layer.name],
                "num_patches": layer.manifest.coverage,
                "present": layout.present_column(layer.name),
                "fields": [name for name in fields if name in shown],
            }
        )
    return found


def describe_layers(dataset: Dataset, row: int) -> list[dict[str, Any]]:
    """What each layer has for a patch, those left out that have nothing.

    Args:
        dataset: The dataset.
        row: Row of the patch in the table.

    Returns:
        For each: ``name``, ``title``; ``pictures``, (name, caption) of each; ``values``, (column, value) of each;
        ``texts``, the first rows; ``num_texts``, their number in all.
    """
    found = []
    for layer in dataset.layers.values():
        joined = dataset.patch_table.joined[layer.name]
        shown: dict[str, Any] = {"pictures": [], "values": [], "texts": [], "num_texts": 0}
        match layer.manifest.kind:
            case "array":
                shown["pictures"] = _pictures(joined, row)
            case "one":
                shown["values"] = _values(joined, row)
            case "many":
                shown["num_texts"], shown["texts"] = _texts(joined, row)
        if any(shown.values()):
            found.append({"name": layer.name, "title": layer.manifest.title or layer.name, **shown})
    return found


def embeddings_of(dataset: Dataset, row: int) -> list[str]:
    """Columns of vectors of the layers that have the patch."""
    columns = vector_columns(dataset.selection).values()
    return [one.name for one in columns if one.has(row)]


def layer_picture(dataset: Dataset, row: int, layer: str, tensor: str) -> NDArray[np.uint8] | None:
    """One of the pictures that `describe_layers` names, (y, x, 3) red, green, blue; None if there is no such."""
    joined = dataset.patch_table.joined.get(layer)
    spec = None if joined is None else {one.name: one for one in _images(joined.layer)}.get(tensor)
    if joined is None or spec is None or (tensors := _tensors(joined, row)) is None:
        return None
    if spec.units in (None, "m") and spec.dtype != "uint8" and spec.pixel_m is not None:
        return relief(tensors[tensor], pixel_m=spec.pixel_m, nodata=spec.fill)
    return grey(tensors[tensor], nodata=spec.fill)


def _images(layer: Layer) -> list[TensorSpec]:
    """The tensors of an array layer that are images of one band of numbers."""
    tensors = () if layer.modality is None else layer.modality.tensors
    return [
        one
        for one in tensors
        if one.pixel_m is not None and len(one.shape) == 2 and min(one.shape) > 1 and one.dtype in _NUMBERS
    ]


def _tensors(joined: JoinedLayer, row: int) -> dict[str, NDArray[Any]] | None:
    number = int(joined.places(np.array([row]))[0])
    modality = joined.layer.modality
    if number < 0 or modality is None or (payload := read_payload(joined.layer, number)) is None:
        return None
    return modality.decode(payload)


def _pictures(joined: JoinedLayer, row: int) -> list[tuple[str, str]]:
    images = _images(joined.layer)
    if not images or (tensors := _tensors(joined, row)) is None:
        return []
    name, found = joined.layer.name, []
    for spec in images:
        values = tensors[spec.name]
        known = values[(values != spec.fill) & ~np.isnan(values)]
        title = name if len(images) == 1 else f"{name} {spec.name}"
        span = f", {known.min():.6g} to {known.max():.6g} {spec.units or ''}" if known.size else ", no data"
        found.append((spec.name, f"{title}{span}".rstrip()))
    return found


def _values(joined: JoinedLayer, row: int) -> list[tuple[str, Any]]:
    """Columns and values of a patch, a vector as its length; what is null is left out."""
    fields = [field for field in joined.layer.rows.schema if field.name != PATCH_ID]
    plain = [field.name for field in fields if not pa.types.is_nested(field.type)]
    number = joined.places(np.array([row]))
    if number[0] < 0:
        return []
    values = joined.layer.rows.take(number, plain).to_pylist()[0] if plain else {}
    sizes = {f.name: f"{f.type.list_size:,} numbers" for f in fields if pa.types.is_fixed_size_list(f.type)}
    shown = {name: plain_value(value) for name, value in values.items()} | sizes
    return [(field.name, shown[field.name]) for field in fields if shown.get(field.name) is not None]


def _texts(joined: JoinedLayer, row: int) -> tuple[int, list[str]]:
    """How many rows a patch has, and the first of them, each in a line."""
    span = joined.take(np.array([row]), [FIRST, COUNT])
    if span.column(FIRST).null_count:
        return 0, []
    first, count = (span.column(name)[0].as_py() for name in (FIRST, COUNT))
    names = [name for name in joined.layer.rows.names if name != PATCH_ID]
    table = joined.layer.rows.take_once(np.arange(first, first + min(count, MAX_TEXTS)), names)
    return count, [
        " · ".join(str(plain_value(value)) for value in one.values() if value is not None)
        for one in table.to_pylist()
    ]
