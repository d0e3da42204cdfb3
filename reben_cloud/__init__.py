"""BigEarthNet v2.0 (reBEN) as a cloud-native streaming dataset.

`open` a root, `Dataset.search` it by area, time and label, look at patches in xarray, stream a
selection with `reben_cloud.torch.StreamLoader`, or export it to LMDB. ``import reben_cloud`` loads
neither torch nor lmdb nor rasterio; what stands behind a name is loaded when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from reben_cloud.errors import (
    ChecksumError,
    ConflictError,
    ForkError,
    InvalidPatchError,
    MissingExtraError,
    NotFoundError,
    RebenError,
    SourceError,
    StorageError,
)

if TYPE_CHECKING:
    from reben_cloud import grid
    from reben_cloud.layers import write_layer, write_table
    from reben_cloud.opening import open, open_layer
    from reben_cloud.root.dataset import Dataset
    from reben_cloud.root.layers import Layer
    from reben_cloud.root.mixture import concat
    from reben_cloud.root.query import Query
    from reben_cloud.root.selection import Selection
    from reben_cloud.training.predict import predict


__version__ = "0.1.0"

__all__ = [
    "ChecksumError",
    "ConflictError",
    "Dataset",
    "ForkError",
    "InvalidPatchError",
    "Layer",
    "MissingExtraError",
    "NotFoundError",
    "Query",
    "RebenError",
    "Selection",
    "SourceError",
    "StorageError",
    "concat",
    "grid",
    "open",
    "open_layer",
    "predict",
    "write_layer",
    "write_table",
]

_HOMES = {
    "Dataset": "reben_cloud.root.dataset",
    "Layer": "reben_cloud.root.layers",
    "Query": "reben_cloud.root.query",
    "Selection": "reben_cloud.root.selection",
    "concat": "reben_cloud.root.mixture",
    "open": "reben_cloud.opening",
    "open_layer": "reben_cloud.opening",
    "predict": "reben_cloud.training.predict",
    "write_layer": "reben_cloud.layers",
    "write_table": "reben_cloud.layers",
}
"""Public name -> the module it is loaded from; the errors cost nothing and are there at once."""

if not TYPE_CHECKING:  # or a type checker would take any name for one of these

    def __getattr__(name: str) -> object:
        """Load what a public name stands for."""
        if name == "grid":
            return import_module("reben_cloud.grid")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted([*__all__, "__version__"])
