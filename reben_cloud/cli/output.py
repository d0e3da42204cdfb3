"""What a command prints on stdout: JSON for a machine, or lines for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class Telling(DataclassInstance, Protocol):
        """A frozen value that says in lines what it holds."""

        def to_text(self) -> str:
            """The lines."""
            ...


def show(report: Telling, as_json: bool) -> None:
    """A report, as its fields or in its own lines."""
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else report.to_text())


def show_json(value: Any) -> None:
    """Anything that JSON knows."""
    typer.echo(json.dumps(value, indent=2))
