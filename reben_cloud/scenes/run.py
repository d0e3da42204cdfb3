"""The whole way from Sentinel scenes to official folders and to a root, in one call that continues where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reben_cloud.bigearthnet.bands import PATCH_M
from reben_cloud.bigearthnet.country import REBEN_COUNTRIES, load_countries
from reben_cloud.bigearthnet.own import ALL_BANDS
from reben_cloud.build import Executor, Progress, local, published, silent
from reben_cloud.root.manifest import Manifest
from reben_cloud.scenes.choice import ALL_SCENES, SceneChoice
from reben_cloud.scenes.class_table import load_class_table
from reben_cloud.scenes.land_raster import raster_files
from reben_cloud.scenes.metadata import read_separations
from reben_cloud.scenes.prepare import (
    CutOptions,
    ProductReport,
    build_root,
    claim_root,
    find_products,
    find_s1,
    identify_inputs,
    prepare,
    prepared_folder,
)
from reben_cloud.scenes.processors import run_sen2cor
from reben_cloud.scenes.quality import FlagRule
from reben_cloud.scenes.separation import Separation, describe
from reben_cloud.scenes.split import open_split
from reben_cloud.store import Store

_RAW_S1 = (".SAFE", ".zip")
"""Suffixes of Sentinel-1 products whose terrain is not corrected yet."""


COUNTRY_DISTANCE_M = 50_000
"""How far a patch may be from its country: coasts of Natural Earth's coarsest map are off by tens of kilometres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What patches are made from, by which rules and programs, and where they go.

    At least one of `s2` and `l1c`, and of `out` and `root`, must be given.

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
    """Level-2A ``.SAFE`` folders, or folders of them."""
    l1c: Sequence[Path] = ()
    """Level-1C ``.SAFE`` folders, made Level-2A first."""
    s1: Sequence[Path] = ()
    """Official S1 patches, terrain-corrected scenes in dB, or GRD products."""
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

    def __post_init__(self) -> None:
        if not (self.s2 or self.l1c):
            raise ValueError("give products: --s2 or --l1c")
        if self.out is None and self.root is None:
            raise ValueError("say where to: --out FOLDER, --root ROOT, or both")
        open_split(self.split, block_m=self.block_m)  # a wrong one is told before hours go into it

    @property
    def folder(self) -> Path:
        """Where the official layout is written to."""
        if self.out is not None:
            return self.out
        assert self.root is not None
        return prepared_folder(self.root)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What came of a preparation."""

    reports: Sequence[ProductReport]
    """What became of each product; empty if the root was there."""
    separations: Sequence[Separation] = ()
    """How far patches of different splits are from each other."""
    out: Path | None
    """The folder that was asked for."""
    root: str | None
    """URL of the root."""
    published_already: bool
    """Whether the root was there before."""
    manifest: Manifest | None
    """The root's manifest."""

    def to_text(self) -> str:
        """How far the splits are apart, and the line on the root, for people; empty without either."""
        lines = [describe(self.separations)]
        if self.root is not None and self.manifest is not None:
            there = f"published already: {self.manifest.num_patches:,} patches at {self.root}"
            lines.append(there if self.published_already else published(self.manifest, self.root))
        return "\n".join(line for line in lines if line)

    def to_json(self) -> dict[str, Any]:
        """All of it for a machine."""
        told: dict[str, Any] = {}
        if not self.published_already:
            told["products"] = [asdict(report) for report in self.reports]
            told["separations"] = [asdict(separation) for separation in self.separations]
            if self.out is not None:
                told["out"] = str(self.out)
        if self.root is not None and self.manifest is not None:
            told["root"] = self.root
            told["published_already"] = self.published_already
            told["num_patches"] = self.manifest.num_patches
        return told


def run(
    preparation: Preparation,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    worker_index: int | None = None,
    workers_total: int = 1,
    progress: Progress = silent,
    on_prepared: Callable[[Sequence[ProductReport]], object] | None = None,
) -> Prepared:
    """Make patches, maps, labels and metadata, and a root of them; run again with the same, it continues.

    Args:
        preparation: What is made from what.
        executor: Where products are cut and the root is built; `workers` local processes by default.
        workers: Products at a time, and runs of sen2cor, SNAP or sarsen.
        worker_index: Which share of the products to do, in [0, workers_total); the whole of it by default.
            A share is of finished products alone, and builds no root.
        workers_total: Number of shares.
        progress: Wraps the streams of finished products and tasks.
        on_prepared: Called with the reports once the folders are written, before the root is built.

    Raises:
        FileNotFoundError: If an input does not exist.
        NotFoundError: If a program that is needed is not installed.
        SourceError: If an input is not what it must be, or no patch is kept.
        ConflictError: If the folder or the root was begun with something else.
        ValueError: If there is no such share, or none of this preparation.
    """
    raw = [*preparation.l1c, *(path for path in preparation.s1 if path.suffix in _RAW_S1)]
    if worker_index is not None and (preparation.root is not None or raw):
        raise ValueError(
            "--worker-index goes with --out, Level-2A products and finished S1: what else there is to do "
            "(sen2cor, terrain correction, the build) is a command of its own, before or after"
        )
    products = find_products(preparation.s2)
    store, inputs = preparation.root, None
    url = None if store is None else store.url
    if store is not None:
        files, given = _given(preparation, products)
        inputs = identify_inputs(products, files, v1=preparation.v1)
        there = claim_root(store, given, inputs)
        if there is not None:
            return Prepared(reports=(), out=preparation.out, root=url, published_already=True, manifest=there)
    folder, place = preparation.folder, executor or local(workers)
    products += run_sen2cor(preparation.l1c, folder / "L2A", program=preparation.sen2cor, workers=workers)
    options = _options(preparation, products, workers)
    reports = prepare(
        products,
        folder,
        options,
        executor=place,
        worker_index=worker_index or 0,
        workers_total=workers_total,
        progress=progress,
    )
    if on_prepared is not None:
        on_prepared(reports)
    apart = read_separations(folder, options)
    manifest = None
    if store is not None:
        manifest = build_root(folder, store, inputs=inputs, executor=place, progress=progress)
        if preparation.out is None:
            shutil.rmtree(folder)
    return Prepared(
        reports=reports,
        separations=apart,
        out=preparation.out,
        root=url,
        published_already=False,
        manifest=manifest,
    )


def _given(
    preparation: Preparation, products: Sequence[Path]
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
    if preparation.name:
        options["--name"] = preparation.name
    if {*preparation.bands} != {*ALL_BANDS}:
        options["--bands"] = ", ".join(sorted(preparation.bands))
    for name, paths in {"--s2": products, **files}.items():
        # Names, as for `provenance`: inputs may be moved.
        options.setdefault(name, ", ".join(path.name for path in paths))
    return files, options


def _options(preparation: Preparation, products: Sequence[Path], workers: int) -> CutOptions:
    """What is made of each product; GRD products among the inputs become scenes here."""
    official, scenes = find_s1(
        preparation.s1,
        products,
        preparation.folder / "S1",
        gpt=preparation.gpt,
        sarsen=preparation.sarsen,
        dem=preparation.dem,
        dem_datum=preparation.dem_datum,
        geoid=preparation.geoid,
        choice=preparation.s1_choice,
        workers=workers,
    )
    names = None if preparation.any_country else REBEN_COUNTRIES
    distance_m = preparation.country_distance_m
    if distance_m is None and preparation.v1 is None:
        distance_m = COUNTRY_DISTANCE_M
    return CutOptions(
        land_cover=preparation.land_cover,
        name=preparation.name,
        table=load_class_table(preparation.classes),
        code_column=preparation.code_column,
        countries=load_countries(
            preparation.countries, names=names, field=preparation.country_field, max_distance_m=distance_m
        ),
        v1=preparation.v1,
        s1_v1=official,
        s1_scenes=scenes,
        s1_choice=preparation.s1_choice,
        bands=tuple(preparation.bands),
        patch_m=preparation.patch_m,
        split=open_split(preparation.split, block_m=preparation.block_m),
        flags=preparation.flags,
    )
