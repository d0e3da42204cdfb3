"""A STAC API with made Sentinel products behind it, in the shapes that Earth Search and the Planetary Computer publish.

Images are the bands of a made SAFE product as cloud-optimised GeoTIFFs, on the same server as the API; what was asked
for and how much was sent is counted.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pyproj
import rasterio
import shapely
from rasterio.transform import from_origin

from reben_cloud.scenes.safe import SafeProduct, open_safe

COLOURS = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B11": "swir16", "B12": "swir22", "SCL": "scl",
    "CLD": "cloud",
}  # fmt: skip
"""What Earth Search calls the assets of bands."""

CONFORMS = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/collections",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/ogcapi-features",
]
QUERY = "https://api.stacspec.org/v1.0.0/item-search#query"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def write_cog(
    path: Path, pixels: np.ndarray, *, epsg: int, left: float, top: float, pixel_m: float, **options: Any
) -> None:
    """A cloud-optimised GeoTIFF with blocks of 128 pixels, unless they are said to be other ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    predictor = 3 if pixels.dtype.kind == "f" else 2
    with rasterio.open(
        path, "w", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype, crs=f"EPSG:{epsg}",
        transform=from_origin(left, top, pixel_m, pixel_m),
        **{"driver": "COG", "compress": "deflate", "predictor": predictor, "blocksize": 128} | options,
    ) as file:  # fmt: skip
        file.write(pixels, 1)


def degrees(epsg: int, bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """West, south, east and north of a rectangle in metres."""
    found = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform_bounds(*bounds)
    return tuple(found)


def _item(
    name: str, collection: str, box: Any, properties: dict[str, Any], assets: dict[str, Any]
) -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": name, "collection": collection,
        "bbox": list(box), "geometry": shapely.geometry.mapping(shapely.box(*box)), "links": [],
        "properties": properties, "assets": assets,
    }  # fmt: skip


def _folder_of(safe: SafeProduct) -> str:
    """Where the images of a product lie; two datastrips have one name."""
    return safe.name if safe.datastrip is None else safe.path.stem


@dataclass(slots=True)
class Api:
    """The API: Items by collection, the folder of their images, and what it was asked."""

    folder: Path
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    conforms: list[str] = field(default_factory=lambda: [*CONFORMS, QUERY])
    token: str | None = None
    """Query without which no image is sent."""
    counts: bool = True
    """Whether a page says how many Items there are; the Planetary Computer's do not."""
    stalls: str = ""
    """What is in the path of images that are not answered."""
    page: int = 100
    """Most Items of a page."""
    url: str = ""
    log: list[str] = field(default_factory=list)
    """Request lines."""
    sent_bytes: int = 0
    """Of images."""

    def add(self, item: dict[str, Any]) -> dict[str, Any]:
        self.items.setdefault(item["collection"], []).append(item)
        return item

    def count(self, match: str) -> int:
        return sum(match in line for line in self.log)

    def reset(self) -> None:
        self.log.clear()
        self.sent_bytes = 0

    # -- products ----------------------------------------------------------------------------------

    def _write_images(self, safe: SafeProduct, **options: Any) -> tuple[dict[str, str], dict[str, Any]]:
        """Band or mask -> path of its COG; and what the 10 m ones say of their shape."""
        hrefs = {}
        for band, path in {**safe.images, **safe.masks}.items():
            with rasterio.open(path) as file:
                pixels, pixel_m = file.read(1), int(file.transform.a)
            hrefs[band] = f"{_folder_of(safe)}/{band}.tif"
            write_cog(
                self.folder / hrefs[band], pixels, epsg=safe.epsg, left=safe.left, top=safe.top, pixel_m=pixel_m,
                **options,
            )  # fmt: skip
        return hrefs, {
            "proj:shape": list(safe.shapes[10]),
            "proj:transform": [10, 0, safe.left, 0, -10, safe.top],
        }

    def earth_search(
        self, path: Path, *, collection: str = "sentinel-2-l2a", cloud: float = 10.0, offset_applied: bool = True,
        **options: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """A SAFE product as an Item of Earth Search: assets by colour, no metadata of the product."""
        safe = open_safe(path)
        hrefs, place = self._write_images(safe, **options)
        bands = [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}]
        assets = {
            COLOURS[band]: {"href": href, "type": COG, "raster:bands": bands} | place
            for band, href in hrefs.items()
        }
        assets["thumbnail"] = {"href": f"{safe.name}/preview.jpg", "type": "image/jpeg"}
        properties = {
            # The tile is sensed minutes after the acquisition began.
            "datetime": f"{safe.time.replace(microsecond=0).isoformat().removesuffix('+00:00')[:-2]}59.556000Z",
            "platform": f"sentinel-{safe.name[1:3].lower()}", "constellation": "sentinel-2", "eo:cloud_cover": cloud,
            "proj:epsg": safe.epsg, "mgrs:utm_zone": int(safe.square[:2]), "mgrs:latitude_band": safe.square[2],
            "mgrs:grid_square": safe.square[3:], "grid:code": f"MGRS-{safe.square}", "s2:product_type": "S2MSI2A",
            "s2:processing_baseline": f"{safe.name[28:30]}.{safe.name[30:32]}",
            "s2:product_uri": f"{safe.name}_{safe.generation}.SAFE", "s2:sequence": "0",
            "s2:datatake_id": f"GS{safe.name[1:3]}_{safe.name[11:26]}_044743_N{safe.name[28:30]}.{safe.name[30:32]}",
            "earthsearch:boa_offset_applied": offset_applied,
        }  # fmt: skip
        name = f"{safe.name[:3]}_{safe.square}_{safe.time:%Y%m%d}_0_L2A"
        return self.add(_item(name, collection, degrees(safe.epsg, safe.bounds), properties, assets))

    def planetary(self, path: Path, *, cloud: float = 10.0, **options: Any) -> dict[str, Any]:
        """A SAFE product as an Item of the Planetary Computer: assets by band, and the product's metadata."""
        safe = open_safe(path)
        hrefs, place = self._write_images(safe, **options)
        assets = {band: {"href": href, "type": COG} | place for band, href in hrefs.items() if band != "CLD"}
        document = f"{_folder_of(safe)}/MTD_MSIL2A.xml"
        (self.folder / document).write_bytes(safe.metadata[0].read_bytes())
        assets["product-metadata"] = {"href": document, "type": "application/xml", "roles": ["metadata"]}
        properties = {
            "datetime": safe.time.isoformat().replace("+00:00", "Z"), "platform": f"Sentinel-{safe.name[1:3]}",
            "constellation": "Sentinel 2", "eo:cloud_cover": cloud, "proj:epsg": safe.epsg,
            "s2:mgrs_tile": safe.square, "s2:product_type": "S2MSI2A",
            "s2:processing_baseline": f"{safe.name[28:30]}.{safe.name[30:32]}",
            "s2:product_uri": f"{safe.name}_{safe.generation}.SAFE", "sat:relative_orbit": int(safe.name[34:37]),
            "s2:generation_time": "2024-01-01T00:00:00.000000Z",
        }  # fmt: skip
        if safe.datastrip is not None:
            properties["s2:datastrip_id"] = (
                f"S2A_OPER_MSI_L2A_DS_ESRI_{safe.generation}_S{safe.datastrip:%Y%m%dT%H%M%S}_N05.10"
            )
        name = f"{safe.name[:26]}_{safe.name[33:]}_{safe.generation}"
        return self.add(_item(name, "sentinel-2-l2a", degrees(safe.epsg, safe.bounds), properties, assets))

    def rtc(
        self, name: str, power: dict[str, np.ndarray], *, epsg: int, left: float, top: float, orbit: int = 87
    ) -> dict[str, Any]:
        """A terrain-corrected scene, linear power by polarization, as an Item of the Planetary Computer."""
        start = datetime.strptime(name[17:32], "%Y%m%dT%H%M%S")
        height, width = next(iter(power.values())).shape
        assets = {}
        for polarization, pixels in power.items():
            href = f"{name}/{polarization}.rtc.tiff"
            write_cog(self.folder / href, pixels, epsg=epsg, left=left, top=top, pixel_m=10, nodata=-32768)
            assets[polarization] = {
                "href": href, "type": COG, "raster:bands": [{"nodata": -32768, "data_type": "float32"}],
            }  # fmt: skip
        properties = {
            "datetime": f"{start:%Y-%m-%dT%H:%M:%SZ}", "platform": f"SENTINEL-{name[1:3]}", "proj:epsg": epsg,
            "sar:product_type": "GRD", "sar:polarizations": [p.upper() for p in power],
            "sat:orbit_state": "ascending" if start.hour >= 12 else "descending", "sat:relative_orbit": orbit,
        }  # fmt: skip
        box = degrees(epsg, (left, top - 10 * height, left + 10 * width, top))
        return self.add(_item(f"{name}_rtc", "sentinel-1-rtc", box, properties, assets))

    # -- answers -----------------------------------------------------------------------------------

    def answer(self, path: str, query: dict[str, list[str]], base: str) -> Any:
        """The JSON at a path; None where there is none."""
        parts = path.strip("/").split("/")
        if path == "/":
            links = [
                ("self", base),
                ("root", base),
                ("data", f"{base}/collections"),
                ("search", f"{base}/search"),
            ]
            return {
                "type": "Catalog", "id": "made", "description": "made", "stac_version": "1.0.0",
                "conformsTo": self.conforms,
                "links": [{"rel": rel, "href": href, "type": "application/json"} for rel, href in links],
            }  # fmt: skip
        if parts == ["collections"]:
            return {"collections": [self._collection(name) for name in self.items], "links": []}
        if parts[0] == "token":
            return {"token": self.token, "msft:expiry": "2999-01-01T00:00:00Z"}
        return self._search(query, base) if parts == ["search"] else None

    def _collection(self, name: str) -> dict[str, Any]:
        extent = {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["2015-06-27T00:00:00Z", None]]},
        }
        return {
            "type": "Collection", "id": name, "description": name, "stac_version": "1.0.0", "license": "proprietary",
            "extent": extent, "links": [],
        }  # fmt: skip

    def _search(self, query: dict[str, list[str]], base: str) -> dict[str, Any]:
        found = [item for name in query["collections"][0].split(",") for item in self.items.get(name, [])]
        if "bbox" in query:
            box = shapely.box(*map(float, query["bbox"][0].split(",")))
            found = [item for item in found if shapely.box(*item["bbox"]).intersects(box)]
        if "datetime" in query:
            first, last = (_time(text) for text in query["datetime"][0].split("/"))
            found = [item for item in found if first <= _time(item["properties"]["datetime"]) <= last]
        if "query" in query:
            most = json.loads(query["query"][0])["eo:cloud_cover"]["lte"]
            found = [item for item in found if item["properties"]["eo:cloud_cover"] <= most]
        first = int(query.get("token", ["0"])[0])
        size = min(self.page, int(query.get("limit", ["10"])[0]))
        shown = json.loads(json.dumps(found[first : first + size]))
        for item in shown:
            for asset in item["assets"].values():
                asset["href"] = f"{base}/{asset['href']}"
        links = []
        if first + size < len(found):
            more = urlencode({name: values[0] for name, values in query.items()} | {"token": first + size})
            links = [{"rel": "next", "href": f"{base}/search?{more}", "type": "application/geo+json"}]
        page = {"type": "FeatureCollection", "features": shown, "links": links}
        return page | ({"numberMatched": len(found)} if self.counts else {})


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def do_GET(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        api.log.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        said = api.answer(parts.path, parse_qs(parts.query), f"http://{self.headers['Host']}")
        if said is not None:
            self.begin(200, json.dumps(said).encode(), {"Content-Type": "application/json"})
            return
        if parts.path == "/text":
            self.begin(200, b"hello", {"Content-Type": "application/json"})
            return
        while api.stalls and api.stalls in parts.path:
            time.sleep(0.05)
        file = api.folder / parts.path.lstrip("/")
        if not file.is_file():
            self.begin(404, b"")
        elif api.token is not None and parts.query != api.token:
            self.begin(409, b"Public access is not permitted on this storage account.")
        else:
            self.send_file(file)

    def do_HEAD(self) -> None:
        self.do_GET()

    def send_file(self, file: Path) -> None:
        state = file.stat()
        first, stop, status = 0, state.st_size, 200
        headers = {
            "ETag": f'"{state.st_size:x}-{state.st_mtime_ns:x}"',
            "Content-Type": "application/octet-stream",
        }
        if wanted := self.headers.get("Range"):
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            stop, status = min(last + 1, stop), 206
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{state.st_size}"
        headers["Content-Length"] = str(stop - first)
        data = b""
        if self.command == "GET":
            with file.open("rb") as opened:
                opened.seek(first)
                data = opened.read(stop - first)
            self.api.sent_bytes += len(data)
        self.begin(status, data, headers)

    def begin(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextlib.contextmanager
def serve_api(folder: Path) -> Iterator[Api]:
    """An API without Items, while the context lasts."""
    api = Api(folder)
    handler = type("Handler", (_Handler,), {"api": api})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        api.url = f"http://127.0.0.1:{server.server_port}"
        yield api
        server.shutdown()
        thread.join()
