"""Commands that make a root and check it: build, catalog, index, verify."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from reben_cloud.cli.options import (
    DaskOption,
    EndpointOption,
    JsonOption,
    LayerOption,
    MetadataOption,
    ModalityOption,
    NewRootArgument,
    RootArgument,
    WorkerIndexOption,
    WorkersTotalOption,
    check_share,
    executor,
    exported_files,
    find_layer,
    new_root,
    open_root,
    path,
    path_or_url,
    search_options,
    select,
    storage_options,
)
from reben_cloud.cli.output import show, show_json
from reben_cloud.cli.progress import bar, ends_at_once
from reben_cloud.root.query import Query
from reben_cloud.wording import counted, size_text

IncompleteOption = Annotated[
    Literal["refuse", "skip"],
    typer.Option(help="Patches that lack a modality: refuse, or skip them and say which."),
]


@search_options
def build(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Archives, GeoTIFF folders, an LMDB, a root (path or URL), or synthetic:N; several belong together.",
            show_default=False,
            parser=path_or_url,
        ),
    ],
    root: NewRootArgument,
    query: Query,
    metadata: MetadataOption = None,
    incomplete: IncompleteOption = "refuse",
    modality: Annotated[
        list[str] | None,
        typer.Option(help="s2, s1 or map; repeat. All that the source has by default.", show_default=False),
    ] = None,
    order: Annotated[str, typer.Option(help="stratified or shuffled.")] = "stratified",
    seed: Annotated[int, typer.Option(help="Seed of the order, and of --sample.")] = 0,
    shard_samples: Annotated[int, typer.Option(help="Samples in a shard.")] = 256,
    workers: Annotated[int, typer.Option(help="Local processes, up to 1 GB each.")] = 1,
    dask: DaskOption = None,
    worker_index: WorkerIndexOption = None,
    workers_total: WorkersTotalOption = 1,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Folder for payloads between their two uses; see --dry-run.",
            show_default=False,
            parser=path,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a root from a source of patches, or from what a search finds in a root; run again, it continues."""
    from reben_cloud import build as building
    from reben_cloud.hosted.opened import open_if_hosted
    from reben_cloud.root.placement import PlacementOptions

    check_share(worker_index, workers_total)
    if query and len(source) > 1:
        raise typer.BadParameter(
            "a part that a search finds is built from one root; several sources are built whole"
        )
    # What is hosted is found by opening it; whatever else a source can be is recognised.
    hosted = None if query or len(source) > 1 else open_if_hosted(source[0], storage_options(endpoint_url))
    everything = None if hosted is None else hosted.search()
    chosen = select(source[0], query, endpoint_url) if query else everything
    plan, official = building.open_plan(
        source,
        root,
        only=chosen,
        modalities=modality,
        metadata_paths=metadata or (),
        options=PlacementOptions(order=order, seed=seed, shard_samples=shard_samples),  # type: ignore[arg-type]
        scratch=scratch,
        incomplete=incomplete,
        storage_options=storage_options(endpoint_url),
    )
    if text := building.not_taken(plan, official):
        typer.echo(f"reben-cloud: {text}", err=True)
    if dry_run:
        show(plan.estimate(), as_json)
        return
    before = building.Before.of(plan)
    if plan.unpack_tasks() and plan.spool is not None and not before.is_published:
        room = f"{size_text(plan.spool.nbytes)} in {plan.spool.folder}"
        typer.echo(
            f"reben-cloud: archives are unpacked first: {room}, removed at the end (--scratch)", err=True
        )
    share = partial(building.build_share, worker_index=worker_index or 0, workers_total=workers_total)
    do = building.build if worker_index is None else share
    with ends_at_once(
        lambda: f", {building.num_done(plan):,} of {len(plan.tasks):,} tasks are done and stay done;"
    ):
        manifest = do(plan, executor=executor(workers, dask), progress=bar)
    is_there = manifest is not None  # else a share is done, and the last of them tells
    if is_there and not query and (text := building.rows_without_patches_text(plan, official)):
        typer.echo(f"reben-cloud: {text}", err=True)
    if as_json:
        show_json(manifest and building.account(manifest, plan, official, before))
    elif manifest is None:
        typer.echo(f"share {worker_index} of {workers_total} is done; the last of them publishes")
    else:
        typer.echo(building.published(manifest, plan.store.url, before))


def catalog(
    metadata: Annotated[
        list[Path],
        typer.Argument(help="The official metadata parquet files.", show_default=False, parser=path),
    ],
    dest: Annotated[
        str, typer.Argument(help="Path or URL of the new catalog.", show_default=False, parser=new_root)
    ],
    endpoint_url: EndpointOption = None,
) -> None:
    """Catalog the real dataset from its metadata alone: to search, to browse and to serve."""
    from reben_cloud.bigearthnet.official import describe, read_official
    from reben_cloud.bigearthnet.reben import REBEN
    from reben_cloud.build.publish import publish_metadata
    from reben_cloud.root.documents import read_manifest
    from reben_cloud.store import open_store

    store = open_store(dest, storage_options(endpoint_url))
    there = read_manifest(store) is not None
    official = read_official(metadata)
    manifest = publish_metadata(describe(official), REBEN, store, given=official.column_names)
    patches, products = (
        counted(manifest.num_patches, "patch", "patches"),
        counted(len(manifest.products), "product"),
    )
    done = "already there, nothing to do:" if there else "catalogued"
    typer.echo(f"{done} {patches} of {products} at {store.url}")


def index(
    url: Annotated[
        str,
        typer.Argument(
            help="Where an LMDB or tars are hosted: https://, hf://datasets/OWNER/NAME, s3://, a folder.",
            show_default=False,
            parser=path_or_url,
        ),
    ],
    dest: NewRootArgument,
    metadata: MetadataOption = None,
    modality: ModalityOption = None,
    incomplete: IncompleteOption = "refuse",
    checksum: Annotated[
        bool,
        typer.Option("--checksum", help="Read every payload once and record its checksum."),
    ] = False,
    threads: Annotated[int, typer.Option(help="Requests at a time.", min=1, max=256)] = 16,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it costs and write nothing.")] = False,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a root of payloads that are hosted already; nothing but the index of them is copied."""
    from reben_cloud.hosted.publish import Cost, estimate_hosted, index_hosted
    from reben_cloud.root.documents import read_manifest
    from reben_cloud.store import open_store

    if dry_run:
        show(estimate_hosted(url, storage_options(endpoint_url)), as_json)
        return

    def tell(cost: Cost) -> None:
        typer.echo(cost.to_text(), err=True)

    there = read_manifest(open_store(dest, storage_options(endpoint_url))) is not None
    manifest = index_hosted(
        url,
        dest,
        metadata_paths=metadata or (),
        modalities=modality,
        checksums=checksum,
        incomplete=incomplete,
        threads=threads,
        storage_options=storage_options(endpoint_url),
        tell=tell,
        progress=bar,
    )
    if as_json:
        show_json(manifest.to_json())
        return
    objects = manifest.references or ()
    size = size_text(sum(one.nbytes for one in objects))
    done = "already there, nothing to do:" if there else "indexed"
    patches = counted(manifest.num_patches, "patch", "patches")
    typer.echo(
        f"{done} {patches} ({', '.join(manifest.modalities)}) in {counted(len(objects), 'object')} of {size}; the root "
        f"is {open_root(dest, endpoint_url).url}"
    )


def verify(
    root: RootArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Presence and sizes only.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode everything and compare the forms with each other.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare every patch with this source, as for build.", show_default=False, parser=path_or_url
        ),
    ] = None,
    metadata: MetadataOption = None,
    layer: LayerOption = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--root",
            help="Compare a layer with the root that it is for.",
            show_default=False,
            parser=path_or_url,
        ),
    ] = None,
    endpoint_url: EndpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every object of a root or a layer, or every file of an export; exit 1 when anything is wrong."""
    from reben_cloud.checks.files import verify_files
    from reben_cloud.checks.verify import verify as check
    from reben_cloud.checks.verify import verify_layer
    from reben_cloud.hosted.opened import open_hosted_source
    from reben_cloud.root.source import AnySource
    from reben_cloud.sources.recognise import open_source

    access = storage_options(endpoint_url)
    if (files := exported_files(root)) is not None:
        if against:
            raise typer.BadParameter("--against compares a root; an export to files has checksums of its own")
        report = verify_files(files, quick=quick, progress=bar)
        typer.echo(report.to_json() if as_json else report.to_text())
        raise typer.Exit(0 if report.ok else 1)
    if not layer and (alone := find_layer(root, endpoint_url)) is not None:
        if against:
            raise typer.BadParameter("--against compares a root; a layer is compared with its root (--root)")
        compared = None if beside is None else open_root(beside, endpoint_url)
        report = verify_layer(alone, root=compared, quick=quick, deep=deep, progress=bar)
        typer.echo(report.to_json() if as_json else report.to_text())
        raise typer.Exit(0 if report.ok else 1)
    if beside is not None:
        raise typer.BadParameter(f"{root} is not a layer; --root is what a layer is compared with")
    dataset = open_root(root, endpoint_url, layer)
    source: AnySource | None = None
    if against:
        source = open_hosted_source(against, access, wanted=dataset.selection)
        source = source or open_source(against, metadata_paths=metadata or (), storage_options=access)[0]
    report = check(dataset, quick=quick, deep=deep, against=source, progress=bar)
    typer.echo(report.to_json() if as_json else report.to_text())
    raise typer.Exit(0 if report.ok else 1)
