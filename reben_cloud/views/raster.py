"""Georeferenced views of a product's Zarr store: one patch, or the patches laid out as one raster.

Coordinates are pixel centres in the product's UTM zone, the CRS stands in ``spatial_ref`` as CF has
it, so rioxarray, GDAL and QGIS agree where a pixel is. Nothing is read before values are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import ARRAYS, BANDS, PATCH_M
from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.formats import zarr
from reben_cloud.root.backing import RootObjects
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.documents import get_checked
from reben_cloud.root.patches import check_names
from reben_cloud.root.selection import Selection
from reben_cloud.root.zarr_store import ListedStore
from reben_cloud.search.arguments import parse_box, parse_names
from reben_cloud.store import Store

_AXES = {60: ("y60", "x60"), 20: ("y20", "x20"), 10: ("y", "x")}
"""Pixel size in metres -> names of the dimensions in a product's store."""

MAX_XARRAY = 1_000
"""Most patches of `stack_patches`: 0.3 GB in memory, and as many chunks of each array for Dask."""


def open_product(dataset: Dataset, product: str) -> xr.Dataset:
    """A product's Zarr store; see `Dataset.open_zarr`."""
    if not isinstance(dataset.backing, RootObjects):
        raise NotFoundError(f"{dataset.url} is an LMDB and has no Zarr stores; open the root for that")
    if product not in dataset.products:
        raise NotFoundError(
            f"{dataset.url} has no product {product!r}; `Dataset.products` lists its {len(dataset.products)}"
        )
    place = f"zarr/{product}.zarr"
    store = ListedStore(dataset.store.child(place), dataset.listed(f"{place}/"))
    stack: xr.Dataset = xr.open_zarr(store, zarr_format=3, consolidated=True)
    return stack


def open_patch(dataset: Dataset, patch_id: str) -> xr.Dataset:
    """One patch with coordinates and CRS; see `Dataset.open_patch`."""
    if not isinstance(patch_id, str):
        raise TypeError(
            f"open_patch takes one patch id, got {patch_id!r}; see Selection.to_xarray for several"
        )
    row = dataset.search(ids=patch_id).column("reben:zarr_row")[0].as_py()
    stack = open_product(dataset, grid.product_of(patch_id))
    check_rows(stack, [row], [patch_id], url=dataset.url)
    return patch_view(stack, row)


def open_mosaic(
    dataset: Dataset, product: str, *, bands: str | Sequence[str], bbox: str | Sequence[float] | None
) -> xr.DataArray:
    """The patches of a product as one raster; see `Dataset.mosaic`."""
    box = None if bbox is None else parse_box(bbox)
    names = parse_names(bands, "bands")
    return mosaic(dataset.store, product, open_product(dataset, product), bands=names, bbox=box)


def stack_patches(selection: Selection, bands: str | Iterable[str] | None) -> xr.Dataset:
    """The pixels of a handful of patches along ``patch``; see `Selection.to_xarray`."""
    names = None if bands is None else parse_names(bands, "bands")
    if len(selection) > MAX_XARRAY:
        raise ValueError(
            f"to_xarray is for a handful of patches, {MAX_XARRAY:,} at most, and these are {len(selection):,}: "
            "search with limit=, open whole products (Dataset.open_zarr, mosaic), or stream batches (StreamLoader)"
        )
    selection.require_patches("nothing to stack")
    dataset = selection.dataset
    table = selection.columns(["id", "reben:product", "reben:zarr_row", "reben:labels"])
    products = [str(name) for name in table.column("reben:product").to_pylist()]
    stacks = {product: open_product(dataset, product) for product in sorted(set(products))}
    rows = table.column("reben:zarr_row").to_numpy().astype(np.int64)
    ids = np.array(table.column("id").to_pylist(), object)
    for product, stack in stacks.items():
        mine = np.flatnonzero(np.asarray(products) == product)
        check_rows(stack, rows[mine].tolist(), ids[mine].tolist(), url=dataset.url)
    found = patches_view(stacks, products, rows, bands=names)
    labels = ["; ".join(names) for names in table.column("reben:labels").to_pylist()]
    return found.assign_coords(
        patch_id=("patch", ids),
        time=found.time.compute(),
        label_names=("patch", np.array(labels, object)),
    )


def patch_view(stack: xr.Dataset, row: int) -> xr.Dataset:
    """One patch of a product's store, with x and y coordinates for each pixel size.

    Args:
        stack: The opened store, dimension ``patch`` and coordinates ``x0``, ``y0``.
        row: Row of the patch.
    """
    patch = stack.isel(patch=row)
    x0, y0 = float(patch.x0), float(patch.y0)
    coordinates: dict[str, Any] = {}
    for step, (y, x) in _AXES.items():
        if x in patch.dims:
            count = PATCH_M // step
            coordinates |= _pixel_centres(x0, y0, count, count, step, (y, x))
    return patch.assign_coords(coordinates)


def check_rows(stack: xr.Dataset, rows: Sequence[int], patch_ids: Sequence[str], *, url: str) -> None:
    """See that patches are where the table says they are.

    Args:
        stack: The opened store of their product.
        rows: Row of each patch in it.
        patch_ids: Their ids.
        url: The root, for the error.

    Raises:
        ChecksumError: If a row does not exist, or holds another patch.
    """
    names = stack.patch_id.values
    for row, patch_id in zip(rows, patch_ids, strict=True):
        there = str(names[row]) if 0 <= row < len(names) else "nothing"
        if there != patch_id:
            raise ChecksumError(
                f"{url}: patches.parquet has {patch_id} in row {row} of its product's Zarr store, which has {there} "
                "there; the root is damaged, `reben-cloud verify` says what else is"
            )


def patches_view(
    stacks: Mapping[str, xr.Dataset],
    products: Sequence[str],
    rows: NDArray[np.int64],
    *,
    bands: Sequence[str] | None,
) -> xr.Dataset:
    """Patches of several products along one dimension, lazy.

    A coordinate named as its dimension can only have that one, and each patch has its own: the pixel
    centres are ``easting`` (patch, x) and ``northing`` (patch, y), of 20 m ``easting20``, of 60 m
    ``easting60``, metres in the CRS that ``crs`` (patch) names.

    Args:
        stacks: Product -> its opened store.
        products: Product of each patch, (n,).
        rows: Row of each patch in its product's store, (n,).
        bands: Bands, polarizations and ``reference_map`` that are wanted; all when None.

    Raises:
        ValueError: If a band is unknown, or comes twice.
        NotFoundError: If the stores lack one.
    """
    names = np.asarray(products)
    places = {product: np.flatnonzero(names == product) for product in stacks}
    parts = []
    for product, stack in stacks.items():
        mine = _with_bands(stack, bands).isel(patch=rows[places[product]])
        crs = np.full(mine.sizes["patch"], stack.attrs["proj:code"], object)
        parts.append(mine.drop_vars("spatial_ref").assign_coords(crs=("patch", crs)))
    found = xr.concat(
        parts,
        "patch",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    found = found.isel(patch=np.argsort(np.concatenate(list(places.values())), kind="stable"))
    # Title, CRS and chunks are those of a product's store.
    found = found.drop_encoding()
    found.attrs.clear()
    for variable in found.variables.values():
        variable.attrs.pop("grid_mapping", None)
    coordinates: dict[str, Any] = {}
    for step, (y, x) in _AXES.items():
        if x in found.dims:
            centres = (np.arange(PATCH_M // step) + 0.5) * step
            suffix = x.removeprefix("x")
            units = {"units": "m"}
            coordinates[f"easting{suffix}"] = (("patch", x), found.x0.values[:, None] + centres, units)
            coordinates[f"northing{suffix}"] = (("patch", y), found.y0.values[:, None] - centres, units)
    return found.assign_coords(coordinates)


def _with_bands(stack: xr.Dataset, bands: Sequence[str] | None) -> xr.Dataset:
    """A product's store with these bands only, in this order; an array without any is left out."""
    if bands is None:
        return stack
    known = (*BANDS, zarr.REFERENCE_MAP)
    check_names(bands, known, "band")
    if len(set(bands)) < len(bands) or not bands:
        raise ValueError(f"bands must be one or more different names, got {', '.join(bands) or 'none'}")
    chosen = {array: [band for band in bands if band in names] for array, names in ARRAYS.items()}
    chosen[zarr.REFERENCE_MAP] = [band for band in bands if band == zarr.REFERENCE_MAP]
    for array, names in chosen.items():
        if names and array not in stack:
            raise NotFoundError(f"the dataset has no {array}, so no {', '.join(names)}")
    stack = stack.drop_vars([array for array, names in chosen.items() if not names], errors="ignore")
    wanted = {
        str(stack[array].dims[1]): names
        for array, names in chosen.items()
        if names and array != zarr.REFERENCE_MAP
    }
    unused = {
        str(d) for d in stack.coords if d in ("band", "band20", "band60", "polarization")
    } - wanted.keys()
    return stack.drop_vars(unused).sel(wanted)


def _pixel_centres(
    west: float, north: float, height: int, width: int, step: int, axes: tuple[str, str]
) -> dict[str, Any]:
    y, x = axes
    attributes = {
        x: {"standard_name": "projection_x_coordinate", "units": "m", "axis": "X"},
        y: {"standard_name": "projection_y_coordinate", "units": "m", "axis": "Y"},
    }
    return {
        x: (x, west + (np.arange(width) + 0.5) * step, attributes[x]),
        y: (y, north - (np.arange(height) + 0.5) * step, attributes[y]),
    }


def mosaic(
    store: Store, product: str, stack: xr.Dataset, *, bands: Sequence[str], bbox: Sequence[float] | None
) -> xr.DataArray:
    """The patches of a product as one raster, (band, y, x), lazy.

    Args:
        store: The root.
        product: Name of the product.
        stack: The product's opened store.
        bands: Band names of one pixel size, or ``reference_map`` alone.
        bbox: West, south, east, north in degrees; the raster is cut to whole patches that touch it.

    Returns:
        The raster; 0 (Sentinel-1: NaN) where no patch lies, which ``_FillValue`` says.

    Raises:
        ValueError: If the bands have several pixel sizes or sensors, or are unknown.
        NotFoundError: If no patch of the product touches `bbox`.
    """
    array, numbers = _array_of(bands)
    if array not in stack:
        raise NotFoundError(f"{store.url} has no {array}; it has {', '.join(map(str, stack.data_vars))}")
    step = 10 if array == zarr.REFERENCE_MAP else BANDS[bands[0]].resolution_m
    x0, y0 = stack.x0.values, stack.y0.values
    inside = np.ones(len(x0), bool) if bbox is None else _touching(stack, x0, y0, bbox)
    if not inside.any():
        raise NotFoundError(f"no patch of {product} touches bbox {','.join(map(str, bbox or ()))}")
    west, north = float(x0[inside].min()), float(y0[inside].max())
    column = ((x0[inside] - west) // PATCH_M).astype(np.int64)
    line = ((north - y0[inside]) // PATCH_M).astype(np.int64)
    rows = np.full((int(line.max()) + 1, int(column.max()) + 1), -1, np.int64)
    rows[line, column] = np.flatnonzero(inside)
    lazy = _MosaicArray(store.child(f"zarr/{product}.zarr"), array, numbers, rows)
    spec = zarr.PIXEL_ARRAYS[array]
    found = xr.DataArray(
        indexing.LazilyIndexedArray(lazy),
        dims=("band", "y", "x"),
        coords={
            "band": ("band", list(bands)),
            **_pixel_centres(west, north, lazy.shape[1], lazy.shape[2], step, ("y", "x")),
            "spatial_ref": ((), 0, dict(stack.spatial_ref.attrs)),
        },
        name=array,
        attrs={"units": spec.units, "grid_mapping": "spatial_ref", "_FillValue": spec.fill_value},
    )
    # GDAL's way of writing a transform, which rioxarray reads before it looks at coordinates.
    found.coords["spatial_ref"].attrs["GeoTransform"] = f"{west} {step} 0 {north} 0 -{step}"
    return found


def _array_of(bands: Sequence[str]) -> tuple[str, list[int]]:
    """The array that holds all of `bands`, and their positions in it."""
    if list(bands) == [zarr.REFERENCE_MAP]:
        return zarr.REFERENCE_MAP, [0]
    unknown = [band for band in bands if band not in BANDS]
    if unknown or not bands:
        raise ValueError(
            f"unknown band {unknown[0] if unknown else ''!r}; known are {', '.join(BANDS)}, {zarr.REFERENCE_MAP}"
        )
    for array, names in ARRAYS.items():
        if all(band in names for band in bands):
            return array, [names.index(band) for band in bands]
    sizes = ", ".join(f"{band} {BANDS[band].sensor} {BANDS[band].resolution_m} m" for band in bands)
    raise ValueError(
        f"the bands of a mosaic must have one sensor and pixel size, got {sizes}; make one of each"
    )


def _touching(
    stack: xr.Dataset, x0: NDArray[np.float64], y0: NDArray[np.float64], bbox: Sequence[float]
) -> NDArray[np.bool_]:
    from pyproj import CRS, Transformer

    west, south, east, north = bbox
    to_utm = Transformer.from_crs(4326, CRS.from_cf(stack.spatial_ref.attrs), always_xy=True)
    left, bottom, right, top = to_utm.transform_bounds(west, south, east, north)
    return np.asarray((x0 < right) & (x0 + PATCH_M > left) & (y0 - PATCH_M < top) & (y0 > bottom))


class _MosaicArray(BackendArray):
    """Patches laid out on their grid; a window reads the Zarr shards of the patches it touches."""

    def __init__(self, store: Store, array: str, numbers: list[int], rows: NDArray[np.int64]) -> None:
        self.store, self.array, self.numbers, self.rows = store, array, numbers, rows
        spec = zarr.PIXEL_ARRAYS[array]
        self.patch_px = spec.shape[-1]
        self.shape = (len(numbers), rows.shape[0] * self.patch_px, rows.shape[1] * self.patch_px)
        self.dtype = spec.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._window
        )

    def _window(self, key: tuple[int | slice, ...]) -> NDArray[Any]:
        """Pixels of integers and slices, any step."""
        bands, ys, xs = (np.arange(n)[k] for n, k in zip(self.shape, key, strict=True))
        y, x = np.atleast_1d(ys), np.atleast_1d(xs)
        wanted = self.rows[np.ix_(np.unique(y // self.patch_px), np.unique(x // self.patch_px))].ravel()
        patches = self._patches(wanted[wanted >= 0])
        out = np.full((np.size(bands), len(y), len(x)), zarr.PIXEL_ARRAYS[self.array].fill_value, self.dtype)
        for row, pixels in patches.items():
            line, column = np.argwhere(self.rows == row)[0]
            in_y, in_x = (
                np.flatnonzero(y // self.patch_px == line),
                np.flatnonzero(x // self.patch_px == column),
            )
            part = pixels[np.ix_(np.atleast_1d(bands), y[in_y] % self.patch_px, x[in_x] % self.patch_px)]
            out[:, in_y[:, None], in_x] = part
        return out.reshape(
            [np.size(axis) for axis, k in zip((bands, ys, xs), key, strict=True) if isinstance(k, slice)]
        )

    def _patches(self, rows: NDArray[np.int64]) -> dict[int, NDArray[Any]]:
        """Row -> pixels (band, y, x) of the wanted bands; one request a Zarr shard."""
        found: dict[int, NDArray[Any]] = {}
        number = rows // zarr.PATCHES_PER_ZARR_SHARD
        for shard in np.unique(number).tolist():
            mine = rows[number == shard]
            path = zarr.shard_path(self.array, shard)
            inner = mine % zarr.PATCHES_PER_ZARR_SHARD
            pixels = get_checked(self.store, path, partial(self._decode, path, inner))
            pixels = pixels if pixels.ndim == 4 else pixels[:, None]
            found.update(zip(mine.tolist(), pixels[:, self.numbers], strict=True))
        return found

    def _decode(self, path: str, rows: NDArray[np.int64], data: memoryview) -> NDArray[Any]:
        return zarr.decode_shard(self.array, data, rows=rows, name=f"{self.store.url}/{path}")
