"""How the values of a schema are pickled."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any, cast


class PickledAsMade:
    """A dataclass that is pickled as its fields, and made from them again: what it keeps by the way stays here."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        made = partial(type(self), **{f.name: getattr(self, f.name) for f in fields(cast("Any", self))})
        return made, ()
