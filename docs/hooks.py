"""Fills the page of commands from the commands themselves, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from reben_cloud.cli import app

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return markdown.replace(MARK, "\n".join(_describe(typer.main.get_command(app), "reben-cloud")))


def _describe(command: Any, name: str) -> Iterator[str]:
    for part, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _describe(child, f"{name} {part}")
            continue
        yield f"\n## {name} {part}\n\n{child.help or ''}\n"
        yield "| argument or option | default | meaning |\n|---|---|---|"
        for parameter in child.params:
            is_option = parameter.opts[0].startswith("-")
            names = parameter.opts + parameter.secondary_opts
            shown = ", ".join(f"`{n}`" for n in names) if is_option else f"`{parameter.name.upper()}`"
            default = parameter.default
            empty = default is None or default is False or callable(default) or default == ()
            words = getattr(parameter, "help", None) or ""
            yield f"| {shown} | {'required' if parameter.required else '' if empty else f'`{default}`'} | {words} |"
