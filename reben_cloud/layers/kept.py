"""A parquet or CSV file used as a layer at once: it is made into one in the cache folder, and found there next time."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from pathlib import Path

from reben_cloud.errors import SourceError
from reben_cloud.files.cache import cache_folder
from reben_cloud.files.whole import locked
from reben_cloud.layers.table import write_table
from reben_cloud.root.dataset import Dataset
from reben_cloud.root.exported import ExportManifest
from reben_cloud.root.layer_manifest import LAYER_VERSION
from reben_cloud.root.layers import Layer, read_layer_manifest
from reben_cloud.store import open_store

logger = logging.getLogger(__name__)


def layer_of_file(path: Path, ds: Dataset) -> Layer:
    """The layer of a root that a file makes; its name is that of the file, in letters that layers have.

    It is made once for each state of the file, as its size and time of change tell.

    Args:
        path: A parquet or CSV file.
        ds: The root that the layer is for; of an export, rows of patches that it lacks are left out.

    Raises:
        SourceError: If the table cannot be a layer as it is.
        ValueError: If no layer can have its name.
        StorageError: If the cache folder cannot be written.
    """
    state = path.stat()
    facts = (
        path.resolve(),
        state.st_size,
        state.st_mtime_ns,
        ds.manifest.fingerprint,
        len(ds),
        LAYER_VERSION,
    )
    kept = cache_folder() / "layers" / hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()[:24]
    kept.parent.mkdir(parents=True, exist_ok=True)
    # The ranks of a training open it at the same time: one makes it, and the others wait.
    with locked(kept.with_name(f"{kept.name}.lock"), wait=True):
        store = open_store(kept)
        if (manifest := read_layer_manifest(store)) is not None:
            return Layer(store, manifest)
        logger.info("making a layer of %s in %s", path, kept)
        try:
            lacking = sys.maxsize if isinstance(ds.manifest, ExportManifest) else 0
            return write_table(kept, ds, name=name_of_file(path), table=path, allow_missing=lacking)
        except SourceError as error:
            raise SourceError(
                f"{error}. `reben_cloud.write_table` makes a layer of it with options"
            ) from error


def name_of_file(path: Path) -> str:
    """What the layer of a file is called: ``bigearthnet_txt`` for ``BigEarthNet.txt.parquet``."""
    return re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")[:32]
