"""What a product's Zarr group holds, in STAC's words: bands, dimensions, variables, classes of a map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reben_cloud.about import About
from reben_cloud.catalog.terms import ZARR_TYPE, extensions_of
from reben_cloud.schema import ArraySpec, Modality, Schema, TensorSpec

STAC_DTYPES = frozenset(
    {
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    }
)
"""Dtypes that STAC has a name for; any other is ``other``."""


def group_definition(schema: Schema, facts: About) -> dict[str, Any]:
    """The Zarr asset that every product of a root has, with the classes of its map."""
    return {
        "title": "All patches of the product",
        "type": ZARR_TYPE,
        "roles": ["data"],
        "bands": group_bands(schema, facts),
        **({"classification:classes": _classes(schema, facts)} if schema.map_array else {}),
    }


def _classes(schema: Schema, facts: About) -> list[dict[str, Any]]:
    return [
        {
            "value": entry.value,
            "name": entry.name,
            "title": entry.title,
            "description": entry.label or f"none of the {len(schema.classes)} classes",
            "color_hint": entry.color.lstrip("#").upper(),
            **({"nodata": True} if entry.is_nodata else {}),
        }
        for entry in facts.map_classes
    ]


def group_extensions(schema: Schema, facts: About) -> set[str]:
    """The extensions of the fields of `group_bands`; one too many is invalid."""
    return extensions_of(name for band in group_bands(schema, facts) for name in band)


def group_bands(schema: Schema, facts: About) -> list[dict[str, Any]]:
    """STAC bands of a product's Zarr group, in the order of its arrays, those of the map last.

    A band of a stacked array is named ``array[dimension=band]``, any other as its array.
    """
    arrays = [(modality, array) for modality in schema.modalities for array in modality.arrays]
    ordered = sorted(arrays, key=lambda pair: pair[1].name == schema.map_array)
    return [
        _band(array, modality.specs[name], facts, is_map=array.name == schema.map_array)
        for modality, array in ordered
        for name in array.tensors
    ]


def band_name(array: ArraySpec, tensor: str) -> str:
    """Name of a band of a product's Zarr group."""
    return f"{array.zarr_name}[{array.dims[0]}={tensor}]" if array.stacked else array.zarr_name


def _band(array: ArraySpec, tensor: TensorSpec, facts: About, *, is_map: bool) -> dict[str, Any]:
    return {"name": band_name(array, tensor.name), **value_fields(tensor, facts, is_map=is_map)}


def value_fields(tensor: TensorSpec, facts: About, *, is_map: bool) -> dict[str, Any]:
    """What is said of the values of a band, in STAC's words: dtype, pixel size, wavelength, what a value counts."""
    band: dict[str, Any] = {"data_type": tensor.dtype if tensor.dtype in STAC_DTYPES else "other"}
    if tensor.pixel_m is not None:
        band["gsd"] = tensor.pixel_m
    band |= facts.band_fields.get(tensor.name, {})
    # The values of a map are codes: they have no scale, no unit, and no quantity that a pixel averages.
    if not is_map:
        band |= _quantity(tensor.units)
        if tensor.pixel_m is not None:
            band["raster:spatial_resolution"] = tensor.pixel_m
    return band


def _quantity(units: str | None) -> dict[str, Any]:
    """The field that says what a value counts: units that are a number are a scale."""
    if not units:
        return {}
    try:
        return {"raster:scale": float(units)}
    except ValueError:
        return {"unit": units}


def cube_fields(schema: Schema, num_patches: int) -> dict[str, Any]:
    """Dimensions and variables of a product's Zarr group, as the datacube extension has them."""
    dimensions: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for modality in schema.modalities:
        for array in modality.arrays:
            dimensions["patch"] = _extent("patch", num_patches)
            dimensions |= _dimensions(modality, array)
            units = modality.tensor_of(array).units
            variables[array.zarr_name] = {
                "dimensions": ["patch", *array.dims],
                "type": "data",
                **({"unit": units} if units else {}),
            }
    return {"cube:dimensions": dimensions, "cube:variables": variables}


def _dimensions(modality: Modality, array: ArraySpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    is_image = modality.tensor_of(array).pixel_m is not None
    shape = modality.shape_of(array)
    for axis, (dim, size) in enumerate(zip(array.dims, shape, strict=True)):
        if array.stacked and axis == 0:
            found[dim] = {"type": "bands", "values": list(array.tensors)}
        else:
            found[dim] = _extent("pixel" if is_image and axis >= len(shape) - 2 else "index", size)
    return found


def _extent(kind: str, size: int) -> dict[str, Any]:
    return {"type": kind, "extent": [0, size - 1], "step": 1}


def asset_fields(schema: Schema, facts: About) -> Mapping[str, object]:
    """Fields that the modalities of the dataset bring with them, such as ``sar:polarizations``."""
    fields: dict[str, Any] = {}
    for modality in schema.modalities:
        fields |= facts.modality_fields.get(modality.name, {})
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
