"""Commands for the bucket around a root: making it, who may do what in it, and links that share a part."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from reben_cloud.cli.options import (
    EndpointOption,
    LayerOption,
    ModalityOption,
    RootArgument,
    search_options,
    select,
    storage_options,
)
from reben_cloud.cli.output import show_json
from reben_cloud.root.query import Query


def create(
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


def policy(
    name: Annotated[str, typer.Argument(help="Name of the bucket.", show_default=False)],
    access: Annotated[Literal["public", "reader", "builder"], typer.Option(help="What to allow.")] = "reader",
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            help="Objects below this prefix only; may be repeated, for a root and its layers.",
            show_default=False,
        ),
    ] = None,
    principal: Annotated[list[str] | None, typer.Option(help="ARN of who gets it; may be repeated.")] = None,
    apply: Annotated[
        bool, typer.Option(help="Set it as the bucket's policy, in place of the present one.")
    ] = False,
    endpoint_url: EndpointOption = None,
) -> None:
    """Print the policy that lets somebody read a root, or build one, and no more."""
    from reben_cloud.bucket import access_policy, put_policy

    document = json.dumps(
        access_policy(name, access, prefix=prefix or (), principals=principal or ()), indent=2
    )
    if apply:
        put_policy(name, document, storage_options(endpoint_url))
    typer.echo(document)


@search_options
def presign(
    root: RootArgument,
    query: Query,
    modality: ModalityOption = None,
    layer: LayerOption = None,
    expires_hours: Annotated[float, typer.Option(help="Hours until the links expire, at most 168.")] = 24,
    endpoint_url: EndpointOption = None,
) -> None:
    """Print links (JSON) to the shards of what a search finds, for somebody without credentials."""
    from reben_cloud.bucket import share

    selection = select(root, query, endpoint_url, layer)
    show_json(share(selection, modalities=modality, expires_s=round(expires_hours * 3600)))
