"""Check that a command written somewhere, in a manifest or a page, is one that the CLI understands."""

import shlex
from collections.abc import Sequence
from typing import Any

import typer.main
from typer.testing import CliRunner, Result

from reben_cloud.cli import app
from reben_cloud.errors import RebenError


def invoke(*arguments: object) -> Result:
    """Run a command in this process; its output and its exception."""
    return CliRunner().invoke(app, [str(one) for one in arguments])


def told(*arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, as a shell has them of an error of the package."""
    result = invoke(*arguments)
    if isinstance(result.exception, RebenError):
        return 1, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


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
