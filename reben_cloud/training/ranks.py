"""Which of several processes this is; without torch, as commands ask before they know whether they need it."""

from __future__ import annotations

import os


def is_first_rank() -> bool:
    """Whether this process is the one of several, as torchrun starts them, that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"
