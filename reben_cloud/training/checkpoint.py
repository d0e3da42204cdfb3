"""The file with which a run goes on: what ``torch.save`` writes, and its own checksum.

The file is a ZIP archive, and the checksum its comment, so that ``torch.load`` reads it as any other. The CRC-32 that a
ZIP has of each record would not do: torch does not compare them, and they say nothing of the directory of records.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reben_cloud.errors import ChecksumError, missing_extra
from reben_cloud.files.whole import replacing

try:
    import torch
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

logger = logging.getLogger(__name__)

_SUM_BYTES = 64
_NO_COMMENT, _COMMENT = bytes(2), _SUM_BYTES.to_bytes(2, "little")
# The last record of a ZIP archive without a comment, whose last field is the length of one (APPNOTE 4.3.16).
_END_BYTES, _END_MAGIC = 22, b"PK\5\6"


def save_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Write a state, all of it or nothing."""
    with replacing(path) as new:
        torch.save(dict(state), new)
        with new.open("r+b") as file:
            end = file.seek(-len(_NO_COMMENT), 2)
            file.write(_COMMENT + _sum_of(new, end))


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a state, compared with its checksum first. Where it has none, of an older release, that is logged.

    Raises:
        ChecksumError: If it is not what was written.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_COMMENT) - _SUM_BYTES))
        last = file.read()
    length, written = last[: len(_COMMENT)], last[len(_COMMENT) :]
    if length == _COMMENT:
        if _sum_of(path, size - len(last)) != written:
            raise ChecksumError(f"{path} is damaged, its sha256 differs; {_WAY_OUT}")
    elif last[-_END_BYTES:].startswith(_END_MAGIC) and last.endswith(_NO_COMMENT):
        logger.warning("%s: no checksum, so damage to it may go unnoticed", path)
    else:
        raise ChecksumError(f"{path} is damaged, its end is not that of a checkpoint; {_WAY_OUT}")
    state = torch.load(path, map_location=device, weights_only=True)
    assert isinstance(state, dict)
    return state


_WAY_OUT = "put a copy of it back; without one, delete the folder and train from the start"


def _sum_of(path: Path, end: int) -> bytes:
    """The sha256 of the first bytes of a file, as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(min(1 << 20, end - file.tell())):
            digest.update(block)
    return digest.hexdigest().encode()
