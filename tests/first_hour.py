"""The first hour of somebody new, as a list of commands with what they print, on every kind of source and store.

    python -m tests.first_hour [WORD ...]

It makes what a newcomer may have (an LMDB of rico-hdl's, a partial TIFF tree, three archives, somebody's root on S3 and
on Azure's emulator) in a folder that goes with it, runs the commands there and prints both. With words, only the parts
whose titles have one of them. Nothing is asserted: it is to be read before a release.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests import official
from tests.conftest import REPOSITORY, ceph
from tests.formats.test_lmdb_records import records_of
from tests.formats.test_lmdb_records import write as write_lmdb
from tests.npm_servers import azure

NUM_PATCHES = 24
SHOWN_LINES = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one newcomer has, and does."""

    title: str
    """What it is."""
    make: Callable[[Path], Mapping[str, str]]
    """Makes it in a folder; returns variables for the commands."""
    commands: tuple[str, ...] = field(default=())
    """Run one after the other, as in a shell."""


def parts(servers: ExitStack) -> tuple[Part, ...]:
    """All of them; servers that a part starts end with `servers`."""
    table = official.table_of(NUM_PATCHES)

    def nothing(_: Path) -> Mapping[str, str]:
        return {}

    def lmdb(folder: Path) -> Mapping[str, str]:
        write_lmdb(folder / "BigEarthNet-LMDB", records_of(table, ("s2", "s1")), table)
        return {}

    def partial_tree(folder: Path) -> Mapping[str, str]:
        official.write_folders(folder / "BigEarthNet", table.slice(0, NUM_PATCHES - 5), ("s1",))
        official.write_folders(folder / "BigEarthNet", table, ("s2", "map"))
        return {}

    def archives(folder: Path) -> Mapping[str, str]:
        official.write_archives(folder / "archives", table)
        return {}

    def bucket(folder: Path) -> Mapping[str, str]:
        server = servers.enter_context(ceph())
        call("reben-cloud bucket create somebody", folder, server.environment)
        call("reben-cloud build synthetic:60 s3://somebody/root", folder, server.environment)
        return server.environment

    def container(folder: Path) -> Mapping[str, str]:
        server = servers.enter_context(azure(folder / "azurite"))
        server.make_container("somebody")
        return server.environment

    return (
        Part(
            title="nothing yet",
            make=nothing,
            commands=(
                "reben-cloud --version",
                "reben-cloud",
                "reben-cloud demo --patches 60",
                "reben-cloud info demo",
                "reben-cloud info demo/root",
                "reben-cloud search demo/root --country ireland --label 'mixed forest' --limit 3",
                "reben-cloud search demo/root --country Irland",
                "reben-cloud stream demo/root --split train --batch-size 8",
                "reben-cloud verify demo/root",
                "reben-cloud build synthetic:60 demo/root",
            ),
        ),
        Part(
            title="an LMDB",
            make=lmdb,
            commands=(
                "reben-cloud info BigEarthNet-LMDB",
                "reben-cloud search BigEarthNet-LMDB --split train --limit 3",
                "reben-cloud stream BigEarthNet-LMDB --batch-size 8",
                "reben-cloud build BigEarthNet-LMDB root",
                "reben-cloud build BigEarthNet-LMDB root",
                "reben-cloud export root few --split train",
                "reben-cloud info few",
            ),
        ),
        Part(
            title="a partial TIFF tree",
            make=partial_tree,
            commands=(
                "reben-cloud info BigEarthNet",
                "reben-cloud build BigEarthNet root",
                "reben-cloud build BigEarthNet root --incomplete skip",
                "head -3 root/incomplete.csv",
                "reben-cloud info root",
                "reben-cloud verify root --against BigEarthNet",
            ),
        ),
        Part(
            title="three archives",
            make=archives,
            commands=(
                "reben-cloud info archives",
                "reben-cloud build archives root --dry-run",
                "reben-cloud build archives root",
                "reben-cloud verify root --deep",
            ),
        ),
        Part(
            title="somebody's root on S3",
            make=bucket,
            commands=(
                "reben-cloud info s3://somebody/rot",
                "reben-cloud info s3://nobody/root",
                "reben-cloud info s3://somebody/root",
                "reben-cloud doctor s3://somebody/root",
                "reben-cloud stream s3://somebody/root --batch-size 8",
                "reben-cloud build s3://somebody/root part --country Finland",
                "AWS_SECRET_ACCESS_KEY=wrong reben-cloud info s3://somebody/root",
            ),
        ),
        Part(
            title="Azure",
            make=container,
            commands=(
                "reben-cloud build synthetic:24 az://somebody/root",
                "reben-cloud info az://somebody/root",
                "reben-cloud doctor az://somebody/root --write",
                "reben-cloud stream az://somebody/root --batch-size 8",
                "reben-cloud verify az://somebody/root",
                "reben-cloud info az://nobody/root",
            ),
        ),
    )


def call(command: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command as a shell does, without a terminal."""
    there = {
        **os.environ,
        **environment,
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "100",
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=there,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def main() -> None:
    """Run the parts and print what they print."""
    with ExitStack() as servers:
        for part in parts(servers):
            if sys.argv[1:] and not any(word in part.title for word in sys.argv[1:]):
                continue
            folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
            environment = part.make(folder)
            sys.stdout.write(f"\n## {part.title}\n")
            for command in part.commands:
                done = call(command, folder, environment)
                lines = done.stdout.replace(str(folder), "/here").splitlines()
                left_out = [f"... {len(lines) - SHOWN_LINES} lines more"] * (len(lines) > SHOWN_LINES)
                shown = "\n".join(["", f"$ {command}", *lines[:SHOWN_LINES], *left_out])
                sys.stdout.write(f"{shown}\n" + f"[{done.returncode}]\n" * bool(done.returncode))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
