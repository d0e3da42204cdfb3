"""What the page at the server's root asks for: all footprints in one array, and pictures of patches."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray
from stac_fastapi.types.requests import get_base_url
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from reben_cloud.bigearthnet.about import about
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.metadata import rfc3339
from reben_cloud.root.placement import SPLITS
from reben_cloud.search.arguments import SEASONS
from reben_cloud.serve.found import add_found
from reben_cloud.serve.layers import layer_picture, list_layers
from reben_cloud.serve.links import layer_urls, open_url
from reben_cloud.serve.nearest import Nearest
from reben_cloud.serve.payloads import Payloads
from reben_cloud.serve.pictures import describe, picture_of, row_of, thumbnail_of
from reben_cloud.serve.ranges import send_file
from reben_cloud.serve.results import Results
from reben_cloud.serve.tiffs import images_of
from reben_cloud.views.land import land_json
from reben_cloud.views.picture import encode_png

NUM_ALIKE = 8
"""Patches that the page shows as alike."""

_FLAG_OPTIONS = {"contains_seasonal_snow": "snow", "contains_cloud_or_shadow": "cloud"}
"""Field of the metadata -> the argument of a search that asks for it."""

_MGRS = "grid:code"
"""Column that has the MGRS square of each patch, where metadata say it."""

_NO_COLOR = "#808080"
"""Of a class for which the schema states none."""

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
}
"""Of the page's files, by their endings."""


def add_explorer(
    app: FastAPI, dataset: Dataset, nearest: Nearest, payloads: Payloads, results: Results
) -> None:
    """Add the page, which browsers get at ``/``, and what it loads from ``/explore/``."""
    index = _index(dataset)
    # Level 1: the array is made once and sent whole; half the bytes for a third of a second.
    footprints = gzip.compress(_footprints(dataset, index), 1, mtime=0)
    folder = files("reben_cloud.serve").joinpath("page")
    pages = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    pages["land.json"] = land_json()
    add_found(app, dataset, results)

    @app.get("/explore/index.json", include_in_schema=False)
    def send_index(request: Request) -> dict[str, Any]:
        base = get_base_url(request)
        layers = list_layers(dataset, layer_urls(dataset, base))
        return {**index, "url": open_url(dataset, base), "layers": layers}

    @app.get("/explore/footprints.bin", include_in_schema=False)
    def send_footprints() -> Response:
        return Response(
            footprints, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"}
        )

    @app.get("/explore/rows/{row}", include_in_schema=False)
    def send_row(row: int) -> dict[str, Any]:
        if not 0 <= row < len(dataset):
            raise HTTPException(404, f"no such row: {row}")
        ids = dataset.patch_table.take(np.array([row]), [layout.ID]).column(layout.ID)
        return describe(dataset, payloads, ids[0].as_py())

    @app.get("/explore/patches/{patch_id}/nearest", include_in_schema=False)
    async def send_nearest(patch_id: str, column: str) -> list[dict[str, Any]]:
        found = await nearest.to(patch_id, column=column, k=NUM_ALIKE)
        alike = found.selection
        numbers = zip(alike.patch_ids, alike.rows.tolist(), found.scores.tolist(), strict=True)
        return [{"id": one, "row": row, "score": round(score, 4)} for one, row, score in numbers]

    @app.get("/explore/patches/{patch_id}/layers/{layer}/{tensor}.png", include_in_schema=False)
    def send_layer_picture(patch_id: str, layer: str, tensor: str) -> Response:
        pixels = layer_picture(dataset, row_of(dataset, patch_id), layer, tensor)
        if pixels is None:
            raise HTTPException(404, f"the layers have no such picture of {patch_id}: {layer} {tensor}")
        return Response(
            encode_png(pixels), media_type="image/png", headers={"Cache-Control": "max-age=86400"}
        )

    @app.get("/explore/patches/{patch_id}", include_in_schema=False)
    def send_patch(patch_id: str) -> dict[str, Any]:
        return {"row": row_of(dataset, patch_id), **describe(dataset, payloads, patch_id)}

    @app.get("/explore/patches/{patch_id}/{picture}.png", include_in_schema=False)
    def send_picture(patch_id: str, picture: str) -> Response:
        return Response(
            encode_png(picture_of(dataset, payloads, patch_id, picture)),
            media_type="image/png",
            headers={"Cache-Control": "max-age=86400"},
        )

    @app.get("/explore/{name}", include_in_schema=False)
    def send_asset(name: str, request: Request) -> Response:
        if name not in pages:
            raise HTTPException(404, f"no such page: {name}")
        kind = _MEDIA_TYPES[PurePosixPath(name).suffix]
        # Asked about each time: pages of two releases do not mix.
        return send_file(pages[name], request.headers, media_type=kind, max_age_s=0)

    app.add_middleware(_PageForBrowsers, page=pages["explore.html"])


class _PageForBrowsers:
    """Answers ``/`` with the page when HTML is asked for; STAC clients ask for JSON."""

    def __init__(self, app: ASGIApp, page: bytes) -> None:
        self.app, self.page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The path is without the prefix of a proxy or a mount (`place.Place`).
        is_home = scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if is_home and "text/html" in Headers(scope=scope).get("accept", ""):
            headers = {"Vary": "Accept"}  # so that no cache takes the page for the catalog
            await Response(self.page, media_type="text/html", headers=headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _index(dataset: Dataset) -> dict[str, Any]:
    """Names that the numbers of the footprints stand for."""
    classes = dataset.schema.classes
    colors = classes.colors or (_NO_COLOR,) * len(classes)
    return {
        "title": about(dataset.schema).title,
        "collection": about(dataset.schema).collection,
        "num_patches": len(dataset),
        "modalities": list(dataset.modalities),
        "bands": [name for name, image in images_of(dataset).items() if not image.is_layer],
        "thumbnail": thumbnail_of(dataset),
        "products": _products(dataset),
        "splits": list(SPLITS),
        "flags": [
            {
                "column": layout.column(name),
                "title": about(dataset.schema).title_of(name),
                "option": _FLAG_OPTIONS.get(name),
            }
            for name in dataset.schema.recommended_without
        ],
        "seasons": list(SEASONS),
        "has_s1_time": layout.S1_DATETIME in dataset.patch_table.names,
        "countries": dataset.countries,
        "labels": [{"name": name, "color": color} for name, color in zip(classes.names, colors, strict=True)],
    }


def _products(dataset: Dataset) -> list[dict[str, Any]]:
    """Name, first time, square, corners and size of each product.

    ``square`` is what products of the same place share: their MGRS square, or else each product's name.
    ``axes`` are longitude and latitude of the upper-left, upper-right, lower-left and lower-right corner of
    the box of its patches, in its own projection; ``size`` says how many patches fit along its width and height.
    """
    from pyproj import Transformer

    has_squares = _MGRS in dataset.patch_table.names
    columns = [layout.PRODUCT, layout.DATETIME, "proj:code", "proj:bbox", *[_MGRS] * has_squares]
    table = dataset.selection.columns(columns)
    codes = _codes(table.column(layout.PRODUCT), dataset.products)
    boxes = np.asarray(table.column("proj:bbox").combine_chunks().flatten()).reshape(-1, 4)
    count = len(dataset.products)
    lower, upper = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(lower, codes, boxes[:, :2])
    np.maximum.at(upper, codes, boxes[:, 2:])
    first = np.unique(codes, return_index=True)[1]
    projections = table.column("proj:code").take(pa.array(first)).to_pylist()
    squares = table.column(_MGRS).take(pa.array(first)).to_pylist() if has_squares else dataset.products
    times = pa.table({"code": codes, "time": table.column(layout.DATETIME)}).group_by("code")
    starts = times.aggregate([("time", "min")]).sort_by("code").column("time_min").to_pylist()
    found = []
    for number, name in enumerate(dataset.products):
        (west, south), (east, north) = lower[number].tolist(), upper[number].tolist()
        to_lonlat = Transformer.from_crs(projections[number], 4326, always_xy=True)
        corners = [(west, north), (east, north), (west, south), (east, south)]
        sides = (east - west, north - south)
        found.append(
            {
                "name": name,
                "time": rfc3339(starts[number]),
                "square": squares[number].removeprefix("MGRS-"),
                "season": next(name for name, months in SEASONS.items() if starts[number].month in months),
                "axes": [list(to_lonlat.transform(x, y)) for x, y in corners],
                "size": [side / dataset.schema.patch_m for side in sides],
            }
        )
    return found


def _footprints(dataset: Dataset, index: dict[str, Any]) -> bytes:
    """One column after the other, a value per patch, in the order in which the page takes them.

    West, south, east, north (int32, 1e-7 degrees), labels (as many uint32 columns as the classes need:
    bit i of column k is class 32 k + i), product (uint16), split, country (0 where the metadata have none, 255 for a
    patch that is in none), flags (as many uint8 columns as they need: bit i of column k is flag 8 k + i of those that
    make a patch not recommended).
    """
    has_countries = layout.COUNTRY in dataset.patch_table.names
    names = [layout.BBOX, layout.LABELS, layout.PRODUCT, layout.SPLIT, *[layout.COUNTRY] * has_countries]
    flags = [layout.column(name) for name in dataset.schema.recommended_without]
    table = dataset.search().columns([*names, *flags])
    bbox = table.column(layout.BBOX).combine_chunks()
    sides = [
        np.round(bbox.field(side).to_numpy() * 1e7).astype("<i4") for side in ("xmin", "ymin", "xmax", "ymax")
    ]
    words = _label_words(table.column(layout.LABELS).combine_chunks(), dataset.schema.classes.names)
    product = _codes(table.column(layout.PRODUCT), dataset.products).astype("<u2")
    split = _codes(table.column(layout.SPLIT), index["splits"]).astype(np.uint8)
    country = np.zeros(len(table), np.uint8)
    if has_countries:
        country = _codes(table.column(layout.COUNTRY), index["countries"]).astype(np.uint8)
    flagged = np.zeros((-(-len(flags) // 8), len(table)), np.uint8)
    for number, name in enumerate(flags):
        flagged[number // 8] |= table.column(name).to_numpy().astype(np.uint8) << number % 8
    return b"".join(column.tobytes() for column in [*sides, *words, product, split, country, *flagged])


def _label_words(column: Any, names: Sequence[str]) -> NDArray[np.uint32]:
    """The labels as bits, (words, patches)."""
    words = np.zeros((-(-len(names) // 32), len(column)), "<u4")
    numbers = pc.index_in(pc.list_flatten(column), pa.array(names)).to_numpy()
    rows = pc.list_parent_indices(column).to_numpy()
    np.bitwise_or.at(words, (numbers // 32, rows), np.uint32(1) << (numbers % 32).astype(np.uint32))
    return words


def _codes(column: Any, names: Sequence[str]) -> NDArray[np.int64]:
    found = pc.index_in(pc.cast(column, pa.string()), pa.array(names, pa.string()))
    return np.asarray(pc.fill_null(found, 255).to_numpy()).astype(np.int64)
