"""Which codes a land-cover layer may have, the class and colour of each, and which classes are labels: as TOML.

Tables for CORINE, ESA WorldCover and LCFM come with the package.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reben_cloud.bigearthnet.labels import UNLABELLED
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import SourceError
from reben_cloud.files.paths import local_path
from reben_cloud.schema import Classes, LabelRule

SHIPPED = ("reben19", "clc44", "clc_level1", "worldcover2021", "lcfm")
"""The tables that come with the package."""

_MAX_CODE = 65_535
_KEYS = ("title", "labels", "min_share", "nodata", "unlabelled", "classes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassTable:
    """What the codes of a land-cover layer mean."""

    name: str
    """What to call the table in messages."""
    classes: Classes
    """The classes, the codes of each, and those that count as unlabelled (`UNLABELLED` among them)."""
    nodata: tuple[int, ...] = ()
    """Codes in [0, 65535] that mean "nothing is known": they become `UNLABELLED` in the reference map."""
    title: str = ""
    """What the layer is, for people."""

    def __post_init__(self) -> None:
        _check_codes(self.name, list(self.labels), self.nodata)
        if not any(self.classes.codes):
            raise SourceError(f"class table {self.name} gives no code a class")

    @classmethod
    def of(
        cls,
        name: str,
        labels: Mapping[int, str | None],
        *,
        colors: Mapping[str, str] | None = None,
        label_rule: LabelRule = "any",
        min_share: float = 0.0,
        nodata: Sequence[int] = (),
        title: str = "",
    ) -> ClassTable:
        """The table of some codes.

        Args:
            name: What to call it in messages.
            labels: Code -> class name; None where the code counts as unlabelled.
            colors: Class name -> colour as ``#rrggbb``, of all classes or of none.
            label_rule: Which classes of a patch's map are its labels.
            min_share: Share of a patch that a class must have to be a label.
            nodata: As the field.
            title: As the field.

        Raises:
            SourceError: If a code, a colour or the rule is not valid.
        """
        _check_codes(name, list(labels), nodata)
        names = tuple(sorted({label for label in labels.values() if label is not None}))
        if not names:
            raise SourceError(f"class table {name} gives no code a class")
        colors = colors or {}
        if lacking := [one for one in names if colors and one not in colors]:
            raise SourceError(
                f"class table {name}: class {lacking[0]!r} has no color; state those of all, or none"
            )
        try:
            classes = Classes(
                names=names,
                colors=tuple(colors[one] for one in names) if colors else (),
                codes=tuple(tuple(sorted(c for c, label in labels.items() if label == one)) for one in names),
                without_class=tuple(
                    sorted({*(c for c, label in labels.items() if label is None), UNLABELLED})
                ),
                label_rule=label_rule,
                min_share=min_share,
            )
        except ValueError as error:
            raise SourceError(f"class table {name}: {error}") from error
        return cls(name=name, classes=classes, nodata=tuple(sorted(nodata)), title=title)

    @property
    def labels(self) -> Mapping[int, str | None]:
        """Code -> class name, None where it counts as unlabelled; without `UNLABELLED` and `nodata`."""
        found: dict[int, str | None] = {
            code: name
            for name, codes in zip(self.classes.names, self.classes.codes, strict=True)
            for code in codes
        }
        return found | dict.fromkeys(code for code in self.classes.without_class if code != UNLABELLED)

    def recoded(self, codes: NDArray[Any], *, name: str) -> NDArray[np.uint16]:
        """Codes of a layer as a reference map has them: nodata, and what is `UNLABELLED` already, as `UNLABELLED`.

        Args:
            codes: Integers or whole floats, any shape.
            name: What to call the layer in messages.

        Raises:
            SourceError: If a value is not a code of the table.
        """
        whole = codes
        if codes.dtype.kind == "f":
            # NaN, infinity and halves become -1, which is a code of no table.
            fine = np.isfinite(codes) & (codes == np.rint(codes)) & (np.abs(codes) <= _MAX_CODE)
            whole = np.where(fine, codes, -1).astype(np.int32)
        if whole.dtype.itemsize > 2 or whole.dtype.kind == "i":
            outside = (whole < 0) | (whole > _MAX_CODE)
            if outside.any():
                raise self._unknown(codes[outside][0], name)
        found: NDArray[np.uint16] = self._table()[whole]
        if not found.all():
            raise self._unknown(codes[found == 0][0], name)
        return found

    def _table(self) -> NDArray[np.uint16]:
        """Code -> code in the reference map, 0 for what is not in the table."""
        table = np.zeros(_MAX_CODE + 1, np.uint16)
        known = list(self.labels)
        table[known] = known
        table[[*self.nodata, UNLABELLED]] = UNLABELLED
        return table

    def _unknown(self, value: np.generic, name: str) -> SourceError:
        return SourceError(
            f"{name}: code {value.item()!r} is none of class table {self.name}; is the table the one for this layer "
            "(--classes)? A code that means nothing belongs to its nodata"
        )


def _check_codes(name: str, codes: Sequence[int], nodata: Sequence[int]) -> None:
    wrong = [code for code in codes if not 0 < code <= _MAX_CODE or code == UNLABELLED]
    wrong += [code for code in nodata if not 0 <= code <= _MAX_CODE]
    if wrong:
        raise SourceError(
            f"class table {name}: codes lie in [1, {_MAX_CODE}], got {wrong[0]}; 0 is nodata and {UNLABELLED} means "
            "not covered"
        )
    if both := {*codes}.intersection(nodata):
        raise SourceError(f"class table {name}: code {min(both)} stands in two places")


REBEN19 = ClassTable(name="reben19", classes=REBEN.classes, title="CORINE Land Cover 2018")
"""The 44 CORINE codes and reBEN's 19 classes."""


def load_class_table(source: str | os.PathLike[str]) -> ClassTable:
    """A class table from a TOML file, or one that comes with the package.

    The file has a table ``[classes]`` of class name = list of codes, or
    ``{codes = [...], color = "#rrggbb"}``. Above it there may be ``title``, ``unlabelled = [codes]`` (known codes
    without a class), ``nodata = [codes]``, ``labels = "any"`` or ``"majority"``, and ``min_share``, the share of a
    patch that a class must have to be a label.

    Args:
        source: One of `SHIPPED`, or the path of a TOML file.

    Raises:
        SourceError: If the file is none, or gives a code two classes.
    """
    name = os.fspath(source)
    shipped = files("reben_cloud.scenes").joinpath("class_tables", f"{name}.toml")
    path = shipped if shipped.is_file() else local_path(name, "a class table")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        entries, colors = _entries(document["classes"])
        entries += [(int(code), None) for code in document.get("unlabelled", [])]
        nodata = [int(code) for code in document.get("nodata", [])]
        min_share = float(document.get("min_share", 0))
    except FileNotFoundError as error:
        raise SourceError(f"no class table {name}: neither a file nor one of {', '.join(SHIPPED)}") from error
    except (
        tomllib.TOMLDecodeError,
        UnicodeDecodeError,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
    ) as error:
        raise SourceError(
            f"{name}: no class table ({error}); it is a TOML file with [classes] and lines like "
            '"Pastures" = [231]'
        ) from error
    if unknown := [key for key in document if key not in _KEYS]:
        raise SourceError(f"{name}: a class table has no key {unknown[0]!r}; it has {', '.join(_KEYS)}")
    labels = dict(entries)
    if len(labels) != len(entries):
        twice = next(code for code in labels if [c for c, _ in entries].count(code) > 1)
        raise SourceError(f"{name}: code {twice} stands in two places")
    return ClassTable.of(
        name,
        labels,
        colors=colors,
        label_rule=document.get("labels", "any"),
        min_share=min_share,
        nodata=nodata,
        title=str(document.get("title", "")),
    )


def _entries(classes: Mapping[str, Any]) -> tuple[list[tuple[int, str | None]], dict[str, str]]:
    """(Code, class) pairs, and the colour of each class that has one."""
    entries: list[tuple[int, str | None]] = []
    colors: dict[str, str] = {}
    for label, value in classes.items():
        codes = value
        if isinstance(value, dict):
            if unknown := [key for key in value if key not in ("codes", "color")]:
                raise ValueError(f"class {label!r} has a key {unknown[0]!r}; it has codes and color")
            codes = value["codes"]
            if "color" in value:
                colors[label] = str(value["color"]).lower()
        entries += [(int(code), label) for code in codes]
    return entries, colors
