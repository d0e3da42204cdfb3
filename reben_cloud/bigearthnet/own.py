"""Schemas of datasets made the way of BigEarthNet, with other bands, classes or patch sizes.

A dataset of this kind has patches of Sentinel-2 (``s2``), perhaps Sentinel-1 (``s1``), and a map of land-cover codes
(``map``), each like reBEN's or a part of it. reBEN itself is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from reben_cloud.bigearthnet.bands import BANDS, PATCH_M
from reben_cloud.bigearthnet.labels import CLC
from reben_cloud.bigearthnet.reben import MAP, REBEN, S1, S2
from reben_cloud.schema import Classes, Modality, Schema

OWN_NAME = "Own BigEarthNet"
"""Name of a dataset that was given none."""

ALL_BANDS = tuple(name for name, band in BANDS.items() if band.sensor == S2.name)
"""The twelve bands of Sentinel-2 by wavelength."""


def own_schema(
    *,
    name: str = OWN_NAME,
    patch_m: int = PATCH_M,
    bands: Sequence[str] = ALL_BANDS,
    has_s1: bool = True,
    classes: Classes = REBEN.classes,
    land_cover: str = "",
) -> Schema:
    """The schema of a dataset that is made the way of BigEarthNet.

    Args:
        name: Name of the dataset.
        patch_m: Side of a patch, metres: a multiple of the largest pixel used, and of 10.
        bands: Bands of Sentinel-2, in any order; they are kept in reBEN's.
        has_s1: Whether patches have Sentinel-1.
        classes: The classes, with the codes of the map.
        land_cover: What the map is made from, for its title.

    Raises:
        ValueError: If a band is unknown or comes twice, there is none, or the size is not such a multiple.
    """
    check_bands(bands)
    pixel_m = largest_pixel(bands)
    if patch_m < pixel_m or patch_m % pixel_m:
        raise ValueError(
            f"a patch must be a multiple of its largest pixel ({pixel_m} m with these bands), got {patch_m} m"
        )
    chosen = tuple(tensor.name for tensor in S2.tensors if tensor.name in bands)
    s2 = replace(
        S2,
        tensors=tuple(S2.specs[band] for band in chosen),
        arrays=tuple(
            replace(array, tensors=kept)
            for array in S2.arrays
            if (kept := tuple(band for band in array.tensors if band in chosen))
        ),
    )
    is_corine = {code for codes in classes.codes for code in codes} <= CLC.keys()
    (codes,) = MAP.tensors
    of_map = replace(
        MAP,
        title=f"{land_cover or 'Land cover'} reference map",
        tensors=(codes if is_corine else replace(codes, units="land-cover code"),),
    )
    modalities = (s2, *((S1,) if has_s1 else ()), of_map)
    return Schema(
        name=name,
        modalities=tuple(_sized(modality, patch_m) for modality in modalities),
        classes=classes,
        patch_m=patch_m,
        map_array=REBEN.map_array,
        recommended_without=REBEN.recommended_without,
    )


def check_bands(bands: Sequence[str]) -> None:
    """Refuse what are not bands of Sentinel-2.

    Raises:
        ValueError: If one is unknown or comes twice, or there is none.
    """
    for band in bands:
        if band not in ALL_BANDS:
            raise ValueError(
                f"{band!r} is not a band of Sentinel-2 Level-2A; they are {', '.join(ALL_BANDS)}"
            )
    if not bands or len(set(bands)) != len(bands):
        raise ValueError(f"bands must be different names, at least one, got {', '.join(bands) or 'none'}")


def largest_pixel(bands: Sequence[str]) -> int:
    """The largest pixel of some bands, metres; a map has 10 m."""
    return max(BANDS[band].resolution_m for band in bands)


def _sized(modality: Modality, patch_m: int) -> Modality:
    """The same with the tensors of patches of another size."""

    def side(pixel_m: float | None) -> int:
        assert pixel_m is not None  # all of reBEN's are images
        return round(patch_m / pixel_m)

    return replace(
        modality,
        tensors=tuple(replace(t, shape=(side(t.pixel_m), side(t.pixel_m))) for t in modality.tensors),
    )


def is_alike(schema: Schema) -> bool:
    """Whether a dataset is made the way of BigEarthNet: its modalities are reBEN's, of any size, or a part of them."""
    return bool(schema.modalities) and all(
        modality.name in REBEN.modality_names
        and _kinds(modality).items() <= _kinds(REBEN.modality(modality.name)).items()
        for modality in schema.modalities
    )


def _kinds(modality: Modality) -> Mapping[str, tuple[object, ...]]:
    """Tensor -> what makes it what it is, wherever patches end."""
    is_map = modality.name == MAP.name
    return {t.name: (t.dtype, None if is_map else t.units, t.pixel_m) for t in modality.tensors}
