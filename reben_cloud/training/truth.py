"""The labels that a model learns or is measured by: those of the dataset, or others that a table layer has."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reben_cloud.root.arrow import mask_of
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layout import LABELS
from reben_cloud.root.selection import Selection


def labels_of(selection: Selection, column: str = "") -> NDArray[np.uint8]:
    """Which classes each patch of a selection has.

    Args:
        selection: Patches of a dataset opened with the layer.
        column: Column of a table layer, ``layer:column``: a list of 0 and 1, one for each class of the schema in its
            order. Empty for the dataset's own labels.

    Returns:
        uint8 (len(selection), num_classes), 0 or 1.

    Raises:
        ValueError: If there is no such column, it is not of such lists, or a patch has none.
    """
    classes = selection.dataset.schema.classes
    if not column:
        return classes.encode(selection.column(LABELS))
    require_labels(selection.dataset, column)
    layer = _layer_of(column)
    found = selection.column(column)
    if not pa.types.is_fixed_size_list(found.type) or found.type.list_size != len(classes):
        raise ValueError(
            f"labels: {column} is of the type {found.type}, and must be lists of {len(classes)} numbers, one for each "
            "class"
        )
    missing = ~mask_of(found.is_valid())
    if missing.any():
        first = selection.patch_ids[int(missing.argmax())]
        raise ValueError(
            f"labels: {int(missing.sum()):,} of {len(selection):,} patches have no {column}, the first is {first}; "
            f'leave such patches out with has = "{layer}" in each subset'
        )
    lists = found.combine_chunks()
    values = np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(len(selection), len(classes))
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"labels: {column} must hold 0 and 1 alone, got {values[~np.isin(values, (0, 1))][0]}"
        )
    return values.astype(np.uint8)


def require_labels(dataset: Dataset, column: str) -> None:
    """Refuse labels that a dataset does not have.

    Raises:
        ValueError: If it has no such column; the message says what it is made of.
    """
    if column and (":" not in column or column not in dataset.patch_table.names):
        raise ValueError(f"labels: {dataset.url} has no column {column!r}; {_way_out(_layer_of(column))}")


def _layer_of(column: str) -> str:
    return column.partition(":")[0]


def _way_out(layer: str) -> str:
    if layer == V1:
        return (
            "labels of BigEarthNet v1 come from its own files (`<patch>_labels_metadata.json`, in "
            "BigEarthNet-v1.0.tar.gz), which are joined by s2v1_name: unpack it, make a layer of it with `reben-cloud "
            f"layer labels FOLDER ROOT DEST --name {V1}`, and name that with --layer"
        )
    return "name the table layer that has it (--layer)"


V1 = "v1"
"""Layer of the labels of BigEarthNet v1 in the recipes that come with the package."""
