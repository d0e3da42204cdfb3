"""The command ``reben-cloud``: each command is its options and one call into the library.

Results go to stdout, progress and messages to stderr. Exit 0; 1 with one line for a `RebenError`
or an OSError (``-v`` shows the traceback); 2 for wrong usage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from reben_cloud.errors import RebenError
from reben_cloud.files.paths import SCHEMES, local_path, split_scheme

app = typer.Typer(
    name="reben-cloud",
    help="BigEarthNet v2.0 (reBEN) as a cloud-native streaming dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bucket_app = typer.Typer(
    help="Buckets, who may do what in them, and links that share a part.", no_args_is_help=True
)
app.add_typer(bucket_app, name="bucket")

T = TypeVar("T")


def path(value: str | Path) -> Path:
    """A path of this machine or a ``file://`` URL, as `paths.local_path` has it; another URL is wrong usage."""
    try:
        return local_path(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def whole_path(value: str | Path) -> Path:
    """`path`, absolute and without links."""
    return path(value).resolve()


def path_or_url(value: str) -> str:
    """A path, or a URL of a scheme that this package reads, as it is; another scheme is wrong usage."""
    return _of_scheme(value, (*SCHEMES, "lmdb"))


def new_root(value: str) -> str:
    """A path or URL where a command can write a root; another scheme is wrong usage."""
    return _of_scheme(value, ("file", "s3"))


def _of_scheme(value: str, schemes: Sequence[str]) -> str:
    scheme = split_scheme(value)[0]
    if not value.strip():
        raise typer.BadParameter("it is an empty string; the current folder is '.'")
    if scheme is not None and scheme not in schemes:
        raise typer.BadParameter(f"{value!r}: name a path, or a URL of {', '.join(schemes)}")
    return value


def name_or_path(value: str) -> str:
    """A name that the library knows, or else a `path`."""
    return value if split_scheme(value)[0] is None else os.fspath(path(value))


RootArgument = Annotated[
    str,
    typer.Argument(help="Path or URL of a root (file://, s3://).", show_default=False, parser=path_or_url),
]
NewRootArgument = Annotated[
    str,
    typer.Argument(help="Path or URL of the new root (file://, s3://).", show_default=False, parser=new_root),
]
RootOption = Annotated[
    str, typer.Option(help="Path or URL of a root.", show_default=False, parser=path_or_url)
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder for shards of a remote root.", show_default=False, parser=path),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url", envvar="AWS_ENDPOINT_URL", help="Address of the S3 server.", show_default=False
    ),
]
MetadataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--metadata",
        help="Official metadata parquet; may be given twice.",
        show_default=False,
        parser=path,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]

# Where work runs: the same for all that takes hours.
DaskOption = Annotated[
    str | None, typer.Option(help="Dask scheduler to use, tcp://HOST:PORT.", show_default=False)
]
WorkerIndexOption = Annotated[
    int | None, typer.Option(help="Do this share of the work only, from 0.", show_default=False)
]
WorkersTotalOption = Annotated[int, typer.Option(help="Number of shares.")]

# Search options: the same wherever a selection is meant.
BboxOption = Annotated[
    str | None, typer.Option("--bbox", help="West,south,east,north in degrees.", show_default=False)
]
DatetimeOption = Annotated[
    str | None, typer.Option("--datetime", help="Sentinel-2 time: A/B, 2017-06, ../B.", show_default=False)
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="Patches with this class; repeat.", show_default=False)
]
SplitOption = Annotated[
    list[str] | None, typer.Option("--split", help="train, validation or test; repeat.", show_default=False)
]
CountryOption = Annotated[
    list[str] | None, typer.Option("--country", help="Name of a country; repeat.", show_default=False)
]
RecommendedOption = Annotated[
    bool | None,
    typer.Option(
        "--recommended/--not-recommended", help="Only without, or only with, snow, cloud or shadow."
    ),
]


@app.callback()
def main_options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, show tracebacks.")] = False,
) -> None:
    """Options of every command."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr)


@app.command()
def demo(
    root: Annotated[Path, typer.Option(help="Folder for what it makes.", parser=path)] = Path("demo"),
    patches: Annotated[int, typer.Option(help="Size of the made-up dataset, at most 4553.")] = 600,
) -> None:
    """Build a small made-up root, search it, stream it and export a part of it."""
    from reben_cloud.cli.demo import run_demo

    run_demo(root, num_patches=patches, say=typer.echo)


@app.command()
def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Archives, GeoTIFF folders, an LMDB, a root (path or URL), or synthetic:N.",
            show_default=False,
            parser=path_or_url,
        ),
    ],
    root: NewRootArgument,
    bbox: BboxOption = None,
    datetime: DatetimeOption = None,
    label: LabelOption = None,
    split: SplitOption = None,
    country: CountryOption = None,
    recommended: RecommendedOption = None,
    metadata: MetadataOption = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="s2, s1 or map; repeat. All that the source has by default.", show_default=False),
    ] = None,
    order: Annotated[str, typer.Option(help="stratified or shuffled.")] = "stratified",
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
    shard_samples: Annotated[int, typer.Option(help="Samples in a shard.")] = 256,
    workers: Annotated[int, typer.Option(help="Local processes, up to 1 GB each.")] = 1,
    dask: DaskOption = None,
    worker_index: WorkerIndexOption = None,
    workers_total: WorkersTotalOption = 1,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder for payloads between their two uses; see --dry-run.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a root from a source of patches, or from what a search finds in a root; run again, it continues."""
    from reben_cloud import build as building
    from reben_cloud.opening import open as open_dataset
    from reben_cloud.root.placement import PlacementOptions
    from reben_cloud.sources.recognise import default_scratch, open_source
    from reben_cloud.store import open_store

    access = storage_options(endpoint_url)
    found, official = open_source(
        source, metadata_paths=metadata or (), modalities=modality, storage_options=access
    )
    options = PlacementOptions(order=order, seed=seed, shard_samples=shard_samples)  # type: ignore[arg-type]
    store = open_store(root, access)
    scratch = scratch or default_scratch(found)
    query = search_query(bbox, datetime, label, split, country, recommended)
    only = None
    if query:
        selection = open_dataset(source, access).search(**query)
        selection.require_patches("nothing to build")
        only = selection.patch_ids
    plan = building.make_plan(
        found, official, store, modalities=modality, options=options, scratch=scratch, only=only
    )
    if dry_run:
        estimate = plan.estimate()
        typer.echo(json.dumps(asdict(estimate), indent=2) if as_json else estimate.to_text())
        return
    run = building.dask(dask) if dask else building.local(workers)
    manifest: dict[str, Any] | None
    try:
        if worker_index is None:
            manifest = building.build(plan, executor=run, progress=progress)
        else:
            manifest = building.build_share(
                plan, worker_index=worker_index, workers_total=workers_total, executor=run, progress=progress
            )
    except KeyboardInterrupt:
        typer.echo(
            f"reben-cloud: stopped, {building.num_done(plan):,} of {len(plan.tasks):,} tasks are done and stay done; "
            "the same command goes on from there",
            err=True,
        )
        # Not `sys.exit`, which waits for what is under way; worker processes end with this one.
        os._exit(130)
    rows = building.rows_without_patches(plan, official)
    if len(rows) and only is None:
        typer.echo(
            f"reben-cloud: {len(rows):,} of {official.num_rows:,} rows of the metadata have no patch in the source, "
            f"the first is {rows[0]}",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps(manifest and building.account(manifest, plan, official), indent=2))
    elif manifest is None:
        typer.echo(f"share {worker_index} of {workers_total} is done; the last of them publishes")
    else:
        typer.echo(building.published(manifest, plan.store.url))


@app.command()
def prepare(
    clc: Annotated[
        Path, typer.Option(help="CORINE vector file (.gpkg).", parser=whole_path, show_default=False)
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
        typer.Option(help="Level-2A .SAFE, or a folder of them; repeat.", parser=whole_path),
    ] = None,
    l1c: Annotated[
        list[Path] | None,
        typer.Option(help="Level-1C .SAFE, made Level-2A first; repeat.", parser=whole_path),
    ] = None,
    s1: Annotated[
        list[Path] | None,
        typer.Option(
            help="Official S1 patches, terrain-corrected dB scenes, or GRD products; repeat.",
            parser=whole_path,
        ),
    ] = None,
    v1: Annotated[
        Path | None,
        typer.Option(help="Folder of the v1 lists; keeps only squares of v1.", parser=whole_path),
    ] = None,
    countries: Annotated[
        Path | None, typer.Option(help="Natural Earth GeoJSON; the ten by default.", parser=path)
    ] = None,
    any_country: Annotated[bool, typer.Option(help="All countries of the file, not the ten.")] = False,
    classes: Annotated[
        str, typer.Option(help="reben19, clc_level1, or a TOML of classes.", parser=name_or_path)
    ] = "reben19",
    code_column: Annotated[str, typer.Option(help="Column with the land-cover code.")] = "code_18",
    patch_size: Annotated[int, typer.Option(help="Side of a patch, metres, a multiple of 60.")] = 1200,
    sen2cor: Annotated[str, typer.Option(help="L2A_Process of sen2cor 2.11.")] = "L2A_Process",
    gpt: Annotated[str, typer.Option(help="gpt of ESA SNAP, for GRD products.")] = "gpt",
    sarsen: Annotated[
        str, typer.Option(help="sarsen's command, for GRD products where --dem is a file.")
    ] = "sarsen",
    dem: Annotated[
        str,
        typer.Option(
            help="SNAP's name of an elevation model, or a file of elevations for sarsen.", parser=name_or_path
        ),
    ] = "SRTM 1Sec HGT",
    dem_datum: Annotated[
        str | None,
        typer.Option(
            help="What the heights of that file are above, where it does not say: ellipsoid, EGM96, EGM2008.",
            show_default=False,
        ),
    ] = None,
    geoid: Annotated[
        Path | None,
        typer.Option(
            help="Geoid grid (GTX, GeoTIFF) that they are above; PROJ's by default.",
            resolve_path=True,
            show_default=False,
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Products at a time, up to 2 GB each.")] = 1,
    dask: DaskOption = None,
    worker_index: WorkerIndexOption = None,
    workers_total: WorkersTotalOption = 1,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make patches, maps, labels and metadata from Sentinel scenes and CORINE; run again, it continues."""
    from reben_cloud import build as building
    from reben_cloud.bigearthnet.country import REBEN_COUNTRIES, load_countries
    from reben_cloud.scenes import prepare as recipe
    from reben_cloud.scenes.land_cover import load_class_table
    from reben_cloud.scenes.processors import run_sen2cor
    from reben_cloud.store import open_store

    if not (s2 or l1c):
        raise typer.BadParameter("give products: --s2 or --l1c")
    raw = [*(l1c or []), *(path for path in s1 or [] if path.suffix in (".SAFE", ".zip"))]
    if worker_index is not None and (root is not None or raw):
        raise typer.BadParameter(
            "--worker-index goes with --out, Level-2A products and finished S1: what else there is to do "
            "(sen2cor, terrain correction, the build) is a command of its own, before or after"
        )
    store = None if root is None else open_store(root, storage_options(endpoint_url))
    folder = out
    if folder is None:
        if store is None:
            raise typer.BadParameter("say where to: --out FOLDER, --root ROOT, or both")
        folder = recipe.default_scratch(store)
    products = recipe.find_products(s2 or [])
    inputs = None
    if store is not None:
        named = {
            "--clc": clc,
            "--countries": countries,
            "--classes": Path(classes),
            "--dem": Path(dem),
            "--geoid": geoid,
        }
        files = {name: [path] for name, path in named.items() if path is not None and path.is_file()}
        files |= {"--l1c": l1c or [], "--s1": s1 or []}
        options: dict[str, object] = {
            "--any-country": any_country, "--classes": Path(classes).name, "--code-column": code_column,
            "--patch-size": patch_size, "--dem": Path(dem).name, "--dem-datum": dem_datum, "--v1": v1 and v1.name,
        }  # fmt: skip
        for name, paths in {"--s2": products, **files}.items():
            # Names, as for `provenance`: inputs may be moved.
            options.setdefault(name, ", ".join(path.name for path in paths))
        inputs = recipe.identify_inputs(products, files, v1=v1)
        if (manifest := recipe.claim_root(store, options, inputs)) is not None:
            if as_json:
                typer.echo(
                    json.dumps(
                        {"root": store.url, "published_already": True, "num_patches": manifest["num_patches"]}
                    )
                )
            else:
                typer.echo(f"published already: {manifest['num_patches']:,} patches at {store.url}")
            return
    products += run_sen2cor(l1c or [], folder / "L2A", program=sen2cor, workers=workers)
    official, scenes = recipe.find_s1(
        s1 or [], products, folder / "S1", gpt=gpt, sarsen=sarsen, dem=dem, dem_datum=dem_datum, geoid=geoid,
        workers=workers,
    )  # fmt: skip
    chosen = recipe.Recipe(
        clc=clc,
        table=load_class_table(classes),
        code_column=code_column,
        countries=load_countries(countries, names=None if any_country else REBEN_COUNTRIES),
        v1=v1,
        s1_v1=official,
        s1_scenes=scenes,
        patch_m=patch_size,
    )
    run = building.dask(dask) if dask else building.local(workers)
    try:
        reports = recipe.prepare(
            products,
            folder,
            chosen,
            executor=run,
            worker_index=worker_index or 0,
            workers_total=workers_total,
            progress=progress,
        )
        if not as_json:
            typer.echo("\n".join([*map(str, reports), recipe.summary(reports)]))
        if store is not None:
            manifest = recipe.build_root(folder, store, inputs=inputs, executor=run, progress=progress)
            if out is None:
                shutil.rmtree(folder)
            if not as_json:
                typer.echo(building.published(manifest, store.url))
        if as_json:
            told: dict[str, Any] = {"products": [asdict(report) for report in reports]}
            if out is not None:
                told["out"] = str(out)
            if store is not None and manifest is not None:
                told |= {
                    "root": store.url,
                    "published_already": False,
                    "num_patches": manifest["num_patches"],
                }
            typer.echo(json.dumps(told, indent=2))
    except KeyboardInterrupt:
        typer.echo(
            f"reben-cloud: stopped; what is done stays done in {folder}, the same command goes on from there",
            err=True,
        )
        # As `build`: not `sys.exit`, which waits for the bands and products under way.
        os._exit(130)


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe, or a TOML file.", show_default=False, parser=name_or_path)
    ],
    root: RootOption,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/RECIPE by default.", show_default=False, parser=path),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as train.country=Finland; repeat.")
    ] = None,
    cache_dir: CacheDirOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model by a recipe, or go on where it was interrupted; under torchrun, on several GPUs."""
    from reben_cloud.opening import open as open_dataset
    from reben_cloud.training.config import load_recipe

    config = load_recipe(recipe, overrides=change or ())
    folder = out or Path("runs") / Path(recipe).stem
    dataset = open_dataset(root, storage_options(endpoint_url))
    from reben_cloud.training.train import train as run_train  # takes seconds; a typo above is told at once

    with step_progress() as on_step:
        result = run_train(config, dataset, folder, on_step=on_step, cache_dir=cache_dir)
    if os.environ.get("RANK", "0") == "0":
        show_metrics(
            result,
            as_json,
            f"{result['subset']}, weights of epoch {result['best_epoch']} in {folder / 'best'}",
        )


@app.command()
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Folder of a model, or owner/name on the hub.", show_default=False, parser=name_or_path
        ),
    ],
    root: RootOption,
    bbox: BboxOption = None,
    datetime: DatetimeOption = None,
    label: LabelOption = None,
    split: SplitOption = None,
    country: CountryOption = None,
    recommended: RecommendedOption = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json and plots.", show_default=False, parser=path),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Patches a step, over all processes.")] = 256,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the forward pass.")] = "fp32",
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on what a search finds (the whole root by default), each patch once."""
    from reben_cloud.opening import open as open_dataset
    from reben_cloud.training.evaluate import evaluate_folder
    from reben_cloud.training.report import write_report

    query = search_query(bbox, datetime, label, split, country, recommended)
    selection = open_dataset(root, storage_options(endpoint_url)).search(**query)
    model, spec, found = evaluate_folder(checkpoint, selection, precision=precision, batch_size=batch_size)
    if os.environ.get("RANK", "0") == "0":
        if report:
            write_report(report, found.metrics, found, spec=spec, model=model, selection=selection)
        show_metrics(found.metrics, as_json, f"{checkpoint} on {len(selection):,} patches")


@app.command()
def export(
    root: RootArgument,
    dest: Annotated[Path, typer.Argument(help="The new folder.", show_default=False, parser=path)],
    bbox: BboxOption = None,
    datetime: DatetimeOption = None,
    label: LabelOption = None,
    split: SplitOption = None,
    country: CountryOption = None,
    recommended: RecommendedOption = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="s2, s1 or map; all by default.", show_default=False)
    ] = None,
    form: Annotated[Literal["lmdb", "safetensors"], typer.Option("--format", help="What to write.")] = "lmdb",
    map_size: Annotated[
        int | None,
        typer.Option(help="Map size that an LMDB is to name, bytes; its own by default.", show_default=False),
    ] = None,
    patches_per_file: Annotated[int, typer.Option(help="Patches in a safetensors file.")] = 1000,
    update: Annotated[bool, typer.Option("--update", help="Add what an existing export lacks.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop what is not selected from an existing export.")
    ] = False,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export what a search finds to a folder, as an LMDB for rico-hdl's readers; run again, it continues."""
    from reben_cloud import export as exporting
    from reben_cloud.opening import open as open_dataset

    query = search_query(bbox, datetime, label, split, country, recommended)
    selection = open_dataset(root, storage_options(endpoint_url)).search(**query)
    options: Any = {"modalities": modality, "update": update, "prune": prune, "progress": progress}
    if form == "lmdb":
        report = exporting.export_lmdb(selection, dest, map_size=map_size, **options)
    else:
        report = exporting.export_safetensors(selection, dest, patches_per_file=patches_per_file, **options)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else report.to_text())


@app.command()
def catalog(
    metadata: Annotated[
        list[Path],
        typer.Argument(help="The official metadata parquet files.", show_default=False, parser=path),
    ],
    dest: Annotated[
        str, typer.Argument(help="Path or URL of the new catalog.", show_default=False, parser=new_root)
    ],
    endpoint_url: EndpointOption = None,
) -> None:
    """Catalog the real dataset from its metadata alone: to search, to browse and to serve."""
    from reben_cloud.build.publish import publish_metadata
    from reben_cloud.root.patches import read_official
    from reben_cloud.store import open_store

    store = open_store(dest, storage_options(endpoint_url))
    manifest = publish_metadata(read_official(metadata), store)
    num_products = len(manifest["products"])
    typer.echo(f"catalogued {manifest['num_patches']:,} patches of {num_products} products at {store.url}")


@app.command()
def search(
    root: RootArgument,
    bbox: BboxOption = None,
    intersects: Annotated[
        str | None, typer.Option(help="WKT, GeoJSON, or @FILE with GeoJSON.", show_default=False)
    ] = None,
    datetime: DatetimeOption = None,
    s1_datetime: Annotated[str | None, typer.Option(help="Sentinel-1 time.", show_default=False)] = None,
    season: Annotated[
        list[str] | None, typer.Option(help="spring, summer, fall, winter; repeat.", show_default=False)
    ] = None,
    label: LabelOption = None,
    label_all: Annotated[
        list[str] | None, typer.Option(help="Patches with all of these; repeat.", show_default=False)
    ] = None,
    split: SplitOption = None,
    country: CountryOption = None,
    product: Annotated[
        list[str] | None, typer.Option(help="Sentinel-2 product; repeat.", show_default=False)
    ] = None,
    snow: Annotated[bool | None, typer.Option(help="With or without snow.")] = None,
    cloud: Annotated[bool | None, typer.Option(help="With or without cloud or shadow.")] = None,
    recommended: RecommendedOption = None,
    cql2: Annotated[str | None, typer.Option(help="CQL2 text.", show_default=False)] = None,
    sortby: Annotated[
        list[str] | None, typer.Option(help="Column, -COLUMN for descending; repeat.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many.", show_default=False)] = None,
    form: Annotated[
        Literal["table", "ids", "geojson", "parquet", "stac"], typer.Option("--format", help="What to print.")
    ] = "table",
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find patches by area, time, label and more."""
    from reben_cloud.opening import open as open_dataset
    from reben_cloud.search.output import render

    if intersects and intersects.startswith("@"):
        try:
            intersects = local_path(intersects[1:], "the file").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"--intersects {intersects} cannot be read as text: {error}") from error
    more: dict[str, Any] = {
        "intersects": intersects,
        "s1_datetime": s1_datetime,
        "season": season,
        "labels_all": label_all,
    }
    more |= {"product": product, "snow": snow, "cloud": cloud, "cql2": cql2, "sortby": sortby, "limit": limit}
    query = search_query(bbox, datetime, label, split, country, recommended)
    dataset = open_dataset(root, storage_options(endpoint_url))
    try:
        found = dataset.search(**query, **{name: value for name, value in more.items() if value is not None})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for piece in render(found, "json" if as_json else form):
        sys.stdout.buffer.write(piece)


@app.command()
def serve(
    root: RootArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    endpoint_url: EndpointOption = None,
) -> None:
    """Serve a STAC API, and a page to look at the dataset, until interrupted."""
    from reben_cloud.opening import open as open_dataset
    from reben_cloud.serve import serve as run_server

    dataset = open_dataset(root, storage_options(endpoint_url))
    typer.echo(f"http://{host}:{port}/  {len(dataset):,} patches of {dataset.url}; Ctrl-C ends", err=True)
    run_server(dataset, host=host, port=port)


@app.command()
def verify(
    root: RootArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Presence and sizes only.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode everything and compare the forms with each other.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare every patch with this source, as for build.", show_default=False, parser=path_or_url
        ),
    ] = None,
    metadata: MetadataOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every object of a root; exit 1 when anything is wrong."""
    from reben_cloud.checks.verify import verify as run_verify
    from reben_cloud.opening import open as open_dataset
    from reben_cloud.sources.recognise import open_source

    access = storage_options(endpoint_url)
    source = open_source(against, metadata_paths=metadata or (), storage_options=access) if against else None
    report = run_verify(
        open_dataset(root, access), quick=quick, deep=deep, against=source and source[0], progress=progress
    )
    typer.echo(report.to_json() if as_json else report.to_text())
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def info(root: RootArgument, endpoint_url: EndpointOption = None, as_json: JsonOption = False) -> None:
    """Say what a root holds."""
    from reben_cloud.opening import open as open_dataset

    dataset = open_dataset(root, storage_options(endpoint_url))
    typer.echo(json.dumps(dataset.manifest, indent=2) if as_json else dataset.summary())


@bucket_app.command("create")
def bucket_create(
    name: Annotated[str, typer.Argument(help="Name of the bucket.", show_default=False)],
    versioning: Annotated[bool, typer.Option(help="Keep old versions of objects.")] = False,
    cors: Annotated[bool, typer.Option(help="Let web pages read.")] = True,
    expire_uploads_days: Annotated[
        int, typer.Option(help="Days until an interrupted upload is removed.")
    ] = 7,
    endpoint_url: EndpointOption = None,
) -> None:
    """Make a bucket fit for roots; run again, it brings the bucket up to these settings."""
    from reben_cloud.bucket import create_bucket

    for line in create_bucket(
        name,
        storage_options(endpoint_url),
        versioning=versioning,
        cors=cors,
        expire_uploads_days=expire_uploads_days,
    ):
        typer.echo(line)


@bucket_app.command("policy")
def bucket_policy(
    name: Annotated[str, typer.Argument(help="Name of the bucket.", show_default=False)],
    access: Annotated[Literal["public", "reader", "builder"], typer.Option(help="What to allow.")] = "reader",
    prefix: Annotated[str, typer.Option(help="Objects below this prefix only.")] = "",
    principal: Annotated[list[str] | None, typer.Option(help="ARN of who gets it; may be repeated.")] = None,
    apply: Annotated[
        bool, typer.Option(help="Set it as the bucket's policy, in place of the present one.")
    ] = False,
    endpoint_url: EndpointOption = None,
) -> None:
    """Print the policy that lets somebody read a root, or build one, and no more."""
    from reben_cloud.bucket import access_policy, put_policy

    document = json.dumps(access_policy(name, access, prefix=prefix, principals=principal or ()), indent=2)
    if apply:
        put_policy(name, document, storage_options(endpoint_url))
    typer.echo(document)


@bucket_app.command("presign")
def bucket_presign(
    root: RootArgument,
    bbox: BboxOption = None,
    datetime: DatetimeOption = None,
    label: LabelOption = None,
    split: SplitOption = None,
    country: CountryOption = None,
    recommended: RecommendedOption = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="s2, s1 or map; all by default.", show_default=False)
    ] = None,
    expires_hours: Annotated[float, typer.Option(help="Hours until the links expire, at most 168.")] = 24,
    endpoint_url: EndpointOption = None,
) -> None:
    """Print links (JSON) to the shards of what a search finds, for somebody without credentials."""
    from reben_cloud.bucket import share
    from reben_cloud.opening import open as open_dataset

    query = search_query(bbox, datetime, label, split, country, recommended)
    selection = open_dataset(root, storage_options(endpoint_url)).search(**query)
    links = share(selection, modalities=modality, expires_s=round(expires_hours * 3600))
    typer.echo(json.dumps(links, indent=2))


@app.command()
def stream(
    root: RootArgument,
    bbox: BboxOption = None,
    datetime: DatetimeOption = None,
    label: LabelOption = None,
    split: SplitOption = None,
    country: CountryOption = None,
    recommended: RecommendedOption = None,
    modality: Annotated[
        list[str] | None, typer.Option(help="s2, s1 or map; all by default.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 256,
    epochs: Annotated[int, typer.Option(help="How often to go through the selection.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
    threads: Annotated[int, typer.Option(help="Concurrent requests.")] = 8,
    form: Annotated[str, typer.Option(help="shards or zarr.")] = "shards",
    cache_dir: CacheDirOption = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="Most bytes in that folder.", show_default=False)
    ] = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stream batches as training would, show the rate, and sum up."""
    from reben_cloud.opening import open as open_dataset

    query = search_query(bbox, datetime, label, split, country, recommended)
    loader = fastest_loader()(
        open_dataset(root, storage_options(endpoint_url)).search(**query),
        modalities=modality or None,
        batch_size=batch_size,
        seed=seed,
        fetch_threads=threads,
        form=form,
        cache_dir=cache_dir,
        cache_bytes=cache_bytes,
    )
    stopped = False
    try:
        for _ in with_stats(loader, epochs):
            pass
    except KeyboardInterrupt:
        stopped = True
        typer.echo("reben-cloud: stopped; so far:", err=True)
    stats = loader.stats()
    typer.echo(json.dumps(asdict(stats), indent=2) if as_json else stats.to_text())
    if stopped:
        raise typer.Exit(130)


def fastest_loader() -> Any:
    """The loader with PyTorch's copies where PyTorch is installed, else the one that needs NumPy only."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        from reben_cloud.stream import RawLoader

        return RawLoader
    from reben_cloud.torch import StreamLoader

    return StreamLoader


@app.command()
def doctor(
    root: Annotated[
        str | None,
        typer.Argument(help="Path or URL of a root, to look at its store too.", parser=path_or_url),
    ] = None,
    write: Annotated[bool, typer.Option(help="Also try to write and delete a small object there.")] = False,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what would keep things from working here, and say what to do."""
    from reben_cloud.checks.doctor import diagnose

    findings = list(diagnose(root, storage_options(endpoint_url), try_write=write))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.level:8} {finding.subject:12} {finding.detail}")
            if finding.advice:
                typer.echo(f"{'':21} -> {finding.advice}")
    raise typer.Exit(int(any(finding.level == "problem" for finding in findings)))


def search_query(
    bbox: str | None,
    datetime: str | None,
    label: list[str] | None,
    split: list[str] | None,
    country: list[str] | None,
    recommended: bool | None,
) -> dict[str, Any]:
    """The search options as arguments of `Dataset.search`."""
    given = {"bbox": bbox, "datetime": datetime, "labels": label, "split": split, "country": country}
    return {name: value for name, value in {**given, "recommended": recommended}.items() if value is not None}


def show_metrics(metrics: Mapping[str, Any], as_json: bool, title: str) -> None:
    """Metrics as JSON, or the means as a line or two for people."""
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    classes = f", {metrics['num_classes']} of {len(metrics['per_class'])} classes occur"
    typer.echo(title + classes)
    for mean in ("macro", "micro"):
        values = "  ".join(
            f"{name} {value:.4f}" for name, value in metrics.get(mean, {}).items() if value is not None
        )
        if values:
            typer.echo(f"  {mean}  {values}")
    for what, number in metrics.get("left_out", {}).items():
        if number:
            typer.echo(f"  left out: {number:,} {what}")


@contextlib.contextmanager
def step_progress() -> Iterator[Callable[[Any], None]]:
    """Where a training run is, how fast, and how much it waits: a bar on a terminal, else lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    first = os.environ.get("RANK", "0") == "0"
    with Progress(
        *columns, console=console, transient=True, disable=not (first and console.is_terminal)
    ) as bar:
        task = bar.add_task("", total=None)

        def on_step(info: Any) -> None:
            text = (
                f"epoch {info.epoch}  loss {info.loss:.4f}  {info.samples_per_s:,.0f} samples/s  "
                f"waiting {info.wait_share:.1%}"
            )
            bar.update(task, completed=info.step, total=info.num_steps, description=text)
            if not console.is_terminal:
                typer.echo(f"step {info.step:,} of {info.num_steps:,}  {text}", err=True)

        yield on_step


def storage_options(endpoint_url: str | None) -> dict[str, Any]:
    """Storage options of the command line; the rest comes from the ``AWS_*`` variables."""
    return {"endpoint_url": endpoint_url} if endpoint_url else {}


def with_stats(loader: Any, epochs: int) -> Iterator[Any]:
    """The batches of some epochs, with the loader's figures on stderr: live, or after 2 s and every 10 s."""
    from rich.console import Console

    console = Console(stderr=True)
    every_s = 0.5 if console.is_terminal else 10.0
    due = time.monotonic() + min(every_s, 2.0)
    with console.status("streaming") as status:
        for epoch in range(epochs):
            for number, batch in enumerate(loader, 1):
                yield batch
                if time.monotonic() >= due:
                    due = time.monotonic() + every_s
                    line = f"epoch {epoch}, batch {number} of {len(loader)}: {loader.stats().to_line()}"
                    if console.is_terminal:
                        status.update(line)
                    else:
                        print(line, file=sys.stderr)  # noqa: T201


def progress(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """`items`, with a bar on stderr when that is a terminal; when not, a line at once, after 2 s and every 10 s."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            Rate(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=what)
        return
    typer.echo(f"{what}: 0 of {total:,}", err=True)
    start, due = time.monotonic(), 2.0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - start >= due:
            rate = count / (now - start)
            left = timedelta(seconds=round((total - count) / rate))
            typer.echo(f"{what}: {count:,} of {total:,}, {rate:,.1f}/s, {left} left", err=True)
            due = now - start + 10


def main() -> None:
    """Entry point of the command."""
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    try:
        app(standalone_mode=True)
    except (RebenError, OSError, MemoryError) as error:
        if verbose:
            raise
        typer.echo(f"reben-cloud: {error}", err=True)
        sys.exit(1)
    except ValueError as error:  # an argument that the library refused
        if verbose:
            raise
        typer.echo(f"reben-cloud: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
