"""A Level-2A product cut into the official folders: bands, reference maps and Sentinel-1 of every patch kept.

The product is cut band by band while the next one is decoded; squares that a later band rejects are
removed again. Nothing here says that a product is done: without its receipt it is made again.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.bigearthnet.labels import UNLABELLED
from reben_cloud.bigearthnet.own import ALL_BANDS
from reben_cloud.bigearthnet.v1 import V1Patch
from reben_cloud.files.whole import write_whole
from reben_cloud.formats import geotiff
from reben_cloud.scenes.area import Bounds, bounds_of, squares_within
from reben_cloud.scenes.land_cover import PIXEL_M, rasterise, read_land_cover
from reben_cloud.scenes.land_raster import raster_files, read_land_raster
from reben_cloud.scenes.official_s1 import read_medians, v1_files
from reben_cloud.scenes.options import CutOptions
from reben_cloud.scenes.pairing import pair
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.quality import Quality, measure_quality
from reben_cloud.scenes.rules import PatchLabels, Squares, label_patches, mark, without_nodata
from reben_cloud.scenes.sentinel1 import POLARIZATIONS, check_backscatter

_WRITERS = 4
"""Threads that write the small files of a product, which wait for the disk more than they compute."""

_BANDS_AHEAD = 2
"""Bands being decoded, a thread each, beside the one that is written; 240 MB each at 10 m."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """The grid of patches of one product."""

    product: Product
    """What is cut."""
    options: CutOptions
    """How it is cut."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of whole squares; the rest in the south and the east (600 m of a full tile) is dropped."""
        rows, columns = self.product.shapes[PIXEL_M]
        side = self.side_px(PIXEL_M)
        return rows // side, columns // side

    def within_box(self) -> NDArray[np.bool_]:
        """The squares within the box that is wanted, (rows, columns); all where none is."""
        if self.options.box is None:
            return np.ones(self.shape, bool)
        product = self.product
        return squares_within(
            self.options.box, epsg=product.epsg, left=product.left, top=product.top, patch_m=self.options.patch_m,
            shape=self.shape,
        )  # fmt: skip

    def bounds_of(self, squares: NDArray[np.bool_]) -> Bounds | None:
        """The rectangle around some squares; None if they are all."""
        if squares.all():
            return None
        return bounds_of(squares, left=self.product.left, top=self.product.top, patch_m=self.options.patch_m)

    def side_px(self, pixel_m: int) -> int:
        """Pixels along the side of a patch."""
        return self.options.patch_m // pixel_m

    def patch_id(self, y: int, x: int) -> str:
        """Id of the patch at row `y` and column `x`."""
        return grid.format_patch_id(self.product.name, x, y, patch_m=self.options.patch_m)

    def corner(self, y: int, x: int) -> tuple[int, int]:
        """West and north edge of a patch, metres."""
        return self.product.left + self.options.patch_m * x, self.product.top - self.options.patch_m * y


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What became of a product."""

    squares: Squares
    """Which squares are patches now, and why the others are not."""
    labels: PatchLabels
    """Labels of all squares."""
    s1_names: Mapping[tuple[int, int], str]
    """(y, x) -> name of the Sentinel-1 patch; empty where patches get none."""
    quality: Quality
    """What the product's masks say; nothing of the paper's recipe, which does not ask."""


def cut_product(tile: Tile, folder: Path, v1: Mapping[tuple[int, int], V1Patch] | None) -> Cut:
    """Write the files of every patch of a product, in place of what an earlier run left.

    Args:
        tile: The product and how to cut it.
        folder: The folder of the official layout.
        v1: What v1 says of the product, (x, y) -> patch; None keeps squares that v1 lacks.

    Raises:
        FileNotFoundError: If an official S1 patch lacks a file.
        SourceError: If a band, the land cover or a scene is not what it must be.
    """
    if not tile.product.is_checked:
        logger.warning("%s: no checksums (manifest.safe), so damage may go unnoticed", tile.product.name)
    # What a killed run left is of no use, and might hold patches that are not kept now.
    for kind in (geotiff.S2_FOLDER, geotiff.MAPS_FOLDER):
        shutil.rmtree(folder / kind / tile.product.name, ignore_errors=True)
    every = np.ones(tile.shape, bool)
    inside = tile.within_box()
    in_v1 = every if v1 is None else mark(((y, x) for x, y in v1), shape=tile.shape)
    within = tile.bounds_of(inside)
    labels, filled, begun = _write_s2(tile, folder, inside & in_v1, within)
    s1_names = {}
    if tile.options.s1_v1 is not None:
        assert v1 is not None
        s1_names = dict(_copy_s1(tile, folder, begun & filled, v1, tile.options.s1_v1))
    elif tile.options.s1_scenes:
        s1_names = dict(_cut_s1(tile, folder, begun & filled))
    with_s1 = mark(s1_names, shape=tile.shape) if tile.options.has_s1 else every
    squares = Squares(inside=inside, filled=filled, in_v1=in_v1, labelled=labels.kept, with_s1=with_s1)
    _remove(tile, folder, begun & ~squares.kept)
    quality = Quality(shares={})
    if not tile.options.is_official:
        quality = measure_quality(tile.product, patch_m=tile.options.patch_m, shape=tile.shape, within=within)
        if not quality.shares:
            logger.warning(
                "%s: no scene classification (SCL), so nothing is known of clouds and snow", tile.product.name
            )
    return Cut(squares=squares, labels=labels, s1_names=s1_names, quality=quality)


def _write_s2(
    tile: Tile, folder: Path, wanted: NDArray[np.bool_], within: Bounds | None
) -> tuple[PatchLabels, NDArray[np.bool_], NDArray[np.bool_]]:
    """The bands and maps of all patches that may be kept, each band as soon as it is decoded.

    Returns:
        The labels; which patches have no zero pixel, and which were written in part at least, both (rows, columns).
    """
    decoders = ThreadPoolExecutor(_BANDS_AHEAD)
    read = partial(tile.product.read_band, within=within)
    try:
        with ThreadPoolExecutor(_WRITERS) as writers:
            bands = [name for name in ALL_BANDS if name in tile.options.bands]
            ahead = deque(decoders.submit(read, name) for name in bands[:_BANDS_AHEAD])
            codes = _reference_map(tile)
            classes = tile.options.table.classes
            labels = label_patches(codes, patch_px=tile.side_px(PIXEL_M), classes=classes)
            begun = wanted & labels.kept
            filled = np.ones(tile.shape, bool)
            rows = range(tile.shape[0])
            for number, name in enumerate(bands):
                pixels = ahead.popleft().result()
                for later in bands[number + _BANDS_AHEAD : number + _BANDS_AHEAD + 1]:
                    ahead.append(decoders.submit(read, later))
                side_px = tile.side_px(BANDS[name].resolution_m)
                filled &= without_nodata(pixels, side_px=side_px, shape=tile.shape)
                if number == 0:
                    # The first band rejects nearly all squares that any band rejects.
                    begun &= filled
                    _finish(writers.map(partial(_write_maps, tile, folder, codes, begun), rows))
                _finish(writers.map(partial(_write_band, tile, folder, name, pixels, begun & filled), rows))
    finally:
        # After an error or Ctrl-C nobody waits for what is decoded still.
        decoders.shutdown(wait=False, cancel_futures=True)
    return labels, filled, begun


def _reference_map(tile: Tile) -> NDArray[np.uint16]:
    """Land-cover codes of the whole tile."""
    product, options = tile.product, tile.options
    left, top, shape = product.left, product.top, product.shapes[PIXEL_M]
    if files := raster_files(options.land_cover):
        codes = read_land_raster(
            files, epsg=product.epsg, left=left, top=top, shape=shape, table=options.table
        )
    else:
        polygons = read_land_cover(
            options.land_cover, epsg=product.epsg, bounds=product.bounds, table=options.table,
            code_column=options.code_column,
        )  # fmt: skip
        codes = rasterise(polygons, left=left, top=top, shape=shape)
    if (codes == UNLABELLED).all():
        logger.warning("%s: %s has nothing there", product.name, options.land_cover)
    return codes


def _finish(done: Iterator[None]) -> None:
    """Wait for what threads do, and raise what they raise."""
    deque(done, maxlen=0)


def _write_band(
    tile: Tile, folder: Path, name: str, pixels: NDArray[np.uint16], kept: NDArray[np.bool_], y: int
) -> None:
    """One band of the kept patches of row `y`."""
    product, pixel_m = tile.product, BANDS[name].resolution_m
    side = tile.side_px(pixel_m)
    for x in np.flatnonzero(kept[y]).tolist():
        patch_id, (left, top) = tile.patch_id(y, x), tile.corner(y, x)
        part = pixels[y * side : (y + 1) * side, x * side : (x + 1) * side]
        data = geotiff.encode_band(part, epsg=product.epsg, left=left, top=top, pixel_m=pixel_m)
        _write(geotiff.s2_path(folder, patch_id, product.name, name), data)


def _write_maps(tile: Tile, folder: Path, codes: NDArray[np.uint16], kept: NDArray[np.bool_], y: int) -> None:
    """The reference maps of the kept patches of row `y`."""
    product, side = tile.product, tile.side_px(PIXEL_M)
    for x in np.flatnonzero(kept[y]).tolist():
        patch_id, (left, top) = tile.patch_id(y, x), tile.corner(y, x)
        part = codes[y * side : (y + 1) * side, x * side : (x + 1) * side]
        data = geotiff.encode_map(part, epsg=product.epsg, left=left, top=top)
        _write(geotiff.map_path(folder, patch_id, product.name), data)


def _write(path: Path, data: bytes) -> None:
    # In place: of the hundred thousand files of a product, none counts before its receipt is there.
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _copy_s1(
    tile: Tile, folder: Path, wanted: NDArray[np.bool_], v1: Mapping[tuple[int, int], V1Patch], official: Path
) -> Iterator[tuple[tuple[int, int], str]]:
    """Copy the official S1 files of the wanted patches; yields (y, x) and the S1 name of each that has them."""
    side = tile.options.patch_m
    medians = []
    for y, x in np.argwhere(wanted).tolist():
        name = v1[x, y].s1_name
        if name is None:
            continue
        files = {p: path.read_bytes() for p, path in v1_files(official, name).items()}
        left, top = tile.corner(y, x)
        place = tile.product.epsg, left, top - side, left + side, top
        medians.append(read_medians(files, name=name, place=place))
        for polarization, data in files.items():
            _write_s1(folder, name, polarization, data)
        yield (y, x), name
    check_backscatter(medians, name=f"{official}: the patches of {tile.product.name}")


def _cut_s1(tile: Tile, folder: Path, wanted: NDArray[np.bool_]) -> Iterator[tuple[tuple[int, int], str]]:
    """Cut the S1 files of the wanted patches from scenes; yields (y, x) and the S1 name of each that has them."""
    product = tile.product
    pieces = pair(
        tile.options.s1_scenes, time=product.time, epsg=product.epsg, left=product.left, top=product.top,
        patch_px=tile.side_px(PIXEL_M), wanted=wanted, choice=tile.options.s1_choice,
    )  # fmt: skip
    for piece in pieces:
        name = grid.format_s1_name(piece.scene.name, product.square, piece.x, piece.y)
        left, top = tile.corner(piece.y, piece.x)
        for polarization, values in zip(POLARIZATIONS, piece.pixels, strict=True):
            data = geotiff.encode_band(values, epsg=product.epsg, left=left, top=top, pixel_m=PIXEL_M)
            _write_s1(folder, name, polarization, data)
        yield (piece.y, piece.x), name


def _write_s1(folder: Path, name: str, polarization: str, data: bytes) -> None:
    # As a whole: another product of the same square may have the same S1 patch, and its receipt already.
    path = geotiff.s1_path(folder, name, polarization)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def _remove(tile: Tile, folder: Path, places: NDArray[np.bool_]) -> None:
    """What was written of patches before it was known that they are not kept."""
    for y, x in np.argwhere(places).tolist():
        for kind in (geotiff.S2_FOLDER, geotiff.MAPS_FOLDER):
            shutil.rmtree(folder / kind / tile.product.name / tile.patch_id(y, x))
