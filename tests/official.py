"""The synthetic dataset in the official forms: GeoTIFF folders and ``.tar.zst`` archives.

TIFFs are GDAL's: one is written with rasterio for each profile, and pixels and georeferencing are
spliced into copies of it, which is what makes 75,000 of them in seconds. Maps are deflated, so each
is written by GDAL itself.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rasterio
import zstandard
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from reben_cloud import grid
from reben_cloud.bigearthnet.reben import MAP_TENSOR, REBEN
from reben_cloud.root import metadata
from reben_cloud.sources.archives import ARCHIVES
from reben_cloud.sources.folders import FOLDERS, file_part, group_of
from reben_cloud.sources.synthetic import SyntheticSource, synthetic_metadata

MODALITIES = ("s2", "s1", "map")
JANUARY_2024 = 1_704_067_200


def table_of(num_patches: int, *, num_products: int = 3) -> pa.Table:
    """Metadata of so many patches of a few products: real ids, labels and S1 names.

    Few products, because the metadata of a Zarr store takes zarr-python 40 ms.
    """
    table = synthetic_metadata(4553)
    products = pc.utf8_slice_codeunits(table.column("patch_id"), 0, -6)
    names = pc.unique(products).to_pylist()
    chosen = names[:: len(names) // num_products][:num_products]
    rows = np.flatnonzero(pc.is_in(products, pa.array(chosen)).to_numpy())
    assert num_patches <= len(rows), f"{len(rows)} patches in {num_products} products"
    return table.take(rows[np.arange(num_patches) * len(rows) // num_patches]).combine_chunks()


def tiff(array: np.ndarray[Any, Any], footprint: tuple[int, ...], *, deflate: bool = False) -> bytes:
    """A GeoTIFF of the official profile."""
    if deflate:
        return _gdal(array, footprint, compress="deflate", predictor=2, nodata=0)
    data = bytearray(_template(array.shape[0], array.dtype.str))
    epsg, minx, _, _, maxy = footprint
    at = _places(bytes(data))
    struct.pack_into("<2d", data, at["tie"] + 24, minx, maxy)
    struct.pack_into("<H", data, at["epsg"], epsg)
    # The citation names the zone; ours is GDAL's "WGS 84 / UTM zone 33N|WGS 84|".
    start = bytes(data).index(b"zone ") + 5
    data[start : start + 2] = f"{epsg - 32600:02d}".encode()
    data[at["pixels"] :] = array.tobytes()
    return bytes(data)


@cache
def _template(size: int, dtype: str) -> bytes:
    options = {"nodata": 0} if dtype == "<u2" else {}
    return _gdal(np.ones((size, size), dtype), (32633, 0, 0, 1200, 1200), **options)


@cache
def _places(template: bytes) -> dict[str, int]:
    """Where the tie point, the EPSG code and the pixels lie; from the tags, with no help of ours."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(template)) as file:
        tags = file.pages[0].tags
        keys = tags["GeoKeyDirectoryTag"]
        position = list(keys.value).index(3072)
        return {
            "tie": tags["ModelTiepointTag"].valueoffset,
            "epsg": keys.valueoffset + 2 * (position + 3),
            "pixels": tags["StripOffsets"].value[0],
        }


def _gdal(array: np.ndarray[Any, Any], footprint: tuple[int, ...], **options: Any) -> bytes:
    epsg, minx, _, maxx, maxy = footprint
    size = (maxx - minx) / array.shape[1]
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            width=array.shape[1],
            height=array.shape[0],
            count=1,
            dtype=array.dtype.name,
            crs=rasterio.CRS.from_epsg(epsg),
            transform=from_origin(minx, maxy, size, size),
            **options,
        ) as file:
            file.write(array, 1)
        return bytes(memory.read())


def members(modality: str, table: pa.Table) -> Iterator[tuple[str, bytes]]:
    """(path, TIFF) of every file of a modality, sorted by path as in the official archives."""
    source = SyntheticSource(table.num_rows)
    infos = list(metadata.patch_infos(table))
    name_of = {info.patch_id: info.s1_name if modality == "s1" else info.patch_id for info in infos}
    infos.sort(key=lambda info: (group_of(modality, name_of[info.patch_id]), name_of[info.patch_id]))
    for info in infos:
        name = name_of[info.patch_id]
        folder = f"{FOLDERS[modality]}/{group_of(modality, name)}/{name}"
        tensors = REBEN.modality(modality).decode(source.read(info, [modality]).payloads[modality])
        for tensor in REBEN.modality(modality).places:
            data = tiff(tensors[tensor], grid.footprint(info.patch_id), deflate=tensor == MAP_TENSOR)
            yield f"{folder}/{name}_{file_part(tensor)}.tif", data


def write_folders(folder: Path, table: pa.Table, modalities: Iterable[str] = MODALITIES) -> None:
    """Unpacked official folders with their metadata file."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "metadata.parquet")
    for modality in modalities:
        for path, data in members(modality, table):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


def write_archives(folder: Path, table: pa.Table, modalities: Iterable[str] = MODALITIES) -> None:
    """Official archives with their metadata file."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "metadata.parquet")
    for modality in modalities:
        (folder / ARCHIVES[modality]).write_bytes(pack(members(modality, table)))


def pack(files: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """A ``.tar.zst`` as the publishers make it: GNU format, owner 0, level 6."""
    out = io.BytesIO()
    with (
        zstandard.ZstdCompressor(level=6).stream_writer(out, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, data in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = JANUARY_2024
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
