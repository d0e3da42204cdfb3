"""What a result was made from, written beside it, so that "done already" is claimed of equal inputs only.

Files are known by name, size, time of change and checksum. Of files above 64 MiB the checksum is one of stated
parts (`files.sketch`): reading terabytes again to hash them would cost more than what is skipped. Of the official
Sentinel-1 patches, more than a million small files, that of a sample of them (`identify_many`).

So a file that was written again is told even where its size and old time were set again, except for a change
within a large file that keeps its size and meets none of the parts, such as a few pixels of an uncompressed raster, and
for official patches outside of the sample. A file that was only touched counts as another, which costs work but no
truth.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from reben_cloud.files.clutter import is_clutter
from reben_cloud.files.sketch import sketch, sketch_some

_NAMED = 3
"""Differences that a message spells out; one cause often changes many files."""

_CHECKSUM = ", xxh3 "
"""What stands before the checksum in a state."""


def identify(role: str, path: str | os.PathLike[str]) -> dict[str, str]:
    """What a file, or every file below a folder, is known by; what systems leave in folders does not count.

    Args:
        role: What the file is to the user, e.g. ``land cover``.
        path: The file or folder.

    Returns:
        Role and name -> size, time of change and checksum. Folders above do not count, so inputs may be moved.

    Raises:
        FileNotFoundError: If there is no such path.
    """
    given = Path(path)
    if not given.is_dir():
        return {f"{role} {given.name}": _state(given) + _checksum(sketch(given))}
    return {
        f"{role} {file.relative_to(given.parent)}": _state(file) + _checksum(sketch(file))
        for file in _files_below(given)
    }


def identify_many(role: str, paths: Iterable[Path]) -> str:
    """An identity of many files in few characters: names, sizes and times of all, and a checksum of a sample.

    The sample is up to 64 files at equal distances in the order of their names (`files.sketch.sketch_some`).

    Args:
        role: What the files are to the user.
        paths: The files, and folders of some.

    Raises:
        FileNotFoundError: If there is no such path.
    """
    states: dict[str, str] = {}
    files: dict[str, Path] = {}
    for path in paths:
        below = _files_below(path) if path.is_dir() else [path]
        for file in below:
            key = f"{role} {file.relative_to(path.parent)}"
            states[key], files[key] = _state(file), file
    text = json.dumps(states, sort_keys=True)
    whole = f"{len(files):,} files, digest {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return whole + _checksum(sketch_some([files[name] for name in sorted(files)]))


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How two identities differ, for a message; empty where they are equal.

    Args:
        before: What was recorded; without checksums where an earlier version did, which then are not compared.
        now: What is found.
    """
    told = [
        f"{key} is new" if key not in before else f"{key} is gone" if key not in now
        else f"{key}: was {before[key]}, is {now[key]}"
        for key in sorted({*before, *now})
        if before.get(key) not in (now.get(key), *_as_earlier(now.get(key)))
    ]  # fmt: skip
    more = [f"and {len(told) - _NAMED} more"] if len(told) > _NAMED else []
    return "; ".join(told[:_NAMED] + more)


def _files_below(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not is_clutter(name)]
        found += [Path(parent, name) for name in names if not is_clutter(name)]
    return sorted(found)


def _state(path: Path) -> str:
    stat = path.stat()
    seconds, nanoseconds = divmod(stat.st_mtime_ns, 1_000_000_000)
    return f"{stat.st_size:,} bytes of {datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _checksum(hexdigest: str) -> str:
    return f"{_CHECKSUM}{hexdigest}"


def _as_earlier(state: str | None) -> tuple[str, ...]:
    """A state as it was recorded before there were checksums, if it has one."""
    return (state.rpartition(_CHECKSUM)[0],) if state is not None and _CHECKSUM in state else ()
