"""Decoders over any timm encoder, which give a class for every pixel: what they share, and the U-Net."""

from __future__ import annotations

from reben_cloud.errors import missing_extra

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error


class Segmenter(nn.Module):
    """A model of maps: an encoder, such as timm's (``features_only``), a decoder, a last layer for every pixel."""

    encoder: nn.Module
    """Gives feature maps, from the finest to the coarsest."""
    head: nn.Module
    """From the decoder's features to logits."""

    def coarsest(self, image: Tensor) -> Tensor:
        """The encoder's coarsest features of float32 (batch, band, y, x): (batch, channel, y, x)."""
        features: Tensor = self.encoder(image)[-1]
        return features


class UNet(Segmenter):
    """A decoder that climbs an encoder's feature maps from the coarsest to the finest, then to the input's size."""

    def __init__(self, encoder: nn.Module, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        widths: list[int] = encoder.feature_info.channels()  # type: ignore[union-attr, operator]
        decoded = [max(width // 2, 16) for width in widths[:-1]]
        inputs = [*decoded[1:], widths[-1]]
        self.steps = nn.ModuleList(
            _convolutions(below + skip, out)
            for below, skip, out in zip(inputs, widths, decoded, strict=False)
        )
        self.head = nn.Conv2d(decoded[0], num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of every pixel.

        Args:
            image: float32 (batch, band, y, x).

        Returns:
            float32 (batch, num_classes, y, x).
        """
        *skips, features = self.encoder(image)
        for step, skip in zip(reversed(self.steps), reversed(skips), strict=True):
            # To the skip's size, not twice one's own: 120 px give 60, 30, 15, 8, 4.
            features = functional.interpolate(features, size=skip.shape[-2:], mode="nearest")
            features = step(torch.cat([features, skip], dim=1))
        logits: Tensor = self.head(features)
        return functional.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def _convolutions(width_in: int, width_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (width_in, width_out):
        layers += [
            nn.Conv2d(width, width_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
