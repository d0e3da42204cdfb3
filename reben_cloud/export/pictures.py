"""A selection as PNG pictures: those that the dataset's `About` has recipes for, and its map."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from reben_cloud.about import Channel
from reben_cloud.bigearthnet.texts import Flip as Flip
from reben_cloud.export.copying import Progress
from reben_cloud.export.filewise import EachPatch, FilesReport, export_files
from reben_cloud.export.pixels import PatchPixels
from reben_cloud.export.stretch import Counts, range_of, with_ranges
from reben_cloud.schema import Array, Schema
from reben_cloud.views.picture import encode_png, shade
from reben_cloud.views.recipes import MapColors, Recipe, choose_recipes
from reben_cloud.views.resize import Resampling, nearest, resize

if TYPE_CHECKING:
    from pathlib import Path

    from reben_cloud.root.selection import Selection

Stretch = Literal["fixed", "patch", "selection"]
"""What is black and what is brightest: the recipe's values, or percentiles of the patch or of all patches."""

MAX_SIZE_PX = 4096
"""Largest picture, pixels a side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureOptions:
    """How pictures look.

    Raises:
        ValueError: If a value is not one of those that are taken.
    """

    pictures: tuple[str, ...] | None = None
    """Names of pictures or modalities; the dataset's first picture by default."""
    size: int | None = None
    """Pixels a side, 1 to 4,096; those of the patch by default."""
    resampling: Resampling = "bilinear"
    """How pictures get that size; a map always takes the nearest pixel."""
    stretch: Stretch = "fixed"
    """What is black and what is brightest."""
    percentiles: tuple[float, float] = (2.0, 98.0)
    """Of the values of a channel, black and brightest, in [0, 100]; for a stretch that is not fixed."""
    flip: Flip | None = None
    """How pictures are mirrored; not at all by default."""

    def __post_init__(self) -> None:
        if self.pictures is not None:
            object.__setattr__(self, "pictures", tuple(self.pictures))
        for name, known in (
            ("resampling", ("bilinear", "nearest")),
            ("stretch", ("fixed", "patch", "selection")),
            ("flip", (None, "horizontal", "vertical", "both")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be {' or '.join(map(str, known))}, got {getattr(self, name)!r}"
                )
        if self.size is not None and not 1 <= self.size <= MAX_SIZE_PX:
            raise ValueError(f"size must be 1 to {MAX_SIZE_PX:,} pixels, got {self.size}")
        low, high = map(float, self.percentiles)
        object.__setattr__(self, "percentiles", (low, high))
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must rise from 0 or more to 100 at most, got {low:g} and {high:g}")


def export_png(
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    pictures: Sequence[str] | None = None,
    size: int | None = None,
    resampling: Resampling = "bilinear",
    stretch: Stretch = "fixed",
    percentiles: tuple[float, float] = (2.0, 98.0),
    flip: Flip | None = None,
    update: bool = False,
    prune: bool = False,
    threads: int = 6,
    progress: Progress | None = None,
) -> FilesReport:
    """Write pictures of the patches, 8-bit PNGs, as ``PICTURE/PRODUCT/PATCH.png``.

    A map's picture has a palette: its pixels are the numbers of the schema's classes, 255 for none;
    ``PICTURE.legend.json`` says which. ``patches.parquet`` and ``metadata.parquet`` are beside the pictures,
    ``export.json`` says how they were made, ``files.parquet`` lists them with checksums.

    Run again after a crash, it continues; when the folder is complete, it does nothing. An existing export
    changes by `update` and `prune`: the new one is made beside it and takes its place at once.

    Args:
        selection: What to export.
        path: The new folder, or an earlier export of the same root.
        pictures: Names of pictures, such as ``true-color``, ``false-color``, ``radar`` and ``map`` of reBEN, or
            of modalities (``s1``), which means all that are made of them; the first picture by default.
        size: Pixels a side, 1 to 4,096; those of the patch by default.
        resampling: How pictures get that size; a map always takes the nearest pixel.
        stretch: What is black and what is brightest: the recipe's values (``fixed``), or percentiles of the
            values of the ``patch`` or of the whole ``selection``, fill values left out.
        percentiles: Which ones, in [0, 100], rising.
        flip: Mirror the pictures, maps too.
        update: Add what an existing export lacks.
        prune: Drop what is not selected from an existing export.
        threads: Patches are fetched and drawn by so many threads, at least 1.
        progress: Wraps the iterable of finished parts.

    Raises:
        NotFoundError: If nothing is selected; it names the condition that left nothing.
        ValueError: If a picture is unknown, a modality has none, or an option is out of bounds.
        ConflictError: If `path` holds something else, or another process exports to it.
        StorageError: If the disk has too little room, or a store fails.
        ChecksumError: If the dataset is damaged.
    """
    options = PictureOptions(
        pictures=None if pictures is None else tuple([pictures] if isinstance(pictures, str) else pictures),
        size=size,
        resampling=resampling,
        stretch=stretch,
        percentiles=percentiles,
        flip=flip,
    )
    maker = PictureMaker(selection.dataset.schema, options)
    return export_files(
        selection, path, maker, update=update, prune=prune, threads=threads, progress=progress
    )


class PictureMaker:
    """Makes the pictures of patches.

    Args:
        schema: Of the dataset.
        options: Which, and how they look.

    Raises:
        ValueError: If there is no such picture.
    """

    kind = "png"
    """Form of the export."""

    def __init__(self, schema: Schema, options: PictureOptions) -> None:
        self.options = options
        self.recipes: tuple[Recipe, ...] = choose_recipes(schema, options.pictures)
        """The pictures, in the order in which they are asked for."""
        self._schema = schema
        self._colors = MapColors(schema)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the pictures are made of."""
        used = {recipe.modality.name for recipe in self.recipes}
        return tuple(name for name in self._schema.modality_names if name in used)

    @property
    def settings(self) -> dict[str, Any]:
        """The recipes and the options, as JSON has them."""
        options = self.options
        stretch: Any = "fixed"
        if options.stretch != "fixed":
            stretch = {"percentiles": list(options.percentiles), "of": options.stretch}
        return {
            "pictures": {recipe.name: self._described(recipe) for recipe in self.recipes},
            "size": options.size,
            "resampling": options.resampling,
            "stretch": stretch,
            "flip": options.flip,
        }

    def _described(self, recipe: Recipe) -> dict[str, Any]:
        if recipe.render is None:
            return {"classes_of": recipe.tensor, "resampling": "nearest", "colors": list(self._colors.colors)}
        specs = recipe.modality.specs
        return {
            "channels": [
                {
                    "tensor": channel.tensor,
                    "minus": channel.minus,
                    "units": specs[channel.tensor].units,
                    "black": channel.low,
                    "brightest": channel.high,
                }
                for channel in recipe.render.channels
            ],
            "gamma": recipe.render.gamma,
        }

    def start(self, chosen: Selection) -> None:
        """Nothing: every patch has every picture."""

    def survey(self, each_patch: EachPatch) -> dict[str, Any]:
        """What is black and what is brightest in each channel, by the percentiles of all patches."""
        if self.options.stretch != "selection":
            return {}
        renders = {r.name: r.render for r in self.recipes if r.render is not None}
        counts = {
            name: [Counts(self._spec(name, channel), channel) for channel in render.channels]
            for name, render in renders.items()
        }

        def count(patch: PatchPixels) -> None:
            for name, render in renders.items():
                for channel, one in zip(render.channels, counts[name], strict=True):
                    one.add(self._values(name, channel, patch))

        for _ in each_patch(count, "look at all values"):
            pass
        ranges = {
            name: [one.range(self.options.percentiles) for one in ones] for name, ones in counts.items()
        }
        return {"ranges": ranges}

    def make(self, patch: PatchPixels, survey: Mapping[str, Any]) -> dict[str, bytes]:
        """The pictures of a patch."""
        return {
            f"{recipe.name}/{patch.path('.png')}": self._draw(recipe, patch, survey)
            for recipe in self.recipes
        }

    def finish(self, partial: Path, progress: Progress) -> dict[str, Any]:  # noqa: ARG002
        """Write the legends of maps."""
        for recipe in self.recipes:
            if recipe.render is None:
                legend = json.dumps(self._colors.legend(), indent=2, ensure_ascii=False)
                (partial / f"{recipe.name}.legend.json").write_text(legend, encoding="utf-8")
        return {}

    def _draw(self, recipe: Recipe, patch: PatchPixels, survey: Mapping[str, Any]) -> bytes:
        tensors = patch.tensors[recipe.modality.name]
        size, flip = self.options.size, self.options.flip
        if recipe.render is None:
            numbers = self._colors.numbers(tensors[recipe.tensor])
            return self._colors.encode(flipped(nearest(numbers, size or len(numbers)), flip))
        render = recipe.render
        if self.options.stretch == "patch":
            ranges = [
                range_of(self._values(recipe.name, channel, patch), channel, self.options.percentiles)
                for channel in render.channels
            ]
            render = with_ranges(render, ranges)
        elif self.options.stretch == "selection":
            render = with_ranges(render, survey["ranges"][recipe.name])
        pixels = shade(tensors, render)
        pixels = resize(pixels, size or len(pixels), self.options.resampling)
        return encode_png(flipped(pixels, flip), is_smooth=True)

    def _recipe(self, name: str) -> Recipe:
        return next(recipe for recipe in self.recipes if recipe.name == name)

    def _spec(self, name: str, channel: Channel) -> np.dtype[Any]:
        return self._recipe(name).modality.specs[channel.tensor].storage

    def _values(self, name: str, channel: Channel, patch: PatchPixels) -> NDArray[Any]:
        """The values of a channel that stand for data, (n,)."""
        modality = self._recipe(name).modality
        tensors = patch.tensors[modality.name]
        there = _is_data(tensors[channel.tensor], modality.specs[channel.tensor].fill)
        values = tensors[channel.tensor]
        if channel.minus is not None:
            there &= _is_data(tensors[channel.minus], modality.specs[channel.minus].fill)
            wide = np.int64 if values.dtype.kind in "iu" else np.float64
            values = values.astype(wide) - tensors[channel.minus].astype(wide)
        return values[there]


def flipped(pixels: NDArray[Any], flip: Flip | None) -> NDArray[Any]:
    """An image (y, x, ...) mirrored."""
    if flip in ("vertical", "both"):
        pixels = pixels[::-1]
    if flip in ("horizontal", "both"):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _is_data(values: Array, fill: float) -> NDArray[np.bool_]:
    there = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, np.bool_)
    return there if math.isnan(fill) else there & (values != fill)
