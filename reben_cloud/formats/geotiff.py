"""Pixels -> GeoTIFF files: of the official profile, in the official folders; or several bands in one file.

The profile (read from the published files): classic little-endian TIFF, one image directory before
the pixels, strips; S2 uint16 and nodata 0, uncompressed; S1 float32, no nodata, uncompressed; maps
uint16, nodata 0, deflate with predictor 2. GDAL writes one file of each kind; the others differ from
it by place and pixels alone, so their headers are copied, which is fifty times faster.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import missing_extra

S2_FOLDER = "BigEarthNet-S2"
"""Official folder of the Sentinel-2 patches."""

S1_FOLDER = "BigEarthNet-S1"
"""Official folder of the Sentinel-1 patches."""

MAPS_FOLDER = "Reference_Maps"
"""Official folder of the reference maps."""

# An upper left corner that no other part of a header contains.
_MARK = (123_457.0, 7_654_321.0)

_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES = 273, 278, 279
_SHORT = 3


def encode_band(pixels: NDArray[Any], *, epsg: int, left: float, top: float, pixel_m: int) -> bytes:
    """The file of one band of a patch.

    Args:
        pixels: (size, size), uint16 for S2 (nodata 0 is declared) or float32 for S1.
        epsg: CRS.
        left: West edge, metres.
        top: North edge, metres.
        pixel_m: Size of a pixel, metres.
    """
    head = _template(pixels.shape[0], pixels.dtype.name, epsg, pixel_m, compressed=False)
    mark = struct.pack("<2d", *_MARK)
    header = head[: len(head) - pixels.nbytes].replace(mark, struct.pack("<2d", left, top))
    return header + pixels.tobytes()


def encode_map(codes: NDArray[np.uint16], *, epsg: int, left: float, top: float) -> bytes:
    """The file of a reference map: (size, size) uint16 of 10 m pixels."""
    size = codes.shape[0]
    head, rows, places = _map_template(size, epsg)
    differences = codes.astype("<u2")
    differences[:, 1:] -= codes[:, :-1]
    strips = [zlib.compress(differences[row : row + rows].tobytes(), 6) for row in range(0, size, rows)]
    sizes = [len(strip) for strip in strips]
    starts = np.cumsum([len(head), *sizes[:-1]]).tolist()
    header = bytearray(head.replace(struct.pack("<2d", *_MARK), struct.pack("<2d", left, top)))
    for tag, values in ((_STRIP_OFFSETS, starts), (_STRIP_BYTES, sizes)):
        where, form = places[tag]
        struct.pack_into(form, header, where, *values)
    return b"".join([header, *strips])


DTYPES = frozenset(
    ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
)
"""NumPy dtypes of pixels that GDAL can write."""


def encode_bands(
    pixels: NDArray[Any],
    *,
    epsg: int,
    left: float,
    top: float,
    pixel_m: float,
    names: Sequence[str],
    units: Sequence[str | None],
    nodata: float | None,
    cog: bool,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
) -> bytes:
    """The file of several bands of a patch, compressed without loss (deflate, with a predictor).

    Args:
        pixels: (band, size, size), of one of `DTYPES`.
        epsg: CRS.
        left: West edge, metres.
        top: North edge, metres.
        pixel_m: Size of a pixel, metres.
        names: Name of each band, its description.
        units: Units of each band; None where there are none.
        nodata: Value that stands for no data; None where none is declared.
        cog: Write a cloud-optimised file: tiled, header first, GDAL's COG layout.
        colors: Value -> red, green and blue, the colour table of the only band, which is of uint8; None for none.
    """
    rasterio, from_origin = _rasterio()
    count, size, _ = pixels.shape
    options: dict[str, Any] = {"compress": "deflate"}
    predictor = 3 if pixels.dtype.kind == "f" else 2 if pixels.dtype.itemsize <= 4 else 1
    if cog:
        # One tile, where the patch is small enough: GDAL takes multiples of 16 from 128 on.
        block = min(512, max(128, -(-size // 16) * 16))
        kind = {1: "NO", 2: "STANDARD", 3: "FLOATING_POINT"}[predictor]
        options |= {"driver": "COG", "blocksize": block, "predictor": kind}
    else:
        options |= {"driver": "GTiff", "predictor": predictor, "interleave": "band"}
    with rasterio.MemoryFile() as memory:
        with memory.open(
            height=size, width=size, count=count, dtype=pixels.dtype.name, crs=f"EPSG:{epsg}",
            transform=from_origin(left, top, pixel_m, pixel_m), nodata=nodata, **options,
        ) as file:  # fmt: skip
            if colors is not None:
                file.write_colormap(1, colors)
            file.write(pixels)
            file.descriptions = tuple(names)
            file.units = tuple(unit or "" for unit in units)
        return bytes(memory.read())


def _rasterio() -> tuple[Any, Any]:
    try:
        import rasterio
        from rasterio.transform import from_origin
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    return rasterio, from_origin


@functools.lru_cache(maxsize=32)
def _template(size: int, dtype: str, epsg: int, pixel_m: int, *, compressed: bool) -> bytes:
    """The file of an all-ones image at the marked place, as GDAL writes it."""
    rasterio, from_origin = _rasterio()
    options: dict[str, Any] = {"nodata": 0} if dtype == "uint16" else {}
    if compressed:
        options |= {"compress": "deflate", "predictor": 2}
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=size, width=size, count=1, dtype=dtype, crs=f"EPSG:{epsg}",
            transform=from_origin(*_MARK, pixel_m, pixel_m), **options,
        ) as file:  # fmt: skip
            file.write(np.ones((size, size), dtype), 1)
        return bytes(memory.read())


@functools.lru_cache(maxsize=32)
def _map_template(size: int, epsg: int) -> tuple[bytes, int, dict[int, tuple[int, str]]]:
    """Header of a map, rows of a strip, and where (and as what) strip offsets and sizes stand in it."""
    file = _template(size, "uint16", epsg, 10, compressed=True)
    (start,) = struct.unpack_from("<I", file, 4)
    (entries,) = struct.unpack_from("<H", file, start)
    places = {}
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from("<HHI", file, entry)
        if tag in (_STRIP_OFFSETS, _STRIP_BYTES, _ROWS_PER_STRIP):
            form = f"<{count}{'H' if kind == _SHORT else 'I'}"
            inside = struct.calcsize(form) <= 4
            places[tag] = (entry + 8 if inside else struct.unpack_from("<I", file, entry + 8)[0], form)
    (rows,) = struct.unpack_from(places[_ROWS_PER_STRIP][1], file, places[_ROWS_PER_STRIP][0])
    (first, *_) = struct.unpack_from(places[_STRIP_OFFSETS][1], file, places[_STRIP_OFFSETS][0])
    return file[:first], rows, places


def s2_path(root: Path, patch_id: str, product: str, band: str) -> Path:
    """Where the file of a Sentinel-2 band lies below `root`."""
    return root / S2_FOLDER / product / patch_id / f"{patch_id}_{band}.tif"


def s1_path(root: Path, s1_name: str, polarization: str) -> Path:
    """Where the file of a Sentinel-1 polarization lies below `root`; the scene is 32 characters."""
    return root / S1_FOLDER / s1_name[:32] / s1_name / f"{s1_name}_{polarization}.tif"


def map_path(root: Path, patch_id: str, product: str) -> Path:
    """Where the file of a reference map lies below `root`."""
    return root / MAPS_FOLDER / product / patch_id / f"{patch_id}_reference_map.tif"
