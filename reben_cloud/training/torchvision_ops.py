"""Lets timm and torchmetrics load where torchvision's compiled operators do not.

Both import torchvision for its transforms. The ordinary wheel beside a CPU-only torch (or any two builds that do
not fit) lacks its compiled operators, and then ``import torchvision`` fails although nothing here uses them.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_libraries: list[Any] = []


def load_torchvision() -> None:
    """Import torchvision, without its compiled operators where those do not fit this torch.

    Who calls such an operator then gets an error that says so. An absent torchvision is no error here: who
    needs it says what is missing.
    """
    with suppress(ImportError):
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            declare_operators()
            import torchvision  # noqa: F401


def declare_operators() -> None:
    """Declare the operators that torchvision names when it is imported; they compute nothing."""
    make: Any = torch.library.Library
    library = make("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)  # its declarations go when it goes
