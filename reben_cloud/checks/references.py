"""The payloads of a reference root: whether their objects are the ones that were indexed, and hold what they must."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from reben_cloud.checks.objects import Check
from reben_cloud.errors import ChecksumError, NotFoundError, StorageError
from reben_cloud.root.backing import References
from reben_cloud.root.dataset import Dataset
from reben_cloud.stream.readers.base import Counters, Reader
from reben_cloud.stream.select import StoredSelection, open_reader

PAYLOADS_PER_CHECK = 256
"""Payloads that one unit of work reads."""


def check_versions(backing: References) -> list[str]:
    """Whether every object is the one that was indexed."""
    objects = backing.reader()
    found = []
    for number in range(len(backing.objects)):
        try:
            objects.check_version(number)
        except (ChecksumError, NotFoundError, StorageError) as error:
            found.append(str(error))
    return found


def reference_checks(dataset: Dataset) -> list[Check]:
    """Units that read every payload and compare it with what is known of it.

    Raises:
        ChecksumError: If the table names places outside the objects.
    """
    stored = StoredSelection.of(dataset.selection, None)
    reader = open_reader(stored, Counters(), form="shards", cache_dir=None, cache_bytes=None, keep=1)
    rows = np.arange(len(stored.index))
    return [
        partial(_check, reader, part, some)
        for some in np.split(rows, range(PAYLOADS_PER_CHECK, len(rows), PAYLOADS_PER_CHECK))
        for part in reader.parts
    ]


def _check(reader: Reader, part: tuple[str, ...], stored: NDArray[np.int64]) -> list[str]:
    try:
        reader.load(part, stored)
    except (ChecksumError, NotFoundError, StorageError) as error:
        if len(stored) == 1:
            return [str(error)]
    else:
        return []
    # One of them is damaged; which ones are is found one by one.
    return [text for one in stored for text in _check(reader, part, np.array([one]))]
