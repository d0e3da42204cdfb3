"""One patch for the page: what is known of it, the legend of its map, and its pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from fastapi import HTTPException
from numpy.typing import NDArray

from reben_cloud.about import About
from reben_cloud.bigearthnet.about import about
from reben_cloud.errors import NotFoundError
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.metadata import rfc3339
from reben_cloud.schema import Schema
from reben_cloud.search import known_ids
from reben_cloud.serve.layers import describe_layers, embeddings_of, shown_columns
from reben_cloud.views.picture import color_map, shade, tensors_of


def describe(dataset: Dataset, patch_id: str) -> dict[str, Any]:
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
        "legend": _legend(dataset, patch_id, schema, facts),
        "layers": describe_layers(dataset, number),
        "embeddings": embeddings_of(dataset, number),
    }


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


def _map_name(schema: Schema) -> str | None:
    """Zarr name of the map."""
    arrays = (array for modality in schema.modalities for array in modality.arrays)
    return next((array.zarr_name for array in arrays if array.name == schema.map_array), None)


def _pictures(schema: Schema, facts: About) -> list[tuple[str, str]]:
    """Name and caption of each picture that the dataset has of a patch, the map second."""
    found = [(r.name, r.caption) for r in facts.renders if r.array_in(schema) is not None]
    if (name := _map_name(schema)) is not None:
        words = name.replace("_", " ")
        found.insert(facts.thumbnail is not None and bool(found), (words.replace(" ", "-"), words))
    return found


def _legend(dataset: Dataset, patch_id: str, schema: Schema, facts: About) -> list[dict[str, Any]]:
    """The values in the patch's map, the most frequent first."""
    name = _map_name(schema)
    if name is None:
        return []
    values, counts = np.unique(_open(dataset, patch_id)[name].values, return_counts=True)
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


def picture_of(dataset: Dataset, patch_id: str, picture: str) -> NDArray[np.uint8]:
    """One of the pictures that `describe` names, (y, x, 3) red, green, blue.

    Raises:
        HTTPException: 404 if there is no such patch or picture.
    """
    schema = dataset.manifest.schema
    facts = about(schema)
    patch = _open(dataset, patch_id)
    name = _map_name(schema)
    if name is not None and picture == name.replace("_", "-"):
        return color_map(patch[name].values, facts.map_classes)
    for render in facts.renders:
        found = render.array_in(schema)
        if render.name == picture and found is not None:
            _, array = found
            return shade(tensors_of(array, patch[array.zarr_name].values), render)
    raise HTTPException(404, f"no such picture: {picture}")


def _open(dataset: Dataset, patch_id: str) -> xr.Dataset:
    try:
        return dataset.without_layers().open_patch(patch_id)
    except (NotFoundError, FileNotFoundError) as error:
        raise HTTPException(404, str(error)) from error
