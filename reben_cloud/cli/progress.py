"""What stderr shows while a command works, and what it says when Ctrl-C ends it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import typer

from reben_cloud.training.ranks import is_first_rank

if TYPE_CHECKING:
    from reben_cloud.stream import RawLoader
    from reben_cloud.torch import StreamLoader
    from reben_cloud.training.log import StepInfo
    from reben_cloud.training.study.jobs import Outcome

T = TypeVar("T")


def bar(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """`items`, with a bar on stderr on a terminal; elsewhere a line at once, after 2 s, every 10 s and at the end."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Rate(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            Rate(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=console, transient=True) as shown:
            yield from shown.track(items, total=total, description=what)
        return
    if not total:
        yield from items
        return
    typer.echo(f"{what}: 0 of {total:,}", err=True)
    count = 0
    start, due = time.monotonic(), 2.0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - start >= due:
            rate = count / (now - start)
            left = timedelta(seconds=round((total - count) / rate))
            typer.echo(f"{what}: {count:,} of {total:,}, {rate:,.1f}/s, {left} left", err=True)
            due = now - start + 10
    took = timedelta(seconds=round(time.monotonic() - start))
    of = f" of {total:,}" if count == total else ""  # some totals are bounds, and fewer were all
    typer.echo(f"{what}: {count:,}{of} in {took}", err=True)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[StepInfo], None]]:
    """Where a training run is, how fast, and how much it waits: a bar on a terminal, else lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(
        *columns, console=console, transient=True, disable=not (is_first_rank() and console.is_terminal)
    ) as shown:
        task = shown.add_task("", total=None)

        def on_step(info: StepInfo) -> None:
            text = (
                f"epoch {info.epoch}  loss {info.loss:.4f}  {info.samples_per_s:,.0f} samples/s  "
                f"waiting {info.wait_share:.1%}"
            )
            shown.update(task, completed=info.step, total=info.num_steps, description=text)
            if not console.is_terminal:
                typer.echo(f"step {info.step:,} of {info.num_steps:,}  {text}", err=True)

        yield on_step


class Runs:
    """Where a study is: a bar of its runs and one of the run in this process on a terminal, else lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        live = is_first_rank() and self._console.is_terminal
        self._shown = Progress(*columns, console=self._console, transient=True, disable=not live)
        self._run = self._shown.add_task("", total=None, visible=False)

    def __enter__(self) -> Runs:
        self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.stop()

    def on_step(self, info: StepInfo) -> None:
        """Show where the run in this process is."""
        text = f"epoch {info.epoch}  loss {info.loss:.4f}  {info.samples_per_s:,.0f} samples/s"
        self._shown.update(
            self._run, completed=info.step, total=info.num_steps, description=text, visible=True
        )

    def progress(self, outcomes: Iterable[Outcome], total: int, what: str) -> Iterator[Outcome]:
        """The outcomes of the runs, each with a line."""
        task = self._shown.add_task(what, total=total)
        if is_first_rank() and total:
            self._shown.console.print(f"{what}: {total:,} runs to do", highlight=False)
        for number, outcome in enumerate(outcomes, 1):
            self._shown.update(task, completed=number)
            if is_first_rank():
                line = f"{number:,} of {total:,}  {outcome.run}  {outcome.to_text()}"
                self._shown.console.print(line, highlight=False, markup=False, soft_wrap=True)
            yield outcome


def rates(loader: RawLoader | StreamLoader, epochs: int) -> Iterator[object]:
    """The batches of some epochs, with the loader's figures on stderr: live, or after 2 s and every 10 s."""
    from rich.console import Console

    console = Console(stderr=True)
    every_s = 0.5 if console.is_terminal else 10.0
    due = time.monotonic() + min(every_s, 2.0)
    with console.status("streaming") as status:
        for epoch in range(epochs):
            for number, batch in enumerate(loader, 1):
                yield batch
                if time.monotonic() >= due:
                    due = time.monotonic() + every_s
                    line = f"epoch {epoch}, batch {number} of {len(loader)}: {loader.stats().to_line()}"
                    if console.is_terminal:
                        status.update(line)
                    else:
                        typer.echo(line, err=True)


def bar_of_first_rank(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """`bar`, on the process that speaks; the others only work."""
    return bar(items, total, what) if is_first_rank() else items


@contextlib.contextmanager
def ends_at_once(what_is_done: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C end the process, with a line that says what is done and that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"reben-cloud: stopped{what_is_done()} the same command goes on from there", err=True)
        # Not `sys.exit`, which waits for what is under way; worker processes end with this one.
        os._exit(130)
