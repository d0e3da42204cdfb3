"""BigEarthNet v2.0 (reBEN) as a cloud-native streaming dataset.

`open` a root, `Dataset.search` it by area, time and label, look at patches in xarray, stream a
selection with `reben_cloud.torch.StreamLoader`, or export it to LMDB. ``import reben_cloud`` loads
neither torch nor lmdb nor rasterio.
"""

from reben_cloud.bigearthnet import grid
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
from reben_cloud.opening import open
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.query import Query
from reben_cloud.root.selection import Selection

__version__ = "0.1.0"

__all__ = [
    "ChecksumError",
    "ConflictError",
    "Dataset",
    "ForkError",
    "InvalidPatchError",
    "MissingExtraError",
    "NotFoundError",
    "Query",
    "RebenError",
    "Selection",
    "SourceError",
    "StorageError",
    "grid",
    "open",
]
