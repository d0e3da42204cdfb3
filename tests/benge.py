"""Synthetic files in the names and forms of ben-ge: all its five data sets, over the v1 ids of given patches.

    <folder>/<name>_meta.csv, <name>_climatezones.csv, <name>_era-5.csv, <name>_esaworldcover.csv
    <folder>/dem/<patch_id>_dem.tif                        int16, metres, 120 x 120 of 10 m
    <folder>/esaworldcover/<patch_id>_esaworldcover.tif    uint8, classes 10 to 100, likewise
    <folder>/splits/<split>.csv                            without header

Values follow from the patch's number, so that a patch that gets another's shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj
import rasterio
from rasterio.transform import from_origin

from reben_cloud.bigearthnet import grid

WORLDCOVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
"""Codes of the classes of ESA WorldCover."""

COVER_NAMES = (
    *(
        "tree_cover",
        "shrubland",
        "grassland",
        "cropland",
        "built-up",
        "bare/sparse_vegeation",
        "snow_and_ice",
    ),
    *("permanent_water_bodies", "herbaceous_wetland", "mangroves", "moss_and_lichen"),
)
"""Columns of their fractions."""


def dem(number: int) -> np.ndarray:
    """Heights of a patch, int16 (120, 120)."""
    y, x = np.mgrid[:120, :120]
    return (number * 7 % 1000 + x + 2 * y).astype(np.int16)


def worldcover(number: int) -> np.ndarray:
    """Classes of a patch, uint8 (120, 120)."""
    y, x = np.mgrid[:120, :120]
    return np.array(WORLDCOVER, np.uint8)[(number + x // 10 + y // 20) % len(WORLDCOVER)]


def write_benge(
    folder: Path, table: pa.Table, *, name: str = "ben-ge", foreign: int = 0, offset_m: float = 0.02
) -> None:
    """Write a ben-ge of some patches.

    Args:
        folder: Is made.
        table: Official metadata, a row per patch.
        name: ``ben-ge``, ``ben-ge-8k`` or ``ben-ge-800``.
        foreign: Patches of v1 alone, which no v2 table has, to add.
        offset_m: How far its squares are from the patches', as the real ones are.
    """
    ids, s1, v1 = (table.column(column).to_pylist() for column in ("patch_id", "s1_name", "s2v1_name"))
    if foreign:
        ids, s1, v1 = (
            ids + ids[:1] * foreign,
            s1 + s1[:1] * foreign,
            v1 + [f"S2A_MSIL2A_20170613T94132_{n}_0" for n in range(foreign)],
        )
    epsg, minx, miny, maxx, maxy = grid.footprints(ids)
    folder.mkdir(parents=True)
    _write_tables(folder / name, v1, s1, epsg, (minx + maxx) / 2, (miny + maxy) / 2)
    for kind, make in (("dem", dem), ("esaworldcover", worldcover)):
        (folder / kind).mkdir()
        (folder / kind / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        for number, patch in enumerate(v1):
            pixels = make(number)
            with rasterio.open(
                folder / kind / f"{patch}_{kind}.tif", "w", driver="GTiff", height=120, width=120, count=1,
                dtype=pixels.dtype.name, crs=f"EPSG:{epsg[number]}",
                transform=from_origin(minx[number] + offset_m, maxy[number] - offset_m, 10, 10),
            ) as file:  # fmt: skip
                file.write(pixels, 1)
    (folder / "splits").mkdir()
    for split, part in (("train", v1[::2]), ("val", v1[1::4]), ("test", v1[3::4])):
        (folder / "splits" / f"{name}_{split}.csv").write_text("".join(f"{patch}\n" for patch in part))


def _write_tables(
    base: Path, v1: list[str], s1: list[str], epsg: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
    number = np.arange(len(v1))
    lon, lat = np.empty(len(v1)), np.empty(len(v1))
    for code in np.unique(epsg).tolist():
        mine = epsg == code
        to_lonlat = pyproj.Transformer.from_crs(code, 4326, always_xy=True)
        lon[mine], lat[mine] = to_lonlat.transform(x[mine], y[mine])
    keys = {"patch_id": v1, "patch_id_s1": s1}
    times = [pd.Timestamp("2017-06-13 10:10:31") + pd.Timedelta(days=int(n % 300)) for n in number]
    season = number % 100 / 100
    meta = {
        "timestamp_s2": times,
        "timestamp_s1": times,
        "season_s2": season,
        "season_s1": season,
        "lon": lon,
        "lat": lat,
    }
    pair = {"temperature": 280 + number % 20, "wind-u": number % 7 - 3.5, "wind-v": number % 5 - 2.5,
            "relhumidity": 50.0 + number % 50}  # fmt: skip
    weather = {f"{column}_{sensor}": values for column, values in pair.items() for sensor in ("s2", "s1")}
    cover = np.stack([[(worldcover(n) == code).mean() for code in WORLDCOVER] for n in number])
    tables = {
        "meta": {**keys, **meta},
        "climatezones": {"patch_id": v1, "climatezone": number % 31},
        "era-5": {**keys, "atmpressure_level": 950 + number % 50, **weather},
        "esaworldcover": {"patch_id": v1, **dict(zip(COVER_NAMES, cover.T, strict=True))},
    }
    for kind, columns in tables.items():
        pd.DataFrame(columns).to_csv(f"{base}_{kind}.csv", index=False)
