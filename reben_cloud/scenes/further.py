"""Further rasters, such as elevation or images of another sensor, as array layers beside the root of a preparation.

A layer is what `layers.ways.write_raster_layer` makes of the root and the raster, and nothing else: the same bytes come
of the same raster given to the finished root.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.build import Progress, silent
from reben_cloud.layers.describe import check_layer_name
from reben_cloud.layers.raster import open_raster
from reben_cloud.layers.ways import write_raster_layer
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layers import Layer
from reben_cloud.root.manifest import Manifest
from reben_cloud.scenes.land_cover import PIXEL_M
from reben_cloud.store import Store

_TAKEN = {*REBEN.modality_names, *(array.name for one in REBEN.modalities for array in one.arrays)}
"""What patches have of their own, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FurtherRaster:
    """One raster that becomes a layer."""

    name: str
    """Name of the layer, and of its array in batches."""
    raster: str
    """A GeoTIFF, a VRT or a Zarr store of any CRS: a path, or a URL that GDAL or xarray opens."""
    resampling: str = "bilinear"
    """One of `layers.raster.RESAMPLINGS`."""
    pixel_m: float = float(PIXEL_M)
    """Side of a pixel of the layer, metres; divides the side of a patch."""

    def __post_init__(self) -> None:
        check_layer_name(self.name)

    def check(self, *, patch_m: int) -> None:
        """Look at the raster before hours go into the patches; no pixel is read.

        Args:
            patch_m: Side of a patch, metres.

        Raises:
            FileNotFoundError, SourceError, ValueError: As `layers.raster.open_raster`.
            ValueError: If patches have something else of its name.
        """
        if self.name in _TAKEN:
            raise ValueError(f"a layer cannot be named {self.name!r}: patches have something of that name")
        open_raster(self.raster, resampling=self.resampling, pixel_m=self.pixel_m, side_m=patch_m)


def parse_rasters(
    given: Sequence[str], *, resamplings: Sequence[str] = (), pixels: Sequence[str] = ()
) -> tuple[FurtherRaster, ...]:
    """The rasters that the command line names.

    Args:
        given: ``NAME=RASTER`` each.
        resamplings: ``NAME=WAY`` for those that are not interpolated bilinearly.
        pixels: ``NAME=METRES`` for those whose pixels are not of 10 m.

    Raises:
        ValueError: If one is none, comes twice, or is of a raster that is not given.
    """
    rasters = _pairs(given, "--layer", "NAME=RASTER")
    ways = _pairs(resamplings, "--layer-resampling", "NAME=WAY", known=rasters)
    sizes = _pairs(pixels, "--layer-pixel", "NAME=METRES", known=rasters)
    return tuple(
        FurtherRaster(
            name=name,
            raster=raster,
            resampling=ways.get(name, "bilinear"),
            pixel_m=_metres(name, sizes.get(name, str(PIXEL_M))),
        )
        for name, raster in rasters.items()
    )


def _metres(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--layer-pixel is NAME=METRES, got {f'{name}={text}'!r}") from None


def layer_url(root: Store, name: str) -> str:
    """Where the layer of a name goes: beside the root, in the folder or below the prefix ``<root>.layers``.

    Args:
        root: The root.
        name: Name of the layer.
    """
    above, own = root.parent()
    return above.child(f"{own}.layers/{name}").url


def write_further(
    root: Store,
    manifest: Manifest,
    rasters: Sequence[FurtherRaster],
    *,
    scratch: Path | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> list[Layer]:
    """Write a layer of each raster beside a published root; layers that are there of the same are left as they are.

    Args:
        root: The root.
        manifest: Its manifest.
        rasters: What layers are made of.
        scratch: Folder for what is in no shard yet; a temporary one by default.
        workers: Processes that sample.
        progress: Wraps what comes one by one.

    Raises:
        SourceError: If a raster cannot be read, or has values for no patch.
        ConflictError: If another layer is where one is to go.
        StorageError: If the store fails.
    """
    dataset = Dataset(root, manifest)
    return [
        write_raster_layer(
            layer_url(root, one.name), dataset, one.raster, name=one.name, resampling=one.resampling,
            pixel_m=one.pixel_m, storage_options=root.storage_options, scratch=scratch, workers=workers,
            progress=progress,
        )
        for one in rasters
    ]  # fmt: skip


def _pairs(
    given: Sequence[str], option: str, form: str, *, known: dict[str, str] | None = None
) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option} is {form}, got {text!r}")
        if name in found:
            raise ValueError(f"{option}: {name} is given twice")
        if known is not None and name not in known:
            raise ValueError(f"{option}: no --layer is called {name}; there are {', '.join(known) or 'none'}")
        found[name] = value
    return found
