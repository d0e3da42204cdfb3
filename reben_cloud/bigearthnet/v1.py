"""What BigEarthNet v1 says of a product's squares: which exist, their names, flags and S1 patches.

A patch of v2 is kept only where v1 had the same square on the same date, and inherits its Sentinel-1
patch and its snow and cloud flags from there. Squares are joined by (acquisition, x, y), which
gives what the pipeline's join of geometries and seasons gives (all 549,488 rows agree).
"""

from __future__ import annotations

import bz2
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from reben_cloud.errors import ChecksumError, SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import parquet

LINKS = "tile_names_and_links.csv"
"""v1 patch name, Level-1C product, link; may be compressed (``.bz2``)."""

S1_MAPPING = "s1s2_mapping.csv"
"""v1 patch name, S1 name."""

SNOW = "patches_with_seasonal_snow.csv"
"""v1 names of patches with seasonal snow."""

CLOUDS = "patches_with_cloud_and_shadow.csv"
"""v1 names of patches with cloud or shadow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class V1Patch:
    """One v1 patch."""

    name: str
    """Its v1 name, which cannot be derived from the v2 id."""
    s1_name: str | None
    """Its Sentinel-1 patch."""
    snow: bool
    """Listed as having seasonal snow."""
    cloud: bool
    """Listed as having cloud or cloud shadow."""


def read_v1(folder: str | os.PathLike[str], product: str) -> Mapping[tuple[int, int], V1Patch]:
    """The v1 patches of one product.

    Args:
        folder: Holds `LINKS`, `SNOW`, `CLOUDS` and `S1_MAPPING`, as BigEarthNet v1 came with them;
            where the last is missing, official v2 metadata parquet files serve.
        product: v2 product name, e.g. ``S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP``.

    Returns:
        (x, y) -> patch; empty if v1 has none of the product.

    Raises:
        FileNotFoundError: If one of the files is not there.
        SourceError: If one is not what it must be.
    """
    root = local_path(folder, "the folder of the v1 lists")
    links = _read_csv(_find(root, LINKS, f"{LINKS}.bz2"), ("name", "l1c", "link"))
    # S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_...: satellite, start, orbit and square agree.
    satellite, _, start, _, orbit, square = product.split("_")
    pattern = f"^{satellite}_MSIL1C_{start}_N\\d{{4}}_{orbit}_{square}_"
    names = links.filter(pc.match_substring_regex(links["l1c"], pattern))["name"]
    snow = _names(root, SNOW) & (wanted := set(names.to_pylist()))
    cloud = _names(root, CLOUDS) & wanted
    s1_names = _s1_names(root, names)
    return {
        (int(x), int(y)): V1Patch(
            name=name, s1_name=s1_names.get(name), snow=name in snow, cloud=name in cloud
        )
        for name in names.to_pylist()
        for _, x, y in [name.rsplit("_", 2)]
    }


def list_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files below `folder` that `read_v1` reads.

    Raises:
        FileNotFoundError: If one of them is not there.
    """
    root = Path(folder)
    mapping = [root / S1_MAPPING] if (root / S1_MAPPING).exists() else sorted(root.glob("metadata*.parquet"))
    return [_find(root, LINKS, f"{LINKS}.bz2"), _find(root, SNOW), _find(root, CLOUDS), *mapping]


def _s1_names(root: Path, names: pa.ChunkedArray) -> dict[str, str]:
    if (root / S1_MAPPING).exists():
        table = _read_csv(root / S1_MAPPING, ("s2v1_name", "s1_name"))
    elif found := sorted(root.glob("metadata*.parquet")):
        names_of = ["s2v1_name", "s1_name"]
        try:
            table = pa.concat_tables([parquet.read_table(path, names_of, name=str(path)) for path in found])
        except ChecksumError as error:
            raise SourceError(f"{error}; load it again") from error
    else:
        return {}
    table = table.filter(pc.is_in(table["s2v1_name"], names.combine_chunks()))
    return dict(zip(table["s2v1_name"].to_pylist(), table["s1_name"].to_pylist(), strict=True))


def _names(root: Path, name: str) -> set[str]:
    return set(_read_csv(_find(root, name), ("name",))["name"].to_pylist())


def _find(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{root}: no {names[0]}, one of the lists that BigEarthNet v1 came with")


def _read_csv(path: Path, columns: tuple[str, ...]) -> pa.Table:
    """A table of strings without a header."""
    options = pa.csv.ReadOptions(column_names=list(columns))
    types = pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
    try:
        data = path.read_bytes()
        text = bz2.decompress(data) if path.suffix == ".bz2" else data
        return pa.csv.read_csv(
            pa.BufferReader(parquet.arrow_memory(text)), read_options=options, convert_options=types
        )
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: not {len(columns)} columns of names ({error})") from error
