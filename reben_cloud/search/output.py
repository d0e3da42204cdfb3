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
from reben_cloud.wording import counted

Form = Literal["table", "ids", "json", "geojson", "stac", "parquet"]
"""How `render` writes a selection."""

_AT_ONCE = 2_000


def render(
    selection: Selection,
    form: Form,
    *,
    scores: NDArray[np.float32] | None = None,
    max_rows: int = 20,
    width: int | None = None,
) -> Iterator[bytes]:
    """The bytes of a selection in a form, piece by piece.

    Args:
        selection: What was found.
        form: ``table`` (for people, the first `max_rows`), ``ids`` (one per line), ``json`` (official
            columns and times), ``geojson`` (footprints with their properties), ``stac`` (an
            ItemCollection) or ``parquet`` (stac-geoparquet).
        scores: How near each patch is to what was asked for; in ``table`` and ``json`` where given.
        max_rows: Rows of the table.
        width: Columns that the table must fit, as of a terminal; by default it is as wide as it gets.
    """
    if form == "table":
        yield _table(selection, scores, max_rows, width).encode()
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


def _table(selection: Selection, scores: NDArray[np.float32] | None, max_rows: int, width: int | None) -> str:
    """One line per patch, or two where `width` is too little for its names and labels; labels are cut to fit."""
    part = Selection(selection.dataset, selection.table, selection.rows[:max_rows])
    countries = [layout.COUNTRY] * (layout.COUNTRY in part.table.names)
    rows = part.columns([layout.ID, layout.DATETIME, layout.SPLIT, *countries, layout.LABELS]).to_pylist()
    columns = [[row[layout.ID] for row in rows]]
    if scores is not None:
        columns.append([f"{score:.4f}" for score in scores[: len(rows)].tolist()])
    columns.append([rfc3339(row[layout.DATETIME]) for row in rows])
    columns += [[row[name] for row in rows] for name in (layout.SPLIT, *countries)]
    labels = ["; ".join(row[layout.LABELS]) for row in rows]
    room = None if width is None else width - sum(max(map(len, column), default=0) + 2 for column in columns)
    if width is None or room is None or room >= _LEAST_LABELS:
        lines = _aligned([*columns, labels], width)
    else:
        second = _aligned([[""] * len(rows), *columns[1:], labels], width)
        lines = [line for pair in zip(columns[0], second, strict=True) for line in pair]
    if len(selection) > len(rows):
        lines.append(f"... and {len(selection) - len(rows):,} more (--format ids lists all)")
    of = counted(len(selection.dataset), "patch", "patches")
    return "\n".join([*lines, f"{len(selection):,} of {of}", ""])


_LEAST_LABELS = 32


def _aligned(columns: list[list[str]], width: int | None) -> list[str]:
    """Rows of columns of equal width, each row cut to `width`."""
    widths = [max(map(len, column), default=0) for column in columns[:-1]]
    lines = [
        "  ".join([*(f"{cell:{wide}}" for cell, wide in zip(row, widths, strict=False)), row[-1]])
        for row in zip(*columns, strict=True)
    ]
    return [
        line if width is None or len(line) <= width else f"{line[: width - 1].rstrip()}…" for line in lines
    ]
