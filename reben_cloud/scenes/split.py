"""Which split a patch belongs to, by its place: the paper's rule, blocks of a stated size, or a table of the user's.

All dates of a place have the same split under the first two; a table may part them. How far patches of different splits
are from each other is measured afterwards (`separation`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from reben_cloud.bigearthnet import grid
from reben_cloud.bigearthnet.official import SPLITS
from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.formats import parquet
from reben_cloud.scenes.provenance import identify
from reben_cloud.schema import check_names

_SHARES = (0.5, 0.75)
"""Where validation and test begin among blocks, as of the paper's areas: a half, a quarter and a quarter."""


class Squares(NamedTuple):
    """The squares of some patches of one tile."""

    patch_ids: Sequence[str]
    """Their ids, n."""
    epsg: int
    """CRS of the tile."""
    left: NDArray[np.int64]
    """West edges, (n,), metres."""
    top: NDArray[np.int64]
    """North edges, (n,), metres."""
    side_m: int
    """Side of a square, metres."""
    corner: tuple[int, int]
    """West and north edge of the tile, metres."""


class SplitRule(Protocol):
    """Decides to which split patches belong."""

    def identity(self) -> dict[str, str]:
        """What tells it from other rules; nothing of the paper's."""
        ...

    def splits_of(self, squares: Squares) -> NDArray[np.str_]:
        """``train``, ``validation`` or ``test`` of each square, (n,).

        Raises:
            SourceError: If the rule says nothing of a patch.
        """
        ...


@dataclass(frozen=True, slots=True)
class PaperSplit:
    """The paper's: the outer frame of a tile is train, the next one validation, the middle test."""

    def identity(self) -> dict[str, str]:
        """Nothing: it is what there is without a word."""
        return {}

    def splits_of(self, squares: Squares) -> NDArray[np.str_]:
        """By the place of the centre in the tile."""
        west, north = squares.corner
        half = squares.side_m / 2
        return grid.split_of_centres(squares.left - west + half, north - squares.top + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSplit:
    """Blocks of a UTM zone: each is drawn by itself, a half of them for train, a quarter each for the others.

    Tiles that overlap within a zone share their blocks. A patch belongs to the block that its centre lies in.
    """

    side_m: int
    """Side of a block, metres."""
    seed: int = 0
    """Another one draws anew."""

    def __post_init__(self) -> None:
        if self.side_m < 1:
            raise ValueError(f"the side of a block must be at least 1 m, got {self.side_m}")

    def identity(self) -> dict[str, str]:
        """Side and seed."""
        return {"split": f"blocks of {self.side_m} m, seed {self.seed}"}

    def splits_of(self, squares: Squares) -> NDArray[np.str_]:
        """By the block of the centre."""
        half = squares.side_m / 2
        x = np.floor((squares.left + half) / self.side_m).astype(np.int64)
        y = np.floor((squares.top - half) / self.side_m).astype(np.int64)
        blocks, which = np.unique(np.stack([x, y], axis=1), axis=0, return_inverse=True)
        drawn = [self._draw(squares.epsg, *block) for block in blocks.tolist()]
        return np.array(drawn, np.str_)[which.reshape(-1)]

    def _draw(self, epsg: int, x: int, y: int) -> str:
        digest = hashlib.sha256(f"{self.seed} {epsg} {self.side_m} {x} {y}".encode()).digest()
        # Of one digest, so that no other block and no library matters.
        share = int.from_bytes(digest[:8], "big") / 2**64
        return SPLITS[sum(share >= begin for begin in _SHARES)]


@dataclass(frozen=True, slots=True)
class TableSplit:
    """A table of the user's with the columns ``patch_id`` and ``split``: Parquet, or CSV with a header."""

    path: Path
    """The file."""

    def identity(self) -> dict[str, str]:
        """The file's."""
        return identify("split", self.path)

    def splits_of(self, squares: Squares) -> NDArray[np.str_]:
        """As the table says."""
        known = _read_table(self.path, self.path.stat().st_mtime_ns)
        if lacking := [one for one in squares.patch_ids if one not in known]:
            raise SourceError(
                f"{self.path}: says nothing of {lacking[0]} ({len(lacking):,} patches of its product are missing); "
                "each patch needs a split: add a row for it"
            )
        return np.array([known[one] for one in squares.patch_ids], np.str_)


def open_split(text: str, *, block_m: int | None = None) -> SplitRule:
    """The rule that a word or a path names.

    Args:
        text: ``paper``, ``blocks``, or the path of a table (`TableSplit`).
        block_m: Side of a block, metres, for ``blocks``.

    Raises:
        ValueError: If blocks have no size, or others have one.
        FileNotFoundError: If there is no such table.
        SourceError: If it is none.
    """
    if (text == "blocks") != (block_m is not None):
        raise ValueError(
            "--split-rule blocks needs the side of a block in metres (--block-size), and only it takes one"
        )
    if text == "paper":
        return PaperSplit()
    if block_m is not None:
        return BlockSplit(side_m=block_m)
    path = local_path(text, "a table of splits")
    if not path.is_file():
        raise FileNotFoundError(
            f"{text}: no such table; --split-rule is paper, blocks, or a table with patch_id and split"
        )
    _read_table(path, path.stat().st_mtime_ns)
    return TableSplit(path)


@lru_cache(maxsize=2)
def _read_table(path: Path, changed_ns: int) -> dict[str, str]:  # noqa: ARG001 - tells a file from one in its place
    """Patch id -> split; read once for many products."""
    name = os.fspath(path)
    try:
        is_text = path.suffix.lower() == ".csv"
        table = pyarrow.csv.read_csv(path) if is_text else parquet.read_table(path, name=name)
        ids, splits = (table[column].cast(pa.string()) for column in ("patch_id", "split"))
    except (pa.ArrowInvalid, KeyError) as error:
        raise SourceError(f"{name}: not a table with patch_id and split ({error})") from error
    try:
        check_names(pc.unique(splits).to_pylist(), SPLITS, "split")
    except ValueError as error:
        raise SourceError(f"{name}: {error}") from error
    found = dict(zip(ids.to_pylist(), splits.to_pylist(), strict=True))
    if len(found) != table.num_rows:
        raise SourceError(f"{name}: a patch stands in several rows")
    return found
