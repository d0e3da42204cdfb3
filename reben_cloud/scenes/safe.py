"""A Sentinel-2 Level-2A product in its SAFE folder: its facts, and its twelve bands as patches hold them.

Facts come from the product's metadata (`safe_metadata` reads it), never from its name or baseline:
products that sen2cor made outside the ground segment are called ``N9999`` and carry no offset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.bands import BANDS
from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.scenes import safe_metadata
from reben_cloud.scenes.area import Bounds
from reben_cloud.scenes.jp2 import read_image
from reben_cloud.scenes.product import ProductFacts
from reben_cloud.scenes.provenance import identify


@dataclass(frozen=True, kw_only=True, slots=True)
class SafeProduct(ProductFacts):
    """One Level-2A product; its pixels stay in their files until they are read."""

    path: Path
    """The ``.SAFE`` folder."""
    images: Mapping[str, Path]
    """Band -> JP2 file, at its native resolution."""
    masks: Mapping[str, Path]
    """``SCL`` (scene classification) and ``CLD`` (cloud probability) -> JP2 file at 20 m, of those that there are."""
    metadata: tuple[Path, ...]
    """Files that all this was read from."""
    checksums: Mapping[Path, tuple[str, str]]
    """File -> algorithm and hexadecimal digest, from ``manifest.safe``; empty without one."""

    @property
    def where(self) -> str:
        """Name of its folder."""
        return self.path.name

    @property
    def is_checked(self) -> bool:
        """Whether its manifest has checksums."""
        return bool(self.checksums)

    def inputs(self, *, masks: bool) -> dict[str, str]:
        """Its generation and files, with the masks or without."""
        found = {"generation time": self.generation}
        for path in (*self.files, *(self.masks.values() if masks else ())):
            found |= identify("Sentinel-2", path)
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that patches are made from."""
        return (*self.metadata, *self.images.values())

    def read_band(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint16]:  # noqa: ARG002
        """All pixels of a band, raw digital numbers with the product's offset applied; an image is decoded as a whole.

        Where an offset applies, valid pixels stay above 0, which means nodata.

        Returns:
            uint16 (height, width) at the band's native resolution.

        Raises:
            SourceError: If the image is not readable, not of the size or at the place that the metadata states,
                or has no data.
        """
        pixel_m = BANDS[name].resolution_m
        path = self.images[name]
        pixels: NDArray[np.uint16] = read_image(
            path, shape=self.shapes[pixel_m], epsg=self.epsg, left=self.left, top=self.top, pixel_m=pixel_m,
            checksum=self.checksums.get(path),
        )  # fmt: skip
        if not pixels.any():
            raise SourceError(
                f"{path.name}: every pixel is 0, which means nodata; band {name} is empty, fetch the product again or "
                "leave it out"
            )
        return shifted(pixels, self.offsets.get(name, 0))

    def read_mask(self, name: str, *, within: Bounds | None = None) -> NDArray[np.uint8] | None:  # noqa: ARG002
        """All pixels of a mask, None if the product has no such.

        Args:
            name: ``SCL`` or ``CLD``.
            within: As for `read_band`.

        Returns:
            uint8 (height, width) of 20 m pixels.

        Raises:
            SourceError: If the image is not readable, or not of the size or at the place that the metadata states.
        """
        path = self.masks.get(name)
        if path is None:
            return None
        pixels: NDArray[np.uint8] = read_image(
            path, shape=self.shapes[20], epsg=self.epsg, left=self.left, top=self.top, pixel_m=20,
            checksum=self.checksums.get(path), dtype="uint8",
        )  # fmt: skip
        return pixels


def shifted(pixels: NDArray[np.uint16], offset: int) -> NDArray[np.uint16]:
    """Digital numbers with an offset added: valid ones stay above 0, which is nodata and stays so."""
    if not offset:
        return pixels
    moved = np.clip(pixels.astype(np.int32) + offset, 1, 65_535)
    return np.where(pixels != 0, moved, 0).astype(np.uint16)


def open_safe(path: str | os.PathLike[str]) -> SafeProduct:
    """What a product's metadata says; every named image is looked for, none is read.

    Args:
        path: The ``.SAFE`` folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        SourceError: If it is not a Level-2A product, lacks a band, a size or a CRS, or mixes tiles.
    """
    folder = local_path(path, "a Sentinel product")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such product folder")
    main = folder / "MTD_MSIL2A.xml"
    if not main.exists():
        level1 = (folder / "MTD_MSIL1C.xml").exists()
        hint = "it is Level-1C, give it as --l1c" if level1 else "is it a Sentinel-2 L2A .SAFE folder?"
        raise SourceError(f"{folder.name}: no MTD_MSIL2A.xml; {hint}")
    product = safe_metadata.parse_xml(main)
    name = safe_metadata.read_name(product, main)
    begin = safe_metadata.read_start(product, main, name)
    tile = safe_metadata.find_tile(folder)
    epsg, left, top, shapes = safe_metadata.read_place(tile, folder.name, name.square)
    safe_metadata.check_tile(tile, folder.name, name.square, begin)
    safe_metadata.check_values(product, main)
    manifest = folder / "manifest.safe"
    return SafeProduct(
        path=folder,
        name=name.product,
        generation=name.generation,
        square=name.square,
        time=begin,
        datastrip=safe_metadata.read_datastrip(product, tile, folder.name),
        epsg=epsg,
        left=left,
        top=top,
        shapes=shapes,
        images=safe_metadata.find_images(product, folder, name, tile.parent.name),
        masks=safe_metadata.find_masks(product, folder, tile),
        offsets=safe_metadata.read_offsets(product, folder.name, baseline=name.baseline),
        metadata=(main, tile, *([manifest] if manifest.exists() else [])),
        checksums=safe_metadata.read_checksums(folder),
        failed_checks=safe_metadata.read_failed_checks(product),
    )
