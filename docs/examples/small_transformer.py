"""A small transformer for any bands, as an example of an encoder of one's own; it ships no weights.

Each band is cut into patches of its own and has an embedding of its own, so that bands may be left out, added and
shared between models. Put the folder of this file into PYTHONPATH, and name it in a recipe:

    architecture = "small_transformer:make"
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reben_cloud.training.encoders import takes_bands

SIDE_PX, WIDTH, DEPTH, HEADS = 20, 64, 3, 4


class SmallTransformer(nn.Module):
    """From (batch, band, y, x) to the mean over the tokens of all bands, (batch, WIDTH)."""

    def __init__(self, bands: Sequence[str], image_px: int) -> None:
        super().__init__()
        self.bands = tuple(bands)
        self.cut = nn.Conv2d(1, WIDTH, SIDE_PX, stride=SIDE_PX)
        self.place = nn.Parameter(0.02 * torch.randn((image_px // SIDE_PX) ** 2, WIDTH))
        self.band = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(WIDTH)) for name in bands})
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)

    def forward(self, image: Tensor) -> Tensor:
        """Features of each image."""
        tokens = [
            self.cut(image[:, number : number + 1]).flatten(2).mT + self.place + self.band[name]
            for number, name in enumerate(self.bands)  # a ParameterDict has an order of its own
        ]
        found: Tensor = self.blocks(torch.cat(tokens, 1)).mean(1)
        return found

    def layers(self) -> list[str]:
        """What `freeze` and `layer_decay` take for layers, from the input to the output."""
        return [r"(?:cut|place|band)", r"blocks\.layers\.(\d+)"]


@takes_bands
def make(bands: Sequence[str], *, image_px: int) -> nn.Module:
    """The encoder for these bands."""
    return SmallTransformer(bands, image_px)
