"""Numbers as people read them: sizes in the unit that fits, counts with their noun, rows that fit a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

WIDTH = 80
"""Columns that every terminal has."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_TITLE = 13
_HELD = "\0"  # stands for a space at which no line ends


def size_text(nbytes: float) -> str:
    """A number of bytes in the unit that leaves one to three digits before the point: ``1.24 GB``."""
    value, unit = float(nbytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if not unit:
        return counted(int(value), "byte")
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} {_UNITS[unit]}"


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what is counted: ``1 shard``, ``2,000 patches``.

    Args:
        number: How many.
        one: The noun for one.
        several: The noun for all other numbers; by default with an ``s``.
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def wrapped(rows: Iterable[tuple[str, str | Sequence[str]]]) -> Iterator[str]:
    """Rows of a title and a text as lines of `WIDTH`; a text that is too long goes on below where it began.

    Of several texts each is kept whole, with a comma between them. Words, and commands in backticks, are not broken: a
    path or URL may be longer.
    """
    for title, said in rows:
        text = said if isinstance(said, str) else ", ".join(one.replace(" ", _HELD) for one in said)
        lines = textwrap.wrap(
            re.sub("`[^`]*`", lambda command: command[0].replace(" ", _HELD), text),
            WIDTH,
            initial_indent=f"  {title:<{_TITLE - 1}} ",
            subsequent_indent=" " * (_TITLE + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (line.replace(_HELD, " ") for line in lines)
