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
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

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
    lists = _read_lists(root, tuple(_version(path) for path in list_files(root)))
    # S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_...: satellite, start, orbit and square agree.
    satellite, _, start, _, orbit, square = product.split("_")
    pattern = f"^{satellite}_MSIL1C_{start}_N\\d{{4}}_{orbit}_{square}_"
    chosen = pc.match_substring_regex(lists.l1c.dictionary, pattern)
    names = lists.names.filter(pc.take(chosen, lists.l1c.indices))
    s1_names = pc.take(lists.pairs["s1_name"], pc.index_in(names, lists.pairs["s2v1_name"]))
    return {
        (int(x), int(y)): V1Patch(
            name=name, s1_name=s1_name, snow=name in lists.snow, cloud=name in lists.cloud
        )
        for name, s1_name in zip(names.to_pylist(), s1_names.to_pylist(), strict=True)
        for _, x, y in [name.rsplit("_", 2)]
    }


class _Lists(NamedTuple):
    """All that the lists say: they are read once for many products."""

    names: pa.StringArray
    l1c: pa.DictionaryArray
    snow: frozenset[str]
    cloud: frozenset[str]
    pairs: pa.Table


def _version(path: Path) -> tuple[str, int, int]:
    """What tells a list from one that was written in its place."""
    stat = path.stat()
    return path.name, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1)
def _read_lists(root: Path, versions: tuple[tuple[str, int, int], ...]) -> _Lists:  # noqa: ARG001 - tells them apart
    links = _read_csv(_find(root, LINKS, f"{LINKS}.bz2"), ("name", "l1c", "link")).combine_chunks()
    return _Lists(
        names=links["name"].combine_chunks(),
        l1c=links["l1c"].combine_chunks().dictionary_encode(),
        snow=_names(root, SNOW),
        cloud=_names(root, CLOUDS),
        pairs=_pairs(root),
    )


def list_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files below `folder` that `read_v1` reads.

    Raises:
        FileNotFoundError: If one of them is not there.
    """
    root = Path(folder)
    mapping = [root / S1_MAPPING] if (root / S1_MAPPING).exists() else sorted(root.glob("metadata*.parquet"))
    return [_find(root, LINKS, f"{LINKS}.bz2"), _find(root, SNOW), _find(root, CLOUDS), *mapping]


def _pairs(root: Path) -> pa.Table:
    """Columns ``s2v1_name`` and ``s1_name``, no name twice."""
    if (root / S1_MAPPING).exists():
        return _read_csv(root / S1_MAPPING, ("s2v1_name", "s1_name")).combine_chunks()
    names = ["s2v1_name", "s1_name"]
    nothing = pa.schema([(name, pa.string()) for name in names]).empty_table()
    found = sorted(root.glob("metadata*.parquet"))
    try:
        tables = [parquet.read_table(path, names, name=str(path)).cast(nothing.schema) for path in found]
    except ChecksumError as error:
        raise SourceError(f"{error}; load it again") from error
    return pa.concat_tables([nothing, *tables]).combine_chunks()


def _names(root: Path, name: str) -> frozenset[str]:
    return frozenset(_read_csv(_find(root, name), ("name",))["name"].to_pylist())


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
