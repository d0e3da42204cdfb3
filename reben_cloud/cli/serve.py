"""The command that serves a root to browsers and STAC clients."""

from __future__ import annotations

from typing import Annotated

import typer

from reben_cloud.cli.options import EndpointOption, LayerOption, RootArgument, open_root


def serve(
    root: RootArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    layer: LayerOption = None,
    endpoint_url: EndpointOption = None,
) -> None:
    """Serve a STAC API, and a page to look at the dataset, until interrupted."""
    from reben_cloud.serve import serve as run_server

    dataset = open_root(root, endpoint_url, layer)
    typer.echo(f"http://{host}:{port}/  {len(dataset):,} patches of {dataset.url}; Ctrl-C ends", err=True)
    run_server(dataset, host=host, port=port)
