"""`PinnedBatches`: batches in memory that a CUDA device copies from, written again only when it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from reben_cloud.errors import missing_extra
from reben_cloud.schema import SampleArray
from reben_cloud.stream.gather import Slot
from reben_cloud.torch.records import Batch

try:
    import torch
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error


def _pinned(nbytes: int) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class PinnedBatches:
    """Batches in pinned memory of torch's own allocator, as a ``DataLoader`` with ``pin_memory`` has them.

    Each batch is new memory to us. The allocator records an event on the stream of every ``non_blocking``
    copy from its memory, whichever stream that is, and gives memory out again only when it was let go and all
    its events are done. We could see only the streams that are current when a batch is let go, in whatever
    thread that is. It knows its memory by the tensor, so no array in between is handed out.

    Args:
        specs: Name, shape and dtype of every array of a batch.
        allocate: Makes so many bytes of pinned memory.
    """

    def __init__(
        self, specs: Mapping[str, SampleArray], *, allocate: Callable[[int], Tensor] = _pinned
    ) -> None:
        self._specs = specs
        self._allocate = allocate

    def take(self) -> Slot:
        """A slot in memory that no copy reads any more."""
        return _TensorSlot({name: self._make(spec) for name, spec in self._specs.items()})

    def hand_out(self, slot: Slot, num_rows: int) -> Batch:
        """The first rows of every tensor."""
        assert isinstance(slot, _TensorSlot)
        return {name: tensor[:num_rows] for name, tensor in slot.tensors.items()}

    def give_back(self, slot: Slot) -> None:
        """Return a slot that was not handed out: its memory goes back to the allocator by itself."""

    def _make(self, spec: SampleArray) -> Tensor:
        # Through bytes: the dtype's name in torch is not needed.
        dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
        return self._allocate(spec.nbytes).view(dtype).view(spec.shape)


class _TensorSlot(Slot):
    def __init__(self, tensors: Batch) -> None:
        super().__init__({name: tensor.numpy() for name, tensor in tensors.items()})
        self.tensors = tensors
