"""Rasters that GDAL opens: what they say of themselves, checked as far as a file can be wrong."""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from reben_cloud.errors import SourceError, missing_extra
from reben_cloud.layers.squares import Square

_KERNEL_PX = 4
"""Pixels beside a place that an interpolation may look at; Lanczos looks at 3."""

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from rasterio.io import DatasetReader
    from rasterio.transform import Affine


@dataclass(frozen=True, kw_only=True, slots=True)
class BandFacts:
    """One band of a raster."""

    name: str
    """Its description, or its number."""
    index: int
    """Its number, from 1."""
    dtype: str
    """NumPy dtype of its values."""
    nodata: float | None
    """Value that stands for none."""
    is_scaled: bool
    """Whether what it holds must be multiplied or shifted to be what it means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterFacts:
    """What a raster says of itself."""

    bands: tuple[BandFacts, ...]
    """Its bands, without a mask (alpha)."""
    crs: CRS | None
    """Its CRS, if it says one."""
    transform: Affine | None
    """From columns and rows to coordinates, if it says where it is."""
    shifted: str | None
    """What shifts its own pixels and what to do about it, in words; None where nothing does."""


class Wanted(NamedTuple):
    """What is wanted of a raster."""

    bands: tuple[int, ...]
    """Numbers of the bands, from 1."""
    side_m: float
    """Side of a square, metres."""
    pixel_m: float
    """Side of a pixel to be made, metres."""


class Cut(NamedTuple):
    """A part of a raster that is large enough for some squares, or all of it."""

    dataset: DatasetReader
    """As GDAL has it."""
    bands: tuple[int, ...]
    """Numbers of the wanted bands in it."""
    is_whole: bool
    """Whether it covers all of the squares and has no mask: every pixel has a value, if it is not nodata."""


class Raster(Protocol):
    """An open raster, for one thread."""

    @property
    def facts(self) -> RasterFacts:
        """What it says of itself."""
        ...

    def around(self, squares: Sequence[Square], wanted: Wanted) -> AbstractContextManager[Cut | None]:
        """What pixels of these squares need; None where the raster has nothing there.

        Raises:
            SourceError: If it cannot be read.
        """
        ...


def import_rasterio() -> Any:
    """The package that reads rasters.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        import rasterio
        import rasterio.vrt
        import rasterio.warp
    except ImportError as error:
        raise missing_extra("rasterio", "geo") from error
    return rasterio


def unreadable(path: str, error: Exception) -> SourceError:
    """The error to raise for one of GDAL's, which often names its cause only in the one before."""
    cause = error.__cause__ or error
    return SourceError(f"{path}: cannot be read ({str(cause).splitlines()[0]})")


@contextmanager
def open_gdal(path: str) -> Iterator[Raster]:
    """Open what GDAL opens.

    Raises:
        SourceError: If it does not.
    """
    rasterio = import_rasterio()
    try:
        with warnings.catch_warnings():
            # Said by an error of ours.
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            dataset = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise unreadable(path, error) from error
    with dataset:
        yield _GdalRaster(dataset)


class _GdalRaster:
    def __init__(self, dataset: DatasetReader) -> None:
        self._dataset = dataset

    @property
    def facts(self) -> RasterFacts:
        file = self._dataset
        alpha = import_rasterio().enums.ColorInterp.alpha
        indexes = [n for n, kind in enumerate(file.colorinterp, 1) if kind != alpha]
        titles = [file.descriptions[n - 1] or "" for n in indexes]
        are_names = all(titles) and len(set(titles)) == len(titles)
        bands = [
            BandFacts(
                name=title if are_names else str(n),
                index=n,
                dtype=file.dtypes[n - 1],
                nodata=file.nodatavals[n - 1],
                is_scaled=(file.scales[n - 1], file.offsets[n - 1]) != (1, 0),
            )
            for n, title in zip(indexes, titles, strict=True)
        ]
        return RasterFacts(
            bands=tuple(bands),
            crs=file.crs,
            transform=None if file.transform.is_identity else file.transform,
            shifted=_shifted(file),
        )

    def around(self, squares: Sequence[Square], wanted: Wanted) -> AbstractContextManager[Cut | None]:
        file = self._dataset
        window = window_of(squares, wanted, file.crs, file.transform)
        if window is None:
            return nullcontext(Cut(file, wanted.bands, is_whole=False))
        rows, columns = window
        if rows.start >= file.height or rows.stop <= 0 or columns.start >= file.width or columns.stop <= 0:
            return nullcontext(None)
        is_inside = (
            rows.start >= 0 <= columns.start and rows.stop <= file.height and columns.stop <= file.width
        )
        no_mask = (import_rasterio().enums.MaskFlags.all_valid,)
        is_whole = is_inside and all(tuple(file.mask_flag_enums[n - 1]) == no_mask for n in wanted.bands)
        return nullcontext(Cut(file, wanted.bands, is_whole))


def window_of(
    squares: Sequence[Square], wanted: Wanted, crs: CRS, transform: Affine
) -> tuple[slice, slice] | None:
    """Rows and columns of a raster that squares of one CRS need, also beyond its edges.

    None where the raster's CRS has no such places.
    """
    rasterio = import_rasterio()
    west, east = min(s.left for s in squares), max(s.left for s in squares) + wanted.side_m
    south, north = min(s.top for s in squares) - wanted.side_m, max(s.top for s in squares)
    mine = rasterio.CRS.from_epsg(squares[0].epsg)
    try:
        bounds = rasterio.warp.transform_bounds(mine, crs, west, south, east, north)
    except rasterio.errors.RasterioError:
        return None
    if not all(map(math.isfinite, bounds)):
        return None
    left, bottom, right, top = bounds
    is_across = left > right  # the antimeridian
    (c0, r0), (c1, r1) = (
        (~transform) @ corner for corner in ((left, top), (right + 360 * is_across, bottom))
    )
    # Kernels are as much wider as the pixels to be made are larger than the raster's.
    ratio = wanted.pixel_m * max(abs(c1 - c0) / (east - west), abs(r1 - r0) / (north - south))
    more = _KERNEL_PX * max(1.0, ratio) + 1
    if is_across:
        # Columns at both ends of a raster of the world, so all between them.
        (c0, _), (c1, _) = ((~transform) @ (longitude, top) for longitude in (-540.0, 540.0))
    rows, columns = (
        slice(math.floor(min(a, b) - more), math.ceil(max(a, b) + more)) for a, b in ((r0, r1), (c0, c1))
    )
    return rows, columns


def _shifted(file: DatasetReader) -> str | None:
    """Whether a VRT takes the nearest pixels of tiles whose pixels have another size than its own.

    ``gdalbuildvrt`` makes such a mosaic, without a word, of tiles whose width depends on the latitude, as those
    of the Copernicus elevation model: values are then up to half a pixel from their place.
    """
    if file.driver != "VRT":
        return None
    document = file.tags(ns="xml:VRT").get("xml:VRT", "")
    scaled = 0
    for source in ET.fromstring(document).iter():  # noqa: S314  GDAL has parsed it before us
        inside, outside = source.find("SrcRect"), source.find("DstRect")
        if (
            inside is None
            or outside is None
            or source.get("resampling", "nearest").lower() not in ("nearest", "near")
        ):
            continue
        sides = [(float(inside.get(s, 1)), float(outside.get(s, 1))) for s in ("xSize", "ySize")]
        scaled += any(abs(a - b) > 1e-3 * b for a, b in sides)
    if not scaled:
        return None
    return (
        f"this VRT brings {scaled:,} of its tiles to another pixel size by taking the nearest pixel, which shifts "
        "what is to be interpolated; make it again with gdalbuildvrt -r bilinear -resolution highest"
    )
