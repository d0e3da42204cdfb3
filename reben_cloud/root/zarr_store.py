"""What zarr-python reads a product's store through: an object that is lost or damaged is an error, not a fill value.

It reads through `Store`, so with its budget, its errors and its masking. Kept apart from `formats.zarr`, because
zarr-python takes a second to import.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import ObjectStore

from reben_cloud.formats import zarr
from reben_cloud.root.documents import again
from reben_cloud.root.objects import WrittenObject, read_end
from reben_cloud.store import Store

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype


class ListedStore(ObjectStore[Any]):
    """A product's Zarr store, read-only, in which every object is known.

    Objects that are read whole are compared with their sha256. The chunks of pixels, and the index of each Zarr shard,
    have checksums of their own (CRC-32C): zarr-python compares them too, but could name no object. They do not tell
    a sound shard of another root, so the index is looked for where a shard of the listed size has it. It lists
    with obstore as its base does, which a consolidated store needs not.

    Args:
        store: The product's store.
        listed: Path of each of its objects -> what the root lists of it.
        pixels: Names of the arrays whose chunks have checksums of their own.
    """

    def __init__(self, store: Store, listed: Mapping[str, WrittenObject], pixels: Collection[str]) -> None:
        super().__init__(store.client, read_only=True)
        self._objects = store
        self._listed = dict(listed)
        self._pixels = frozenset(pixels)
        self._indexes: dict[str, NDArray[Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._objects, self._listed, self._pixels)

    def __str__(self) -> str:
        return self._objects.url

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The bytes of an object; None when the root has no such object.

        Raises:
            NotFoundError: If the root must have it.
            ChecksumError: If it is damaged.
        """
        data = await asyncio.to_thread(self._checked, key, byte_range)
        return None if data is None else prototype.buffer.from_bytes(data)

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await asyncio.to_thread(self._objects.exists, key)

    def _checked(self, key: str, span: ByteRequest | None) -> memoryview | None:
        def attempt() -> memoryview:
            found = self._bytes(key, span)
            self._compare(key, span, found)
            return found

        # Nothing else is the root's; zarr-python asks for chunks that have only their fill value.
        return again(self._objects, key, attempt) if key in self._listed else None

    def _compare(self, key: str, span: ByteRequest | None, found: memoryview) -> None:
        """See that what was read of an object is what was written.

        Raises:
            ChecksumError: If it is not.
        """
        array, _, place = key.partition("/")
        if array in self._pixels and place.startswith("c/"):
            self._compare_chunks(key, span, found)
        if span is None:
            self._listed[key].require(found, name=f"{self._objects.url}/{key}")

    def _compare_chunks(self, key: str, span: ByteRequest | None, found: memoryview) -> None:
        name = f"{self._objects.url}/{key}"
        if span is None:
            zarr.check_chunks(found, 0, zarr.decode_index(found[-zarr.INDEX_BYTES :], name=name), name=name)
        elif isinstance(span, SuffixByteRequest) and span.suffix == zarr.INDEX_BYTES:
            self._indexes[key] = zarr.decode_index(found, name=name)
        elif isinstance(span, RangeByteRequest | OffsetByteRequest):
            # Its reader has just asked for the index, to know what to ask for.
            if key not in self._indexes:
                self._indexes[key] = zarr.decode_index(self._end(key, zarr.INDEX_BYTES), name=name)
            start = span.start if isinstance(span, RangeByteRequest) else span.offset
            zarr.check_chunks(found, start, self._indexes[key], name=name)

    def _bytes(self, key: str, span: ByteRequest | None) -> memoryview:
        if span is None:
            return self._objects.get(key)
        if isinstance(span, RangeByteRequest):
            return self._objects.get_range(key, span.start, span.end - span.start)
        if isinstance(span, OffsetByteRequest):
            return self._objects.get(key)[span.offset :]
        return self._end(key, span.suffix)

    def _end(self, key: str, length: int) -> memoryview:
        """The last bytes of an object of the listed size; of one that has another size, something else."""
        return read_end(self._objects, key, length, nbytes=self._listed[key].nbytes)
