"""What a dataset says of its patches: tensors, modalities, classes, and the bytes that follow from them.

This room knows no sensor, file or store.
"""

from reben_cloud.schema.arrays import ArraySpec, Copy, SampleArray
from reben_cloud.schema.classes import MAX_CLASSES, Classes, LabelRule, check_names, did_you_mean, respelled
from reben_cloud.schema.modality import MAX_PAYLOAD_BYTES, Modality
from reben_cloud.schema.tensors import (
    DTYPES,
    Array,
    Buffer,
    Dtype,
    Place,
    TensorSpec,
    safetensors_layout,
)
from reben_cloud.schema.whole import RESERVED, BandPlace, Schema

__all__ = [
    "DTYPES",
    "MAX_CLASSES",
    "MAX_PAYLOAD_BYTES",
    "RESERVED",
    "Array",
    "ArraySpec",
    "BandPlace",
    "Buffer",
    "Classes",
    "Copy",
    "Dtype",
    "LabelRule",
    "Modality",
    "Place",
    "SampleArray",
    "Schema",
    "TensorSpec",
    "check_names",
    "did_you_mean",
    "respelled",
    "safetensors_layout",
]
