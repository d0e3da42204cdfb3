"""Facts about labels: the 44 CORINE codes and 999, the 19 classes, both orders, encodings.

Two orders of the 19 classes are around, and mixing them up is silent, so every function that
depends on one names it: ``alphabetical`` (ConfigILM, the published models, and the default here)
and ``nomenclature`` (CORINE's order: torchgeo, GEO-Bench-2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reben_cloud.errors import InvalidPatchError
from reben_cloud.schema import did_you_mean

Order = Literal["alphabetical", "nomenclature"]
"""Which of the two orders of the 19 classes."""

UNLABELLED = 999
"""Code of a map pixel that CORINE does not cover."""

NO_CLASS = 255
"""Class index of a pixel whose code has no class: 999, 12 dropped codes, and 0."""

CLASSES: tuple[str, ...] = (
    "Urban fabric",
    "Industrial or commercial units",
    "Arable land",
    "Permanent crops",
    "Pastures",
    "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation",
    "Agro-forestry areas",
    "Broad-leaved forest",
    "Coniferous forest",
    "Mixed forest",
    "Natural grassland and sparsely vegetated areas",
    "Moors, heathland and sclerophyllous vegetation",
    "Transitional woodland, shrub",
    "Beaches, dunes, sands",
    "Inland wetlands",
    "Coastal wetlands",
    "Inland waters",
    "Marine waters",
)
"""The 19 classes in nomenclature order."""

CLASSES_ALPHABETICAL: tuple[str, ...] = tuple(sorted(CLASSES))
"""The 19 classes in alphabetical order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClcCode:
    """One CORINE Land Cover 2018 level-3 class, or 999."""

    code: int
    """Three digits."""
    name: str
    """Official name."""
    label: str | None
    """Its class of the 19, None if it has none."""
    color: str
    """Official colour, ``#rrggbb``."""


_TABLE: tuple[tuple[int, str, int | None, str], ...] = (
    (111, "Continuous urban fabric", 0, "#e6004d"),
    (112, "Discontinuous urban fabric", 0, "#ff0000"),
    (121, "Industrial or commercial units", 1, "#cc4df2"),
    (122, "Road and rail networks and associated land", None, "#cc0000"),
    (123, "Port areas", None, "#e6cccc"),
    (124, "Airports", None, "#e6cce6"),
    (131, "Mineral extraction sites", None, "#a600cc"),
    (132, "Dump sites", None, "#a64d00"),
    (133, "Construction sites", None, "#ff4dff"),
    (141, "Green urban areas", None, "#ffa6ff"),
    (142, "Sport and leisure facilities", None, "#ffe6ff"),
    (211, "Non-irrigated arable land", 2, "#ffffa8"),
    (212, "Permanently irrigated land", 2, "#ffff00"),
    (213, "Rice fields", 2, "#e6e600"),
    (221, "Vineyards", 3, "#e68000"),
    (222, "Fruit trees and berry plantations", 3, "#f2a64d"),
    (223, "Olive groves", 3, "#e6a600"),
    (231, "Pastures", 4, "#e6e64d"),
    (241, "Annual crops associated with permanent crops", 3, "#ffe6a6"),
    (242, "Complex cultivation patterns", 5, "#ffe64d"),
    (
        243,
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        6,
        "#e6cc4d",
    ),
    (244, "Agro-forestry areas", 7, "#f2cca6"),
    (311, "Broad-leaved forest", 8, "#80ff00"),
    (312, "Coniferous forest", 9, "#00a600"),
    (313, "Mixed forest", 10, "#4dff00"),
    (321, "Natural grassland", 11, "#ccf24d"),
    (322, "Moors and heathland", 12, "#a6ff80"),
    (323, "Sclerophyllous vegetation", 12, "#a6e64d"),
    (324, "Transitional woodland/shrub", 13, "#a6f200"),
    (331, "Beaches, dunes, sands", 14, "#e6e6e6"),
    (332, "Bare rock", None, "#cccccc"),
    (333, "Sparsely vegetated areas", 11, "#ccffcc"),
    (334, "Burnt areas", None, "#000000"),
    (335, "Glaciers and perpetual snow", None, "#a6e6cc"),
    (411, "Inland marshes", 15, "#a6a6ff"),
    (412, "Peatbogs", 15, "#4d4dff"),
    (421, "Salt marshes", 16, "#ccccff"),
    (422, "Salines", 16, "#e6e6ff"),
    (423, "Intertidal flats", None, "#a6a6e6"),
    (511, "Water courses", 17, "#00ccf2"),
    (512, "Water bodies", 17, "#80f2e6"),
    (521, "Coastal lagoons", 18, "#00ffa6"),
    (522, "Estuaries", 18, "#a6ffe6"),
    (523, "Sea and ocean", 18, "#e6f2ff"),
    (999, "UNLABELED", None, "#0a0a0a"),
)

CLC: Mapping[int, ClcCode] = MappingProxyType(
    {
        code: ClcCode(code=code, name=name, label=None if number is None else CLASSES[number], color=color)
        for code, name, number, color in _TABLE
    }
)
"""Code -> class, for the 44 codes and 999 (bigearthnet-pipeline's nomenclature table)."""


def classes(order: Order = "alphabetical") -> tuple[str, ...]:
    """The 19 class names in the given order.

    Raises:
        ValueError: If the order is unknown.
    """
    if order == "alphabetical":
        return CLASSES_ALPHABETICAL
    if order == "nomenclature":
        return CLASSES
    raise ValueError(f"order must be 'alphabetical' or 'nomenclature', got {order!r}")


def class_of_code(order: Order = "alphabetical") -> NDArray[np.uint8]:
    """Look-up table from CLC code to class index.

    Returns:
        uint8 (1000,): index in `classes`, `NO_CLASS` where a code has none or is unknown.
    """
    names = classes(order)
    table = np.full(1000, NO_CLASS, np.uint8)
    for entry in CLC.values():
        if entry.label is not None:
            table[entry.code] = names.index(entry.label)
    return table


def representative_code(label: str) -> int:
    """The lowest CLC code of a class."""
    check_labels([label])
    return min(entry.code for entry in CLC.values() if entry.label == label)


def check_labels(names: Iterable[str]) -> None:
    """Refuse names that are none of the 19.

    Raises:
        ValueError: If a name is unknown; the message has the nearest names.
    """
    for name in names:
        if name not in CLASSES:
            every = f"did you mean {', '.join(map(repr, CLASSES))}?"
            raise ValueError(
                f"unknown label {name!r}; {did_you_mean(str(name), CLASSES, cutoff=0.4) or every}"
            )


def encode(names: Iterable[str], *, order: Order = "alphabetical") -> NDArray[np.float32]:
    """Multi-hot vector of label names.

    Returns:
        float32 (19,), 1 where the patch has the class.

    Raises:
        ValueError: If a name is unknown.
    """
    names = list(names)
    check_labels(names)
    return np.isin(classes(order), names).astype(np.float32)


def encode_many(
    names: pa.Array[Any] | pa.ChunkedArray[Any], *, order: Order = "alphabetical"
) -> NDArray[np.uint8]:
    """Multi-hot matrix of a column of label lists.

    Args:
        names: list<string>, n rows, no nulls.
        order: Order of the columns.

    Returns:
        uint8 (n, 19).

    Raises:
        ValueError: If a name is unknown.
    """
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    flat = pc.list_flatten(names)
    index = pc.index_in(flat, pa.array(classes(order)))
    if index.null_count:
        check_labels([flat.filter(pc.is_null(index))[0].as_py()])
    out = np.zeros((len(names), len(CLASSES)), np.uint8)
    out[pc.list_parent_indices(names).to_numpy(), index.to_numpy()] = 1
    return out


def decode(
    vector: Sequence[float] | NDArray[np.generic], *, order: Order = "alphabetical"
) -> tuple[str, ...]:
    """Names of the classes at which a (19,) vector is above one half."""
    return tuple(n for n, value in zip(classes(order), vector, strict=True) if value > 0.5)


def labels_of_map(codes: NDArray[np.uint16], *, name: str = "map") -> tuple[str, ...]:
    """The labels of a reference map: every class with at least one pixel, sorted by name.

    Args:
        codes: CLC codes, any shape.
        name: What to call the map in a message.

    Raises:
        InvalidPatchError: If a value is no CLC code.
    """
    found = np.flatnonzero(np.bincount(codes.ravel())).tolist()  # seven times quicker than np.unique
    unknown = [code for code in found if code not in CLC]
    if unknown:
        raise InvalidPatchError(
            f"{name}: the reference map has the value {unknown[0]}, which is no CORINE code "
            "(44 codes from 111 to 523, or 999)"
        )
    return tuple(sorted({label for code in found if (label := CLC[code].label) is not None}))
