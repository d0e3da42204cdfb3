"""What a result was made from, written beside it, so that "done already" is claimed of equal inputs only.

Files are known by name, size and time of change: reading terabytes again to hash them would cost more
than what is skipped. A file that was only touched counts as another, which costs work but no truth.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from reben_cloud.files.clutter import is_clutter

_NAMED = 3
"""Differences that a message spells out; one cause often changes many files."""


def identify(role: str, path: str | os.PathLike[str]) -> dict[str, str]:
    """What a file, or every file below a folder, is known by; what systems leave in folders does not count.

    Args:
        role: What the file is to the user, e.g. ``land cover``.
        path: The file or folder.

    Returns:
        Role and name -> size and time of change. Folders above do not count, so inputs may be moved.

    Raises:
        FileNotFoundError: If there is no such path.
    """
    given = Path(path)
    if not given.is_dir():
        return {f"{role} {given.name}": _state(given)}
    found: list[Path] = []
    for folder, folders, names in os.walk(given):
        folders[:] = [name for name in folders if not is_clutter(name)]
        found += [Path(folder, name) for name in names if not is_clutter(name)]
    return {f"{role} {file.relative_to(given.parent)}": _state(file) for file in sorted(found)}


def _state(path: Path) -> str:
    stat = path.stat()
    seconds, nanoseconds = divmod(stat.st_mtime_ns, 1_000_000_000)
    return f"{stat.st_size:,} bytes of {datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def digest(identity: Mapping[str, str]) -> str:
    """An identity of many files in few characters; it still differs when one file does."""
    text = json.dumps(identity, sort_keys=True)
    return f"{len(identity):,} files, digest {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How two identities differ, for a message; empty where they are equal."""
    told = [
        f"{key} is new" if key not in before else f"{key} is gone" if key not in now
        else f"{key}: was {before[key]}, is {now[key]}"
        for key in sorted({*before, *now}) if before.get(key) != now.get(key)
    ]  # fmt: skip
    more = [f"and {len(told) - _NAMED} more"] if len(told) > _NAMED else []
    return "; ".join(told[:_NAMED] + more)
