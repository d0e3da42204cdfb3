"""Options that commands share: what a path means, where work runs, and every condition of a search.

A command that takes ``query: Query`` is decorated with `search_options` and so has all of `root.query.OPTIONS`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from reben_cloud.errors import RebenError
from reben_cloud.files.paths import ALIASES, SCHEMES, WRITABLE, local_path, split_scheme
from reben_cloud.root.query import OPTIONS, Query

if TYPE_CHECKING:
    from reben_cloud.build import Executor
    from reben_cloud.export.opened import ExportedFiles
    from reben_cloud.root.dataset import Dataset
    from reben_cloud.root.layers import Layer
    from reben_cloud.root.selection import Selection

SEARCH = "Search options"
"""Heading of the conditions of a search in a command's help."""


# -- what a path means ---------------------------------------------------------------------------------


def path(value: str | Path) -> Path:
    """A path of this machine or a ``file://`` URL, as `paths.local_path` has it; another URL is wrong usage."""
    try:
        return local_path(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def whole_path(value: str | Path) -> Path:
    """`path`, absolute and without links."""
    return path(value).resolve()


def path_or_url(value: str) -> str:
    """A path, or a URL of a scheme that this package reads, as it is; another scheme is wrong usage."""
    return _of_scheme(value, (*SCHEMES, *ALIASES, "lmdb"))


def new_root(value: str) -> str:
    """A path or URL where a command can write a root; another scheme is wrong usage."""
    return _of_scheme(value, (*WRITABLE, *ALIASES))


def _of_scheme(value: str, schemes: Sequence[str]) -> str:
    scheme = split_scheme(value)[0]
    if not value.strip():
        raise typer.BadParameter("it is an empty string; the current folder is '.'")
    if scheme is not None and scheme not in schemes:
        raise typer.BadParameter(f"{value!r}: name a path, or a URL of {', '.join(schemes)}")
    return value


def name_or_path(value: str) -> str:
    """A name that the library knows, or else a `path`."""
    return value if split_scheme(value)[0] is None else os.fspath(path(value))


def text_or_file(value: str) -> str:
    """The text itself, or what the file holds whose path stands after ``@``."""
    if not value.startswith("@"):
        return value
    try:
        return local_path(value[1:], "the file").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{value} cannot be read as text: {error}") from error


# -- options -------------------------------------------------------------------------------------------

RootArgument = Annotated[
    str,
    typer.Argument(
        help="Path or URL of a root (file://, s3://, gs://, az://, https://, hf://).",
        show_default=False,
        parser=path_or_url,
    ),
]
NewRootArgument = Annotated[
    str,
    typer.Argument(
        help="Path or URL of the new root (file://, s3://, gs://, az://).",
        show_default=False,
        parser=new_root,
    ),
]
RootOption = Annotated[
    str, typer.Option(help="Path or URL of a root.", show_default=False, parser=path_or_url)
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder for shards of a remote root.", show_default=False, parser=path),
]
EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint-url", envvar="AWS_ENDPOINT_URL", help="Address of the S3 server.", show_default=False
    ),
]
MetadataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--metadata",
        help="Official metadata parquet; may be given twice.",
        show_default=False,
        parser=path,
    ),
]
ModalityOption = Annotated[
    list[str] | None, typer.Option(help="s2, s1, map, or a layer; all by default.", show_default=False)
]
LayerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        help="Path or URL of a layer to stand beside the root; may be given several times.",
        show_default=False,
        parser=path_or_url,
    ),
]
BalancedPowerOption = Annotated[
    float | None,
    typer.Option(help="Rare classes more often, by this power in [0, 1].", show_default=False),
]
DrawsOption = Annotated[
    int, typer.Option(min=0, help="Draws of squares for confidence intervals; 0 for none.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]

# Where work runs: the same for all that takes hours.
DaskOption = Annotated[
    str | None, typer.Option(help="Dask scheduler to use, tcp://HOST:PORT.", show_default=False)
]
WorkerIndexOption = Annotated[
    int | None, typer.Option(help="Do this share of the work only, from 0.", show_default=False)
]
WorkersTotalOption = Annotated[int, typer.Option(help="Number of shares.")]


def check_share(worker_index: int | None, workers_total: int) -> None:
    """Refuse a number of shares without the one to do, and one that is none of them.

    Raises:
        BadParameter: If they do not fit.
    """
    if worker_index is None:
        if workers_total != 1:
            raise typer.BadParameter(
                "--workers-total without --worker-index: say which share to do, from 0, or leave both out to do all"
            )
    elif not 0 <= worker_index < workers_total:
        raise typer.BadParameter(f"--worker-index counts from 0 to {workers_total - 1} (--workers-total)")


def storage_options(endpoint_url: str | None) -> dict[str, Any]:
    """Storage options of the command line; the rest comes from the ``AWS_*`` variables."""
    return {"endpoint_url": endpoint_url} if endpoint_url else {}


def executor(workers: int, dask: str | None) -> Executor:
    """Where work runs: on the Dask cluster that is named, else in local processes."""
    from reben_cloud import build

    return build.dask(dask) if dask else build.local(workers)


def open_root(root: str, endpoint_url: str | None, layers: Sequence[str] | None = None) -> Dataset:
    """The dataset that a command names, with the layers that it names."""
    from reben_cloud.opening import open as open_dataset

    with usage():  # two things of one name
        return open_dataset(root, storage_options(endpoint_url), layers=layers or ())


def find_layer(url: str, endpoint_url: str | None) -> Layer | None:
    """The layer that a command names in the place of a root; None when it is something else."""
    from reben_cloud import opening

    return opening.find_layer(url, storage_options(endpoint_url))


def exported_files(folder: str) -> ExportedFiles | None:
    """The export to files that a command names; None when it is a root, an LMDB, or nothing."""
    from reben_cloud.export.opened import find_exported_files

    return find_exported_files(folder)


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """What the library refuses as an argument is wrong usage; that is not said of damaged data."""
    try:
        yield
    except RebenError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


# -- searching -----------------------------------------------------------------------------------------


def search_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``query: Query`` every option of a search in its place.

    ``--seed`` is the seed of the sample; a command that has a seed of its own uses that one for both.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "query"]
    has_seed = any(one.name == "seed" for one in own)
    hints = {**{one.name: hints[one.name] for one in own}, **_SEARCH_HINTS}
    if not has_seed:
        option = OPTIONS["sample_seed"]
        hints["sample_seed"] = _hint(int, option.flags, option.help, None, "--seed")
    parameters = [one.replace(annotation=hints[one.name]) for one in own]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in ((name, hints[name]) for name in _SEARCH_HINTS)
    ]

    @functools.wraps(command)
    def with_query(**given: Any) -> None:
        conditions = {name: given.pop(name) for name in OPTIONS}
        for name, option in OPTIONS.items():
            file = given.pop(_file_of(name), None)
            if file is not None and conditions[name]:
                raise typer.BadParameter(f"give {option.flags} or {option.file}, not both")
            conditions[name] = conditions[name] if file is None else file
        if has_seed and conditions["sample"] is not None and conditions["sample_seed"] is None:
            conditions["sample_seed"] = given["seed"]
        command(**given, query=Query(**conditions))

    with_query.__annotations__ = hints
    with_query.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_query


_TYPES = {"text": str, "names": list[str], "flag": bool, "number": int, "measure": float}


def _file_of(name: str) -> str:
    """Parameter of the file that lists the names of a condition."""
    return f"{name}_file"


def _hints() -> Iterator[tuple[str, Any]]:
    for name, option in OPTIONS.items():
        parser = text_or_file if name == "intersects" else None
        yield name, _hint(_TYPES[option.kind], option.flags, option.help, parser)
        if option.file is not None:
            yield _file_of(name), _hint(Path, option.file, f"File that lists them, for {option.flags}.", path)


def _hint(kind: Any, flags: str, text: str, parser: Callable[[str], Any] | None, *others: str) -> Any:
    return Annotated[
        kind | None,
        typer.Option(flags, *others, help=text, show_default=False, rich_help_panel=SEARCH, parser=parser),
    ]


_SEARCH_HINTS: dict[str, Any] = dict(_hints())


def select(
    root: str, query: Query, endpoint_url: str | None, layers: Sequence[str] | None = None
) -> Selection:
    """What a search finds in a root; a condition that the search refuses is wrong usage."""
    dataset = open_root(root, endpoint_url, layers)
    with usage():
        return dataset.search(**query.given())


class Command(TyperCommand):
    """A command whose help has a section of its own for each panel of options, as typer's has with colours only."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections: arguments, options, and then the panels."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record is not None:
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
