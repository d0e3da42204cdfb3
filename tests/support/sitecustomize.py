"""Lets torchvision's ordinary wheel load beside a CPU-only torch, where its compiled operators do not.

timm imports torchvision. Only two operator schemas are needed for that, and no test calls the
operators. Put on ``PYTHONPATH`` for subprocesses (Python runs a module of this name at start).
It acts when torchvision is first imported, so that nothing else gets slower.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_LIBRARIES = []


class _BeforeTorchvision:
    """A finder that finds nothing: it declares the operators on the way."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            declare()
        return None


def declare() -> None:
    """Declare the operators, unless the real ones can be had."""
    import torch

    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


if not any(type(finder).__name__ == "_BeforeTorchvision" for finder in sys.meta_path):
    sys.meta_path.insert(0, _BeforeTorchvision())
