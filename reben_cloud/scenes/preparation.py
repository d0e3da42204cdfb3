"""What a preparation is asked for: inputs, rules, programs and places, and all of it by the names of the options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reben_cloud.bigearthnet.bands import PATCH_M
from reben_cloud.bigearthnet.own import ALL_BANDS
from reben_cloud.scenes.area import Degrees
from reben_cloud.scenes.choice import ALL_SCENES, SceneChoice
from reben_cloud.scenes.further import FurtherRaster
from reben_cloud.scenes.items.reading import Reading
from reben_cloud.scenes.items.rtc import RtcSearch
from reben_cloud.scenes.items.search import StacSearch
from reben_cloud.scenes.items.signing import token_url_of
from reben_cloud.scenes.land_raster import raster_files
from reben_cloud.scenes.prepare import prepared_folder
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.quality import FlagRule
from reben_cloud.scenes.split import open_split
from reben_cloud.store import Store

COUNTRY_DISTANCE_M = 50_000
"""How far a patch may be from its country: coasts of Natural Earth's coarsest map are off by tens of kilometres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What patches are made from, by which rules and programs, and where they go.

    At least one of `s2`, `l1c` and `stac`, and of `out` and `root`, must be given.

    Raises:
        ValueError: If they are not.
    """

    land_cover: Path
    """Land cover, a vector file or a raster, as `CutOptions` takes it."""
    out: Path | None = None
    """Folder for the official layout and its metadata; with `root` alone, one that is removed in the end."""
    root: Store | None = None
    """Root to build from that."""
    s2: Sequence[Path] = ()
    """Level-2A ``.SAFE`` folders or zips, or folders of them."""
    l1c: Sequence[Path] = ()
    """Level-1C ``.SAFE`` folders or zips, made Level-2A first."""
    stac: StacSearch | None = None
    """Products behind the Items of a STAC API; its box is `box`."""
    box: Degrees | None = None
    """West, south, east and north in degrees: only patches that lie within are made, of all products."""
    reading: Reading = field(default_factory=Reading)
    """How images of Items are read; `Reading.token_url` may have ``{collection}`` in it."""
    s1: Sequence[Path] = ()
    """Official S1 patches, terrain-corrected scenes in dB, or GRD products."""
    s1_stac: StacSearch | None = None
    """Terrain-corrected scenes in linear power behind the Items of a STAC API, instead of `s1`."""
    s1_choice: SceneChoice = ALL_SCENES
    """Which of the scenes may go with a product."""
    v1: Path | None = None
    """Folder of the v1 lists; only squares of v1 are kept."""
    countries: Path | None = None
    """Natural Earth's GeoJSON; the polygons of the ten countries by default."""
    any_country: bool = False
    """All countries of that file, not the ten."""
    country_field: str | None = None
    """Attribute of that file with the name; NAME_LONG, NAME_EN or NAME by default."""
    country_distance_m: float | None = None
    """How far a patch may be from its country, metres; beyond it has none. By default `COUNTRY_DISTANCE_M`, with v1's
    lists any distance, as in the paper."""
    classes: str = "reben19"
    """Name of a class table, or a TOML file."""
    code_column: str = "code_18"
    """Column of `land_cover` with the land-cover code."""
    name: str = ""
    """Name of the dataset."""
    bands: Sequence[str] = ALL_BANDS
    """Bands of Sentinel-2 that patches get."""
    patch_m: int = PATCH_M
    """Side of a patch, metres, a multiple of the largest pixel of the bands."""
    split: str = "paper"
    """``paper``, ``blocks``, or a table of splits (`split.open_split`)."""
    block_m: int | None = None
    """Side of a block, metres, for ``blocks``."""
    flags: FlagRule = field(default_factory=FlagRule)
    """From which shares of cloud, shadow and snow on patches are flagged, where there is no `v1`."""
    sen2cor: str = "L2A_Process"
    """Name or path of sen2cor's program."""
    gpt: str = "gpt"
    """Name or path of SNAP's program."""
    sarsen: str = "sarsen"
    """Name or path of sarsen's program."""
    dem: str = "SRTM 1Sec HGT"
    """SNAP's name of an elevation model, or a file of elevations for sarsen."""
    dem_datum: str | None = None
    """What the heights of that file are above, where it does not say (`elevation.DATUMS`)."""
    geoid: Path | None = None
    """Grid of the geoid that they are above; PROJ's by default."""
    further: Sequence[FurtherRaster] = ()
    """Rasters that become array layers beside `root`. They are no part of it: some may be added when it is there."""

    def __post_init__(self) -> None:
        if not (self.s2 or self.l1c or self.stac):
            raise ValueError("give products: --s2, --l1c, or --stac with --collection")
        if self.s1_stac is not None and self.s1:
            raise ValueError("give Sentinel-1 as --s1 or as --s1-collection, not both")
        if self.s1_stac is not None:
            self.rtc_search()
        if self.stac is None and self.s1_stac is None and self.reading != Reading():
            raise ValueError(
                "--cache-dir, --cache-bytes and --stac-token go with Items: --stac or --s1-collection"
            )
        if self.out is None and self.root is None:
            raise ValueError("say where to: --out FOLDER, --root ROOT, or both")
        if self.further and self.root is None:
            raise ValueError("layers stand beside a root: give --root with --layer")
        open_split(self.split, block_m=self.block_m)  # a wrong one is told before hours go into it

    def reading_of(self, search: StacSearch) -> Reading:
        """How the images of a collection are read: with the tokens that are for it, where they need any."""
        token_url = self.reading.token_url or token_url_of(search.api, search.collection)
        named = None if token_url is None else token_url.replace("{collection}", search.collection)
        return replace(self.reading, token_url=named)

    def rtc_search(self) -> RtcSearch | None:
        """Where terrain-corrected scenes are searched for, if they are."""
        if self.s1_stac is None:
            return None
        return RtcSearch(
            stac=self.s1_stac, choice=self.s1_choice, box=self.box, patch_m=self.patch_m,
            reading=self.reading_of(self.s1_stac),
        )  # fmt: skip

    @property
    def folder(self) -> Path:
        """Where the official layout is written to."""
        if self.out is not None:
            return self.out
        assert self.root is not None
        return prepared_folder(self.root)


def given_of(
    preparation: Preparation, products: Sequence[Path], items: Sequence[Product] = ()
) -> tuple[dict[str, Sequence[Path]], dict[str, object]]:
    """The files among what was given, by role, and all that was given, by the name of the option.

    They stand in roots that were begun: neither names nor values may change.
    """
    named = {
        "--countries": preparation.countries,
        "--classes": Path(preparation.classes),
        "--dem": Path(preparation.dem),
        "--geoid": preparation.geoid,
        "--split-rule": Path(preparation.split),
    }
    files: dict[str, Sequence[Path]] = {
        name: [path] for name, path in named.items() if path is not None and path.is_file()
    }
    files |= {
        "--clc": raster_files(preparation.land_cover) or [preparation.land_cover],
        "--l1c": preparation.l1c,
        "--s1": preparation.s1,
    }
    options: dict[str, object] = {
        "--any-country": preparation.any_country,
        "--classes": Path(preparation.classes).name,
        "--code-column": preparation.code_column,
        "--patch-size": preparation.patch_m,
        "--dem": Path(preparation.dem).name,
        "--dem-datum": preparation.dem_datum,
        "--v1": preparation.v1 and preparation.v1.name,
    }
    options |= preparation.s1_choice.identity()
    if preparation.country_distance_m is not None:
        options["--country-distance"] = preparation.country_distance_m
    if preparation.country_field is not None:
        options["--country-field"] = preparation.country_field
    if preparation.split != "paper":
        options["--split-rule"] = f"{Path(preparation.split).name} {preparation.block_m or ''}".strip()
    if preparation.flags != FlagRule():
        options["--flag-cloud"], options["--flag-snow"] = (
            preparation.flags.cloud_or_shadow,
            preparation.flags.snow,
        )
    if preparation.stac is not None:
        options["--stac"] = preparation.stac
        options["products"] = ", ".join(sorted(product.name for product in items))
    if preparation.s1_stac is not None:
        options["--s1-collection"] = preparation.s1_stac
    if preparation.box is not None:
        options["--bbox"] = " ".join(f"{degrees:g}" for degrees in preparation.box)
    if preparation.name:
        options["--name"] = preparation.name
    if {*preparation.bands} != {*ALL_BANDS}:
        options["--bands"] = ", ".join(sorted(preparation.bands))
    for name, paths in {"--s2": products, **files}.items():
        # Names, as for `provenance`: inputs may be moved.
        options.setdefault(name, ", ".join(path.name for path in paths))
    return files, options
