"""The reBEN recipe on Level-2A products: cut, pair, overlay, label, split, into the official folders.

This is the plan over products; what a product is, how it is cut and which squares are kept stand in the
modules beside. A product that has a receipt is skipped, so a killed run continues, and refused if it is to
be made from something else. From the folders a root is built as from any other source. The rules are
bigearthnet-pipeline's; `docs/limits.md` says what of it is not known.

All that a caller needs is named here: `find_products`, `find_s1` and `identify_inputs` (inputs), `CutOptions`
(options), `prepare` and `summary`, `prepared_folder`, `claim_root` and `build_root` (the root it ends in).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reben_cloud.build import Executor, Progress, local, silent
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.layers.raster_files import import_rasterio
from reben_cloud.scenes.datastrips import fewer_datastrips, merge_datastrips
from reben_cloud.scenes.destination import build_root, claim_root, prepared_folder
from reben_cloud.scenes.inputs import find_products, find_s1, identify_inputs, open_product
from reben_cloud.scenes.metadata import metadata_schema, patch_rows, write_metadata
from reben_cloud.scenes.options import SCENE_ROLE, CutOptions
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.provenance import differences
from reben_cloud.scenes.receipts import (
    ProductReport,
    Receipt,
    list_receipts,
    read_receipt,
    receipt_path,
    summary,
)
from reben_cloud.scenes.tile import Tile, cut_product

__all__ = [
    "CutOptions",
    "ProductReport",
    "build_root",
    "claim_root",
    "find_products",
    "find_s1",
    "identify_inputs",
    "prepare",
    "prepare_product",
    "prepared_folder",
    "summary",
    "write_metadata",
]

_GDAL_CACHE_BYTES = 2**28
"""Memory for pixels that GDAL keeps after they were read, of all threads together: a tile of 10 m pixels. Without a
bound it keeps a twentieth of the machine's memory, of scenes that are read once."""

logger = logging.getLogger(__name__)


def prepare(
    products: Sequence[str | os.PathLike[str] | Product],
    destination: str | os.PathLike[str],
    options: CutOptions,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    worker_index: int = 0,
    workers_total: int = 1,
    progress: Progress = silent,
) -> list[ProductReport]:
    """Write the official folders and both metadata files from Level-2A products.

    Several machines may share the work, each with an index of its own; the one that finds all products
    done writes the metadata.

    Args:
        products: ``.SAFE`` folders, or products of another form; each acquisition once, or once for each of its
            datastrips (`datastrips.merge_datastrips`).
        destination: Folder to write to; run again with the same inputs, it continues, and takes further products.
        options: How they are cut, and what goes into the patches.
        executor: Where products are cut, from `build.local` or `build.dask`; its workers need all paths in reach.
        workers: Local processes, when no executor is given; a full product takes up to 2 GB of memory.
        worker_index: Which share of the products to do, in [0, workers_total).
        workers_total: Number of shares.
        progress: Wraps the stream of finished products.

    Returns:
        A report for each product of the share, by name.

    Raises:
        FileNotFoundError: If a product or another input does not exist.
        SourceError: If an input is not what it must be.
        ConflictError: If the destination was begun with other options, or holds a product made from other inputs.
        ValueError: If the index is out of range.
    """
    if not 0 <= worker_index < workers_total:
        raise ValueError(f"worker_index must be in [0, {workers_total}), got {worker_index}")
    folder = local_path(destination, "the folder of the official layout")
    opened = {product.name: product for product in merge_datastrips(list(map(open_product, products)))}
    _check_options(folder, options)
    done = {name: _done(folder, product, options) for name, product in opened.items()}
    mine = sorted(opened)[worker_index::workers_total]
    todo = [opened[name] for name in mine if done[name] is None]
    run = executor or local(workers)
    do = partial(prepare_product, folder=folder, options=options)
    reports = [report for name in mine if (report := done[name]) is not None]
    reports += progress(run(do, todo), len(todo), "prepare")
    if all(receipt_path(folder, name).exists() for name in opened):
        # Others may have worked here at the same time.
        _check_options(folder, options)
        write_metadata(folder, options)
    return sorted(reports, key=lambda report: report.product)


def _check_options(folder: Path, options: CutOptions) -> None:
    """That everything in the folder was made with these options."""
    now = options.identity()
    for path in list_receipts(folder):
        changed = differences(read_receipt(path).options, now)
        if changed:
            raise ConflictError(
                f"{folder} was begun with other inputs or options: {changed}; repeat those, or take an empty folder"
            )


def _done(folder: Path, product: Product, options: CutOptions) -> ProductReport | None:
    """What an earlier run did of a product from the same inputs; None if there is no receipt."""
    path = receipt_path(folder, product.name)
    if not path.exists():
        return None
    receipt, v1 = read_receipt(path), options.read_v1(product)
    told = ""
    # Scenes and datastrips may be added with further products; what was made without them stays as it is.
    for form, others in ((product, []), *fewer_datastrips(product)):
        now = options.inputs_of(form, v1)
        later = [key for key in now if key.startswith(f"{SCENE_ROLE} ") and key not in receipt.inputs]
        changed = differences(receipt.inputs, {key: now[key] for key in now if key not in later})
        if changed:
            told = told or changed
            continue
        if came := [*others, *(key.removeprefix(f"{SCENE_ROLE} ") for key in later[:3])]:
            logger.warning(
                "%s: was made before %s came, which reaches it too, and stays as it is; delete %s to make it again",
                product.name, " and ".join(came), path,
            )  # fmt: skip
        return receipt.report
    raise ConflictError(
        f"{product.name}: is done already, from other inputs: {told}; to make it again delete {path}, or "
        "take an empty folder"
    )


def prepare_product(product: Product, folder: Path, options: CutOptions) -> ProductReport:
    """Do one product, whatever there is of it.

    Args:
        product: The product.
        folder: The folder of the official layout.
        options: How it is cut, and what goes into the patches.

    Raises:
        SourceError: If an input is not what it must be, or changed meanwhile.
    """
    v1 = options.read_v1(product)
    identity, inputs = options.identity(), options.inputs_of(product, v1)
    if product.failed_checks:
        rows = metadata_schema(options).empty_table()
        report = ProductReport(product=product.name, failed_checks=product.failed_checks)
    else:
        tile = Tile(product=product, options=options)
        with import_rasterio().Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES):
            cut = cut_product(tile, folder, v1)
        rows = patch_rows(tile, cut, v1)
        report = ProductReport.of(product.name, cut.squares)
    changed = differences({**identity, **inputs}, {**options.identity(), **options.inputs_of(product, v1)})
    if changed:
        raise SourceError(
            f"{product.name}: its inputs changed while it was prepared: {changed}; run it again"
        )
    receipt = Receipt(options=identity, inputs=inputs, report=report)
    receipt.write(receipt_path(folder, product.name), rows)
    return report
