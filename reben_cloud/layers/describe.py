"""What an array layer adds to every patch: its modality, from the tensors that somebody has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reben_cloud.root.dataset import Dataset
from reben_cloud.root.layer_manifest import is_layer_name
from reben_cloud.schema import ArraySpec, Modality, Schema, TensorSpec


def layer_schema(
    ds: Dataset,
    name: str,
    tensors: Sequence[TensorSpec],
    *,
    arrays: Sequence[ArraySpec] = (),
    title: str = "",
    is_map: bool = False,
) -> Schema:
    """The schema of an array layer: one modality, with the classes and the size of a dataset's patches.

    Args:
        ds: The dataset.
        name: Name of the layer and of its modality.
        tensors: The tensors of every patch.
        arrays: Batch arrays that they fill; by default tensors of one shape and dtype are stacked in an array with the
            layer's name, and all others have one each.
        title: What it is, for people.
        is_map: Whether its pixels are codes of the dataset's classes.

    Raises:
        ValueError: If the name is none, or the dataset has something of a name that it would add.
    """
    check_name(ds, name)
    own = ds.manifest.schema
    modality = Modality(
        name=name,
        tensors=tuple(tensors),
        arrays=tuple(arrays) or _arrays(own, name, tensors),
        key_suffix="_{name}",
        title=title,
    )
    if is_map and len(modality.arrays) != 1:
        raise ValueError(f"layer {name}: a map is one array, this layer has {len(modality.arrays)}")
    found = Schema(
        name=own.name,
        modalities=(modality,),
        classes=own.classes,
        patch_m=own.patch_m,
        map_array=modality.arrays[0].name if is_map else None,
        license="other",
    )
    for array in modality.arrays:
        _check_taken(ds, array.name)
    return found


def check_layer_name(name: str) -> None:
    """Refuse what is no name of a layer.

    Raises:
        ValueError: If it is none.
    """
    if not is_layer_name(name):
        raise ValueError(
            f"a layer cannot be named {name!r}: take small letters, digits and underscores, and none of the names that "
            "roots and batches use themselves"
        )


def fill_payload(modality: Modality) -> bytes:
    """The payload of a patch for which a layer has nothing."""
    return modality.encode({t.name: np.full(t.shape, t.fill, t.storage) for t in modality.tensors})


def check_name(ds: Dataset, name: str) -> None:
    """Refuse what no layer of a dataset can be called.

    Raises:
        ValueError: If it is no name, or the dataset has something of that name.
    """
    check_layer_name(name)
    _check_taken(ds, name)


def _check_taken(ds: Dataset, name: str) -> None:
    own = ds.manifest.schema
    if name in {*own.modality_names, *(array.name for m in own.modalities for array in m.arrays)}:
        raise ValueError(f"{ds.url} has {name!r} already; give the layer another name")


def _arrays(own: Schema, name: str, tensors: Sequence[TensorSpec]) -> tuple[ArraySpec, ...]:
    """The arrays of tensors that nobody has said more of; none where each is to have its own."""
    if len({(t.shape, t.dtype, t.fill, t.units, t.pixel_m) for t in tensors}) != 1:
        return ()
    first, stacked = tensors[0], len(tensors) > 1
    axes = _image_axes(own, first) or tuple(f"{name}__{number}" for number in range(len(first.shape)))
    dims = ((f"{name}__band",) if stacked else ()) + axes
    names = tuple(tensor.name for tensor in tensors)
    return (ArraySpec(name=name, tensors=names, stacked=stacked, dims=dims, zarr_name=name),)


def _image_axes(own: Schema, tensor: TensorSpec) -> tuple[str, ...]:
    """Names of the axes of an image: those that the dataset's images of this pixel size have."""
    if tensor.pixel_m is None or len(tensor.shape) != 2:
        return ()
    for modality in own.modalities:
        for array in modality.arrays:
            other = modality.tensor_of(array)
            if other.pixel_m == tensor.pixel_m and other.shape == tensor.shape:
                return array.dims[-2:]
    side = f"{tensor.pixel_m:g}".replace(".", "_")
    return f"y{side}", f"x{side}"
