"""The reBEN recipe on Level-2A products: cut, pair, overlay, label, split, into the official folders.

Per product a plan comes first (which squares are kept, and why the others are not), then the files,
then a receipt with the metadata rows; a product with a receipt is skipped, so a killed run continues.
The rules are bigearthnet-pipeline's; `docs/limits.md` says what of it is not known.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reben_cloud import grid
from reben_cloud.bands import BANDS, PATCH_M
from reben_cloud.country import Countries
from reben_cloud.errors import ConflictError, SourceError
from reben_cloud.formats import geotiff
from reben_cloud.metadata import OFFICIAL_SCHEMA
from reben_cloud.processors import run_snap
from reben_cloud.reference_map import (
    PIXEL_M,
    REBEN19,
    ClassTable,
    PatchLabels,
    label_patches,
    rasterise,
    read_land_cover,
)
from reben_cloud.sources.safe import S2_BANDS, SafeProduct, open_safe
from reben_cloud.sources.sentinel1 import POLARIZATIONS, Scene, open_scenes, pair, v1_files
from reben_cloud.sources.v1 import V1Patch, read_v1

JOURNAL = ".prepared"
"""Folder of the receipts below the destination; may be deleted when all is done."""


_WRITERS = 4
"""Threads that write the small files of a product, which wait for the disk more than they compute."""


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
            raise ValueError(f"patch_m must be a multiple of 60 m in [60, {grid.TILE_M}], got {self.patch_m}")
        if self.s1_v1 is not None and self.v1 is None:
            raise ValueError("official S1 patches are paired by v1's lists: give their folder too (v1)")
        if self.s1_v1 is not None and self.s1_scenes:
            raise ValueError("give official S1 patches or scenes, not both")

    @property
    def has_s1(self) -> bool:
        """Whether patches get a Sentinel-1 part; those without one are then left out."""
        return self.s1_v1 is not None or bool(self.s1_scenes)

    def fingerprint(self) -> str:
        """Changes with every choice and, for files, with their names and sizes."""
        parts = [
            self.clc.name, self.clc.stat().st_size, sorted(self.table.classes.items()), self.code_column,
            list(self.countries.polygons), str(self.v1), str(self.s1_v1), [s.name for s in self.s1_scenes],
            self.patch_m,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


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

    def __str__(self) -> str:
        if self.failed_checks:
            return f"{self.product}: excluded, {', '.join(self.failed_checks)} not PASSED"
        return (
            f"{self.product}: {self.written:,} of {self.candidates:,} squares written; left out: {self.nodata:,} with "
            f"nodata, {self.not_in_v1:,} not in v1, {self.unlabelled:,} unlabelled, {self.without_s1:,} without S1"
        )


Progress = Callable[[Iterable[Report], int], Iterable[Report]]
"""Wraps the reports as they come; the second argument is their number."""


def _silent(reports: Iterable[Report], total: int) -> Iterable[Report]:  # noqa: ARG001
    return reports


def prepare(
    products: Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    recipe: Recipe,
    *,
    workers: int = 1,
    progress: Progress = _silent,
) -> list[Report]:
    """Write the official folders and both metadata files from Level-2A products.

    Args:
        products: ``.SAFE`` folders; each acquisition once.
        destination: Folder to write to; run again, it continues, and takes further products.
        recipe: What is made of them.
        workers: Products at a time, one process each; a full product takes up to 3 GB of memory.
        progress: Wraps the stream of finished products.

    Returns:
        A report a product, by name.

    Raises:
        FileNotFoundError: If a product or another input does not exist.
        SourceError: If an input is not what it must be.
        ConflictError: If the destination was begun with another recipe.
    """
    folder = Path(destination)
    opened: dict[str, SafeProduct] = {}
    for path in products:
        product = open_safe(path)
        if product.name in opened:
            raise SourceError(
                f"{product.name}: given twice, {opened[product.name].path.name} and {product.path.name}"
            )
        opened[product.name] = product
    _claim(folder, recipe)
    if workers == 1:
        reports = list(progress((prepare_product(p, folder, recipe) for p in opened.values()), len(opened)))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = [pool.submit(prepare_product, p, folder, recipe) for p in opened.values()]
            try:
                reports = list(progress((f.result() for f in as_completed(futures)), len(futures)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    write_metadata(folder)
    return sorted(reports, key=lambda report: report.product)


def _claim(folder: Path, recipe: Recipe) -> None:
    mark = folder / JOURNAL / "recipe"
    mark.parent.mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        mark.write_text(recipe.fingerprint())
    elif mark.read_text() != recipe.fingerprint():
        raise ConflictError(
            f"{folder} was begun with other inputs or options; repeat those, or take an empty folder"
        )


def prepare_product(product: SafeProduct, folder: Path, recipe: Recipe) -> Report:
    """Do one product, unless its receipt says that it is done."""
    receipt = folder / JOURNAL / f"{product.name}.parquet"
    if receipt.exists():
        told = json.loads(pq.read_schema(receipt).metadata[b"report"])
        return Report(**{**told, "failed_checks": tuple(told["failed_checks"])})
    if product.failed_checks:
        table, report = (
            OFFICIAL_SCHEMA.empty_table(),
            Report(product=product.name, failed_checks=product.failed_checks),
        )
    else:
        # What a killed run left is of no use, and might hold patches that are not kept now.
        for kind in (geotiff.S2_FOLDER, geotiff.MAPS_FOLDER):
            shutil.rmtree(folder / kind / product.name, ignore_errors=True)
        table, report = _cut(product, folder, recipe)
    scratch = receipt.with_suffix(".part")
    pq.write_table(table.replace_schema_metadata({"report": json.dumps(asdict(report))}), scratch)
    scratch.rename(receipt)
    return report


def _cut(product: SafeProduct, folder: Path, recipe: Recipe) -> tuple[pa.Table, Report]:
    tile = _Tile(product, recipe)
    v1 = None if recipe.v1 is None else read_v1(recipe.v1, product.name)
    in_v1 = np.ones(tile.shape, bool)
    if v1 is not None:
        in_v1 = np.zeros(tile.shape, bool)
        for x, y in v1:
            if y < tile.shape[0] and x < tile.shape[1]:
                in_v1[y, x] = True
    with ThreadPoolExecutor(1) as pool:
        overlay = pool.submit(tile.reference_map)  # needs no pixels and leaves most of the decoding a core
        pixels = {name: product.read_band(name) for name in S2_BANDS}
        codes = overlay.result()
    filled = tile.filled(pixels)
    labels = label_patches(codes, patch_px=recipe.patch_m // PIXEL_M, table=recipe.table)
    wanted = filled & in_v1 & labels.kept
    s1_names = dict(_write_s1(tile, folder, wanted, v1))
    kept = wanted
    if recipe.has_s1:
        kept = np.zeros_like(wanted)
        for y, x in s1_names:
            kept[y, x] = True
    with ThreadPoolExecutor(_WRITERS) as pool:
        done = pool.map(
            lambda place: _write_s2(tile, folder, place[0], place[1], pixels, codes),
            np.argwhere(kept).tolist(),
        )
        for _ in done:
            pass
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

    def filled(self, pixels: Mapping[str, NDArray[np.uint16]]) -> NDArray[np.bool_]:
        """Patches without a zero pixel in any band at its native resolution, (rows, columns)."""
        filled = np.ones(self.shape, bool)
        for name, band in pixels.items():
            side = self.recipe.patch_m // BANDS[name].resolution_m
            for row in range(self.shape[0]):
                strip = band[row * side : (row + 1) * side, : self.shape[1] * side]
                filled[row] &= strip.all(axis=0).reshape(self.shape[1], side).all(axis=1)
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
        return rasterise(land_cover, left=left, top=top, shape=(rows, columns))


def _write_s1(
    tile: _Tile, folder: Path, wanted: NDArray[np.bool_], v1: Mapping[tuple[int, int], V1Patch] | None
) -> Iterator[tuple[tuple[int, int], str]]:
    """The S1 files of the wanted patches; yields (y, x) and the S1 name of each that has them."""
    product, recipe = tile.product, tile.recipe
    if recipe.s1_v1 is not None:
        assert v1 is not None
        for y, x in np.argwhere(wanted).tolist():
            name = v1[x, y].s1_name
            if name is None:
                continue
            for polarization, path in v1_files(recipe.s1_v1, name).items():
                _write(geotiff.s1_path(folder, name, polarization), path.read_bytes())
            yield (y, x), name
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


def _write_s2(
    tile: _Tile,
    folder: Path,
    y: int,
    x: int,
    pixels: Mapping[str, NDArray[np.uint16]],
    codes: NDArray[np.uint16],
) -> None:
    """The twelve bands and the reference map of one patch."""
    patch_id, product = tile.patch_id(y, x), tile.product
    left, top = tile.corner(y, x)

    def part(image: NDArray[np.uint16], pixel_m: int) -> NDArray[np.uint16]:
        side = tile.recipe.patch_m // pixel_m
        return image[y * side : (y + 1) * side, x * side : (x + 1) * side]

    for name in S2_BANDS:
        pixel_m = BANDS[name].resolution_m
        data = geotiff.encode_band(
            part(pixels[name], pixel_m), epsg=product.epsg, left=left, top=top, pixel_m=pixel_m
        )
        _write(geotiff.s2_path(folder, patch_id, product.name, name), data)
    data = geotiff.encode_map(part(codes, PIXEL_M), epsg=product.epsg, left=left, top=top)
    _write(geotiff.map_path(folder, patch_id, product.name), data)


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
    root = Path(folder)
    parts = [pq.read_table(path).cast(OFFICIAL_SCHEMA) for path in sorted((root / JOURNAL).glob("*.parquet"))]
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
        scratch = root / JOURNAL / f"{name}.part"
        scratch.write_bytes(out.getvalue())
        scratch.rename(root / name)


def find_products(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The ``.SAFE`` folders among `paths` and directly below them.

    Raises:
        FileNotFoundError: If a path is neither a product nor a folder of some.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [path] if path.suffix == ".SAFE" else sorted(path.glob("*.SAFE"))
        if not inside:
            raise FileNotFoundError(f"{path}: no .SAFE product there")
        found += inside
    return found


def find_s1(
    paths: Sequence[str | os.PathLike[str]],
    products: Sequence[str | os.PathLike[str]],
    work: Path,
    *,
    gpt: str = "gpt",
    dem: str = "SRTM 1Sec HGT",
    workers: int = 1,
) -> tuple[Path | None, tuple[Scene, ...]]:
    """What Sentinel-1 inputs are: official patches, or scenes; GRD products become scenes through SNAP.

    Args:
        paths: A folder of official S1 patches; or GeoTIFF scenes and folders of them; or GRD products
            (``.SAFE``, ``.zip``).
        products: The Level-2A products they go with; GRD products are processed in their UTM zone.
        work: Where the scenes made from GRD products, and logs, go.
        gpt: SNAP's program.
        dem: SNAP's name of an elevation model.
        workers: Runs of SNAP at a time.

    Returns:
        The folder of official patches or None, and the scenes.

    Raises:
        NotFoundError: If there are GRD products and SNAP is not installed.
        SourceError: If inputs are mixed or wrong.
    """
    given = [Path(path) for path in paths]
    official = [path for path in given if path.is_dir() and any(path.glob("S1?_IW_GRDH_1SDV_*/"))]
    raw = [path for path in given if path.suffix in (".SAFE", ".zip")]
    rest = [path for path in given if path not in official and path not in raw]
    if official:
        if len(given) > 1:
            raise SourceError(f"{official[0]}: official S1 patches go with no other --s1")
        return official[0], ()
    if raw:
        zones = sorted({open_safe(path).epsg for path in products})
        if len(zones) != 1:
            raise SourceError(
                f"GRD products are processed in one UTM zone, the Level-2A products lie in EPSG {zones}; "
                "prepare each zone by itself"
            )
        rest += run_snap(raw, work, epsg=zones[0], program=gpt, dem=dem, workers=workers)
    return None, tuple(open_scenes(rest))
