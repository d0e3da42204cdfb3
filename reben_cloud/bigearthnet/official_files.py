"""The files of a patch as the published archives have them: a GeoTIFF per band, in the official folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.bigearthnet.reben import MAP, MAP_TENSOR, REBEN, S1, S2
from reben_cloud.formats import geotiff
from reben_cloud.schema import Array, Schema


def has_official_files(schema: Schema) -> bool:
    """Whether the patches of a dataset can lie in the official folders: its modalities are reBEN's."""
    names = schema.modality_names
    return {*names} <= {*REBEN.modality_names} and schema.modalities == REBEN.only(names).modalities


def encode_official(
    tensors: Mapping[str, Mapping[str, Array]],
    *,
    product: str,
    names: Mapping[str, str],
    epsg: int,
    left: float,
    top: float,
) -> dict[str, bytes]:
    """Path below the folder -> file, of every tensor of a patch.

    Args:
        tensors: Modality -> band -> pixels, of reBEN's shapes and dtypes.
        product: Sentinel-2 product of the patch.
        names: Modality -> name of the patch there: the patch id, or that of Sentinel-1.
        epsg: CRS.
        left: West edge, metres.
        top: North edge, metres.
    """
    here, found = Path(), {}
    for band, pixels in tensors.get(S2.name, {}).items():
        path = geotiff.s2_path(here, names[S2.name], product, band)
        found[path.as_posix()] = geotiff.encode_band(
            pixels, epsg=epsg, left=left, top=top, pixel_m=BANDS[band].resolution_m
        )
    for band, pixels in tensors.get(S1.name, {}).items():
        path = geotiff.s1_path(here, names[S1.name], band)
        found[path.as_posix()] = geotiff.encode_band(
            pixels, epsg=epsg, left=left, top=top, pixel_m=BANDS[band].resolution_m
        )
    if MAP.name in tensors:
        path = geotiff.map_path(here, names[MAP.name], product)
        codes = tensors[MAP.name][MAP_TENSOR].astype(np.uint16)
        found[path.as_posix()] = geotiff.encode_map(codes, epsg=epsg, left=left, top=top)
    return found
