"""Batches on a device: copied and transformed one ahead of the one in use, on a stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

from reben_cloud.errors import missing_extra
from reben_cloud.torch.records import Batch

try:
    import torch
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

Transform = Callable[[Batch], Tensor | Batch]
"""What is made of a batch on its device: an image, such as `ModelInput` gives, or another batch."""

IMAGE = "image"
"""Name in a batch of the image that a transform gives."""

T = TypeVar("T")


class _Ahead(NamedTuple, Generic[T]):
    batch: Batch
    """On the device, or on its way there."""
    mark: T
    """What belongs to it."""
    done: torch.cuda.Event | None
    """When it is there; None where nothing is done behind the caller's back."""


class OnDevice:
    """Moves batches to a device and transforms them there.

    With CUDA both are queued on a stream of their own: while the caller computes with a batch, the next one is
    copied. Nobody waits but devices: the stream that is current when a batch is handed out waits for the event at
    its end, and memory goes back to the allocator when the work is done that was queued on that stream until the
    batch was let go. Batches must come in pinned memory of torch's allocator, which knows itself when its copies
    are done, or they are waited for.

    Args:
        device: Where to; a CUDA device without a number is the current one.
        transform: Called with each batch on the device; None leaves it as it is.
    """

    def __init__(self, device: torch.device, transform: Transform | None) -> None:
        if device == torch.device("cuda"):
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        """Where batches go."""
        self._transform = transform
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def run(self, batches: Iterable[tuple[Batch, T]]) -> Iterator[tuple[Batch, T]]:
        """The batches on the device, each with what it came with; the following one is on its way by then."""
        if self._stream is not None:
            # What the transform uses, such as weights, may still be on its way there.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        ahead: _Ahead[T] | None = None
        for batch, mark in batches:
            following = self._send(batch, mark)
            del batch
            if ahead is not None:
                yield self._hand_out(ahead)
            ahead = following
            del following
        if ahead is not None:
            yield self._hand_out(ahead)

    def _send(self, batch: Batch, mark: T) -> _Ahead[T]:
        if self._stream is None:
            return _Ahead(self._on_device(batch), mark, None)
        with torch.cuda.stream(self._stream):
            return _Ahead(self._on_device(batch), mark, self._stream.record_event())

    def _on_device(self, batch: Batch) -> Batch:
        there = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
        if self._transform is None:
            return there
        made = self._transform(there)
        return {**there, IMAGE: made} if isinstance(made, Tensor) else made

    def _hand_out(self, ahead: _Ahead[T]) -> tuple[Batch, T]:
        if ahead.done is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(ahead.done)
            for value in ahead.batch.values():
                if isinstance(value, Tensor) and value.is_cuda:
                    value.record_stream(current)
        return ahead.batch, ahead.mark
