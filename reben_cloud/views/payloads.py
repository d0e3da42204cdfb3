"""A patch of a dataset without Zarr stores as xarray: made from its payloads, with what a store would say of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from reben_cloud.formats.zarr import label_coordinates, pixel_arrays
from reben_cloud.root import layout
from reben_cloud.stream.readers.base import Counters
from reben_cloud.stream.select import StoredSelection, open_reader
from reben_cloud.views import layers
from reben_cloud.views.axes import images, pixel_centres

if TYPE_CHECKING:
    from reben_cloud.root.selection import Selection

_TEXTS = ("patch_id", "split", "country", "s1_name")
_TIMES = {"time": layout.DATETIME, "s1_time": layout.S1_DATETIME}


def patch_of_payloads(selection: Selection) -> xr.Dataset:
    """The one patch of a selection, in memory, as `Dataset.open_patch` shows it.

    Raises:
        ChecksumError: If a payload is not the one that was written.
        StorageError: If one cannot be read.
    """
    from pyproj import CRS

    schema = selection.dataset.schema
    stored = StoredSelection.of(selection, None)
    reader = open_reader(stored, Counters(), form="shards", cache_dir=None, cache_bytes=None, keep=1)
    variables: dict[str, Any] = {}
    pixels = [array for modality in schema.modalities for array in pixel_arrays(modality)]
    units = {array.name: {} if array.units is None else {"units": array.units} for array in pixels}
    present = {m.name: stored.columns.arrays.get(layers.present_name(m.name)) for m in stored.modalities}
    for part in reader.parts:
        for name, found in reader.load(part, np.zeros(1, np.int64)).items():
            modality = schema.modality(name)
            stacked = modality.stack(found[0][1].read(0))
            for array in modality.arrays:
                attributes = {**units[array.zarr_name], "grid_mapping": "spatial_ref"}
                if present[name] is not None:
                    attributes = layers.attributes(modality, array)
                variables[array.zarr_name] = (array.dims, stacked[array.name], attributes)
    for name, mask in present.items():
        if mask is not None:
            attributes = layers.present_attributes(schema.modality(name))
            variables[layers.present_name(name)] = ((), mask[0], attributes)
    names = selection.table.names
    fields = {field: layout.column(field) for field in _TEXTS if layout.column(field) in names}
    times = {name: column for name, column in _TIMES.items() if column in names}
    row = selection.columns(
        [*fields.values(), *times.values(), layout.LABELS, layout.PRODUCT, "proj:code", "proj:bbox"]
    ).to_pylist()[0]
    minx, _, _, maxy = row["proj:bbox"]
    coordinates: dict[str, Any] = {
        **{field: np.array(row[column], object) for field, column in fields.items()},
        **{
            name: np.datetime64(row[c].replace(tzinfo=None), "ns")
            for name, c in times.items()
            if row[c] is not None
        },
        **label_coordinates(pixels, schema.classes.names),
        "x0": ((), float(minx), {"units": "m", "long_name": "west edge of the patch"}),
        "y0": ((), float(maxy), {"units": "m", "long_name": "north edge of the patch"}),
        "spatial_ref": ((), np.int64(0), CRS.from_user_input(row["proj:code"]).to_cf()),
    }
    for image in images(schema):
        coordinates |= pixel_centres(minx, maxy, image)
    variables["labels"] = (
        ("label",),
        schema.classes.encode(selection.columns([layout.LABELS]).column(layout.LABELS))[0],
        {"long_name": "1 where the patch has the class"},
    )
    return xr.Dataset(
        dict(sorted(variables.items())),
        coordinates,
        {"title": f"A patch of {row[layout.PRODUCT]}", "proj:code": row["proj:code"]},
    )
