"""What is made of the products of one destination, and what it is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import PATCH_M
from reben_cloud.bigearthnet.country import Countries
from reben_cloud.bigearthnet.own import ALL_BANDS, OWN_NAME, check_bands, largest_pixel, own_schema
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.bigearthnet.v1 import V1Patch, list_files, read_v1
from reben_cloud.scenes.area import Degrees
from reben_cloud.scenes.choice import ALL_SCENES, SceneChoice
from reben_cloud.scenes.class_table import REBEN19, ClassTable
from reben_cloud.scenes.land_raster import files_reaching, raster_files
from reben_cloud.scenes.official_s1 import v1_files
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.provenance import identify, identify_many
from reben_cloud.scenes.quality import FlagRule
from reben_cloud.scenes.sentinel1 import Scene
from reben_cloud.scenes.split import PaperSplit, SplitRule
from reben_cloud.schema import Schema

CODE_COLUMN = "code_18"
"""Column of CORINE 2018 with the land-cover code; in the official file in capitals, which do not count."""

SCENE_ROLE = "Sentinel-1"
"""What a scene is called in the inputs of a product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOptions:
    """How products are cut into patches, and what goes into these; the same for all products of a destination."""

    land_cover: Path
    """Land cover: a vector file, as CORINE's, or a raster (GeoTIFF, VRT, Zarr, or a folder of some)."""
    name: str = ""
    """Name of the dataset; where empty, reBEN's of what is made by the paper's recipe."""
    table: ClassTable = REBEN19
    """Class of each land-cover code."""
    code_column: str = CODE_COLUMN
    """Column of the vector file with the code."""
    countries: Countries
    """Polygons for the country column."""
    v1: Path | None = None
    """Folder of v1 lists; only squares that v1 has are kept. None keeps all."""
    s1_v1: Path | None = None
    """Folder of official S1 patches, found by the names that `v1` gives."""
    s1_scenes: tuple[Scene, ...] = ()
    """Terrain-corrected scenes to cut S1 patches from, where there is no `s1_v1`."""
    s1_choice: SceneChoice = ALL_SCENES
    """Which of the scenes may go with a product."""
    bands: tuple[str, ...] = ALL_BANDS
    """Bands of Sentinel-2 that patches get; a zero pixel in another band rejects no patch."""
    patch_m: int = PATCH_M
    """Side of a patch, metres; a multiple of the largest pixel of `bands`, at most 109800."""
    box: Degrees | None = None
    """West, south, east and north in degrees: only squares that lie within are kept; None keeps all."""
    split: SplitRule = field(default_factory=PaperSplit)
    """Which split a patch belongs to."""
    flags: FlagRule = field(default_factory=FlagRule)
    """From which shares of cloud, shadow and snow on patches are flagged, where there are no v1 lists."""

    def __post_init__(self) -> None:
        if not self.land_cover.exists():
            raise FileNotFoundError(f"{self.land_cover}: no such land-cover file")
        check_bands(self.bands)
        pixel_m = largest_pixel(self.bands)
        if self.patch_m % pixel_m or not pixel_m <= self.patch_m <= grid.TILE_M:
            raise ValueError(
                f"patch_m (--patch-size) must be a multiple of {pixel_m} m, the largest pixel of the bands, in "
                f"[{pixel_m}, {grid.TILE_M}], got {self.patch_m}"
            )
        if self.s1_v1 is not None and self.v1 is None:
            raise ValueError("official S1 patches are paired by v1's lists: give their folder too (v1)")
        if self.s1_v1 is not None and self.s1_scenes:
            raise ValueError("give official S1 patches or scenes, not both")

    @property
    def has_s1(self) -> bool:
        """Whether patches get a Sentinel-1 part; those without one are then left out."""
        return self.s1_v1 is not None or bool(self.s1_scenes)

    @property
    def schema(self) -> Schema:
        """What patches have."""
        made = own_schema(
            name=self.name or OWN_NAME,
            patch_m=self.patch_m,
            bands=self.bands,
            has_s1=self.has_s1,
            classes=self.table.classes,
            land_cover=self.table.title or self.table.name,
        )
        known = REBEN.only(made.modality_names)
        is_known = (made.modalities, made.classes, made.patch_m) == (
            known.modalities,
            known.classes,
            known.patch_m,
        )
        return known if self._has_papers_rules and is_known else made

    @property
    def _has_papers_rules(self) -> bool:
        """Whether patches are chosen, mapped, paired and described as the paper's; of any rule else they are others."""
        return (
            self.v1 is not None
            and not self.name
            and self.table == REBEN19
            and self.code_column.lower() == CODE_COLUMN
            # CORINE's raster edition has other borders than the polygons that the maps are made of.
            and not raster_files(self.land_cover)
            and self.countries.are_rebens
            and self.split == PaperSplit()
            and (self.s1_choice == ALL_SCENES or not self.s1_scenes)
        )

    @property
    def is_official(self) -> bool:
        """Whether this is the paper's recipe, which ends in official metadata: no column more, none less."""
        return self.schema.name == REBEN.name

    def identity(self) -> dict[str, str]:
        """What all products of a destination share, and must share with those that are there."""
        borders = hashlib.sha256()
        for name, polygon in self.countries.polygons.items():
            borders.update(name.encode() + polygon.wkb)
        limit = self.countries.max_distance_m
        classes = json.dumps(sorted(self.table.labels.items())).encode()
        found = {
            "patch size": f"{self.patch_m} m",
            "column of codes": self.code_column,
            "classes": f"{self.table.name}, digest {hashlib.sha256(classes).hexdigest()[:16]}",
            "countries": f"{len(self.countries.polygons)}, digest {borders.hexdigest()[:16]}"
            + ("" if limit is None else f", within {limit:g} m"),
            "Sentinel-1": "patches" if self.s1_v1 else "scenes" if self.s1_scenes else "none",
            **self._identity_of_schema(),
        }
        if not raster_files(self.land_cover):
            found |= identify("land cover", self.land_cover)
        for path in () if self.v1 is None else list_files(self.v1):
            found |= identify("v1 list", path)
        return found

    def _identity_of_schema(self) -> dict[str, str]:
        """What else tells datasets apart, where it is not reBEN's: nothing is new in what was begun before."""
        found = self.split.identity() | self.s1_choice.identity()
        if self.v1 is None:
            found["flags"] = (
                f"cloud or shadow from {self.flags.cloud_or_shadow:g}, snow from {self.flags.snow:g}"
            )
        if self.box is not None:
            found["box"] = ", ".join(f"{degrees:g}" for degrees in self.box)
        if self.name:
            found["name"] = self.name
        if {*self.bands} != {*ALL_BANDS}:
            found["bands"] = ", ".join(sorted(self.bands, key=ALL_BANDS.index))
        classes = self.table.classes
        rules = classes.colors, classes.label_rule, classes.min_share, self.table.nodata, self.table.title
        if self.table != REBEN19:
            found["rules of classes"] = hashlib.sha256(repr(rules).encode()).hexdigest()[:16]
        return found

    def read_v1(self, product: Product) -> Mapping[tuple[int, int], V1Patch] | None:
        """What v1 says of a product, (x, y) -> patch; None where squares that v1 lacks are kept too."""
        return None if self.v1 is None else read_v1(self.v1, product.name)

    def inputs_of(self, product: Product, v1: Mapping[tuple[int, int], V1Patch] | None) -> dict[str, str]:
        """What one product is made from: its generation and files, rasters of land cover and Sentinel-1 that reach it.

        What is not near it may be added or taken away later, with further products.

        Args:
            product: The product.
            v1: What `read_v1` gives for it.
        """
        found = product.inputs(masks=not self.is_official)
        for path in files_reaching(raster_files(self.land_cover), epsg=product.epsg, bounds=product.bounds):
            found |= identify("land cover", path)
        for scene in self.s1_choice.ordered(
            self.s1_scenes, time=product.time, epsg=product.epsg, bounds=product.bounds
        ):
            if scene.reaches(epsg=product.epsg, bounds=product.bounds):
                for path in scene.files:
                    found |= identify(SCENE_ROLE, path)
        if self.s1_v1 is not None and v1 is not None:
            names = [patch.s1_name for patch in v1.values() if patch.s1_name is not None]
            patches = [v1_files(self.s1_v1, name, missing_ok=True).values() for name in names]
            found["Sentinel-1 patches"] = identify_many("Sentinel-1", chain.from_iterable(patches))
        return found
