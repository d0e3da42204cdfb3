"""From the payloads of a batch with ``layout="records"`` to its arrays, by views, on whatever device they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.schema import ArraySpec, Modality, Schema

try:
    import torch
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

Batch = dict[str, Any]
"""Name -> tensor; texts, and lists of rows of a table layer, are lists."""


def unpack(batch: Mapping[str, Any], schema: Schema = REBEN) -> Batch:
    """The batch with the arrays of ``layout="arrays"`` in place of its records, bit for bit, on the same device.

    An array whose tensors are neighbours in the payload is a view of the records and keeps them alive; any other is
    put together in new memory. An array that is a view is not contiguous: its samples are a payload apart.

    Args:
        batch: Batch of a loader; one without records is given back as it is.
        schema: What the records are of: ``dataset.schema``, where there are layers or other modalities than reBEN's.

    Returns:
        Name -> tensor, as a loader with ``layout="arrays"`` gives it.
    """
    packed = [m for m in schema.modalities if has_records(batch, m.name, m.payload_bytes)]
    arrays = {a.name: pixels_of(batch[m.name], m, a) for m in packed for a in m.arrays}
    names = {m.name for m in packed}
    return arrays | {name: values for name, values in batch.items() if name not in names}


def has_records(batch: Mapping[str, Any], modality: str, payload_bytes: int) -> bool:
    """Whether a batch has a modality's payloads and not its arrays: an array of bytes is shorter, having no header."""
    found = batch.get(modality)
    return isinstance(found, Tensor) and found.dtype == torch.uint8 and found.shape[1:] == (payload_bytes,)


def pixels_of(records: Tensor, modality: Modality, array: ArraySpec) -> Tensor:
    """One batch array out of records, shape (B, *shape of a sample); a view where its tensors are neighbours."""
    parts = [stack.of(records) for stack in stacks_of(modality, array.tensors)]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return whole if array.stacked else whole[:, 0]


class Stack(NamedTuple):
    """Where tensors of one shape and dtype lie one after the other in the payloads of a modality: all plain values."""

    modality: str
    """Name of the modality."""
    payload_bytes: int
    """Bytes of a payload."""
    offset: int
    """First byte of the first tensor."""
    nbytes: int
    """Bytes of all."""
    shape: tuple[int, ...]
    """How many tensors, and the shape of each."""
    dtype: torch.dtype
    """In which NumPy would hold the values."""

    def of(self, records: Tensor) -> Tensor:
        """The tensors out of records, shape (B, *shape): a view, unless the records start where no such value may."""
        pixels = records[:, self.offset : self.offset + self.nbytes]
        if self.payload_bytes % self.dtype.itemsize:
            pixels = pixels.contiguous()
        return pixels.view(self.dtype).view(len(records), *self.shape)


def stacks_of(modality: Modality, tensors: Sequence[str]) -> list[Stack]:
    """Tensors of one shape and dtype, cut into runs of neighbours in the payload."""
    found: list[Stack] = []
    for name in tensors:
        place, nbytes = modality.places[name], modality.specs[name].nbytes
        last = found[-1] if found else None
        if last and last.offset + last.nbytes == place.offset:
            shape = (last.shape[0] + 1, *place.shape)
            found[-1] = last._replace(nbytes=last.nbytes + nbytes, shape=shape)
        else:
            dtype = _DTYPES[place.dtype.name]
            found.append(
                Stack(modality.name, modality.payload_bytes, place.offset, nbytes, (1, *place.shape), dtype)
            )
    return found


_DTYPES = {
    name: torch.from_numpy(np.empty(0, name)).dtype
    for name in (
        *("bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32"),
        *("float64", "int64", "uint64"),
    )
}
"""Name of a NumPy dtype that holds pixels -> PyTorch's dtype of the same values."""
