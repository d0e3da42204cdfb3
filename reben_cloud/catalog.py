"""STAC documents of a root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa


def root_documents(table: pa.Table, manifest: Mapping[str, Any], written: Sequence[Any]) -> dict[str, bytes]:
    """Path below the root -> bytes of every catalog document."""
    return {}
