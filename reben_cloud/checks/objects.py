"""The objects of a root or a layer against its own list: presence, sizes, checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reben_cloud.errors import ChecksumError, StorageError, UnreachableError
from reben_cloud.root import layout
from reben_cloud.root.objects import Objects, WrittenObject
from reben_cloud.store import Store

Check = Callable[[], list[str]]
"""One unit of work, independent of the others: what it finds is wrong, a sentence each."""


def listed_objects(store: Store, sha256: str | None) -> tuple[Objects, list[str]]:
    """The list of objects, and what is wrong with the list itself, whose sha256 is said."""
    name = layout.OBJECTS
    try:
        listing = bytes(store.get(name))
    except FileNotFoundError:
        return Objects(), [f"{name}: missing, so nothing says what must be there"]
    problems = []
    if hashlib.sha256(listing).hexdigest() != sha256:
        problems.append(f"{name}: not the list that the manifest names, its sha256 differs")
    try:
        return Objects.unchecked(listing, where=name), problems
    except ChecksumError as error:
        return Objects(), [*problems, str(error)]


def check_presence(store: Store, sizes: Mapping[str, int], unlisted: Iterable[str]) -> list[str]:
    """What is missing, of another size, or in no list; one listing of the store.

    Args:
        store: The root or the layer.
        sizes: Path -> bytes of each object that must be there.
        unlisted: What may be there besides.
    """
    there = dict(store.list())
    problems = []
    for path, nbytes in sizes.items():
        size = there.get(path)
        if size is None:
            problems.append(f"{path}: missing")
        elif size != nbytes:
            problems.append(f"{path}: {size:,} bytes, must be {nbytes:,}")
    known = {*sizes, *unlisted}
    foreign = sorted(p for p in there if p not in known and not p.startswith(f"{layout.JOURNAL}/"))
    return problems + [f"{path}: not part of the dataset, it is in no list" for path in foreign]


def checksum_checks(store: Store, objects: Objects) -> list[Check]:
    """A check per object: whether its bytes have the sha256 that the list says."""
    return [_ChecksumCheck(store, listed) for listed in objects.values()]


@dataclass(frozen=True, slots=True)
class _ChecksumCheck:
    """Compare one object with its sha256."""

    store: Store
    listed: WrittenObject

    def __call__(self) -> list[str]:
        path = self.listed.path
        try:
            data = self.store.get(path)
        except FileNotFoundError:
            return []  # said already
        except UnreachableError:
            raise  # nor would the others be
        except StorageError as error:
            return [f"{path}: {error}"]
        if data.nbytes == self.listed.nbytes and hashlib.sha256(data).hexdigest() != self.listed.sha256:
            return [f"{path}: damaged, its sha256 differs"]
        return []
