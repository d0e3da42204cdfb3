"""Georeferenced views of products' Zarr stores: one patch, or some patches stacked.

Coordinates are pixel centres in the product's UTM zone, the CRS stands in ``spatial_ref`` as CF has
it, so rioxarray, GDAL and QGIS agree where a pixel is. Nothing is read before values are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.root import layout
from reben_cloud.schema import Schema, check_names
from reben_cloud.views.axes import images, pixel_centres, selectable


def patch_view(stack: xr.Dataset, row: int, *, schema: Schema) -> xr.Dataset:
    """One patch of a product's store, with x and y coordinates for each pixel size.

    Args:
        stack: The opened store, dimension ``patch`` and coordinates ``x0``, ``y0``.
        row: Row of the patch.
        schema: Of the dataset.
    """
    patch = stack.isel(patch=row)
    x0, y0 = float(patch.x0), float(patch.y0)
    coordinates: dict[str, Any] = {}
    for image in images(schema):
        if image.x in patch.dims:
            coordinates |= pixel_centres(x0, y0, image)
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
                f"{url}: {layout.PATCHES} has {patch_id} in row {row} of its product's Zarr store, which has {there} "
                "there; the root is damaged, `reben-cloud verify` says what else is"
            )


def patches_view(
    stacks: Mapping[str, xr.Dataset],
    products: Sequence[str],
    rows: NDArray[np.int64],
    *,
    bands: Sequence[str] | None,
    schema: Schema,
) -> xr.Dataset:
    """Patches of several products along one dimension, lazy.

    A coordinate named as its dimension can only have that one, and each patch has its own: the pixel
    centres are ``easting`` (patch, x) and ``northing`` (patch, y), of the dimension ``x20`` ``easting20``
    and so on, metres in the CRS that ``crs`` (patch) names.

    Args:
        stacks: Product -> its opened store.
        products: Product of each patch, (n,).
        rows: Row of each patch in its product's store, (n,).
        bands: Tensors of stacked arrays, and names of other arrays, that are wanted; all when None.
        schema: Of the dataset.

    Raises:
        ValueError: If a band is unknown, or comes twice.
        NotFoundError: If the stores lack one.
    """
    names = np.asarray(products)
    places = {product: np.flatnonzero(names == product) for product in stacks}
    parts = []
    for product, stack in stacks.items():
        mine = _with_bands(stack, bands, schema).isel(patch=rows[places[product]])
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
    units = {"units": "m"}
    for image in images(schema):
        if image.x in found.dims:
            east, south = ((np.arange(n) + 0.5) * image.step for n in (image.width, image.height))
            eastings, northings = found.x0.values[:, None] + east, found.y0.values[:, None] - south
            coordinates[_named_after("easting", image.x, "x")] = (("patch", image.x), eastings, units)
            coordinates[_named_after("northing", image.y, "y")] = (("patch", image.y), northings, units)
    return found.assign_coords(coordinates)


def _named_after(kind: str, dim: str, letter: str) -> str:
    """``easting20`` of ``x20``; ``easting_pixel`` of ``pixel``."""
    return f"{kind}{dim.removeprefix(letter)}" if dim.startswith(letter) else f"{kind}_{dim}"


def _with_bands(stack: xr.Dataset, bands: Sequence[str] | None, schema: Schema) -> xr.Dataset:
    """A product's store with these bands only, in this order; an array without any is left out."""
    if bands is None:
        return stack
    arrays = selectable(schema)
    check_names(bands, [name for _, _, names in arrays.values() for name in names], "band")
    if len(set(bands)) < len(bands) or not bands:
        raise ValueError(f"bands must be one or more different names, got {', '.join(bands) or 'none'}")
    chosen = {name: [band for band in bands if band in names] for name, (_, _, names) in arrays.items()}
    for array, names in chosen.items():
        if names and array not in stack:
            raise NotFoundError(f"the dataset has no {array}, so no {', '.join(names)}")
    stack = stack.drop_vars([array for array, names in chosen.items() if not names], errors="ignore")
    along = {name: array.dims[0] for name, (_, array, _) in arrays.items() if array.stacked}
    wanted = {along[name]: names for name, names in chosen.items() if names and name in along}
    unused = {str(dim) for dim in stack.coords if dim in along.values()} - wanted.keys()
    return stack.drop_vars(unused).sel(wanted)
