"""What a trained model's files were when they were written, compared before anything is made of them.

A model's folder has ``SHA256SUMS``, in the form of coreutils: ``sha256sum -c SHA256SUMS`` compares it as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reben_cloud.errors import ChecksumError, NotFoundError
from reben_cloud.files.whole import write_whole

logger = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
"""Name of the file with the checksums of a folder."""

_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
_told: set[Path] = set()


def vouch_for(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of a folder's files, which have just been written; those of others are forgotten."""
    write_whole(folder / SUMS, "".join(_line(folder / name) for name in sorted(names)).encode())


def vouch_for_another(folder: Path, name: str) -> None:
    """Add a file to the checksums of a folder that has some; the others are not computed again."""
    path = folder / SUMS
    if path.is_file():
        lines = [
            line for line in path.read_text().splitlines(keepends=True) if not line.endswith(f"  {name}\n")
        ]
        write_whole(path, "".join([*lines, _line(folder / name)]).encode())


def check_files(folder: Path, needed: Iterable[str]) -> None:
    """Compare a folder's files with its checksums. Where it has none, of an older release, say, that is logged once.

    Args:
        folder: Of a model.
        needed: Names of the files that are to be read.

    Raises:
        ChecksumError: If one is not the file that was written, or nothing vouches for a needed one.
        NotFoundError: If one is gone.
    """
    path = folder / SUMS
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        if (where := folder.resolve()) not in _told:
            _told.add(where)
            logger.warning("%s: no %s, so damage to its files may go unnoticed", folder, SUMS)
        return
    lines = [_LINE.fullmatch(line) for line in text.removesuffix("\n").split("\n")]
    sums = {line[2]: line[1] for line in lines if line is not None}
    unnamed = sorted(set(needed) - set(sums))
    if None in lines or not text.endswith("\n") or unnamed:
        what = f"it does not name {unnamed[0]}" if unnamed else "its lines are not checksums and names"
        raise ChecksumError(f"{path} is damaged: {what}; {_WAY_OUT}")
    for name, expected in sums.items():
        try:
            found = _sha256(folder / name)
        except FileNotFoundError as error:
            raise NotFoundError(f"{folder / name} is gone, and {SUMS} names it; {_WAY_OUT}") from error
        if found != expected:
            raise ChecksumError(
                f"{folder / name} is not the file that was written, its sha256 differs; {_WAY_OUT}"
            )


_WAY_OUT = (
    "copy the folder again from where it came; a run that was killed while it saved mends it when it goes on; and if "
    f"you changed a file on purpose, write {SUMS} again with sha256sum"
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ChecksumError: If it is none.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ChecksumError(f"{path} is damaged, it is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ChecksumError(f"{path} is damaged, it is not a JSON object")
    return document


def _line(path: Path) -> str:
    return f"{_sha256(path)}  {path.name}\n"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
