"""`MapTargets`: the codes of a map as numbers of classes, which losses and metrics take."""

from __future__ import annotations

from reben_cloud.errors import missing_extra
from reben_cloud.schema import Classes, Schema

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "torch") from error

_CODES = 2**16


def map_array_of(schema: Schema) -> str:
    """The batch array of the map.

    Raises:
        ValueError: If there is none.
    """
    if schema.map_array is None:
        raise ValueError(f"{schema.name} has no map to predict or to compare with")
    return schema.map_array


class MapTargets(nn.Module):
    """Codes of a map -> class indices, `IGNORED` where a pixel has no class; on the device.

    Args:
        classes: The classes and their codes.
        size: Height and width of the result, pixels, resampled to the nearest; None for the map's own.

    Raises:
        ValueError: If a code is not in [0, 65,536).
    """

    IGNORED = -1

    def __init__(self, classes: Classes, *, size: int | None = None) -> None:
        super().__init__()
        self._size = size
        table = torch.full((_CODES,), self.IGNORED)
        for number, codes in enumerate(classes.codes):
            for code in codes:
                if not 0 <= code < _CODES:
                    raise ValueError(
                        f"class {classes.names[number]!r} has the code {code}; those of a map that is to be "
                        f"learned must be in [0, {_CODES:,})"
                    )
                table[code] = number
        self.register_buffer("table", table, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Class indices, int64 (batch, y, x).

        Args:
            codes: Whole numbers, (batch, y, x).
        """
        native = codes.shape[-1]
        if self._size not in (None, native):
            nearest = torch.arange(self._size, device=codes.device) * native // self._size
            codes = codes.long()[..., nearest[:, None], nearest]
        index = codes.long()
        table = self.get_buffer("table")
        if codes.dtype in (torch.uint8, torch.uint16):
            return table[index]
        known = (index >= 0) & (index < _CODES)
        return torch.where(known, table[torch.where(known, index, 0)], self.IGNORED)
