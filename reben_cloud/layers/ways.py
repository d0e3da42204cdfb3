"""Array layers made of what people have: one raster for all patches, or a folder with a GeoTIFF per patch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.build import Progress, local, silent
from reben_cloud.errors import SourceError
from reben_cloud.layers.array_work import Values
from reben_cloud.layers.describe import check_layer_name
from reben_cloud.layers.folder import open_folder
from reben_cloud.layers.inputs import InputFiles
from reben_cloud.layers.raster import RasterSource, Sampled, open_raster
from reben_cloud.layers.squares import Squares
from reben_cloud.layers.write import write_layer
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layers import Layer
from reben_cloud.schema import TensorSpec

_FILES_AT_ONCE = 256
"""Files that are handed out to threads at a time."""


def write_raster_layer(
    dest: str | os.PathLike[str],
    ds: Dataset,
    raster: str | os.PathLike[str],
    *,
    name: str,
    resampling: str,
    pixel_m: float,
    bands: Sequence[str] | None = None,
    nodata: float | None = None,
    partial: bool = False,
    is_map: bool = False,
    title: str = "",
    units: str | None = None,
    storage_options: Mapping[str, object] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Layer:
    """Sample a raster onto the grid of every patch, as an array layer; a killed run goes on where it was.

    Patches that the raster does not cover as a whole (or not at all, with `partial`) are absent.

    Args:
        dest: Path or URL of the layer.
        ds: The root that it is for, or an export of it.
        raster: A GeoTIFF, a VRT or a Zarr store of any CRS; `layers.raster.open_raster` tells more, also of `bands`,
            `nodata` and `partial`.
        name: Name of the layer.
        resampling: One of `layers.raster.RESAMPLINGS`, such as ``bilinear`` for heights or ``mode`` for classes.
        pixel_m: Side of a pixel, metres; divides the side of a patch.
        bands: Bands to take; all by default.
        nodata: Value that stands for none, where the raster does not say.
        partial: Keep patches of which the raster has a part.
        is_map: Whether its pixels are codes of the dataset's classes.
        title: What it is, for people.
        units: Units of the values, such as ``m``.
        storage_options: Credentials and endpoint of `dest`.
        scratch: As for `write_layer`.
        workers: Processes that sample.
        progress: Wraps what comes one by one.

    Raises:
        SourceError: If the raster cannot be read, or has values for no patch.
        ValueError: If an argument is none of what it may be.
        ConflictError, StorageError: As `write_layer`.
    """
    check_layer_name(name)  # tensors are called after it
    source = open_raster(
        raster,
        resampling=resampling,
        pixel_m=pixel_m,
        side_m=ds.schema.patch_m,
        bands=bands,
        nodata=nodata,
        partial=partial,
    )
    shape = source.size, source.size
    tensors = _images(
        _tensor_names(name, source.bands), shape, source.dtype, units=units, fill=source.fill, pixel_m=pixel_m
    )
    inputs = InputFiles.of_raster(source.path)
    squares = squares_of(ds)
    ids = ds.selection.patch_ids
    row_of = {patch_id: row for row, patch_id in enumerate(ids)}

    def patches(wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
        rows = np.array([row_of[patch_id] for patch_id in wanted], np.int64)
        jobs = (
            _Block(source, _some(squares, rows[block]), rows[block])
            for block in _some(squares, rows).blocks()
        )
        present = 0
        for block, found in local(workers)(_sample, jobs):
            for at in np.flatnonzero(found.present).tolist():
                present += 1
                pixels = found.pixels[at]
                yield ids[block[at]], {spec.name: pixels[band] for band, spec in enumerate(tensors)}
        inputs.require_unchanged()
        if len(wanted) == len(ids):
            source.require_some(present, len(ids))

    return write_layer(
        dest,
        ds,
        name=name,
        tensors=tensors,
        patches=patches,
        title=title,
        is_map=is_map,
        provenance={
            "raster": Path(source.path).name,
            "state": inputs.state,
            "bands": list(source.bands),
            "resampling": resampling,
            "pixel_m": pixel_m,
            "nodata": None if source.nodata is None else repr(source.nodata),
            "partial": partial,
        },
        storage_options=storage_options,
        scratch=scratch,
        progress=progress,
    )


def write_folder_layer(
    dest: str | os.PathLike[str],
    ds: Dataset,
    folder: str | os.PathLike[str],
    *,
    name: str,
    key: str | None = None,
    suffix: str | None = None,
    is_map: bool = False,
    title: str = "",
    units: str | None = None,
    allow_missing: int = 0,
    storage_options: Mapping[str, object] | None = None,
    scratch: str | os.PathLike[str] | None = None,
    threads: int = 2,
    progress: Progress = silent,
) -> Layer:
    """Make an array layer of a folder with a GeoTIFF per patch, such as ben-ge's; a killed run goes on where it was.

    Args:
        dest: Path or URL of the layer.
        ds: The root that it is for, or an export of it.
        folder: The folder; files are ``<name><suffix>.tif``.
        name: Name of the layer.
        key: What the names are: ``patch_id``, ``s1_name`` or ``s2v1_name``; looked for by default.
        suffix: What follows the names, such as ``_dem``; looked for by default.
        is_map: Whether its pixels are codes of the dataset's classes.
        title: What it is, for people.
        units: Units of the values.
        allow_missing: How many files may be of no patch before that is an error; they are left out.
        storage_options: Credentials and endpoint of `dest`.
        scratch: As for `write_layer`.
        threads: Files that are read at a time.
        progress: Wraps what comes one by one.

    Raises:
        NotFoundError: If there is no such folder, or no GeoTIFF in it.
        SourceError: If names are of no patch or fit several ways, or a file is broken or of another place.
        InvalidPatchError: If a file has another shape or dtype than the first.
        ConflictError, StorageError: As `write_layer`.
    """
    check_layer_name(name)
    columns = [column for column in (layout.ID, *layout.OTHER_NAMES) if column in ds.patch_table.names]
    table = ds.selection.columns(columns)
    keys = {layout.field(column): table.column(column).to_pylist() for column in columns}
    source = open_folder(folder, keys, squares_of(ds), key=key, suffix=suffix)
    if source.num_unknown > allow_missing:
        raise SourceError(
            f"{folder}: {source.num_unknown:,} of its {source.num_unknown + len(source):,} files are no "
            f"{source.key} of a patch of {ds.url}, the first is {source.first_unknown}; files of more patches, such as "
            f"all of version 1, may be meant so: allow_missing={source.num_unknown} (--allow-missing) leaves them out"
        )
    names = _tensor_names(name, [str(band + 1) for band in range(source.shape[0])])
    fill = 0.0 if source.nodata is None else source.nodata
    tensors = _images(names, source.shape[1:], source.dtype, units=units, fill=fill, pixel_m=source.pixel_m)
    ids = keys["patch_id"]
    inputs = InputFiles(source.path, source.files)

    def patches(wanted: Sequence[str]) -> Iterator[tuple[str, Values]]:
        left = set(wanted)
        rows = source.rows.tolist()
        positions = [position for position, row in enumerate(rows) if ids[row] in left]
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(positions), _FILES_AT_ONCE):
                some = positions[start : start + _FILES_AT_ONCE]
                for position, pixels in zip(some, pool.map(source.read, some), strict=True):
                    yield ids[rows[position]], dict(zip(names, pixels, strict=True))
        inputs.require_unchanged()

    return write_layer(
        dest,
        ds,
        name=name,
        tensors=tensors,
        patches=patches,
        title=title,
        is_map=is_map,
        provenance={
            "folder": Path(folder).resolve().name,
            "key": source.key,
            "suffix": source.suffix,
            "files": len(source),
            "state": inputs.state,
        },
        storage_options=storage_options,
        scratch=scratch,
        progress=progress,
    )


def squares_of(ds: Dataset) -> Squares:
    """The square of every patch of a dataset, in the order of its table."""
    table = ds.selection.columns(["proj:code", "proj:bbox"])
    codes = pc.utf8_slice_codeunits(table.column("proj:code").cast(pa.string()), len("EPSG:"))
    corners = pc.list_flatten(table.column("proj:bbox")).to_numpy().reshape(-1, 4)
    return Squares(
        epsg=codes.cast(pa.int64()).to_numpy(),
        left=corners[:, 0],
        top=corners[:, 3],
        side_m=ds.schema.patch_m,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Neighbouring patches that a process samples."""

    source: RasterSource
    squares: Squares
    rows: NDArray[np.int64]
    """Which patches of the root they are."""


def _sample(block: _Block) -> tuple[NDArray[np.int64], Sampled]:
    return block.rows, block.source.sample(block.squares)


def _some(squares: Squares, rows: NDArray[np.int64]) -> Squares:
    return Squares(
        epsg=squares.epsg[rows], left=squares.left[rows], top=squares.top[rows], side_m=squares.side_m
    )


def _images(
    names: Sequence[str],
    shape: tuple[int, int],
    dtype: str,
    *,
    units: str | None,
    fill: float,
    pixel_m: float,
) -> tuple[TensorSpec, ...]:
    """The tensors of bands that are alike."""
    return tuple(
        TensorSpec(name=name, shape=shape, dtype=dtype, units=units, fill=fill, pixel_m=pixel_m)
        for name in names
    )


def _tensor_names(name: str, bands: Sequence[str]) -> list[str]:
    """Names of the tensors: the layer's for a single band; the bands' own, after the layer's where they are numbers."""
    if len(bands) == 1:
        return [name]
    own = [re.sub(r"[^A-Za-z0-9_.-]+", "_", band) for band in bands]
    return [band if re.match(r"[A-Za-z_]", band) else f"{name}_{band}" for band in own]
