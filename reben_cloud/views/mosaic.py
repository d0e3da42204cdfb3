"""The patches of a product laid out as one raster.

Nothing is read before values are asked for; a window then reads the Zarr shards of the patches that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from reben_cloud.errors import NotFoundError
from reben_cloud.formats import zarr
from reben_cloud.root import layout
from reben_cloud.root.documents import get_checked
from reben_cloud.root.objects import WrittenObject
from reben_cloud.schema import ArraySpec, Schema, TensorSpec
from reben_cloud.store import Store
from reben_cloud.views.axes import Image, pixel_centres, selectable
from reben_cloud.views.layers import LayerRecords


def mosaic(
    store: Store,
    product: str,
    listed: Mapping[str, WrittenObject],
    stack: xr.Dataset,
    layers: Mapping[str, LayerRecords],
    *,
    bands: Sequence[str],
    bbox: Sequence[float] | None,
    schema: Schema,
) -> xr.DataArray:
    """The patches of a product as one raster, (band, y, x), lazy.

    Args:
        store: The root.
        product: Name of the product.
        listed: Path of each object of its store -> what the root lists of it.
        stack: The product's opened store.
        layers: Array layers by name, with their records for its patches.
        bands: Tensors of one array of images, or the name of an array that is an image itself.
        bbox: West, south, east, north in degrees; the raster is cut to whole patches that touch it.
        schema: Of the dataset.

    Returns:
        The raster; the array's fill value where no patch lies, which ``_FillValue`` says.

    Raises:
        ValueError: If the bands are of several arrays, unknown, or not images.
        NotFoundError: If no patch of the product touches `bbox`.
    """
    array, numbers, tensor = _array_of(bands, schema)
    if array.zarr_name not in stack:
        names = ", ".join(map(str, stack.data_vars))
        raise NotFoundError(f"{store.url} has no {array.zarr_name}; it has {names}")
    side = schema.patch_m
    x0, y0 = stack.x0.values, stack.y0.values
    inside = np.ones(len(x0), bool) if bbox is None else _touching(stack, x0, y0, bbox, side)
    if not inside.any():
        raise NotFoundError(f"no patch of {product} touches bbox {','.join(map(str, bbox or ()))}")
    west, north = float(x0[inside].min()), float(y0[inside].max())
    column = ((x0[inside] - west) // side).astype(np.int64)
    line = ((north - y0[inside]) // side).astype(np.int64)
    rows = np.full((int(line.max()) + 1, int(column.max()) + 1), -1, np.int64)
    rows[line, column] = np.flatnonzero(inside)
    owner = schema.owner(array.zarr_name)[0]
    stored = zarr.pixel_array(owner, array)
    read: Callable[[NDArray[np.int64]], NDArray[Any]] = _ZarrPixels(store, product, listed, stored).read
    if owner.name in layers:
        read = partial(layers[owner.name].read, array)
    lazy = _MosaicArray(read, stored, numbers, rows)
    step = side / tensor.shape[-1]
    step = int(step) if step.is_integer() else step
    units = {"units": tensor.units} if tensor.units else {}
    found = xr.DataArray(
        indexing.LazilyIndexedArray(lazy),
        dims=("band", "y", "x"),
        coords={
            "band": ("band", list(bands)),
            **pixel_centres(west, north, Image("y", "x", *lazy.shape[1:], step)),
            "spatial_ref": ((), 0, dict(stack.spatial_ref.attrs)),
        },
        name=array.zarr_name,
        attrs={**units, "grid_mapping": "spatial_ref", "_FillValue": tensor.fill},
    )
    # GDAL's way of writing a transform, which rioxarray reads before it looks at coordinates.
    found.coords["spatial_ref"].attrs["GeoTransform"] = f"{west} {step} 0 {north} 0 -{step}"
    return found


def _array_of(bands: Sequence[str], schema: Schema) -> tuple[ArraySpec, list[int], TensorSpec]:
    """The array that holds all of `bands`, their positions in it, and what each of them is like."""
    arrays = {
        name: entry
        for name, entry in selectable(schema).items()
        if entry[0].tensor_of(entry[1]).pixel_m is not None and len(entry[0].tensor_of(entry[1]).shape) == 2
    }
    owners = {band: (m, m.tensor_of(a)) for m, a, names in arrays.values() for band in names}
    unknown = [band for band in bands if band not in owners]
    if unknown or not bands:
        raise ValueError(f"unknown band {unknown[0] if unknown else ''!r}; known are {', '.join(owners)}")
    for modality, array, names in arrays.values():
        if all(band in names for band in bands):
            return array, [names.index(band) for band in bands], modality.tensor_of(array)
    sizes = ", ".join(f"{b} {owners[b][0].name} {owners[b][1].pixel_m:g} m" for b in bands)
    raise ValueError(
        f"the bands of a mosaic must have one sensor and pixel size, got {sizes}; make one of each"
    )


def _touching(
    stack: xr.Dataset, x0: NDArray[np.float64], y0: NDArray[np.float64], bbox: Sequence[float], side: float
) -> NDArray[np.bool_]:
    from pyproj import CRS, Transformer

    west, south, east, north = bbox
    to_utm = Transformer.from_crs(4326, CRS.from_cf(stack.spatial_ref.attrs), always_xy=True)
    left, bottom, right, top = to_utm.transform_bounds(west, south, east, north)
    return np.asarray((x0 < right) & (x0 + side > left) & (y0 - side < top) & (y0 > bottom))


class _MosaicArray(BackendArray):
    """Patches laid out on their grid; a window reads the patches it touches.

    Args:
        read: Pixels of rows of the product, (n, y, x) or (n, band, y, x).
        array: What they are.
        numbers: The bands that are wanted.
        rows: Row of the patch at each place of the grid, -1 where there is none.
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], NDArray[Any]],
        array: zarr.PixelArray,
        numbers: list[int],
        rows: NDArray[np.int64],
    ) -> None:
        self.read, self.array = read, array
        self.numbers, self.rows = numbers, rows
        self.height, self.width = array.shape[-2:]
        self.shape = (len(numbers), rows.shape[0] * self.height, rows.shape[1] * self.width)
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._window
        )

    def _window(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        """Pixels of integers and slices, any step."""
        bands, ys, xs = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        y, x = np.atleast_1d(ys), np.atleast_1d(xs)
        wanted = self.rows[np.ix_(np.unique(y // self.height), np.unique(x // self.width))].ravel()
        patches = self._patches(wanted[wanted >= 0])
        out = np.full((np.size(bands), len(y), len(x)), self.array.fill_value, self.dtype)
        for row, pixels in patches.items():
            line, column = np.argwhere(self.rows == row)[0]
            in_y, in_x = (
                np.flatnonzero(y // self.height == line),
                np.flatnonzero(x // self.width == column),
            )
            part = pixels[np.ix_(np.atleast_1d(bands), y[in_y] % self.height, x[in_x] % self.width)]
            out[:, in_y[:, None], in_x] = part
        return out.reshape(
            [np.size(axis) for axis, k in zip((bands, ys, xs), key, strict=True) if isinstance(k, slice)]
        )

    def _patches(self, rows: NDArray[np.int64]) -> dict[int, NDArray[Any]]:
        """Row -> pixels (band, y, x) of the wanted bands."""
        pixels = self.read(rows)
        pixels = pixels if pixels.ndim == 4 else pixels[:, None]
        return dict(zip(rows.tolist(), pixels[:, self.numbers], strict=True))


class _ZarrPixels(NamedTuple):
    """An array of a product's Zarr store; one request a Zarr shard."""

    store: Store
    product: str
    listed: Mapping[str, WrittenObject]
    array: zarr.PixelArray

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Pixels of rows of the product, (len(rows), *shape of a patch)."""
        found = np.empty((len(rows), *self.array.shape), self.array.dtype)
        number = rows // zarr.PATCHES_PER_ZARR_SHARD
        for shard in np.unique(number).tolist():
            path = layout.zarr_shard(self.product, self.array.name, shard, ndim=len(self.array.shape))
            inner = rows[number == shard] % zarr.PATCHES_PER_ZARR_SHARD
            found[number == shard] = get_checked(self.store, path, partial(self._decode, path, inner))
        return found

    def _decode(self, path: str, rows: NDArray[np.int64], data: memoryview) -> NDArray[Any]:
        name = f"{self.store.url}/{path}"
        pixels = zarr.decode_shard(self.array, data, rows=rows, name=name)
        # A shard of another root is as sound as its own.
        self.listed[path.removeprefix(f"{layout.zarr_store(self.product)}/")].require(data, name=name)
        return pixels
