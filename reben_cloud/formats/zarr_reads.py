"""A Zarr store for zarr-python that reads through `Store`, so with its budget, its errors and its masking."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest
from zarr.storage import ObjectStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

    from reben_cloud.store import Store


class ZarrReads(ObjectStore[Any]):
    """Read-only, below `store`; lists with obstore as its base does, which a consolidated store needs not."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.client, read_only=True)
        self._reads = store

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._reads,)

    def __str__(self) -> str:
        return self._reads.url

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """An object or a range of it; None if there is none."""
        try:
            data = await asyncio.to_thread(self._bytes, key, byte_range)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await asyncio.to_thread(self._reads.exists, key)

    def _bytes(self, key: str, span: ByteRequest | None) -> memoryview:
        if span is None:
            return self._reads.get(key)
        if isinstance(span, RangeByteRequest):
            return self._reads.get_range(key, span.start, span.end - span.start)
        if isinstance(span, OffsetByteRequest):
            return self._reads.get(key)[span.offset :]
        return self._reads.get_end(key, span.suffix)
