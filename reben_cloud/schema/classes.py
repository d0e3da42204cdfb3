"""The label classes of a dataset, and the check that a name is a known one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.errors import InvalidPatchError
from reben_cloud.schema.pickling import PickledAsMade
from reben_cloud.schema.tensors import Array

_COLOR = re.compile(r"#[0-9a-f]{6}")

LabelRule = Literal["any", "majority"]
"""Which classes of a map are labels of the patch: every one with a pixel, or the one with most of them."""

MAX_CLASSES = 65_535
"""Most classes of a schema: a class and "none" fit 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Classes(PickledAsMade):
    """The classes of the multi-labels, and of the pixels of a map."""

    names: tuple[str, ...]
    """Names, in the order of the columns of ``batch["labels"]``."""
    colors: tuple[str, ...] = ()
    """Colour of each as ``#rrggbb``; empty where none is stated."""
    codes: tuple[tuple[int, ...], ...] = ()
    """Pixel values of the map that belong to each class; empty where there is no map."""
    without_class: tuple[int, ...] = ()
    """Further pixel values that a map may have, which belong to no class."""
    label_rule: LabelRule = "any"
    """Which classes of the map are labels of the patch."""
    min_share: float = 0.0
    """Share of the patch's pixels that a class must have to be a label, in [0, 1]."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "colors", tuple(self.colors))
        object.__setattr__(self, "codes", tuple(tuple(codes) for codes in self.codes))
        object.__setattr__(self, "without_class", tuple(self.without_class))
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"a schema has 1 to {MAX_CLASSES:,} classes, got {len(self.names):,}")
        if len(set(self.names)) != len(self.names) or not all(n and n == n.strip() for n in self.names):
            raise ValueError("classes need different names, none of them empty")
        for what, values in (("colors", self.colors), ("codes", self.codes)):
            if values and len(values) != len(self.names):
                raise ValueError(f"{len(self.names)} classes have {len(values)} {what}")
        if wrong := [color for color in self.colors if not _COLOR.fullmatch(color)]:
            raise ValueError(f"a colour is written #rrggbb, got {wrong[0]!r}")
        flat = [*self.without_class, *(code for codes in self.codes for code in codes)]
        if len(set(flat)) != len(flat):
            raise ValueError("a pixel value of the map belongs to one class only")
        if self.label_rule not in get_args(LabelRule):
            raise ValueError(
                f"label_rule must be one of {', '.join(get_args(LabelRule))}, got {self.label_rule!r}"
            )
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share must be in [0, 1], got {self.min_share}")

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.names)

    def check(self, names: Iterable[str]) -> None:
        """Refuse names that are not classes.

        Raises:
            ValueError: If a name is unknown; the message has the nearest names.
        """
        check_names(names, self.names, "label")

    def encode(self, column: pa.ChunkedArray[Any]) -> NDArray[np.uint8]:
        """Multi-hot matrix of a column of lists of names.

        Args:
            column: list<string>, or such lists of a dictionary's strings, n rows, no nulls.

        Returns:
            uint8 (n, num_classes).

        Raises:
            ValueError: If a name is unknown.
        """
        out = np.zeros((len(column), len(self)), np.uint8)
        first = 0
        for lists in column.chunks:
            names = lists.flatten()
            if not isinstance(names, pa.DictionaryArray):
                names = names.dictionary_encode()
            if names.null_count:
                raise ValueError("a label is null")
            known = names.dictionary.to_pylist()
            numbers = np.array([self._number_of.get(name, -1) for name in known], np.int64)
            codes = _integers(names.indices)
            found = numbers[codes]
            if found.size and found.min() < 0:
                self.check([known[codes[found < 0][0]]])
            rows = np.repeat(np.arange(first, first + len(lists)), np.diff(_integers(lists.offsets)))
            out[rows, found] = 1
            first += len(lists)
        return out

    def labels_in(self, pixels: Array, *, name: str) -> tuple[str, ...]:
        """The classes that are labels of a patch by its map, sorted by name.

        Args:
            pixels: Values of the map, any shape, none negative.
            name: What to call the map in a message.

        Raises:
            InvalidPatchError: If a pixel has a value that the classes do not know.
        """
        num_of_code = np.bincount(pixels.ravel())  # seven times quicker than np.unique
        class_of = self._class_of
        counts = np.zeros(len(self), np.int64)
        for code in np.flatnonzero(num_of_code).tolist():
            if code not in class_of:
                raise InvalidPatchError(
                    f"{name}: the map has the value {code}, which is not a code of any class "
                    f"({len(class_of)} codes from {min(class_of)} to {max(class_of)})"
                )
            if (label := class_of[code]) is not None:
                counts[self._number_of[label]] += num_of_code[code]
        chosen = self.chosen(counts, num_pixels=pixels.size)
        return tuple(sorted(self.names[number] for number in np.flatnonzero(chosen).tolist()))

    def chosen(self, counts: NDArray[np.integer[Any]], *, num_pixels: int) -> NDArray[np.bool_]:
        """Which classes are labels of patches, by `label_rule` and `min_share`; of a tie the first class.

        Args:
            counts: Pixels of each class in the map of a patch, (..., num_classes).
            num_pixels: Pixels of a patch, those without a class too.

        Returns:
            bool (..., num_classes).
        """
        # Divided, since the product may round up: 0.07 * 14,400 is more than 1,008.
        found = (counts > 0) & (counts / num_pixels >= self.min_share)
        if self.label_rule == "majority":
            found &= np.arange(len(self)) == counts.argmax(axis=-1)[..., np.newaxis]
        return found

    @cached_property
    def _number_of(self) -> Mapping[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def _class_of(self) -> Mapping[int, str | None]:
        known: dict[int, str | None] = dict.fromkeys(self.without_class)
        return known | {c: n for n, codes in zip(self.names, self.codes, strict=True) for c in codes}


def _integers(array: pa.Array[Any]) -> NDArray[Any]:
    """An array of integers through its buffer: pyarrow's own way loads pandas, which takes longer than the rest."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1] or b"", dtype)[array.offset : array.offset + len(array)]


def check_names(names: Iterable[str], known: Sequence[str], what: str) -> None:
    """Refuse names that are not among the known ones.

    Raises:
        ValueError: If one is unknown; the message has the nearest names.
    """
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"known are{_listed(known)}"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """A question with the known names nearest to one, in any case; empty if none is near.

    Args:
        name: What was given.
        known: What there is.
        cutoff: How near a name must be, 0 to 1, as for `difflib.get_close_matches`.
    """
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(repr(lower[one]) for one in near)}?" if near else ""


def respelled(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Names in the spelling of the known ones, where only case differs and one name fits; others as they are."""
    folded = Counter(name.casefold() for name in known)
    spelled = {name.casefold(): name for name in known if folded[name.casefold()] == 1}
    return [name if name in known else spelled.get(str(name).casefold(), name) for name in names]


def _listed(names: Sequence[str]) -> str:
    """Names in a list, on lines of their own where they have commas in them."""
    more = [f"and {len(names) - 20} more"] if len(names) > 20 else []
    if any("," in name for name in names):
        return "".join(f"\n  {name}" for name in [*names[:20], *more])
    return " ".join(["", ", ".join(names[:20]), *more])
