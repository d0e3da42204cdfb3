"""Check a root against its own checksums, and its three forms against each other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reben_cloud.build import JOURNAL, MANIFEST
from reben_cloud.dataset import Dataset
from reben_cloud.errors import StorageError

Progress = Callable[[Iterable[str | None], int], Iterable[str | None]]
"""Wraps the stream of findings, one (or None) an object; the second argument is their number."""

_THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `verify` found."""

    url: str
    """The root."""
    num_objects: int
    """Objects that were checked."""
    num_bytes: int
    """Bytes that were read."""
    problems: tuple[str, ...] = field(default=())
    """One sentence a problem, each names the object."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> str:
        """The report for machines."""
        fields = {name: getattr(self, name) for name in ("url", "num_objects", "num_bytes", "problems")}
        return json.dumps({**fields, "ok": self.ok}, indent=2)


def verify(dataset: Dataset, *, progress: Progress = lambda findings, total: findings) -> Report:
    """Read every object of a root and compare size and sha256 with ``objects.parquet``.

    Args:
        dataset: The opened root.
        progress: Wraps the findings as they come.

    Returns:
        The report; a damaged root is a finding, not an exception.

    Raises:
        StorageError: If the store cannot be reached.
    """
    store = dataset.store
    problems: list[str] = []
    listing = bytes(store.get("objects.parquet"))
    if hashlib.sha256(listing).hexdigest() != dataset.manifest["objects_sha256"]:
        problems.append("objects.parquet: not the list that the manifest names, its sha256 differs")
    rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(listing)).to_pylist()

    def check(row: dict[str, Any]) -> str | None:
        path = row["path"]
        try:
            data = store.get(path)
        except FileNotFoundError:
            return f"{path}: missing"
        except StorageError as error:
            return f"{path}: {error}"
        if data.nbytes != row["bytes"]:
            return f"{path}: {data.nbytes:,} bytes, must be {row['bytes']:,}"
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return f"{path}: damaged, its sha256 differs"
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        problems += [found for found in progress(pool.map(check, rows), len(rows)) if found]
    known = {row["path"] for row in rows} | {MANIFEST, "objects.parquet"}
    for path, _ in store.list():
        if path not in known and not path.startswith(f"{JOURNAL}/"):
            problems.append(f"{path}: not part of the dataset, it is in no list")
    return Report(
        url=store.url,
        num_objects=len(rows),
        num_bytes=sum(row["bytes"] for row in rows),
        problems=tuple(problems),
    )
