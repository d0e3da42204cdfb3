"""The bands of a patch as cloud-optimised GeoTIFFs, made when they are asked for: ``/patches/PATCH_ID/B04.tif``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from starlette.responses import Response

from reben_cloud.bigearthnet.about import about
from reben_cloud.catalog.band_images import COG_TYPE, BandImage, band_images
from reben_cloud.formats.geotiff import encode_bands
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.search import known_ids
from reben_cloud.serve.payloads import Payloads
from reben_cloud.serve.ranges import send_file

PATH = "patches"
"""First part of the path of every image."""

_KEPT_BYTES = 16_000_000
"""About how much memory goes to files that were just made: GDAL reads one by several requests."""


def images_of(dataset: Dataset) -> dict[str, BandImage]:
    """Name -> image, of the bands that can be had; none where rasterio, which writes them, is not installed."""
    if find_spec("rasterio") is None:
        return {}
    return band_images(dataset, about(dataset.schema))


def add_tiffs(app: FastAPI, dataset: Dataset, payloads: Payloads) -> None:
    """Answer requests for the images that Items name (`catalog.band_images`)."""
    files = BandFiles(dataset, payloads)

    @app.get("/" + PATH + "/{patch_id}/{band}.tif", include_in_schema=False)
    def send_band(patch_id: str, band: str, request: Request) -> Response:
        return send_file(files.file(patch_id, band), request.headers, media_type=COG_TYPE)


class BandFiles:
    """The files of a dataset's bands; safe to use from many threads."""

    def __init__(self, dataset: Dataset, payloads: Payloads) -> None:
        self._dataset = dataset
        self._images: Mapping[str, BandImage] = images_of(dataset)
        band_bytes = max((image.tensor.nbytes for image in self._images.values()), default=1)
        self._payloads = payloads
        self._file = lru_cache(max(1, _KEPT_BYTES // band_bytes))(self._make)

    def file(self, patch_id: str, band: str) -> bytes:
        """The file of one band of a patch.

        Raises:
            HTTPException: 404 if there is no such patch, or it has no such band.
            ChecksumError: If what is stored is damaged.
            StorageError: If it cannot be read.
        """
        return self._file(patch_id, band)

    def _make(self, patch_id: str, band: str) -> bytes:
        image = self._images.get(band)
        if image is None:
            names = (
                ", ".join(self._images) or "none: the server lacks rasterio, which comes with the extra geo"
            )
            raise HTTPException(404, f"no such band; there are {names}")
        columns = ["proj:code", "proj:bbox"]
        columns += [layout.present_column(image.modality)] * image.is_layer
        found = self._dataset.search(ids=known_ids(self._dataset, patch_id))
        row = found.columns(columns).to_pylist() if len(found) else []
        if not row:
            raise HTTPException(404, "no such patch")
        if not image.is_there(row[0]):
            raise HTTPException(404, f"the layer {image.modality} has nothing for this patch")
        west, _, _, north = row[0]["proj:bbox"]
        return encode_bands(
            self._payloads.tensors(patch_id, image.modality)[image.tensor.name][np.newaxis],
            epsg=int(row[0]["proj:code"].removeprefix("EPSG:")),
            left=west,
            top=north,
            pixel_m=image.pixel_m,
            names=[image.name],
            units=[image.tensor.units],
            nodata=image.nodata,
            cog=True,
        )
