"""Array layers in xarray: variables beside those of a product's Zarr store, read from the layer's own shards.

A layer has no Zarr stores, so its variables are lazy arrays over its records: a window reads the records of the patches
that it touches, each compared with its checksum.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from reben_cloud.root import layout
from reben_cloud.root.arrow import mask_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.selection import Selection
from reben_cloud.schema import ArraySpec, Modality
from reben_cloud.stream.readers.base import Counters, Reader
from reben_cloud.stream.select import StoredSelection, open_reader


class LayerRecords:
    """The records of an array layer for the patches of a selection, in the selection's order.

    Args:
        selection: The patches.
        modality: What the layer holds.
    """

    def __init__(self, selection: Selection, modality: Modality) -> None:
        self.modality = modality
        """What the layer holds."""
        self._selection = selection

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def __len__(self) -> int:
        """Number of patches."""
        return len(self._selection)

    @cached_property
    def _opened(self) -> tuple[Reader, NDArray[np.int64]]:
        """What reads the records, and the stored position of each patch."""
        stored = StoredSelection.of(self._selection, [self.modality.name])
        reader = open_reader(stored, Counters(), form="shards", cache_dir=None, cache_bytes=None, keep=1)
        return reader, np.argsort(stored.index)

    @property
    def patch_ids(self) -> list[str]:
        """Ids of the patches."""
        return self._selection.patch_ids

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether the layer has anything for each patch, shape (n,)."""
        return mask_of(self._selection.column(layout.present_column(self.modality.name)))

    def read(self, array: ArraySpec, rows: NDArray[np.int64]) -> NDArray[Any]:
        """One of the layer's arrays for some patches, (len(rows), *shape of a patch).

        Raises:
            ChecksumError: If a record is not the one that was written.
            StorageError: If one cannot be read.
        """
        name, (reader, position) = self.modality.name, self._opened
        found = np.empty((len(rows), *self.modality.shape_of(array)), self.modality.tensor_of(array).storage)
        stored, inverse = np.unique(position[rows], return_inverse=True)
        for places, payloads in reader.load((name,), stored)[name] if len(stored) else ():
            for inside, place in enumerate(places.tolist()):
                found[inverse == place] = self.modality.stack(payloads.read(inside))[array.name]
        return found


class _LayerArray(BackendArray):
    """One array of a layer, (patch, *shape of a patch), of which nothing is read before it is asked for."""

    def __init__(self, records: LayerRecords, array: ArraySpec) -> None:
        self.records, self.array = records, array
        self.shape = (len(records), *records.modality.shape_of(array))
        self.dtype = records.modality.tensor_of(array).storage

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._window
        )

    def _window(self, key: tuple[int | slice | NDArray[np.int64], ...]) -> NDArray[Any]:
        rows = np.arange(self.shape[0])[key[0]]
        found = self.records.read(self.array, np.atleast_1d(rows))
        for axis in reversed(range(1, len(key))):  # from the last: an integer takes its axis away
            found = found[(*(slice(None),) * axis, key[axis])]
        return found if np.ndim(rows) else found[0]


def layer_records(dataset: Dataset, product: str) -> Mapping[str, LayerRecords]:
    """Array layers by name, with their records for the patches of a product in the order of its Zarr store."""
    modalities = [layer.modality for layer in dataset.layers.values() if layer.modality is not None]
    if not modalities:
        return {}
    found = dataset.search(product=product)
    order = np.argsort(found.column(layout.ZARR_ROW).to_numpy(), kind="stable")
    selection = Selection(dataset, found.table, found.rows[order])
    return {modality.name: LayerRecords(selection, modality) for modality in modalities}


def beside(stack: xr.Dataset, records: Mapping[str, LayerRecords]) -> xr.Dataset:
    """A product's opened store with the variables of layers, as lazy as its own."""
    pieces = _pieces(stack)
    for name, layer in records.items():
        variables: dict[str, Any] = {
            present_name(name): ("patch", layer.present, present_attributes(layer.modality))
        }
        labels: dict[str, Any] = {}
        for array in layer.modality.arrays:
            lazy = indexing.LazilyIndexedArray(_LayerArray(layer, array))
            variable = xr.Variable(("patch", *array.dims), lazy, attributes(layer.modality, array))
            if pieces is not None:
                variable = variable.chunk({"patch": pieces})
            variables[array.zarr_name] = variable
            if array.stacked:
                labels[array.dims[0]] = list(array.tensors)
        stack = stack.assign(variables).assign_coords(labels)
    return stack


def _pieces(stack: xr.Dataset) -> tuple[int, ...] | None:
    """How Dask cuts the store's pixels along its patches, or None where it does not; coordinates are in one piece."""
    found = [v.chunksizes["patch"] for v in stack.variables.values() if "patch" in v.chunksizes]
    return max(found, key=len, default=None)


def present_name(layer: str) -> str:
    """Variable that says whether a layer has anything for a patch, as in a batch."""
    return f"{layer}_present"


def present_attributes(modality: Modality) -> dict[str, Any]:
    """Attributes of that variable."""
    return {"long_name": f"whether {modality.title or modality.name} is there; fill values where it is not"}


def attributes(modality: Modality, array: ArraySpec) -> dict[str, Any]:
    """Attributes of the variable of a layer's array: title, units, fill value, and the CRS of an image."""
    tensor = modality.tensor_of(array)
    return {
        "long_name": modality.title or modality.name,
        **({"units": tensor.units} if tensor.units else {}),
        **({"grid_mapping": "spatial_ref"} if tensor.pixel_m is not None else {}),
        "_FillValue": tensor.storage.type(tensor.fill),
    }
