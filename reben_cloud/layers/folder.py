"""A folder with a GeoTIFF per patch, ``<name><suffix>.tif``: which column the names are of, and the pixels by patch.

Names are looked up, never taken apart or rebuilt: those of BigEarthNet v1 do not follow from anything. A file is a
patch's where its name begins with the patch's name in one of the key columns; what follows is the suffix, the same
for all. Every file must lie on the square of its patch, to within `TOLERANCE_M`.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.errors import InvalidPatchError, NotFoundError, SourceError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.files.paths import local_path
from reben_cloud.layers.raster_files import import_rasterio, unreadable
from reben_cloud.layers.squares import Square, Squares

TOLERANCE_M = 0.1
"""How far the edges of a file may be from those of its patch's square, metres: a hundredth of a 10 m pixel. Those of
ben-ge are within 0.02 m."""

_ENDINGS = (".tif", ".tiff")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FolderSource:
    """A folder of GeoTIFFs that was understood; made by `open_folder`. Any number of threads may read from it."""

    path: Path
    """The folder."""
    key: str
    """The column that its names are of."""
    suffix: str
    """What follows a name, before the ending, e.g. ``_dem``."""
    rows: NDArray[np.int64]
    """Rows of the patches that have a file, rising, (n,)."""
    files: tuple[str, ...]
    """Name of the file of each of `rows`."""
    squares: Squares
    """The squares of all patches."""
    dtype: str
    """NumPy dtype of all files, taken from the first one."""
    shape: tuple[int, int, int]
    """(band, y, x) of all files."""
    bands: tuple[str, ...]
    """Descriptions of the bands of all files, empty where a band has none."""
    nodata: float | None
    """Value that stands for none in all files."""
    num_unknown: int
    """Files with the suffix whose names are of no patch, such as those that only v1 has."""
    first_unknown: str | None
    """One of them."""
    num_left_out: int
    """Other files and folders beside them, without clutter."""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def pixel_m(self) -> float:
        """Side of a pixel, metres."""
        return self.squares.side_m / self.shape[1]

    def read(self, position: int) -> NDArray[Any]:
        """The pixels of the patch in `rows[position]`, (band, y, x).

        Raises:
            SourceError: If the file cannot be read, is of another place, or has a mask or scaled values.
            InvalidPatchError: If its dtype, shape, bands or nodata value are not those of the first file.
        """
        rasterio = import_rasterio()
        path = self.path / self.files[position]
        try:
            with rasterio.open(path) as file:
                if (found := _form(file)) != (self.dtype, self.shape):
                    raise InvalidPatchError(
                        f"{path}: must be {self.dtype} of shape {self.shape} as {self.files[0]} is, got {found[0]} of "
                        f"shape {found[1]}"
                    )
                said = _said_of_values(path, file)
                if said != (self.bands, repr(self.nodata)):
                    raise InvalidPatchError(
                        f"{path}: must have the bands {self.bands} and nodata {self.nodata} as {self.files[0]} has, "
                        f"got {said[0]} and {said[1]}; write all files alike (gdal_translate -b, -a_nodata)"
                    )
                _check_place(f"{path}", file, self.squares[int(self.rows[position])], self.squares.side_m)
                return np.asarray(file.read())
        except rasterio.errors.RasterioError as error:
            raise unreadable(f"{path}", error) from error

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(row, pixels) of every patch that has a file, by row. Raises as `read`."""
        for position, row in enumerate(self.rows.tolist()):
            yield row, self.read(position)


def open_folder(
    path: str | os.PathLike[str],
    keys: Mapping[str, Sequence[str]],
    squares: Squares,
    *,
    key: str | None = None,
    suffix: str | None = None,
) -> FolderSource:
    """The GeoTIFFs of patches in a folder, whatever column their names are of; opens the first of them.

    Args:
        path: The folder; what is in folders below it is not taken.
        keys: Column -> the name of each patch in it, e.g. of ``patch_id``, ``s1_name`` and ``s2v1_name``.
        squares: The square of each patch.
        key: The column, where names fit several.
        suffix: What follows the names, where they have several.

    Raises:
        NotFoundError: If there is no such folder, or no GeoTIFF in it.
        SourceError: If no name is of a patch, names fit several ways, a patch has several files, or the first file
            cannot be read or has no pixels of a square.
        ValueError: If `key` is none of `keys`.
    """
    folder = local_path(path, "the folder of GeoTIFFs")
    if key is not None and key not in keys:
        raise ValueError(f"the key must be one of {', '.join(keys)}, got {key!r}")
    stems, num_others = _list(folder)
    way, fitting = _way(folder, stems, _index(keys, key), suffix)
    key, suffix = way
    by_row: dict[int, str] = {}
    twice: list[tuple[str, str]] = []
    for name, row in fitting.items():
        if row in by_row:
            twice.append((by_row[row], name))
        by_row[row] = name
    if twice:
        raise SourceError(
            f"{folder}: {len(twice):,} {'patch has' if len(twice) == 1 else 'patches have'} several files, "
            f"the first {' and '.join(sorted(twice[0]))}; keep one"
        )
    rows = sorted(by_row)
    files = tuple(by_row[row] for row in rows)
    unknown = sorted(name for name, stem in stems.items() if stem.endswith(suffix) and name not in fitting)
    dtype, shape, bands, nodata = _first(folder / files[0])
    return FolderSource(
        path=folder, key=key, suffix=suffix, rows=np.array(rows, np.int64), files=files, squares=squares, dtype=dtype,
        shape=shape, bands=bands, nodata=nodata, num_unknown=len(unknown),
        first_unknown=unknown[0] if unknown else None, num_left_out=num_others + len(stems) - len(files) - len(unknown),
    )  # fmt: skip


def _list(folder: Path) -> tuple[dict[str, str], int]:
    """Name -> name without its ending, of the GeoTIFFs in a folder; and how much else is there."""
    stems: dict[str, str] = {}
    folders: list[str] = []
    num_others = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, ending = os.path.splitext(entry.name)
                if is_clutter(entry.name):
                    continue
                if ending.lower() in _ENDINGS:
                    stems[entry.name] = stem
                elif entry.is_dir():
                    folders.append(entry.name)
                else:
                    num_others += 1
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"{folder}: no such folder") from error
    if not stems:
        below = f"; there are folders in it ({', '.join(sorted(folders)[:5])}): name one" if folders else ""
        raise NotFoundError(f"{folder}: has no GeoTIFF (.tif){below}")
    return stems, num_others + len(folders)


def _index(keys: Mapping[str, Sequence[str]], key: str | None) -> dict[str, dict[str, int]]:
    """Column -> name -> row; a name that several patches have stands for none of them, -1."""
    found = {}
    for column, names in keys.items():
        if key not in (None, column):
            continue
        rows = {name: row for row, name in enumerate(names)}
        if len(rows) < len(names):
            rows |= {name: -1 for name, count in Counter(names).items() if count > 1}
        rows.pop("", None)
        found[column] = rows
    return found


def _way(
    folder: Path, stems: Mapping[str, str], index: Mapping[str, Mapping[str, int]], suffix: str | None
) -> tuple[tuple[str, str], dict[str, int]]:
    """The column and the suffix that the names have, and the row of each file that is a patch's."""
    ways: dict[tuple[str, str], dict[str, int]] = {}
    for name, stem in stems.items():
        cut = len(stem)
        while cut > 0:
            if suffix is None or stem[cut:] == suffix:
                for column, rows in index.items():
                    if (row := rows.get(stem[:cut])) is not None:
                        ways.setdefault((column, stem[cut:]), {})[name] = row
            cut = stem.rfind("_", 0, cut)
    columns = " or ".join(index)
    if not ways:
        wanted = "" if suffix is None else f" and {suffix!r}"
        raise SourceError(
            f"{folder}: none of its {len(stems):,} GeoTIFFs is named after a patch ({columns}{wanted}), the first is "
            f"{min(stems)}"
        )
    if len(ways) > 1:
        most = sorted(ways.items(), key=lambda way: (-len(way[1]), way[0]))
        said = "; ".join(f"{len(files):,} are {column} and {end!r}" for (column, end), files in most[:5])
        raise SourceError(
            f"{folder}: its names fit in {len(ways)} ways ({said}); say which is meant (suffix, key)"
        )
    ((way, files),) = ways.items()
    if shared := sorted(name for name, row in files.items() if row < 0):
        raise SourceError(
            f"{folder}: {len(shared):,} of its names are {way[0]} of several patches each; the first is {shared[0]}"
        )
    return way, files


def _first(path: Path) -> tuple[str, tuple[int, int, int], tuple[str, ...], float | None]:
    """Dtype, shape, bands and nodata value of the file that the others must be like."""
    rasterio = import_rasterio()
    try:
        with rasterio.open(path) as file:
            dtype, shape = _form(file)
            bands, _ = _said_of_values(path, file)
            nodata = file.nodata
    except rasterio.errors.RasterioError as error:
        raise unreadable(f"{path}", error) from error
    if shape[1] != shape[2]:
        raise SourceError(f"{path}: has {shape[1]} x {shape[2]} pixels, must be as many down as across")
    return dtype, shape, bands, nodata


def _form(file: Any) -> tuple[str, tuple[int, int, int]]:
    """Dtype and shape of an open raster."""
    dtypes = sorted(set(file.dtypes))
    return "/".join(dtypes), (file.count, file.height, file.width)


def _said_of_values(path: Path, file: Any) -> tuple[tuple[str, ...], str]:
    """Descriptions of the bands of an open raster, and its nodata value as `repr` has it, by which NaN equals NaN.

    Raises:
        SourceError: If it says more of its values than a layer carries: a scale, or a mask.
    """
    if any((scale, offset) != (1, 0) for scale, offset in zip(file.scales, file.offsets, strict=True)):
        raise SourceError(
            f"{path}: has a scale or an offset, which a layer does not carry; apply it first (gdal_translate -unscale "
            "-ot Float32)"
        )
    flags = import_rasterio().enums.MaskFlags
    if any(flags.per_dataset in said or flags.alpha in said for said in file.mask_flag_enums):
        raise SourceError(
            f"{path}: has a mask, which a layer does not carry; give what it hides a value of its own (gdal_translate "
            "-a_nodata, gdalwarp -dstnodata)"
        )
    return tuple(text or "" for text in file.descriptions), repr(file.nodata)


def _check_place(path: str, file: Any, square: Square, side_m: float) -> None:
    """That the edges of a raster are those of a square."""
    place = file.transform
    if file.crs is None or place.is_identity:
        raise SourceError(
            f"{path}: does not say where its pixels are, so nothing shows that it is its patch's"
        )
    if (epsg := _epsg(file.crs)) != square.epsg:
        raise SourceError(f"{path}: is in EPSG:{epsg}, its patch lies in EPSG:{square.epsg}")
    found = (place.c, place.f, place.c + place.a * file.width, place.f + place.e * file.height)
    wanted = (square.left, square.top, square.left + side_m, square.top - side_m)
    off = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    if place.b or place.d or off > TOLERANCE_M:
        raise SourceError(
            f"{path}: covers {_said(found)}, its patch {_said(wanted)}; is it the file of another patch?"
        )


def _said(edges: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = edges
    return f"{left:.1f} to {right:.1f} m east and {bottom:.1f} to {top:.1f} m north"


@functools.lru_cache(maxsize=128)
def _epsg(crs: Any) -> int | None:
    """PROJ searches its database for it, which takes longer than to read a patch."""
    code: int | None = crs.to_epsg()
    return code
