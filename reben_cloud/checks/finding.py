"""One finding of the doctor: what was looked at, how bad it is, and the way out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warning", "problem"]
"""``note`` is worth knowing, ``warning`` will hurt somebody, ``problem`` keeps things from working."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The outcome of one check."""

    level: Level
    """How bad it is."""
    subject: str
    """What was looked at, a word or two."""
    detail: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""
