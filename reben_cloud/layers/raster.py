"""Any raster sampled onto the grid of every patch: a GeoTIFF, a VRT or a Zarr store, of any CRS.

A patch gets what rasterio's `WarpedVRT` with its defaults gives on the patch's own grid, bit for bit: each
square is warped alone. That is quicker than it is for many squares together, because what costs is projecting
the pixels: GDAL interpolates between the ends of a row within 0.125 source pixels, which over 1200 m is right
to 3 cm, and over larger windows to metres. So no result depends on which patches are sampled with it, in which
order, or by how many workers. A square that several patches share is warped once.

Values come from the full resolution of the raster, never from its overviews. Pixels larger than the raster's
therefore need a resampling that looks at all of them: ``average``, ``mode``, ``min``, ``max``; the
interpolations (``bilinear``, ``cubic``, ``lanczos``) widen their kernels, ``nearest`` takes one and leaves the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.grid import PATCH_M
from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path, split_scheme
from reben_cloud.formats import geotiff
from reben_cloud.layers.raster_files import (
    BandFacts,
    Cut,
    Raster,
    RasterFacts,
    Wanted,
    import_rasterio,
    open_gdal,
    unreadable,
)
from reben_cloud.layers.raster_zarr import is_zarr, open_zarr
from reben_cloud.layers.squares import Square, Squares
from reben_cloud.schema import check_names

RESAMPLINGS = (
    *("nearest", "bilinear", "cubic", "cubic_spline", "lanczos"),
    *("average", "mode", "max", "min", "med", "q1", "q3", "sum", "rms"),
)
"""Ways to get the value of a pixel from those of the raster, as rasterio names them."""

INTERPOLATIONS = frozenset(("bilinear", "cubic", "cubic_spline", "lanczos", "average", "rms"))
"""Those whose values lie between the raster's: of no use for class numbers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sampled:
    """What a raster has for some squares."""

    rows: NDArray[np.int64]
    """Their positions in the squares that were given, (n,)."""
    pixels: NDArray[Any]
    """(n, band, y, x) of the raster's dtype, north up; the fill value where there is none."""
    present: NDArray[np.bool_]
    """(n,): whether the raster has the square: every pixel of every band, or with `partial` one at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterSource:
    """How a raster is sampled; made by `open_raster`. Small and picklable: each worker opens the file for itself."""

    path: str
    """The file, VRT or Zarr store."""
    bands: tuple[str, ...]
    """What is taken of it, by name."""
    indexes: tuple[int, ...]
    """Position of each band in the raster, from 1."""
    dtype: str
    """NumPy dtype of the values."""
    resampling: str
    """One of `RESAMPLINGS`. Integers that it computes are rounded."""
    pixel_m: float
    """Side of a pixel to be made, metres; divides `side_m`."""
    side_m: float
    """Side of a square, metres."""
    nodata: float | None
    """Value of the raster that stands for none; None where every pixel has one, or a mask says which has."""
    partial: bool
    """Whether squares with values in a part only are kept."""

    @property
    def size(self) -> int:
        """Pixels along the side of a square."""
        return round(self.side_m / self.pixel_m)

    @property
    def fill(self) -> float:
        """Value of a pixel that has none: `nodata`; without one, NaN for floats and 0 for integers."""
        if self.nodata is not None:
            return self.nodata
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    def sample(self, squares: Squares) -> Sampled:
        """All of some squares, in their order; opens the raster. For many use `sample_blocks`.

        Raises:
            SourceError: If the raster cannot be read.
            ValueError: If the squares have another size than the source was made for.
        """
        return next(self.sample_blocks(squares, [np.arange(len(squares))]))

    def sample_blocks(self, squares: Squares, blocks: Iterable[NDArray[np.int64]]) -> Iterator[Sampled]:
        """Blocks of squares one after the other, in the order given; memory is that of one block.

        Opens the raster once and closes it at the end. Threads and processes may do so at the same time, each
        with blocks of its own.

        Args:
            squares: The squares of all patches.
            blocks: Rows of `squares`; those of `Squares.blocks` are neighbours, which are read quickest.

        Raises:
            SourceError: If the raster cannot be read.
            ValueError: If the squares have another size than the source was made for.
        """
        if squares.side_m != self.side_m:
            raise ValueError(
                f"{self.path} was opened for squares of {self.side_m:g} m, these have {squares.side_m:g} m"
            )
        with _opened(self.path) as raster:
            for rows in blocks:
                yield self._sample(raster, squares, np.asarray(rows, np.int64))

    def require_some(self, num_present: int, num_squares: int) -> None:
        """Refuse a raster that has none of the squares.

        Args:
            num_present: How many of them it has.
            num_squares: How many were sampled.

        Raises:
            SourceError: If it is none.
        """
        if num_squares and not num_present:
            none = "" if self.nodata is None else f", or all of it there is nodata ({self.nodata:g})"
            part = (
                ""
                if self.partial
                else "; a square counts where all its pixels have values (or any, with partial)"
            )
            raise SourceError(
                f"{self.path}: has no values for any of the {num_squares:,} patches: it lies elsewhere{none}{part}"
            )

    def _sample(self, raster: Raster, squares: Squares, rows: NDArray[np.int64]) -> Sampled:
        once, which = squares.unique(rows)
        shape = (len(once), len(self.bands), self.size, self.size)
        pixels, present = np.empty(shape, self.dtype), np.zeros(len(once), np.bool_)
        fill = pixels.dtype.type(self.fill)
        wanted = Wanted(self.indexes, self.side_m, self.pixel_m)
        at = 0
        for cell in squares.cells(once):
            neighbours = [squares[int(row)] for row in cell]
            with raster.around(neighbours, wanted) as cut:
                for square in neighbours:
                    valid = np.False_ if cut is None else self._warp(cut, square, pixels[at])
                    present[at] = valid.any() if self.partial else valid.all()
                    pixels[at] = np.where(valid & present[at], pixels[at], fill)
                    at += 1
        # Squares in the order of the rows: without a copy where that is the order already.
        same = np.array_equal(which, np.arange(len(once)))
        return Sampled(
            rows=rows, pixels=pixels if same else pixels[which], present=present if same else present[which]
        )

    def _warp(self, cut: Cut, square: Square, out: NDArray[Any]) -> NDArray[np.bool_]:
        """Fill `out` (band, y, x) with the pixels of a square; returns which of them have values, (band, y, x)."""
        nodata = {} if self.nodata is None else {"src_nodata": self.nodata, "nodata": self.nodata}
        valid = np.ones(out.shape, np.bool_)
        try:
            with self._view(cut, square, **nodata) as view:
                view.read(cut.bands, out=out)
            if self.nodata is None and not cut.is_whole:
                # A view of its own: GDAL computes other values where there is a mask to compute as well.
                alpha = import_rasterio().enums.ColorInterp.alpha
                has_mask = alpha in cut.dataset.colorinterp
                with self._view(cut, square, **({} if has_mask else {"add_alpha": True})) as view:
                    valid &= view.read(view.count) != 0
        except import_rasterio().errors.RasterioError as error:
            raise unreadable(self.path, error) from error
        if out.dtype.kind == "f":
            valid &= ~np.isnan(out)
        if self.nodata is not None:
            valid &= out != out.dtype.type(self.nodata)
        return valid

    def _view(self, cut: Cut, square: Square, **options: Any) -> Any:
        """What GDAL makes of a raster on the grid of a square."""
        rasterio = import_rasterio()
        return rasterio.vrt.WarpedVRT(
            cut.dataset,
            crs=rasterio.CRS.from_epsg(square.epsg),
            transform=rasterio.transform.from_origin(square.left, square.top, self.pixel_m, self.pixel_m),
            width=self.size,
            height=self.size,
            resampling=rasterio.enums.Resampling[self.resampling],
            **options,
        )


def open_raster(
    path: str | os.PathLike[str],
    *,
    resampling: str,
    pixel_m: float,
    side_m: float = PATCH_M,
    bands: Sequence[str] | None = None,
    nodata: float | None = None,
    partial: bool = False,
) -> RasterSource:
    """A raster to be sampled onto the grids of patches; looks at it, reads no pixels.

    Args:
        path: A GeoTIFF, a VRT or anything else that GDAL opens, or a Zarr store (a folder with ``zarr.json`` or
            ``.zgroup``); a local path, or a URL that GDAL or xarray opens.
        resampling: One of `RESAMPLINGS`.
        pixel_m: Side of a pixel to be made, metres; must divide `side_m`.
        side_m: Side of a square, metres.
        bands: Names of the bands to take, in this order: their descriptions in the file where all have one, or
            ``"1"``, ``"2"``, …; in a Zarr store variables, or the labels along the third dimension of the only
            variable. By default all.
        nodata: Value that stands for none, where the raster does not say, or says it wrongly. Gaps between the tiles
            of a VRT that says none are zeros to GDAL, and values here; gdalbuildvrt -addalpha marks them.
        partial: Keep squares that the raster covers in a part only, with `RasterSource.fill` where it has no
            values; without, such a square counts as absent. Integers need `nodata` for it.

    Raises:
        FileNotFoundError: If there is no such file.
        SourceError: If it cannot be opened, or has no CRS, no place, a rotated grid, bands of several dtypes, of
            complex or of scaled values; or if it is a VRT that shifts its own pixels and `resampling` interpolates.
        ValueError: If an argument is none of what it may be.
    """
    if resampling not in RESAMPLINGS:
        raise ValueError(f"resampling must be one of {', '.join(RESAMPLINGS)}, got {resampling!r}")
    size = round(side_m / pixel_m) if pixel_m > 0 else 0
    if not size or abs(size * pixel_m - side_m) > 1e-9 * side_m:
        raise ValueError(f"a pixel of {pixel_m:g} m does not divide the side of a patch, {side_m:g} m")
    where = os.fspath(path)
    if split_scheme(where)[0] in (None, "file"):
        where = str(_local(where))
    with _opened(where) as raster:
        facts = raster.facts
    taken = _taken(where, facts, bands)
    _check(where, facts, taken)
    if facts.shifted and resampling in INTERPOLATIONS:
        raise SourceError(f"{where}: {facts.shifted}")
    dtype = taken[0].dtype
    if nodata is None:
        nodata = _nodata(where, taken)
    elif not _holds(dtype, nodata):
        raise ValueError(f"nodata {nodata:g} is no value of {dtype}, which {where} has")
    if partial and nodata is None and np.dtype(dtype).kind != "f":
        raise ValueError(
            f"{where}: pixels without a value need one that says so, and the raster has none; give it (nodata)"
        )
    return RasterSource(
        path=where, bands=tuple(band.name for band in taken), indexes=tuple(band.index for band in taken), dtype=dtype,
        resampling=resampling, pixel_m=pixel_m, side_m=side_m, nodata=nodata, partial=partial,
    )  # fmt: skip


def _opened(path: str) -> AbstractContextManager[Raster]:
    return open_zarr(path) if is_zarr(path) else open_gdal(path)


def _local(where: str) -> Path:
    path = local_path(where, "the raster")
    # GDAL's own file systems (`/vsizip/…`) are not of this machine's.
    if not path.exists() and not where.startswith("/vsi"):
        raise FileNotFoundError(f"{path}: no such raster")
    return path


def _taken(where: str, facts: RasterFacts, names: Sequence[str] | None) -> Sequence[BandFacts]:
    if names is None:
        return facts.bands
    known = {band.name: band for band in facts.bands}
    check_names(names, list(known), f"band of {where}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"bands must be different names, at least one, got {', '.join(names) or 'none'}")
    return [known[name] for name in names]


def _check(where: str, facts: RasterFacts, bands: Sequence[BandFacts]) -> None:
    """Refuse a raster whose pixels have no clear place or value."""
    if not bands:
        raise SourceError(f"{where}: has no band of values")
    if facts.crs is None:
        raise SourceError(
            f"{where}: says no CRS; give it one (gdal_edit -a_srs EPSG:CODE, or a VRT that has it)"
        )
    if facts.transform is None:
        raise SourceError(f"{where}: does not say where its pixels are; give it a place (gdal_edit -a_ullr)")
    if facts.transform.b or facts.transform.d:
        raise SourceError(f"{where}: its grid is rotated; bring it to a straight one first (gdalwarp)")
    if scaled := [band.name for band in bands if band.is_scaled]:
        raise SourceError(
            f"{where}: band {scaled[0]} has a scale or an offset, which a layer does not carry; apply it first "
            "(gdal_translate -unscale -ot Float32)"
        )
    if len(dtypes := sorted({band.dtype for band in bands})) > 1:
        raise SourceError(
            f"{where}: its bands have several dtypes ({', '.join(dtypes)}), and a layer has one; take some of them "
            "(bands)"
        )
    if dtypes[0] not in geotiff.DTYPES:
        raise SourceError(
            f"{where}: its values are {dtypes[0]}, must be one of {', '.join(sorted(geotiff.DTYPES))}"
        )


def _nodata(where: str, bands: Sequence[BandFacts]) -> float | None:
    said = {repr(band.nodata): band.nodata for band in bands}  # NaN equals itself here
    if len(said) > 1:
        raise SourceError(
            f"{where}: its bands have different nodata values ({', '.join(said)}); take some of them (bands), or give "
            "the one that counts (nodata)"
        )
    (value,) = said.values()
    return value


def _holds(dtype: str, value: float) -> bool:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return True
    limits = np.iinfo(kind)
    return bool(float(value).is_integer() and limits.min <= value <= limits.max)
