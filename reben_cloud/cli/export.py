"""The command that writes what a search finds to a folder, in one of several forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reben_cloud.cli.options import (
    EndpointOption,
    JsonOption,
    LayerOption,
    ModalityOption,
    RootArgument,
    path,
    path_or_url,
    search_options,
    select,
    usage,
)
from reben_cloud.cli.output import show
from reben_cloud.cli.progress import bar
from reben_cloud.root.query import Query

PICTURES = "Options of pictures (png, jsonl, llava)"
"""Heading of the options that several forms share."""

_OF_PICTURES = ("picture", "size", "resampling", "stretch", "percentiles", "flip")

OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "lmdb": ("modality", "map_size"),
    "safetensors": ("modality", "patches_per_file"),
    "geotiff": ("modality", "per", "cog"),
    "png": _OF_PICTURES,
    "jsonl": ("texts", "without_answers", *_OF_PICTURES),
    "llava": ("texts", "without_answers", *_OF_PICTURES),
}
"""Form -> the options that it takes besides those that all take."""


@search_options
def export(
    root: RootArgument,
    query: Query,
    dest: Annotated[
        Path | None, typer.Argument(help="The new folder.", show_default=False, parser=path)
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="The dataset, as an option: DEST then comes alone.", show_default=False, parser=path_or_url
        ),
    ] = None,
    form: Annotated[
        Literal["lmdb", "safetensors", "geotiff", "png", "jsonl", "llava"],
        typer.Option("--format", help="What to write."),
    ] = "lmdb",
    modality: ModalityOption = None,
    map_size: Annotated[
        int | None,
        typer.Option(help="lmdb: map size to name, bytes; its own by default.", show_default=False),
    ] = None,
    patches_per_file: Annotated[
        int | None,
        typer.Option(help="safetensors: patches in a file; 1000 by default.", show_default=False),
    ] = None,
    per: Annotated[
        Literal["array", "modality", "patch", "band"] | None,
        typer.Option(help="geotiff: what a file is of; array by default.", show_default=False),
    ] = None,
    cog: Annotated[
        bool | None, typer.Option("--cog", help="geotiff: cloud-optimised files.", show_default=False)
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(help="jsonl, llava: BigEarthNet.txt.parquet.", show_default=False, parser=path),
    ] = None,
    without_answers: Annotated[
        bool | None,
        typer.Option(
            "--without-answers",
            help="jsonl, llava: hide what captions give away.",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        list[str] | None,
        typer.Option(
            help="true-color, false-color, radar, map or a modality; repeat, or join by commas. The first by default.",
            show_default=False,
            rich_help_panel=PICTURES,
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Pixels a side; the patch's by default.", show_default=False, rich_help_panel=PICTURES
        ),
    ] = None,
    resampling: Annotated[
        Literal["bilinear", "nearest"] | None,
        typer.Option(help="To that size; bilinear by default.", show_default=False, rich_help_panel=PICTURES),
    ] = None,
    stretch: Annotated[
        Literal["fixed", "patch", "selection"] | None,
        typer.Option(
            help="Stated values, or percentiles of each patch or of all; fixed by default.",
            show_default=False,
            rich_help_panel=PICTURES,
        ),
    ] = None,
    percentiles: Annotated[
        str | None,
        typer.Option(
            help="Black and brightest; 2,98 by default.", show_default=False, rich_help_panel=PICTURES
        ),
    ] = None,
    flip: Annotated[
        Literal["horizontal", "vertical", "both"] | None,
        typer.Option(help="Mirror, boxes too.", show_default=False, rich_help_panel=PICTURES),
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="Add what an existing export lacks.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop what is not selected from an existing export.")
    ] = False,
    layer: LayerOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export what a search finds to a folder: for rico-hdl's readers, as files, with texts; run again, it continues."""
    from reben_cloud import export as exporting

    if source is not None:
        if dest is not None:
            raise typer.BadParameter(f"give ROOT DEST, or --source ROOT and DEST, not {root} {dest} as well")
        root, dest = source, path(root)
    if dest is None:
        raise typer.BadParameter(f"name the new folder too: reben-cloud export {root} DEST")
    asked = {
        "modality": modality,
        "map_size": map_size,
        "patches_per_file": patches_per_file,
        "per": per,
        "cog": cog,
        "texts": texts,
        "without_answers": without_answers,
        "picture": picture,
        "size": size,
        "resampling": resampling,
        "stretch": stretch,
        "percentiles": percentiles,
        "flip": flip,
    }
    given = {name: value for name, value in asked.items() if value is not None and value != []}
    _refuse_others(form, given)
    selection = select(root, query, endpoint_url, layer)
    options = _for_the_library(given) | {"update": update, "prune": prune, "progress": bar}
    if form in ("jsonl", "llava"):
        if texts is None:
            raise typer.BadParameter(f"--format {form} needs --texts, the file of texts")
        options |= {"form": form}
    write: Any = {
        "lmdb": exporting.export_lmdb,
        "safetensors": exporting.export_safetensors,
        "geotiff": exporting.export_geotiff,
        "png": exporting.export_png,
        "jsonl": exporting.export_texts,
        "llava": exporting.export_texts,
    }[form]
    with usage():
        report = write(selection, dest, **options)
    show(report, as_json)


def _refuse_others(form: str, given: dict[str, Any]) -> None:
    for name in given:
        if name not in OWN_OPTIONS[form]:
            of = ", ".join(other for other, names in OWN_OPTIONS.items() if name in names)
            raise typer.BadParameter(
                f"--{name.replace('_', '-')} is an option of --format {of}, and the format is {form}"
            )


def _for_the_library(given: dict[str, Any]) -> dict[str, Any]:
    """Options by the library's names and types."""
    found = {
        name: value for name, value in given.items() if name not in ("modality", "picture", "percentiles")
    }
    if "modality" in given:
        found["modalities"] = given["modality"]
    if "picture" in given:
        found["pictures"] = [name for text in given["picture"] for name in text.split(",")]
    if "percentiles" in given:
        try:
            low, high = map(float, given["percentiles"].split(","))
        except ValueError as error:
            raise typer.BadParameter(
                f"--percentiles must be two numbers, such as 2,98, got {given['percentiles']!r}"
            ) from error
        found["percentiles"] = (low, high)
    return found
