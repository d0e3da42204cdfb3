"""Georeferenced views of products' Zarr stores: one patch, or some patches stacked.

Coordinates are pixel centres in the product's UTM zone, the CRS stands in ``spatial_ref`` as CF has
it, so rioxarray, GDAL and QGIS agree where a pixel is. Nothing is read before values are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from reben_cloud.bigearthnet.about import about
from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.root import layout
from reben_cloud.root.backing import LmdbFolder, RootObjects
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.selection import Selection
from reben_cloud.root.zarr_store import ListedStore
from reben_cloud.schema import Schema, check_names
from reben_cloud.search.arguments import parse_box, parse_names
from reben_cloud.views.axes import images, pixel_centres, selectable
from reben_cloud.views.layers import LayerRecords, beside, layer_records, present_name
from reben_cloud.views.mosaic import mosaic
from reben_cloud.views.payloads import patch_of_payloads

MAX_XARRAY = 1_000
"""Most patches of `stack_patches`: 0.3 GB in memory, and as many chunks of each array for Dask."""


def _require_zarr(dataset: Dataset) -> None:
    """Raise NotFoundError where a dataset has payloads and no Zarr stores."""
    if not isinstance(dataset.backing, RootObjects):
        what = (
            "is an LMDB"
            if isinstance(dataset.backing, LmdbFolder)
            else "refers to payloads that lie elsewhere"
        )
        raise NotFoundError(
            f"{dataset.url} {what} and has no Zarr stores: open single patches (Dataset.open_patch), or make a root of "
            "the patches you want (reben-cloud build)"
        )


def open_product(dataset: Dataset, product: str) -> xr.Dataset:
    """A product's Zarr store, with what layers have for its patches; see `Dataset.open_zarr`."""
    return _with_layers(dataset, product, _open_store(dataset, product))[0]


def _with_layers(
    dataset: Dataset, product: str, stack: xr.Dataset
) -> tuple[xr.Dataset, Mapping[str, LayerRecords]]:
    """A product's opened store with the variables of layers, and where these come from.

    Raises:
        ChecksumError: If the store has other patches than the table, by which layers go.
    """
    records = layer_records(dataset, product)
    for layer in records.values():
        check_rows(stack, range(len(layer)), layer.patch_ids, url=dataset.url)
        break  # all are of the same patches
    return beside(stack, records), records


def _open_store(dataset: Dataset, product: str) -> xr.Dataset:
    _require_zarr(dataset)
    if product not in dataset.products:
        raise NotFoundError(
            f"{dataset.url} has no product {product!r}; `Dataset.products` lists its {len(dataset.products)}"
        )
    place = layout.zarr_store(product)
    pixels = [a.zarr_name for modality in dataset.manifest.schema.modalities for a in modality.arrays]
    store = ListedStore(dataset.store.child(place), dataset.listed(f"{place}/"), pixels)
    stack: xr.Dataset = xr.open_zarr(store, zarr_format=3, consolidated=True)
    return stack


def open_patch(dataset: Dataset, patch_id: str) -> xr.Dataset:
    """One patch with coordinates and CRS; see `Dataset.open_patch`."""
    if not isinstance(patch_id, str):
        raise TypeError(
            f"open_patch takes one patch id, got {patch_id!r}; see Selection.to_xarray for several"
        )
    columns = [layout.ID, layout.PRODUCT, layout.ZARR_ROW]
    selection = dataset.search(ids=patch_id)
    if not isinstance(dataset.backing, RootObjects):
        return patch_of_payloads(selection)
    found = selection.columns(columns).to_pylist()[0]
    row = found[layout.ZARR_ROW]
    stack = open_product(dataset, found[layout.PRODUCT])
    check_rows(stack, [row], [found[layout.ID]], url=dataset.url)
    return patch_view(stack, row, schema=dataset.schema)


def open_mosaic(
    dataset: Dataset, product: str, *, bands: str | Sequence[str] | None, bbox: str | Sequence[float] | None
) -> xr.DataArray:
    """The patches of a product as one raster; see `Dataset.mosaic`."""
    box = None if bbox is None else parse_box(bbox)
    if box is not None and box[0] > box[2]:
        raise ValueError(
            f"a mosaic does not go over the antimeridian: {bbox!r} must be west,south,east,north"
        )
    names = _bands_of_picture(dataset) if bands is None else parse_names(bands, "bands")
    stack, records = _with_layers(dataset, product, _open_store(dataset, product))
    listed = dataset.listed(f"{layout.zarr_store(product)}/")
    return mosaic(
        dataset.store, product, listed, stack, records, bands=names, bbox=box, schema=dataset.schema
    )


def _bands_of_picture(dataset: Dataset) -> list[str]:
    """The bands of the picture of a product.

    Raises:
        NotFoundError: If the dataset does not have them.
    """
    picture = about(dataset.schema).thumbnail
    if picture is None or picture.array_in(dataset.schema) is None:
        wanted = "" if picture is None else f", which is of {', '.join(c.tensor for c in picture.channels)}"
        raise NotFoundError(f"{dataset.url} has no bands for a picture{wanted}; say which `bands` you want")
    return [channel.tensor for channel in picture.channels]


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
    _require_zarr(dataset)  # before its column is asked for, which only a root with Zarr stores has
    table = selection.columns([layout.ID, layout.PRODUCT, layout.ZARR_ROW, layout.LABELS])
    products = [str(name) for name in table.column(layout.PRODUCT).to_pylist()]
    stacks = {product: open_product(dataset, product) for product in sorted(set(products))}
    rows = table.column(layout.ZARR_ROW).to_numpy().astype(np.int64)
    ids = np.array(table.column(layout.ID).to_pylist(), object)
    for product, stack in stacks.items():
        mine = np.flatnonzero(np.asarray(products) == product)
        check_rows(stack, rows[mine].tolist(), ids[mine].tolist(), url=dataset.url)
    found = patches_view(stacks, products, rows, bands=names, schema=dataset.schema)
    labels = ["; ".join(names) for names in table.column(layout.LABELS).to_pylist()]
    return found.assign_coords(
        patch_id=("patch", ids),
        time=found.time.compute(),
        label_names=("patch", np.array(labels, object)),
    )


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
    dropped = [array for array, names in chosen.items() if not names]
    owners = {arrays[array][0].name for array, names in chosen.items() if names}
    dropped += [present_name(name) for name in schema.modality_names if name not in owners]
    stack = stack.drop_vars(dropped, errors="ignore")
    along = {name: array.dims[0] for name, (_, array, _) in arrays.items() if array.stacked}
    wanted = {along[name]: names for name, names in chosen.items() if names and name in along}
    unused = {str(dim) for dim in stack.coords if dim in along.values()} - wanted.keys()
    return stack.drop_vars(unused).sel(wanted)
