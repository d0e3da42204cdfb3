"""What zarr-python reads a product's store through: an object that is lost or damaged is an error, not a fill value.

Kept apart from `formats.zarr`, because zarr-python takes a second to import.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zarr.storage import ObjectStore

from reben_cloud.errors import ChecksumError
from reben_cloud.formats.zarr import PIXEL_ARRAYS
from reben_cloud.root import lost
from reben_cloud.store import Store

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class ListedStore(ObjectStore):  # type: ignore[type-arg]
    """A product's Zarr store, read-only, in which every object is known.

    Metadata and coordinates are compared with their sha256; the chunks of pixels have checksums of their own (CRC-32C),
    which zarr-python compares when it decodes them.

    Args:
        store: The product's store.
        sums: Path of each of its objects -> sha256, hex.
    """

    def __init__(self, store: Store, sums: Mapping[str, str]) -> None:
        super().__init__(store.client, read_only=True)
        self._objects = store
        self._sums = dict(sums)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The bytes of an object; None when the root has no such object.

        Raises:
            NotFoundError: If the root must have it.
            ChecksumError: If it is damaged.
        """
        expected = self._sums.get(key)
        compared = expected is not None and byte_range is None and key.split("/")[0] not in PIXEL_ARRAYS
        for _ in range(1 if self._objects.is_local else 2):
            found = await super().get(key, prototype, byte_range)
            if found is None and expected is not None:
                raise lost(self._objects, key)
            if found is None or not compared or hashlib.sha256(found.to_bytes()).hexdigest() == expected:
                return found
        raise ChecksumError(
            f"{self._objects.url}/{key} is not the object that was written, its sha256 differs; copy it again from "
            "where the root was made"
        )
