"""What a model is fed with, and compared with: a model's facts beside the schema of a dataset."""

from __future__ import annotations

from reben_cloud.errors import missing_extra
from reben_cloud.schema import Classes, Schema
from reben_cloud.torch import ModelInput
from reben_cloud.training.models import ModelSpec

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:  # pragma: no cover - the message is tested in a clean environment
    raise missing_extra("torch", "train") from error

_CODES = 2**16


def modalities_for(spec: ModelSpec, schema: Schema) -> tuple[str, ...]:
    """What must be streamed for a model: its bands, and the map if that is what it predicts; in the schema's order.

    Raises:
        ValueError: If the classes of the model are not those of the schema, or it lacks a band or the map.
    """
    _check_classes(spec, schema)
    wanted = set(input_modalities(spec, schema))
    if spec.task == "map":
        target = map_array_of(schema)
        wanted |= {m.name for m in schema.modalities if target in {array.name for array in m.arrays}}
    return tuple(name for name in schema.modality_names if name in wanted)


def input_modalities(spec: ModelSpec, schema: Schema) -> tuple[str, ...]:
    """What must be streamed for a model's input alone, in the schema's order.

    Raises:
        ValueError: If the schema lacks a band.
    """
    for band in spec.bands:
        if band not in schema.bands:
            raise ValueError(
                f"the model takes the band {band}, and {schema.name} has {', '.join(schema.bands)}"
            )
    wanted = {schema.bands[band].modality for band in spec.bands}
    return tuple(name for name in schema.modality_names if name in wanted)


def map_array_of(schema: Schema) -> str:
    """The batch array of the map.

    Raises:
        ValueError: If there is none.
    """
    if schema.map_array is None:
        raise ValueError(f"{schema.name} has no map to predict or to compare with")
    return schema.map_array


def _check_classes(spec: ModelSpec, schema: Schema) -> None:
    ours, theirs = spec.classes.names, schema.classes.names
    if ours == theirs:
        return
    number = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    difference = (
        f"{len(ours)} and not {len(theirs)}"
        if number is None
        else f"number {number} is {ours[number]!r} and not {theirs[number]!r}"
    )
    raise ValueError(
        f"the classes of the model are not those of {schema.name}: {difference}; measured against each other "
        "they would be mixed up"
    )


def model_input(spec: ModelSpec, schema: Schema) -> ModelInput:
    """The module that turns a raw batch into a model's input."""
    return ModelInput(spec.bands, size=spec.image_px, schema=schema, statistics=spec.statistics)


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
