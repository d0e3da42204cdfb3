"""A selection as text or bytes: ids, a table for people, GeoJSON, STAC, GeoParquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reben_cloud.catalog import PlacedLayer, patch_items
from reben_cloud.root import layout
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.patches_file import write_patches
from reben_cloud.root.selection import Selection

Form = Literal["table", "ids", "json", "geojson", "stac", "parquet"]
"""How `render` writes a selection."""

_AT_ONCE = 2_000


def render(
    selection: Selection, form: Form, *, scores: NDArray[np.float32] | None = None, max_rows: int = 20
) -> Iterator[bytes]:
    """The bytes of a selection in a form, piece by piece.

    Args:
        selection: What was found.
        form: ``table`` (for people, the first `max_rows`), ``ids`` (one per line), ``json`` (official
            columns and times), ``geojson`` (footprints with their properties), ``stac`` (an
            ItemCollection) or ``parquet`` (stac-geoparquet).
        scores: How near each patch is to what was asked for; in ``table`` and ``json`` where given.
        max_rows: Rows of the table.
    """
    if form == "table":
        yield _table(selection, scores, max_rows).encode()
    elif form == "ids":
        yield "".join(f"{patch_id}\n" for patch_id in selection.patch_ids).encode()
    elif form == "json":
        frame = selection.to_pandas()
        if scores is not None:
            frame.insert(1, "score", scores)
        yield frame.to_json(orient="records", date_format="iso", date_unit="s", indent=2).encode() + b"\n"
    elif form == "parquet":
        yield write_patches(selection.to_arrow(), selection.dataset.schema)
    else:
        dataset = selection.dataset
        yield b'{"type":"FeatureCollection","features":['
        for start in range(0, len(selection), _AT_ONCE):
            part = Selection(selection.dataset, selection.table, selection.rows[start : start + _AT_ONCE])
            features = patch_items(
                part.to_arrow(), dataset.url, dataset.store.s3_location, PlacedLayer.of(dataset.layers)
            )
            for number, item in enumerate(features, start):
                if form == "geojson":
                    item = {name: item[name] for name in ("type", "id", "geometry", "bbox", "properties")}
                yield (b"," if number else b"") + b"\n" + json.dumps(item, ensure_ascii=False).encode()
        yield b"\n]}\n"


def _table(selection: Selection, scores: NDArray[np.float32] | None, max_rows: int) -> str:
    part = Selection(selection.dataset, selection.table, selection.rows[:max_rows])
    countries = [layout.COUNTRY] * (layout.COUNTRY in part.table.names)
    rows = part.columns([layout.ID, layout.DATETIME, layout.SPLIT, *countries, layout.LABELS]).to_pylist()
    lines = [
        "  ".join(
            [
                row[layout.ID],
                *([] if scores is None else [f"{scores[number]:.4f}"]),
                rfc3339(row[layout.DATETIME]),
                f"{row[layout.SPLIT]:10}",
                *(f"{row[name]:11}" for name in countries),
                "; ".join(row[layout.LABELS]),
            ]
        )
        for number, row in enumerate(rows)
    ]
    if len(selection) > len(rows):
        lines.append(f"... and {len(selection) - len(rows):,} more (--format ids lists all)")
    return "\n".join([*lines, f"{len(selection):,} of {len(selection.dataset):,} patches", ""])
