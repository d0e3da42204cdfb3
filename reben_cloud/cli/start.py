"""Commands to begin with: a demo of everything, and a look at what would keep things from working."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reben_cloud.cli.options import EndpointOption, JsonOption, path, path_or_url, storage_options
from reben_cloud.cli.output import show_json


def demo(
    root: Annotated[Path, typer.Option(help="Folder for what it makes.", parser=path)] = Path("demo"),
    patches: Annotated[int, typer.Option(help="Size of the made-up dataset, at most 4553.")] = 600,
) -> None:
    """Build a small made-up root, search it, stream it and export a part of it."""
    from reben_cloud.cli.demo import run_demo

    run_demo(root, num_patches=patches, say=typer.echo)


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
        show_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{finding.level:8} {finding.subject:12} {finding.detail}")
            if finding.advice:
                typer.echo(f"{'':21} -> {finding.advice}")
    raise typer.Exit(int(any(finding.level == "problem" for finding in findings)))
