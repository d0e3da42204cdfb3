"""Does what `reben_cloud.training.torchvision_ops` does for programs that import timm or lightning first.

Put on ``PYTHONPATH`` for subprocesses (Python runs a module of this name at start). It acts when
torchvision is first imported, so that nothing else gets slower.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType


class _BeforeTorchvision:
    """A finder that finds nothing: it declares the operators on the way."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    import torch

    if torch.version.cuda is None:
        from reben_cloud.training.torchvision_ops import declare_operators

        declare_operators()


if not any(type(finder).__name__ == "_BeforeTorchvision" for finder in sys.meta_path):
    sys.meta_path.insert(0, _BeforeTorchvision())
