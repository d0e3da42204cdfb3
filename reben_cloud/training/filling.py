"""Plain values, as TOML and JSON have them, into dataclasses: unknown keys and wrong types are refused by name.

What the keys mean is the matter of the classes (`training.config`, `training.study.grid`).
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from reben_cloud.files.paths import local_path

T = TypeVar("T")

Reader = Callable[[Mapping[str, Any], str, Any], object]
"""From a table, a prefix for messages, and what is there by default, to a value."""


def read_toml(name: str | os.PathLike[str], ours: Traversable, what: str) -> dict[str, Any]:
    """The plain values of a TOML file.

    Args:
        name: Name of one that comes with the package, or a path.
        ours: Folder of those that come with it.
        what: What it is, for messages.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If it is not valid TOML.
    """
    given, known = os.fspath(name), toml_names(ours)
    if given in known:
        data = ours.joinpath(f"{given}.toml").read_bytes()
    elif (path := local_path(given, f"a {what}")).is_file():
        data = path.read_bytes()
    else:
        raise FileNotFoundError(f"no {what} {given!r}: neither a TOML file nor one of {', '.join(known)}")
    try:
        return tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{given} is not valid TOML: {error}") from error


def toml_names(folder: Traversable) -> list[str]:
    """Names of the TOML files in a folder, without ``.toml``."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def change(values: dict[str, Any], override: str) -> None:
    """Change one of nested plain values, by ``key=value`` or ``table.key=value``, with the value as in TOML.

    Raises:
        ValueError: If it is not written so, or what it names as a table is none.
    """
    key, found, text = override.partition("=")
    if not found:
        raise ValueError(f"--set {override!r}: write key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {override!r}: {table} is not a table, but {values!r}")
    values[last] = value


def fill(
    kind: type[T],
    values: Mapping[str, Any],
    prefix: str = "",
    default: T | None = None,
    *,
    readers: Mapping[type, Reader] = MappingProxyType({}),
) -> T:
    """A dataclass with some values in it.

    Args:
        kind: The dataclass.
        values: Name of a field -> value.
        prefix: What stands before the names in messages.
        default: What else is in it; by default that of the class.
        readers: Of fields of a type that has a table of another form: from table, prefix and default to a value.

    Raises:
        ValueError: If it has no such field, or a value is of a wrong type or refused by the class.
    """
    hints = typing.get_type_hints(kind)
    filled: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"unknown key {prefix + key!r}; known are {', '.join(hints)}")
        if (read := readers.get(hints[key])) is not None:
            filled[key] = read(as_table(prefix + key, value), f"{prefix}{key}.", getattr(default, key))
        else:
            filled[key] = convert(prefix + key, value, hints[key])
    try:
        return kind(**filled) if default is None else dataclasses.replace(default, **filled)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error
    except TypeError as error:
        raise ValueError(f"{prefix.removesuffix('.')} needs {' and '.join(hints)}") from error


def as_table(key: str, value: Any) -> Mapping[str, Any]:
    """A value that must be a table.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is a table such as [{key}], got {value!r}")
    return value


def convert(key: str, value: Any, hint: Any) -> Any:
    """A value as a type has it: a whole number where a float is wanted, one item where several are.

    Args:
        key: What to call it in messages.
        value: As TOML or JSON has it.
        hint: The type: of a number, a truth value or a string, or a union, a literal, a tuple or a mapping of such.

    Raises:
        ValueError: If it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        require(key, value, value in arguments, " or ".join(map(repr, arguments)))
    elif origin in (typing.Union, types.UnionType):
        for one in arguments:
            with suppress(ValueError):
                return convert(key, value, one)
        require(key, value, False, " or ".join(map(_hint_text, arguments)))
    elif origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(key, item, arguments[0]) for item in items)
    elif origin is Mapping:
        return {
            name: fill(arguments[1], as_table(f"{key}.{name}", one), f"{key}.{name}.")
            for name, one in as_table(key, value).items()
        }
    elif hint is float:
        require(key, value, isinstance(value, int | float) and not isinstance(value, bool), "a number")
        return float(value)
    else:
        require(key, value, type(value) is hint, f"of type {hint.__name__}")
    return value


def _hint_text(hint: Any) -> str:
    return " or ".join(map(repr, typing.get_args(hint))) or f"of type {hint.__name__}"


def require(key: str, value: object, right: bool, expected: str) -> None:
    """Refuse a value.

    Args:
        key: What to call it in the message.
        value: The value.
        right: Whether it is as it must be.
        expected: What it must be.

    Raises:
        ValueError: If it is not.
    """
    if not right:
        raise ValueError(f"{key} must be {expected}, got {value!r}")
