"""Checksums that tell whether a file is still the one that it was, at a bounded cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import xxhash

from reben_cloud.files.system import pread

WHOLE_BYTES = 64 * 1024 * 1024
"""Files up to this size are read whole."""

_STEPS = 256
"""Pages that are read of a larger file, and kibibytes of its end."""

_PAGE_BYTES = 4096

_SAMPLED = 64
"""Of many files, those that are read."""


def sketch(file: Path) -> str:
    """The xxh3-64 of a file of up to 64 MiB; of a larger one, of parts of it that are found by arithmetic.

    The parts are 256 pages of 4 KiB at equal distances, from the first byte on, and the last 256 KiB: 1.25 MiB,
    whatever the size. That tells another file, a hole, a compressed image of other pixels, a database that was
    written to (its first page counts the changes), and an end that did not reach the disk. A change between the
    parts that leaves the size as it is goes unnoticed.

    Returns:
        16 hexadecimal digits; the same for good, they are recorded in exports and receipts.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    digest = xxhash.xxh3_64()
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size <= WHOLE_BYTES:
            digest.update(opened.read())
        else:
            for start in range(0, size - _STEPS, size // _STEPS):
                digest.update(pread(opened.fileno(), _PAGE_BYTES, start))
            digest.update(pread(opened.fileno(), _STEPS * 1024, size - _STEPS * 1024))
    return digest.hexdigest()


def sketch_some(files: Sequence[Path]) -> str:
    """One checksum of the sketches of up to 64 of these files: of the first, and of others at equal distances.

    Returns:
        16 hexadecimal digits.

    Raises:
        FileNotFoundError: If one of them is not there.
    """
    digest = xxhash.xxh3_64()
    for file in files[:: -(-len(files) // _SAMPLED) or 1]:
        digest.update(sketch(file).encode())
    return digest.hexdigest()
