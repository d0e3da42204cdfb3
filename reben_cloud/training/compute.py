"""Where and how this process computes: its device, its rank, the precision of a forward pass."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, Unpack, cast

from reben_cloud.errors import missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.torch import Batch, ReadOptions, StreamLoader

try:
    import torch
    import torch.distributed as dist
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

T = TypeVar("T")

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """Where and how this process computes."""

    device: torch.device
    """This process's device."""
    precision: Precision = "fp32"
    """Of a forward pass."""
    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the device; from pinned memory the copy overlaps with what is computed."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(
            self.device.type, dtype=_DTYPES[self.precision], enabled=self.precision != "fp32"
        )

    def share_of(self, batch_size: int) -> int:
        """Samples of a step that are this process's.

        Raises:
            ValueError: If they cannot be split evenly.
        """
        if batch_size % self.world_size:
            raise ValueError(
                f"batch_size is of all processes: {batch_size} cannot be split over {self.world_size} of them"
            )
        return batch_size // self.world_size

    def stream_once(
        self,
        selection: Selection,
        modalities: Sequence[str],
        batch_size: int,
        *,
        shuffle: bool = True,
        **options: Unpack[ReadOptions],
    ) -> StreamLoader:
        """A loader that gives each patch of a selection once over all processes.

        Args:
            selection: The patches.
            modalities: What of them.
            batch_size: Patches a step over all processes.
            shuffle: As for `StreamLoader`.
            **options: For `StreamLoader`.

        Raises:
            ValueError: If the batch size is not at least 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return StreamLoader(
            selection,
            modalities=modalities,
            batch_size=math.ceil(batch_size / self.world_size),
            shuffle=shuffle,
            rank=self.rank,
            world_size=self.world_size,
            lanes=math.lcm(8, self.world_size),
            **options,
        )

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other; all must have the same shape."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def add_up(self, tensor: Tensor) -> None:
        """Put the sum over all processes in place of each one's tensor."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def least(self, tensor: Tensor) -> None:
        """Put the smallest values over all processes in place of each one's tensor."""
        if self.world_size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MIN)

    def copy_from_first(self, tensor: Tensor) -> None:
        """Put the first process's tensor in place of each one's."""
        if self.world_size > 1:
            dist.broadcast(tensor, 0)

    def once(self, work: Callable[[], T]) -> T:
        """What `work` gives, done by the first process alone; its error is every process's."""
        if self.world_size == 1:
            return work()
        found: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.rank == 0:
            try:
                found = [(work(), None)]
            except Exception as error:  # noqa: BLE001 - raised again below; the others would wait for ever
                found = [(None, error)]
        dist.broadcast_object_list(found, 0)
        result, failed = found[0]
        if failed is not None:
            raise failed
        return cast(T, result)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def compute_context(precision: Precision = "fp32") -> Iterator[Compute]:
    """This process's share of the computing: its GPU if there is one, its rank if torchrun started it.

    A process group that this starts (NCCL with GPUs, gloo without) ends with the context.
    """
    cuda = torch.cuda.is_available()
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if started:
        dist.init_process_group("nccl" if cuda else "gloo")
    ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    try:
        yield Compute(device=device, precision=precision, rank=ranks[0], world_size=ranks[1])
        if started:
            # Gloo's threads need the GIL to let go of the last tensors, and whoever drops the group's last
            # reference joins them with the GIL held: for ever, if it comes first. Waiting gives them the GIL.
            dist.barrier()
    finally:
        if started:
            dist.destroy_process_group()
