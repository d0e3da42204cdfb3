"""The texts of BigEarthNet.txt taken apart: options of a question, boxes and points, and words that give answers away.

Coordinates are parts of the patch in [0, 1]: x from its west edge to the east, y from its north edge to the
south. A box has half-open edges. Arithmetic is decimal, as the texts are: 0.29 of 100 pixels is 29.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from types import MappingProxyType
from typing import Literal

Flip = Literal["horizontal", "vertical", "both"]
"""How an image is mirrored: left and right, top and bottom, or both (turned by 180 degrees)."""

COLUMNS = ("ID", "patch_id", "input", "output", "type", "category", "split")
"""Columns that a table of texts must have."""

ANSWER_COLUMNS = ("country", "season", "climate_zone")
"""Columns of what captions name, and other questions ask for."""

TYPES = ("binary", "mcq", "bounding box", "captioning")
"""Values of the column ``type``."""

_NUMBER = r"(\d+(?:\.\d+)?(?:[eE]-?\d+)?)"
_BOX = re.compile(rf"\[\s*{_NUMBER}\s+{_NUMBER}\s*,\s*{_NUMBER}\s+{_NUMBER}\s*\]")
_POINT = re.compile(rf"<point>\s*\(\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\)\s*</point>")
_REFERENCE = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
_LETTERS = "abcdefghij"


class TextError(ValueError):
    """A text is not written as one of its type; the message has the text."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a patch."""

    x: float
    """Part of the width, from the west, in [0, 1]."""
    y: float
    """Part of the height, from the north, in [0, 1]."""

    def __post_init__(self) -> None:
        if not (0 <= self.x <= 1 and 0 <= self.y <= 1):
            raise TextError(f"a point lies in [0, 1], got ({self.x}, {self.y})")

    def __str__(self) -> str:
        return f"<point>({self.x}, {self.y})</point>"

    def flipped(self, flip: Flip | None) -> Point:
        """Where it is in the mirrored image."""
        x = _mirrored(self.x) if flip in ("horizontal", "both") else self.x
        y = _mirrored(self.y) if flip in ("vertical", "both") else self.y
        return Point(x, y)

    def to_pixels(self, size: int) -> tuple[int, int]:
        """(column, line) of the pixel that it lies in, of a picture with `size` pixels a side."""
        x, y = (min(_scaled(value, size, ROUND_FLOOR), size - 1) for value in (self.x, self.y))
        return x, y


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in a patch."""

    left: float
    """West edge, part of the width, in [0, 1]."""
    top: float
    """North edge, part of the height, in [0, 1]."""
    right: float
    """East edge, right of `left`."""
    bottom: float
    """South edge, below `top`."""

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            raise TextError(f"the edges of a box rise in [0, 1], got {self}")

    def __str__(self) -> str:
        return f"[{self.left} {self.top}, {self.right} {self.bottom}]"

    def flipped(self, flip: Flip | None) -> Box:
        """The same rectangle in the mirrored image."""
        left, right, top, bottom = self.left, self.right, self.top, self.bottom
        if flip in ("horizontal", "both"):
            left, right = _mirrored(right), _mirrored(left)
        if flip in ("vertical", "both"):
            top, bottom = _mirrored(bottom), _mirrored(top)
        return Box(left, top, right, bottom)

    def to_pixels(self, size: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of a picture with `size` pixels a side, half-open: all that it touches."""
        left, top = (_scaled(value, size, ROUND_FLOOR) for value in (self.left, self.top))
        right, bottom = (_scaled(value, size, ROUND_CEILING) for value in (self.right, self.bottom))
        return left, top, right, bottom


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A question with options to choose from."""

    question: str
    """What is asked."""
    options: Mapping[str, str]
    """Letter -> option, from ``a`` on."""

    def __str__(self) -> str:
        options = ", ".join(f"{letter}) {text}" for letter, text in self.options.items())
        return f"{self.question} {options}".lstrip()


def parse_box(text: str) -> Box:
    """The box of an answer, ``[x1 y1, x2 y2]``; `str` writes it again.

    Raises:
        TextError: If the text is not a box, or its edges do not rise in [0, 1].
    """
    found = _BOX.fullmatch(text.strip())
    if found is None:
        raise TextError(f"not a box: {text!r}")
    return Box(*map(float, found.groups()))


def parse_point(text: str) -> Point | None:
    """The point in a question, ``<point>(x, y)</point>``; None if it has none.

    Raises:
        TextError: If it is not in [0, 1], or there are several.
    """
    found = _POINT.findall(text)
    if len(found) > 1 or (not found and "<point>" in text):
        raise TextError(f"not one point: {text!r}")
    return Point(*map(float, found[0])) if found else None


def replace_point(text: str, new: str) -> str:
    """A question with something else in the place of its point, tags included."""
    return _POINT.sub(lambda _: new, text)


def parse_reference(text: str) -> str | None:
    """What a question refers to, between ``<ref>`` and ``</ref>``; None if it refers to nothing."""
    found = _REFERENCE.search(text)
    return None if found is None else found[1].strip()


def parse_choice(text: str) -> Choice:
    """A question and the options after ``a)``, ``b)`` and so on; options may have commas.

    Raises:
        TextError: If there are fewer than two options, or one is empty.
    """
    cuts = []
    position = 0
    for letter in _LETTERS:
        marker = re.compile(rf"(?<!\S){letter}\)\s").search(text, position)
        if marker is None:
            break
        cuts.append(marker.span())
        position = marker.end()
    ends = [start for start, _ in cuts[1:]] + [len(text)]
    options = {
        letter: _without_separator(text[start:end])
        for letter, (_, start), end in zip(_LETTERS, cuts, ends, strict=False)
    }
    if len(options) < 2 or not all(options.values()):
        raise TextError(f"not a question with options: {text!r}")
    question = text[: cuts[0][0]].strip()
    return Choice(question=question, options=MappingProxyType(options))


def _without_separator(option: str) -> str:
    option = option.strip()
    return option[:-1].rstrip() if option.endswith((",", ";")) else option


def _decimal(value: float) -> Decimal:
    return Decimal(repr(float(value)))  # as it is written; NumPy's numbers are written otherwise


def _mirrored(value: float) -> float:
    return float(1 - _decimal(value))


def _scaled(value: float, size: int, rounding: str) -> int:
    return int((_decimal(value) * size).to_integral_value(rounding))


# -- words that give answers away ----------------------------------------------------------------------

_ADJECTIVES = {
    "Austria": "Austrian",
    "Belgium": "Belgian",
    "Finland": "Finnish",
    "Ireland": "Irish",
    "Kosovo": "Kosovar",
    "Lithuania": "Lithuanian",
    "Luxembourg": "Luxembourgish",
    "Portugal": "Portuguese",
    "Serbia": "Serbian",
    "Switzerland": "Swiss",
}
_SEASONS = {"fall": ("fall", "autumn"), "autumn": ("fall", "autumn")}


def hide_answers(caption: str, *, country: str, season: str, climate_zone: str) -> str:
    """A caption that no longer names the country, the season and the climate zone of its patch.

    They become ``this climate zone``, ``this country`` (its adjective ``local``) and ``this season``; an article
    before them goes. Nothing else changes.

    Args:
        caption: The caption.
        country: English name, as in the table of texts.
        season: As there; ``fall`` is ``autumn`` too.
        climate_zone: As there.
    """
    hidden = [(climate_zone, "this climate zone"), (country, "this country")]
    hidden += [(_ADJECTIVES.get(country, ""), "local")]
    hidden += [(word, "this season") for word in _SEASONS.get(season.lower(), (season,))]
    for word, instead in hidden:
        if word.strip():
            article = r"(?:\b(?:the|an?)\s+)?" if instead.startswith("this") else ""
            noun = r"(?:\s+(?:climate\s+)?zone\b)?" if word == climate_zone else ""
            pattern = rf"{article}(?<!\w){re.escape(word.strip())}(?!\w){noun}"
            caption = re.sub(pattern, instead, caption, flags=re.IGNORECASE)
    return caption[:1].upper() + caption[1:]
