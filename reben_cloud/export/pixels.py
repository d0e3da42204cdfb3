"""A patch as a maker of files gets it: its names, its square on the ground, its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from reben_cloud.errors import InvalidPatchError
from reben_cloud.files.clutter import is_clutter
from reben_cloud.root import layout
from reben_cloud.root.selection import Selection
from reben_cloud.schema import Array


class PatchPixels(NamedTuple):
    """A patch as a maker of files gets it."""

    patch_id: str
    """Its name."""
    product: str
    """Name of its product."""
    epsg: int
    """CRS of its square."""
    left: float
    """West edge, metres."""
    top: float
    """North edge, metres."""
    names: Mapping[str, str]
    """Modality -> the name by which the patch goes there."""
    tensors: Mapping[str, Mapping[str, Array]]
    """Modality -> tensor -> values, of the shape and dtype of the schema."""

    def path(self, ending: str) -> str:
        """``PRODUCT/PATCH`` and an ending."""
        return f"{self.product}/{self.patch_id}{ending}"


class Squares(NamedTuple):
    """What is known of the patches besides their pixels, in the order of the table."""

    patch_ids: list[str]
    """Name of each patch."""
    products: list[str]
    """Its product."""
    codes: list[str]
    """Its CRS, ``EPSG:32633``."""
    bounds: list[list[float]]
    """West, south, east and north edge, metres."""
    names: dict[str, list[str]]
    """Modality -> the name of each patch there."""

    @classmethod
    def of(cls, chosen: Selection, modalities: Sequence[str]) -> Squares:
        """Read them from the table.

        Raises:
            InvalidPatchError: If a name cannot be that of a file.
        """
        found = chosen.dataset.schema.only(modalities).modalities
        keys = {modality.name: layout.column(modality.key_column) for modality in found}
        columns = [layout.ID, layout.PRODUCT, "proj:code", "proj:bbox", *keys.values()]
        table = chosen.columns(list(dict.fromkeys(columns)))

        def texts(name: str) -> list[str]:
            return [str(text) for text in table.column(name).cast(pa.string()).to_pylist()]

        squares = cls(
            texts(layout.ID),
            texts(layout.PRODUCT),
            texts("proj:code"),
            table.column("proj:bbox").to_pylist(),
            {name: texts(column) for name, column in keys.items()},
        )
        for name in {
            *squares.patch_ids,
            *squares.products,
            *(n for ns in squares.names.values() for n in ns),
        }:
            if not name or is_clutter(name) or any(sign in name for sign in "/\\\0"):
                raise InvalidPatchError(f"{name!r} cannot be the name of a file or folder; leave it out")
        return squares

    def patch(self, number: int, tensors: Mapping[str, Mapping[str, Array]]) -> PatchPixels:
        """One of them with its pixels."""
        return PatchPixels(
            patch_id=self.patch_ids[number],
            product=self.products[number],
            epsg=int(self.codes[number].removeprefix("EPSG:")),
            left=self.bounds[number][0],
            top=self.bounds[number][3],
            names={modality: names[number] for modality, names in self.names.items()},
            tensors=tensors,
        )
