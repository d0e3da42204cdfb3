"""The axes of a product's Zarr store: which are pixels of which size, and by which names parts are asked for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from reben_cloud.schema import ArraySpec, Modality, Schema


class Image(NamedTuple):
    """The pixels along two dimensions of a product's store, which several arrays may share."""

    y: str
    """Name of the dimension of the lines."""
    x: str
    """Name of the dimension of the columns."""
    height: int
    """Lines of a patch."""
    width: int
    """Columns of a patch."""
    step: float
    """Size of a pixel, metres."""


def images(schema: Schema) -> list[Image]:
    """The pairs of dimensions along which a dataset has pixels."""
    found: dict[Image, None] = {}
    for modality in schema.modalities:
        for array in modality.arrays:
            step = modality.tensor_of(array).pixel_m
            if step is not None:
                y, x = array.dims[-2:]
                height, width = modality.shape_of(array)[-2:]
                found[Image(y, x, height, width, step)] = None
    return list(found)


def pixel_centres(west: float, north: float, image: Image) -> dict[str, Any]:
    """Coordinates of the pixels of a raster whose corner is at `west` and `north`, metres."""
    y, x, height, width, step = image
    attributes = {
        x: {"standard_name": "projection_x_coordinate", "units": "m", "axis": "X"},
        y: {"standard_name": "projection_y_coordinate", "units": "m", "axis": "Y"},
    }
    return {
        x: (x, west + (np.arange(width) + 0.5) * step, attributes[x]),
        y: (y, north - (np.arange(height) + 0.5) * step, attributes[y]),
    }


def selectable(schema: Schema) -> dict[str, tuple[Modality, ArraySpec, tuple[str, ...]]]:
    """Zarr array -> its modality, its description, and the names by which parts of it are asked for."""
    return {
        array.zarr_name: (modality, array, array.tensors if array.stacked else (array.zarr_name,))
        for modality in schema.modalities
        for array in modality.arrays
    }
