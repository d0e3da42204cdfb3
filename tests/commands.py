"""Check that a command written somewhere, in a manifest or a page, is one that the CLI understands."""

import shlex
from collections.abc import Sequence
from typing import Any

import typer.main

from reben_cloud.cli import app


def check_command(arguments: Sequence[str]) -> None:
    """Parse the arguments after ``reben-cloud`` without running anything.

    Raises:
        ValueError: If there is no such command.
        Exception: Of typer's own, if there is no such option or a value is wrong.
    """
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in command.commands:
            raise ValueError(f"no such command: reben-cloud {name}")
        command = command.commands[name]
    if "--help" not in rest:
        command.make_context("reben-cloud", rest)


def command_lines(text: str) -> list[list[str]]:
    """The ``reben-cloud ...`` lines of a shell block, continued lines joined, as argument lists."""
    joined = text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        if "reben-cloud" in words:
            rest = words[words.index("reben-cloud") + 1 :]
            stop = next((i for i, word in enumerate(rest) if word in ("|", ">", "&&", "&", ";")), len(rest))
            found.append(rest[:stop])
    return found
