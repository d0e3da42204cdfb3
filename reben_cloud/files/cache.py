"""The folder of this machine for what is kept between runs: it can be removed, and costs time to make again."""

from __future__ import annotations

import os
from pathlib import Path

from reben_cloud.files.paths import local_path

CACHE_VARIABLE = "REBEN_CACHE"
"""Environment variable that names the folder."""


def cache_folder() -> Path:
    """Where things are kept: ``$REBEN_CACHE``, or ``reben_cloud`` in the user's cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return local_path(named, CACHE_VARIABLE)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reben_cloud"
