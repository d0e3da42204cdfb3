"""The command that makes a dataset of its own from Sentinel scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from reben_cloud.cli.options import (
    DaskOption,
    EndpointOption,
    JsonOption,
    WorkerIndexOption,
    WorkersTotalOption,
    check_share,
    executor,
    name_or_path,
    new_root,
    path,
    storage_options,
    usage,
    whole_path,
)
from reben_cloud.cli.output import show_json
from reben_cloud.cli.progress import bar, ends_at_once

_STAC = "From a STAC API"
_S1 = "Sentinel-1"
_PATCHES = "What patches are"
_COUNTRIES = "Countries"
_PROGRAMS = "Programs, and elevations for GRD products"
_FURTHER = "Further rasters"
"""Headings of options."""


def prepare(
    dest: Annotated[
        str | None,
        typer.Argument(help="Short for --root.", show_default=False, parser=new_root),
    ] = None,
    *,
    land_cover: Annotated[
        Path,
        typer.Option(
            "--land-cover",
            "--clc",
            help="Land cover: vector (.gpkg) or raster (GeoTIFF, VRT, Zarr, a folder of some).",
            parser=whole_path,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the official layout and metadata.", parser=whole_path, show_default=False
        ),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            help="Root to build from that, path or URL; without --out the folder is removed then.",
            show_default=False,
            parser=new_root,
        ),
    ] = None,
    s2: Annotated[
        list[Path] | None,
        typer.Option(help="Level-2A .SAFE or zip, or a folder of them; repeat.", parser=whole_path),
    ] = None,
    l1c: Annotated[
        list[Path] | None,
        typer.Option(help="Level-1C .SAFE or zip, made Level-2A first; repeat.", parser=whole_path),
    ] = None,
    stac: Annotated[
        str | None,
        typer.Option(
            help="URL of a STAC API with Level-2A as GeoTIFFs; goes with --collection.",
            show_default=False,
            rich_help_panel=_STAC,
        ),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Collection of that API.", show_default=False, rich_help_panel=_STAC)
    ] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            help="West, south, east, north in degrees: only patches that lie within, of all products.",
            metavar="W S E N",
            show_default=False,
            rich_help_panel=_PATCHES,
        ),
    ] = None,
    datetime: Annotated[
        str | None,
        typer.Option(
            help="Time of the Items, or range A/B of dates.", show_default=False, rich_help_panel=_STAC
        ),
    ] = None,
    max_cloud: Annotated[
        float | None,
        typer.Option(help="Most clouds of an Item, percent.", show_default=False, rich_help_panel=_STAC),
    ] = None,
    max_items: Annotated[
        int, typer.Option(help="Most Items that a search may find.", rich_help_panel=_STAC)
    ] = 100,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for what was read of Items' images.",
            show_default=False,
            parser=whole_path,
            rich_help_panel=_STAC,
        ),
    ] = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="Most bytes in that folder.", show_default=False, rich_help_panel=_STAC)
    ] = None,
    stac_token: Annotated[
        str | None,
        typer.Option(
            help="URL of tokens for images, with {collection}; the Planetary Computer's is known.",
            show_default=False,
            rich_help_panel=_STAC,
        ),
    ] = None,
    s1: Annotated[
        list[Path] | None,
        typer.Option(
            help="Official S1 patches, terrain-corrected dB scenes, or GRD products; repeat.",
            parser=whole_path,
            rich_help_panel=_S1,
        ),
    ] = None,
    s1_collection: Annotated[
        str | None,
        typer.Option(
            help="Collection of terrain-corrected scenes in linear power.",
            show_default=False,
            rich_help_panel=_S1,
        ),
    ] = None,
    s1_stac: Annotated[
        str | None,
        typer.Option(
            help="API of that collection, unless it is --stac.", show_default=False, rich_help_panel=_S1
        ),
    ] = None,
    s1_max_days: Annotated[
        float | None,
        typer.Option(
            help="Greatest gap between the acquisitions of a pair, days.",
            show_default=False,
            rich_help_panel=_S1,
        ),
    ] = None,
    s1_direction: Annotated[
        str | None,
        typer.Option(help="Only ascending, or descending, scenes.", show_default=False, rich_help_panel=_S1),
    ] = None,
    s1_orbit: Annotated[
        int | None,
        typer.Option(help="Only scenes of this relative orbit.", show_default=False, rich_help_panel=_S1),
    ] = None,
    v1: Annotated[
        Path | None,
        typer.Option(help="Folder of the v1 lists; keeps only squares of v1.", parser=whole_path),
    ] = None,
    countries: Annotated[
        Path | None,
        typer.Option(
            help="Natural Earth file of any level; the ten by default.",
            parser=path,
            rich_help_panel=_COUNTRIES,
        ),
    ] = None,
    any_country: Annotated[
        bool, typer.Option(help="All countries of the file, not the ten.", rich_help_panel=_COUNTRIES)
    ] = False,
    country_field: Annotated[
        str | None,
        typer.Option(
            help="Attribute of the file with the name; NAME_LONG, NAME_EN or NAME.",
            show_default=False,
            rich_help_panel=_COUNTRIES,
        ),
    ] = None,
    country_distance: Annotated[
        float | None,
        typer.Option(
            help="Metres to the nearest country beyond which a patch has none; 50000, with --v1 any.",
            show_default=False,
            rich_help_panel=_COUNTRIES,
        ),
    ] = None,
    classes: Annotated[
        str,
        typer.Option(
            help="reben19, clc44, clc_level1, worldcover2021, lcfm, or a TOML of classes.",
            parser=name_or_path,
            rich_help_panel=_PATCHES,
        ),
    ] = "reben19",
    code_column: Annotated[
        str, typer.Option(help="Column with the land-cover code.", rich_help_panel=_PATCHES)
    ] = "code_18",
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the dataset, unless it is reBEN.", show_default=False, rich_help_panel=_PATCHES
        ),
    ] = None,
    bands: Annotated[
        str,
        typer.Option(
            help="Bands of Sentinel-2: S2 (all), 10m, 10m_20m, or names with commas between them.",
            rich_help_panel=_PATCHES,
        ),
    ] = "S2",
    patch_size: Annotated[
        int,
        typer.Option(
            help="Side of a patch, metres, a multiple of the largest pixel of the bands.",
            rich_help_panel=_PATCHES,
        ),
    ] = 1200,
    split_rule: Annotated[
        str,
        typer.Option(
            help="paper, blocks (of --block-size), or a table with patch_id and split.",
            parser=name_or_path,
            rich_help_panel=_PATCHES,
        ),
    ] = "paper",
    block_size: Annotated[
        int | None,
        typer.Option(
            help="Side of a block of --split-rule blocks, metres.",
            show_default=False,
            rich_help_panel=_PATCHES,
        ),
    ] = None,
    flag_cloud: Annotated[
        float,
        typer.Option(
            help="Share of cloud and shadow from which on a patch is flagged, without --v1.",
            rich_help_panel=_PATCHES,
        ),
    ] = 0.2,
    flag_snow: Annotated[
        float, typer.Option(help="The same of snow and ice.", rich_help_panel=_PATCHES)
    ] = 0.2,
    sen2cor: Annotated[
        str, typer.Option(help="L2A_Process of sen2cor 2.11.", rich_help_panel=_PROGRAMS)
    ] = "L2A_Process",
    gpt: Annotated[
        str, typer.Option(help="gpt of ESA SNAP, for GRD products.", rich_help_panel=_PROGRAMS)
    ] = "gpt",
    sarsen: Annotated[
        str,
        typer.Option(
            help="sarsen's command, for GRD products where --dem is a file.", rich_help_panel=_PROGRAMS
        ),
    ] = "sarsen",
    dem: Annotated[
        str,
        typer.Option(
            help="SNAP's name of an elevation model, or a file of elevations for sarsen.",
            parser=name_or_path,
            rich_help_panel=_PROGRAMS,
        ),
    ] = "SRTM 1Sec HGT",
    dem_datum: Annotated[
        str | None,
        typer.Option(
            help="What the heights of that file are above, where it does not say: ellipsoid, EGM96, EGM2008.",
            show_default=False,
            rich_help_panel=_PROGRAMS,
        ),
    ] = None,
    geoid: Annotated[
        Path | None,
        typer.Option(
            help="Geoid grid (GTX, GeoTIFF) that they are above; PROJ's by default.",
            parser=whole_path,
            show_default=False,
            rich_help_panel=_PROGRAMS,
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RASTER",
            help="A further raster (heights, another sensor), as an array layer in ROOT.layers/NAME; repeat.",
            show_default=False,
            rich_help_panel=_FURTHER,
        ),
    ] = None,
    layer_resampling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WAY",
            help="How one gets its pixels, as of `layer raster`; bilinear by default.",
            show_default=False,
            rich_help_panel=_FURTHER,
        ),
    ] = None,
    layer_pixel: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=METRES",
            help="Side of its pixels; 10 by default.",
            show_default=False,
            rich_help_panel=_FURTHER,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Products at a time, up to 2 GB each.")] = 1,
    dask: DaskOption = None,
    worker_index: WorkerIndexOption = None,
    workers_total: WorkersTotalOption = 1,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make patches, maps, labels and metadata from Sentinel scenes and land cover; run again, it continues."""
    from reben_cloud.bigearthnet.inputs import choose_bands
    from reben_cloud.bigearthnet.own import own_schema
    from reben_cloud.scenes.choice import Direction, SceneChoice
    from reben_cloud.scenes.further import parse_rasters
    from reben_cloud.scenes.items.reading import Reading
    from reben_cloud.scenes.items.search import StacSearch
    from reben_cloud.scenes.preparation import Preparation
    from reben_cloud.scenes.prepare import summary
    from reben_cloud.scenes.quality import FlagRule
    from reben_cloud.scenes.run import run
    from reben_cloud.search.arguments import parse_box
    from reben_cloud.store import open_store

    if dest is not None and root is not None:
        raise typer.BadParameter("give the root once: DEST or --root", param_hint="DEST")
    check_share(worker_index, workers_total)
    root = root or dest
    with usage():
        box = None if bbox is None else parse_box(bbox)
        products = scenes = None
        if stac is not None and collection is not None:
            products = StacSearch(
                api=stac,
                collection=collection,
                box=box,
                datetime=datetime,
                max_cloud=max_cloud,
                max_items=max_items,
            )
        elif any(given is not None for given in (stac, collection, datetime, max_cloud)):
            raise ValueError("--stac and --collection go together; --datetime and --max-cloud with them")
        if s1_collection is not None and (api := s1_stac or stac) is not None:
            scenes = StacSearch(api=api, collection=s1_collection, max_items=max_items)
        elif s1_collection is not None or s1_stac is not None:
            raise ValueError("--s1-collection goes with an API: --s1-stac or --stac")
        choice = SceneChoice(
            max_gap_days=s1_max_days,
            direction=cast("Direction | None", s1_direction),
            relative_orbit=s1_orbit,
        )
        preparation = Preparation(
            land_cover=land_cover, out=out,
            root=None if root is None else open_store(root, storage_options(endpoint_url)),
            s2=s2 or (), l1c=l1c or (), stac=products, box=box, s1=s1 or (), s1_stac=scenes, s1_choice=choice, v1=v1,
            reading=Reading(cache_dir=cache_dir, cache_bytes=cache_bytes, token_url=stac_token),
            countries=countries, any_country=any_country, country_field=country_field,
            country_distance_m=country_distance,
            classes=classes, code_column=code_column, name=name or "", bands=choose_bands(bands, schema=own_schema()),
            patch_m=patch_size, split=split_rule, block_m=block_size,
            flags=FlagRule(cloud_or_shadow=flag_cloud, snow=flag_snow), sen2cor=sen2cor, gpt=gpt, sarsen=sarsen,
            dem=dem, dem_datum=dem_datum, geoid=geoid,
            further=parse_rasters(layer or (), resamplings=layer_resampling or (), pixels=layer_pixel or ()),
        )  # fmt: skip
    with usage(), ends_at_once(lambda: f"; what is done stays done in {preparation.folder},"):
        prepared = run(
            preparation,
            executor=executor(workers, dask),
            workers=workers,
            worker_index=worker_index,
            workers_total=workers_total,
            progress=bar,
            on_prepared=lambda reports: (
                None if as_json else typer.echo("\n".join([*map(str, reports), summary(reports)]))
            ),
        )
    if as_json:
        show_json(prepared.to_json())
    elif text := prepared.to_text():
        typer.echo(text)
