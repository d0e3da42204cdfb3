"""What the page at the server's root asks for: all footprints in one array, and pictures of patches."""

from __future__ import annotations

import gzip
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import FastAPI, HTTPException, Request
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL, CLC, encode_many, representative_code
from reben_cloud.bigearthnet.picture import GAMMA, TRUE_COLOR, encode_png, true_color
from reben_cloud.errors import NotFoundError
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.patches import rfc3339
from reben_cloud.root.placement import SPLITS

_ASSETS = {
    "explore.html": "text/html; charset=utf-8",
    "explore.css": "text/css",
    "explore.js": "text/javascript",
}


def add_explorer(app: FastAPI, dataset: Dataset) -> None:
    """Add the page, which browsers get at ``/``, and what it loads from ``/explore/``."""
    index = _index(dataset)
    # Level 1: the array is made once and sent whole; half the bytes for a third of a second.
    footprints = gzip.compress(_footprints(dataset, index), 1, mtime=0)
    folder = files("reben_cloud.serve").joinpath("page")
    pages = {name: folder.joinpath(name).read_bytes() for name in _ASSETS}
    outlines = files("reben_cloud.bigearthnet").joinpath("data", "ne_110m_ten_countries.geojson").read_bytes()

    @app.get("/explore/index.json", include_in_schema=False)
    def send_index() -> dict[str, Any]:
        return index

    @app.get("/explore/footprints.bin", include_in_schema=False)
    def send_footprints() -> Response:
        return Response(
            footprints, media_type="application/octet-stream", headers={"Content-Encoding": "gzip"}
        )

    @app.get("/explore/patches/{patch_id}", include_in_schema=False)
    def send_patch(patch_id: str) -> dict[str, Any]:
        return _describe(dataset, patch_id)

    @app.get("/explore/patches/{patch_id}/{picture}.png", include_in_schema=False)
    def send_picture(patch_id: str, picture: str) -> Response:
        return Response(
            encode_png(_picture(dataset, patch_id, picture)),
            media_type="image/png",
            headers={"Cache-Control": "max-age=86400"},
        )

    @app.get("/explore/countries.json", include_in_schema=False)
    def send_outlines() -> Response:
        return Response(outlines, media_type="application/geo+json")

    @app.get("/explore/{name}", include_in_schema=False)
    def send_asset(name: str) -> Response:
        if name not in pages:
            raise HTTPException(404, f"no such page: {name}")
        return Response(pages[name], media_type=_ASSETS[name])

    app.add_middleware(_PageForBrowsers, page=pages["explore.html"])


class _PageForBrowsers:
    """Answers ``GET /`` with the page when HTML is asked for; STAC clients ask for JSON."""

    def __init__(self, app: ASGIApp, page: bytes) -> None:
        self.app, self.page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] == "GET":
            accept = Request(scope).headers.get("accept", "")
            if "text/html" in accept:
                await Response(self.page, media_type="text/html")(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _index(dataset: Dataset) -> dict[str, Any]:
    """Names that the numbers of the footprints stand for."""
    countries = dataset.countries
    return {
        "url": dataset.url,
        "num_patches": len(dataset),
        "modalities": list(dataset.modalities),
        "products": [
            {"name": name, "time": rfc3339(grid.sensing_time(name)), "axes": _axes(name)}
            for name in dataset.products
        ],
        "splits": list(SPLITS),
        "countries": countries,
        "labels": [
            {"name": name, "color": CLC[representative_code(name)].color} for name in CLASSES_ALPHABETICAL
        ],
    }


def _axes(product: str) -> list[list[float]]:
    """Longitude and latitude of the tile's upper-left, upper-right, lower-left and lower-right corners."""
    from pyproj import Transformer

    epsg, left, top = grid.tile_corner(grid.parse_patch_id(f"{product}_00_00").square)
    side = grid.PATCH_M * grid.PATCHES_PER_SIDE
    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    corners = [(left, top), (left + side, top), (left, top - side), (left + side, top - side)]
    return [list(to_lonlat.transform(x, y)) for x, y in corners]


def _footprints(dataset: Dataset, index: dict[str, Any]) -> bytes:
    """One column after the other, a value a patch, in the order in which the page takes them.

    West, south, east, north (int32, 1e-7 degrees), labels (uint32, bit i = class i), product, split,
    country, flags (1 snow, 2 cloud or shadow), x and y in the tile (uint8).
    """
    names = ["id", "bbox", "reben:labels", "reben:product", "reben:split", "reben:country"]
    flags = ["reben:contains_seasonal_snow", "reben:contains_cloud_or_shadow"]
    table = dataset.search().columns([*names, *flags])
    bbox = table.column("bbox").combine_chunks()
    sides = [
        np.round(bbox.field(side).to_numpy() * 1e7).astype("<i4") for side in ("xmin", "ymin", "xmax", "ymax")
    ]
    labels = encode_many(table.column("reben:labels")).astype(np.uint32)
    bits = (labels << np.arange(labels.shape[1], dtype=np.uint32)).sum(axis=1, dtype="<u4")
    codes = [
        _codes(table.column("reben:product"), [p["name"] for p in index["products"]]),
        _codes(table.column("reben:split"), index["splits"]),
        _codes(table.column("reben:country"), index["countries"]),
    ]
    snow, cloud = (table.column(name).to_numpy().astype(np.uint8) for name in flags)
    x, y = grid.grid_positions(table.column("id").to_pylist())
    small = [*codes, snow | cloud << 1, x.astype(np.uint8), y.astype(np.uint8)]
    return b"".join(column.tobytes() for column in [*sides, bits, *small])


def _codes(column: Any, names: list[str]) -> NDArray[np.uint8]:
    found = pc.index_in(pc.cast(column, pa.string()), pa.array(names))
    return np.asarray(found.to_numpy()).astype(np.uint8)


def _row(dataset: Dataset, patch_id: str) -> dict[str, Any]:
    found = dataset.search(ids=patch_id, missing_ok=True)
    if not len(found):
        raise HTTPException(404, f"no such patch: {patch_id}")
    row: dict[str, Any] = found.to_arrow().drop_columns(["geometry"]).to_pylist()[0]
    return row


def _describe(dataset: Dataset, patch_id: str) -> dict[str, Any]:
    row = _row(dataset, patch_id)
    legend: list[dict[str, Any]] = []
    if "map" in dataset.modalities:
        codes, counts = np.unique(dataset.open_patch(patch_id).reference_map.values, return_counts=True)
        legend = [
            {
                "code": code,
                "name": CLC[code].name,
                "color": CLC[code].color,
                "label": CLC[code].label,
                "share": round(count / counts.sum(), 4),
            }
            for code, count in sorted(
                zip(codes.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]
            )
        ]
    pictures = [
        p
        for p, m in (("true-color", "s2"), ("reference-map", "map"), ("radar", "s1"))
        if m in dataset.modalities
    ]
    return {
        "id": patch_id,
        "labels": row["reben:labels"],
        "split": row["reben:split"],
        "country": row["reben:country"],
        "time": rfc3339(row["datetime"]),
        "s1_time": rfc3339(row["reben:s1_datetime"]) if row["reben:s1_datetime"] else None,
        "s1_name": row["reben:s1_name"],
        "crs": row["proj:code"],
        "bounds": row["proj:bbox"],
        "snow": row["reben:contains_seasonal_snow"],
        "cloud": row["reben:contains_cloud_or_shadow"],
        "pictures": pictures,
        "legend": legend,
    }


def _picture(dataset: Dataset, patch_id: str, picture: str) -> NDArray[np.uint8]:
    """(120, 120, 3) red, green, blue."""
    try:
        patch = dataset.open_patch(patch_id)
    except (NotFoundError, FileNotFoundError) as error:
        raise HTTPException(404, str(error)) from error
    if picture == "true-color" and "s2_10m" in patch:
        return true_color(patch.s2_10m.sel(band=list(TRUE_COLOR)).values)
    if picture == "radar" and "s1" in patch:
        vv, vh = patch.s1.sel(polarization=["VV", "VH"]).values
        # VV from -25 to 0 dB, VH from -32 to -5 dB, their ratio from 0 to 15 dB.
        return _stretched(np.stack([(vv + 25) / 25, (vh + 32) / 27, (vv - vh) / 15]))
    if picture == "reference-map" and "reference_map" in patch:
        colors = np.zeros((1000, 3), np.uint8)
        for entry in CLC.values():
            colors[entry.code] = list(bytes.fromhex(entry.color.lstrip("#")))
        return np.asarray(colors[np.minimum(patch.reference_map.values, 999)])
    raise HTTPException(404, f"no such picture: {picture}")


def _stretched(bands: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Values in [0, 1], (3, y, x), as (y, x, 3) bytes with a gamma that lifts the shadows."""
    values = np.clip(np.nan_to_num(bands), 0, 1) ** (1 / GAMMA)
    return np.ascontiguousarray(np.round(values * 255).astype(np.uint8).transpose(1, 2, 0))
