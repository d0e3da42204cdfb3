"""What documents, pictures and pages say of BigEarthNet v2.0, beyond its schema."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from reben_cloud.about import About, Channel, MapClass, Provider, Render, Work
from reben_cloud.bigearthnet.bands import BANDS, MAP_UNLABELLED
from reben_cloud.bigearthnet.labels import CLASSES, CLC
from reben_cloud.bigearthnet.official import COUNTRIES
from reben_cloud.bigearthnet.own import is_alike
from reben_cloud.bigearthnet.reben import MAP, MAP_TENSOR, REBEN, S1
from reben_cloud.schema import Schema

DESCRIPTION = (
    "549,488 pairs of Sentinel-1 and Sentinel-2 patches of 1200 m with pixel-level land-cover reference maps "
    "and 19-class multi-labels, from 115 Sentinel-2 acquisitions over ten European countries, "
    "June 2017 to May 2018 (BigEarthNet v2.0, reBEN)."
)
"""What the collection is."""

LICENSE = "CDLA-Permissive-1.0"
"""SPDX id of the dataset's licence."""

REBEN_EXTENSION = "https://reben-cloud.readthedocs.io/stac/reben/v1.0.0/schema.json"
"""The ``reben:`` fields; the schema is ``stac/reben/v1.0.0/schema.json`` in the repository."""

CITATION = (
    "K. Clasen, L. Hackel, T. Burgert, G. Sumbul, B. Demir, V. Markl: reBEN: Refined BigEarthNet Dataset for "
    "Remote Sensing Image Analysis. IEEE International Geoscience and Remote Sensing Symposium (IGARSS), 2025."
)
"""How the authors ask to be cited."""

LINEAGE = (
    "Sentinel-2 L1C processed to L2A with sen2cor, Sentinel-1 GRD terrain-corrected to sigma nought in dB, "
    "CORINE Land Cover 2018 rasterised; cut into patches of 1200 m, split by place."
)
"""How the dataset was made."""

BRIGHTEST = 2_500
"""Digital number (reflectance 0.25) that is white in a true-colour picture."""

TRUE_COLOR = Render(
    name="true-color",
    title="True colour",
    caption="true colour",
    channels=(
        Channel(tensor="B04", high=BRIGHTEST),
        Channel(tensor="B03", high=BRIGHTEST),
        Channel(tensor="B02", high=BRIGHTEST),
    ),
)
"""Red, green and blue reflectance."""

FALSE_COLOR = Render(
    name="false-color",
    title="False colour",
    caption="near infrared, red and green",
    channels=(
        # Vegetation reflects twice as much in the near infrared as anything does in the visible bands.
        Channel(tensor="B08", high=2 * BRIGHTEST),
        Channel(tensor="B04", high=BRIGHTEST),
        Channel(tensor="B03", high=BRIGHTEST),
    ),
)
"""Near infrared, red and green reflectance: vegetation is red."""

RADAR = Render(
    name="radar",
    title="Sentinel-1",
    caption="Sentinel-1",
    channels=(
        Channel(tensor="VV", low=-25, high=0),
        Channel(tensor="VH", low=-32, high=-5),
        Channel(tensor="VV", minus="VH", high=15),
    ),
)
"""Both polarizations and their ratio, decibel."""


def _band_fields() -> dict[str, MappingProxyType[str, Any]]:
    found: dict[str, MappingProxyType[str, Any]] = {}
    for name, band in BANDS.items():
        if band.center_wavelength_um is not None:
            common = {"eo:common_name": band.common_name} if band.common_name else {}
            found[name] = MappingProxyType(
                {
                    **common,
                    "eo:center_wavelength": band.center_wavelength_um,
                    "eo:full_width_half_max": band.full_width_um,
                }
            )
    found[MAP_TENSOR] = MappingProxyType({"nodata": MAP_UNLABELLED})
    return found


ABOUT = About(
    id="reben",
    collection="bigearthnet-v2",
    title="BigEarthNet v2.0 (reBEN)",
    description=DESCRIPTION,
    license=LICENSE,
    license_url="https://cdla.dev/permissive-1-0/",
    license_title="Community Data License Agreement - Permissive - Version 1.0",
    card_name="BigEarthNet-v2",
    card_alias="reBEN",
    extension=REBEN_EXTENSION,
    keywords=("Sentinel-1", "Sentinel-2", "land cover", "CORINE", "multi-label", "BigEarthNet", "reBEN"),
    providers=(
        Provider(
            name="BigEarthNet, TU Berlin and BIFOLD",
            roles=("processor", "licensor"),
            url="https://bigearth.net",
            fields=MappingProxyType({"processing:lineage": LINEAGE}),
        ),
        Provider(
            name="ESA",
            roles=("producer",),
            url="https://sentinels.copernicus.eu",
            description="Copernicus Sentinel data",
        ),
    ),
    work=Work(
        doi="10.5281/zenodo.10891137",
        citation=CITATION,
        paper_doi="10.48550/arXiv.2407.03653",
        # The month of the article's first version (arXiv 2407.03653), which announces the archives.
        published="2024-07",
        version="2.0.0",
        url="https://bigearth.net",
        page_title="BigEarthNet",
        data_title="The published archives",
    ),
    acquisition=MappingProxyType({"constellation": "sentinel-2", "instruments": ("msi",)}),
    orbit=slice(34, 37),
    band_fields=MappingProxyType(_band_fields()),
    modality_fields=MappingProxyType(
        {
            S1.name: MappingProxyType(
                {
                    "sar:instrument_mode": "IW",
                    "sar:frequency_band": "C",
                    "sar:center_frequency": 5.405,
                    "sar:polarizations": ("VV", "VH"),
                }
            )
        }
    ),
    columns=MappingProxyType(
        {
            "patch_id": "Patch",
            "datetime": "Sentinel-2 acquisition",
            "platform": "Satellite",
            "product": "Sentinel-2 product",
            "s1_datetime": "Sentinel-1 acquisition",
            "s1_name": "Sentinel-1 patch",
            "contains_seasonal_snow": "Snow",
            "contains_cloud_or_shadow": "Cloud or shadow",
        }
    ),
    countries=COUNTRIES,
    name_columns=("s1_name",),
    class_order=CLASSES,
    map_classes=tuple(
        MapClass(
            value=entry.code,
            name="unlabelled" if entry.code == MAP_UNLABELLED else f"clc_{entry.code}",
            title=entry.name,
            label=entry.label,
            color=entry.color,
            is_nodata=entry.code == MAP_UNLABELLED,
        )
        for entry in CLC.values()
    ),
    renders=(TRUE_COLOR, RADAR),
    further_renders=(FALSE_COLOR,),
    thumbnail=TRUE_COLOR,
)
"""BigEarthNet v2.0."""


_OWN_PRODUCTS = Provider(
    name="ESA",
    roles=("producer",),
    url="https://sentinels.copernicus.eu",
    description="Copernicus Sentinel data",
)


def _own(schema: Schema) -> About:
    """What is true of every dataset that is made the way of BigEarthNet, beside what its schema says."""
    plain = About.plain(schema)
    shown = [render for render in (TRUE_COLOR, FALSE_COLOR, RADAR) if render.array_in(schema)]
    of_map = next((m for m in schema.modalities if m.name == MAP.name), None)
    unlabelled = () if of_map is None else tuple(map(_without_class, schema.classes.without_class))
    has_s1 = S1.name in schema.modality_names
    return replace(
        plain,
        keywords=("Sentinel-2", *(("Sentinel-1",) if has_s1 else ()), "land cover", "multi-label"),
        providers=(_OWN_PRODUCTS,),
        acquisition=ABOUT.acquisition,
        orbit=ABOUT.orbit,
        band_fields=ABOUT.band_fields,
        modality_fields=ABOUT.modality_fields,
        columns=ABOUT.columns,
        name_columns=ABOUT.name_columns if has_s1 else (),
        map_classes=(*plain.map_classes, *unlabelled),
        renders=tuple(render for render in shown if render is not FALSE_COLOR) or tuple(shown),
        further_renders=tuple(render for render in shown if render is FALSE_COLOR),
        thumbnail=shown[0] if shown else None,
    )


def _without_class(code: int) -> MapClass:
    """A code of a map that counts as unlabelled; `MAP_UNLABELLED` means that nothing is known there."""
    is_nodata = code == MAP_UNLABELLED
    return MapClass(
        value=code,
        name="unlabelled" if is_nodata else f"code_{code}",
        title="UNLABELED" if is_nodata else f"Code {code}, without a class",
        label=None,
        color="#0a0a0a" if is_nodata else "#808080",
        is_nodata=is_nodata,
    )


@lru_cache(maxsize=16)
def about(schema: Schema) -> About:
    """What is known of a dataset: by its schema's name, by modalities that are like reBEN's, or by neither."""
    if schema.name == REBEN.name:
        return ABOUT
    return _own(schema) if is_alike(schema) else About.plain(schema)
