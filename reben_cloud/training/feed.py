"""What a model is fed with, and compared with: a model's facts beside the schema of a dataset."""

from __future__ import annotations

from reben_cloud.schema import Schema
from reben_cloud.torch import ModelInput
from reben_cloud.torch.map_targets import map_array_of
from reben_cloud.training.models import ModelSpec


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
