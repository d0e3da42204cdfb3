"""The objects of a root against its own list: presence, sizes, checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reben_cloud.checks.claims import objects_digest
from reben_cloud.errors import ChecksumError, StorageError, UnreachableError
from reben_cloud.formats import parquet
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset

Check = Callable[[], list[str]]
"""One unit of work, independent of the others: what it finds is wrong, a sentence each."""


def listed_objects(dataset: Dataset) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the root's list of objects, and what is wrong with the list itself."""
    name = layout.OBJECTS
    try:
        listing = bytes(dataset.store.get(name))
    except FileNotFoundError:
        return [], [f"{name}: missing, so nothing says what must be there"]
    problems = []
    if hashlib.sha256(listing).hexdigest() != objects_digest(dataset):
        problems.append(f"{name}: not the list that the manifest names, its sha256 differs")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(listing, name=name).to_pylist()
    except ChecksumError as error:
        return [], [*problems, str(error)]
    return rows, problems


def check_presence(dataset: Dataset, objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is missing, of another size, or in no list; one listing of the store."""
    there = dict(dataset.store.list())
    problems = []
    for row in objects:
        size = there.get(row["path"])
        if size is None:
            problems.append(f"{row['path']}: missing")
        elif size != row["bytes"]:
            problems.append(f"{row['path']}: {size:,} bytes, must be {row['bytes']:,}")
    known = {row["path"] for row in objects} | {layout.MANIFEST, layout.OBJECTS}
    foreign = sorted(p for p in there if p not in known and not p.startswith(f"{layout.JOURNAL}/"))
    return problems + [f"{path}: not part of the dataset, it is in no list" for path in foreign]


def checksum_checks(dataset: Dataset, objects: Sequence[Mapping[str, Any]]) -> list[Check]:
    """A check per object: whether its bytes have the sha256 that the list says."""
    return [_ChecksumCheck(dataset, row) for row in objects]


@dataclass(frozen=True, slots=True)
class _ChecksumCheck:
    """Compare one object with its sha256."""

    dataset: Dataset
    row: Mapping[str, Any]

    def __call__(self) -> list[str]:
        path = self.row["path"]
        try:
            data = self.dataset.store.get(path)
        except FileNotFoundError:
            return []  # said already
        except UnreachableError:
            raise  # nor would the others be
        except StorageError as error:
            return [f"{path}: {error}"]
        if data.nbytes == self.row["bytes"] and hashlib.sha256(data).hexdigest() != self.row["sha256"]:
            return [f"{path}: damaged, its sha256 differs"]
        return []
