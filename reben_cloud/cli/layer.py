"""Commands for layers: made of rasters, folders and tables, moved to another root, looked at, removed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reben_cloud.cli.options import (
    EndpointOption,
    JsonOption,
    find_layer,
    new_root,
    open_root,
    path,
    path_or_url,
    storage_options,
    usage,
)
from reben_cloud.cli.output import show_json
from reben_cloud.cli.progress import bar
from reben_cloud.wording import counted

if TYPE_CHECKING:
    from reben_cloud.root.layers import Layer

RootArgument = Annotated[
    str,
    typer.Argument(
        help="Path or URL of the whole root that it is for.", show_default=False, parser=path_or_url
    ),
]
DestArgument = Annotated[
    str,
    typer.Argument(
        help="Path or URL of the new layer (file://, s3://, gs://, az://).",
        show_default=False,
        parser=new_root,
    ),
]
LayerArgument = Annotated[
    str, typer.Argument(help="Path or URL of a layer.", show_default=False, parser=path_or_url)
]
NameOption = Annotated[str, typer.Option(help="Name of the layer.", show_default=False)]
TitleOption = Annotated[str, typer.Option(help="What it is, for people.")]
UnitsOption = Annotated[str | None, typer.Option(help="Units of the values, as m.", show_default=False)]
MapOption = Annotated[
    bool, typer.Option("--map", help="Its pixels are codes of the root's classes: models can learn them.")
]
ScratchOption = Annotated[
    Path | None,
    typer.Option(help="Folder for what is in no shard yet; a temporary one by default.", parser=path),
]
AllowMissingOption = Annotated[int, typer.Option(help="How many names may be no patch's; they are left out.")]
KeyOption = Annotated[
    Literal["patch_id", "s1_name", "s2v1_name"] | None,
    typer.Option(help="What names of patches are; looked for by default.", show_default=False),
]


def raster(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RASTER",
            help="A GeoTIFF, VRT or Zarr store of any CRS.",
            show_default=False,
            parser=path_or_url,
        ),
    ],
    root: RootArgument,
    dest: DestArgument,
    name: NameOption,
    resampling: Annotated[
        str, typer.Option(help="bilinear, nearest, average, mode and others of GDAL's.")
    ] = "bilinear",
    pixel: Annotated[float, typer.Option(help="Side of a pixel, metres.")] = 10.0,
    band: Annotated[
        list[str] | None, typer.Option(help="Band to take; repeat. All by default.", show_default=False)
    ] = None,
    nodata: Annotated[
        float | None,
        typer.Option(help="Value that stands for none, where the raster does not say.", show_default=False),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Keep patches that it covers in part.")] = False,
    is_map: MapOption = False,
    units: UnitsOption = None,
    title: TitleOption = "",
    scratch: ScratchOption = None,
    workers: Annotated[int, typer.Option(help="Processes that sample.", min=1)] = 1,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample a raster, such as an elevation model, onto the grid of every patch; run again, it continues."""
    from reben_cloud.layers.ways import write_raster_layer

    dataset = open_root(root, endpoint_url)
    write = functools.partial(
        write_raster_layer,
        dest,
        dataset,
        source,
        name=name,
        resampling=resampling,
        pixel_m=pixel,
        bands=band or None,
        nodata=nodata,
        partial=partial,
        is_map=is_map,
        units=units,
        title=title,
        scratch=scratch,
        workers=workers,
    )
    _make(write, dest, "the raster does not cover", endpoint_url, as_json)


def folder(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder with a GeoTIFF per patch.", show_default=False, parser=path
        ),
    ],
    root: RootArgument,
    dest: DestArgument,
    name: NameOption,
    key: KeyOption = None,
    suffix: Annotated[
        str | None, typer.Option(help="What follows the names, as _dem.", show_default=False)
    ] = None,
    is_map: MapOption = False,
    units: UnitsOption = None,
    title: TitleOption = "",
    allow_missing: AllowMissingOption = 0,
    scratch: ScratchOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a layer of a folder with a GeoTIFF per patch, such as ben-ge's; run again, it continues."""
    from reben_cloud.layers.ways import write_folder_layer

    dataset = open_root(root, endpoint_url)
    write = functools.partial(
        write_folder_layer,
        dest,
        dataset,
        source,
        name=name,
        key=key,
        suffix=suffix,
        is_map=is_map,
        units=units,
        title=title,
        allow_missing=allow_missing,
        scratch=scratch,
    )
    _make(write, dest, "have no file", endpoint_url, as_json)


def maps(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MAPS",
            help="Reference_Maps.tar.zst (path or URL), a folder of the maps, or an LMDB that has them.",
            show_default=False,
            parser=path_or_url,
        ),
    ],
    root: RootArgument,
    dest: DestArgument,
    name: Annotated[str, typer.Option(help="Name of the layer.")] = "map",
    scratch: ScratchOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a layer of the official maps, for a root that has none, such as a hosted one; run again, it continues."""
    from reben_cloud.layers.maps import write_map_layer

    dataset = open_root(root, endpoint_url)
    write = functools.partial(
        write_map_layer,
        dest,
        dataset,
        source,
        name=name,
        scratch=scratch,
    )
    _make(write, dest, "have no map", endpoint_url, as_json)


def table(
    source: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="A parquet or CSV file.", show_default=False, parser=path),
    ],
    root: RootArgument,
    dest: DestArgument,
    name: NameOption,
    key: KeyOption = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Column to take; repeat. All by default.", show_default=False)
    ] = None,
    many: Annotated[
        bool | None,
        typer.Option(
            "--many/--one", help="Several rows per patch, or one; looked for by default.", show_default=False
        ),
    ] = None,
    title: TitleOption = "",
    allow_missing: AllowMissingOption = 0,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a layer of a table about patches: one row per patch, such as ben-ge's CSVs, or many, such as texts."""
    from reben_cloud.layers import write_table

    dataset = open_root(root, endpoint_url)
    write = functools.partial(
        write_table,
        dest,
        dataset,
        name=name,
        table=source,
        key=key,
        columns=column or None,
        many=many,
        title=title,
        allow_missing=allow_missing,
    )
    _make(write, dest, "have no row", endpoint_url, as_json)


def labels(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="Unpacked folder of BigEarthNet v1, or a parquet file with lists of names.",
            show_default=False,
            parser=path,
        ),
    ],
    root: RootArgument,
    dest: DestArgument,
    name: Annotated[str, typer.Option(help="Name of the layer.")] = "v1",
    key: KeyOption = None,
    title: TitleOption = "",
    allow_missing: AllowMissingOption = 0,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a layer of labels that others give the patches, such as those of BigEarthNet v1; recipes can learn them."""
    from reben_cloud.layers import write_label_layer

    dataset = open_root(root, endpoint_url)
    write = functools.partial(
        write_label_layer,
        dest,
        dataset,
        source,
        name=name,
        key=key,
        title=title,
        allow_missing=allow_missing,
    )
    _make(write, dest, "have no labels", endpoint_url, as_json)


def rebase(
    layer: LayerArgument,
    root: RootArgument,
    dest: DestArgument,
    scratch: ScratchOption = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make of a layer one for another root that has some of the same patches."""
    from reben_cloud.layers import rebase_layer
    from reben_cloud.opening import open_layer

    options = storage_options(endpoint_url)
    there = find_layer(dest, endpoint_url) is not None
    made = rebase_layer(
        dest,
        open_root(root, endpoint_url),
        open_layer(layer, options),
        storage_options=options,
        scratch=scratch,
        progress=bar,
    )
    _say(made, "the layer has nothing for", as_json, there=there)


def info(layer: LayerArgument, endpoint_url: EndpointOption = None, as_json: JsonOption = False) -> None:
    """Say what a layer holds."""
    from reben_cloud.opening import open_layer

    found = open_layer(layer, storage_options(endpoint_url))
    if as_json:
        show_json(found.manifest.to_json())
    else:
        typer.echo(found.describe())


def remove(
    layer: LayerArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    endpoint_url: EndpointOption = None,
) -> None:
    """Remove a layer, or what an unfinished one has left; the root is not touched."""
    from reben_cloud.layers import remove_layer
    from reben_cloud.store import open_store

    options = storage_options(endpoint_url)
    there = find_layer(layer, endpoint_url)
    what = there.summary() if there is not None else f"what an unfinished layer has left in {layer}"
    if not yes:
        typer.confirm(f"Remove {what}?", abort=True, err=True)
    count = remove_layer(open_store(layer, options))
    typer.echo(f"removed {counted(count, 'object')} of {layer}")


def _make(
    write: Callable[..., Layer], dest: str, lacking: str, endpoint_url: str | None, as_json: bool
) -> None:
    """Write a layer as a command does, and say so; `write` lacks what all such functions take alike."""
    there = find_layer(dest, endpoint_url) is not None
    with usage():
        layer = write(storage_options=storage_options(endpoint_url), progress=bar)
    _say(layer, lacking, as_json, there=there)


def _say(layer: Layer, lacking: str, as_json: bool, *, there: bool) -> None:
    """What was made or was there, and for how many patches there is nothing."""
    one = layer.manifest
    absent = one.num_patches - one.coverage
    if as_json:
        show_json(
            {
                "url": layer.url,
                "name": one.name,
                "kind": one.kind,
                "patches": one.coverage,
                "absent": absent,
                "rows": one.num_rows,
            }
        )
        return
    left = f" ({absent:,} {lacking})" if absent else ""
    rows = f" with {one.num_rows:,} rows" if one.kind == "many" else ""
    before = "already there, nothing to do: " if there else ""
    typer.echo(
        f"{before}layer {one.name}: {one.coverage:,} of {one.num_patches:,} patches{left}{rows}, in {layer.url}"
    )
