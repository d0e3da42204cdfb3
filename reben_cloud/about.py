"""What people want to know of a dataset beyond its schema: its name and terms, how to look at it.

Documents, pictures and pages are made from a `Schema` and an `About`. A dataset without one of its
own gets `About.plain`, which follows from the schema alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from reben_cloud.schema import ArraySpec, Modality, Schema


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """What becomes red, green or blue: a tensor, or the difference of two."""

    tensor: str
    """Name of the tensor, (y, x)."""
    minus: str | None = None
    """Tensor that is subtracted from it."""
    low: float = 0
    """Value that is black."""
    high: float
    """Value that is brightest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Render:
    """A picture that can be made of a patch."""

    name: str
    """Part of a URL, e.g. ``true-color``."""
    title: str
    """For people."""
    caption: str
    """What stands below it on a page."""
    channels: tuple[Channel, Channel, Channel]
    """Red, green, blue; all of one array."""
    gamma: float = 1.5
    """Above 1 it lifts the shadows."""

    def array_in(self, schema: Schema) -> tuple[Modality, ArraySpec] | None:
        """The array that holds all of its tensors; None when the dataset has none."""
        wanted = {channel.tensor for channel in self.channels}
        wanted |= {channel.minus for channel in self.channels if channel.minus}
        for modality in schema.modalities:
            for array in modality.arrays:
                if wanted <= set(array.tensors):
                    return modality, array
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class MapClass:
    """One value of a map's pixels."""

    value: int
    """The pixel value."""
    name: str
    """Letters, digits, ``_`` and ``-``, as STAC's classification extension wants it."""
    title: str
    """For people."""
    label: str | None
    """The class of the schema that it belongs to."""
    color: str
    """``#rrggbb``."""
    is_nodata: bool = False
    """Whether it stands for pixels that nothing is known of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """An organisation, as in STAC."""

    name: str
    """Its name."""
    roles: tuple[str, ...]
    """Of ``licensor``, ``producer``, ``processor``, ``host``."""
    url: str
    """Its page."""
    description: str | None = None
    """What it provided."""
    fields: Mapping[str, Any] = field(default_factory=_nothing)
    """Further STAC fields."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How a dataset is published and cited."""

    doi: str
    """DOI of the data."""
    citation: str
    """How the authors ask to be cited."""
    paper_doi: str
    """DOI of the article."""
    published: str
    """Year and month, ``2024-07``."""
    version: str
    """Version of the data."""
    url: str
    """Home page."""
    page_title: str
    """What the home page is called."""
    data_title: str
    """What the DOI leads to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What is said of a dataset, and how its tensors are described and shown."""

    id: str
    """Short name: letters, digits and ``-``."""
    collection: str
    """Id of the STAC Collection of its patches, and the Collection's folder in a root."""
    title: str
    """Title of the collection."""
    description: str
    """What the dataset is, a sentence or two."""
    license: str = "other"
    """SPDX id, or ``other``."""
    license_url: str | None = None
    """Text of the licence."""
    license_title: str = "The licence"
    """What the licence is called."""
    card_name: str
    """Name in a catalog of machine-learning datasets."""
    card_alias: str | None = None
    """Another name by which it is known."""
    extension: str | None = None
    """URL of a STAC extension that defines the dataset's own fields."""
    keywords: tuple[str, ...] = ()
    """For catalogs."""
    providers: tuple[Provider, ...] = ()
    """Who made it, the maker first."""
    work: Work | None = None
    """How it is published; None for a dataset that is not."""
    acquisition: Mapping[str, Any] = field(default_factory=_nothing)
    """STAC fields that all products have, e.g. ``constellation``."""
    orbit: slice | None = None
    """Where the relative orbit stands in a product's name."""
    band_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=_nothing)
    """Tensor -> STAC fields of its band, e.g. ``eo:common_name``."""
    modality_fields: Mapping[str, Mapping[str, Any]] = field(default_factory=_nothing)
    """Modality -> STAC fields of an asset that holds it, e.g. ``sar:polarizations``."""
    columns: Mapping[str, str] = field(default_factory=_nothing)
    """Field of the metadata -> its title, where its own name does not say it well."""
    countries: tuple[str, ...] = ()
    """Names of all countries in which its patches lie, also those of which a root may have none."""
    name_columns: tuple[str, ...] = ()
    """Fields of the metadata that name what else belongs to a patch."""
    class_order: tuple[str, ...] = ()
    """Order in which documents list the classes; that of the schema when empty."""
    map_classes: tuple[MapClass, ...] = ()
    """The values of the map's pixels."""
    renders: tuple[Render, ...] = ()
    """Pictures of a patch."""
    further_renders: tuple[Render, ...] = ()
    """Pictures of a patch that an export can make, and that pages and documents do not show."""
    thumbnail: Render | None = None
    """Picture of a product."""

    @classmethod
    def plain(cls, schema: Schema) -> About:
        """What the schema alone says."""
        slug = re.sub(r"[^a-z0-9]+", "-", schema.name.lower()).strip("-") or "dataset"
        held = ", ".join(modality.title or modality.name for modality in schema.modalities)
        return cls(
            id=slug,
            # Not the short name alone: a dataset may be called Shards or Zarr, and a root has such folders.
            collection=f"{slug}-patches",
            title=schema.name,
            description=schema.description
            or f"Patches of {schema.patch_m:g} m with {len(schema.classes)} classes: {held or 'metadata'}.",
            license=schema.license,
            card_name=schema.name,
            map_classes=_classes_of(schema) if schema.map_array else (),
        )

    def title_of(self, column: str) -> str:
        """Title of a field of the metadata, e.g. ``Split`` of ``split``."""
        return self.columns.get(column) or column.removeprefix("contains_").replace("_", " ").capitalize()


def _classes_of(schema: Schema) -> tuple[MapClass, ...]:
    classes = schema.classes
    colors = classes.colors or ("#808080",) * len(classes)
    return tuple(
        MapClass(
            value=code,
            name=re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_") or f"class_{code}",
            title=name,
            label=name,
            color=color,
        )
        for name, color, codes in zip(classes.names, colors, classes.codes, strict=True)
        for code in codes
    )
