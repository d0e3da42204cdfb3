"""Which pictures a dataset has of a patch: those that its `About` tells how to make, and its map.

A picture is asked for by its own name, or by that of a modality, which means all that are made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reben_cloud.about import Render
from reben_cloud.bigearthnet.about import about
from reben_cloud.schema import Modality, Schema, check_names
from reben_cloud.views.picture import encode_palette_png, encode_png

NO_CLASS = 255
"""Pixel of a map's picture that belongs to no class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A picture made of a modality."""

    name: str
    """Letters, digits, ``-`` and ``_``."""
    modality: Modality
    """What it is made of."""
    render: Render | None
    """What becomes red, green and blue; None for the map, whose pixels have the colours of their classes."""
    tensor: str = ""
    """The map's tensor."""

    @property
    def size_px(self) -> int:
        """Pixels a side, as the patch has them."""
        name = self.tensor if self.render is None else self.render.channels[0].tensor
        return self.modality.specs[name].shape[-1]


class MapColors:
    """A map's pixels in the numbers and colours of the schema's classes.

    Args:
        schema: A schema that has a map.
    """

    def __init__(self, schema: Schema) -> None:
        classes = schema.classes
        self._classes = classes
        # A schema need not state colours: hues at steps of the golden angle are as far apart as they can be.
        self.colors: tuple[str, ...] = classes.colors or tuple(map(_some_color, range(len(classes))))
        """Colour of each class, ``#rrggbb``."""
        pairs = sorted((code, number) for number, codes in enumerate(classes.codes) for code in codes)
        self._codes = np.array([code for code, _ in pairs], np.int64)
        self._numbers = np.array([number for _, number in pairs], np.int64)

    @property
    def is_numbered(self) -> bool:
        """Whether a pixel of the picture is the number of its class: up to 255 classes."""
        return len(self._classes) <= NO_CLASS

    def numbers(self, values: NDArray[np.generic]) -> NDArray[np.int64]:
        """The class of each pixel, -1 for none; of the shape of `values`."""
        if not len(self._codes):
            return np.full(values.shape, -1)
        at = np.minimum(np.searchsorted(self._codes, values), len(self._codes) - 1)
        return np.where(self._codes[at] == values, self._numbers[at], -1)

    def encode(self, numbers: NDArray[np.int64]) -> bytes:
        """The PNG of classes, (y, x), -1 for none."""
        colors = np.array([list(bytes.fromhex(color[1:])) for color in self.colors], np.uint8)
        if not self.is_numbered:
            return encode_png(np.concatenate([colors, np.zeros((1, 3), np.uint8)])[numbers])
        palette = np.zeros((NO_CLASS + 1, 3), np.uint8)
        palette[: len(colors)] = colors
        return encode_palette_png(np.where(numbers < 0, NO_CLASS, numbers).astype(np.uint8), palette)

    def legend(self) -> dict[str, object]:
        """What the pixels of the picture mean, as JSON."""
        known = self._classes.codes or ((),) * len(self._classes)
        classes = zip(self._classes.names, self.colors, known, strict=True)
        none = {"number": NO_CLASS} if self.is_numbered else {}
        return {
            "pixels": "number of the class, with a palette" if self.is_numbered else "colour of the class",
            "classes": [
                {"number": number, "name": name, "color": color, "codes": list(codes)}
                for number, (name, color, codes) in enumerate(classes)
            ],
            "none": {**none, "color": "#000000", "codes": "all others"},
        }


def _some_color(number: int) -> str:
    hue = number * 0.381966 * 6 % 6
    rgb = [np.clip(abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    return "#" + "".join(f"{round(55 + 200 * float(part)):02x}" for part in rgb)


def recipes_of(schema: Schema) -> dict[str, Recipe]:
    """Name -> picture, of all that a dataset has: its `About`'s first, then the map."""
    facts = about(schema)
    found = {}
    for render in (*facts.renders, *facts.further_renders):
        if (place := render.array_in(schema)) is not None:
            found[render.name] = Recipe(name=render.name, modality=place[0], render=render)
    for modality in schema.modalities:
        for array in modality.arrays:
            if array.name == schema.map_array:
                found[array.name] = Recipe(
                    name=array.name, modality=modality, render=None, tensor=array.tensors[0]
                )
    return found


def choose_recipes(schema: Schema, names: Sequence[str] | None) -> tuple[Recipe, ...]:
    """The pictures that are asked for, in the order in which they are, each once.

    Args:
        schema: Of the dataset.
        names: Names of pictures (``colour`` is ``color``) or of modalities; the first picture by default.

    Raises:
        ValueError: If there is no such picture, or nothing tells how to make one of a modality.
    """
    known = recipes_of(schema)
    have = f"it has the pictures {', '.join(known)}" if known else "it has no picture at all"
    if names is None and known:
        return (next(iter(known.values())),)
    found: dict[str, Recipe] = {}
    for name in [one.strip().replace("colour", "color") for one in names or ()]:
        made_of = {key: recipe for key, recipe in known.items() if recipe.modality.name == name}
        if name not in known and not made_of and name in schema.modality_names:
            raise ValueError(f"no recipe makes a picture of modality {name!r} of {schema.name}; {have}")
        if absent := [r for r in _all_renders(schema) if r.name == name and name not in known]:
            tensors = ", ".join(channel.tensor for channel in absent[0].channels)
            raise ValueError(f"picture {name!r} is made of {tensors}, which this dataset lacks; {have}")
        if name not in known and not made_of:
            check_names([name], [*known, *schema.modality_names], "picture")
        found |= {name: known[name]} if name in known else made_of
    if not found:
        raise ValueError(f"no picture is asked for; {have} ({schema.name})")
    return tuple(found.values())


def _all_renders(schema: Schema) -> tuple[Render, ...]:
    facts = about(schema)
    return (*facts.renders, *facts.further_renders)
