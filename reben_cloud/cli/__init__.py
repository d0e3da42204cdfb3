"""The command ``reben-cloud``: each command is its options and one call into the library.

Results go to stdout, progress and messages to stderr. Exit 0; 1 with one line for a `RebenError`
or an OSError (``-v`` shows the traceback); 2 for wrong usage.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from reben_cloud.cli import bucket, build, data, export, layer, prepare, serve, start, study, train
from reben_cloud.cli.options import Command
from reben_cloud.errors import RebenError

app = typer.Typer(
    name="reben-cloud",
    help="BigEarthNet v2.0 (reBEN) as a cloud-native streaming dataset.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bucket_app = typer.Typer(
    help="Buckets, who may do what in them, and links that share a part.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
layer_app = typer.Typer(
    help="Layers: what others have for the patches of a root, beside it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

for command in (
    start.demo,
    build.build,
    prepare.prepare,
    train.train,
    train.evaluate,
    train.predict,
    study.study,
    export.export,
    build.catalog,
    build.index,
    data.search,
    data.suspects,
    serve.serve,
    build.verify,
    data.info,
    data.stream,
    data.verify_epoch,
    start.doctor,
):
    app.command(cls=Command)(command)
for command in (bucket.create, bucket.policy, bucket.presign):
    bucket_app.command(cls=Command)(command)
app.add_typer(bucket_app, name="bucket")
for command in (
    layer.maps,
    layer.raster,
    layer.folder,
    layer.table,
    layer.labels,
    layer.rebase,
    layer.info,
    layer.remove,
):
    layer_app.command(cls=Command)(command)
app.add_typer(layer_app, name="layer")


def _show_version(wanted: bool) -> None:
    if wanted:
        from reben_cloud import __version__

        typer.echo(f"reben-cloud {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more, show tracebacks.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Options of every command."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr)


_NO_THREAD = "can't start new thread"


def main() -> None:
    """Entry point of the command."""
    verbose = "-v" in sys.argv or "--verbose" in sys.argv
    try:
        if sys.stdout is None:  # as after `>&-`: what a command has to say would go nowhere
            raise OSError("standard output is closed; send it to a file or to /dev/null")
        app(standalone_mode=True)
    except (RebenError, OSError, MemoryError) as error:
        if verbose:
            raise
        typer.echo(f"reben-cloud: {error}", err=True)
        sys.exit(1)
    except RuntimeError as error:
        # The one that Python has where the system lets no further thread start, as containers may.
        if verbose or _NO_THREAD not in str(error):
            raise
        typer.echo(
            f"reben-cloud: {error}: this machine or container allows no more threads or memory (ulimit -u, ulimit -v, "
            "pids limit); raise that, or use fewer threads or workers",
            err=True,
        )
        sys.exit(1)
    except ValueError as error:  # an argument that the library refused
        if verbose:
            raise
        typer.echo(f"reben-cloud: {error}", err=True)
        sys.exit(2)
