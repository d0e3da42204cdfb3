"""Which bands a model reads, by the name of a set or one by one, and what normalises them.

The named sets and the statistics are reBEN's; bands of any other schema are chosen by their names,
and their statistics are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from reben_cloud.bigearthnet.bands import BAND_SETS, BAND_SETS_V011, STATISTICS_MEAN, STATISTICS_STD
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.schema import Schema

Generation = Literal["v0.2.0", "v0.1.1"]
"""Generation of the published models, which differ in the order of a set's bands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BandStatistics:
    """What normalises a band: the values less `mean`, divided by `std`.

    Raises:
        ValueError: If `mean` is not finite, or `std` not a finite number above 0.
    """

    mean: float
    """Mean over the training patches, in the units of the band."""
    std: float
    """Standard deviation over them."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"std must be finite and above 0, got {self.std}")


PUBLISHED: Mapping[str, BandStatistics] = MappingProxyType(
    {name: BandStatistics(mean=STATISTICS_MEAN[name], std=STATISTICS_STD[name]) for name in STATISTICS_MEAN}
)
"""Statistics of reBEN's bands over its train split."""


def choose_bands(
    bands: str | Sequence[str], *, schema: Schema = REBEN, models: Generation = "v0.2.0"
) -> tuple[str, ...]:
    """The bands of a named set, or the given ones, all of which the schema has.

    Args:
        bands: A set of `bands.BAND_SETS`, or names as a sequence or joined by commas. For a schema
            without any of reBEN's bands there is one set: ``ALL``, its bands in order.
        schema: What the patches hold.
        models: Whose order of bands a set's name means.

    Raises:
        ValueError: If a name is unknown, or means several bands, or it is a set whose order is not known for the
            generation.
    """
    if models not in ("v0.2.0", "v0.1.1"):
        raise ValueError(f"models must be 'v0.2.0' or 'v0.1.1', got {models!r}")
    sets = _band_sets(schema, models)
    if models == "v0.1.1" and isinstance(bands, str) and bands in _ORDER_UNKNOWN:
        raise ValueError(
            f"bands: no model v0.1.1 of the set {bands} was published, and ConfigILM 0.6 ordered it otherwise than "
            "0.7; name the bands one by one, in the order of your model"
        )
    if isinstance(bands, str):
        names = sets.get(bands) or tuple(name.strip() for name in bands.split(","))
    else:
        names = tuple(bands)
    if not names:
        raise ValueError("bands: none given")
    for name in names:
        if name not in schema.bands:
            raise ValueError(f"bands: {name!r} {_why_not(name, schema, sets)}")
    return names


_ORDER_UNKNOWN = ("20m", "S2", "ALL")
"""Sets whose order in ConfigILM 0.6 is neither that of 0.7 nor that of a published model."""


def _band_sets(schema: Schema, models: Generation) -> Mapping[str, tuple[str, ...]]:
    if PUBLISHED.keys() & schema.bands.keys():
        return {**BAND_SETS, **(BAND_SETS_V011 if models == "v0.1.1" else {})}
    return {"ALL": tuple(schema.bands)}


def _why_not(name: str, schema: Schema, sets: Mapping[str, tuple[str, ...]]) -> str:
    qualified = [known for known in schema.bands if known.endswith(f":{name}")]
    if qualified:
        return f"is in several modalities; write {' or '.join(qualified)}"
    if any(name in modality.specs for modality in schema.modalities):
        return (
            f"is a tensor of {schema.name}, but not a band: a square image with a pixel size, and not the map"
        )
    if name in PUBLISHED:
        return (
            f"is a band of reBEN that this dataset does not have; it has {', '.join(schema.bands) or 'none'}"
        )
    return (
        f"is neither a band set ({', '.join(sets)}) nor a band of {schema.name} "
        f"({', '.join(schema.bands) or 'it has none'})"
    )


def statistics_of(
    bands: Sequence[str], *, schema: Schema = REBEN, given: Mapping[str, BandStatistics] | None = None
) -> tuple[BandStatistics, ...]:
    """The statistics of each band: those given, otherwise reBEN's where it is a band of reBEN.

    A band of reBEN has its name, dtype and units: ``B02`` as a reflectance of float32 is another one.

    Raises:
        ValueError: If a band has none.
    """
    given = given or {}
    found = []
    for band in bands:
        if band in given:
            found.append(given[band])
        elif band in PUBLISHED and _kind(schema, band) == _kind(REBEN, band):
            found.append(PUBLISHED[band])
        else:
            raise ValueError(
                f"band {band} of {schema.name} is not one of reBEN's, so its mean and standard deviation must be "
                f"given: statistics.{band}, with mean and std over the training patches"
            )
    return tuple(found)


def _kind(schema: Schema, band: str) -> tuple[str, str | None]:
    tensor = schema.bands[band].tensor
    return tensor.dtype, tensor.units
