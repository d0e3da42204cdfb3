"""What is made of the products of one destination, and what it is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import PATCH_M
from reben_cloud.bigearthnet.country import Countries
from reben_cloud.bigearthnet.v1 import V1Patch, list_files, read_v1
from reben_cloud.scenes.land_cover import REBEN19, ClassTable
from reben_cloud.scenes.official_s1 import v1_files
from reben_cloud.scenes.provenance import identify, identify_many
from reben_cloud.scenes.safe import SafeProduct
from reben_cloud.scenes.sentinel1 import Scene


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOptions:
    """How products are cut into patches, and what goes into these; the same for all products of a destination."""

    clc: Path
    """CORINE vector file."""
    table: ClassTable = REBEN19
    """Class of each land-cover code."""
    code_column: str = "code_18"
    """Column of the vector file with the code."""
    countries: Countries
    """Polygons for the country column."""
    v1: Path | None = None
    """Folder of v1 lists; only squares that v1 has are kept. None keeps all."""
    s1_v1: Path | None = None
    """Folder of official S1 patches, found by the names that `v1` gives."""
    s1_scenes: tuple[Scene, ...] = ()
    """Terrain-corrected scenes to cut S1 patches from, where there is no `s1_v1`."""
    patch_m: int = PATCH_M
    """Side of a patch, metres; a multiple of 60 in [60, 109800]."""

    def __post_init__(self) -> None:
        if not self.clc.is_file():
            raise FileNotFoundError(f"{self.clc}: no such land-cover file")
        if self.patch_m % 60 or not 60 <= self.patch_m <= grid.TILE_M:
            raise ValueError(
                f"patch_m (--patch-size) must be a multiple of 60 m in [60, {grid.TILE_M}], got {self.patch_m}"
            )
        if self.s1_v1 is not None and self.v1 is None:
            raise ValueError("official S1 patches are paired by v1's lists: give their folder too (v1)")
        if self.s1_v1 is not None and self.s1_scenes:
            raise ValueError("give official S1 patches or scenes, not both")

    @property
    def has_s1(self) -> bool:
        """Whether patches get a Sentinel-1 part; those without one are then left out."""
        return self.s1_v1 is not None or bool(self.s1_scenes)

    def identity(self) -> dict[str, str]:
        """What all products of a destination share, and must share with those that are there."""
        borders = hashlib.sha256()
        for name, polygon in self.countries.polygons.items():
            borders.update(name.encode() + polygon.wkb)
        classes = json.dumps(sorted(self.table.classes.items())).encode()
        found = {
            "patch size": f"{self.patch_m} m",
            "column of codes": self.code_column,
            "classes": f"{self.table.name}, digest {hashlib.sha256(classes).hexdigest()[:16]}",
            "countries": f"{len(self.countries.polygons)}, digest {borders.hexdigest()[:16]}",
            "Sentinel-1": "patches" if self.s1_v1 else "scenes" if self.s1_scenes else "none",
            **identify("land cover", self.clc),
        }
        for path in () if self.v1 is None else list_files(self.v1):
            found |= identify("v1 list", path)
        return found

    def read_v1(self, product: SafeProduct) -> Mapping[tuple[int, int], V1Patch] | None:
        """What v1 says of a product, (x, y) -> patch; None where squares that v1 lacks are kept too."""
        return None if self.v1 is None else read_v1(self.v1, product.name)

    def inputs_of(self, product: SafeProduct, v1: Mapping[tuple[int, int], V1Patch] | None) -> dict[str, str]:
        """What one product is made from: its generation and files, and the Sentinel-1 that may go into it.

        Args:
            product: The product.
            v1: What `read_v1` gives for it.
        """
        found = {"generation time": product.generation}
        for path in product.files:
            found |= identify("Sentinel-2", path)
        for scene in self.s1_scenes:
            if scene.reaches(epsg=product.epsg, bounds=product.bounds):
                for path in scene.files:
                    found |= identify("Sentinel-1", path)
        if self.s1_v1 is not None and v1 is not None:
            names = [patch.s1_name for patch in v1.values() if patch.s1_name is not None]
            patches = [v1_files(self.s1_v1, name, missing_ok=True).values() for name in names]
            found["Sentinel-1 patches"] = identify_many("Sentinel-1", chain.from_iterable(patches))
        return found
