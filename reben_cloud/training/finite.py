"""Finds outputs and losses that are infinite or not a number, over all processes, at little cost."""

from __future__ import annotations

from reben_cloud.errors import NotFiniteError, missing_extra
from reben_cloud.root.selection import Selection
from reben_cloud.training.compute import Compute

try:
    import torch
    from torch import Tensor
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error


class FiniteCheck:
    """Finds the first step whose numbers are not finite, without waiting for the device at every step.

    Args:
        selection: What the steps' ``index`` counts in.
        compute: This process's part; `check` is for all processes together.
        what: The work, for the message.
    """

    EVERY_STEPS = 64
    """Steps after which it is worth a wait to know."""

    _NONE = 2**63 - 1
    _NOBODY = 2**32 - 1

    def __init__(self, selection: Selection, compute: Compute, what: str) -> None:
        self._selection, self._compute, self._what = selection, compute, what
        # The first step and the patch in one number, so that the smallest of all is the first.
        self._first = torch.tensor(self._NONE, device=compute.device)

    def see(self, step: int, index: Tensor, outputs: Tensor, loss: Tensor | None = None) -> None:
        """Look at a step.

        Args:
            step: Its number, in [0, 2**31).
            index: int64 (batch,), positions in the selection; -1 is padding.
            outputs: Floating (batch, ...).
            loss: Floating scalar.
        """
        bad = ~outputs.detach().isfinite().flatten(1).all(1) & (index >= 0)
        found = torch.where(bad, step << 32 | index, self._NONE).amin()
        if loss is not None:
            found = torch.where(loss.detach().isfinite(), found, found.clamp(max=step << 32 | self._NOBODY))
        self._first = torch.minimum(self._first, found)

    def check(self) -> None:
        """Wait for the device and stop if a step was not finite; every process must call it.

        Raises:
            NotFiniteError: Names the step, and the patch if it was an output.
        """
        self._compute.least(self._first)
        first = int(self._first)
        if first == self._NONE:
            return
        step, index = first >> 32, first & self._NOBODY
        where = "its loss" if index == self._NOBODY else f"the output for {self._selection.patch_ids[index]}"
        raise NotFiniteError(
            f"{self._what} stops at step {step:,}: {where} is infinite or not a number; look at the patch and the "
            "weights, or take precision fp32 (in training also a lower lr, or clip_norm)"
        )
