"""One patch for the page: what is known of it, the legend of its map, and its pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray

from reben_cloud.about import About
from reben_cloud.bigearthnet.about import about
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.metadata import rfc3339
from reben_cloud.schema import ArraySpec, Modality, Schema
from reben_cloud.search import known_ids
from reben_cloud.serve.layers import describe_layers, embeddings_of, shown_columns
from reben_cloud.serve.payloads import Payloads
from reben_cloud.views.picture import color_map, shade


def describe(dataset: Dataset, payloads: Payloads, patch_id: str) -> dict[str, Any]:
    """What the page shows of a patch.

    Raises:
        HTTPException: 404 if there is no such patch.
    """
    number = row_of(dataset, patch_id)
    columns = [name for name in shown_columns(dataset) if name != layout.GEOMETRY]
    row = dataset.patch_table.take(np.array([number]), columns).to_pylist()[0]
    schema = dataset.manifest.schema
    facts = about(schema)
    return {
        "id": patch_id,
        "labels": row[layout.LABELS],
        "facts": _facts(row, schema, facts),
        "pictures": [{"name": name, "caption": caption} for name, caption in _pictures(schema, facts)],
        "legend": _legend(payloads, patch_id, schema, facts),
        "layers": describe_layers(dataset, number),
        "embeddings": embeddings_of(dataset, number),
    }


def thumbnail_of(dataset: Dataset) -> str | None:
    """Name of the picture that stands for a patch in lists; None where the dataset has no pictures."""
    schema = dataset.manifest.schema
    if not dataset.manifest.modalities:
        return None
    return next((name for name, _ in _pictures(schema, about(schema))), None)


def row_of(dataset: Dataset, patch_id: str) -> int:
    """Row of a patch in the table.

    Raises:
        HTTPException: 404 if there is no such patch.
    """
    found = dataset.search(ids=known_ids(dataset, patch_id))
    if not len(found):
        raise HTTPException(404, f"no such patch: {patch_id}")
    return int(found.rows[0])


def _facts(row: dict[str, Any], schema: Schema, facts: About) -> list[tuple[str, str]]:
    """Titles and values, in the order in which they are shown."""
    times = [("datetime", layout.DATETIME), ("s1_datetime", layout.S1_DATETIME)]
    flags = [n for n in schema.recommended_without if row[layout.column(n)]]
    return [
        ("split", row[layout.SPLIT]),
        *([("country", row[layout.COUNTRY])] if layout.COUNTRY in row else []),
        *((facts.title_of(name), rfc3339(row[column])) for name, column in times if row.get(column)),
        *((facts.title_of(name), row[layout.column(name)]) for name in facts.name_columns),
        ("flags", ", ".join(facts.title_of(name).lower() for name in flags) or "none"),
        ("CRS", row["proj:code"]),
        ("bounds", ", ".join(f"{side:.12g}" for side in row["proj:bbox"])),
    ]


def _map_in(schema: Schema) -> tuple[Modality, ArraySpec] | None:
    """The map, if the dataset has one."""
    arrays = ((modality, array) for modality in schema.modalities for array in modality.arrays)
    return next((pair for pair in arrays if pair[1].name == schema.map_array), None)


def _map_picture(array: ArraySpec) -> str:
    """Name of the picture of a map."""
    return array.zarr_name.replace("_", "-")


def _pictures(schema: Schema, facts: About) -> list[tuple[str, str]]:
    """Name and caption of each picture that the dataset has of a patch, the map second."""
    found = [(r.name, r.caption) for r in facts.renders if r.array_in(schema) is not None]
    if (there := _map_in(schema)) is not None:
        name = _map_picture(there[1])
        found.insert(facts.thumbnail is not None and bool(found), (name, name.replace("-", " ")))
    return found


def _legend(payloads: Payloads, patch_id: str, schema: Schema, facts: About) -> list[dict[str, Any]]:
    """The values in the patch's map, the most frequent first."""
    there = _map_in(schema)
    if there is None:
        return []
    values, counts = np.unique(_pixels(payloads, patch_id, *there), return_counts=True)
    known = {entry.value: entry for entry in facts.map_classes}
    pairs = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    return [
        {
            "code": value,
            "name": known[value].title if value in known else "unknown",
            "color": known[value].color if value in known else "#000000",
            "label": known[value].label if value in known else None,
            "share": round(count / counts.sum(), 4),
        }
        for value, count in pairs
    ]


def picture_of(dataset: Dataset, payloads: Payloads, patch_id: str, picture: str) -> NDArray[np.uint8]:
    """One of the pictures that `describe` names, (y, x, 3) red, green, blue.

    Raises:
        HTTPException: 404 if there is no such patch or picture.
    """
    schema = dataset.manifest.schema
    facts = about(schema)
    row_of(dataset, patch_id)
    there = _map_in(schema)
    if there is not None and picture == _map_picture(there[1]):
        return color_map(_pixels(payloads, patch_id, *there), facts.map_classes)
    for render in facts.renders:
        found = render.array_in(schema)
        if render.name == picture and found is not None:
            return shade(payloads.tensors(patch_id, found[0].name), render)
    raise HTTPException(404, f"no such picture: {picture}")


def _pixels(payloads: Payloads, patch_id: str, modality: Modality, array: ArraySpec) -> NDArray[np.int64]:
    """Those of a map, (y, x)."""
    return payloads.tensors(patch_id, modality.name)[array.tensors[0]].astype(np.int64)
