"""A light transformer decoder over any timm encoder: every place of a map looks at every other one."""

from __future__ import annotations

import math

from reben_cloud.errors import missing_extra
from reben_cloud.training.unet import Segmenter

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

WIDTH, DEPTH, HEADS = 128, 2, 4
"""Of the tokens: 0.4 million weights beside those of the projections, where a U-Net over a ResNet-34 has 3 million."""

_TOKENS_AT = 8
"""Pixels of the input that a token stands for, along one side; finer feature maps are added afterwards."""


class MapTransformer(Segmenter):
    """Feature maps are brought to one width, meet as tokens at an eighth of the input's size, and climb to the finest.

    All that is coarser than an eighth is brought to it and added up; two layers of self-attention over these tokens,
    with fixed sines for their places, so that any size of image works; then finer feature maps are added on the way up.
    """

    def __init__(self, encoder: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        info = encoder.feature_info
        widths: list[int] = info.channels()  # type: ignore[union-attr, operator]
        steps: list[int] = info.reduction()  # type: ignore[union-attr, operator]
        self._num_fine = sum(step < _TOKENS_AT for step in steps)
        self.projections = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in widths)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.attention = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.smooth = nn.ModuleList(_smooth() for _ in range(self._num_fine))
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel.

        Args:
            image: float32 (batch, band, y, x).

        Returns:
            float32 (batch, num_classes, y, x).
        """
        maps = [project(one) for project, one in zip(self.projections, self.encoder(image), strict=True)]
        fine, coarse = maps[: self._num_fine], maps[self._num_fine :]
        found = coarse[0]
        for one in coarse[1:]:
            found = found + _resized(one, found)
        height, width = found.shape[-2:]
        tokens = found.flatten(2).mT + places(height, width, device=found.device)
        found = self.attention(tokens).mT.unflatten(2, (height, width))
        for one, smooth in zip(reversed(fine), self.smooth, strict=True):
            found = smooth(one + _resized(found, one))
        logits: Tensor = self.head(found)
        return _resized(logits, image)


def places(height: int, width: int, *, device: torch.device) -> Tensor:
    """Sines and cosines of row and column, each a quarter of the channels: float32 (height * width, WIDTH)."""
    quarter = WIDTH // 4
    rates = torch.exp(torch.arange(quarter, device=device) * (-math.log(10_000.0) / quarter))
    rows, columns = (torch.arange(size, device=device)[:, None] * rates for size in (height, width))
    row = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)
    column = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([row, column], 2).reshape(height * width, WIDTH)


def _smooth() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.GroupNorm(8, WIDTH), nn.ReLU()
    )


def _resized(one: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(one, size=like.shape[-2:], mode="bilinear", align_corners=False)
