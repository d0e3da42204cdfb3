"""Fills the page of commands from the commands themselves, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import typer.main

from reben_cloud.cli import app
from reben_cloud.cli.options import SEARCH

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    command = typer.main.get_command(app)
    return markdown.replace(MARK, "\n".join([*_describe(command, "reben-cloud"), *_search_options(command)]))


def _describe(command: Any, name: str) -> Iterator[str]:
    for part, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _describe(child, f"{name} {part}")
            continue
        yield f"\n## {name} {part}\n\n{child.help or ''}\n"
        yield from _table([one for one in child.params if not _is_of_search(one)])
        if any(map(_is_of_search, child.params)):
            yield "\nIt also takes the [search options](#search-options)."


def _search_options(command: Any) -> Iterator[str]:
    """The conditions, which all commands that take some have alike, once."""
    yield f"\n## {SEARCH}\n\nWhat to take of a root; all conditions that are given must fit.\n"
    yield from _table([one for one in command.commands["search"].params if _is_of_search(one)])


def _is_of_search(parameter: Any) -> bool:
    return getattr(parameter, "rich_help_panel", None) == SEARCH


def _table(parameters: Sequence[Any]) -> Iterator[str]:
    yield "| argument or option | default | meaning |\n|---|---|---|"
    for parameter in parameters:
        is_option = parameter.opts[0].startswith("-")
        names = parameter.opts + parameter.secondary_opts
        shown = ", ".join(f"`{n}`" for n in names) if is_option else f"`{parameter.name.upper()}`"
        default = parameter.default
        empty = default is None or default is False or callable(default) or default == ()
        words = getattr(parameter, "help", None) or ""
        yield f"| {shown} | {'required' if parameter.required else '' if empty else f'`{default}`'} | {words} |"
