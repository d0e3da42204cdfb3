"""The command that serves a root to browsers and STAC clients."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from reben_cloud.cli.options import EndpointOption, LayerOption, RootArgument, open_root


def serve(
    root: RootArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="TCP port; 0 takes a free one.")] = 8000,
    layer: LayerOption = None,
    public_url: Annotated[
        str | None, typer.Option(help="URL at which clients reach the server, for links behind a proxy.")
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="Path of the server at the proxy, such as /stac; by default the public URL's.")
    ] = "",
    forwarded_allow_ips: Annotated[
        str | None,
        typer.Option(help="Proxies whose X-Forwarded headers are believed: addresses with commas, or *."),
    ] = None,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line of JSON per request to stderr.")
    ] = False,
    endpoint_url: EndpointOption = None,
) -> None:
    """Serve a STAC API, and a page to look at the dataset, until interrupted."""
    from reben_cloud.serve import serve as run_server

    if access_log:
        log = logging.getLogger("reben_cloud.serve.watch")
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
    dataset = open_root(root, endpoint_url, layer)

    def ready(url: str) -> None:
        typer.echo(f"{public_url or url}  {len(dataset):,} patches of {dataset.url}; Ctrl-C ends", err=True)

    run_server(
        dataset,
        host=host,
        port=port,
        public_url=public_url,
        root_path=root_path,
        forwarded_allow_ips=forwarded_allow_ips,
        ready=ready,
    )
