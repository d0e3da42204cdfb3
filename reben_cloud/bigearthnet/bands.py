"""Facts about bands: names, sensors, resolutions, shapes, dtypes, statistics, named band sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PATCH_M = 1200
"""Side of a patch on the ground, metres."""

MAP_UNLABELLED = 999
"""Code of a reference-map pixel that CORINE does not cover."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """One band of Sentinel-2 or polarization of Sentinel-1 as reBEN stores it."""

    name: str
    """Official name, zero-padded: ``B02``, ``B8A``, ``VV``."""
    sensor: str
    """``s2`` or ``s1``."""
    resolution_m: int
    """Size of a pixel in metres: 10, 20 or 60."""
    dtype: str
    """``uint16`` digital numbers (reflectance x 10,000) or ``float32`` decibel."""
    common_name: str | None = None
    """STAC eo common name."""
    center_wavelength_um: float | None = None
    """Centre wavelength in micrometres (Sentinel-2A MSI spectral response functions)."""
    full_width_um: float | None = None
    """Full width at half maximum in micrometres."""

    @property
    def size_px(self) -> int:
        """Height and width of the band in a patch, pixels: 120, 60 or 20."""
        return PATCH_M // self.resolution_m


def _s2(name: str, resolution_m: int, common: str | None, centre: float, width: float) -> Band:
    return Band(
        name=name,
        sensor="s2",
        resolution_m=resolution_m,
        dtype="uint16",
        common_name=common,
        center_wavelength_um=centre,
        full_width_um=width,
    )


_BANDS = (
    _s2("B01", 60, "coastal", 0.443, 0.027),
    _s2("B02", 10, "blue", 0.490, 0.098),
    _s2("B03", 10, "green", 0.560, 0.045),
    _s2("B04", 10, "red", 0.665, 0.038),
    _s2("B05", 20, "rededge071", 0.704, 0.019),
    _s2("B06", 20, "rededge075", 0.740, 0.018),
    _s2("B07", 20, "rededge078", 0.783, 0.028),
    _s2("B08", 10, "nir", 0.842, 0.145),
    _s2("B8A", 20, "nir08", 0.865, 0.033),
    _s2("B09", 60, "nir09", 0.945, 0.026),
    _s2("B11", 20, "swir16", 1.610, 0.143),
    _s2("B12", 20, "swir22", 2.190, 0.242),
    Band(name="VV", sensor="s1", resolution_m=10, dtype="float32"),
    Band(name="VH", sensor="s1", resolution_m=10, dtype="float32"),
)

BANDS: Mapping[str, Band] = MappingProxyType({band.name: band for band in _BANDS})
"""Band name -> band; Sentinel-2 by wavelength, then VV and VH."""

ARRAYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "s2_10m": ("B02", "B03", "B04", "B08"),
        "s2_20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
        "s2_60m": ("B01", "B09"),
        "s1": ("VV", "VH"),
    }
)
"""Array of a batch or Zarr store -> its bands, in order."""

MODALITIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"s2": ("s2_10m", "s2_20m", "s2_60m"), "s1": ("s1",), "map": ("map",)}
)
"""Modality -> the arrays of a batch that it fills."""

_TEN = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
_TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

BAND_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "S1": ("VV", "VH"),
        "RGB": ("B04", "B03", "B02"),
        "10m": ("B02", "B03", "B04", "B08"),
        "20m": ("B05", "B06", "B07", "B8A", "B11", "B12"),
        "60m": ("B01", "B09"),
        "10m_20m": _TEN,
        "S1_10m_20m": ("VV", "VH", *_TEN),
        "S2": _TWELVE,
        "ALL": ("VV", "VH", *_TWELVE),
    }
)
"""Named band sets in the order of ConfigILM 0.7 and of the published models v0.2.0."""

BAND_SETS_V011: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "S1": ("VH", "VV"),
        "10m_20m": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B11", "B12", "B8A"),
        "S1_10m_20m": (
            *("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B11", "B12", "B8A"),
            *("VH", "VV"),
        ),
    }
)
"""The band sets of the published models v0.1.1, which order bands differently."""

STATISTICS_MEAN: Mapping[str, float] = MappingProxyType(
    {
        "VV": -12.643863677978516,
        "VH": -19.352558135986328,
        "B01": 361.0767822265625,
        "B02": 438.3720703125,
        "B03": 614.0556640625,
        "B04": 588.4096069335938,
        "B05": 942.8433227539062,
        "B06": 1769.931640625,
        "B07": 2049.551513671875,
        "B08": 2193.2919921875,
        "B8A": 2235.556640625,
        "B09": 2241.455322265625,
        "B11": 1568.226806640625,
        "B12": 997.7324829101562,
    }
)
"""Mean of each band over the train split, DN and dB (ConfigILM 0.7.1, ``120_nearest``)."""

STATISTICS_STD: Mapping[str, float] = MappingProxyType(
    {
        "VV": 5.133493900299072,
        "VH": 5.590505599975586,
        "B01": 575.0687255859375,
        "B02": 607.02685546875,
        "B03": 603.2968139648438,
        "B04": 684.56884765625,
        "B05": 738.4326782226562,
        "B06": 1100.4560546875,
        "B07": 1275.805419921875,
        "B08": 1369.3717041015625,
        "B8A": 1356.5440673828125,
        "B09": 1316.393310546875,
        "B11": 1070.1612548828125,
        "B12": 813.5276489257812,
    }
)
"""Standard deviation of each band over the train split, DN and dB (same source)."""
