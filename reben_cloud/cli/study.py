"""The command that trains many models and compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reben_cloud.cli.options import (
    CacheDirOption,
    DaskOption,
    DrawsOption,
    EndpointOption,
    JsonOption,
    LayerOption,
    name_or_path,
    open_root,
    path,
    path_or_url,
)
from reben_cloud.cli.output import show, show_json
from reben_cloud.cli.progress import Runs
from reben_cloud.training.ranks import is_first_rank


def study(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Name of a study (--list), or a TOML file.",
            show_default=False,
            parser=name_or_path,
        ),
    ] = None,
    root: Annotated[
        str | None, typer.Option(help="Path or URL of a root.", show_default=False, parser=path_or_url)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the study; studies/STUDY by default.", show_default=False, parser=path),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, as seeds=[1,2] or recipe.epochs=5; repeat.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each a process; one per GPU.")] = 1,
    dask: DaskOption = None,
    draws: DrawsOption = 1000,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which runs there are and what they take.")
    ] = False,
    only_tables: Annotated[
        bool,
        typer.Option("--only-tables", help="Write tables and plots of what is finished, and run nothing."),
    ] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="List the studies that come with the package.")
    ] = False,
    layer: LayerOption = None,
    cache_dir: CacheDirOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train all models of a study and compare them, or go on where that was interrupted; also under torchrun."""
    from reben_cloud.training.study import grid, plan

    if listed:
        titles = {one: grid.load_study(one).title for one in grid.study_names()}
        if as_json:
            show_json(titles)
        else:
            typer.echo("\n".join(f"{one:<12} {title}" for one, title in titles.items()))
        return
    if name is None or root is None:
        raise typer.BadParameter("name a study and --root; --list has the studies that come with the package")
    dataset = open_root(root, endpoint_url, layer)
    found = grid.load_study(
        name, overrides=change or (), schema=dataset.schema, statistics=dataset.band_statistics
    )
    if dry_run:
        show(plan.plan_study(found, dataset), as_json)
        return
    from reben_cloud import build
    from reben_cloud.training.study.run import (  # takes seconds; a typo is told at once
        run_study,
        write_finished,
    )

    folder = out or Path("studies") / found.name
    if only_tables:
        show(write_finished(found, dataset, folder, draws=draws), as_json)
        return
    with Runs() as shown:
        result = run_study(
            found,
            dataset,
            folder,
            executor=build.dask(dask) if dask else None,
            workers=workers,
            draws=draws,
            cache_dir=cache_dir,
            on_step=shown.on_step,
            progress=shown.progress,
        )
    if is_first_rank():
        show(result, as_json)
    if result.failed:
        raise typer.Exit(1)
