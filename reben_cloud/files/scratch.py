"""The folder for what is large and not kept: below the shared temporary folder, and nobody else's.

A run that goes on where another ended must find it again, so its name does not change; but others of the machine cannot
guess it, and so not lay out a folder of theirs, or a link, beforehand.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from reben_cloud.files.cache import cache_folder

logger = logging.getLogger(__name__)

_NAME_FILE = "scratch-name"


def private_scratch() -> Path:
    """The folder, which is made (mode 0700) if it is not there.

    Its name is kept in the cache folder of the user; where that cannot be written, a warning says so, and it is another
    for each process.

    Raises:
        PermissionError: If something of that name is there and not a folder that is this user's alone.
    """
    folder = Path(tempfile.gettempdir()) / f"reben-cloud-{_name()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_ours_alone(folder.lstat()):
            raise PermissionError(
                f"{folder} is not a folder of yours alone (mode 0700): remove it, or name another (--scratch)"
            ) from None
    return folder


def _is_ours_alone(found: os.stat_result) -> bool:
    if not hasattr(os, "getuid"):  # Windows: each user has a temporary folder, and modes say nothing
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _name() -> str:
    kept = cache_folder() / _NAME_FILE
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Made under another name first, so that of two processes none reads a half-written one.
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, prefix=f".{_NAME_FILE}-") as new:
            new.write(secrets.token_hex(16))
            new.flush()
            with suppress(FileExistsError):
                os.link(new.name, kept)
        return kept.read_text().strip()
    except OSError as error:
        logger.warning(
            "%s cannot be kept (%s), so no other process finds what this one unpacks, and none goes on with it; name a "
            "folder for it (--scratch, scratch=)",
            kept,
            error.strerror,
        )
        return _OF_PROCESS


_OF_PROCESS = secrets.token_hex(16)
"""The name where none can be kept."""
