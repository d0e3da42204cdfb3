"""The fields extension: what a client wants of each Item."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Fields(NamedTuple):
    """What a client wants of each Item; nested names have a dot."""

    include: set[str] | frozenset[str] | None
    """Nothing but these; None: everything."""
    exclude: set[str]
    """Not these; a field that is in both is included."""


_DEFAULT_FIELDS = frozenset(
    ("type", "stac_version", "id", "geometry", "bbox", "links", "assets", "properties.datetime")
)
"""What the fields extension recommends when `fields` names nothing to include."""

_ALWAYS = frozenset(("type", "stac_version", "id", "collection"))
"""Short and there whatever is asked for, as the extension allows: what makes an answer a STAC Item of something."""


def fields_of_names(names: Sequence[str]) -> Fields:
    """What the names of a query string ask for: ``-name`` leaves one out."""
    include = {name.lstrip("+ ") for name in names if not name.startswith("-")}
    exclude = {name[1:] for name in names if name.startswith("-")}
    return _fields(include, exclude, whole=bool(exclude))


def fields_of_body(given: dict[str, Any]) -> Fields:
    """What the ``fields`` of a JSON body ask for."""
    include, exclude = set(given.get("include") or ()), set(given.get("exclude") or ())
    return _fields(include, exclude, whole=bool(exclude) and "include" not in given)


def _fields(include: set[str], exclude: set[str], *, whole: bool) -> Fields:
    """What is wanted; when nothing is included, `whole` Items or what the extension recommends, less `exclude`."""
    return Fields(include or (None if whole else _DEFAULT_FIELDS - exclude), exclude)


def with_fields(item: dict[str, Any], fields: Fields) -> dict[str, Any]:
    """An Item with nothing but the wanted fields."""
    include = fields.include
    exclude = fields.exclude - (include or set()) - _ALWAYS
    found = {
        name: value
        for name, value in item.items()
        if name not in exclude and (include is None or name in include or name in _ALWAYS)
    }
    nested = _nested(include or ())
    if nested and "properties" not in found:
        found["properties"] = {name: value for name, value in item["properties"].items() if name in nested}
    if "properties" in found and (dropped := _nested(exclude)):
        found["properties"] = {
            name: value for name, value in found["properties"].items() if name not in dropped
        }
    return found


def _nested(names: Iterable[str]) -> set[str]:
    return {name.split(".", 1)[1] for name in names if name.startswith("properties.")}
