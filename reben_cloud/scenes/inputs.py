"""Inputs of a preparation: found among what the user names, made where they are raw, and identified."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyproj
import shapely

from reben_cloud.bigearthnet.v1 import list_files
from reben_cloud.errors import SourceError
from reben_cloud.files.clutter import glob_data
from reben_cloud.files.paths import local_path
from reben_cloud.scenes.choice import ALL_SCENES, SceneChoice
from reben_cloud.scenes.grd import read_outline
from reben_cloud.scenes.official_s1 import holds_patches
from reben_cloud.scenes.processors import run_snap
from reben_cloud.scenes.product import Product
from reben_cloud.scenes.provenance import identify, identify_many
from reben_cloud.scenes.safe import SafeProduct, open_safe
from reben_cloud.scenes.sarsen import run_sarsen
from reben_cloud.scenes.sentinel1 import Scene, open_scenes, scene_files


def find_products(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The ``.SAFE`` folders and the zips among `paths` and directly below them; of a product that is both, the folder.

    Raises:
        FileNotFoundError: If a path is neither a product nor a folder of some.
    """
    found: list[Path] = []
    for path in (local_path(path, "a Sentinel-2 product") for path in paths):
        if path.suffix == ".SAFE" or (path.suffix == ".zip" and path.is_file()):
            found.append(path)
            continue
        folders = glob_data(path, "*.SAFE")
        names = {folder.stem for folder in folders}
        zips = [file for file in glob_data(path, "S2*.zip") if file.name.split(".")[0] not in names]
        if not folders and not zips:
            raise FileNotFoundError(f"{path}: no .SAFE product there, and no zip of one")
        found += [*folders, *zips]
    return found


def open_product(given: str | os.PathLike[str] | Product) -> Product:
    """A product of another form as it is, or that of a ``.SAFE`` folder. Raises as `safe.open_safe`."""
    return given if isinstance(given, Product) else open_safe(given)


def identify_inputs(
    products: Sequence[str | os.PathLike[str] | Product],
    others: Mapping[str, Sequence[Path]],
    *,
    v1: Path | None = None,
) -> dict[str, str]:
    """Identity of everything that a preparation is given, for `claim_root`.

    Args:
        products: Level-2A ``.SAFE`` folders, or products of another form.
        others: What else: role -> files and folders.
        v1: Folder of the v1 lists.
    """
    found: dict[str, str] = {}
    opened = [open_product(path) for path in products]
    names = Counter(product.name for product in opened)
    for product in opened:
        # Files of two datastrips of one tile are called the same.
        strip = product.where if product.datastrip is None else f"{product.datastrip:%Y%m%dT%H%M%S}"
        called = product.name if names[product.name] == 1 else f"{product.name} of {strip}"
        if not isinstance(product, SafeProduct):
            found |= {f"{called} {key}": state for key, state in product.inputs(masks=True).items()}
            continue
        found[f"{called} generation time"] = product.generation
        for file in (*product.files, *product.masks.values()):
            found |= identify(called, file)
    for role, paths in others.items():
        for given in paths:
            if given.is_dir() and holds_patches(given):  # more than a million files
                found[f"{role} {given.name}"] = identify_many(role, [given])
            else:
                found |= identify(role, given)
    for path in () if v1 is None else list_files(v1):
        found |= identify("--v1", path)
    return found


def find_s1(
    paths: Sequence[str | os.PathLike[str]],
    products: Sequence[str | os.PathLike[str] | Product],
    work: Path,
    *,
    gpt: str = "gpt",
    sarsen: str = "sarsen",
    dem: str = "SRTM 1Sec HGT",
    dem_datum: str | None = None,
    geoid: str | os.PathLike[str] | None = None,
    choice: SceneChoice = ALL_SCENES,
    workers: int = 1,
) -> tuple[Path | None, tuple[Scene, ...]]:
    """What Sentinel-1 inputs are: official patches, or scenes; GRD products become scenes first.

    Args:
        paths: A folder of official S1 patches; or GeoTIFF scenes and folders of them; or GRD products
            (``.SAFE``, ``.zip``).
        products: The Level-2A products they go with; GRD products are processed in their UTM zones, by SNAP once for
            each zone, by sarsen once for each tile, so that its memory is that of a tile.
        work: Where the scenes made from GRD products, and logs, go.
        gpt: SNAP's program.
        sarsen: sarsen's program.
        dem: SNAP's name of an elevation model, then SNAP is used; or a raster file of elevations, then sarsen.
        dem_datum: What the heights of that file are above, where its CRS does not say (`elevation.DATUMS`).
        geoid: Grid of the geoid that they are above; by default PROJ's.
        choice: Of another relative orbit no GRD product is processed, and no scene taken.
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
    official = [path for path in given if path.is_dir() and holds_patches(path)]
    raw = [path for path in given if path.suffix in (".SAFE", ".zip")]
    scenes = [path for path in given if path not in official and path not in raw]
    if official:
        if len(given) > 1:
            raise SourceError(f"{official[0]}: official S1 patches go with no other --s1")
        return official[0], ()
    files = [file for path in scenes for file in scene_files(path)] if choice.relative_orbit else scenes
    found = open_scenes([file for file in files if choice.takes_orbit(file.name)])
    raw = [path for path in raw if choice.takes_orbit(path.name)]
    tiles = {(tile.epsg, tile.bounds) for tile in map(open_product, products)} if raw else set()
    for epsg, group in sorted(_groups(tiles, by_tile=heights.is_file()).items()):
        near = [path for path in raw if _may_reach(path, group)]
        if not near:
            continue
        if heights.is_file():
            made = run_sarsen(
                near, work, epsg=epsg[0], bounds=group[0][1], dem=dem, dem_datum=dem_datum, geoid=geoid,
                program=sarsen, workers=workers,
            )  # fmt: skip
        else:
            made = run_snap(near, work, epsg=epsg[0], program=gpt, dem=dem, workers=workers)
        # Each by itself: a scene has one name in all zones and tiles.
        found += open_scenes(made)
    return None, tuple(found)


_TilePlace = tuple[int, tuple[int, int, int, int]]
"""EPSG code of a tile, and its west, south, east and north, metres."""


def _groups(tiles: Collection[_TilePlace], *, by_tile: bool) -> dict[tuple[int, ...], list[_TilePlace]]:
    """The tiles that one run is for: each by itself, or all of a zone."""
    groups: dict[tuple[int, ...], list[_TilePlace]] = {}
    for epsg, bounds in sorted(tiles):
        groups.setdefault((epsg, *bounds) if by_tile else (epsg,), []).append((epsg, bounds))
    return groups


def _may_reach(path: Path, tiles: Sequence[_TilePlace]) -> bool:
    """Whether a GRD product may touch one of some tiles, as far as it says where it lies."""
    outline = read_outline(path)
    if outline is None:
        return True
    for epsg, bounds in tiles:
        to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
        box = shapely.transform(
            shapely.segmentize(shapely.box(*bounds), 10_000), to_degrees, interleaved=False
        )
        west, _, east, _ = shapely.bounds(shapely.union(box, outline))
        # Across the antimeridian degrees do not tell.
        if east - west > 180 or shapely.intersects(box, outline):
            return True
    return False
