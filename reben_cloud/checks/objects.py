"""The objects of a root against its own list: presence, sizes, checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from reben_cloud.errors import ChecksumError, StorageError, UnreachableError
from reben_cloud.root import layout
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.objects import Objects, WrittenObject

Check = Callable[[], list[str]]
"""One unit of work, independent of the others: what it finds is wrong, a sentence each."""


def listed_objects(dataset: Dataset) -> tuple[Objects, list[str]]:
    """The root's list of objects, and what is wrong with the list itself."""
    name = layout.OBJECTS
    try:
        listing = bytes(dataset.store.get(name))
    except FileNotFoundError:
        return Objects([]), [f"{name}: missing, so nothing says what must be there"]
    problems = []
    if hashlib.sha256(listing).hexdigest() != dataset.manifest.objects_sha256:
        problems.append(f"{name}: not the list that the manifest names, its sha256 differs")
    try:
        return Objects.unchecked(listing, where=name), problems
    except ChecksumError as error:
        return Objects([]), [*problems, str(error)]


def check_presence(dataset: Dataset, objects: Objects) -> list[str]:
    """What is missing, of another size, or in no list; one listing of the store."""
    there = dict(dataset.store.list())
    problems = []
    for path, listed in objects.items():
        size = there.get(path)
        if size is None:
            problems.append(f"{path}: missing")
        elif size != listed.nbytes:
            problems.append(f"{path}: {size:,} bytes, must be {listed.nbytes:,}")
    known = {*objects, layout.MANIFEST, layout.OBJECTS}
    foreign = sorted(p for p in there if p not in known and not p.startswith(f"{layout.JOURNAL}/"))
    return problems + [f"{path}: not part of the dataset, it is in no list" for path in foreign]


def checksum_checks(dataset: Dataset, objects: Objects) -> list[Check]:
    """A check per object: whether its bytes have the sha256 that the list says."""
    return [_ChecksumCheck(dataset, listed) for listed in objects.values()]


@dataclass(frozen=True, slots=True)
class _ChecksumCheck:
    """Compare one object with its sha256."""

    dataset: Dataset
    listed: WrittenObject

    def __call__(self) -> list[str]:
        path = self.listed.path
        try:
            data = self.dataset.store.get(path)
        except FileNotFoundError:
            return []  # said already
        except UnreachableError:
            raise  # nor would the others be
        except StorageError as error:
            return [f"{path}: {error}"]
        if data.nbytes == self.listed.nbytes and hashlib.sha256(data).hexdigest() != self.listed.sha256:
            return [f"{path}: damaged, its sha256 differs"]
        return []
