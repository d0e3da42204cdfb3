"""The schema of BigEarthNet v2.0 (reBEN): rico-hdl's payloads, the published arrays, 19 classes."""

from __future__ import annotations

from reben_cloud.bigearthnet.bands import ARRAYS, BANDS, PATCH_M
from reben_cloud.bigearthnet.labels import CLASSES_ALPHABETICAL, CLC, representative_code
from reben_cloud.schema import ArraySpec, Classes, Modality, Schema, TensorSpec

MAP_TENSOR = "Data"
"""rico-hdl's name for the only tensor of a reference-map record."""

_DIMS = {
    "s2_10m": ("band", "y", "x"),
    "s2_20m": ("band20", "y20", "x20"),
    "s2_60m": ("band60", "y60", "x60"),
    "s1": ("polarization", "y", "x"),
}


def _band(name: str) -> TensorSpec:
    band = BANDS[name]
    radar = band.sensor == "s1"
    return TensorSpec(
        name=name,
        shape=(band.size_px, band.size_px),
        dtype=band.dtype,
        units="dB" if radar else "1e-4",
        fill=float("nan") if radar else 0,
        pixel_m=band.resolution_m,
    )


def _array(name: str) -> ArraySpec:
    return ArraySpec(name=name, tensors=ARRAYS[name], stacked=True, dims=_DIMS[name], zarr_name=name)


S2 = Modality(
    name="s2",
    title="Sentinel-2 Level-2A",
    tensors=tuple(_band(band) for array in ("s2_10m", "s2_20m", "s2_60m") for band in ARRAYS[array]),
    arrays=tuple(_array(name) for name in ("s2_10m", "s2_20m", "s2_60m")),
    key_suffix="",
    complete=True,
)
"""Twelve bands in native resolution, uint16 digital numbers (reflectance x 10,000)."""

S1 = Modality(
    name="s1",
    title="Sentinel-1 GRD, terrain-corrected",
    tensors=(_band("VV"), _band("VH")),
    arrays=(_array("s1"),),
    key_column="s1_name",
    key_suffix="",
    falling=("VV", "VH"),
)
"""Two polarizations, float32 decibel."""

MAP = Modality(
    name="map",
    title="CORINE Land Cover 2018 reference map",
    tensors=(TensorSpec(name=MAP_TENSOR, shape=(120, 120), dtype="uint16", units="CLC code", pixel_m=10),),
    arrays=(
        ArraySpec(
            name="map", tensors=(MAP_TENSOR,), stacked=False, dims=("y", "x"), zarr_name="reference_map"
        ),
    ),
    key_suffix="_reference_map",
)
"""CORINE level-3 codes, or 999."""

DESCRIPTION = (
    "549,488 pairs of Sentinel-1 and Sentinel-2 patches of 1200 m with pixel-level land-cover reference maps "
    "and 19-class multi-labels, from 115 Sentinel-2 acquisitions over ten European countries, "
    "June 2017 to May 2018 (BigEarthNet v2.0, reBEN)."
)
"""What the dataset is."""

REBEN = Schema(
    name="BigEarthNet v2.0 (reBEN)",
    modalities=(S2, S1, MAP),
    classes=Classes(
        names=CLASSES_ALPHABETICAL,
        colors=tuple(CLC[representative_code(name)].color for name in CLASSES_ALPHABETICAL),
        codes=tuple(
            tuple(code for code, entry in CLC.items() if entry.label == name) for name in CLASSES_ALPHABETICAL
        ),
        without_class=tuple(code for code, entry in CLC.items() if entry.label is None),
    ),
    patch_m=PATCH_M,
    map_array="map",
    recommended_without=("contains_seasonal_snow", "contains_cloud_or_shadow"),
    description=DESCRIPTION,
    license="CDLA-Permissive-1.0",
)
"""What every root of format version 1 holds, and what a build of the official data makes."""


def whole(schema: Schema) -> Schema:
    """The schema of the whole dataset, where a root holds a part of one that is known here; itself otherwise."""
    return REBEN if schema.name == REBEN.name else schema
