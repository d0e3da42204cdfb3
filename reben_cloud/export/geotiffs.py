"""A selection as GeoTIFF files: several bands in one, or a band each in the official folders."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from reben_cloud.bigearthnet.official_files import encode_official, has_official_files
from reben_cloud.export.copying import Progress
from reben_cloud.export.filewise import EachPatch, FilesReport, export_files
from reben_cloud.export.pixels import PatchPixels
from reben_cloud.export.plan import modalities_of
from reben_cloud.export.qgis_style import ENDING, Look, style_of
from reben_cloud.formats.geotiff import DTYPES, encode_bands
from reben_cloud.schema import Array, Classes, Schema, TensorSpec
from reben_cloud.views.resize import nearest

if TYPE_CHECKING:
    from pathlib import Path

    from reben_cloud.root.selection import Selection

Per = Literal["array", "modality", "patch", "band"]
"""What a file is of."""


def export_geotiff(
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    modalities: Sequence[str] | None = None,
    per: Per = "array",
    cog: bool = False,
    update: bool = False,
    prune: bool = False,
    threads: int = 6,
    progress: Progress | None = None,
) -> FilesReport:
    """Write the patches as GeoTIFFs: georeferenced, compressed without loss, bands with their names.

    ``array``: ``PRODUCT/PATCH_ARRAY.tif``, a file for each batch array, so for each sensor and pixel size, values
    as they are. ``modality``: ``PRODUCT/PATCH_MODALITY.tif``, all bands of a modality. ``patch``:
    ``PRODUCT/PATCH.tif``, all bands of all modalities. In both, coarser bands are brought to the finest pixels
    by repeating theirs (nearest), and all to one dtype that holds them exactly. ``band``: a file for each band
    in the official folders and the official profile, for reBEN alone; `reben-cloud build` takes that as a source.

    A file declares the fill value of its tensors as nodata. Where they have several, it declares NaN, and
    pixels without data are that, if it is of floats; otherwise it declares none. A file of one map of classes
    alone has their colours in a colour table, if the map is of uint8. Where it has more bits a table would take 400 KB,
    so a style for QGIS stands beside the file, ``NAME.qml``, which QGIS takes without being told.

    The rest is as with `export_png`. Needs the extra ``geo``.

    Args:
        selection: What to export.
        path: The new folder, or an earlier export of the same root.
        modalities: Of the dataset's; all by default. Each must consist of images.
        per: What a file is of.
        cog: Write cloud-optimised GeoTIFFs; not with ``band``, whose profile is given.
        update: Add what an existing export lacks.
        prune: Drop what is not selected from an existing export.
        threads: Patches are fetched and written by so many threads, at least 1.
        progress: Wraps the iterable of finished parts.

    Raises:
        NotFoundError: If nothing is selected; it names the condition that left nothing.
        ValueError: If a modality is not there or not of images, or they do not fit one file.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
        ChecksumError: If the dataset is damaged.
        MissingExtraError: If rasterio is not installed.
    """
    names = modalities_of(selection, modalities)
    schemas = [selection.dataset.schema, *(one.manifest.schema for one in selection.dataset.layers.values())]
    maps = {one.map_array for one in schemas if one is not None and one.map_array is not None}
    maker = GeotiffMaker(selection.dataset.schema.only(names), per=per, cog=cog, maps=maps)
    return export_files(
        selection, path, maker, update=update, prune=prune, threads=threads, progress=progress
    )


class _File(NamedTuple):
    """A file of every patch."""

    ending: str
    """What follows the patch's name."""
    tensors: tuple[tuple[str, TensorSpec], ...]
    """(Modality, tensor), in the order of the bands."""
    size: int
    """Pixels a side."""
    dtype: np.dtype[Any]
    """Of all bands."""
    nodata: float | None
    """What is declared; None where nothing is."""
    colors: Mapping[int, tuple[int, int, int]] | None = None
    """Code -> red, green and blue; None where there is no colour table."""
    style: Mapping[int, Look] | None = None
    """Code -> how QGIS shows it; None where there is no style beside the file."""


class GeotiffMaker:
    """Makes the GeoTIFFs of patches.

    Args:
        schema: What the files are to have.
        per: What a file is of.
        cog: Whether they are cloud-optimised.
        maps: Batch arrays whose pixels are codes of the schema's classes.

    Raises:
        ValueError: If that cannot be.
    """

    kind = "geotiff"
    """Form of the export."""

    def __init__(self, schema: Schema, *, per: Per, cog: bool, maps: Collection[str] = ()) -> None:
        if per not in ("array", "modality", "patch", "band"):
            raise ValueError(f"per must be array, modality, patch or band, got {per!r}")
        if per == "band" and cog:
            raise ValueError("files of the official profile are not cloud-optimised: leave out one of both")
        if per == "band" and not has_official_files(schema):
            raise ValueError(
                f"the official folders are those of reBEN, and {schema.name} has other modalities or tensors; "
                "write a file per array"
            )
        self._schema, self._per, self._cog = schema, per, cog
        files = () if per == "band" else _files(schema, per)
        coded = {
            (m.name, array.tensors) for m in schema.modalities for array in m.arrays if array.name in maps
        }
        self._files = tuple(
            _in_colors(file, schema.classes) if _is_one_of(file, coded) else file for file in files
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the files are made of."""
        return self._schema.modality_names

    @property
    def settings(self) -> dict[str, Any]:
        """What is in which file, as JSON has it."""
        bands = {
            file.ending: {
                "bands": [tensor.name for _, tensor in file.tensors],
                "size": file.size,
                "dtype": file.dtype.name,
                "nodata": "nan" if file.nodata is not None and math.isnan(file.nodata) else file.nodata,
                **(
                    {}
                    if file.colors is None
                    else {"colors": {str(code): c for code, c in file.colors.items()}}
                ),
                **(
                    {}
                    if file.style is None
                    else {"style": {str(code): list(look) for code, look in file.style.items()}}
                ),
            }
            for file in self._files
        }
        return {"per": self._per, "cog": self._cog, "resampling": "nearest", "files": bands}

    def start(self, chosen: Selection) -> None:
        """Nothing: every patch has all files."""

    def survey(self, each_patch: EachPatch) -> dict[str, Any]:  # noqa: ARG002
        """Nothing to look at first."""
        return {}

    def make(self, patch: PatchPixels, survey: Mapping[str, object]) -> dict[str, bytes]:  # noqa: ARG002
        """The files of a patch."""
        if self._per == "band":
            return encode_official(
                patch.tensors,
                product=patch.product,
                names=patch.names,
                epsg=patch.epsg,
                left=patch.left,
                top=patch.top,
            )
        styles = {
            patch.path(file.ending.removesuffix(".tif") + ENDING): style_of(file.style)
            for file in self._files
            if file.style is not None
        }
        return {patch.path(file.ending): self._encode(file, patch) for file in self._files} | styles

    def finish(self, partial: Path, progress: Progress) -> dict[str, Any]:  # noqa: ARG002
        """Nothing to write once."""
        return {}

    def _encode(self, file: _File, patch: PatchPixels) -> bytes:
        bands = [
            _band(patch.tensors[modality][tensor.name], tensor, file) for modality, tensor in file.tensors
        ]
        return encode_bands(
            np.stack(bands),
            epsg=patch.epsg,
            left=patch.left,
            top=patch.top,
            pixel_m=self._schema.patch_m / file.size,
            names=[tensor.name for _, tensor in file.tensors],
            units=[tensor.units for _, tensor in file.tensors],
            nodata=file.nodata,
            cog=self._cog,
            colors=file.colors,
        )


def _band(values: Array, tensor: TensorSpec, file: _File) -> Array:
    pixels = nearest(values, file.size).astype(file.dtype)
    if file.nodata is not None and math.isnan(file.nodata) and not math.isnan(tensor.fill):
        pixels[pixels == tensor.fill] = file.nodata
    return pixels


def _is_one_of(file: _File, coded: Collection[tuple[str, tuple[str, ...]]]) -> bool:
    """Whether a file is of one of these maps alone: (modality, names of its tensors)."""
    ((modality, tensor), *others) = file.tensors
    return not others and (modality, (tensor.name,)) in coded


def _in_colors(file: _File, classes: Classes) -> _File:
    """A file of a map of classes, with their colours: in a colour table where that is small, else in a style."""
    if not classes.colors:
        return file
    if file.dtype != np.uint8:
        every = zip(classes.names, classes.colors, classes.codes, strict=True)
        return file._replace(
            style={code: Look(color, name) for name, color, codes in every for code in codes}
        )
    colors: dict[int, tuple[int, int, int]] = {}
    for codes, color in zip(classes.codes, classes.colors, strict=True):
        red, green, blue = bytes.fromhex(color[1:])
        colors |= dict.fromkeys(codes, (red, green, blue))
    return file._replace(colors=colors)


def _files(schema: Schema, per: Per) -> tuple[_File, ...]:
    for modality in schema.modalities:
        for tensor in modality.tensors:
            if tensor.pixel_m is None or len(tensor.shape) != 2 or tensor.shape[0] != tensor.shape[1]:
                raise ValueError(
                    f"modality {modality.name} is not made of images alone: {tensor.name} has shape "
                    f"{tensor.shape}; name the modalities that are"
                )
            if tensor.dtype not in DTYPES:
                raise ValueError(
                    f"modality {modality.name}: a GeoTIFF has no {tensor.dtype}, which {tensor.name} is"
                )
    if per == "patch":
        every = tuple((m.name, tensor) for m in schema.modalities for tensor in m.tensors)
        return (_file(".tif", every),)
    if per == "modality":
        return tuple(
            _file(f"_{m.name}.tif", tuple((m.name, tensor) for tensor in m.tensors))
            for m in schema.modalities
        )
    return tuple(
        _file(f"_{array.name}.tif", tuple((m.name, m.specs[name]) for name in array.tensors))
        for m in schema.modalities
        for array in m.arrays
    )


def _file(ending: str, tensors: tuple[tuple[str, TensorSpec], ...]) -> _File:
    specs = [tensor for _, tensor in tensors]
    size = max(tensor.shape[0] for tensor in specs)
    uneven = [tensor for tensor in specs if size % tensor.shape[0]]
    if uneven:
        raise ValueError(
            f"{uneven[0].name} has {uneven[0].shape[0]} pixels a side, of which {size} cannot be made by repeating; "
            "write a file per array"
        )
    dtype = np.result_type(*(tensor.storage for tensor in specs))
    inexact = [t for t in specs if dtype.kind == "f" and t.storage.kind in "iu" and t.storage.itemsize > 4]
    if inexact or dtype.name not in DTYPES:
        names = ", ".join(f"{tensor.name} {tensor.dtype}" for tensor in specs)
        raise ValueError(f"no dtype of a GeoTIFF holds {names} exactly; write a file per array")
    fills = {tensor.fill for tensor in specs}  # a schema's NaN is always the same object
    nodata: float | None = fills.pop() if len(fills) == 1 else math.nan if dtype.kind == "f" else None
    return _File(ending, tensors, size, dtype.newbyteorder("="), nodata)
