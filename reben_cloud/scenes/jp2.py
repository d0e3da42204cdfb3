"""One JPEG 2000 image of a Sentinel-2 product, compared with what the product's metadata says of it.

A damaged or foreign image is refused here, because its decoder would not: OpenJPEG fills what is missing
with zeros and a warning, and pixels alone do not tell where they were taken.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import SourceError, missing_extra

# End of the codestream. OpenJPEG fills what a damaged file lacks with a warning only.
_END_OF_CODESTREAM = b"\xff\xd9"

_DAMAGED = "the file is damaged, fetch the product again"

logger = logging.getLogger(__name__)


def read_image(
    path: Path,
    *,
    shape: tuple[int, int],
    epsg: int,
    left: int,
    top: int,
    pixel_m: int,
    checksum: tuple[str, str] | None,
    dtype: str = "uint16",
) -> NDArray[Any]:
    """All pixels of an image.

    Args:
        path: The JP2 file.
        shape: Height and width that it must have, pixels.
        epsg: CRS that it must have.
        left: West edge that it must have, metres.
        top: North edge that it must have, metres.
        pixel_m: Size of a pixel that it must have, metres.
        checksum: Algorithm (a name of `hashlib`) and hexadecimal digest of the file, None if not known.
        dtype: dtype that it must have.

    Returns:
        That dtype and shape.

    Raises:
        SourceError: If the file is damaged, or is not of this size and at this place.
    """
    try:
        import rasterio
        from rasterio.transform import from_origin
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    _check_bytes(path, checksum)
    try:
        with rasterio.open(path) as image:
            if (image.height, image.width, image.count) != (*shape, 1) or image.dtypes[0] != dtype:
                raise SourceError(
                    f"{path.name}: {image.count} band(s) of {image.height} x {image.width} {image.dtypes[0]}, "
                    f"the product's metadata says 1 of {shape[0]} x {shape[1]} {dtype}; is it of another product, "
                    "or was it resampled? fetch the product again"
                )
            _check_place(image, path.name, epsg, from_origin(left, top, pixel_m, pixel_m))
            pixels: NDArray[Any] = np.empty(shape, dtype)
            # Block by block: of a larger window GDAL decodes the blocks in threads of its own, which
            # fill a damaged one with zeros and raise nothing (GDAL 3.10); it is no faster either.
            for _, window in image.block_windows(1):
                pixels[window.toslices()] = image.read(1, window=window)
    except rasterio.errors.RasterioError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise SourceError(f"{path.name}: cannot be decoded ({reason}); {_DAMAGED}") from error
    return pixels


def _check_bytes(path: Path, checksum: tuple[str, str] | None) -> None:
    with path.open("rb") as file:
        if checksum is not None:
            algorithm, expected = checksum
            got = hashlib.file_digest(file, algorithm).hexdigest()
            if got != expected:
                raise SourceError(
                    f"{path.name}: its {algorithm} is {got}, manifest.safe says {expected}; {_DAMAGED}"
                )
        file.seek(-min(2, path.stat().st_size), os.SEEK_END)
        if file.read() != _END_OF_CODESTREAM:
            raise SourceError(f"{path.name}: no complete JPEG 2000 file; {_DAMAGED}")


def _check_place(image: Any, name: str, epsg: int, transform: Any) -> None:
    crs, found = f"EPSG:{epsg}", image.transform
    if image.crs is None and found.is_identity:
        logger.warning("%s: does not say where it lies; its place is the metadata's", name)
    elif image.crs != crs or not found.almost_equals(transform, 1e-3):
        raise SourceError(
            f"{name}: lies at ({found.c:g}, {found.f:g}) m in {image.crs}, pixels of {found.a:g} m; the product's "
            f"metadata says ({transform.c:.0f}, {transform.f:.0f}) m in {crs}, {transform.a:.0f} m; is it of another "
            "product? fetch the product again"
        )
