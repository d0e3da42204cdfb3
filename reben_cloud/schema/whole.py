"""The whole schema of a dataset: its modalities and classes, where its bands lie, and its JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from reben_cloud.schema.arrays import ArraySpec
from reben_cloud.schema.classes import Classes
from reben_cloud.schema.modality import Modality
from reben_cloud.schema.pickling import PickledAsMade
from reben_cloud.schema.tensors import TensorSpec

RESERVED = frozenset(
    {
        "labels",
        "index",
        "valid",
        "patch",
        "label",
        "patch_id",
        "split",
        "country",
        "x0",
        "y0",
        "time",
        "s1_time",
    }
    | {"s1_name", "spatial_ref", "epoch", "row"}
)
"""Names that batches and Zarr stores use themselves."""


class BandPlace(NamedTuple):
    """Where a band, a tensor that is a square image, lies in the batches."""

    modality: str
    """Name of its modality."""
    array: ArraySpec
    """The batch array that holds it."""
    position: int
    """Its place along the first axis of a stacked array; 0 in an array that is one image."""
    tensor: TensorSpec
    """The tensor itself."""

    @property
    def size_px(self) -> int:
        """Height and width, pixels."""
        return self.tensor.shape[-1]


@dataclass(frozen=True, kw_only=True)
class Schema(PickledAsMade):
    """Everything that a dataset's patches have in common."""

    name: str
    """Name of the dataset, e.g. ``BigEarthNet v2.0``."""
    modalities: tuple[Modality, ...]
    """What every patch has, in the order in which it is listed."""
    classes: Classes
    """The label classes."""
    patch_m: float
    """Side of a patch on the ground, metres."""
    map_array: str | None = None
    """Batch array whose pixels have the codes of `classes`; None where there is none."""
    recommended_without: tuple[str, ...] = ()
    """Boolean columns of the metadata that exclude a patch from the recommended set."""
    description: str = ""
    """What the dataset is, in a sentence or two."""
    license: str = "other"
    """SPDX id of its licence."""

    def __post_init__(self) -> None:
        for name in ("modalities", "recommended_without"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.name.strip():
            raise ValueError("a schema needs a name")
        if not (self.patch_m > 0 and math.isfinite(self.patch_m)):
            raise ValueError(f"patch_m must be above 0, got {self.patch_m}")
        for what, names in (
            ("modalities", [m.name for m in self.modalities]),
            ("batch arrays", [a.name for a in self._arrays()]),
            ("Zarr arrays", [a.zarr_name for a in self._arrays()]),
            ("keys in an LMDB", [f"{m.key_column} + {m.key_suffix!r}" for m in self.modalities]),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"the {what} of a schema need different names, got {', '.join(names)}")
        if taken := {name for a in self._arrays() for name in (a.name, a.zarr_name, *a.dims)} & RESERVED:
            raise ValueError(
                f"{sorted(taken)[0]!r} is what every batch or store holds; name the array or axis differently"
            )
        lengths: dict[str, int] = {}
        stacks: dict[str, tuple[str, ...]] = {}
        for modality in self.modalities:
            for array in modality.arrays:
                if array.stacked and stacks.setdefault(array.dims[0], array.tensors) != array.tensors:
                    # The axis has one list of names in a store.
                    raise ValueError(
                        f"axis {array.dims[0]} is {', '.join(stacks[array.dims[0]])}, and "
                        f"{', '.join(array.tensors)} in array {array.name}; name one of them differently"
                    )
                for dim, length in zip(array.dims, modality.shape_of(array), strict=True):
                    if lengths.setdefault(dim, length) != length:
                        raise ValueError(
                            f"axis {dim} has {lengths[dim]} places, and {length} in array {array.name}"
                        )
        if self.map_array is not None and self.map_array not in {a.name for a in self._arrays()}:
            raise ValueError(f"map_array {self.map_array!r} is not one of the schema's arrays")
        for tensor in (t for m in self.modalities for t in m.tensors if t.pixel_m):
            if not math.isclose(tensor.shape[-1] * tensor.pixel_m, self.patch_m):  # type: ignore[operator]
                raise ValueError(
                    f"tensor {tensor.name}: {tensor.shape[-1]} pixels of {tensor.pixel_m} m are not the "
                    f"{self.patch_m} m of a patch"
                )

    def _arrays(self) -> Iterator[ArraySpec]:
        for modality in self.modalities:
            yield from modality.arrays

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Names of the modalities, in order."""
        return tuple(m.name for m in self.modalities)

    def modality(self, name: str) -> Modality:
        """A modality by name.

        Raises:
            ValueError: If there is none.
        """
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise ValueError(
            f"unknown modality {name!r}; it must be one of {', '.join(self.modality_names) or 'none'}"
        )

    def owner(self, zarr_name: str) -> tuple[Modality, ArraySpec]:
        """The modality and array behind an array of a Zarr store.

        Raises:
            ValueError: If there is none.
        """
        for modality in self.modalities:
            for array in modality.arrays:
                if array.zarr_name == zarr_name:
                    return modality, array
        raise ValueError(f"{zarr_name!r} is not an array of this dataset")

    @cached_property
    def bands(self) -> Mapping[str, BandPlace]:
        """Name of a band -> its place, in order; the map is not a band.

        A band has the name of its tensor; where several modalities have one of that name,
        ``modality:tensor``, and the tensor's name alone means none of them.
        """
        found = [
            BandPlace(modality.name, array, position, modality.specs[name])
            for modality in self.modalities
            for array in modality.arrays
            for position, name in enumerate(array.tensors)
            if array.name != self.map_array and _is_band(modality.specs[name])
        ]
        names = [place.tensor.name for place in found]
        return MappingProxyType(
            {
                name if names.count(name) == 1 else f"{place.modality}:{name}": place
                for name, place in zip(names, found, strict=True)
            }
        )

    def only(self, names: Sequence[str]) -> Schema:
        """The same schema with some of its modalities, in the schema's order.

        Raises:
            ValueError: If one is unknown.
        """
        for name in names:
            self.modality(name)
        return self._with(tuple(m for m in self.modalities if m.name in names))

    def narrowed(self, bands: Sequence[str], modalities: Sequence[str] | None = None) -> Schema:
        """The same schema with these bands alone, in this order within each array.

        Args:
            bands: Names of bands, as in `bands`.
            modalities: What else is to stay: a modality without bands (a map) as it is. By default only those that
                have one of the bands.

        Raises:
            ValueError: If there is no such band or modality, none at all, one comes twice, or a modality of
                `modalities` has other bands than these.
        """
        if isinstance(bands, str):
            raise ValueError(f"bands must be a list of names, such as [{bands!r}], not a string")
        if not bands or len(set(bands)) != len(bands):
            raise ValueError(f"bands must be different names, at least one, got {list(bands)}")
        wanted: dict[str, list[str]] = {}
        for band in bands:
            if band not in self.bands:
                raise ValueError(f"unknown band {band!r}; there are {', '.join(self.bands) or 'none'}")
            place = self.bands[band]
            wanted.setdefault(place.modality, []).append(place.tensor.name)
        with_bands = {place.modality for place in self.bands.values()}
        for name in modalities or ():
            self.modality(name)
            if name not in wanted and name in with_bands:
                raise ValueError(
                    f"bands names none of {name}'s; name some, or leave {name} out of modalities"
                )
        if modalities is not None and (left := [name for name in wanted if name not in modalities]):
            raise ValueError(f"bands names some of {left[0]}'s, which is not among modalities")
        kept = (m for m in self.modalities if m.name in wanted or m.name in (modalities or ()))
        return self._with(tuple(m.narrowed(wanted[m.name]) if m.name in wanted else m for m in kept))

    def _with(self, kept: tuple[Modality, ...]) -> Schema:
        """The same with these modalities."""
        arrays = {a.name for m in kept for a in m.arrays}
        return Schema(
            name=self.name,
            modalities=kept,
            classes=self.classes,
            patch_m=self.patch_m,
            map_array=self.map_array if self.map_array in arrays else None,
            recommended_without=self.recommended_without,
            description=self.description,
            license=self.license,
        )

    def to_json(self) -> dict[str, Any]:
        """The schema as it stands in a manifest: plain JSON, from which `from_json` makes an equal one."""
        return cast("dict[str, Any]", json.loads(json.dumps(_without_usual(_with_text_fills(asdict(self))))))

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """A schema that `to_json` wrote.

        Raises:
            ValueError: If a key is missing, unknown or of another type, or a value is out of bounds.
        """
        try:
            modalities = tuple(
                Modality(
                    **{
                        **one,
                        "tensors": tuple(TensorSpec(**_with_number_fill(t)) for t in one["tensors"]),
                        "arrays": tuple(ArraySpec(**a) for a in one["arrays"]),
                    }
                )
                for one in value["modalities"]
            )
            return cls(**{**value, "modalities": modalities, "classes": Classes(**value["classes"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a valid schema: {error}") from error


def _is_band(tensor: TensorSpec) -> bool:
    return tensor.pixel_m is not None and len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1]


def _with_text_fills(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    for modality in value["modalities"]:
        for tensor in modality["tensors"]:
            if isinstance(tensor["fill"], float) and not math.isfinite(tensor["fill"]):
                tensor["fill"] = str(tensor["fill"])
    return value


def _without_usual(value: dict[str, Any]) -> dict[str, Any]:
    """Without what the first manifests had no word for, where it is what it was then: fingerprints stay as they are."""
    for key, usual in (("label_rule", "any"), ("min_share", 0.0)):
        if value["classes"][key] == usual:
            del value["classes"][key]
    return value


def _with_number_fill(tensor: Mapping[str, object]) -> dict[str, Any]:
    fill = tensor["fill"]
    return {**tensor, "fill": float(fill) if isinstance(fill, str) else fill}
