"""Commands that read a root: what it holds, what a search finds, and that streamed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reben_cloud.cli.options import (
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
)
from reben_cloud.cli.output import show, show_json
from reben_cloud.cli.progress import rates
from reben_cloud.root.query import Query

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
    as_json: JsonOption = False,
) -> None:
    """Find patches by area, time, label and more."""
    from reben_cloud.search.output import render

    for piece in render(select(root, query, endpoint_url, layer), "json" if as_json else form):
        sys.stdout.buffer.write(piece)


@search_options
def stream(
    root: RootArgument,
    query: Query,
    layer: LayerOption = None,
    modality: ModalityOption = None,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.")] = 256,
    epochs: Annotated[int, typer.Option(help="How often to go through the selection.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the order, and of --sample.")] = 0,
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
    loader = _fastest_loader()(
        select(root, query, endpoint_url, layer),
        modalities=modality or None,
        batch_size=batch_size,
        seed=seed,
        fetch_threads=threads,
        form=form,  # type: ignore[arg-type]
        cache_dir=cache_dir,
        cache_bytes=cache_bytes,
    )
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


def _fastest_loader() -> type[RawLoader] | type[StreamLoader]:
    """The loader with PyTorch's copies where PyTorch is installed, else the one that needs NumPy only."""
    if find_spec("torch") is None:
        from reben_cloud.stream import RawLoader

        return RawLoader
    from reben_cloud.torch import StreamLoader

    return StreamLoader
