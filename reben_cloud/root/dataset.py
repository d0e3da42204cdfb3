"""A root, or an LMDB read like one: what it holds, search, and its patches as xarray.

What stands higher in the house (search, views) is called by late imports, in methods of one statement.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from reben_cloud.bigearthnet.about import about
from reben_cloud.bigearthnet.inputs import BandStatistics
from reben_cloud.root.backing import Backing, RootObjects
from reben_cloud.root.documents import read_objects
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layers import Layer, with_layers
from reben_cloud.root.manifest import Manifest
from reben_cloud.root.objects import Objects, WrittenObject
from reben_cloud.root.query import Balance, GeoInterface, Names, Query, Share, When
from reben_cloud.root.selection import Selection
from reben_cloud.root.summary import summary
from reben_cloud.root.table import PatchTable
from reben_cloud.schema import Schema, respelled
from reben_cloud.store import Store

if TYPE_CHECKING:
    import xarray as xr


class Dataset:
    """A published root, or an LMDB that is read like one; made by `reben_cloud.open`. Picklable.

    Opening reads the manifest only; everything else is read when it is asked for.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        backing: Backing | None = None,
        layers: Sequence[Layer] = (),
    ) -> None:
        self.store = store
        """Where its objects lie."""
        self.manifest = manifest
        """What the root says of itself (``manifest.json``), or the export (``export.json``)."""
        self.backing: Backing = RootObjects() if backing is None else backing
        """What payloads are read from: the objects of the root, by default."""
        self._layers = tuple(layers)

    def __len__(self) -> int:
        """Number of patches."""
        return self.manifest.num_patches

    def __repr__(self) -> str:
        return f"Dataset({self.store.url!r}, {len(self):,} patches, {', '.join(self.modalities)})"

    def _repr_html_(self) -> str:
        """A small map and counts, for notebooks."""
        from reben_cloud.views.card import dataset_html

        return dataset_html(self)

    @property
    def url(self) -> str:
        """Where the root lies."""
        return self.store.url

    @cached_property
    def schema(self) -> Schema:
        """What every patch has: modalities, those of layers last, classes, size."""
        return with_layers(self.manifest.schema, self._layers)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of what every patch has, and of array layers."""
        return self.schema.modality_names if self._layers else self.manifest.modalities

    def choose_modalities(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Those of these names, which may be written in any case, in the dataset's order; all of them by default.

        Raises:
            ValueError: If one is not there.
        """
        there = self.modalities
        chosen = respelled(names or (), there)
        for name in chosen:
            if name not in there:
                is_table = name in self.layers
                raise ValueError(
                    f"modality {name!r} is not in {self.url}, which has {', '.join(there) or 'none'}"
                    + (
                        "; the layer of that name is a table: its columns= come with any of them"
                        if is_table
                        else ""
                    )
                )
        return tuple(name for name in there if name in (chosen or there))

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Layers that stand beside the root, by name."""
        return {layer.name: layer for layer in self._layers}

    @cached_property
    def band_statistics(self) -> Mapping[str, BandStatistics]:
        """What normalises the bands of layers, by name of the band, for `ModelInput` and recipes.

        Mean and standard deviation over the patches of split train; a band without spread has none.
        """
        return {
            name: BandStatistics(mean=found["mean"], std=found["std"])
            for name, place in self.schema.bands.items()
            if (layer := self.layers.get(place.modality)) is not None
            and (found := layer.manifest.statistics.get(place.tensor.name)) is not None
            and found["std"] > 0
        }

    def with_layers(self, *layers: Layer) -> Dataset:
        """The same dataset with these layers beside it, after those that it has.

        Raises:
            ConflictError: If one was made for another root.
            ValueError: If a name is taken: by another layer, a modality, or an array of a batch.
        """
        for layer in layers:
            layer.check_root(self.manifest, url=self.url)
        found = Dataset(self.store, self.manifest, backing=self.backing, layers=(*self._layers, *layers))
        own = self.manifest.layers if isinstance(self.manifest, ExportManifest) else {}
        names = [*dict.fromkeys([*self.manifest.modalities, *own]), *(layer.name for layer in found._layers)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"{self.url} has two things named {twice[0]!r}; layers and modalities need different names"
            )
        _ = found.schema  # refuses arrays of one name
        return found

    def without_layers(self) -> Dataset:
        """The same dataset with nothing beside it."""
        return Dataset(self.store, self.manifest, backing=self.backing)

    @property
    def products(self) -> list[str]:
        """Names of the products, sorted."""
        return list(self.manifest.products)

    @property
    def countries(self) -> list[str]:
        """Names that a search by country may use: those of the whole dataset and those of this root."""
        return sorted({*about(self.schema).countries, *self.manifest.countries})

    @property
    def former_fingerprint(self) -> str | None:
        """What the first version called an LMDB that has no tables of its own; None for everything else."""
        return self.backing.former_fingerprint()

    @cached_property
    def patch_table(self) -> PatchTable:
        """The table of all patches, read as far as it is asked for."""
        return PatchTable(self.store, self.manifest, self._layers)

    @cached_property
    def selection(self) -> Selection:
        """Every patch of the dataset."""
        return Selection(self, self.patch_table, np.arange(len(self), dtype=np.int64))

    def search(
        self,
        *,
        bbox: str | Sequence[float] | None = None,
        intersects: str | Mapping[str, object] | GeoInterface | None = None,
        datetime: When | None = None,
        labels: Names | None = None,
        labels_all: Names | None = None,
        split: Names | None = None,
        country: Names | None = None,
        product: Names | None = None,
        ids: Names | os.PathLike[str] | None = None,
        missing_ok: bool = False,
        ids_order: bool = False,
        s1_datetime: When | None = None,
        season: Names | None = None,
        snow: bool | None = None,
        cloud: bool | None = None,
        recommended: bool | None = None,
        has: Names | None = None,
        share: Share | None = None,
        cql2: str | Mapping[str, object] | None = None,
        sortby: Names | None = None,
        limit: int | None = None,
        sample: int | None = None,
        sample_seed: int | None = None,
        balance: Balance | None = None,
        min_distance_m: float | None = None,
    ) -> Selection:
        """The patches that fit every condition given, in the order of the table unless sorted.

        None does not narrow. Where one or several are taken, a string is one.

        Args:
            bbox: West, south, east, north in degrees; patches that touch it, such as
                ``bbox=(13.0, 47.5, 13.5, 48.0)`` or ``bbox="13,47.5,13.5,48"``. West > east is a box over the
                antimeridian.
            intersects: A GeoJSON geometry or Feature, a shapely geometry or WKT, in degrees; exact, such as
                ``intersects="POLYGON ((13 47, 16 47, 16 49, 13 47))"`` or
                ``intersects={"type": "Point", "coordinates": [13.2, 47.8]}``.
            datetime: Sentinel-2 acquisition: an instant, or an interval with ``..`` for an open end (RFC 3339;
                a month or a day means all of it), such as ``datetime="2017-06-13"``,
                ``datetime="2017-06/2017-08"`` or ``datetime="2018-01-01T00:00:00Z/.."``; or a date, datetime
                or pandas Timestamp, or two of them, such as ``datetime=("2017-06", None)``. Ends are included.
            labels: Patches with at least one of these classes, such as ``labels="Pastures"`` or
                ``labels=["Mixed forest", "Pastures"]``.
            labels_all: Patches with all of these classes, such as ``labels_all=["Arable land", "Pastures"]``.
            split: ``train``, ``validation`` or ``test``, one or several, such as ``split="train"`` or
                ``split=["train", "validation"]``.
            country: English names, one or several, such as ``country="Finland"`` or
                ``country=["Austria", "Switzerland"]``; `countries` lists them.
            product: Names of Sentinel-2 products, one or several; `products` lists them. Such as
                ``product="S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"``.
            ids: Patch ids, such as ``ids=["S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"]``; an empty
                list finds nothing. Names in BigEarthNet v1 and of the Sentinel-1 patch stand for the patch too.
                A path object (``pathlib.Path("ids.txt")``) is a file of them: one per line, or a CSV or parquet
                file with a column ``patch_id``.
            missing_ok: Leave out ids that the dataset lacks, instead of an error: ``missing_ok=True``.
            ids_order: List the patches in the order of `ids`, each once: ``ids_order=True``. `Selection.patch_ids`,
                columns and `to_xarray` keep it, and so does a loader with ``shuffle=False``; an export has its own.
            s1_datetime: Sentinel-1 acquisition, written as `datetime`, such as ``s1_datetime="2017-06/.."``.
            season: ``spring``, ``summer``, ``fall`` or ``winter`` of the Sentinel-2 acquisition, one or
                several, such as ``season=["spring", "fall"]``.
            snow: With or without seasonal snow, such as ``snow=False``.
            cloud: With or without cloud or shadow, such as ``cloud=False``.
            recommended: True leaves out snow, cloud and shadow, as training recipes do; False keeps only the
                patches with any of these; None has both. Such as ``recommended=True``.
            has: Layers that have something for the patch, one or several, such as ``has="elevation"`` or
                ``has=["elevation", "climate"]``; `layers` lists them.
            share: About so large a part of the patches, chosen by a hash of the id alone, such as ``share=0.1``, which
                is in ``share=0.2``; or what lies between two ends, such as ``share=(0.5, 0.75)`` or
                ``share="0.5/0.75"``, so that parts that do not overlap have no patch in common. The same in every
                search, in every dataset that has the patch, and for good.
            cql2: A CQL2 filter over the columns, text or JSON (needs the ``stac`` extra), such as
                ``cql2="country = 'Finland' AND datetime < DATE('2017-09-01')"`` or
                ``cql2={"op": "=", "args": [{"property": "split"}, "test"]}``. A ``DATE`` is a day, in UTC; a
                value that an Item lacks is null, so a comparison with it finds nothing. Columns of layers are named
                ``"climate:zone"``, with the quotes, and ``"climate:present"``. Where a patch has several rows in a
                layer, such as texts, it is found if the whole filter holds for at least one of them; a filter names
                columns of one such layer at most.
            sortby: Columns, a leading ``-`` for descending order, such as ``sortby="-datetime"`` or
                ``sortby=["country", "-datetime"]``.
            limit: At most so many patches, the first in that order; at least 1, such as ``limit=100``.
            sample: So many patches, drawn at random from all that fit the other conditions, such as
                ``sample=5``; in the order of the table unless sorted. The same everywhere and for good, and part
                of any larger sample of the same search and seed.
            sample_seed: Another seed draws another sample, and another share; at least 0, such as ``sample_seed=7``;
                0 by default.
            balance: Draw evenly over ``label``, ``country`` or ``season``, such as ``balance="label"``: the group
                that has the fewest so far gets the next patch. A country or season with too few gives all its
                patches, and the others share the rest. A class gets first the patches that add least to
                classes above the mean, as a patch counts for all of its classes.
            min_distance_m: The centres of any two patches of the sample are at least so many metres apart on the
                ground, above 0, such as ``min_distance_m=2000``; several dates of one place are 0 m apart.

        Raises:
            NotFoundError: If the dataset lacks one of `ids`, or fewer patches than `sample` can be had; it says
                how many.
            TypeError: If an argument is of a type that it does not take.
            ValueError: If a condition cannot be understood; unknown names come with the nearest ones.
        """
        return self.select(
            Query(
                bbox=bbox,
                intersects=intersects,
                datetime=datetime,
                labels=labels,
                labels_all=labels_all,
                split=split,
                country=country,
                product=product,
                ids=ids,
                missing_ok=missing_ok,
                ids_order=ids_order,
                s1_datetime=s1_datetime,
                season=season,
                snow=snow,
                cloud=cloud,
                recommended=recommended,
                has=has,
                share=share,
                cql2=cql2,
                sortby=sortby,
                limit=limit,
                sample=sample,
                sample_seed=sample_seed,
                balance=balance,
                min_distance_m=min_distance_m,
            )
        )

    def select(self, query: Query) -> Selection:
        """The patches that fit a query, which keeps for the selection what it was found by; raises as `search`."""
        from reben_cloud.search import find_rows

        return Selection(self, self.patch_table, find_rows(self, query), query=query)

    def summary(self) -> str:
        """A few lines for people."""
        return summary(self)

    def open_zarr(self, product: str) -> xr.Dataset:
        """A product's Zarr store as a lazy xarray Dataset.

        Array layers stand beside its variables, as lazy, with their title, units and fill value; ``<layer>_present``
        (patch) says where they have more than that. Pixels that are lost or damaged are an error when they are read.

        Raises:
            NotFoundError: If the dataset has no such product, or has lost it.
            ChecksumError: If its metadata are damaged.
        """
        from reben_cloud.views.raster import open_product

        return open_product(self, product)

    def listed(self, prefix: str) -> dict[str, WrittenObject]:
        """Path below `prefix` of each object that the root lists there -> what it lists."""
        return {
            path.removeprefix(prefix): self._objects[path]
            for path in self._objects
            if path.startswith(prefix)
        }

    @cached_property
    def _objects(self) -> Objects:
        return read_objects(self.store, self.manifest)

    def open_patch(self, patch_id: str) -> xr.Dataset:
        """One patch as a lazy xarray Dataset with x and y coordinates and CRS; array layers as in `open_zarr`.

        Raises:
            NotFoundError: If the dataset has no such patch, or has lost it.
            ChecksumError: If the Zarr store has another patch in its place, or is damaged.
        """
        from reben_cloud.views.raster import open_patch

        return open_patch(self, patch_id)

    def mosaic(
        self,
        product: str,
        *,
        bands: str | Sequence[str] | None = None,
        bbox: str | Sequence[float] | None = None,
    ) -> xr.DataArray:
        """The patches of a product as one georeferenced raster (band, y, x), lazy.

        Args:
            product: Name of the product.
            bands: One or several bands of one pixel size, or ``reference_map`` alone; by default those of the
                dataset's picture of a product, true colour.
            bbox: West, south, east, north in degrees, to have less of it.

        Raises:
            ValueError: If the bands have several pixel sizes, or the box cannot be understood.
            NotFoundError: If there is no such product, band, or patch in the box.
        """
        from reben_cloud.views.raster import open_mosaic

        return open_mosaic(self, product, bands=bands, bbox=bbox)
