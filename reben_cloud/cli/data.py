"""Commands that read a root: what it holds, what a search finds, and that streamed."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reben_cloud.cli.options import (
    BalancedPowerOption,
    CacheDirOption,
    EndpointOption,
    JsonOption,
    LayerOption,
    ModalityOption,
    RootArgument,
    exported_files,
    find_layer,
    open_root,
    search_options,
    select,
    usage,
)
from reben_cloud.cli.output import show, show_json
from reben_cloud.cli.progress import rates
from reben_cloud.root.query import Query
from reben_cloud.wording import counted

if TYPE_CHECKING:
    from reben_cloud.stream import RawLoader
    from reben_cloud.torch import StreamLoader


def info(
    root: RootArgument,
    layer: LayerOption = None,
    form: Annotated[
        Literal["text", "stac", "croissant"],
        typer.Option("--format", help="For people, or a root as a STAC Collection or Croissant card."),
    ] = "text",
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a root, a layer or the folder of an export holds."""
    if form != "text":
        from reben_cloud.catalog import PlacedLayer, dataset_card, dataset_document

        dataset = open_root(root, endpoint_url, layer)
        placed = PlacedLayer.of(dataset.layers)
        of = (
            dataset_card(dataset)
            if form == "croissant"
            else dataset_document(dataset, url=dataset.url, layers=placed)
        )
        show_json(of)
        return
    if (files := exported_files(root)) is not None:
        if as_json:
            show_json(files.manifest.to_json())
        else:
            typer.echo(files.summary())
        return
    if not layer and (alone := find_layer(root, endpoint_url)) is not None:
        if as_json:
            show_json(alone.manifest.to_json())
        else:
            typer.echo(alone.describe())
        return
    dataset = open_root(root, endpoint_url, layer)
    if as_json:
        show_json(dataset.manifest.to_json())
    else:
        typer.echo(dataset.summary())


@search_options
def search(
    root: RootArgument,
    query: Query,
    form: Annotated[
        Literal["table", "ids", "geojson", "parquet", "stac"], typer.Option("--format", help="What to print.")
    ] = "table",
    layer: LayerOption = None,
    endpoint_url: EndpointOption = None,
    near: Annotated[
        str | None,
        typer.Option(
            help="Those most like this patch, nearest first; 10 without a limit.", show_default=False
        ),
    ] = None,
    near_column: Annotated[
        str | None,
        typer.Option(help="Column of embeddings of a layer, LAYER:COLUMN, for --near.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find patches by area, time, label and more, or by what they look like."""
    from reben_cloud.search.output import render

    if near is None:
        if near_column is not None:
            raise typer.BadParameter("--near-column belongs to --near")
        found, scores = select(root, query, endpoint_url, layer), None
    else:
        if query.sortby or query.ids_order:
            raise typer.BadParameter("--near has an order of its own: leave out --sortby and --ids-order")
        everything = select(root, query.replace(limit=None), endpoint_url, layer)
        with usage():
            alike = everything.nearest(near, column=near_column, k=10 if query.limit is None else query.limit)
        _say_left_out(alike.num_left_out, f"{alike.column}, so they were not compared")
        found, scores = alike.selection, alike.scores
    # A pipe gets whole lines; a terminal, or whoever sets COLUMNS, gets what fits.
    has_width = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    width = shutil.get_terminal_size().columns if has_width else None
    for piece in render(found, "json" if as_json else form, scores=scores, width=width):
        sys.stdout.buffer.write(piece)
    if not len(found):
        typer.echo(found.why_empty(), err=True)


@search_options
def suspects(
    root: RootArgument,
    query: Query,
    column: Annotated[
        str,
        typer.Option(
            help="Column of probabilities of a layer, LAYER:COLUMN, in the order of the classes.",
            show_default=False,
        ),
    ],
    layer: LayerOption = None,
    by: Annotated[
        Literal["label", "patch"], typer.Option(help="Rank each label, or patches by any of theirs.")
    ] = "label",
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank labels by how likely they are wrong, from a model's predictions; 20 without a limit."""
    selection = select(root, query.replace(limit=None), endpoint_url, layer)
    with usage():
        found = selection.suspects(column, by=by, limit=20 if query.limit is None else query.limit)
    _say_left_out(found.num_left_out, f"{column}, so they were not judged")
    frame = found.to_pandas()
    if as_json:
        show_json(frame.to_dict(orient="records"))
    else:
        typer.echo(frame.to_string(index=False))


def _say_left_out(count: int, why: str) -> None:
    if count:
        typer.echo(f"{counted(count, 'patch has', 'patches have')} no {why}", err=True)


@search_options
def stream(
    root: RootArgument,
    query: Query,
    layer: LayerOption = None,
    modality: ModalityOption = None,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 256,
    epochs: Annotated[int, typer.Option(help="How often to go through the selection.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the order, and of --sample.")] = 0,
    balanced_power: BalancedPowerOption = None,
    threads: Annotated[int, typer.Option(help="Concurrent requests.")] = 8,
    form: Annotated[str, typer.Option(help="shards or zarr.")] = "shards",
    layout: Annotated[
        str, typer.Option(help="arrays, or records: payloads as they are stored, in less time.")
    ] = "arrays",
    cache_dir: CacheDirOption = None,
    cache_bytes: Annotated[
        int | None, typer.Option(help="Most bytes in that folder.", show_default=False)
    ] = None,
    memory_bytes: Annotated[int, typer.Option(help="Most bytes of whole shards kept in memory.")] = 0,
    band: Annotated[
        list[str] | None, typer.Option(help="Band to have, such as B04; all by default.", show_default=False)
    ] = None,
    lanes: Annotated[int, typer.Option(help="Partitions of the order.")] = 8,
    window: Annotated[int, typer.Option(help="Shards of a lane that are shuffled together.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what an epoch would take, and read nothing.")
    ] = False,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stream batches as training would, show the rate, and sum up."""
    selection = select(root, query, endpoint_url, layer)
    if balanced_power is not None:
        with usage():
            selection = selection.balanced(balanced_power)
    with usage():
        loader = _fastest_loader()(
            selection,
            modalities=modality or None,
            batch_size=batch_size,
            seed=seed,
            lanes=lanes,
            window=window,
            fetch_threads=threads,
            form=form,  # type: ignore[arg-type]
            layout=layout,  # type: ignore[arg-type]
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            bands=band or None,
        )
    if dry_run:
        show(loader.expected(), as_json)
        return
    stopped = False
    try:
        for _ in rates(loader, epochs):
            pass
    except KeyboardInterrupt:
        stopped = True
        typer.echo("reben-cloud: stopped; so far:", err=True)
    show(loader.stats(), as_json)
    if stopped:
        raise typer.Exit(130)


@search_options
def verify_epoch(
    root: RootArgument,
    query: Query,
    epoch: Annotated[int, typer.Option(help="Number of the epoch, from 0.", show_default=False)],
    digest: Annotated[
        str | None, typer.Option(help="What the run recorded, to be compared.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="How many samples were delivered, if fewer than all.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run, and of --sample.")] = 0,
    lanes: Annotated[int, typer.Option(help="Lanes of the run.")] = 8,
    window: Annotated[int, typer.Option(help="Window of the run.")] = 1,
    shuffle: Annotated[bool, typer.Option(help="Whether the run shuffled.")] = True,
    balanced_power: BalancedPowerOption = None,
    layer: LayerOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute what an epoch should have delivered, and compare the digest of one that did; reads no pixels."""
    from reben_cloud.stream.proof import compare_delivery, expected_delivery

    selection = select(root, query, endpoint_url, layer)
    with usage():
        found = expected_delivery(
            selection if balanced_power is None else selection.balanced(balanced_power),
            epoch=epoch,
            seed=seed,
            num_samples=samples,
            lanes=lanes,
            window=window,
            shuffle=shuffle,
        )
        if digest is not None:
            compare_delivery(found, digest)
    if as_json:
        show_json({"epoch": found.epoch, "samples": found.num_samples, "digest": found.digest})
    else:
        same = "" if digest is None else ", as was recorded"
        typer.echo(f"epoch {found.epoch}: {found.num_samples:,} samples, digest {found.digest}{same}")


def _fastest_loader() -> type[RawLoader] | type[StreamLoader]:
    """The loader with PyTorch's copies where PyTorch is installed, else the one that needs NumPy only."""
    if find_spec("torch") is None:
        from reben_cloud.stream import RawLoader

        return RawLoader
    from reben_cloud.torch import StreamLoader

    return StreamLoader
