"""`RenderRGB`: from a raw batch to pictures, on the device of the batch, the same as an export draws.

Which bands become red, green and blue, and what is black and what brightest, is a dataset's own recipe
(`about.Render`).
"""

from __future__ import annotations

from collections.abc import Mapping

from reben_cloud.about import Channel, Render
from reben_cloud.bigearthnet.about import TRUE_COLOR
from reben_cloud.bigearthnet.reben import REBEN
from reben_cloud.errors import missing_extra
from reben_cloud.schema import Schema
from reben_cloud.torch.records import has_records, pixels_of

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

LEVELS = 255
"""Brightest level of a channel."""


class RenderRGB(nn.Module):
    """Raw batch -> pictures, uint8 [B, 3, y, x]: red, green and blue.

    Args:
        render: Which tensors become red, green and blue, and the fixed stretch: by default true colour, B04, B03 and
            B02, black at 0 and brightest at the digital number 2,500 (reflectance 0.25), with a gamma of 1.5.
        schema: What the batches hold.
        percentiles: Black and brightest of each channel of each picture are these percentiles of its own values, those
            that stand for no data left out, such as ``(2, 98)``. By default the stretch of `render` holds for all
            pictures, so that they can be compared.

    Raises:
        ValueError: If no array of the schema has the tensors, or percentiles do not rise from 0 or more to 100 at most.
    """

    def __init__(
        self,
        render: Render = TRUE_COLOR,
        *,
        schema: Schema = REBEN,
        percentiles: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if (found := render.array_in(schema)) is None:
            wanted = sorted({name for one in render.channels for name in (one.tensor, one.minus) if name})
            raise ValueError(
                f"the picture {render.name} is made of {', '.join(wanted)}, which no array of {schema.name} has; "
                f"it has {', '.join(schema.bands) or 'no band'}"
            )
        if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles must rise from 0 or more to 100 at most, got {percentiles}")
        self.render = render
        """What becomes red, green and blue."""
        self.percentiles = percentiles
        """Percentiles of each picture; None for the stretch of `render`."""
        self._modality, self._array = found

    def extra_repr(self) -> str:
        """Arguments, for ``print(model)``."""
        return f"render={self.render.name}, percentiles={self.percentiles}"

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The pictures of a batch.

        Args:
            batch: Raw batch of a loader, all of it on one device.

        Returns:
            uint8 [B, 3, y, x] on that device; pixels without data are black. Divided by 255, the numbers from 0 to 1
            that vision towers normalise.

        Raises:
            ValueError: If the batch lacks a modality.
        """
        return torch.stack([self._shade(batch, channel) for channel in self.render.channels], dim=1)

    def _shade(self, batch: Mapping[str, Tensor], channel: Channel) -> Tensor:
        values = self._values(batch, channel.tensor)
        there = self._is_data(values, channel.tensor)
        if channel.minus is not None:
            minus = self._values(batch, channel.minus)
            there &= self._is_data(minus, channel.minus)
            values = values - minus
        low: Tensor | float = channel.low
        high: Tensor | float = channel.high
        if self.percentiles is not None:
            low, high = self._range(torch.where(there, values, torch.nan), channel, self.percentiles)
        share = torch.nan_to_num((values - low) / (high - low)).clamp(0, 1)
        return (LEVELS * share ** (1 / self.render.gamma)).round().to(torch.uint8)

    def _values(self, batch: Mapping[str, Tensor], name: str) -> Tensor:
        array = self._array
        if has_records(batch, self._modality.name, self._modality.payload_bytes):
            batch = {array.name: pixels_of(batch[self._modality.name], self._modality, array)}
        if array.name not in batch:
            raise ValueError(
                f"the batch has no {array.name}, which the picture {self.render.name} needs; it has "
                f"{', '.join(batch)}: stream {self._modality.name} too"
            )
        raw = batch[array.name]
        if array.stacked:
            raw = raw[:, array.tensors.index(name)]
        # Twice the width of a model's input: a level is then the one that NumPy gives. Apple's GPUs lack it.
        return raw.to(torch.float32 if raw.device.type == "mps" else torch.float64)

    def _is_data(self, values: Tensor, name: str) -> Tensor:
        return values.isfinite() & (values != self._modality.specs[name].fill)

    @staticmethod
    def _range(values: Tensor, channel: Channel, percentiles: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Black and brightest of each picture, [B, 1, 1], as an export takes them; the channel's where nothing is."""
        shares = torch.tensor(percentiles, dtype=values.dtype, device=values.device) / 100
        low, high = torch.nanquantile(values.flatten(1), shares, dim=1)
        high = torch.where(high > low, high, low + 1)
        is_empty = low.isnan()
        low, high = low.masked_fill(is_empty, channel.low), high.masked_fill(is_empty, channel.high)
        return low[:, None, None], high[:, None, None]
