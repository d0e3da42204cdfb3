"""Commands that read a root: what it holds, what a search finds, and that streamed or exported."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reben_cloud.cli.options import (
    CacheDirOption,
    EndpointOption,
    JsonOption,
    ModalityOption,
    RootArgument,
    open_root,
    path,
    search_options,
    select,
)
from reben_cloud.cli.output import show, show_json
from reben_cloud.cli.progress import bar, rates
from reben_cloud.root.query import Query

if TYPE_CHECKING:
    from reben_cloud.stream import RawLoader
    from reben_cloud.torch import StreamLoader


def info(root: RootArgument, endpoint_url: EndpointOption = None, as_json: JsonOption = False) -> None:
    """Say what a root holds."""
    dataset = open_root(root, endpoint_url)
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
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find patches by area, time, label and more."""
    from reben_cloud.search.output import render

    for piece in render(select(root, query, endpoint_url), "json" if as_json else form):
        sys.stdout.buffer.write(piece)


@search_options
def stream(
    root: RootArgument,
    query: Query,
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
        select(root, query, endpoint_url),
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


@search_options
def export(
    root: RootArgument,
    dest: Annotated[Path, typer.Argument(help="The new folder.", show_default=False, parser=path)],
    query: Query,
    modality: ModalityOption = None,
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
    from reben_cloud.export import export_lmdb, export_safetensors

    selection = select(root, query, endpoint_url)
    options: Any = {"modalities": modality, "update": update, "prune": prune, "progress": bar}
    if form == "lmdb":
        report = export_lmdb(selection, dest, map_size=map_size, **options)
    else:
        report = export_safetensors(selection, dest, patches_per_file=patches_per_file, **options)
    show(report, as_json)
