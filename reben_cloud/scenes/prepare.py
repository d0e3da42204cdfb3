"""The reBEN recipe on Level-2A products: cut, pair, overlay, label, split, into the official folders.

A product is cut band by band while the next one is decoded; squares that a later band rejects are
removed again. A receipt with the metadata rows, and with what the product was made from, comes last; a
product that has one is skipped, so a killed run continues, and refused if it is to be made from something
else. From the folders a root is built as from any other source. The rules are
bigearthnet-pipeline's; `docs/limits.md` says what of it is not known.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import BANDS, PATCH_M
from reben_cloud.bigearthnet.country import Countries
from reben_cloud.bigearthnet.v1 import V1Patch, list_files, read_v1
from reben_cloud.build import JOURNAL as BUILD_JOURNAL
from reben_cloud.build import Executor, Progress, build, local, make_plan, silent
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.files.paths import local_path
from reben_cloud.formats import geotiff
from reben_cloud.formats.geotiff_decode import Footprint, read_pixels
from reben_cloud.root.documents import MANIFEST, parquet, read_manifest
from reben_cloud.root.patch import TENSORS
from reben_cloud.root.patches import OFFICIAL_SCHEMA
from reben_cloud.scenes.land_cover import (
    PIXEL_M,
    REBEN19,
    ClassTable,
    PatchLabels,
    label_patches,
    rasterise,
    read_land_cover,
)
from reben_cloud.scenes.processors import run_sarsen, run_snap
from reben_cloud.scenes.provenance import differences, digest, identify
from reben_cloud.scenes.safe import SafeProduct, open_safe
from reben_cloud.scenes.safe_metadata import S2_BANDS
from reben_cloud.scenes.sentinel1 import (
    POLARIZATIONS,
    Scene,
    check_backscatter,
    open_scenes,
    pair,
    v1_files,
)
from reben_cloud.sources.recognise import open_source
from reben_cloud.store import Store

JOURNAL = ".prepared"
"""Folder of the receipts below the destination; may be deleted when all is done."""

_WRITERS = 4
"""Threads that write the small files of a product, which wait for the disk more than they compute."""

_BANDS_AHEAD = 2
"""Bands being decoded, a thread each, beside the one that is written; 240 MB each at 10 m."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What is made of a product; the same for all products of a destination."""

    clc: Path
    """CORINE vector file."""
    table: ClassTable = REBEN19
    """Class of each land-cover code."""
    code_column: str = "code_18"
    """Column of the vector file with the code."""
    countries: Countries
    """Polygons for the country column."""
    v1: Path | None = None
    """Folder of v1 lists; only squares that v1 has are kept. None keeps all."""
    s1_v1: Path | None = None
    """Folder of official S1 patches, found by the names that `v1` gives."""
    s1_scenes: tuple[Scene, ...] = ()
    """Terrain-corrected scenes to cut S1 patches from, where there is no `s1_v1`."""
    patch_m: int = PATCH_M
    """Side of a patch, metres; a multiple of 60."""

    def __post_init__(self) -> None:
        if not self.clc.is_file():
            raise FileNotFoundError(f"{self.clc}: no such land-cover file")
        if self.patch_m % 60 or not 60 <= self.patch_m <= grid.TILE_M:
            raise ValueError(
                f"patch_m (--patch-size) must be a multiple of 60 m in [60, {grid.TILE_M}], got {self.patch_m}"
            )
        if self.s1_v1 is not None and self.v1 is None:
            raise ValueError("official S1 patches are paired by v1's lists: give their folder too (v1)")
        if self.s1_v1 is not None and self.s1_scenes:
            raise ValueError("give official S1 patches or scenes, not both")

    @property
    def has_s1(self) -> bool:
        """Whether patches get a Sentinel-1 part; those without one are then left out."""
        return self.s1_v1 is not None or bool(self.s1_scenes)

    def identity(self) -> dict[str, str]:
        """What all products of a destination share, and must share with those that are there."""
        borders = hashlib.sha256()
        for name, polygon in self.countries.polygons.items():
            borders.update(name.encode() + polygon.wkb)
        classes = json.dumps(sorted(self.table.classes.items())).encode()
        found = {
            "patch size": f"{self.patch_m} m",
            "column of codes": self.code_column,
            "classes": f"{self.table.name}, digest {hashlib.sha256(classes).hexdigest()[:16]}",
            "countries": f"{len(self.countries.polygons)}, digest {borders.hexdigest()[:16]}",
            "Sentinel-1": "patches" if self.s1_v1 else "scenes" if self.s1_scenes else "none",
            **identify("land cover", self.clc),
        }
        for path in () if self.v1 is None else list_files(self.v1):
            found |= identify("v1 list", path)
        return found

    def read_v1(self, product: SafeProduct) -> Mapping[tuple[int, int], V1Patch] | None:
        """What v1 says of a product; None where squares that v1 lacks are kept too."""
        return None if self.v1 is None else read_v1(self.v1, product.name)

    def inputs_of(self, product: SafeProduct, v1: Mapping[tuple[int, int], V1Patch] | None) -> dict[str, str]:
        """What one product is made from: its generation and files, and the Sentinel-1 that may go into it.

        Args:
            product: The product.
            v1: What `read_v1` gives for it.
        """
        found = {"generation time": product.generation}
        for path in (*product.metadata, *product.images.values()):
            found |= identify("Sentinel-2", path)
        rows, columns = product.shapes[PIXEL_M]
        left, top = product.left, product.top
        bounds = (left, top - rows * PIXEL_M, left + columns * PIXEL_M, top)
        for scene in self.s1_scenes:
            if scene.reaches(epsg=product.epsg, bounds=bounds):
                for path in scene.files:
                    found |= identify("Sentinel-1", path)
        if self.s1_v1 is not None and v1 is not None:
            patches: dict[str, str] = {}
            for patch in v1.values():
                if patch.s1_name is not None:
                    for path in v1_files(self.s1_v1, patch.s1_name, missing_ok=True).values():
                        patches |= identify("Sentinel-1", path)
            found["Sentinel-1 patches"] = digest(patches)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What became of the squares of one product."""

    product: str
    """Product name without generation time."""
    failed_checks: tuple[str, ...] = ()
    """Quality checks that exclude the whole product."""
    candidates: int = 0
    """Whole squares of the tile."""
    nodata: int = 0
    """Left out for a zero pixel in some band."""
    not_in_v1: int = 0
    """Left out because v1 has no such square."""
    unlabelled: int = 0
    """Left out because a quarter or more has no class."""
    without_s1: int = 0
    """Left out because no Sentinel-1 scene covers it."""
    written: int = 0
    """Patches in the folders."""
    already_there: bool = False
    """Whether an earlier run did all that, from the same inputs."""

    def __str__(self) -> str:
        before = "already there, " if self.already_there else ""
        if self.failed_checks:
            return f"{self.product}: {before}excluded, {', '.join(self.failed_checks)} not PASSED"
        done = "squares" if self.already_there else "squares written"
        return (
            f"{self.product}: {before}{self.written:,} of {self.candidates:,} {done}; left out: {self.nodata:,} with "
            f"nodata, {self.not_in_v1:,} not in v1, {self.unlabelled:,} unlabelled, {self.without_s1:,} without S1"
        )


def summary(reports: Sequence[Report]) -> str:
    """One line: what was written now, what was there before, what was excluded."""

    def count(chosen: list[Report]) -> str:
        return f"{sum(r.written for r in chosen):,} patches of {len(chosen):,} products"

    now = [report for report in reports if not report.already_there]
    before = [report for report in reports if report.already_there]
    excluded = sum(bool(report.failed_checks) for report in reports)
    return f"written now: {count(now)}; already there: {count(before)}; products excluded: {excluded:,}"


def prepare(
    products: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    recipe: Recipe,
    *,
    executor: Executor | None = None,
    workers: int = 1,
    worker_index: int = 0,
    workers_total: int = 1,
    progress: Progress = silent,
) -> list[Report]:
    """Write the official folders and both metadata files from Level-2A products.

    Several machines may share the work, each with an index of its own; the one that finds all products
    done writes the metadata.

    Args:
        products: ``.SAFE`` folders; each acquisition once.
        destination: Folder to write to; run again with the same inputs, it continues, and takes further products.
        recipe: What is made of them.
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
        ConflictError: If the destination was begun with another recipe, or holds a product made from other inputs.
        ValueError: If the index is out of range.
    """
    if not 0 <= worker_index < workers_total:
        raise ValueError(f"worker_index must be in [0, {workers_total}), got {worker_index}")
    folder = local_path(destination, "the folder of the official layout")
    opened: dict[str, SafeProduct] = {}
    for path in products:
        product = open_safe(path)
        if product.name in opened:
            raise SourceError(
                f"{product.name}: given twice, {opened[product.name].path.name} and {product.path.name}"
            )
        opened[product.name] = product
    _check_recipe(folder, recipe)
    done = {name: _done(folder, product, recipe) for name, product in opened.items()}
    mine = sorted(opened)[worker_index::workers_total]
    todo = [opened[name] for name in mine if done[name] is None]
    run = executor or local(workers)
    do = partial(prepare_product, folder=folder, recipe=recipe)
    reports = [report for name in mine if (report := done[name]) is not None]
    reports += progress(run(do, todo), len(todo), "prepare")
    if all(_receipt(folder, name).exists() for name in opened):
        # Others may have worked here at the same time.
        _check_recipe(folder, recipe)
        write_metadata(folder)
    return sorted(reports, key=lambda report: report.product)


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """That everything in the folder was made by this recipe."""
    now = recipe.identity()
    for receipt in sorted((folder / JOURNAL).glob("*.parquet")):
        changed = differences(_told(receipt)["recipe"], now)
        if changed:
            raise ConflictError(
                f"{folder} was begun with other inputs or options: {changed}; repeat those, or take an empty folder"
            )


def _done(folder: Path, product: SafeProduct, recipe: Recipe) -> Report | None:
    """What an earlier run did of a product from the same inputs; None if there is no receipt."""
    receipt = _receipt(folder, product.name)
    if not receipt.exists():
        return None
    told = _told(receipt)
    changed = differences(told["inputs"], recipe.inputs_of(product, recipe.read_v1(product)))
    if changed:
        raise ConflictError(
            f"{product.name}: is done already, from other inputs: {changed}; to make it again delete {receipt}, or "
            "take an empty folder"
        )
    report = told["report"]
    return Report(**{**report, "failed_checks": tuple(report["failed_checks"]), "already_there": True})


def _told(receipt: Path) -> dict[str, Any]:
    """What a receipt says beside its rows: ``report``, ``recipe`` and ``inputs``."""
    try:
        metadata = pq.read_schema(receipt).metadata or {}
        return {name: json.loads(metadata[name.encode()]) for name in ("report", "recipe", "inputs")}
    except KeyError:
        raise ConflictError(
            f"{receipt}: does not say what the product was made from, an earlier version wrote it; take an empty folder"
        ) from None
    except (pa.ArrowInvalid, json.JSONDecodeError) as error:
        raise SourceError(
            f"{receipt}: damaged ({error}); delete it, and the product is made again"
        ) from error


def _replace(folder: Path, path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, whoever else writes it at the same time."""
    scratch = folder / JOURNAL / f"{uuid4().hex}.part"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_bytes(data)
    scratch.replace(path)


def _receipt(folder: Path, product: str) -> Path:
    return folder / JOURNAL / f"{product}.parquet"


def prepare_product(product: SafeProduct, folder: Path, recipe: Recipe) -> Report:
    """Do one product, whatever there is of it."""
    v1 = recipe.read_v1(product)
    told = {"recipe": recipe.identity(), "inputs": recipe.inputs_of(product, v1)}
    if product.failed_checks:
        table = OFFICIAL_SCHEMA.empty_table()
        report = Report(product=product.name, failed_checks=product.failed_checks)
    else:
        # What a killed run left is of no use, and might hold patches that are not kept now.
        for kind in (geotiff.S2_FOLDER, geotiff.MAPS_FOLDER):
            shutil.rmtree(folder / kind / product.name, ignore_errors=True)
        table, report = _cut(product, folder, recipe, v1)
    changed = differences(
        {**told["recipe"], **told["inputs"]}, {**recipe.identity(), **recipe.inputs_of(product, v1)}
    )
    if changed:
        raise SourceError(
            f"{product.name}: its inputs changed while it was prepared: {changed}; run it again"
        )
    out = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(
            {name: json.dumps(value) for name, value in {**told, "report": asdict(report)}.items()}
        ),
        out,
    )
    _replace(folder, _receipt(folder, product.name), out.getvalue())
    return report


def _cut(
    product: SafeProduct, folder: Path, recipe: Recipe, v1: Mapping[tuple[int, int], V1Patch] | None
) -> tuple[pa.Table, Report]:
    if not product.checksums:
        logger.warning("%s: no checksums (manifest.safe), so damage may go unnoticed", product.name)
    tile = _Tile(product, recipe)
    in_v1 = np.ones(tile.shape, bool)
    if v1 is not None:
        in_v1 = np.zeros(tile.shape, bool)
        for x, y in v1:
            if y < tile.shape[0] and x < tile.shape[1]:
                in_v1[y, x] = True
    labels, filled, begun = _write_s2(tile, folder, in_v1)
    wanted = begun & filled
    s1_names = dict(_write_s1(tile, folder, wanted, v1))
    kept = wanted
    if recipe.has_s1:
        kept = np.zeros_like(wanted)
        for y, x in s1_names:
            kept[y, x] = True
    _remove(tile, folder, begun & ~kept)
    report = Report(
        product=product.name,
        candidates=filled.size,
        nodata=int((~filled).sum()),
        not_in_v1=int((filled & ~in_v1).sum()),
        unlabelled=int((filled & in_v1 & ~labels.kept).sum()),
        without_s1=int((wanted & ~kept).sum()),
        written=int(kept.sum()),
    )
    return _rows(tile, kept, labels, s1_names, v1), report


class _Tile:
    """The grid of patches of one product."""

    def __init__(self, product: SafeProduct, recipe: Recipe) -> None:
        self.product, self.recipe = product, recipe
        rows, columns = product.shapes[PIXEL_M]
        side = recipe.patch_m // PIXEL_M
        # The rest in the south and in the east, 600 m for 1200 m patches, is dropped.
        self.shape = rows // side, columns // side
        self.digits = max(2, len(str(grid.TILE_M // recipe.patch_m - 1)))

    def patch_id(self, y: int, x: int) -> str:
        return f"{self.product.name}_{x:0{self.digits}d}_{y:0{self.digits}d}"

    def corner(self, y: int, x: int) -> tuple[int, int]:
        return self.product.left + self.recipe.patch_m * x, self.product.top - self.recipe.patch_m * y

    def filled(self, name: str, pixels: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Patches without a zero pixel in a band at its native resolution, (rows, columns)."""
        filled = np.empty(self.shape, bool)
        side = self.recipe.patch_m // BANDS[name].resolution_m
        for row in range(self.shape[0]):
            strip = pixels[row * side : (row + 1) * side, : self.shape[1] * side]
            filled[row] = strip.all(axis=0).reshape(self.shape[1], side).all(axis=1)
        return filled

    def reference_map(self) -> NDArray[np.uint16]:
        """Land-cover codes of the whole tile."""
        rows, columns = self.product.shapes[PIXEL_M]
        left, top = self.product.left, self.product.top
        land_cover = read_land_cover(
            self.recipe.clc,
            epsg=self.product.epsg,
            bounds=(left, top - rows * PIXEL_M, left + columns * PIXEL_M, top),
            table=self.recipe.table,
            code_column=self.recipe.code_column,
        )
        if not land_cover.polygons.size:
            logger.warning("%s: %s has no polygon there", self.product.name, self.recipe.clc)
        return rasterise(land_cover, left=left, top=top, shape=(rows, columns))


def _write_s2(
    tile: _Tile, folder: Path, in_v1: NDArray[np.bool_]
) -> tuple[PatchLabels, NDArray[np.bool_], NDArray[np.bool_]]:
    """The bands and maps of all patches that may be kept, each band as soon as it is decoded.

    Returns:
        The labels; which patches have no zero pixel, and which were written in part at least, both (rows, columns).
    """
    decoders = ThreadPoolExecutor(_BANDS_AHEAD)
    try:
        with ThreadPoolExecutor(_WRITERS) as writers:
            ahead = deque(decoders.submit(tile.product.read_band, name) for name in S2_BANDS[:_BANDS_AHEAD])
            codes = tile.reference_map()
            labels = label_patches(codes, patch_px=tile.recipe.patch_m // PIXEL_M, table=tile.recipe.table)
            begun = in_v1 & labels.kept
            filled = np.ones(tile.shape, bool)
            for number, name in enumerate(S2_BANDS):
                pixels = ahead.popleft().result()
                ahead.extend(
                    decoders.submit(tile.product.read_band, later)
                    for later in S2_BANDS[number + _BANDS_AHEAD : number + _BANDS_AHEAD + 1]
                )
                filled &= tile.filled(name, pixels)
                if number == 0:
                    # The coarsest band comes first and rejects nearly all squares that any band rejects.
                    begun &= filled
                    _finish(
                        writers.map(partial(_write_maps, tile, folder, codes, begun), range(tile.shape[0]))
                    )
                _finish(
                    writers.map(
                        partial(_write_band, tile, folder, name, pixels, begun & filled), range(tile.shape[0])
                    )
                )
    finally:
        # After an error or Ctrl-C nobody waits for what is decoded still.
        decoders.shutdown(wait=False, cancel_futures=True)
    return labels, filled, begun


def _write_s1(
    tile: _Tile, folder: Path, wanted: NDArray[np.bool_], v1: Mapping[tuple[int, int], V1Patch] | None
) -> Iterator[tuple[tuple[int, int], str]]:
    """The S1 files of the wanted patches; yields (y, x) and the S1 name of each that has them."""
    product, recipe = tile.product, tile.recipe
    if recipe.s1_v1 is not None:
        assert v1 is not None
        medians = []
        for y, x in np.argwhere(wanted).tolist():
            name = v1[x, y].s1_name
            if name is None:
                continue
            files = {p: path.read_bytes() for p, path in v1_files(recipe.s1_v1, name).items()}
            medians.append(_check_official(tile, y, x, name, files))
            for polarization, data in files.items():
                _write(geotiff.s1_path(folder, name, polarization), data)
            yield (y, x), name
        check_backscatter(medians, name=f"{recipe.s1_v1}: the patches of {product.name}")
        return
    pieces = pair(
        recipe.s1_scenes, time=product.time, epsg=product.epsg, left=product.left, top=product.top,
        patch_px=recipe.patch_m // PIXEL_M, wanted=wanted,
    )  # fmt: skip
    for piece in pieces:
        # Names of S1 patches have no T and no zeros in front.
        name = f"{piece.scene.name}_{product.square}_{piece.x}_{piece.y}"
        left, top = tile.corner(piece.y, piece.x)
        for polarization, values in zip(POLARIZATIONS, piece.pixels, strict=True):
            data = geotiff.encode_band(values, epsg=product.epsg, left=left, top=top, pixel_m=PIXEL_M)
            _write(geotiff.s1_path(folder, name, polarization), data)
        yield (piece.y, piece.x), name


def _check_official(
    tile: _Tile, y: int, x: int, name: str, files: Mapping[str, bytes]
) -> NDArray[np.floating[Any]]:
    """That the files of an official S1 patch are whole and lie where the patch does; their medians, dB."""
    left, top = tile.corner(y, x)
    side = tile.recipe.patch_m
    place: Footprint = tile.product.epsg, left, top - side, left + side, top
    medians = []
    for polarization in POLARIZATIONS:
        tensor, path = TENSORS["s1"][polarization], f"{name}_{polarization}.tif"
        pixels = np.frombuffer(read_pixels(files[polarization], tensor, place, name=path), tensor.dtype)
        if not np.isfinite(pixels).all():
            raise SourceError(f"{path}: holds values that are not numbers; fetch the patch again")
        medians.append(np.median(pixels))
    return np.array(medians)


def _finish(done: Iterator[None]) -> None:
    """Wait for what threads do, and raise what they raise."""
    deque(done, maxlen=0)


def _write_band(
    tile: _Tile, folder: Path, name: str, pixels: NDArray[np.uint16], kept: NDArray[np.bool_], y: int
) -> None:
    """One band of the kept patches of row `y`."""
    product, pixel_m = tile.product, BANDS[name].resolution_m
    side = tile.recipe.patch_m // pixel_m
    for x in np.flatnonzero(kept[y]).tolist():
        patch_id, (left, top) = tile.patch_id(y, x), tile.corner(y, x)
        part = pixels[y * side : (y + 1) * side, x * side : (x + 1) * side]
        data = geotiff.encode_band(part, epsg=product.epsg, left=left, top=top, pixel_m=pixel_m)
        _write(geotiff.s2_path(folder, patch_id, product.name, name), data)


def _write_maps(
    tile: _Tile, folder: Path, codes: NDArray[np.uint16], kept: NDArray[np.bool_], y: int
) -> None:
    """The reference maps of the kept patches of row `y`."""
    product, side = tile.product, tile.recipe.patch_m // PIXEL_M
    for x in np.flatnonzero(kept[y]).tolist():
        patch_id, (left, top) = tile.patch_id(y, x), tile.corner(y, x)
        part = codes[y * side : (y + 1) * side, x * side : (x + 1) * side]
        data = geotiff.encode_map(part, epsg=product.epsg, left=left, top=top)
        _write(geotiff.map_path(folder, patch_id, product.name), data)


def _remove(tile: _Tile, folder: Path, places: NDArray[np.bool_]) -> None:
    """What was written of patches before it was known that they are not kept."""
    for y, x in np.argwhere(places).tolist():
        for kind in (geotiff.S2_FOLDER, geotiff.MAPS_FOLDER):
            shutil.rmtree(folder / kind / tile.product.name / tile.patch_id(y, x))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _rows(
    tile: _Tile,
    kept: NDArray[np.bool_],
    labels: PatchLabels,
    s1_names: Mapping[tuple[int, int], str],
    v1: Mapping[tuple[int, int], V1Patch] | None,
) -> pa.Table:
    """Metadata of the kept patches, sorted by id. Names that do not exist are empty."""
    y, x = np.nonzero(kept)
    if not y.size:
        return OFFICIAL_SCHEMA.empty_table()
    side, product = tile.recipe.patch_m, tile.product
    places = list(zip(y.tolist(), x.tolist(), strict=True))
    known = [v1[column, row] if v1 is not None else None for row, column in places]
    columns: list[Any] = [
        [tile.patch_id(*place) for place in places],
        [labels.of(*place) for place in places],
        grid.split_of_centres((x + 0.5) * side, (y + 0.5) * side),
        tile.recipe.countries.nearest(
            epsg=product.epsg, left=product.left + side * x, top=product.top - side * y, side_m=side
        ),
        [s1_names.get(place, "") for place in places],
        [patch.name if patch else "" for patch in known],
        [patch is not None and patch.snow for patch in known],
        [patch is not None and patch.cloud for patch in known],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, OFFICIAL_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=OFFICIAL_SCHEMA).sort_by("patch_id")


METADATA = "metadata.parquet"
"""Rows of the recommended patches."""

EXTRA_METADATA = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
"""Rows of the others."""

_ROW_GROUP_ROWS = 124_928  # as DuckDB cut the official files


def write_metadata(folder: str | os.PathLike[str]) -> None:
    """Both metadata files from the receipts of all products in `folder`: zstd, sorted by id."""
    root = local_path(folder, "the folder of the official layout")
    receipts = sorted((root / JOURNAL).glob("*.parquet"))
    parts = [parquet.read_table(path, name=str(path)).cast(OFFICIAL_SCHEMA) for path in receipts]
    table = pa.concat_tables([OFFICIAL_SCHEMA.empty_table(), *parts]).sort_by("patch_id")
    extra = pc.or_(table["contains_seasonal_snow"], table["contains_cloud_or_shadow"])
    for name, rows in ((METADATA, pc.invert(extra)), (EXTRA_METADATA, extra)):
        out = io.BytesIO()
        pq.write_table(
            table.filter(rows),
            out,
            version="1.0",
            compression="zstd",
            row_group_size=_ROW_GROUP_ROWS,
            use_dictionary=["split", "country"],
            write_statistics=["contains_seasonal_snow", "contains_cloud_or_shadow"],
        )
        _replace(root, root / name, out.getvalue())


_OPTIONS = f"{BUILD_JOURNAL}/prepared"
"""Object with the options of the preparation that a root comes from."""

_INPUTS = f"{BUILD_JOURNAL}/prepared-from"
"""Object with the identity of its inputs; written when all of them are prepared."""


def claim_root(
    store: Store, options: Mapping[str, object], inputs: Mapping[str, str]
) -> dict[str, Any] | None:
    """Make an empty root that of a preparation, before hours go into what it cannot take.

    Args:
        store: The root to be.
        options: All that was given, by the name of the option; the same again continues.
        inputs: Identity of all files among it, as `provenance.identify` gives it; one that could not be
            prepared may be mended and the same options given again.

    Returns:
        The manifest if the root is published already, from the same inputs.

    Raises:
        ConflictError: If the root holds anything else.
    """
    ours = {name: str(value) for name, value in options.items()}
    if next(iter(store.list()), None) is None:
        store.put(_OPTIONS, json.dumps(ours).encode(), create=True)
        return None
    way_out = "repeat those it was begun with, or take an empty root"
    foreign = f"{store.url} is not empty, and was not begun with these inputs and options"
    if not store.exists(_OPTIONS):
        raise ConflictError(f"{foreign}; {way_out}")
    for path, now in ((_OPTIONS, ours), (_INPUTS, inputs)):
        if path == _INPUTS and not store.exists(path):
            if store.exists(MANIFEST):
                raise ConflictError(f"{foreign}: nothing says from which; {way_out}")
            return None
        try:
            before = json.loads(bytes(store.get(path)))
        except json.JSONDecodeError:
            raise ConflictError(f"{foreign}: an earlier version began it; {way_out}") from None
        if changed := differences(before, now):
            raise ConflictError(f"{foreign}: {changed}; {way_out}")
    return read_manifest(store)


def default_scratch(store: Store) -> Path:
    """Where the folders lie from which a root is built: beside a local root, else below the temporary folder."""
    local_path = store.local_path()
    if local_path is not None:
        return local_path.with_name(f"{local_path.name}.prepared")
    name = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"reben-cloud-prepared-{name}"


def build_root(
    folder: str | os.PathLike[str],
    store: Store,
    *,
    inputs: Mapping[str, str] | None = None,
    executor: Executor | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Build a root from what `prepare` has written; the ordinary build.

    Args:
        folder: What `prepare` wrote.
        store: The root to be.
        inputs: What it was made from, for `claim_root` to compare when the same is asked for again.
        executor: Where the root is built.
        workers: Local processes, when no executor is given.
        progress: Wraps the stream of finished tasks.

    Returns:
        The manifest.

    Raises:
        SourceError: If no patch was kept.
        ConflictError, StorageError: As `build.build`.
    """
    if not any(pq.read_metadata(Path(folder) / name).num_rows for name in (METADATA, EXTRA_METADATA)):
        raise SourceError(f"{folder}: no patch was kept, so there is no root to build; see the reports above")
    source, official = open_source(folder)
    if inputs is not None:
        store.put(_INPUTS, json.dumps(dict(inputs)).encode())
    return build(make_plan(source, official, store), executor=executor, workers=workers, progress=progress)


def find_products(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The ``.SAFE`` folders among `paths` and directly below them.

    Raises:
        FileNotFoundError: If a path is neither a product nor a folder of some.
    """
    found: list[Path] = []
    for path in (local_path(path, "a Sentinel-2 product") for path in paths):
        inside = (
            [path]
            if path.suffix == ".SAFE"
            else sorted(p for p in path.glob("*.SAFE") if not is_clutter(p.name))
        )
        if not inside:
            hint = "; unzip it first" if path.suffix == ".zip" else ""
            raise FileNotFoundError(f"{path}: no .SAFE product there{hint}")
        found += inside
    return found


def identify_inputs(
    products: Sequence[str | os.PathLike[str]],
    others: Mapping[str, Sequence[Path]],
    *,
    v1: Path | None = None,
) -> dict[str, str]:
    """Identity of everything that a preparation is given, for `claim_root`.

    Args:
        products: Level-2A ``.SAFE`` folders.
        others: What else: role -> files and folders.
        v1: Folder of the v1 lists.
    """
    found: dict[str, str] = {}
    for path in products:
        product = open_safe(path)
        found[f"{product.name} generation time"] = product.generation
        for file in (*product.metadata, *product.images.values()):
            found |= identify(product.name, file)
    for role, paths in others.items():
        for given in paths:
            of_path = identify(role, given)
            # Official patches are more than a million files.
            official = given.is_dir() and _has_official_patches(given)
            found |= {f"{role} {given.name}": digest(of_path)} if official else of_path
    for path in () if v1 is None else list_files(v1):
        found |= identify("--v1", path)
    return found


def _has_official_patches(path: Path) -> bool:
    return any(path.glob("S1?_IW_GRDH_1SDV_*/"))


def find_s1(
    paths: Sequence[str | os.PathLike[str]],
    products: Sequence[str | os.PathLike[str]],
    work: Path,
    *,
    gpt: str = "gpt",
    sarsen: str = "sarsen",
    dem: str = "SRTM 1Sec HGT",
    dem_datum: str | None = None,
    geoid: str | os.PathLike[str] | None = None,
    workers: int = 1,
) -> tuple[Path | None, tuple[Scene, ...]]:
    """What Sentinel-1 inputs are: official patches, or scenes; GRD products become scenes first.

    Args:
        paths: A folder of official S1 patches; or GeoTIFF scenes and folders of them; or GRD products
            (``.SAFE``, ``.zip``).
        products: The Level-2A products they go with; GRD products are processed in their UTM zone.
        work: Where the scenes made from GRD products, and logs, go.
        gpt: SNAP's program.
        sarsen: sarsen's program.
        dem: SNAP's name of an elevation model, then SNAP is used; or a raster file of elevations, then sarsen.
        dem_datum: What the heights of that file are above, where its CRS does not say (`elevation.DATUMS`).
        geoid: Grid of the geoid that they are above; by default PROJ's.
        workers: Runs at a time.

    Returns:
        The folder of official patches or None, and the scenes.

    Raises:
        FileNotFoundError: If `dem` is a path and there is no such file.
        NotFoundError: If there are GRD products and the program, or the geoid's grid, for them is not installed.
        SourceError: If inputs are mixed or wrong.
    """
    given = [local_path(path, "a Sentinel-1 scene") for path in paths]
    heights = local_path(dem, "a file of elevations")
    if not heights.is_file() and (heights.suffix or heights.name != dem):
        raise FileNotFoundError(f"{dem}: no such file of elevations (--dem)")
    if not heights.is_file() and (dem_datum or geoid):
        raise SourceError(
            "--dem-datum and --geoid go with a file of elevations (--dem), which SNAP does not take"
        )
    official = [path for path in given if path.is_dir() and _has_official_patches(path)]
    raw = [path for path in given if path.suffix in (".SAFE", ".zip")]
    rest = [path for path in given if path not in official and path not in raw]
    if official:
        if len(given) > 1:
            raise SourceError(f"{official[0]}: official S1 patches go with no other --s1")
        return official[0], ()
    if raw:
        tiles = [open_safe(path) for path in products]
        zones = sorted({tile.epsg for tile in tiles})
        if len(zones) != 1:
            raise SourceError(
                f"GRD products are processed in one UTM zone, the Level-2A products lie in EPSG {zones}; "
                "prepare each zone by itself"
            )
        if heights.is_file():
            sides = [tuple(PIXEL_M * pixels for pixels in tile.shapes[PIXEL_M]) for tile in tiles]
            bounds = (
                min(tile.left for tile in tiles),
                min(tile.top - height for tile, (height, _) in zip(tiles, sides, strict=True)),
                max(tile.left + width for tile, (_, width) in zip(tiles, sides, strict=True)),
                max(tile.top for tile in tiles),
            )
            rest += run_sarsen(
                raw, work, epsg=zones[0], bounds=bounds, dem=dem, dem_datum=dem_datum, geoid=geoid, program=sarsen,
                workers=workers,
            )  # fmt: skip
        else:
            rest += run_snap(raw, work, epsg=zones[0], program=gpt, dem=dem, workers=workers)
    return None, tuple(open_scenes(rest))
