"""The whole way from Sentinel scenes to official folders and to a root, in one call that continues where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reben_cloud.bigearthnet.country import REBEN_COUNTRIES, load_countries
from reben_cloud.build import Executor, Progress, local, published, silent
from reben_cloud.errors import SourceError
from reben_cloud.root.layers import Layer
from reben_cloud.root.manifest import Manifest
from reben_cloud.scenes.class_table import load_class_table
from reben_cloud.scenes.datastrips import merge_datastrips
from reben_cloud.scenes.further import write_further
from reben_cloud.scenes.inputs import open_product
from reben_cloud.scenes.items.product import ItemProduct, products_of
from reben_cloud.scenes.items.rtc import fetch_scenes
from reben_cloud.scenes.items.search import find_items
from reben_cloud.scenes.metadata import read_separations
from reben_cloud.scenes.preparation import COUNTRY_DISTANCE_M, Preparation, given_of
from reben_cloud.scenes.prepare import (
    CutOptions,
    ProductReport,
    build_root,
    claim_root,
    find_products,
    find_s1,
    identify_inputs,
    prepare,
)
from reben_cloud.scenes.processors import run_sen2cor
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.separation import Separation, describe
from reben_cloud.scenes.split import open_split
from reben_cloud.scenes.unzip import unzip_products

_RAW_S1 = (".SAFE", ".zip")
"""Suffixes of Sentinel-1 products whose terrain is not corrected yet."""


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
    layers: Sequence[Layer] = ()
    """The layers beside the root, of further rasters."""

    def to_text(self) -> str:
        """How far the splits are apart, and the line on the root, for people; empty without either."""
        lines = [describe(self.separations)]
        if self.root is not None and self.manifest is not None:
            there = f"published already: {self.manifest.num_patches:,} patches at {self.root}"
            lines.append(there if self.published_already else published(self.manifest, self.root))
        for layer in self.layers:
            said = layer.manifest
            lines.append(
                f"layer {said.name}: {said.coverage:,} of {said.num_patches:,} patches, in {layer.url}"
            )
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
            if self.layers:
                told["layers"] = {layer.manifest.name: layer.url for layer in self.layers}
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
    """Make patches, maps, labels and metadata, a root of them and its layers; run again with the same, it continues.

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
        SourceError: If an input is not what it must be, no Sentinel-1 input can be used, or no patch is kept.
        ConflictError: If the folder or the root was begun with something else.
        ValueError: If there is no such share, or none of this preparation.
    """
    for raster in preparation.further:
        raster.check(patch_m=preparation.patch_m)
    items = _search(preparation, progress)
    products = find_products(preparation.s2)
    zips = [path for path in products if path.suffix == ".zip"]
    raw = [*preparation.l1c, *zips, *(path for path in preparation.s1 if path.suffix in _RAW_S1)]
    if worker_index is not None and (preparation.root is not None or raw or preparation.s1_stac is not None):
        raise ValueError(
            "--worker-index goes with --out, Level-2A products and finished S1: what else there is to do (unzipping, "
            "sen2cor, terrain correction, --s1-collection, the build) is a command of its own, before or after"
        )
    store, inputs = preparation.root, None
    url = None if store is None else store.url
    if store is not None:
        files, given = given_of(preparation, products, items)
        folders = [path for path in products if path not in zips]
        inputs = identify_inputs([*folders, *items], {"--s2": zips, **files}, v1=preparation.v1)
        there = claim_root(store, given, inputs)
        if there is not None:
            return Prepared(
                reports=(), out=preparation.out, root=url, published_already=True, manifest=there,
                layers=write_further(store, there, preparation.further, workers=workers, progress=progress),
            )  # fmt: skip
    folder, place = preparation.folder, executor or local(workers)
    unpacked = folder / "unzipped"
    products = [path for path in products if path not in zips] + unzip_products(zips, unpacked)
    l1c = [unzip_products([path], unpacked)[0] if path.suffix == ".zip" else path for path in preparation.l1c]
    products += run_sen2cor(l1c, folder / "L2A", program=preparation.sen2cor, workers=workers)
    every: list[Path | Product] = [*products, *items]
    options = _options(preparation, every, workers, progress)
    reports = prepare(
        every,
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
    manifest, layers = None, list[Layer]()
    if store is not None:
        manifest = build_root(folder, store, inputs=inputs, executor=place, progress=progress)
        if preparation.out is None:
            shutil.rmtree(folder)
        layers = write_further(store, manifest, preparation.further, workers=workers, progress=progress)
    return Prepared(
        reports=reports,
        separations=apart,
        out=preparation.out,
        root=url,
        published_already=False,
        manifest=manifest,
        layers=layers,
    )


def _search(preparation: Preparation, progress: Progress) -> list[ItemProduct]:
    """The products behind the Items that a search finds."""
    if preparation.stac is None:
        return []
    items = find_items(preparation.stac, progress=progress)
    return products_of(items, preparation.bands, preparation.reading_of(preparation.stac))


def _options(
    preparation: Preparation, products: Sequence[Path | Product], workers: int, progress: Progress
) -> CutOptions:
    """What is made of each product; GRD products and Items of Sentinel-1 become scenes here."""
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
    if (rtc := preparation.rtc_search()) is not None:
        # Datastrips of one tile have one name and time, and so one choice of scenes.
        opened = merge_datastrips([open_product(given) for given in products])
        scenes = fetch_scenes(opened, rtc, preparation.folder / "S1", progress=progress)
    if preparation.s1 and official is None and not scenes:
        # Without a scene at all, patches would be made as if none had been asked for.
        raise SourceError(
            "none of the Sentinel-1 inputs (--s1) is of the orbit that is wanted (--s1-orbit) and near a product; "
            "give others, or leave out --s1 for patches without Sentinel-1"
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
        box=preparation.box,
        split=open_split(preparation.split, block_m=preparation.block_m),
        flags=preparation.flags,
    )
