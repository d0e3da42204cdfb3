"""Commands that train a model and measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reben_cloud.cli.options import (
    CacheDirOption,
    DrawsOption,
    EndpointOption,
    JsonOption,
    LayerOption,
    RootArgument,
    RootOption,
    WorkerIndexOption,
    WorkersTotalOption,
    check_share,
    name_or_path,
    new_root,
    open_root,
    path,
    search_options,
    select,
    storage_options,
)
from reben_cloud.cli.output import show, show_json
from reben_cloud.cli.progress import bar_of_first_rank, steps
from reben_cloud.root.query import Query
from reben_cloud.training.ranks import is_first_rank

ANY = "any"
"""Value of ``--split`` that takes all splits."""

BandsOption = Annotated[
    str | None,
    typer.Option(
        help="Order of the model's bands: a set's name or names with commas; by default what the model tells.",
        show_default=False,
    ),
]


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
    layer: LayerOption = None,
    cache_dir: CacheDirOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model by a recipe, or go on where it was interrupted; under torchrun, on several GPUs."""
    from reben_cloud.training.config import load_recipe

    dataset = open_root(root, endpoint_url, layer)
    config = load_recipe(
        recipe, overrides=change or (), schema=dataset.schema, statistics=dataset.band_statistics
    )
    folder = out or Path("runs") / Path(recipe).stem
    from reben_cloud.training.train import train as run  # takes seconds; a typo above is told at once

    with steps() as on_step:
        result = run(config, dataset, folder, on_step=on_step, cache_dir=cache_dir)
    if is_first_rank():
        best = f"weights of epoch {result['best_epoch']} in {folder / 'best'}"
        if result["best_epoch"] < 0:
            best = f"the vote of neighbours, report in {folder / 'report'}"
        _show_metrics(result, as_json, f"{result['subset']}, {best}")


@search_options
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Folder of a model, or owner/name on the hub.", show_default=False, parser=name_or_path
        ),
    ],
    root: RootOption,
    query: Query,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json and plots.", show_default=False, parser=path),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches a step, over all processes.")] = 256,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the forward pass.")] = "fp32",
    bands: BandsOption = None,
    draws: DrawsOption = 1000,
    at_half: Annotated[
        bool, typer.Option("--at-half", help="Decide at 0.5, whatever thresholds the model has.")
    ] = False,
    choose_thresholds: Annotated[
        Literal["class", "global"] | None,
        typer.Option(
            help="Choose thresholds on what is found (validation by default) and keep them in the model's folder.",
            show_default=False,
        ),
    ] = None,
    layer: LayerOption = None,
    cache_dir: CacheDirOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on what a search finds (of the test split by default), each patch once."""
    if choose_thresholds and (report is not None or at_half):
        raise typer.BadParameter(
            f"--choose-thresholds measures nothing, so it takes no {'--at-half' if at_half else '--report'}; choose "
            "first, then evaluate"
        )
    query, said = _with_split(query, "validation" if choose_thresholds else "test")
    selection = select(root, query, endpoint_url, layer)
    if said and is_first_rank():
        typer.echo(said.format(count=f"{len(selection):,}"), err=True)
    from reben_cloud.training import measure  # takes seconds; a typo above is told at once

    if choose_thresholds:
        chosen = measure.choose_thresholds(
            checkpoint, selection, per=choose_thresholds, precision=precision, batch_size=batch_size,
            bands=bands, cache_dir=cache_dir,
        )  # fmt: skip
        if is_first_rank():
            names = selection.dataset.schema.classes.names
            _show_thresholds(dict(zip(names, chosen, strict=True)), as_json, checkpoint)
        return
    found = measure.measure(
        checkpoint, selection, report=report, precision=precision, batch_size=batch_size, draws=draws,
        bands=bands, at_half=at_half, cache_dir=cache_dir,
    )  # fmt: skip
    if is_first_rank():
        _show_metrics(found.metrics, as_json, f"{checkpoint} on {len(selection):,} patches")


def _with_split(query: Query, default: str) -> tuple[Query, str]:
    """The query with a split, and what to say of it where none was given; ``any`` takes all."""
    given = [query.split] if isinstance(query.split, str) else list(query.split or ())
    if given:
        return (replace(query, split=None) if ANY in given else query), ""
    meaning = (
        "whose patches have chosen neither weights nor epoch, if the model was trained by a recipe of ours"
        if default == "test"
        else "so keep the test split for measuring"
    )
    with_all = (
        "" if query.recommended else ", those with snow, cloud or shadow too (--recommended leaves them out)"
    )
    return replace(query, split=default), (
        f"no --split: these are the {{count}} patches of the {default} split{with_all}, {meaning}; "
        "--split any takes all splits"
    )


def _show_thresholds(thresholds: Mapping[str, float], as_json: bool, checkpoint: str) -> None:
    if as_json:
        show_json(thresholds)
        return
    typer.echo(f"thresholds kept in {checkpoint}; evaluate and predict decide at them:")
    for name, value in thresholds.items():
        typer.echo(f"  {value:.3f}  {name}")


@search_options
def predict(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of a model, or owner/name on the hub.", show_default=False, parser=name_or_path
        ),
    ],
    root: RootArgument,
    dest: Annotated[
        str,
        typer.Argument(
            help="Path or URL of the layer to write, or of a .parquet file.",
            show_default=False,
            parser=new_root,
        ),
    ],
    query: Query,
    what: Annotated[
        Literal["probabilities", "labels", "mask", "embedding"], typer.Option(help="What to keep.")
    ] = "probabilities",
    name: Annotated[
        str | None,
        typer.Option(help="Name of the layer; pred, mask or emb by default.", show_default=False),
    ] = None,
    bands: BandsOption = None,
    geotiff: Annotated[
        Path | None,
        typer.Option(help="Folder for masks as GeoTIFFs too.", show_default=False, parser=path),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Patches a step of each process.")] = 256,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the forward pass.")] = "fp32",
    layer: LayerOption = None,
    cache_dir: CacheDirOption = None,
    worker_index: WorkerIndexOption = None,
    workers_total: WorkersTotalOption = 1,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a model says of all that a search finds as a layer, or go on where that was interrupted."""
    if geotiff is not None and what != "mask":
        raise typer.BadParameter(f"--geotiff is for --what mask; {what} are no images")
    check_share(worker_index, workers_total)
    selection = select(root, query, endpoint_url, layer)
    from reben_cloud.training.predict import predict as run  # takes seconds; a typo above is told at once

    found = run(
        model,
        selection,
        dest,
        what=what,
        name=name,
        bands=bands,
        batch_size=batch_size,
        precision=precision,
        share=(0, 1) if worker_index is None else (worker_index, workers_total),
        storage_options=storage_options(endpoint_url),
        geotiffs=geotiff,
        progress=bar_of_first_rank,
        cache_dir=cache_dir,
    )
    if is_first_rank():
        show(found, as_json)


def _show_metrics(metrics: Mapping[str, Any], as_json: bool, title: str) -> None:
    """Metrics as JSON, or the means as a line or two for people."""
    if as_json:
        show_json(metrics)
        return
    classes = f", {metrics['num_classes']} of {len(metrics['per_class'])} classes occur"
    typer.echo(title + classes)
    intervals = metrics.get("intervals", {})
    for mean in ("macro", "micro", "samples"):
        ends = intervals.get(mean, {})
        values = "  ".join(
            f"{name} {value:.4f}" + (" [{:.4f}, {:.4f}]".format(*ends[name]) if name in ends else "")
            for name, value in metrics.get(mean, {}).items()
            if value is not None
        )
        if values:
            typer.echo(f"  {mean}  {values}")
    if intervals:
        typer.echo(
            f"  in brackets: {intervals['level']:.0%} of {intervals['num_draws']:,} draws of the "
            f"{intervals['num_squares']} squares that the patches are in"
        )
    if set(metrics.get("thresholds", ())) - {0.5}:
        typer.echo("  decided at the model's own thresholds (--at-half for 0.5)")
    for what, number in metrics.get("left_out", {}).items():
        if number:
            typer.echo(f"  left out: {number:,} {what}")
