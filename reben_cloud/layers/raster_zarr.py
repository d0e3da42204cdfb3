"""Rasters in Zarr stores: read by xarray, a window at a time, and handed to GDAL.

The CRS is what CF says (a grid mapping, ``spatial_ref``) or the ``proj:`` attributes of GeoZarr; places come
from the coordinates, which must be evenly spaced pixel centres, from ``spatial:transform`` or from GDAL's
``GeoTransform``. Values are taken as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from reben_cloud.errors import SourceError
from reben_cloud.layers.raster_files import (
    BandFacts,
    Cut,
    Raster,
    RasterFacts,
    Wanted,
    import_rasterio,
    window_of,
)
from reben_cloud.layers.squares import Square

if TYPE_CHECKING:
    from rasterio.crs import CRS
    from rasterio.transform import Affine

_MARKERS = ("zarr.json", ".zgroup", ".zmetadata")
_AXES = (("y", "x"), ("lat", "lon"), ("latitude", "longitude"), ("northing", "easting"))


def is_zarr(path: str) -> bool:
    """Whether a path or URL is a Zarr store: by its files, or where they cannot be looked for, by its name."""
    return Path(path).suffix[1:] == "zarr" or any(Path(path, name).is_file() for name in _MARKERS)


@contextmanager
def open_zarr(path: str) -> Iterator[Raster]:
    """Open a Zarr store.

    Raises:
        SourceError: If it is none, or its variables are not bands of one raster.
    """
    try:
        stack = xr.open_zarr(path, mask_and_scale=False, decode_times=False, chunks=None)
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"{path}: not a Zarr store that xarray reads ({str(error).splitlines()[0]})"
        ) from error
    with stack:
        yield _ZarrRaster(path, stack)


class _ZarrRaster:
    def __init__(self, path: str, stack: xr.Dataset) -> None:
        self._path = path
        self._axes = _spatial_axes(path, stack)
        self._bands = _bands(path, stack, self._axes)
        variables = [variable for _, variable in self._bands]
        self._shape = variables[0].shape
        attributes = [variables[0].attrs, stack.attrs]
        mapping = _grid_mapping(stack, variables[0])
        self.facts = RasterFacts(
            bands=tuple(
                BandFacts(
                    name=name,
                    index=index,
                    dtype=variable.dtype.name,
                    nodata=_nodata(variable),
                    is_scaled=not {"scale_factor", "add_offset"}.isdisjoint(variable.attrs),
                )
                for index, (name, variable) in enumerate(self._bands, 1)
            ),
            crs=_crs(path, mapping, attributes),
            transform=_transform(path, stack, self._axes, mapping, attributes),
            shifted=None,
        )

    @contextmanager
    def around(self, squares: Sequence[Square], wanted: Wanted) -> Iterator[Cut | None]:
        rasterio = import_rasterio()
        assert self.facts.crs is not None
        assert self.facts.transform is not None
        window = window_of(squares, wanted, self.facts.crs, self.facts.transform)
        if window is None:
            yield None
            return
        rows, columns = (
            slice(max(0, wish.start), min(n, wish.stop)) for wish, n in zip(window, self._shape, strict=True)
        )
        if rows.start >= rows.stop or columns.start >= columns.stop:
            yield None
            return
        y, x = self._axes
        try:
            pixels = np.stack(
                [self._bands[n - 1][1].isel({y: rows, x: columns}).to_numpy() for n in wanted.bands]
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SourceError(f"{self._path}: cannot be read ({str(error).splitlines()[0]})") from error
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        transform = self.facts.transform @ rasterio.Affine.translation(columns.start, rows.start)
        with rasterio.MemoryFile() as memory:
            with memory.open(
                driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
                dtype=pixels.dtype.name, crs=self.facts.crs, transform=transform, photometric="minisblack",
            ) as file:  # fmt: skip
                file.write(pixels)
            with memory.open() as file:
                yield Cut(file, tuple(range(1, len(pixels) + 1)), is_whole=(rows, columns) == window)


def _spatial_axes(path: str, stack: xr.Dataset) -> tuple[str, str]:
    """Names of the dimensions that run along y and x."""
    said = stack.attrs.get("spatial:dimensions")
    pairs = ([tuple(said)] if isinstance(said, list | tuple) and len(said) == 2 else []) + list(_AXES)
    names = {str(name) for name in stack.dims}
    for pair in pairs:
        if names.issuperset(pair):
            return pair
    raise SourceError(
        f"{path}: none of its dimensions ({', '.join(sorted(names))}) are those of an image, "
        "such as y and x, or lat and lon"
    )


def _bands(path: str, stack: xr.Dataset, axes: tuple[str, str]) -> list[tuple[str, xr.DataArray]]:
    """The images in a store by name: its variables, or the planes of the only variable."""
    spatial = {str(n): v for n, v in stack.data_vars.items() if set(axes) <= set(v.dims)}
    flat = [(name, variable.transpose(*axes)) for name, variable in spatial.items() if variable.ndim == 2]
    if flat and len(flat) == len(spatial):
        return flat
    if len(spatial) == 1:
        ((name, variable),) = spatial.items()
        others = [dim for dim in variable.dims if dim not in axes]
        if len(others) == 1:
            dim = others[0]
            variable = variable.transpose(dim, *axes)
            labels = variable[dim].values.tolist() if dim in variable.coords else range(1, len(variable) + 1)
            if len(variable) == 1:
                labels = [name]
            return [(str(label), variable[n]) for n, label in enumerate(labels)]
    shapes = ", ".join(f"{name}({', '.join(map(str, v.dims))})" for name, v in stack.data_vars.items())
    raise SourceError(
        f"{path}: must have images ({', '.join(axes)}), or one variable of three dimensions; it has {shapes or 'none'}"
    )


def _nodata(variable: xr.DataArray) -> float | None:
    value = variable.attrs.get("_FillValue", variable.attrs.get("missing_value"))
    return None if value is None else float(np.asarray(value).reshape(-1)[0])


def _grid_mapping(stack: xr.Dataset, variable: xr.DataArray) -> Mapping[str, Any]:
    """Attributes of the variable that says the CRS, as CF has it."""
    said = str(variable.attrs.get("grid_mapping") or variable.encoding.get("grid_mapping") or "spatial_ref")
    name = said.split(":")[0].strip()  # the extended form is "crs: y x"
    return stack.variables[name].attrs if name in stack.variables else {}


def _crs(path: str, mapping: Mapping[str, Any], attributes: Sequence[Mapping[str, Any]]) -> CRS | None:
    import pyproj

    rasterio = import_rasterio()
    said: Any = mapping.get("crs_wkt") or mapping.get("spatial_ref") or (dict(mapping) or None)
    for found in attributes:
        said = said or next(
            (
                found[name]
                for name in ("proj:code", "proj:wkt2", "proj:projjson", "proj:epsg")
                if found.get(name)
            ),
            None,
        )
    if said is None:
        return None
    try:
        is_cf = isinstance(said, dict) and "grid_mapping_name" in said
        crs = pyproj.CRS.from_cf(said) if is_cf else pyproj.CRS.from_user_input(said)
        return rasterio.CRS.from_wkt(crs.to_wkt())
    except (pyproj.exceptions.CRSError, rasterio.errors.CRSError) as error:
        raise SourceError(
            f"{path}: its CRS is none that PROJ knows ({str(error).splitlines()[0]})"
        ) from error


def _transform(
    path: str,
    stack: xr.Dataset,
    axes: tuple[str, str],
    mapping: Mapping[str, Any],
    attributes: Sequence[Mapping[str, Any]],
) -> Affine | None:
    affine = import_rasterio().Affine
    if all(axis in stack.coords and stack[axis].ndim == 1 for axis in axes):
        (top, down), (left, right) = (_even(path, axis, stack[axis].to_numpy()) for axis in axes)
        return affine(right, 0, left, 0, down, top)
    for found in attributes:
        if found.get("spatial:transform"):
            return affine(*found["spatial:transform"][:6])
    if mapping.get("GeoTransform"):
        return affine.from_gdal(*map(float, str(mapping["GeoTransform"]).split()))
    return None


def _even(path: str, axis: str, centres: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The edge before the first of some pixel centres, and their distance."""
    places = centres.astype(np.float64)
    if len(places) < 2:
        raise SourceError(f"{path}: {axis} has {len(places)} coordinate, so its pixels have no size")
    step = (places[-1] - places[0]) / (len(places) - 1)
    if not step or np.abs(np.diff(places) - step).max() > 0.01 * abs(step):
        raise SourceError(f"{path}: the coordinates along {axis} are not evenly spaced")
    return float(places[0] - step / 2), float(step)
