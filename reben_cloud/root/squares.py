"""Where patches lie, as a map needs it: squares in degrees, their WKB, and an order that keeps neighbours together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def by_place(metadata: pa.Table) -> NDArray[np.int64]:
    """The order of the rows: squares along a Z curve, products of a square by time, patches by id.

    Within a product that is the order of its Zarr rows, and what compresses best.
    """
    products = metadata.column("product").cast(pa.string()).combine_chunks().dictionary_encode()
    code, names = products.indices.to_numpy(), products.dictionary.to_pylist()
    first = np.unique(code, return_index=True)[1]
    epsg, x0, y0 = (metadata.column(name).to_numpy() for name in ("epsg", "x0", "y0"))
    # The north-west corner of each product: of its square, or of the patches that are there.
    west, north = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    squared = {"square_x0", "square_y0"} <= set(metadata.column_names)
    np.minimum.at(west, code, metadata.column("square_x0").to_numpy() if squared else x0)
    np.maximum.at(north, code, metadata.column("square_y0").to_numpy() if squared else y0)
    corners = lonlat_squares(epsg[first], west, north, west, north)[:, 0]
    # Cells of half a degree; the square, the time and the name decide in a cell.
    curve = _z_order(*((corners.T + 180) * 2).astype(np.int64)).tolist()
    times = metadata.column("datetime").take(pa.array(first)).to_pylist()
    squares = [""] * len(names)
    if "square" in metadata.column_names:
        squares = metadata.column("square").take(pa.array(first)).to_pylist()
    ranked = sorted(range(len(names)), key=lambda n: (curve[n], squares[n], times[n], names[n]))
    rank = np.empty(len(names), np.int64)
    rank[ranked] = np.arange(len(names))
    ids = np.argsort(np.array(metadata.column("patch_id").to_pylist(), np.bytes_), kind="stable")
    by_id = np.empty_like(ids)
    by_id[ids] = np.arange(len(ids))
    return np.lexsort((by_id, rank[code]))


def _z_order(x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Morton code of two coordinates below 1024: their bits interleaved."""
    found = np.zeros_like(x)
    for bit in range(10):
        found |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1)
    return found


def lonlat_squares(
    epsg: NDArray[np.int64],
    minx: NDArray[np.int64],
    miny: NDArray[np.int64],
    maxx: NDArray[np.int64],
    maxy: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Closed counterclockwise rings in degrees, (n, 5, 2) longitude and latitude, rounded to 1 cm.

    Straight lines between the corners leave the square's true edges by less than 3 cm. Of a square across the
    antimeridian it is the part on the side where its first corner is: a ring ends at 180 degrees, as those of RFC 7946.
    """
    from pyproj import Transformer

    xs = np.stack([minx, maxx, maxx, minx, minx], axis=1).astype(np.float64)
    ys = np.stack([miny, miny, maxy, maxy, miny], axis=1).astype(np.float64)
    out = np.empty((len(epsg), 5, 2))
    for code in np.unique(epsg).tolist():
        rows = epsg == code
        to_lonlat = Transformer.from_crs(code, 4326, always_xy=True)
        out[rows, :, 0], out[rows, :, 1] = to_lonlat.transform(xs[rows], ys[rows])
    lon = out[:, :, 0]
    across = lon.max(axis=1) - lon.min(axis=1) > 180
    side = np.where(lon[:, :1] < 0, -180.0, 180.0)
    out[:, :, 0] = np.where(across[:, None] & (lon * side < 0), side, lon)
    return np.round(out, 7)


def wkb_polygons(rings: NDArray[np.float64]) -> pa.Array[Any]:
    """Little-endian WKB of polygons with one ring of five points."""
    record = np.dtype([("head", "V13"), ("points", "<f8", (5, 2))])
    head = b"\x01" + (3).to_bytes(4, "little") + (1).to_bytes(4, "little") + (5).to_bytes(4, "little")
    buffer = pa.allocate_buffer(len(rings) * record.itemsize)
    values = np.frombuffer(buffer, record)
    values["head"] = np.void(head)
    values["points"] = rings
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(record.itemsize), len(rings), [None, buffer])
    return fixed.cast(pa.binary())
