"""Each band of a patch as an image of its own: what it is called, and the asset by which STAC clients load it.

A root has no such files: its bands are rows of Zarr arrays, which odc-stac, stackstac and QGIS cannot open. A
server makes them when they are asked for (`serve.tiffs`), so only Items that a server sends have these assets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reben_cloud.about import About
from reben_cloud.catalog.groups import value_fields
from reben_cloud.catalog.terms import extension, extensions_of
from reben_cloud.formats.geotiff import DTYPES
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.schema import ArraySpec, TensorSpec

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
"""Media type of the images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BandImage:
    """One band of every patch as an image."""

    name: str
    """Key of the asset, e.g. ``B04``; part of a URL."""
    modality: str
    """Modality that holds it."""
    tensor: TensorSpec
    """What its pixels are: (size, size)."""
    pixel_m: float
    """Size of a pixel, metres."""
    nodata: float
    """Value that stands for no data."""
    is_layer: bool
    """Whether it is of a layer, which may have nothing for a patch."""
    fields: Mapping[str, Any]
    """Fields of its asset that are the same in every Item."""

    def is_there(self, properties: Mapping[str, object]) -> bool:
        """Whether the patch has it.

        Args:
            properties: Of the patch's Item, or its row of the table.
        """
        return not self.is_layer or bool(properties.get(layout.present_column(self.modality)))


def band_images(dataset: Dataset, facts: About) -> dict[str, BandImage]:
    """Name -> image, of every band that a GeoTIFF can hold: square, with a pixel size, of a dtype that GDAL has.

    A band is named as elsewhere (`Dataset.mosaic`); one of a layer, and one whose name two modalities have,
    ``modality-band``.
    """
    schema = dataset.schema
    arrays = [(m, array) for m in schema.modalities if m.name in dataset.modalities for array in m.arrays]
    bands = [(modality, array, modality.specs[name]) for modality, array in arrays for name in array.tensors]
    times = Counter(_own_name(array, tensor) for _, array, tensor in bands)
    images = {}
    for modality, array, tensor in bands:
        step = tensor.pixel_m
        if step is None or len(tensor.shape) != 2 or tensor.shape[0] != tensor.shape[1]:
            continue
        if tensor.dtype not in DTYPES:
            continue
        own, is_layer = _own_name(array, tensor), modality.name in dataset.layers
        name = own if times[own] == 1 and not is_layer else f"{modality.name}-{tensor.name}"
        is_map = array.name == schema.map_array
        fields = value_fields(tensor, facts, is_map=is_map)
        nodata = fields.setdefault("nodata", "nan" if math.isnan(tensor.fill) else tensor.fill)
        images[name] = BandImage(
            name=name,
            modality=modality.name,
            tensor=tensor,
            pixel_m=step,
            nodata=float(nodata),
            is_layer=is_layer,
            fields=_asset(name, tensor, fields),
        )
    return images


def _own_name(array: ArraySpec, tensor: TensorSpec) -> str:
    return tensor.name if array.stacked else array.zarr_name


def _asset(name: str, tensor: TensorSpec, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the asset of a band says in every Item; what is of its light stands with the band, as eo has it."""
    band = {key: value for key, value in fields.items() if key.startswith("eo:")}
    return {
        "type": COG_TYPE,
        "title": f"{name}, {tensor.pixel_m:g} m",
        "roles": ["data"],
        **{key: value for key, value in fields.items() if key not in band},
        "proj:shape": list(tensor.shape),
        "bands": [{"name": name, **band}],
    }


def add_band_images(item: dict[str, Any], images: Mapping[str, BandImage], url: str) -> None:
    """Give a patch's Item an asset for each band.

    Args:
        item: The Item; changed.
        images: What the dataset has.
        url: What stands before ``PATCH_ID/BAND.tif``.
    """
    properties = item["properties"]
    west, _, _, north = properties["proj:bbox"]
    used: set[str] = set()
    for image in images.values():
        if not image.is_there(properties):
            continue
        step = image.pixel_m
        item["assets"][image.name] = {
            "href": f"{url}/{item['id']}/{image.name}.tif",
            **image.fields,
            "proj:transform": [step, 0, west, 0, -step, north],
        }
        used |= extensions_of([*image.fields, *(key for band in image.fields["bands"] for key in band)])
    known = set(item["stac_extensions"])
    wanted = sorted(extension("projection" if name == "proj" else name) for name in used)
    item["stac_extensions"] = [*item["stac_extensions"], *(url for url in wanted if url not in known)]


def band_definitions(images: Mapping[str, BandImage]) -> dict[str, dict[str, Any]]:
    """The assets of `add_band_images` as a Collection announces them (``item_assets``)."""
    return {name: dict(image.fields) for name, image in images.items()}
